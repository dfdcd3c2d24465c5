//! The pure parts put together on a log in memory, against what must hold of any compacted log.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    batch::{BatchBuilder, BatchInfo, Codec, Record, batches, records, verify_crc},
    config::TopicConfig,
    format::segment::Segment,
    partition::producers::LastOfProducer,
};

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
const START_MS: i64 = 1_700_000_000_000;
const DELETE_RETENTION_MS: i64 = 1_000;

/// A partition's log: all that was appended, and what is left of it.
#[derive(Default)]
struct Log {
    /// Every record ever, by offset.
    all: BTreeMap<i64, Record>,
    end: i64,
    sealed: Vec<(Segment, Vec<u8>)>,
    active: Vec<u8>,
    clean_offset: i64,
    last_offsets: HashMap<i64, i64>,
    sequences: HashMap<i64, i32>,
    now_ms: i64,
    /// When tombstones became clean.
    clean_since: BTreeMap<i64, i64>,
}

/// What is remembered of producers by the last offsets of their batches.
fn last_of(last_offsets: HashMap<i64, i64>) -> HashMap<i64, LastOfProducer> {
    let of = |(id, last): (i64, i64)| (id, LastOfProducer { last_offset: Some(last), epoch: 0 });
    last_offsets.into_iter().map(of).collect()
}

/// A record to append: its key and value are small numbers.
type Plain = (Option<u8>, Option<u8>);

fn record(offset: i64, timestamp: i64, (key, value): Plain) -> Record {
    let text = |tag: &str, n: u8| Bytes::from(format!("{tag}{n}"));
    Record {
        offset,
        timestamp,
        key: key.map(|n| text("key", n)),
        value: value.map(|n| text("value", n)),
        headers: vec![(text("h", 1), None); usize::from(value.unwrap_or_default() % 3)],
    }
}

impl Log {
    fn append(&mut self, which: usize, producer: Option<i64>, list: &[Plain]) {
        let mut builder = BatchBuilder::new(CODECS[which], self.end).leader_epoch(0);
        if which == 1 {
            builder = builder.append_time(self.now_ms);
        }
        if let Some(id) = producer {
            let sequence = self.sequences.entry(id).or_default();
            builder = builder.producer(id, 0, *sequence);
            *sequence += i32::try_from(list.len()).unwrap();
            self.last_offsets.insert(id, self.end + list.len() as i64 - 1);
        }
        for plain in list {
            let timestamp = if which == 1 { self.now_ms } else { self.now_ms + self.end % 7 };
            let record = record(self.end, timestamp, *plain);
            builder.push(&record);
            self.all.insert(self.end, record);
            self.end += 1;
        }
        self.active.extend(builder.finish());
    }

    /// Seals what is active.
    fn roll(&mut self) {
        let Some(base_offset) = batches(&self.active).next().map(|first| first.unwrap().0.base_offset) else {
            return;
        };
        let mut segment = Segment::begin(base_offset, self.now_ms);
        for batch in batches(&self.active) {
            segment.push(&batch.unwrap().0);
        }
        segment.sealed = true;
        self.sealed.push((segment, std::mem::take(&mut self.active)));
    }

    fn segments(&self) -> Vec<Segment> {
        self.sealed.iter().map(|(segment, _)| segment.clone()).collect()
    }

    /// One round, if one is due. The map takes 16 keys or more.
    fn compact(&mut self, config: &TopicConfig, map_bytes: usize, work: usize) -> bool {
        let Some(due) = due(&self.segments(), 0, self.clean_offset, config, self.now_ms) else {
            return false;
        };
        let keys = u64::try_from(due.end_offset - due.first_dirty).unwrap();
        let mut map = OffsetMap::new(keys, map_bytes);
        let mapped_end = self.map(&due, &mut map, work);
        let filter = Filter {
            map,
            mapped_end,
            round_end: due.end_offset,
            last_of_producers: last_of(self.last_offsets.clone()),
            now_ms: self.now_ms,
            delete_retention_ms: config.delete_retention_ms,
        };
        for (offset, record) in self.all.range(..mapped_end).filter(|(_, record)| record.value.is_none()) {
            if record.key.is_some() {
                self.clean_since.entry(*offset).or_insert(self.now_ms);
            }
        }
        let reached = self.sealed.iter().take_while(|(segment, _)| segment.base_offset < mapped_end).count();
        let mut vanished = 0;
        for group in groups(&self.segments()[..reached], config.segment_bytes) {
            let group = group.start - vanished..group.end - vanished;
            let cleaned = clean(&self.sealed[group.clone()], &filter, work);
            vanished += group.len() - usize::from(cleaned.is_some());
            self.sealed.splice(group, cleaned);
            self.check(); // a crash here must not hurt
        }
        self.clean_offset = mapped_end;
        true
    }

