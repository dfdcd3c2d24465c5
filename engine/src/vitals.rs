//! What threads outside of a shard may know of it without asking it, as they must when it does not answer: whether it
//! stands still, and what is in its shared log only. The shard tells every second.
//!
//! Atomics, part of the mailbox's: the reader is the thread that stops the node or the one that feeds the watchdog.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One shard's, as it told last.
#[derive(Debug)]
pub(crate) struct Vitals {
    is_stalled: AtomicBool,
    left_bytes: AtomicU64,
    /// `u64::MAX`: not counted.
    left_partitions: AtomicU64,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            is_stalled: AtomicBool::default(),
            left_bytes: AtomicU64::default(),
            left_partitions: AtomicU64::new(u64::MAX),
        }
    }
}

impl Vitals {
    pub(crate) fn tell(&self, vitals: ShardVitals) {
        self.is_stalled.store(vitals.is_stalled, Ordering::Relaxed);
        self.left_bytes.store(vitals.left_bytes, Ordering::Relaxed);
        self.left_partitions.store(vitals.left_partitions.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> ShardVitals {
        let left_partitions = self.left_partitions.load(Ordering::Relaxed);
        ShardVitals {
            is_stalled: self.is_stalled.load(Ordering::Relaxed),
            left_bytes: self.left_bytes.load(Ordering::Relaxed),
            left_partitions: (left_partitions != u64::MAX).then_some(left_partitions),
        }
    }
}

/// What a shard said of itself last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardVitals {
    /// Something of its log, or a request, stands still.
    pub is_stalled: bool,
    /// Bytes that are in its write-ahead log and in no segment: the next start replays them.
    pub left_bytes: u64,
    /// Partitions that they are of; counted while the node stops.
    pub left_partitions: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_read() {
        let vitals = Vitals::default();
        assert_eq!(vitals.read(), ShardVitals { is_stalled: false, left_bytes: 0, left_partitions: None });
        let told = ShardVitals { is_stalled: true, left_bytes: 70, left_partitions: Some(1) };
        vitals.tell(told);
        assert_eq!(vitals.read(), told);
    }
}
