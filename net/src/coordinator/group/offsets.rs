//! The committed offsets of one group.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::messages::{
    offset_fetch_request::OffsetFetchRequestGroup,
    offset_fetch_response::{OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics},
};
use uuid::Uuid;

use super::{record::OffsetCommit, strings::wire, topics::TopicLookup};

/// An OffsetFetch of one group that waits until the commits under way are durable.
pub(crate) type DeferredFetch = OffsetFetchRequestGroup;

/// Committed offsets by topic name and partition. No topic is empty.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    by_topic: BTreeMap<Rc<str>, BTreeMap<i32, OffsetCommit>>,
}

impl Offsets {
    /// Whether nothing is committed.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_topic.is_empty()
    }

    /// The offset of a partition.
    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&OffsetCommit> {
        self.by_topic.get(topic)?.get(&partition)
    }

    /// Sets or removes the offset of a partition.
    pub(crate) fn set(&mut self, topic: &Rc<str>, partition: i32, value: Option<OffsetCommit>) {
        match value {
            Some(value) => {
                self.by_topic.entry(Rc::clone(topic)).or_default().insert(partition, value);
            }
            None => {
                let Some(partitions) = self.by_topic.get_mut(topic) else {
                    return;
                };
                partitions.remove(&partition);
                if partitions.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
        }
    }

    /// All offsets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Rc<str>, i32, &OffsetCommit)> {
        let topics = self.by_topic.iter();
        topics
            .flat_map(|(topic, partitions)| partitions.iter().map(move |(partition, value)| (topic, *partition, value)))
    }

    /// Partitions with an offset whose topic is no more, even if there is another one of that name.
    pub(crate) fn of_missing_topics(&self, topics: &dyn TopicLookup) -> impl Iterator<Item = (&Rc<str>, i32)> {
        self.by_topic.iter().flat_map(|(topic, partitions)| {
            let now = id_now(topics, topic);
            let gone = partitions.iter().filter(move |(_, value)| !is_of_topic(value, now));
            gone.map(move |(partition, _)| (topic, *partition))
        })
    }

    /// Answers an OffsetFetch: of the partitions named, or of all. An offset of a topic that is no more is told to nobody,
    /// though it may still be there for as long as its deletion cannot be written.
    pub(crate) fn fetch(
        &self,
        request: &OffsetFetchRequestGroup,
        topics_now: &dyn TopicLookup,
    ) -> OffsetFetchResponseGroup {
        let topics = match &request.topics {
            None => self.fetch_all(topics_now),
            Some(topics) => topics
                .iter()
                .map(|topic| {
                    let now = id_now(topics_now, &topic.name);
                    let wanted = |value: &&OffsetCommit| is_of_topic(value, now) && is_of(value, topic.topic_id);
                    let offset = |partition: &i32| {
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

    fn fetch_all(&self, topics_now: &dyn TopicLookup) -> Vec<OffsetFetchResponseTopics> {
        let topic = |(name, partitions): (&Rc<str>, &BTreeMap<i32, OffsetCommit>)| {
            let now = id_now(topics_now, name);
            let there = partitions.iter().filter(|(_, value)| is_of_topic(value, now));
            let found: Vec<_> = there.map(|(partition, value)| found_partition(*partition, Some(value))).collect();
            let topic = OffsetFetchResponseTopics::default().with_name(wire(name).into());
            (!found.is_empty()).then(|| topic.with_partitions(found))
        };
        self.by_topic.iter().filter_map(topic).collect()
    }
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
