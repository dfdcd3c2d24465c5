//! Transactions in the manifest and in footers: those that are open, those that were aborted, and what the batches of
//! producers say of them. Pure.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I16, I32, I64, U16},
};

/// The feature's name in the catalog (FORMAT.md, section 11).
pub const FEATURE: &str = "transactions";

/// Flag of a producer's batch: it is part of a transaction.
pub const TRANSACTIONAL: u16 = 1;
/// Flag of a producer's batch: it ends a transaction.
pub const MARKER: u16 = 2;
/// Flag of a marker: the transaction is committed, not aborted.
pub const COMMITS: u16 = 4;

/// Flag of an open transaction: its coordinator has it on stable storage.
pub const CONFIRMED: u16 = 1;

/// Aborted transactions whose markers are in one segment at most: the next marker begins a new segment. So the active
/// segment's take 4 MiB of memory, and a footer that much more. Tests have fewer.
pub const ABORTED_OF_SEGMENT_MAX: usize = if cfg!(test) { 1 << 11 } else { 1 << 17 };

/// Transactions that are open in one partition at most: they fit one record of the manifest.
pub const OPEN_MAX: usize = 1 << 14;

/// An aborted transaction. Entries lie in the order of their last offsets; of one producer, first offsets ascend too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AbortedEntry {
    /// Whose.
    pub producer_id: I64,
    /// Offset of its first batch.
    pub first_offset: I64,
    /// Offset of its marker.
    pub last_offset: I64,
    /// The first offset of those that were open then, or the offset behind the marker: no transaction whose marker comes
    /// later begins below it.
    pub last_stable_offset: I64,
}

/// An open transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OpenEntry {
    /// Whose.
    pub producer_id: I64,
    /// The producer's newest epoch.
    pub producer_epoch: I16,
    /// [`CONFIRMED`].
    pub flags: U16,
    /// Epoch of the coordinator that wrote the producer's last marker, or -1.
    pub coordinator_epoch: I32,
    /// Offset of its first batch.
    pub first_offset: I64,
    /// When that was appended, ms since the epoch.
    pub started_ms: I64,
}

impl AbortedEntry {
    /// Whether records from `from` up to `end` may be of it.
    pub fn overlaps(&self, from: i64, end: i64) -> bool {
        self.last_offset.get() >= from && self.first_offset.get() < end
    }

    /// Whether none of those that follow overlaps anything below an end.
    pub fn ends_search(&self, end: i64) -> bool {
        self.last_stable_offset.get() >= end
    }
}

/// Of entries in the order of their last offsets, those that may have records from `from` up to `end`, and whether those of
/// segments behind may have too.
pub fn overlapping(entries: &[AbortedEntry], from: i64, end: i64) -> (Vec<AbortedEntry>, bool) {
    let first = entries.partition_point(|entry| entry.last_offset.get() < from);
    let mut found = Vec::new();
    for entry in &entries[first..] {
        if entry.overlaps(from, end) {
            found.push(*entry);
        }
        if entry.ends_search(end) {
            return (found, false);
        }
    }
    (found, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_ends_where_nothing_can_follow() {
        let entry = |producer_id: i64, first: i64, last: i64, stable: i64| AbortedEntry {
            producer_id: producer_id.into(),
            first_offset: first.into(),
            last_offset: last.into(),
            last_stable_offset: stable.into(),
        };
        let entries = [entry(1, 0, 10, 5), entry(2, 5, 20, 12), entry(1, 12, 30, 31), entry(3, 40, 41, 42)];
        let found = |from, end| {
            let (found, goes_on) = overlapping(&entries, from, end);
            (found.iter().map(|entry| entry.last_offset.get()).collect::<Vec<_>>(), goes_on)
        };
        assert_eq!(found(0, 5), (vec![10], false));
        assert_eq!(found(0, 12), (vec![10, 20], false));
        assert_eq!(found(11, 12), (vec![20], false));
        assert_eq!(found(15, 31), (vec![20, 30], false));
        assert_eq!(found(25, 32), (vec![30], false));
        assert_eq!(found(31, 40), (vec![], false));
        assert_eq!(found(41, 99), (vec![41], true));
        assert_eq!(found(42, 99), (vec![], true));
    }
}
