//! Whose batch is next: partitions take turns, and the batches of each keep their order. Pure.
//!
//! Calling order: [`Turns::push`] at any time; [`Turns::begin`], then [`Turns::next_of`] any number of times, then
//! [`Turns::end`]. From the push of its first item to the end of the turn of its last one, a partition is held.

use std::collections::{BTreeMap, VecDeque};

use crate::api::TopicPartition;

/// See the module.
pub(super) struct Turns<T> {
    /// What waits, by partition; empty while the last item of one has its turn.
    queues: BTreeMap<TopicPartition, VecDeque<T>>,
    /// Partitions that something waits for, but for the one that has its turn.
    turns: VecDeque<TopicPartition>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { queues: BTreeMap::new(), turns: VecDeque::new() }
    }
}

impl<T> Turns<T> {
    /// Whether anything waits for that partition, or has its turn.
    pub(super) fn holds(&self, id: TopicPartition) -> bool {
        self.queues.contains_key(&id)
    }

    /// Puts an item behind those of its partition.
    pub(super) fn push(&mut self, id: TopicPartition, item: T) {
        let queue = self.queues.entry(id).or_insert_with(|| {
            self.turns.push_back(id);
            VecDeque::new()
        });
        queue.push_back(item);
    }

    /// The first item of the partition whose turn it is.
    pub(super) fn begin(&mut self) -> Option<(TopicPartition, T)> {
        let id = self.turns.pop_front()?;
        let item = self.queues.get_mut(&id).and_then(VecDeque::pop_front);
        Some((id, item.expect("a turn is for something")))
    }

    /// The next item of the partition that has its turn, if it is `wanted`.
    pub(super) fn next_of(&mut self, id: TopicPartition, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        self.queues.get_mut(&id)?.pop_front_if(|item| wanted(item))
    }

    /// The turn is over.
    pub(super) fn end(&mut self, id: TopicPartition) {
        match self.queues.get(&id) {
            Some(queue) if queue.is_empty() => drop(self.queues.remove(&id)),
            Some(_) => self.turns.push_back(id),
            None => {}
        }
    }

    /// Takes everything that waits.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.turns.clear();
        std::mem::take(&mut self.queues).into_values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(partition: i32) -> TopicPartition {
        TopicPartition { topic: Uuid::nil(), partition }
    }

    #[test]
    fn partitions_take_turns_and_keep_their_order() {
        let mut turns = Turns::default();
        for (partition, item) in [(1, 'a'), (1, 'b'), (2, 'c'), (1, 'd'), (3, 'e')] {
            turns.push(id(partition), item);
        }
        let mut seen = Vec::new();
        while let Some((id, item)) = turns.begin() {
            assert!(turns.holds(id), "what has its turn still comes before what is pushed now");
            if item == 'c' {
                turns.push(id, 'f');
            }
            seen.push(item);
            turns.end(id);
        }
        assert_eq!(seen, ['a', 'c', 'e', 'b', 'f', 'd']);
        assert!(!turns.holds(id(1)) && !turns.holds(id(2)) && !turns.holds(id(3)));
    }

    #[test]
    fn a_turn_may_take_more_of_its_partition() {
        let mut turns = Turns::default();
        for (partition, item) in [(1, 1), (2, 9), (1, 2), (1, 3), (1, 4)] {
            turns.push(id(partition), item);
        }
        assert_eq!(turns.begin(), Some((id(1), 1)));
        assert_eq!(turns.next_of(id(1), |item| *item < 4), Some(2));
        assert_eq!(turns.next_of(id(1), |item| *item < 4), Some(3));
        assert_eq!(turns.next_of(id(1), |item| *item < 4), None);
        turns.end(id(1));
        assert_eq!(turns.begin(), Some((id(2), 9)));
        turns.end(id(2));
        assert_eq!(turns.begin(), Some((id(1), 4)));
        turns.end(id(1));
        assert_eq!(turns.begin(), None);
    }

    #[test]
    fn nothing_is_held_once_all_was_taken() {
        let mut turns = Turns::default();
        (0..3).for_each(|item| turns.push(id(item % 2), item));
        let (under_way, _) = turns.begin().unwrap();
        assert_eq!(turns.take_all().collect::<Vec<_>>(), [2, 1]);
        turns.end(under_way);
        assert!(!turns.holds(id(0)) && !turns.holds(id(1)));
        assert_eq!(turns.begin(), None);
    }
}