    fn map(&self, due: &Due, map: &mut OffsetMap, work: usize) -> i64 {
        for (_, bytes) in self.sealed[..due.segments].iter().filter(|(s, _)| s.end_offset > due.first_dirty) {
            for batch in batches(bytes) {
                let (info, batch) = batch.unwrap();
                let mut mapping = Mapping::new(batch, &info).unwrap();
                loop {
                    match mapping.step(map, due.first_dirty, &mut { work }).unwrap() {
                        Mapped::More => {}
                        Mapped::All => break,
                        Mapped::Full(offset) => return offset,
                    }
                }
            }
        }
        due.end_offset
    }

    fn left(&self) -> impl Iterator<Item = (BatchInfo, &[u8])> {
        let sealed = self.sealed.iter().flat_map(|(_, bytes)| batches(bytes));
        sealed.chain(batches(&self.active)).map(Result::unwrap)
    }

    /// What must hold whatever has happened.
    fn check(&self) {
        let mut left = BTreeMap::new();
        let mut end = 0;
        for (info, batch) in self.left() {
            assert!(verify_crc(batch));
            assert!(info.base_offset >= end, "batches are in order and do not overlap");
            for record in records(batch).unwrap() {
                assert_eq!(Some(&record), self.all.get(&record.offset), "a record is what it was");
                left.insert(record.offset, record);
            }
            end = info.last_offset() + 1;
        }
        assert_eq!(end, self.end, "the last offset is not lost");
        for (id, last) in &self.last_offsets {
            let is_last = |info: &BatchInfo| info.producer_id == *id && info.last_offset() == *last;
            assert!(self.left().any(|(info, _)| is_last(&info)), "the last batch of producer {id} is there");
        }
        self.check_keys(&left);
        for (offset, since) in &self.clean_since {
            let key = &self.all[offset].key;
            let superseded = left.range(offset + 1..).any(|(_, later)| later.key == *key);
            if !left.contains_key(offset) && !superseded {
                assert!(self.now_ms >= since + DELETE_RETENTION_MS, "the tombstone at {offset} went too early");
            }
        }
    }

    fn check_keys(&self, left: &BTreeMap<i64, Record>) {
        let mut newest: BTreeMap<&Bytes, (i64, &Option<Bytes>)> = BTreeMap::new();
        for (offset, record) in &self.all {
            newest.extend(record.key.as_ref().map(|key| (key, (*offset, &record.value))));
        }
        let mut seen: BTreeMap<&Bytes, &Option<Bytes>> = BTreeMap::new();
        let mut clean: BTreeMap<&Bytes, i64> = BTreeMap::new();
        for (offset, record) in left {
            let Some(key) = &record.key else {
                assert!(*offset >= self.clean_offset, "a record without a key is left at {offset}");
                continue;
            };
            seen.insert(key, &record.value);
            if *offset < self.clean_offset {
                assert_eq!(clean.insert(key, *offset), None, "{key:?} has two values in the clean part");
            }
        }
        for (key, (offset, value)) in newest {
            match value {
                Some(_) => assert!(left.contains_key(&offset), "the newest value of {key:?} is lost"),
                None => assert!(seen.get(key).is_none_or(|value| value.is_none()), "{key:?} is back from the dead"),
            }
        }
    }
}

/// What a group of segments becomes.
fn clean(group: &[(Segment, Vec<u8>)], filter: &Filter, work: usize) -> Option<(Segment, Vec<u8>)> {
    let mut segment = Segment::begin(group[0].0.base_offset, group[0].0.created_ms);
    let mut out = Vec::new();
    for batch in group.iter().flat_map(|(_, bytes)| batches(bytes)) {
        let (info, batch) = batch.unwrap();
        let mut look = Look::new(batch, &info, Part::Counts).unwrap();
        while !look.step(filter, &mut { work }).unwrap() {}
        let kept = match look.verdict(filter).unwrap() {
            Verdict::Drop => continue,
            Verdict::Copy => batch.to_vec(),
            Verdict::Empty(batch) => batch,
            Verdict::Rebuild(mut rebuild) => {
                while !rebuild.step(&mut { work }).unwrap() {}
                rebuild.finish()
            }
        };
        let info = BatchInfo::parse(&kept).unwrap();
        segment.push_behind_gap(&info);
        out.extend(kept);
    }
    segment.sealed = true;
    (!out.is_empty()).then_some((segment, out))
}

