//! Ranges of offsets with what became of them.

use std::collections::BTreeMap;

/// What became of a record, as far as it is kept. A record that is with a member counts as available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeliveryState {
    /// Can be delivered.
    Available,
    /// Was accepted.
    Acknowledged,
    /// Was rejected, was never there, or was delivered too often.
    Archived,
}

impl DeliveryState {
    /// Kafka's number of it.
    pub(crate) fn number(self) -> i8 {
        match self {
            DeliveryState::Available => 0,
            DeliveryState::Acknowledged => 2,
            DeliveryState::Archived => 4,
        }
    }

    /// The state of a number.
    pub(crate) fn from_number(number: i8) -> Option<Self> {
        Some(match number {
            0 => DeliveryState::Available,
            2 => DeliveryState::Acknowledged,
            4 => DeliveryState::Archived,
            _ => return None,
        })
    }
}

/// Neighbouring offsets of which the same became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateBatch {
    /// First offset.
    pub(crate) first_offset: i64,
    /// Last offset, inclusive.
    pub(crate) last_offset: i64,
    /// What became of them.
    pub(crate) state: DeliveryState,
    /// How often they were delivered.
    pub(crate) delivery_count: i16,
}

impl StateBatch {
    /// Grows by the batch right behind it, if that says the same.
    pub(crate) fn absorbs(&mut self, next: &StateBatch) -> bool {
        let same = self.state == next.state && self.delivery_count == next.delivery_count;
        let absorbs = same && self.last_offset + 1 == next.first_offset;
        if absorbs {
            self.last_offset = next.last_offset;
        }
        absorbs
    }
}

/// Lays new batches over older ones; leaves out what lies before `start_offset`. The result rises and does not overlap.
pub(crate) fn merge(older: &[StateBatch], newer: &[StateBatch], start_offset: i64) -> Vec<StateBatch> {
    let mut laid: BTreeMap<i64, StateBatch> = BTreeMap::new();
    for batch in older.iter().chain(newer) {
        lay(&mut laid, *batch);
    }
    let cut = |mut batch: StateBatch| {
        batch.first_offset = batch.first_offset.max(start_offset);
        batch
    };
    let kept = laid.into_values().filter(|batch| batch.last_offset >= start_offset).map(cut);
    let mut merged: Vec<StateBatch> = kept.collect();
    merged.dedup_by(|next, before| before.absorbs(next));
    merged
}

fn lay(laid: &mut BTreeMap<i64, StateBatch>, batch: StateBatch) {
    if batch.last_offset < batch.first_offset {
        return;
    }
    let begin = laid
        .range(..batch.first_offset)
        .next_back()
        .filter(|(_, before)| before.last_offset >= batch.first_offset)
        .map_or(batch.first_offset, |(first, _)| *first);
    let covered: Vec<i64> = laid.range(begin..=batch.last_offset).map(|(first, _)| *first).collect();
    for first in covered {
        let Some(before) = laid.remove(&first) else { continue };
        if before.first_offset < batch.first_offset {
            laid.insert(first, StateBatch { last_offset: batch.first_offset - 1, ..before });
        }
        if before.last_offset > batch.last_offset {
            let rest = StateBatch { first_offset: batch.last_offset + 1, ..before };
            laid.insert(rest.first_offset, rest);
        }
    }
    laid.insert(batch.first_offset, batch);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch() -> impl Strategy<Value = StateBatch> {
        let state = prop_oneof![
            Just(DeliveryState::Available),
            Just(DeliveryState::Acknowledged),
            Just(DeliveryState::Archived)
        ];
        (0_i64..40, 0_i64..12, state, 1_i16..4).prop_map(|(first, len, state, delivery_count)| StateBatch {
            first_offset: first,
            last_offset: first + len,
            state,
            delivery_count,
        })
    }

    proptest! {
        #[test]
        fn the_newest_batch_of_an_offset_counts(
            batches in proptest::collection::vec(batch(), 0..12),
            split in 0_usize..12,
            start in 0_i64..50,
        ) {
            let split = split.min(batches.len());
            let merged = merge(&merge(&[], &batches[..split], 0), &batches[split..], start);
            for pair in merged.windows(2) {
                prop_assert!(pair[0].last_offset < pair[1].first_offset);
                prop_assert!(!pair[0].clone().absorbs(&pair[1]));
            }
            for offset in 0..60 {
                let says = |batches: &[StateBatch]| {
                    let holds = |batch: &&StateBatch| (batch.first_offset..=batch.last_offset).contains(&offset);
                    batches.iter().rfind(holds).map(|batch| (batch.state, batch.delivery_count))
                };
                let expected = if offset < start { None } else { says(&batches) };
                prop_assert_eq!(says(&merged), expected);
            }
        }
    }
}
