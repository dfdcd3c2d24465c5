//! The committed offsets of one group.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        offset_fetch_request::OffsetFetchRequestGroup,
        offset_fetch_response::{OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics},
    },
};
use uuid::Uuid;

use super::{
    pending_offsets::{PendingOffsets, Recorded},
    record::OffsetCommit,
    strings::wire,
    topics::TopicLookup,
};

/// An OffsetFetch of one group that waits until the commits under way are durable. It is one that requires stable offsets.
pub(crate) type DeferredFetch = OffsetFetchRequestGroup;

/// Committed offsets by topic name and partition, and those that wait for the end of a transaction. No topic is empty.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    by_topic: BTreeMap<Rc<str>, BTreeMap<i32, Recorded>>,
    pending: PendingOffsets,
}

impl Offsets {
    /// Whether nothing is committed, nor about to be by a transaction.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_topic.is_empty() && self.pending.is_empty()
    }

    /// Whether a transaction is about to commit any.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether a transaction is about to commit one of a partition.
    pub(crate) fn is_pending(&self, topic: &str, partition: i32) -> bool {
        self.pending.of(topic, partition).next().is_some()
    }

    /// Whether a partition has an offset, or a transaction is about to commit one.
    pub(crate) fn knows(&self, topic: &str, partition: i32) -> bool {
        self.get(topic, partition).is_some() || self.is_pending(topic, partition)
    }

    /// The committed offset of a partition.
    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&OffsetCommit> {
        self.recorded(topic, partition).map(|recorded| &recorded.value)
    }

    fn recorded(&self, topic: &str, partition: i32) -> Option<&Recorded> {
        self.by_topic.get(topic)?.get(&partition)
    }

    /// Sets the committed offset of a partition.
    pub(crate) fn set(&mut self, topic: &Rc<str>, partition: i32, recorded: Recorded) {
        self.by_topic.entry(Rc::clone(topic)).or_default().insert(partition, recorded);
    }

    /// Sets the offset of a partition that a producer's transaction is about to commit.
    pub(crate) fn set_pending(&mut self, producer_id: i64, topic: &Rc<str>, partition: i32, recorded: Recorded) {
        self.pending.set(producer_id, topic, partition, recorded);
    }

    /// Removes the offset of a partition, and those that transactions are about to commit. Answers the producers of whose
    /// transactions nothing is pending any more.
    pub(crate) fn remove(&mut self, topic: &Rc<str>, partition: i32) -> Vec<i64> {
        if let Some(partitions) = self.by_topic.get_mut(topic) {
            partitions.remove(&partition);
            if partitions.is_empty() {
                self.by_topic.remove(topic);
            }
        }
        self.pending.forget(topic, partition)
    }

    /// A producer's transaction is committed: its offsets count, but for partitions that have got a later one meanwhile.
    pub(crate) fn commit_transaction(&mut self, producer_id: i64) {
        for (topic, partition, recorded) in self.pending.take(producer_id) {
            let is_later = |known: &Recorded| known.record_offset >= recorded.record_offset;
            if !self.recorded(&topic, partition).is_some_and(is_later) {
                self.set(&topic, partition, recorded);
            }
        }
    }

    /// A producer's transaction is aborted: its offsets never were.
    pub(crate) fn abort_transaction(&mut self, producer_id: i64) {
        self.pending.take(producer_id);
    }

    /// The producers whose transactions are about to commit offsets.
    #[cfg(test)]
    pub(crate) fn pending_producers(&self) -> impl Iterator<Item = i64> {
        self.pending.producers()
    }

    /// All committed offsets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Rc<str>, i32, &OffsetCommit)> {
        let topics = self.by_topic.iter();
        topics.flat_map(|(topic, partitions)| {
            partitions.iter().map(move |(partition, recorded)| (topic, *partition, &recorded.value))
        })
    }

    /// All partitions with an offset, or with one that a transaction is about to commit.
    pub(crate) fn partitions(&self) -> BTreeSet<(&Rc<str>, i32)> {
        let committed = self.iter().map(|(topic, partition, _)| (topic, partition));
        let pending = self.pending.iter().map(|(topic, partition, _)| (topic, partition));
        committed.chain(pending).collect()
    }

    /// Partitions with an offset, committed or about to be, whose topic is no more, even if there is another one of that
    /// name.
    pub(crate) fn of_missing_topics(&self, topics: &dyn TopicLookup) -> BTreeSet<(&Rc<str>, i32)> {
        let is_gone = |topic: &str, value: &OffsetCommit| !is_of_topic(value, id_now(topics, topic));
        let committed = self.iter().filter(|(topic, _, value)| is_gone(topic, value));
        let committed = committed.map(|(topic, partition, _)| (topic, partition));
        let pending = self.pending.iter().filter_map(|(topic, partition, mut all)| {
            // where the new topic has an offset it is the later one, which the transaction's cannot replace
            let is_replaced = self.get(topic, partition).is_some();
            (!is_replaced && all.any(|recorded| is_gone(topic, &recorded.value))).then_some((topic, partition))
        });
        committed.chain(pending).collect()
    }

    /// Answers an OffsetFetch: of the partitions named, or of all. An offset of a topic that is no more is told to nobody,
    /// though it may still be there for as long as its deletion cannot be written.
    pub(crate) fn fetch(
        &self,
        request: &OffsetFetchRequestGroup,
        stability: Stability,
        topics_now: &dyn TopicLookup,
    ) -> OffsetFetchResponseGroup {
        let topics = match &request.topics {
            None => self.fetch_all(stability, topics_now),
            Some(topics) => topics
                .iter()
                .map(|topic| {
                    let now = id_now(topics_now, &topic.name);
                    let wanted = |value: &&OffsetCommit| is_of_topic(value, now) && is_of(value, topic.topic_id);
                    let offset = |partition: &i32| {
                        if stability == Stability::Required && self.is_pending(&topic.name, *partition) {
                            return unstable_partition(*partition);
                        }
                        let found = self.get(&topic.name, *partition);
                        found_partition(*partition, found.filter(wanted))
                    };
                    OffsetFetchResponseTopics::default()
                        .with_name(topic.name.clone())
                        .with_topic_id(topic.topic_id)
                        .with_partitions(topic.partition_indexes.iter().map(offset).collect())
                })
                .collect(),
        };
        OffsetFetchResponseGroup::default().with_group_id(request.group_id.clone()).with_topics(topics)
    }

    /// A partition that has no offset yet is not told of, even if a transaction is about to commit one, as in Kafka.
    fn fetch_all(&self, stability: Stability, topics_now: &dyn TopicLookup) -> Vec<OffsetFetchResponseTopics> {
        let topic = |(name, partitions): (&Rc<str>, &BTreeMap<i32, Recorded>)| {
            let now = id_now(topics_now, name);
            let there = partitions.iter().filter(|(_, recorded)| is_of_topic(&recorded.value, now));
            let found = there.map(|(partition, recorded)| match stability {
                Stability::Required if self.is_pending(name, *partition) => unstable_partition(*partition),
                Stability::Required | Stability::Any => found_partition(*partition, Some(&recorded.value)),
            });
            let found: Vec<_> = found.collect();
            let topic = OffsetFetchResponseTopics::default().with_name(wire(name).into());
            (!found.is_empty()).then(|| topic.with_partitions(found))
        };
        self.by_topic.iter().filter_map(topic).collect()
    }
}

