//! Offsets that belong to transactions which have not ended: nobody reads them before their commit.
//!
//! Always holds: what is known by partition is known by producer, and the other way round; no map in a map is empty.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::record::OffsetCommit;

/// An offset, with the place of its record in the log: later records of a partition win, whenever they come into force.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recorded {
    /// Offset of the record in the coordinator's partition.
    pub(crate) record_offset: i64,
    /// What it says.
    pub(crate) value: OffsetCommit,
}

/// The pending offsets of one group, by partition and by the producer whose transaction they belong to.
#[derive(Debug, Default)]
pub(crate) struct PendingOffsets {
    by_topic: BTreeMap<Rc<str>, BTreeMap<i32, BTreeMap<i64, Recorded>>>,
    by_producer: BTreeMap<i64, BTreeSet<(Rc<str>, i32)>>,
}

impl PendingOffsets {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_producer.is_empty()
    }

    /// The producers that have some.
    #[cfg(test)]
    pub(crate) fn producers(&self) -> impl Iterator<Item = i64> {
        self.by_producer.keys().copied()
    }

    /// Those of a partition, with the ids of their producers.
    pub(crate) fn of(&self, topic: &str, partition: i32) -> impl Iterator<Item = (i64, &Recorded)> {
        let producers = self.by_topic.get(topic).and_then(|partitions| partitions.get(&partition));
        producers.into_iter().flatten().map(|(producer_id, recorded)| (*producer_id, recorded))
    }

    /// All partitions that have some, each with those.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Rc<str>, i32, impl Iterator<Item = &Recorded>)> {
        let topics = self.by_topic.iter();
        topics.flat_map(|(topic, partitions)| {
            partitions.iter().map(move |(partition, producers)| (topic, *partition, producers.values()))
        })
    }

    /// Sets the offset that a producer's transaction commits for a partition.
    pub(crate) fn set(&mut self, producer_id: i64, topic: &Rc<str>, partition: i32, recorded: Recorded) {
        let partitions = self.by_topic.entry(Rc::clone(topic)).or_default();
        partitions.entry(partition).or_default().insert(producer_id, recorded);
        self.by_producer.entry(producer_id).or_default().insert((Rc::clone(topic), partition));
    }

    /// Takes everything of a producer out: its transaction has ended.
    pub(crate) fn take(&mut self, producer_id: i64) -> Vec<(Rc<str>, i32, Recorded)> {
        let partitions = self.by_producer.remove(&producer_id).unwrap_or_default();
        let taken = partitions.into_iter().map(|(topic, partition)| {
            let recorded = self.remove_one(&topic, partition, producer_id).expect("it is known by producer");
            (topic, partition, recorded)
        });
        taken.collect()
    }

    /// Drops what is pending for a partition, whoever's it is. Answers the producers of whom nothing is left.
    pub(crate) fn forget(&mut self, topic: &Rc<str>, partition: i32) -> Vec<i64> {
        let Some(partitions) = self.by_topic.get_mut(topic) else { return Vec::new() };
        let producers = partitions.remove(&partition).unwrap_or_default();
        if partitions.is_empty() {
            self.by_topic.remove(topic);
        }
        let key = (Rc::clone(topic), partition);
        let mut done = Vec::new();
        for producer_id in producers.into_keys() {
            let theirs = self.by_producer.get_mut(&producer_id).expect("it is known by partition");
            theirs.remove(&key);
            if theirs.is_empty() {
                self.by_producer.remove(&producer_id);
                done.push(producer_id);
            }
        }
        done
    }

    fn remove_one(&mut self, topic: &str, partition: i32, producer_id: i64) -> Option<Recorded> {
        let partitions = self.by_topic.get_mut(topic)?;
        let producers = partitions.get_mut(&partition)?;
        let recorded = producers.remove(&producer_id);
        if producers.is_empty() {
            partitions.remove(&partition);
            if partitions.is_empty() {
                self.by_topic.remove(topic);
            }
        }
        recorded
    }
}
