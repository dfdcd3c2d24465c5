//! OffsetCommit, OffsetFetch and OffsetDelete.

use std::rc::Rc;

use kafka_protocol::{
    error::ResponseError,
    messages::{
        OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
        offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic},
        offset_fetch_request::OffsetFetchRequestGroup,
        offset_fetch_response::OffsetFetchResponseGroup,
    },
};

use super::{Coordinator, Entry, Group, Scope, scope};
use crate::coordinator::group::{
    caller::Caller,
    classic::State,
    effects::Then,
    error::GroupError,
    offsets::Stability,
    record::{OffsetCommit, Record},
};
use crate::coordinator::runtime::Ticket;

/// First version of OffsetCommit in which an unknown group is called so.
const GROUP_ID_NOT_FOUND_VERSION: i16 = 9;

impl Coordinator {
    /// Handles an OffsetCommit whose topics were found to exist: each has its name and its id.
    pub(crate) fn handle_offset_commit(
        &mut self,
        now_ms: i64,
        caller: &Caller,
        request: &OffsetCommitRequest,
        ticket: Ticket<OffsetCommitResponse>,
    ) {
        if let Err(error) = self.validate_commit(now_ms, caller, request) {
            let reply = commit_error(request, error);
            return self.effects.reply(ticket, reply);
        }
        let (records, reply) = self.commit_records(now_ms, request);
        if records.is_empty() {
            return self.effects.reply(ticket, reply);
        }
        self.effects.write_then_reply(records.clone(), Then::Apply(records), ticket, reply);
    }

    /// The records of a commit, and its answer once they are durable. Metadata that is too long is refused.
    pub(super) fn commit_records(
        &self,
        now_ms: i64,
        request: &OffsetCommitRequest,
    ) -> (Vec<Record>, OffsetCommitResponse) {
        let group: Rc<str> = Rc::from(request.group_id.as_str());
        let expire_timestamp_ms = match request.retention_time_ms {
            -1 => -1,
            retention => now_ms.saturating_add(retention),
        };
        let mut records = Vec::new();
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let name: Rc<str> = Rc::from(topic.name.as_str());
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let mut reply =
                    OffsetCommitResponsePartition::default().with_partition_index(partition.partition_index);
                let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
                if is_longer(metadata, self.settings.offset_metadata_length_max) {
                    reply.error_code = ResponseError::OffsetMetadataTooLarge.code();
                } else {
                    let value = committed(topic, partition, now_ms, expire_timestamp_ms);
                    let (group, topic) = (Rc::clone(&group), Rc::clone(&name));
                    let partition = partition.partition_index;
                    records.push(Record::OffsetCommit { group, topic, partition, value: Some(value) });
                }
                partitions.push(reply);
            }
            topics.push(commit_topic(topic, partitions));
        }
        (records, OffsetCommitResponse::default().with_topics(topics))
    }

    fn validate_commit(
        &mut self,
        now_ms: i64,
        caller: &Caller,
        request: &OffsetCommitRequest,
    ) -> Result<(), GroupError> {
        let generation = request.generation_id_or_member_epoch;
        let Some(entry) = self.entries.get_mut(request.group_id.as_str()) else {
            // a consumer without group management, or an administrator: a simple group will keep the offsets
            return if super::is_too_long(&request.group_id) {
                Err(ResponseError::InvalidGroupId)
            } else if generation < 0 {
                Ok(())
            } else if caller.version >= GROUP_ID_NOT_FOUND_VERSION {
                Err(ResponseError::GroupIdNotFound)
            } else {
                Err(ResponseError::IllegalGeneration)
            };
        };
        let instance_id = request.group_instance_id.as_deref();
        let scope = scope!(self, now_ms);
        match &mut entry.group {
            Group::Classic(group) => group.handle_offset_commit(scope, &request.member_id, instance_id, generation),
            Group::Share(_) => Err(ResponseError::GroupIdNotFound),
            Group::Consumer(group) => {
                let topics = request.topics.iter();
                let partitions = topics.flat_map(|topic| {
                    topic.partitions.iter().map(|partition| (topic.topic_id, partition.partition_index))
                });
                group.validate_offset_commit(caller.version, &request.member_id, generation, partitions)
            }
        }
    }

    /// Handles one group of an OffsetFetch whose topics have their names. Where stable offsets are required it waits for
    /// the commits under way, so that a partition's next owner does not start behind them; who finds offsets of an open
    /// transaction asks again.
    pub(crate) fn handle_offset_fetch(
        &mut self,
        request: OffsetFetchRequestGroup,
        stability: Stability,
        ticket: Ticket<OffsetFetchResponseGroup>,
    ) {
        let now = match stability {
            Stability::Required => self.effects.defer_fetch(ticket, request),
            Stability::Any => Some((ticket, request)),
        };
        if let Some((ticket, request)) = now {
            let reply = self.fetch_now(&request, stability);
            self.effects.reply(ticket, reply);
        }
    }

    pub(super) fn fetch_now(
        &self,
        request: &OffsetFetchRequestGroup,
        stability: Stability,
    ) -> OffsetFetchResponseGroup {
        match self.entries.get(request.group_id.as_str()) {
            None => super::Offsets::default().fetch(request, stability, &*self.topics),
            Some(entry) => match self.validate_fetch(entry, request) {
                Ok(()) => entry.offsets.fetch(request, stability, &*self.topics),
                Err(error) => fetch_error(request, error),
            },
        }
    }

    fn validate_fetch(&self, entry: &Entry, request: &OffsetFetchRequestGroup) -> Result<(), GroupError> {
        match &entry.group {
            // A share group has none: Kafka answers so too.
            Group::Classic(_) | Group::Share(_) => Ok(()),
            Group::Consumer(group) => group.validate_offset_fetch(request.member_id.as_deref(), request.member_epoch),
        }
    }

    /// Handles an OffsetDelete whose topics were found to exist.
    pub(crate) fn handle_offset_delete(&mut self, request: &OffsetDeleteRequest, ticket: Ticket<OffsetDeleteResponse>) {
        let refused = match self.entries.get(request.group_id.as_str()) {
            _ if request.group_id.is_empty() => Some(ResponseError::InvalidGroupId),
            None => Some(ResponseError::GroupIdNotFound),
            Some(entry) => entry.validate_offset_delete().err(),
        };
        if let Some(error) = refused {
            let reply = OffsetDeleteResponse::default().with_error_code(error.code());
            return self.effects.reply(ticket, reply);
        }
        let id: Rc<str> = Rc::from(request.group_id.as_str());
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let mut records = Vec::new();
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let subscribed = entry.is_subscribed_to(&topic.name);
            let code = if subscribed { ResponseError::GroupSubscribedToTopic.code() } else { 0 };
            let indexes = topic.partitions.iter().map(|partition| partition.partition_index);
            for partition in
                indexes.clone().filter(|partition| !subscribed && entry.offsets.knows(&topic.name, *partition))
            {
                let (group, topic) = (Rc::clone(&id), Rc::from(topic.name.as_str()));
                records.push(Record::OffsetCommit { group, topic, partition, value: None });
            }
            let reply = |partition| {
                OffsetDeleteResponsePartition::default().with_partition_index(partition).with_error_code(code)
            };
            let partitions = indexes.map(reply).collect();
            topics.push(OffsetDeleteResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions));
        }
        let reply = OffsetDeleteResponse::default().with_topics(topics);
        if records.is_empty() {
            return self.effects.reply(ticket, reply);
        }
        self.effects.write_then_reply(records.clone(), Then::Apply(records), ticket, reply);
    }
}