fn config(segment_bytes: u64) -> TopicConfig {
    let mut config = TopicConfig { segment_bytes, min_cleanable_dirty_ratio: 0.0, ..TopicConfig::default() };
    config.cleanup_policy.compact = true;
    config.delete_retention_ms = DELETE_RETENTION_MS;
    config
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize, Option<i64>, Vec<Plain>),
    Roll,
    Compact(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let plain = (option::weighted(0.95, 0..60u8), option::weighted(0.8, any::<u8>()));
    prop_oneof![
        6 => (0..5usize, option::of(0..3i64), vec(plain, 1..6)).prop_map(|(c, p, list)| Step::Append(c, p, list)),
        2 => Just(Step::Roll),
        1 => (0..1_500i64).prop_map(Step::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn a_compacted_log_tells_the_newest_value_of_every_key(
        steps in vec(step(), 1..80), segment_bytes in 100..3_000u64, map_bytes in 0..2_000usize, work in 1..2_000usize,
    ) {
        let config = config(segment_bytes);
        let mut log = Log { now_ms: START_MS, ..Log::default() };
        for step in steps {
            match step {
                Step::Append(which, producer, list) => log.append(which, producer, &list),
                Step::Roll => log.roll(),
                Step::Compact(passed_ms) => {
                    log.now_ms += passed_ms;
                    while log.compact(&config, map_bytes, work) {
                        log.check();
                    }
                }
            }
        }
        // In the end nothing of what was deleted long ago is left.
        log.roll();
        while log.compact(&config, map_bytes, work) {}
        log.now_ms += DELETE_RETENTION_MS;
        log.append(0, None, &[(Some(250), Some(1))]);
        log.roll();
        while log.compact(&config, map_bytes, work) {}
        log.check();
        let left = log.left().flat_map(|(_, batch)| records(batch).unwrap()).collect::<Vec<_>>();
        let live = |record: &Record| record.value.is_some() && record.key.is_some();
        prop_assert!(left.iter().all(live), "tombstones and records without a key are gone");
    }
}

fn one_batch(log: &Log) -> (BatchInfo, Vec<Record>) {
    let (info, batch) = log.left().next().unwrap();
    (info, records(batch).unwrap())
}

#[test]
fn a_tombstone_gets_its_horizon_when_it_becomes_clean_and_goes_after_it() {
    let config = config(1 << 20);
    let mut log = Log { now_ms: START_MS, ..Log::default() };
    log.append(4, Some(1), &[(Some(1), Some(1)), (Some(2), Some(2)), (Some(1), None)]);
    log.roll();
    assert!(log.compact(&config, 1 << 20, 1));
    let (info, left) = one_batch(&log);
    assert_eq!(info.delete_horizon_ms(), Some(START_MS + DELETE_RETENTION_MS));
    assert_eq!(
        left.iter().map(|r| (r.offset, r.timestamp)).collect::<Vec<_>>(),
        [(1, START_MS + 1), (2, START_MS + 2)]
    );
    let more = |log: &mut Log| {
        log.append(0, None, &[(Some(3), Some(3))]);
        log.roll();
        assert!(log.compact(&config, 1 << 20, 1_000));
    };
    log.now_ms += DELETE_RETENTION_MS - 1;
    more(&mut log);
    assert_eq!(one_batch(&log).0.delete_horizon_ms(), Some(START_MS + DELETE_RETENTION_MS), "it does not move");
    assert_eq!(one_batch(&log).1.len(), 2);
    log.now_ms += 1;
    more(&mut log);
    assert_eq!(one_batch(&log).1.iter().map(|r| r.offset).collect::<Vec<_>>(), [1]);
}

#[test]
fn batches_that_lose_nothing_are_copied_byte_for_byte() {
    let config = config(1 << 20);
    let mut log = Log { now_ms: START_MS, ..Log::default() };
    for which in 0..5 {
        let key = u8::try_from(which).unwrap() * 2;
        log.append(which, None, &[(Some(key), Some(1)), (Some(key + 1), Some(2))]);
    }
    let before = log.active.clone();
    log.roll();
    assert!(log.compact(&config, 1 << 20, 1));
    assert_eq!(log.sealed[0].1, before);
}

#[test]
fn an_emptied_batch_stays_for_its_producer_and_for_the_end_of_the_log() {
    let config = config(1 << 20);
    let mut log = Log { now_ms: START_MS, ..Log::default() };
    log.append(4, Some(7), &[(Some(1), Some(1)), (Some(1), Some(2))]);
    log.append(4, Some(8), &[(Some(1), Some(3))]);
    log.append(4, Some(8), &[(Some(1), Some(4))]);
    log.append(3, None, &[(None, Some(5))]);
    log.roll();
    assert!(log.compact(&config, 1 << 20, 1));
    let left: Vec<_> =
        log.left().map(|(i, _)| (i.base_offset, i.last_offset(), i.producer_id, i.record_count)).collect();
    assert_eq!(left, [(0, 1, 7, 0), (3, 3, 8, 1), (4, 4, -1, 0)]);
    let first = log.left().next().unwrap().0;
    assert_eq!((first.base_sequence, first.last_sequence(), first.codec()), (0, 1, Ok(Codec::None)));
    // Once producer 7 has gone on, and the log as well, neither batch is needed any more.
    log.append(4, Some(7), &[(Some(1), Some(6))]);
    log.roll();
    assert!(log.compact(&config, 1 << 20, 1));
    let left: Vec<_> = log.left().map(|(info, _)| (info.base_offset, info.record_count)).collect();
    assert_eq!(left, [(3, 0), (5, 1)]);
}

/// A topic of Kafka 4.3.1 before and after a run of its cleaner (`delete.retention.ms=3000`), in two rounds: batches of
/// all codecs from eight idempotent producers. Part of the log was active, or was cleaned before.
struct KafkaRound {
    before: &'static [u8],
    after: &'static [u8],
    first_dirty: i64,
    round_end: i64,
}

const KAFKA_ROUNDS: [KafkaRound; 2] = [
    KafkaRound {
        before: include_bytes!("../../tests/golden/kafka-4.3.1-compaction-1-before.log"),
        after: include_bytes!("../../tests/golden/kafka-4.3.1-compaction-1-after.log"),
        first_dirty: 0,
        round_end: 258,
    },
    KafkaRound {
        before: include_bytes!("../../tests/golden/kafka-4.3.1-compaction-2-before.log"),
        after: include_bytes!("../../tests/golden/kafka-4.3.1-compaction-2-after.log"),
        first_dirty: 258,
        round_end: 516,
    },
];

#[test]
fn kafkas_cleaner_leaves_the_same_batches() {
    for KafkaRound { before, after, first_dirty, round_end } in KAFKA_ROUNDS {
        let infos = |bytes| batches(bytes).map(|batch| batch.unwrap().0);
        let newest_horizon = infos(after).filter_map(|info| info.delete_horizon_ms()).max().unwrap();
        let source = Segment { end_offset: round_end, ..Segment::begin(0, 0) };
        let cleanable: usize = infos(before).filter(|i| i.base_offset < round_end).map(|i| i.size).sum();
        let source = (source, before[..cleanable].to_vec());
        let log = Log { sealed: vec![source], ..Log::default() };
        let due = Due { segments: 1, first_dirty, end_offset: round_end, ratio: 1.0 };
        let mut map = OffsetMap::new(1_000, 1 << 20);
        let filter = Filter {
            mapped_end: log.map(&due, &mut map, 100),
            map,
            round_end,
            last_of_producers: last_of(infos(before).map(|info| (info.producer_id, info.last_offset())).collect()),
            now_ms: newest_horizon - 3_000,
            delete_retention_ms: 3_000,
        };
        let (_, mut cleaned) = clean(&log.sealed, &filter, 100).unwrap();
        cleaned.extend_from_slice(&before[cleanable..]);
        let (ours, kafkas): (Vec<_>, Vec<_>) = (batches(&cleaned).collect(), batches(after).collect());
        assert_eq!(ours.len(), kafkas.len());
        for (ours, kafkas) in ours.into_iter().zip(kafkas) {
            let ((info, batch), (kafkas_info, kafkas_batch)) = (ours.unwrap(), kafkas.unwrap());
            assert_eq!(BatchInfo { size: 0, ..info }, BatchInfo { size: 0, ..kafkas_info });
            assert_eq!(records(batch), records(kafkas_batch));
            if info.codec() == Ok(Codec::None) {
                assert_eq!(batch, kafkas_batch, "what is not compressed is the same byte for byte");
            }
        }
    }
}
