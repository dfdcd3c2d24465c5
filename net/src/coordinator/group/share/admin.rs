//! What administrators ask of a share group: to describe it, to set or delete its offsets, to delete it.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterShareGroupOffsetsRequest, AlterShareGroupOffsetsResponse, DeleteShareGroupOffsetsRequest,
        alter_share_group_offsets_response::{
            AlterShareGroupOffsetsResponsePartition, AlterShareGroupOffsetsResponseTopic,
        },
        delete_share_group_offsets_response::DeleteShareGroupOffsetsResponseTopic,
        share_group_describe_response::{
            Assignment as WireAssignment, DescribedGroup, Member as WireMember, TopicPartitions,
        },
    },
};
use uuid::Uuid;

use super::{Member, ShareGroup, ShareRecord, StateWork, Topic, assignor};
use crate::{
    coordinator::group::{
        TopicsView,
        effects::Scope,
        error::GroupError,
        record::Record,
        strings::{optional_wire, wire},
    },
    errors::UNKNOWN_PARTITION,
};

/// What altering offsets comes to: the answer if the state can be set, and the state to set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Altered {
    pub(crate) response: AlterShareGroupOffsetsResponse,
    pub(crate) work: StateWork,
}

/// What deleting offsets comes to: topics that cannot be, and the state to delete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeletedOffsets {
    /// Topics that were refused.
    pub(crate) refused: Vec<DeleteShareGroupOffsetsResponseTopic>,
    /// Topics whose state goes, with their names.
    pub(crate) topics: Vec<(Uuid, String)>,
    pub(crate) work: StateWork,
}

impl ShareGroup {
    /// Describes the group.
    pub(crate) fn describe(&self, topics: TopicsView<'_>) -> DescribedGroup {
        let member = |(id, member): (&Rc<str>, &Member)| {
            let assigned = member.current.assigned.iter().filter_map(|(topic, indexes)| {
                let (name, _) = topics.lookup.by_id(*topic)?;
                Some(
                    TopicPartitions::default()
                        .with_topic_id(*topic)
                        .with_topic_name(wire(name).into())
                        .with_partitions(indexes.iter().copied().collect()),
                )
            });
            WireMember::default()
                .with_member_id(wire(id))
                .with_rack_id(optional_wire(member.info.rack_id.as_deref()))
                .with_member_epoch(member.current.epoch)
                .with_client_id(wire(&member.info.client_id))
                .with_client_host(wire(&member.info.client_host))
                .with_subscribed_topic_names(member.info.topic_names.iter().map(|name| wire(name).into()).collect())
                .with_assignment(WireAssignment::default().with_topic_partitions(assigned.collect()))
        };
        DescribedGroup::default()
            .with_group_id(wire(&self.id).into())
            .with_group_state(wire(self.state_name()))
            .with_group_epoch(self.epoch)
            .with_assignment_epoch(self.assignment_epoch)
            .with_assignor_name(wire(assignor::NAME))
            .with_members(self.members.iter().map(member).collect())
    }