impl Entry {
    fn validate_offset_delete(&self) -> Result<(), GroupError> {
        match &self.group {
            // which topics the members of such a group read is not known
            Group::Classic(group) if group.state() != State::Empty && !group.uses_consumer_protocol() => {
                Err(ResponseError::NonEmptyGroup)
            }
            Group::Classic(_) | Group::Consumer(_) => Ok(()),
            Group::Share(_) => Err(ResponseError::GroupIdNotFound),
        }
    }

    /// Whether members read a topic, so that its offsets must stay.
    pub(super) fn is_subscribed_to(&self, topic: &str) -> bool {
        match &self.group {
            Group::Classic(group) => group.is_subscribed_to(topic),
            Group::Consumer(group) => group.is_subscribed_to(topic),
            Group::Share(group) => group.is_subscribed_to(topic),
        }
    }
}

/// Kafka's limit is called one of bytes, but is compared with the length of a Java string: code units of UTF-16.
fn is_longer(metadata: &str, length_max: usize) -> bool {
    metadata.len() > length_max && metadata.encode_utf16().count() > length_max
}

fn committed(
    topic: &OffsetCommitRequestTopic,
    partition: &OffsetCommitRequestPartition,
    now_ms: i64,
    expire_timestamp_ms: i64,
) -> OffsetCommit {
    OffsetCommit {
        offset: partition.committed_offset,
        leader_epoch: partition.committed_leader_epoch,
        metadata: Rc::from(partition.committed_metadata.as_deref().unwrap_or_default()),
        commit_timestamp_ms: now_ms,
        expire_timestamp_ms,
        topic_id: topic.topic_id,
    }
}

fn commit_topic(
    topic: &OffsetCommitRequestTopic,
    partitions: Vec<OffsetCommitResponsePartition>,
) -> OffsetCommitResponseTopic {
    OffsetCommitResponseTopic::default()
        .with_name(topic.name.clone())
        .with_topic_id(topic.topic_id)
        .with_partitions(partitions)
}

/// An OffsetCommit that is refused as a whole.
pub(crate) fn commit_error(request: &OffsetCommitRequest, error: GroupError) -> OffsetCommitResponse {
    let partition = |partition: &OffsetCommitRequestPartition| {
        OffsetCommitResponsePartition::default()
            .with_partition_index(partition.partition_index)
            .with_error_code(error.code())
    };
    let topic =
        |topic: &OffsetCommitRequestTopic| commit_topic(topic, topic.partitions.iter().map(partition).collect());
    OffsetCommitResponse::default().with_topics(request.topics.iter().map(topic).collect())
}

/// One group of an OffsetFetch that is refused.
pub(crate) fn fetch_error(request: &OffsetFetchRequestGroup, error: GroupError) -> OffsetFetchResponseGroup {
    OffsetFetchResponseGroup::default().with_group_id(request.group_id.clone()).with_error_code(error.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_measured_in_utf16() {
        for (unit, units) in [("a", 1), ("\u{e4}", 1), ("\u{fffd}", 1), ("\u{1f600}", 2)] {
            assert!(!is_longer(&unit.repeat(8 / units), 8), "{unit}");
            assert!(is_longer(&unit.repeat(8 / units + 1), 8), "{unit}");
        }
    }
}
