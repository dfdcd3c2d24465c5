//! What a shard of the engine counts of itself, and how full it is: for whoever shows it. Plain data.

use std::cell::{Cell, RefCell};

use crate::timing::{Durations, Timings};

/// A number that only grows. Owned by one shard.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Counts that many more.
    pub fn add(&self, more: usize) {
        self.0.set(self.0.get().wrapping_add(more as u64));
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.get()
    }
}

/// One shard's numbers.
#[derive(Debug, Clone, Default)]
pub struct ShardStats {
    /// Records appended.
    pub produced_records: u64,
    /// Bytes of the batches that were appended.
    pub produced_bytes: u64,
    /// Batches appended.
    pub produced_batches: u64,
    /// Batches that were recompressed because their topic asks for another codec.
    pub recompressed_batches: u64,
    /// Their bytes as they were sent.
    pub recompressed_bytes: u64,
    /// Groups that the shared log was given.
    pub wal_groups: u64,
    /// Bytes that were written to the shared log, headers and padding included.
    pub wal_bytes: u64,
    /// Writes of groups that are durable when the write is done.
    pub wal_durable_writes: Durations,
    /// Writes of groups that are flushed later, or together with others.
    pub wal_writes: Durations,
    /// Flushes of the shared log.
    pub wal_flushes: Durations,
    /// Bytes of groups in memory, and their budget.
    pub cache: Budget,
    /// Bytes of records on their way to clients, and their budget.
    pub reads: Budget,
    /// Bytes that are in the shared log and in no segment yet.
    pub unmaterialised_bytes: u64,
    /// Partitions of the shard.
    pub partitions: u64,
    /// Bytes of all their logs.
    pub log_bytes: u64,
    /// Free space is below the reserve: produce is refused.
    pub is_full: bool,
    /// The log takes nothing more until a restart.
    pub is_failed: bool,
    /// Times that something of the log stood still.
    pub stalls: u64,
    /// Something of it stands still now.
    pub is_stalled: bool,
    /// For how long nothing has moved for the oldest commit group.
    pub oldest_group_seconds: u64,
}

/// What is used of how much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// In use.
    pub used: u64,
    /// What there is.
    pub limit: u64,
}

/// Counters of one shard's store.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) produced_records: Counter,
    pub(crate) produced_bytes: Counter,
    pub(crate) produced_batches: Counter,
    pub(crate) recompressed_batches: Counter,
    pub(crate) recompressed_bytes: Counter,
    pub(crate) wal_groups: Counter,
    pub(crate) wal_bytes: Counter,
    pub(crate) wal_durable_writes: RefCell<Timings>,
    pub(crate) wal_writes: RefCell<Timings>,
    pub(crate) wal_flushes: RefCell<Timings>,
}
