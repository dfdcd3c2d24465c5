//! How much the transactional ids of one shard may take of its memory: clients make them up, and they live for days.

use std::cell::Cell;

/// Bytes for ids of one shard at most: about 250,000 of them.
pub(crate) const ID_BYTES_MAX: usize = 64 << 20;
/// What one takes beside its name.
const ENTRY_BYTES: usize = 224;
/// What one of its partitions takes.
const PARTITION_BYTES: usize = 64;

/// What is taken, shared by the coordinators of a shard.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    bytes: Cell<usize>,
}

impl Budget {
    /// Bytes that they take, estimated.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Whether another id may be made up.
    pub(super) fn has_room(&self, id: &str) -> bool {
        self.bytes.get() + bytes(id, 0) <= ID_BYTES_MAX
    }

    /// An id takes that much from now on, with so many partitions.
    pub(super) fn take(&self, id: &str, partitions: usize) {
        self.bytes.set(self.bytes.get() + bytes(id, partitions));
    }

    /// What was taken for it is free.
    pub(super) fn give_back(&self, id: &str, partitions: usize) {
        self.bytes.set(self.bytes.get() - bytes(id, partitions));
    }
}

fn bytes(id: &str, partitions: usize) -> usize {
    ENTRY_BYTES + id.len() + PARTITION_BYTES * partitions
}
