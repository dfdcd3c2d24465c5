//! The verdict over a run: what was acknowledged, what came back, and whether the two fit.
//!
//! Plain synchronous code. A stream is what one producer sent to one partition; its records are numbered from 0. Readers
//! feed each partition in offset order.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::payload::Stamp;

/// One producer's records to one partition.
pub type StreamId = (u32, u32);

/// A set of sequence numbers as sorted, disjoint, non-empty ranges `[start, end)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds `[start, end)`; cheap when it continues the last range.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some(last) = self.0.last_mut()
            && last.1 == start
        {
            last.1 = end;
            return;
        }
        let from = self.0.partition_point(|range| range.1 < start);
        let to = self.0.partition_point(|range| range.0 <= end);
        let merged = self.0[from..to].iter().fold((start, end), |a, b| (a.0.min(b.0), a.1.max(b.1)));
        self.0.splice(from..to, [merged]);
    }

    /// Takes one number out; whether it was there.
    pub fn remove(&mut self, number: u64) -> bool {
        let at = self.0.partition_point(|range| range.1 <= number);
        let Some(&(start, end)) = self.0.get(at).filter(|range| range.0 <= number) else {
            return false;
        };
        let parts = [(start, number), (number + 1, end)];
        self.0.splice(at..=at, parts.into_iter().filter(|(start, end)| start < end));
        true
    }

    /// How many numbers there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// How many numbers of `[start, end)` there are.
    pub fn count_within(&self, start: u64, end: u64) -> u64 {
        self.0.iter().map(|range| range.1.min(end).saturating_sub(range.0.max(start))).sum()
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }
}

/// What was acknowledged, by stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Sequences of each stream.
    pub streams: BTreeMap<StreamId, Ranges>,
}

impl Acknowledged {
    /// Notes `count` records from `first` on.
    pub fn insert(&mut self, stream: StreamId, first: u64, count: u64) {
        self.streams.entry(stream).or_default().insert(first, first + count);
    }

    /// Whether a record was noted.
    pub fn contains(&self, stream: StreamId, number: u64) -> bool {
        self.streams.get(&stream).is_some_and(|ranges| ranges.count_within(number, number + 1) > 0)
    }

    /// Takes over another's notes.
    pub fn merge(&mut self, other: Acknowledged) {
        for (stream, ranges) in other.streams {
            let own = self.streams.entry(stream).or_default();
            ranges.iter().for_each(|(start, end)| own.insert(start, end));
        }
    }

    /// Records in all.
    pub fn count(&self) -> u64 {
        self.streams.values().map(Ranges::count).sum()
    }
}

/// What came back of one stream.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// One past the highest sequence seen.
    next: u64,
    /// Sequences below `next` that were not seen.
    missing: Ranges,
}

/// What came back of a run.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    run: u64,
    streams: BTreeMap<StreamId, Seen>,
    tally: Tally,
}

/// Faults and counts of a read-back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Records of this run that came back.
    pub records: u64,
    /// Records of other runs, passed over.
    pub foreign: u64,
    /// Records that came back again.
    pub duplicates: u64,
    /// Records that came back behind a later one of their stream.
    pub reordered: u64,
    /// Values whose checksum or partition is wrong.
    pub corrupt: u64,
    /// Acknowledged records that did not come back.
    pub lost: u64,
    /// Records that came back though nobody was told so (allowed: an answer may be lost).
    pub unacknowledged: u64,
}

impl Tally {
    /// Whether anything was lost, doubled, reordered or damaged.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicates == 0 && self.reordered == 0 && self.corrupt == 0
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} records back: {} lost, {} duplicates, {} reordered, {} corrupt, {} unacknowledged",
            self.records, self.lost, self.duplicates, self.reordered, self.corrupt, self.unacknowledged
        )
    }
}

impl Ledger {
    /// A ledger over one run.
    pub fn new(run: u64) -> Ledger {
        Ledger { run, ..Ledger::default() }
    }

    /// Takes a value read from `partition`; answers its stamp if it belongs to the run and is whole.
    pub fn record(&mut self, partition: u32, value: &[u8]) -> Option<Stamp> {
        let stamp = match Stamp::read(value) {
            Ok(stamp) => stamp,
            Err(_) => {
                self.tally.corrupt += 1;
                return None;
            }
        };
        if stamp.run != self.run {
            self.tally.foreign += 1;
            return None;
        }
        if stamp.partition != partition {
            self.tally.corrupt += 1;
            return None;
        }
        self.tally.records += 1;
        let seen = self.streams.entry((stamp.producer, partition)).or_default();
        if stamp.sequence >= seen.next {
            seen.missing.insert(seen.next, stamp.sequence);
            seen.next = stamp.sequence + 1;
        } else if seen.missing.remove(stamp.sequence) {
            self.tally.reordered += 1;
        } else {
            self.tally.duplicates += 1;
        }
        Some(stamp)
    }

