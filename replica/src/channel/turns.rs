//! Partitions that wait for their turn: first come, first served, each once.

use std::collections::BTreeMap;

use millrace_engine::api::TopicPartition;

/// See the module. Nothing here is slower for many that wait than a look into a map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    /// By number of their turn.
    order: BTreeMap<u64, TopicPartition>,
    turns: BTreeMap<TopicPartition, u64>,
    last: u64,
}

impl Turns {
    /// Puts one behind all others. Who waits already keeps its place.
    pub(crate) fn push(&mut self, partition: TopicPartition) {
        if self.turns.contains_key(&partition) {
            return;
        }
        self.last += 1;
        self.order.insert(self.last, partition);
        self.turns.insert(partition, self.last);
    }

    /// Whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<TopicPartition> {
        let (_, partition) = self.order.pop_first()?;
        self.turns.remove(&partition);
        Some(partition)
    }

    /// Takes one out. Whether it waited.
    pub(crate) fn remove(&mut self, partition: TopicPartition) -> bool {
        let turn = self.turns.remove(&partition);
        turn.is_some_and(|turn| self.order.remove(&turn).is_some())
    }

    /// Whether it waits.
    pub(crate) fn has(&self, partition: TopicPartition) -> bool {
        self.turns.contains_key(&partition)
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// All of them, in order; none waits after that.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = TopicPartition> + use<> {
        self.turns.clear();
        std::mem::take(&mut self.order).into_values()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn who_came_first_goes_first_and_each_goes_once() {
        let at = |partition| TopicPartition { topic: Uuid::from_u128(1), partition };
        let mut turns = Turns::default();
        for partition in [3, 1, 3, 2] {
            turns.push(at(partition));
        }
        assert!(turns.remove(at(1)) && !turns.remove(at(1)));
        assert_eq!((turns.pop(), turns.pop(), turns.pop()), (Some(at(3)), Some(at(2)), None));
        turns.push(at(2));
        turns.push(at(1));
        assert_eq!(turns.take().collect::<Vec<_>>(), [at(2), at(1)]);
        turns.push(at(2));
        assert!(!turns.is_empty(), "it may wait again");
    }
}
