//! Who sends what, and when it should leave: decided before the run, whatever the broker does.
//!
//! Plain arithmetic without a clock. Entry `k` of a run is one batch; it belongs to producer `k % producers`.

use crate::payload;

/// The plan of an open-loop run, or of a closed one when there is no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Monotonic time of the first entry, in ns.
    pub start_ns: u64,
    /// Monotonic time from which on nothing is sent any more, in ns.
    pub end_ns: u64,
    /// Records per second over all producers; 0 sends whenever there is room.
    pub records_per_second: u64,
    /// Records of one entry.
    pub records_per_batch: u64,
    /// Producers that share the entries.
    pub producers: u64,
}

impl Schedule {
    /// When a producer's `n`th entry should leave, in ns; `None` when the run is over by then, or has no rate.
    pub fn intended_ns(&self, producer: u64, n: u64) -> Option<u64> {
        if self.records_per_second == 0 {
            return None;
        }
        let entry = u128::from(n) * u128::from(self.producers) + u128::from(producer);
        let ns = entry * u128::from(self.records_per_batch) * 1_000_000_000 / u128::from(self.records_per_second);
        let at = u64::try_from(ns).ok()?.checked_add(self.start_ns)?;
        (at < self.end_ns).then_some(at)
    }
}

/// How a producer picks the partition of its next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// One after the other, each producer from another start: what keyless producers come to.
    RoundRobin,
    /// At random, the same for the same producer: what keys come to.
    Random,
}

impl Partitioner {
    /// The partition of a producer's `n`th batch.
    pub fn pick(self, producer: u64, n: u64, partitions: u32) -> u32 {
        let spread = match self {
            Partitioner::RoundRobin => n.wrapping_add(producer.wrapping_mul(7)),
            Partitioner::Random => {
                let mut state = (producer << 48) ^ n;
                payload::splitmix64(&mut state)
            }
        };
        (spread % u64::from(partitions)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: u64, producers: u64) -> Schedule {
        Schedule {
            start_ns: 1_000,
            end_ns: 1_000 + 2_000_000_000,
            records_per_second: rate,
            records_per_batch: 10,
            producers,
        }
    }

    #[test]
    fn entries_of_all_producers_interleave_evenly_and_reach_the_rate() {
        let schedule = schedule(1_000, 3);
        let mut all: Vec<u64> =
            (0..3).flat_map(|producer| (0..).map_while(move |n| schedule.intended_ns(producer, n))).collect();
        all.sort_unstable();
        assert_eq!(all.len(), 200, "2 s of 1000 records in batches of 10");
        assert!(all.windows(2).all(|w| w[1] - w[0] == 10_000_000));
        assert_eq!(all[0], 1_000);
    }

    #[test]
    fn rates_that_do_not_divide_do_not_drift() {
        let schedule = Schedule { end_ns: u64::MAX, ..schedule(300_007, 1) };
        let hour = 3_600 * 300_007 / 10;
        let at = schedule.intended_ns(0, hour).expect("far from the end") - 1_000;
        assert!(at.abs_diff(3_600_000_000_000) < 40_000, "{at}");
    }

    #[test]
    fn closed_loop_has_no_times() {
        assert_eq!(schedule(0, 1).intended_ns(0, 0), None);
    }

    #[test]
    fn partitioners_reach_every_partition() {
        for partitioner in [Partitioner::RoundRobin, Partitioner::Random] {
            let mut hit = [0u32; 10];
            (0..1_000).for_each(|n| hit[partitioner.pick(3, n, 10) as usize] += 1);
            assert!(hit.iter().all(|&n| n > 50), "{partitioner:?} {hit:?}");
        }
    }
}
