//! Compaction on a disk that loses power, with producers, readers, retention and deletion beside it: whatever happens,
//! a reader sees the newest value of every key, nothing that was deleted comes back, and no file is left over.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{join, join3};
use uuid::Uuid;

use super::{Known, Store, StoreOptions, crash_tests::seeds, partition_dir};
use crate::{
    api::{Acks, FetchPartition, LogError, OffsetSpec, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record, batches, records, verify_crc},
    config::TopicConfig,
    format::segment::SegmentName,
    io::{
        Io,
        sim::{OpKind, Sim, SimIo, Verdict, random::Random},
    },
};

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
const PRODUCER_ID: i64 = 40;

/// A compacted partition and all that was sent to it.
struct Log {
    id: TopicPartition,
    config: Rc<TopicConfig>,
    keys: usize,
    /// By offset: key and value. Its end is what is known to be sent.
    sent: RefCell<BTreeMap<i64, (usize, Option<Bytes>)>>,
    acked: Cell<i64>,
    start: Cell<i64>,
    random: RefCell<Random>,
}

impl Log {
    fn new(keys: usize, settings: &[(&str, &str)], seed: u64) -> Rc<Self> {
        let common = [
            ("cleanup.policy", "compact"),
            ("internal.segment.bytes", "6000"),
            ("min.cleanable.dirty.ratio", "0.1"),
            ("delete.retention.ms", "5"),
        ];
        let settings = common.iter().chain(settings);
        let overrides = settings.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Rc::new(Self {
            id: TopicPartition { topic: Uuid::from_u128(9), partition: 3 },
            config: Rc::new(TopicConfig::parse(&BTreeMap::new(), &overrides).unwrap()),
            keys,
            sent: RefCell::default(),
            acked: Cell::new(0),
            start: Cell::new(0),
            random: RefCell::new(Random::new(seed)),
        })
    }

    fn known(&self) -> Known {
        Known::from([(self.id, self.config.clone())])
    }

