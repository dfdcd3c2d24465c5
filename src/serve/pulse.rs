//! Signs of life of the shards: each one beats from a task of its own, and the attendant thread looks whether all did.
//!
//! Atomics, because the reader must not depend on any shard's answer.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// One counter of beats per shard. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    started: Instant,
    /// When each shard beat last, in ms since `started`; 0 before the first time.
    beats: Arc<[AtomicU64]>,
}

impl Pulse {
    /// No shard has beaten yet.
    pub(super) fn new(shards: usize) -> Self {
        Self { started: Instant::now(), beats: (0..shards).map(|_| AtomicU64::new(0)).collect() }
    }

    fn now_ms(&self) -> u64 {
        // Never 0, which means that there was no beat.
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// A shard turns.
    pub(super) fn beat(&self, shard: usize) {
        self.beats[shard].store(self.now_ms(), Ordering::Relaxed);
    }

    /// The shards that have not beaten for longer than `limit`.
    pub(super) fn late(&self, limit: Duration) -> Vec<usize> {
        late(&self.beats, self.now_ms(), limit)
    }

    /// Runs `work` on a shard's executor and beats every `interval` until it is done.
    pub(super) async fn beat_during<T>(self, shard: usize, interval: Duration, work: impl Future<Output = T>) -> T {
        let beating = glommio::spawn_local(async move {
            loop {
                self.beat(shard);
                glommio::timer::sleep(interval).await;
            }
        });
        let done = work.await;
        beating.cancel().await;
        done
    }
}

fn late(beats: &[AtomicU64], now_ms: u64, limit: Duration) -> Vec<usize> {
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let is_late = |beat: &AtomicU64| now_ms.saturating_sub(beat.load(Ordering::Relaxed)) > limit;
    beats.iter().enumerate().filter(|(_, beat)| is_late(beat)).map(|(shard, _)| shard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_stopped_beating_is_late() {
        let beats = [AtomicU64::new(100), AtomicU64::new(900), AtomicU64::new(0)];
        assert_eq!(late(&beats, 1000, Duration::from_millis(500)), [0, 2]);
        assert_eq!(late(&beats, 100, Duration::from_millis(500)), [0usize; 0]);
    }

    #[test]
    fn a_beat_counts_at_once() {
        let pulse = Pulse::new(1);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(pulse.late(Duration::from_millis(1)), [0]);
        pulse.beat(0);
        assert!(pulse.late(Duration::from_secs(60)).is_empty());
    }
}