    /// Takes over what another reader saw of *other partitions* of the same run.
    pub fn merge(&mut self, other: Ledger) {
        assert_eq!(self.run, other.run, "ledgers of two runs");
        for (stream, seen) in other.streams {
            let before = self.streams.insert(stream, seen);
            assert!(before.is_none(), "stream {stream:?} was read by two readers");
        }
        self.tally.records += other.tally.records;
        self.tally.foreign += other.tally.foreign;
        self.tally.duplicates += other.tally.duplicates;
        self.tally.reordered += other.tally.reordered;
        self.tally.corrupt += other.tally.corrupt;
    }

    /// Counts so far, without `lost` and `unacknowledged`.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The verdict once everything was read.
    pub fn verdict(&self, acknowledged: &Acknowledged) -> Tally {
        let nothing = Seen::default();
        let mut lost = 0;
        for (stream, ranges) in &acknowledged.streams {
            let seen = self.streams.get(stream).unwrap_or(&nothing);
            lost += ranges.count_within(seen.next, u64::MAX);
            lost += seen.missing.iter().map(|(start, end)| ranges.count_within(start, end)).sum::<u64>();
        }
        let distinct: u64 = self.streams.values().map(|seen| seen.next - seen.missing.count()).sum();
        Tally { lost, unacknowledged: distinct - (acknowledged.count() - lost), ..self.tally }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::payload;
    use proptest::prelude::*;

    fn value(producer: u32, partition: u32, sequence: u64) -> Vec<u8> {
        let mut value = vec![0; 64];
        let crc = payload::filler_crc(&value);
        Stamp { run: 9, producer, partition, sequence, intended_ns: 0 }.write(&mut value, crc);
        value
    }

    fn read(sequences: &[u64], acknowledged: &[(u64, u64)]) -> Tally {
        let mut ledger = Ledger::new(9);
        for &sequence in sequences {
            ledger.record(1, &value(0, 1, sequence));
        }
        let mut acks = Acknowledged::default();
        for &(first, count) in acknowledged {
            acks.insert((0, 1), first, count);
        }
        ledger.verdict(&acks)
    }

    #[test]
    fn complete_and_ordered_is_clean() {
        let tally = read(&[0, 1, 2, 3], &[(0, 2), (2, 2)]);
        assert!(tally.is_clean() && tally.records == 4 && tally.unacknowledged == 0, "{tally:?}");
    }

    #[test]
    fn missing_tail_middle_and_all_are_lost() {
        assert_eq!(read(&[0, 1], &[(0, 4)]).lost, 2);
        assert_eq!(read(&[0, 3], &[(0, 4)]).lost, 2);
        assert_eq!(read(&[], &[(0, 4)]).lost, 4);
    }

    #[test]
    fn unacknowledged_may_be_missing_or_present() {
        let tally = read(&[0, 3, 4], &[(0, 1), (3, 1)]);
        assert!(tally.is_clean(), "{tally:?}");
        assert_eq!(tally.unacknowledged, 1);
    }

    #[test]
    fn duplicates_and_reordering_are_told_apart() {
        let tally = read(&[0, 2, 1, 1, 2], &[(0, 3)]);
        assert_eq!((tally.reordered, tally.duplicates, tally.lost), (1, 2, 0));
    }

    #[test]
    fn damage_and_wrong_partition_are_corrupt_and_lost() {
        let mut ledger = Ledger::new(9);
        let mut bad = value(0, 1, 0);
        bad[40] ^= 1;
        ledger.record(1, &bad);
        ledger.record(2, &value(0, 1, 1));
        let mut acks = Acknowledged::default();
        acks.insert((0, 1), 0, 2);
        let tally = ledger.verdict(&acks);
        assert_eq!((tally.corrupt, tally.lost, tally.is_clean()), (2, 2, false));
    }

    proptest! {
        #[test]
        fn ranges_behave_like_a_set(steps in proptest::collection::vec((any::<bool>(), 0u64..40, 0u64..8), 0..60)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (insert, start, length) in steps {
                if insert {
                    ranges.insert(start, start + length);
                    set.extend(start..start + length);
                } else {
                    prop_assert_eq!(ranges.remove(start), set.remove(&start));
                }
                prop_assert_eq!(ranges.count(), set.len() as u64);
                prop_assert_eq!(ranges.count_within(10, 20), set.range(10..20).count() as u64);
                let flat: Vec<u64> = ranges.iter().flat_map(|(a, b)| a..b).collect();
                prop_assert_eq!(flat, set.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.0.windows(2).all(|w| w[0].1 < w[1].0) || !insert);
            }
        }
    }
}