    /// Sends a batch of an idempotent producer whose sequences are the offsets. `None`: the log takes nothing.
    async fn send(&self, store: &Store<SimIo>) -> Option<()> {
        let first = self.acked.get();
        let (count, codec) = {
            let random = &mut *self.random.borrow_mut();
            let count = 1 + random.below(8) as i64;
            for offset in first..first + count {
                let key = random.below(self.keys);
                let size = random.below(120);
                let value = (!random.one_in(6)).then(|| Bytes::from(format!("{offset} {}", "v".repeat(size))));
                self.sent.borrow_mut().insert(offset, (key, value));
            }
            (count, CODECS[random.below(5)])
        };
        let batch = self.batch(first, count, codec, store.io.now_ms());
        let (produced, wait) = match store
            .append(ProducePartition { partition: self.id, batch }, AppendOrigin::Client, Acks::All)
            .appended()
            .await
        {
            Ok(taken) => taken,
            Err(LogError::Storage(_) | LogError::StorageFull) => return None,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(produced.base_offset, first);
        wait.unwrap().wait().await.ok()?;
        self.acked.set(first + count);
        Some(())
    }

    fn batch(&self, first: i64, count: i64, codec: Codec, now_ms: i64) -> Bytes {
        let mut builder = BatchBuilder::new(codec, 0).producer(PRODUCER_ID, 0, i32::try_from(first).unwrap());
        for at in 0..count {
            let (key, value) = self.sent.borrow()[&(first + at)].clone();
            let key = Some(Bytes::from(format!("key-{key}")));
            builder.push(&Record { offset: at, timestamp: now_ms, key, value, headers: vec![] });
        }
        builder.finish().into()
    }

    async fn read(&self, store: &Store<SimIo>, from: i64) -> Vec<Record> {
        let (_, end) = store.bounds(self.id).unwrap();
        let mut all = Vec::new();
        let mut offset = from;
        while offset < end {
            let part = FetchPartition {
                partition: self.id,
                offset,
                max_bytes: 3_000,
                leader_epoch: -1,
                bound: ReadBound::HighWatermark,
            };
            let fetched = store.read(&part, 3_000, true).await.unwrap();
            assert!(!fetched.records.is_empty(), "a reader gets on from {offset} to {end}");
            for chunk in fetched.records.chunks {
                for batch in batches(chunk.as_slice().unwrap()) {
                    let (info, batch) = batch.unwrap();
                    assert!(verify_crc(batch));
                    all.extend(records(batch).unwrap().into_iter().filter(|record| record.offset >= from));
                    assert!(info.last_offset() >= offset);
                    offset = info.last_offset() + 1;
                }
            }
        }
        assert_eq!(offset, end);
        all
    }

    /// After a start: what was not acknowledged is there or not.
    fn reconcile(&self, store: &Store<SimIo>) {
        let (start, end) = store.bounds(self.id).unwrap();
        assert!(end >= self.acked.get(), "nothing acknowledged is lost");
        self.sent.borrow_mut().retain(|offset, _| *offset < end);
        assert!(self.sent.borrow().len() as i64 == end, "nothing is there that was not sent");
        self.acked.set(end);
        assert!(start >= self.start.get());
        self.start.set(start);
        if end > 0 {
            let producers = store.active_producers(self.id).unwrap();
            assert_eq!(i64::from(producers[0].last_sequence), end - 1, "the producer can go on");
        }
    }

    /// Reads from everywhere and compares.
    async fn check(&self, store: &Store<SimIo>) {
        let sent = self.sent.borrow().clone();
        let (start, end) = store.bounds(self.id).unwrap();
        let middle = start + self.random.borrow_mut().below(usize::try_from(end - start + 1).unwrap()) as i64;
        for from in [start, middle] {
            let found = self.read(store, from).await;
            let mut last = BTreeMap::new();
            let mut before = -1;
            for record in &found {
                let (key, value) = &sent[&record.offset];
                assert_eq!(record.key.as_deref(), Some(format!("key-{key}").as_bytes()));
                assert_eq!(record.value, *value, "a record is what it was");
                assert!(record.offset > before);
                before = record.offset;
                last.insert(*key, (record.offset, record.value.is_some()));
            }
            let newest: BTreeMap<usize, (i64, bool)> = sent
                .range(..end)
                .map(|(offset, (key, value))| (*key, (*offset, value.is_some())))
                .filter(|(_, (offset, _))| *offset >= from)
                .collect();
            for (key, (offset, lives)) in newest {
                let found = last.get(&key);
                match lives {
                    true => assert_eq!(found, Some(&(offset, true)), "key {key} from {from}"),
                    false => assert!(found.is_none_or(|(_, lives)| !lives), "key {key} from {from} is back"),
                }
            }
        }
        let cell = store.partition(self.id).unwrap();
        let partition = cell.borrow();
        assert!(partition.clean_offset() <= end);
        let useless = partition.segments().all().iter().find(|segment| segment.end_offset <= start);
        assert!(useless.is_none(), "{useless:?} lies below the log's start {start}");
    }

    /// What readers find below the clean point.
    async fn check_clean(&self, store: &Store<SimIo>) {
        let clean_offset = store.partition(self.id).unwrap().borrow().clean_offset();
        let found = self.read(store, store.bounds(self.id).unwrap().0).await;
        let mut keys = BTreeSet::new();
        for record in found.iter().filter(|record| record.offset < clean_offset) {
            assert!(keys.insert(record.key.clone()), "{:?} is there twice", record.key);
        }
    }

    /// The partition's files are those of its segments.
    fn check_files(&self, sim: &Sim, store: &Store<SimIo>) {
        let dir = partition_dir(Path::new("/d"), self.id);
        let found: BTreeSet<PathBuf> = sim.files().into_iter().filter(|path| path.starts_with(&dir)).collect();
        let cell = store.partition(self.id).unwrap();
        let known = cell.borrow().segments().all().iter().map(|segment| dir.join(segment.name().file_name())).collect();
        assert_eq!(found, known);
    }

    fn segments(&self, store: &Store<SimIo>) -> Vec<SegmentName> {
        store.partition(self.id).unwrap().borrow().segments().all().iter().map(|segment| segment.name()).collect()
    }
}

fn options(run: u64, compact_bytes: usize) -> StoreOptions {
    StoreOptions {
        cache_bytes: 200 << 10, // most of the tail is read from segments
        compact_bytes,
        reserve_bytes: 1000,
        ..StoreOptions::of_test(run)
    }
}

/// A map for 27 keys: several passes.
const SMALL_MAP_BYTES: usize = 1_000;
const LARGE_MAP_BYTES: usize = 1 << 20;

fn machine(seed: u64) -> Sim {
    let sim = Sim::new(seed);
    sim.run_until(sim.io().create_dir(Path::new("/d"))).unwrap().unwrap();
    sim
}

async fn open(io: SimIo, run: u64, log: &Log, compact_bytes: usize) -> Rc<Store<SimIo>> {
    let store = Store::open(io, options(run, compact_bytes), &log.known()).await;
    store.unwrap_or_else(|error| panic!("{error}"))
}

/// Sends batches and brings them to segments, many small ones.
async fn fill(store: &Rc<Store<SimIo>>, log: &Log, batches: usize) {
    for at in 0..batches {
        if log.send(store).await.is_none() {
            return;
        }
        if at % 7 == 6 {
            store.materialise_all().await;
        }
    }
    store.materialise_all().await;
}

#[test]
fn compaction_keeps_the_newest_values_over_restarts() {
    for (seed, map_bytes) in [(1, LARGE_MAP_BYTES), (2, SMALL_MAP_BYTES)] {
        let sim = machine(seed);
        let log = Log::new(60, &[], seed);
        for run in 1..5 {
            let io = if run == 1 { sim.io() } else { sim.restart() };
            let body = async {
                let store = open(io, run, &log, map_bytes).await;
                log.reconcile(&store);
                log.check(&store).await;
                log.check_clean(&store).await;
                check_lookups(&store, &log).await;
                fill(&store, &log, 150).await;
                let before = store.partition_bytes(log.id).unwrap();
                store.compact().await;
                assert!(store.partition_bytes(log.id).unwrap() < before / 2, "most of it is gone");
                log.check(&store).await;
                log.check_clean(&store).await;
                log.check_files(&sim, &store);
                let active = log.segments(&store).len() - 1;
                let clean_offset = store.partition(log.id).unwrap().borrow().clean_offset();
                assert_eq!(clean_offset, log.segments(&store)[active].base_offset, "all sealed segments are clean");
                store.close().await;
            };
            sim.run_until(body).unwrap();
            sim.kill();
        }
    }
}

#[test]
fn a_small_tail_is_compacted_when_its_segment_is_old() {
    let sim = machine(1);
    let log = Log::new(5, &[("segment.ms", "1000")], 1);
    let body = async {
        let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
        for _ in 0..4 {
            log.send(&store).await.unwrap();
            store.compact().await;
            store.io.sleep(Duration::from_secs(2)).await;
        }
        assert!(log.segments(&store).len() > 1, "segments have ended");
        assert!(store.partition(log.id).unwrap().borrow().clean_offset() > 0, "and were compacted");
        log.check(&store).await;
        log.check_clean(&store).await;
    };
    sim.run_until(body).unwrap();
}

/// Nothing is cached after a start: offsets are found where the records are.
async fn check_lookups(store: &Rc<Store<SimIo>>, log: &Log) {
    let all = log.read(store, 0).await;
    for from in all.iter().step_by(37) {
        let asked = OffsetSpec::Timestamp(from.timestamp);
        let first = all.iter().find(|record| record.timestamp >= from.timestamp).unwrap();
        let found = store.list_offset(log.id, asked, ReadBound::HighWatermark).await.unwrap();
        assert_eq!((found.offset, found.timestamp_ms), (first.offset, first.timestamp));
    }
    let newest = all.iter().map(|record| record.timestamp).max();
    let found = store.list_offset(log.id, OffsetSpec::MaxTimestamp, ReadBound::HighWatermark).await.unwrap();
    assert_eq!(found.timestamp_ms, newest.unwrap_or(-1));
}

#[test]
fn readers_are_not_disturbed_by_a_compaction() {
    for seed in 0..3 {
        let sim = machine(seed);
        let log = Log::new(50, &[], seed);
        let body = async {
            let store = open(sim.io(), 1, &log, SMALL_MAP_BYTES).await;
            for _ in 0..2 {
                fill(&store, &log, 60).await;
                let newest =
                    store.list_offset(log.id, OffsetSpec::MaxTimestamp, ReadBound::HighWatermark).await.unwrap();
                assert!(newest.timestamp_ms > 0);
                let done = Cell::new(false);
                let compacting = async {
                    store.compact().await;
                    done.set(true);
                };
                let reading = async {
                    while !done.get() {
                        log.check(&store).await;
                        let found = store
                            .list_offset(log.id, OffsetSpec::MaxTimestamp, ReadBound::HighWatermark)
                            .await
                            .unwrap();
                        assert_eq!(found.timestamp_ms, newest.timestamp_ms);
                        let first = store
                            .list_offset(log.id, OffsetSpec::Timestamp(0), ReadBound::HighWatermark)
                            .await
                            .unwrap();
                        assert!(first.offset >= 0);
                    }
                };
                join(compacting, reading).await;
            }
        };
        sim.run_until(body).unwrap();
    }
}

#[test]
fn small_segments_are_merged_and_large_ones_are_not() {
    let sim = machine(5);
    let log = Log::new(100_000, &[], 5);
    let body = async {
        let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
        fill(&store, &log, 150).await;
        let before = log.segments(&store);
        store.compact().await;
        let sizes: Vec<u64> = store.partition(log.id).unwrap().borrow().sealed().iter().map(|s| s.size).collect();
        assert!(sizes.iter().all(|size| *size <= 6_000));
        assert!(sizes.windows(2).all(|two| two[0] + two[1] > 3_000), "{sizes:?}");
        let after = log.segments(&store);
        assert!(after.len() <= before.len());
        store.compact().await;
        assert_eq!(log.segments(&store), after, "nothing is due any more");
        log.check(&store).await;
    };
    sim.run_until(body).unwrap();
}

/// Many short lives on one disk, compacting, each cut off somewhere.
fn lives(seed: u64, count: u64) {
    let sim = machine(seed);
    let settings: &[(&str, &str)] = if seed.is_multiple_of(3) { &[("cleanup.policy", "compact,delete")] } else { &[] };
    let log = Log::new(40, settings, seed);
    let random = Rc::new(RefCell::new(Random::new(seed ^ 0xC0FFEE)));
    for run in 1..=count {
        let io = if run == 1 { sim.io() } else { sim.restart() };
        if run < count && !random.borrow_mut().one_in(4) {
            sim.crash_after(random.borrow_mut().between(1, 250));
        }
        let map_bytes = if random.borrow_mut().one_in(2) { SMALL_MAP_BYTES } else { LARGE_MAP_BYTES };
        if sim.run_until(life(&sim, io, run, &log, &random, map_bytes)).is_some() {
            if random.borrow_mut().one_in(2) { sim.kill() } else { sim.crash() }
        }
    }
}

async fn life(sim: &Sim, io: SimIo, run: u64, log: &Log, random: &Rc<RefCell<Random>>, map_bytes: usize) {
    let store = open(io, run, log, map_bytes).await;
    log.reconcile(&store);
    log.check(&store).await;
    log.check_clean(&store).await;
    let sending = async {
        for _ in 0..60 {
            if log.send(&store).await.is_none() {
                return;
            }
        }
    };
    let disturbing = async {
        for _ in 0..12 {
            let choice = random.borrow_mut().below(8);
            match choice {
                0..4 => store.materialise_all().await,
                4..6 => store.compact().await,
                6 => store.io.sleep(Duration::from_millis(1)).await,
                _ => {
                    let (start, end) = store.bounds(log.id).unwrap();
                    let before =
                        start + random.borrow_mut().below(usize::try_from(end - start).unwrap() / 4 + 1) as i64;
                    drop(store.trim(log.id, before).await);
                }
            }
        }
    };
    let compacting = async {
        for _ in 0..6 {
            store.io.sleep(Duration::from_millis(2)).await;
            store.compact().await;
        }
    };
    join3(sending, disturbing, compacting).await;
    log.check(&store).await;
    store.materialise_all().await;
    store.compact().await;
    log.check_files(sim, &store);
    log.check(&store).await;
}

#[test]
fn readers_see_the_newest_values_whenever_the_power_fails() {
    for seed in seeds(6) {
        println!("seed {seed}");
        lives(seed, 14);
    }
}

#[test]
fn the_power_fails_at_every_step_of_a_compaction() {
    let step = std::env::var("MILLRACE_CRASH_SEEDS").map_or(3, |_| 1);
    let mut crashes = 0;
    for crash_at in (1..).step_by(step) {
        let sim = machine(crash_at);
        let log = Log::new(30, &[], 77);
        let ended = sim.run_until(async {
            let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
            fill(&store, &log, 60).await;
            sim.crash_after(crash_at);
            store.compact().await;
        });
        let io = sim.restart();
        sim.run_until(async {
            let store = open(io, 2, &log, LARGE_MAP_BYTES).await;
            log.reconcile(&store);
            log.check(&store).await;
            log.check_clean(&store).await;
            store.compact().await;
            log.check(&store).await;
            log.check_clean(&store).await;
            log.check_files(&sim, &store);
        })
        .unwrap();
        if ended.is_some() {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 5, "{crashes}");
}

#[test]
fn a_partition_that_is_deleted_while_it_is_compacted_leaves_nothing() {
    for delay_us in (0..3_000).step_by(150) {
        let sim = machine(delay_us);
        let log = Log::new(50, &[], 3);
        let body = async {
            let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
            fill(&store, &log, 80).await;
            let deleting = async {
                store.io.sleep(Duration::from_micros(delay_us)).await;
                store.remove_partition(log.id).unwrap().wait().await;
            };
            join(store.compact(), deleting).await;
            let dir = partition_dir(Path::new("/d"), log.id);
            let left: Vec<PathBuf> = sim.files().into_iter().filter(|path| path.starts_with(&dir)).collect();
            assert!(left.is_empty(), "{left:?}");
            store.close().await;
        };
        sim.run_until(body).unwrap();
    }
}

#[test]
fn a_log_that_is_trimmed_while_it_is_compacted_stays_whole() {
    for delay_us in (0..4_000).step_by(150) {
        let sim = machine(delay_us);
        let log = Log::new(50, &[], 4);
        let body = async {
            let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
            fill(&store, &log, 80).await;
            let trimming = async {
                store.io.sleep(Duration::from_micros(delay_us)).await;
                let before = store.bounds(log.id).unwrap().1 / 3;
                assert_eq!(store.trim(log.id, before).await, Ok(before));
            };
            join(store.compact(), trimming).await;
            log.check(&store).await;
            store.compact().await;
            log.check(&store).await;
            log.check_files(&sim, &store);
            store.close().await;
        };
        sim.run_until(body).unwrap();
        let io = sim.restart();
        let body = async {
            let store = open(io, 2, &log, LARGE_MAP_BYTES).await;
            log.check(&store).await;
            log.check_clean(&store).await;
        };
        sim.run_until(body).unwrap();
    }
}

#[test]
fn a_store_that_is_closed_does_not_wait_for_compaction_to_end() {
    for delay_us in (0..3_000).step_by(300) {
        let sim = machine(delay_us);
        let log = Log::new(50, &[], 6);
        let body = async {
            let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
            fill(&store, &log, 80).await;
            let closing = async {
                store.io.sleep(Duration::from_micros(delay_us)).await;
                store.close().await;
            };
            join(store.compact(), closing).await;
        };
        sim.run_until(body).unwrap();
        let io = sim.restart();
        let body = async {
            let store = open(io, 2, &log, LARGE_MAP_BYTES).await;
            log.reconcile(&store);
            store.compact().await;
            log.check(&store).await;
            log.check_clean(&store).await;
            log.check_files(&sim, &store);
        };
        sim.run_until(body).unwrap();
    }
}

#[test]
fn a_damaged_segment_is_not_made_good() {
    let sim = machine(8);
    let log = Log::new(50, &[], 8);
    sim.run_until(async {
        let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
        fill(&store, &log, 80).await;
        store.close().await;
    })
    .unwrap();
    sim.kill();
    let dir = partition_dir(Path::new("/d"), log.id);
    let second = sim.files().into_iter().filter(|path| path.starts_with(&dir)).nth(1).unwrap();
    let io = sim.restart();
    sim.corrupt(&second, 100, 0x40);
    sim.run_until(async {
        let store = open(io, 2, &log, LARGE_MAP_BYTES).await;
        let before = log.segments(&store);
        store.compact().await;
        assert_eq!(log.segments(&store), before);
        log.check_files(&sim, &store);
        assert!(store.compactor.uncleanable.borrow().contains(&log.id));
    })
    .unwrap();
}

#[test]
fn compaction_waits_for_space_and_leaves_the_reserve() {
    let sim = machine(9);
    let log = Log::new(50, &[], 9);
    sim.run_until(async {
        let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
        fill(&store, &log, 80).await;
        let before = log.segments(&store);
        sim.set_free_bytes(100_000);
        store.compact().await;
        assert_eq!(log.segments(&store), before, "less is free than what one read and write may take");
        assert!(log.send(&store).await.is_some());
        sim.set_free_bytes(2 << 20);
        store.compact().await;
        assert!(log.segments(&store).iter().any(|name| name.generation > 0));
        log.check(&store).await;
        log.check_files(&sim, &store);
    })
    .unwrap();
}

#[test]
fn a_replacement_of_unknown_fate_is_not_written_over() {
    let sim = machine(10);
    let log = Log::new(50, &[], 10);
    sim.run_until(async {
        let store = open(sim.io(), 1, &log, LARGE_MAP_BYTES).await;
        fill(&store, &log, 80).await;
        let mut failed = false;
        sim.watch(move |op| {
            let is_manifest = op.path.to_string_lossy().contains("manifest") && op.kind == OpKind::Write;
            if !is_manifest || failed {
                return Verdict::Go;
            }
            failed = true;
            Verdict::Fail(io::ErrorKind::StorageFull)
        });
        let before = log.segments(&store);
        store.compact().await;
        assert_eq!(log.segments(&store), before);
        assert_eq!(store.compactor.unknown.get(), 1);
        log.check(&store).await;
        store.io.sleep(Duration::from_secs(2)).await;
        store.compact().await;
        let generations: BTreeSet<u32> = log.segments(&store).iter().map(|name| name.generation).collect();
        assert_eq!(generations, BTreeSet::from([0, 2]), "generation 1 may be in the manifest");
        log.check(&store).await;
        store.close().await;
    })
    .unwrap();
    let io = sim.restart();
    sim.run_until(async {
        let store = open(io, 2, &log, LARGE_MAP_BYTES).await;
        store.compact().await;
        log.check(&store).await;
        log.check_clean(&store).await;
        log.check_files(&sim, &store);
    })
    .unwrap();
}
