//! The transactions of a partition that have begun and not ended. Pure.
//!
//! What always holds: a producer has one at most, and no two begin at the same offset.

use std::collections::{BTreeMap, HashMap};

/// See the module. Without transactions it has no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenTransactions {
    by_first_offset: BTreeMap<i64, Open>,
    first_offsets: HashMap<i64, i64>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) producer_id: i64,
    /// When its first batch was appended.
    pub(crate) started_ms: i64,
    /// Whether its coordinator is known to have it on stable storage.
    pub(crate) confirmed: bool,
}

impl OpenTransactions {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.first_offsets.len()
    }

    /// Where the oldest one begins.
    pub(crate) fn first_offset(&self) -> Option<i64> {
        self.by_first_offset.first_key_value().map(|(first_offset, _)| *first_offset)
    }

    /// A producer's, and where it begins.
    pub(crate) fn of(&self, producer_id: i64) -> Option<(i64, &Open)> {
        if self.first_offsets.is_empty() {
            return None;
        }
        let first_offset = self.first_offsets.get(&producer_id)?;
        Some((*first_offset, &self.by_first_offset[first_offset]))
    }

    /// All of them by their first offsets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &Open)> {
        self.by_first_offset.iter().map(|(first_offset, open)| (*first_offset, open))
    }

    /// A producer's batch is at an offset: it begins a transaction, unless one is open.
    pub(crate) fn begin(&mut self, first_offset: i64, open: Open) {
        if let std::collections::hash_map::Entry::Vacant(new) = self.first_offsets.entry(open.producer_id) {
            new.insert(first_offset);
            self.by_first_offset.insert(first_offset, open);
        }
    }

    /// A producer's ends. Answers where it began.
    pub(crate) fn end(&mut self, producer_id: i64) -> Option<i64> {
        let first_offset = self.first_offsets.remove(&producer_id)?;
        self.by_first_offset.remove(&first_offset);
        if self.first_offsets.is_empty() {
            *self = Self::default(); // no memory is kept
        }
        Some(first_offset)
    }

    /// A producer's coordinator has it on stable storage.
    pub(crate) fn confirm(&mut self, producer_id: i64) {
        if let Some(open) = self.first_offsets.get(&producer_id).and_then(|first| self.by_first_offset.get_mut(first)) {
            open.confirmed = true;
        }
    }
}
