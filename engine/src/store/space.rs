//! Room on the disk: produce is refused before there is none, so that what was acknowledged finds its place in segments
//! and topics can be deleted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::Store;
use crate::io::Io;

/// Bytes that each shard of a node has in its shared log only. Segments will take as much of the disk.
#[derive(Clone, Debug)]
pub(crate) struct Owed(Arc<[AtomicU64]>);

impl Owed {
    pub(crate) fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| AtomicU64::new(0)).collect())
    }

    /// Tells the others about one shard; answers the sum of all.
    fn update(&self, shard: u32, bytes: u64) -> u64 {
        self.0[shard as usize].store(bytes, Ordering::Relaxed);
        self.0.iter().map(|shard| shard.load(Ordering::Relaxed)).sum()
    }
}

/// The free space is looked at when an eighth of the reserve was appended since, within these bounds.
const LOOK_BYTES: (u64, u64) = (1 << 20, 64 << 20);

impl<I: Io> Store<I> {
    /// Counts what is appended, and looks at the free space when it may have become little.
    pub(super) fn appended_bytes(&self, bytes: usize) {
        let since = self.unlooked_bytes.get() + bytes as u64;
        self.unlooked_bytes.set(since);
        if since > (self.options.reserve_bytes / 8).clamp(LOOK_BYTES.0, LOOK_BYTES.1) {
            self.check_space();
        }
    }

    /// Looks at the free space. Appends are refused when the reserve would have to be touched for them.
    pub(crate) fn check_space(&self) {
        self.unlooked_bytes.set(0);
        let room = match self.room() {
            Ok(room) => room,
            Err(error) => return tracing::warn!("cannot read the free space: {error}"),
        };
        let wanted = if self.wal.borrow().goes_round() { 0 } else { self.options.wal_file_bytes() };
        let full = room.is_none_or(|room| room < wanted);
        if full != self.full.replace(full) {
            let (owed, reserve) = (self.live_bytes.get(), self.options.reserve_bytes);
            match full {
                true => tracing::warn!(room, owed, reserve, "disk is full: produce is refused"),
                false => tracing::info!(room, owed, reserve, "disk has space again: produce is accepted"),
            }
        }
        self.maker.notify();
    }

    /// Whether there is room for another file of the shared log.
    pub(super) fn has_room_for_wal_file(&self) -> bool {
        self.room().is_ok_and(|room| room.is_some_and(|room| room >= self.options.wal_file_bytes()))
    }

    /// Free bytes above the reserve and what is owed; `None` when there is less than those.
    fn room(&self) -> std::io::Result<Option<u64>> {
        let free = self.io.free_bytes(&self.options.data_dir)?;
        let owed = self.options.owed.update(self.options.shard, self.live_bytes.get() as u64);
        Ok(free.checked_sub(self.options.reserve_bytes.saturating_add(owed)))
    }
}
