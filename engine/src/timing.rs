//! Durations, counted: in fixed buckets since the start, and finely for the last minute or two.
//!
//! Plain data, owned by one shard; who records says which minute it is. The buckets are what Prometheus adds up over
//! nodes and takes rates of; the fine histogram is for reading a quantile off one page.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Upper bounds of the buckets in µs. Longer durations are in none of them, only in the count.
pub const BUCKET_BOUNDS_US: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// Longest duration that the fine histogram tells apart from longer ones, in µs.
const LONGEST_US: u64 = 60_000_000;
/// Decimal digits of a fine duration that are kept.
const DIGITS: u8 = 2;

/// What was counted, to be merged with what other shards counted.
#[derive(Debug, Clone)]
pub struct Durations {
    /// How many there were.
    pub count: u64,
    /// All of them together, in µs.
    pub sum_us: u64,
    /// How many were in each bucket: longer than the bound before it, no longer than its own.
    pub buckets: [u64; BUCKET_BOUNDS_US.len()],
    /// Those of the last minute or two, in µs.
    pub recent: Histogram<u64>,
}

impl Default for Durations {
    fn default() -> Self {
        Self { count: 0, sum_us: 0, buckets: Default::default(), recent: fine() }
    }
}

impl Durations {
    /// Takes in what another shard counted.
    pub fn merge(&mut self, other: &Durations) {
        self.count += other.count;
        self.sum_us += other.sum_us;
        for (own, others) in self.buckets.iter_mut().zip(other.buckets) {
            *own += others;
        }
        self.recent.add(&other.recent).expect("all have the same bounds");
    }

    /// A quantile of the last minute or two, in µs; `None` when there was nothing.
    pub fn recent_us(&self, quantile: f64) -> Option<u64> {
        (!self.recent.is_empty()).then(|| self.recent.value_at_quantile(quantile))
    }
}

/// Counts durations.
#[derive(Debug)]
pub struct Timings {
    all: Durations,
    /// Of the minute before `minute`; [`Durations::recent`] of `all` is this minute's.
    previous: Histogram<u64>,
    minute: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self { all: Durations::default(), previous: fine(), minute: 0 }
    }
}

impl Timings {
    /// Something took that long, and ended in that minute of the shard's life.
    pub fn record(&mut self, minute: u64, took: Duration) {
        self.turn(minute);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.all.count += 1;
        self.all.sum_us = self.all.sum_us.saturating_add(us);
        if let Some(bucket) = self.all.buckets.get_mut(BUCKET_BOUNDS_US.partition_point(|bound| *bound < us)) {
            *bucket += 1;
        }
        self.all.recent.saturating_record(us);
    }

    /// What was counted up to now.
    pub fn read(&mut self, minute: u64) -> Durations {
        self.turn(minute);
        let mut read = self.all.clone();
        read.recent.add(&self.previous).expect("both have the same bounds");
        read
    }

    fn turn(&mut self, minute: u64) {
        if minute <= self.minute {
            return;
        }
        if minute == self.minute + 1 {
            std::mem::swap(&mut self.previous, &mut self.all.recent);
        } else {
            self.previous.reset();
        }
        self.all.recent.reset();
        self.minute = minute;
    }
}

fn fine() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("legal bounds")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn quantiles_are_of_the_last_two_minutes_and_buckets_of_all_time() {
        let mut timings = Timings::default();
        for took in 1..=100 {
            timings.record(0, ms(took));
        }
        let p50 = timings.read(0).recent_us(0.5).unwrap();
        assert!((49_000..=51_500).contains(&p50), "{p50}");
        timings.record(1, ms(1000));
        assert_eq!(timings.read(1).recent.len(), 101);
        timings.record(2, ms(1000));
        assert_eq!(timings.read(2).recent.len(), 2);
        assert_eq!(timings.read(4).recent_us(0.5), None);
        let read = timings.read(4);
        assert_eq!((read.count, read.sum_us), (102, 5_050_000 + 2_000_000));
        assert_eq!(read.buckets.iter().sum::<u64>(), 102);
        assert_eq!(read.buckets[BUCKET_BOUNDS_US.partition_point(|bound| *bound < 1000)], 1, "1 ms is in `le` 1 ms");
    }

    #[test]
    fn the_longest_are_in_no_bucket_but_counted() {
        let mut timings = Timings::default();
        timings.record(0, Duration::from_secs(31));
        timings.record(0, Duration::MAX);
        let mut read = Durations::default();
        read.merge(&timings.read(0));
        read.merge(&Timings::default().read(0));
        assert_eq!((read.count, read.buckets.iter().sum::<u64>()), (2, 0));
        assert!(read.recent_us(1.0).unwrap() >= LONGEST_US);
    }
}