/// Whether an offset may be told that a transaction is about to change (KIP-447).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stability {
    /// Yes: the one that is committed now.
    Any,
    /// No.
    Required,
}

/// Whether an offset was committed for this incarnation of a topic. Either side may not know the id.
fn is_of(value: &OffsetCommit, topic_id: Uuid) -> bool {
    value.topic_id.is_nil() || topic_id.is_nil() || value.topic_id == topic_id
}

/// The id of the topic that has a name now.
fn id_now(topics: &dyn TopicLookup, name: &str) -> Option<Uuid> {
    topics.by_name(name).map(|(id, _)| id)
}

/// Whether an offset was committed for the topic that has its name now, if there is one.
fn is_of_topic(value: &OffsetCommit, now: Option<Uuid>) -> bool {
    now.is_some_and(|id| is_of(value, id))
}

fn found_partition(partition: i32, value: Option<&OffsetCommit>) -> OffsetFetchResponsePartitions {
    let (offset, leader_epoch, metadata) = match value {
        Some(value) => (value.offset, value.leader_epoch, &*value.metadata),
        None => (-1, -1, ""),
    };
    OffsetFetchResponsePartitions::default()
        .with_partition_index(partition)
        .with_committed_offset(offset)
        .with_committed_leader_epoch(leader_epoch)
        .with_metadata(Some(wire(metadata)))
}

/// The answer for a partition whose offset a transaction is about to change.
fn unstable_partition(partition: i32) -> OffsetFetchResponsePartitions {
    found_partition(partition, None).with_error_code(ResponseError::UnstableOffsetCommit.code())
}