    /// Sets start offsets of a group without members.
    pub(crate) fn handle_alter(
        &mut self,
        scope: &Scope<'_>,
        topics: TopicsView<'_>,
        request: &AlterShareGroupOffsetsRequest,
        records: &mut Vec<Record>,
    ) -> Result<Altered, GroupError> {
        if !self.is_empty() {
            return Err(ResponseError::NonEmptyGroup);
        }
        // a group that is new has an epoch so that it is found again
        if self.epoch == 0 {
            let value = super::GroupEpoch { epoch: 1, metadata_hash: 0 };
            self.put(records, ShareRecord::Epoch(Some(value)));
        }
        let unknown = ResponseError::UnknownTopicOrPartition;
        let mut work = StateWork { state_epoch: self.epoch, partitions: Vec::new() };
        let mut begun: BTreeMap<Uuid, Topic> = BTreeMap::new();
        let mut responses = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let found = topics.lookup.by_name(&topic.topic_name);
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let index = partition.partition_index;
                let mut response = AlterShareGroupOffsetsResponsePartition::default()
                    .with_partition_index(index)
                    .with_error_message(None);
                match found.filter(|(_, count)| (0..*count).contains(&index)) {
                    Some((id, _)) => {
                        work.partitions.push((id, index, partition.start_offset));
                        let name = Rc::from(topic.topic_name.as_str());
                        let topic = begun.entry(id).or_insert(Topic { name, partitions: BTreeSet::new() });
                        topic.partitions.insert(index);
                    }
                    None => {
                        response.error_code = unknown.code();
                        response.error_message = Some(wire(UNKNOWN_PARTITION));
                    }
                }
                partitions.push(response);
            }
            responses.push(
                AlterShareGroupOffsetsResponseTopic::default()
                    .with_topic_name(topic.topic_name.clone())
                    .with_topic_id(found.map_or(Uuid::nil(), |(id, _)| id))
                    .with_partitions(partitions),
            );
        }
        if !begun.is_empty() {
            self.note_begun(scope, begun, records);
        }
        let response = AlterShareGroupOffsetsResponse::default().with_error_message(None).with_responses(responses);
        Ok(Altered { response, work })
    }

    /// Begins to delete the offsets of topics of a group without members.
    pub(crate) fn handle_delete_offsets(
        &mut self,
        topics: TopicsView<'_>,
        request: &DeleteShareGroupOffsetsRequest,
        records: &mut Vec<Record>,
    ) -> Result<DeletedOffsets, GroupError> {
        if !self.is_empty() {
            return Err(ResponseError::NonEmptyGroup);
        }
        let mut deleted = DeletedOffsets { refused: Vec::new(), topics: Vec::new(), work: StateWork::default() };
        let mut partitions = self.partitions.clone();
        for topic in &request.topics {
            let name = topic.topic_name.as_str();
            let found = topics.lookup.by_name(name);
            let indexes = found.and_then(|(id, count)| match partitions.initialized.remove(&id) {
                Some(initialized) => Some((id, initialized.partitions)),
                None => partitions.deleting.contains_key(&id).then(|| (id, (0..count).collect())),
            });
            match indexes {
                Some((id, indexes)) => {
                    partitions.deleting.insert(id, Rc::from(name));
                    deleted.topics.push((id, name.to_owned()));
                    deleted.work.partitions.extend(indexes.into_iter().map(|index| (id, index, -1)));
                }
                None => {
                    let error = ResponseError::UnknownTopicOrPartition;
                    let message = match found {
                        Some(_) => "There is no offset information to delete.".to_owned(),
                        None => UNKNOWN_PARTITION.to_owned(),
                    };
                    deleted.refused.push(
                        DeleteShareGroupOffsetsResponseTopic::default()
                            .with_topic_name(topic.topic_name.clone())
                            .with_error_code(error.code())
                            .with_error_message(Some(wire(&message))),
                    );
                }
            }
        }
        if partitions != self.partitions {
            self.put(records, ShareRecord::Partitions(Some(partitions)));
        }
        Ok(deleted)
    }

    /// Begins to delete a group without members: all its state is to go.
    pub(crate) fn handle_delete(
        &mut self,
        topics: TopicsView<'_>,
        records: &mut Vec<Record>,
    ) -> Result<StateWork, GroupError> {
        if !self.is_empty() {
            return Err(ResponseError::NonEmptyGroup);
        }
        let mut partitions = self.partitions.clone();
        let mut all: BTreeSet<(Uuid, i32)> = BTreeSet::new();
        let with_state = std::mem::take(&mut partitions.initialized).into_iter();
        for (id, topic) in with_state.chain(std::mem::take(&mut partitions.initializing)) {
            all.extend(topic.partitions.iter().map(|index| (id, *index)));
            partitions.deleting.insert(id, topic.name);
        }
        for id in partitions.deleting.keys() {
            if let Some((_, count)) = topics.lookup.by_id(*id) {
                all.extend((0..count).map(|index| (*id, index)));
            }
        }
        if partitions != self.partitions {
            self.put(records, ShareRecord::Partitions(Some(partitions)));
        }
        Ok(StateWork { state_epoch: 0, partitions: all.into_iter().map(|(id, index)| (id, index, -1)).collect() })
    }

    /// The state of topics is gone.
    pub(crate) fn on_state_deleted(&mut self, gone: &[Uuid], records: &mut Vec<Record>) {
        let mut partitions = self.partitions.clone();
        partitions.deleting.retain(|id, _| !gone.contains(id));
        if partitions != self.partitions {
            self.put(records, ShareRecord::Partitions(Some(partitions)));
        }
    }

    /// Topics are gone: so is the state of their share partitions.
    pub(crate) fn handle_topics_gone(&mut self, is_gone: impl Fn(Uuid) -> bool, records: &mut Vec<Record>) {
        let mut partitions = self.partitions.clone();
        partitions.initializing.retain(|id, _| !is_gone(*id));
        partitions.initialized.retain(|id, _| !is_gone(*id));
        partitions.deleting.retain(|id, _| !is_gone(*id));
        if partitions != self.partitions {
            self.put(records, ShareRecord::Partitions(Some(partitions)));
        }
    }
}
