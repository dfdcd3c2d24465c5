//! What the members of a consumer group subscribe to, and whether that changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::{ConsumerGroup, Member};
use crate::coordinator::group::{record::Record, topics::TopicLookup};

/// The topics as they are now.
#[derive(Clone, Copy)]
pub(crate) struct TopicsView<'a> {
    /// All topics.
    pub(crate) lookup: &'a dyn TopicLookup,
    /// Rises with every change of theirs.
    pub(crate) version: u64,
}

impl ConsumerGroup {
    /// Topics that any member subscribes to, by name or by a regular expression that was looked up.
    fn subscribed(&self) -> BTreeSet<&Rc<str>> {
        let by_regex = self.regexes.iter().filter(|(regex, _)| self.regex_members.contains_key(*regex));
        self.names.keys().chain(by_regex.flat_map(|(_, resolved)| &resolved.topics)).collect()
    }

    /// Whether any member subscribes to a topic.
    pub(crate) fn is_subscribed_to(&self, topic: &str) -> bool {
        let by_regex = |resolved: &super::ConsumerRegex| resolved.topics.iter().any(|name| **name == *topic);
        self.names.contains_key(topic) || self.regexes.values().any(by_regex)
    }

    /// Ids of the topics that a member subscribes to, as far as they exist. An expression that was not looked up yet
    /// stands for nothing.
    pub(super) fn subscribed_ids(&self, member: &Member, topics: TopicsView<'_>) -> BTreeSet<Uuid> {
        let resolved = member.regex().and_then(|regex| self.regexes.get(regex));
        let by_regex = resolved.into_iter().flat_map(|resolved| &resolved.topics);
        let names = member.info.topic_names.iter().chain(by_regex);
        names.filter_map(|name| topics.lookup.by_name(name)).map(|(id, _)| id).collect()
    }

    /// Raises the group epoch if asked to, or if a subscribed topic changed since it was last raised.
    pub(super) fn update_metadata(&mut self, topics: TopicsView<'_>, mut bump: bool, records: &mut Vec<Record>) {
        let hash = self.metadata_hash_now(topics);
        self.seen_topics = Some(topics.version);
        bump |= hash != self.metadata_hash;
        if bump {
            let record = self.epoch_record(self.epoch + 1, hash);
            self.put(records, record);
        }
        if self.has_partition_metadata {
            let group = Rc::clone(&self.id);
            self.put(records, Record::ConsumerPartitionMetadata { group, value: None });
        }
    }

    /// Whether topics may have changed since [`ConsumerGroup::update_metadata`] last looked.
    pub(super) fn is_metadata_stale(&self, topics: TopicsView<'_>) -> bool {
        self.seen_topics != Some(topics.version)
    }

    /// Hash over the subscribed topics that exist (KIP-1101).
    pub(super) fn metadata_hash_now(&self, topics: TopicsView<'_>) -> i64 {
        metadata_hash(self.subscribed().into_iter(), topics)
    }
}

/// Hash over those of some topics that exist (KIP-1101). The names rise.
pub(crate) fn metadata_hash<'a>(names: impl Iterator<Item = &'a Rc<str>>, topics: TopicsView<'_>) -> i64 {
    let mut bytes = Vec::new();
    for name in names {
        if let Some((id, partitions)) = topics.lookup.by_name(name) {
            bytes.extend_from_slice(&topic_hash(name, id, partitions).to_le_bytes());
        }
    }
    if bytes.is_empty() { 0 } else { xxh3_64(&bytes).cast_signed() }
}

/// Hash over one topic: a version byte, id, name and partitions, laid out as Kafka's hash stream lays them out. Racks are
/// left out: a node has none.
fn topic_hash(name: &str, id: Uuid, partitions: i32) -> u64 {
    let mut bytes = vec![0];
    let (most, least) = id.as_u64_pair();
    bytes.extend_from_slice(&most.to_le_bytes());
    bytes.extend_from_slice(&least.to_le_bytes());
    let units: Vec<u16> = name.encode_utf16().collect();
    units.iter().for_each(|unit| bytes.extend_from_slice(&unit.to_le_bytes()));
    // topic names are at most 249 characters long
    bytes.extend_from_slice(&(units.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&partitions.to_le_bytes());
    (0..partitions).for_each(|partition| bytes.extend_from_slice(&partition.to_le_bytes()));
    xxh3_64(&bytes)
}

/// Sorts names and leaves out repetitions, so that equal subscriptions are equal.
pub(super) fn sorted(names: impl Iterator<Item = Rc<str>>) -> Vec<Rc<str>> {
    names.map(|name| (name, ())).collect::<BTreeMap<_, _>>().into_keys().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_one_that_kafka_writes() {
        // from a ConsumerGroupMetadataValue of Kafka 4.3.1 for a group subscribed to this topic of three partitions
        let id = Uuid::from_u128(0xb309_c30b_b30d_439d_b09f_c933_5016_fa25);
        let hash = xxh3_64(&topic_hash("hash-me", id, 3).to_le_bytes());
        assert_eq!(hash.cast_signed(), -1_992_263_588_661_410_129);
    }
}
