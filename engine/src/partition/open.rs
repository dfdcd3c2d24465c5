//! The transactions of a partition that have begun and not ended. Pure.
//!
//! What always holds: a producer has one at most, and no two begin at the same offset.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

/// See the module. Without transactions it has no memory of its own, and is small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenTransactions(Option<Box<Known>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    by_first_offset: BTreeMap<i64, Open>,
    first_offsets: HashMap<i64, i64>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) producer_id: i64,
    /// When its first batch was appended.
    pub(crate) started_ms: i64,
    /// Offset of its newest batch since this node knows of it.
    pub(crate) last_batch_at: i64,
    /// Whether its coordinator is known to have it on stable storage.
    pub(crate) confirmed: bool,
}

impl OpenTransactions {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |known| known.first_offsets.len())
    }

    /// Where the oldest one begins.
    pub(crate) fn first_offset(&self) -> Option<i64> {
        self.0.as_ref()?.by_first_offset.first_key_value().map(|(first_offset, _)| *first_offset)
    }

    /// A producer's, and where it begins.
    pub(crate) fn of(&self, producer_id: i64) -> Option<(i64, &Open)> {
        let known = self.0.as_ref()?;
        let first_offset = known.first_offsets.get(&producer_id)?;
        Some((*first_offset, &known.by_first_offset[first_offset]))
    }

    /// All of them by their first offsets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &Open)> {
        let all = self.0.iter().flat_map(|known| &known.by_first_offset);
        all.map(|(first_offset, open)| (*first_offset, open))
    }

    /// A producer's batch is at an offset: it begins a transaction, unless one is open, which goes on.
    pub(crate) fn begin(&mut self, first_offset: i64, open: Open) {
        let known = self.0.get_or_insert_default();
        match known.first_offsets.entry(open.producer_id) {
            Entry::Vacant(new) => {
                new.insert(first_offset);
                known.by_first_offset.insert(first_offset, open);
            }
            Entry::Occupied(begun) => {
                if let Some(begun) = known.by_first_offset.get_mut(begun.get()) {
                    begun.last_batch_at = begun.last_batch_at.max(open.last_batch_at);
                }
            }
        }
    }

    /// A producer's ends. Answers where it began.
    pub(crate) fn end(&mut self, producer_id: i64) -> Option<i64> {
        let known = self.0.as_mut()?;
        let first_offset = known.first_offsets.remove(&producer_id)?;
        known.by_first_offset.remove(&first_offset);
        if known.first_offsets.is_empty() {
            self.0 = None;
        }
        Some(first_offset)
    }

    /// Whether coordinators have them on stable storage is not known any more.
    pub(crate) fn doubt_all(&mut self) {
        let all = self.0.iter_mut().flat_map(|known| known.by_first_offset.values_mut());
        all.for_each(|open| open.confirmed = false);
    }

    /// A producer's coordinator has it on stable storage.
    pub(crate) fn confirm(&mut self, producer_id: i64) {
        let Some(known) = &mut self.0 else { return };
        let first_offset = known.first_offsets.get(&producer_id);
        if let Some(open) = first_offset.and_then(|first| known.by_first_offset.get_mut(first)) {
            open.confirmed = true;
        }
    }
}
