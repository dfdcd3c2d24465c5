//! Room on the disk: produce is refused before there is none, so that what was acknowledged finds its place in segments
//! and topics can be deleted.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Store, StoreOptions};
use crate::io::Io;

/// Bytes of the disk that each shard of a node has no file for yet, but will need: segments for what is in its shared
/// log only, and files for that log.
///
/// Sequentially consistent: of two shards that publish a claim and then sum up, at least one must see the other's. A sum
/// by letter would come too late for that.
#[derive(Clone, Debug)]
pub(crate) struct Owed(Arc<[AtomicU64]>);

impl Owed {
    /// Of a node with shards that have no files yet and will have shared logs of `wal_bytes`.
    pub(crate) fn new(shards: usize, wal_bytes: u64) -> Self {
        let files = StoreOptions::bytes_to_go_round(wal_bytes);
        Self((0..shards).map(|_| AtomicU64::new(files)).collect())
    }

    fn publish(&self, shard: u32, bytes: u64) {
        self.0[shard as usize].store(bytes, Ordering::SeqCst);
    }

    fn sum(&self) -> u64 {
        self.0.iter().map(|shard| shard.load(Ordering::SeqCst)).sum()
    }

    fn shards(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Shards look at the free space when an eighth of the reserve was appended since, within these bounds.
const LOOK_BYTES: (u64, u64) = (1 << 20, 64 << 20);

/// What there is of the disk, in bytes.
pub(super) struct Space {
    pub(super) free: u64,
    /// Of all shards.
    pub(super) owed: u64,
}

impl<I: Io> Store<I> {
    /// Counts what is appended, and looks at the free space when it may have become little.
    pub(super) fn appended_bytes(&self, bytes: usize) {
        self.publish_owed();
        let since = self.unlooked_bytes.get() + bytes as u64;
        self.unlooked_bytes.set(since);
        let look_at = self.options.reserve_bytes / 8 / self.options.owed.shards();
        if since > look_at.clamp(LOOK_BYTES.0, LOOK_BYTES.1) {
            self.check_space();
        }
    }

    /// Looks at the free space once all shards are open: before that, some may have owed files that they have.
    pub(crate) fn check_space_anew(&self) {
        self.full.set(false);
        self.check_space();
    }

    /// Whether appends are refused for lack of space.
    pub(crate) fn is_full(&self) -> bool {
        self.full.get()
    }

    /// Looks at the free space, and lets the maker of the shared log's files do so.
    pub(crate) fn check_space(&self) {
        self.judge_space();
        self.wal.borrow_mut().try_again();
        self.maker.notify();
    }

    /// Appends are refused when the reserve would have to be touched for them, and until there is a little more.
    pub(super) fn judge_space(&self) {
        self.unlooked_bytes.set(0);
        let reserve = self.options.reserve_bytes;
        let Space { free, owed } = self.space().unwrap_or_else(|error| {
            tracing::warn!("cannot read the free space: {error}");
            Space { free: 0, owed: 0 }
        });
        let wanted = if self.full.get() { (reserve / 8).min(LOOK_BYTES.1) } else { 0 };
        let full = free < reserve.saturating_add(owed).saturating_add(wanted);
        if full != self.full.replace(full) {
            match full {
                true => tracing::warn!(
                    "disk is full: produce is refused; {free} bytes are free, {reserve} must stay (--reserve-bytes), \
                     {owed} will be needed for what was taken and for the write-ahead log"
                ),
                false => tracing::info!(free, "disk has space again: produce is accepted"),
            }
        }
    }

    /// Free bytes above the reserve and what is owed; `None` when there is less than those, or nobody knows.
    pub(super) fn room(&self) -> Option<u64> {
        let Space { free, owed } = self.space().ok()?;
        free.checked_sub(self.options.reserve_bytes.saturating_add(owed))
    }

    pub(super) fn space(&self) -> io::Result<Space> {
        self.publish_owed();
        Ok(Space { free: self.io.free_bytes(&self.options.data_dir)?, owed: self.options.owed.sum() })
    }

    fn publish_owed(&self) {
        let owed = self.live_bytes.get() as u64 + self.wal.borrow().owed_bytes();
        self.options.owed.publish(self.options.shard, owed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_owe_together_and_files_from_the_start() {
        let owed = Owed::new(3, 0);
        let each = owed.sum() / 3;
        assert!(each > 0);
        owed.publish(1, 0);
        owed.clone().publish(2, 5);
        assert_eq!(owed.sum(), each + 5);
    }
}
