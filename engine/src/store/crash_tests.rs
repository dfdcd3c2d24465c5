//! The store on a disk that loses power: whatever is under way at any write or flush, no acknowledged batch is lost,
//! none is torn, none changes its place, none is there twice.
//!
//! One idempotent producer per partition, so that a record's offset is its sequence and what it must hold is known. It
//! has up to four batches in flight and, like a client, sends again after a crash what was not acknowledged.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    ops::Range,
    path::PathBuf,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::future::join_all;
use uuid::Uuid;

use super::{Known, Owed, Store, StoreOptions};
use crate::{
    api::{Acks, FetchPartition, LogError, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record, batches, records},
    config::TopicConfig,
    io::sim::{Sim, SimIo, random::Random},
};

const IN_FLIGHT_MAX: usize = 4;

impl StoreOptions {
    /// What most tests of the store open it with: the only shard, on an empty folder, with little of everything.
    pub(crate) fn of_test(run: u64) -> Self {
        let wal_bytes = 8 << 20;
        Self {
            data_dir: PathBuf::from("/d"),
            shard: 0,
            generation: 1,
            run,
            cache_bytes: 6 << 20,
            fetch_bytes: 4 << 20,
            compact_bytes: 1 << 20,
            wal_bytes,
            reserve_bytes: 0,
            owed: Owed::new(1, wal_bytes),
            replicated: Rc::default(),
            elsewhere: Rc::default(),
        }
    }
}

/// The seeds that a test with simulated lives runs: the first `count`, unless the environment names others
/// (`./do crash`).
pub(super) fn seeds(count: u64) -> Range<u64> {
    let number = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse::<u64>().unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        Err(_) => default,
    };
    let first = number("MILLRACE_CRASH_FIRST", 0);
    first..first + number("MILLRACE_CRASH_SEEDS", count)
}

/// A batch of the producer: first sequence, records, bytes of each.
#[derive(Clone, Copy)]
struct Sent {
    first: i64,
    count: i64,
    size: usize,
}

/// A partition as its producer knows it.
struct Producer {
    id: TopicPartition,
    config: Rc<TopicConfig>,
    /// Survives the end of the process, but not a power cut.
    written_only: bool,
    size_max: usize,
    /// A segment has that many records, unless it is full before.
    records_of_segment: i64,
    /// Not acknowledged, in order: to be sent again after a crash.
    unacked: RefCell<VecDeque<Sent>>,
    next: Cell<i64>,
    /// Everything below was acknowledged.
    acked: Cell<i64>,
    /// Log starts that were asked for and that were answered.
    trim_asked: Cell<i64>,
    trimmed: Cell<i64>,
}

impl Producer {
    fn new(partition: i32, settings: &[(&str, &str)], size_max: usize) -> Rc<Self> {
        let overrides = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Rc::new(Self {
            id: TopicPartition { topic: Uuid::from_u128(7), partition },
            config: Rc::new(TopicConfig::parse(&BTreeMap::new(), &overrides).unwrap()),
            written_only: settings.iter().any(|(key, _)| *key == "flush.messages"),
            size_max,
            records_of_segment: 7 + 11 * i64::from(partition),
            unacked: RefCell::default(),
            next: Cell::new(0),
            acked: Cell::new(0),
            trim_asked: Cell::new(0),
            trimmed: Cell::new(0),
        })
    }

    fn text(&self, offset: i64, size: usize) -> Vec<u8> {
        let mut text = format!("{}/{offset}/", self.id.partition).into_bytes();
        let fill = text.len() + size;
        text.resize(fill, b'a' + u8::try_from(offset % 26).unwrap());
        text
    }

    fn batch(&self, sent: Sent) -> Bytes {
        let sequence = i32::try_from(sent.first).unwrap();
        // What is sent again is the same to the last byte.
        let codec = if sent.first % 3 == 0 { Codec::Zstd } else { Codec::None };
        let mut builder = BatchBuilder::new(codec, 0).producer(100 + i64::from(self.id.partition), 0, sequence);
        for at in 0..sent.count {
            let value = self.text(sent.first + at, sent.size);
            builder.push(&Record {
                offset: at,
                timestamp: self.timestamp_ms(sent.first),
                key: None,
                value: Some(value.into()),
                headers: vec![],
            });
        }
        builder.finish().into()
    }

    /// Now and then a batch is so much later than those before that segments end by that.
    fn timestamp_ms(&self, first: i64) -> i64 {
        const LATER_MS: i64 = 8 * 24 * 3_600_000;
        first / self.records_of_segment * LATER_MS
    }

    /// Sends what was not acknowledged, then new batches, with some in flight.
    async fn send(&self, store: &Rc<Store<SimIo>>, random: &RefCell<Random>, rounds: usize) {
        let again: Vec<Sent> = self.unacked.borrow().iter().copied().collect();
        let mut flying = VecDeque::new();
        for round in 0..again.len() + rounds {
            let sent = again.get(round).copied().unwrap_or_else(|| self.next_batch(&mut random.borrow_mut()));
            let part = ProducePartition { partition: self.id, batch: self.batch(sent) };
            match store.append(part, AppendOrigin::Client, Acks::All).appended().await {
                Ok((produced, wait)) => {
                    assert_eq!(produced.base_offset, sent.first, "a batch has its place, also when sent again");
                    flying.push_back((sent, wait));
                }
                Err(LogError::StorageFull | LogError::Storage(_)) => break,
                Err(other) => panic!("{other}"),
            }
            if flying.len() == IN_FLIGHT_MAX || random.borrow_mut().one_in(3) {
                self.settle(flying.pop_front().unwrap()).await;
            }
        }
        for one in flying {
            self.settle(one).await;
        }
    }

    fn next_batch(&self, random: &mut Random) -> Sent {
        let count = 1 + random.below(3) as i64;
        let size = if random.one_in(4) { random.below(self.size_max) } else { random.below(2000) };
        let sent = Sent { first: self.next.get(), count, size };
        self.next.set(sent.first + count);
        self.unacked.borrow_mut().push_back(sent);
        sent
    }

    async fn settle(&self, (sent, wait): (Sent, Option<super::append::Wait>)) {
        let ended = match wait {
            Some(wait) => wait.wait().await,
            None => Ok(()),
        };
        if ended.is_ok() {
            self.acked.set(self.acked.get().max(sent.first + sent.count));
            self.unacked.borrow_mut().retain(|other| other.first != sent.first);
        }
    }

    /// Reads everything and compares.
    async fn check(&self, store: &Rc<Store<SimIo>>, power_cut: bool) {
        let (start, end) = store.bounds(self.id).unwrap();
        let lost_by_power = self.written_only && power_cut;
        assert!(lost_by_power || end >= self.acked.get(), "{:?}: {end} < {}", self.id, self.acked.get());
        assert!(end <= self.next.get(), "{:?} holds what was never sent", self.id);
        assert!(start <= self.trim_asked.get() && (lost_by_power || start >= self.trimmed.get().min(end)));
        let mut offset = start;
        while offset < end {
            let part = FetchPartition {
                partition: self.id,
                offset,
                max_bytes: 100_000,
                leader_epoch: -1,
                bound: ReadBound::HighWatermark,
            };
            let fetched = store.read(&part, 100_000, true).await.unwrap();
            for chunk in fetched.records.chunks {
                for batch in batches(chunk.as_slice().unwrap()) {
                    let (info, batch) = batch.unwrap();
                    assert!(self.config.compression.is_none_or(|to| info.codec() == Ok(to.codec)));
                    for record in records(batch).unwrap() {
                        if record.offset < offset {
                            continue; // before the log's start
                        }
                        assert_eq!(record.offset, offset);
                        let value = record.value.unwrap();
                        assert!(self.text(offset, 0).starts_with(&value[..value.len().min(2)]));
                        assert_eq!(value, self.text(offset, value.len() - self.text(offset, 0).len()));
                        offset += 1;
                    }
                    assert_eq!(offset, info.last_offset() + 1);
                }
            }
        }
        if lost_by_power && end < self.acked.get() {
            // What a power cut took from a topic that allows it: the producer goes on where the log ends.
            self.acked.set(end);
            self.unacked.borrow_mut().clear();
            self.next.set(end);
        }
    }
}

fn producers() -> Vec<Rc<Producer>> {
    let small = ("internal.segment.bytes", "700000");
    vec![
        Producer::new(0, &[small], 3_000),
        Producer::new(1, &[small], 300_000),
        Producer::new(2, &[small, ("flush.messages", "1000")], 200_000),
        Producer::new(3, &[], 100),
        Producer::new(4, &[small, ("compression.type", "uncompressed")], 200_000),
    ]
}

async fn open(io: SimIo, run: u64, producers: &[Rc<Producer>]) -> Rc<Store<SimIo>> {
    let known: Known = producers.iter().map(|producer| (producer.id, producer.config.clone())).collect();
    let options = StoreOptions { reserve_bytes: 1000, ..StoreOptions::of_test(run) };
    Store::open(io, options, &known).await.unwrap_or_else(|error| panic!("{error}"))
}

/// One life: check what is there, then work.
async fn live(
    io: SimIo,
    run: u64,
    producers: Vec<Rc<Producer>>,
    power_cut: bool,
    random: Rc<RefCell<Random>>,
    rounds: usize,
) {
    let store = open(io, run, &producers).await;
    for producer in &producers {
        producer.check(&store, power_cut).await;
    }
    let sending = join_all(producers.iter().map(|producer| producer.send(&store, &random, rounds)));
    let disturbing = async {
        for _ in 0..rounds / 8 {
            let choice = random.borrow_mut().below(4);
            let producer = &producers[random.borrow_mut().below(producers.len())];
            match choice {
                0 => store.materialise_all().await,
                1 => drop(store.flush_written().await),
                2 => trim(&store, producer).await,
                _ => super::super::io::Io::sleep(&store.io, std::time::Duration::from_millis(1)).await,
            }
        }
    };
    futures_util::future::join(sending, disturbing).await;
    for producer in &producers {
        producer.check(&store, false).await;
    }
}

async fn trim(store: &Rc<Store<SimIo>>, producer: &Producer) {
    let (start, end) = store.bounds(producer.id).unwrap();
    let before = start + (end - start) / 2;
    producer.trim_asked.set(producer.trim_asked.get().max(before));
    if let Ok(start) = store.trim(producer.id, before).await {
        producer.trimmed.set(producer.trimmed.get().max(start));
    }
}

/// Many short lives on one disk, each cut off at a random write or flush.
fn lives(seed: u64, count: u64, rounds: usize) {
    let sim = Sim::new(seed);
    let producers = producers();
    let random = Rc::new(RefCell::new(Random::new(seed ^ 0xC0FFEE)));
    sim.run_until(crate::io::Io::create_dir(&sim.io(), std::path::Path::new("/d"))).unwrap().unwrap();
    let mut power_cut = false;
    for run in 1..=count {
        let io = if run == 1 { sim.io() } else { sim.restart() };
        let crash_at = random.borrow_mut().between(1, 60 + 3 * rounds as u64);
        let kill = random.borrow_mut().one_in(4);
        if run < count && !kill {
            sim.crash_after(crash_at);
        }
        let life = live(io, run, producers.clone(), power_cut, random.clone(), rounds);
        if sim.run_until(life).is_some() {
            // The life ended by itself: end it with the process or with the power.
            if kill {
                sim.kill()
            } else {
                sim.crash()
            }
            power_cut = !kill;
        } else {
            power_cut = true;
        }
        // A restart cuts the power of a process that was killed only if it did not end before.
    }
}

#[test]
fn nothing_acknowledged_is_lost_whenever_the_power_fails() {
    for seed in seeds(12) {
        println!("seed {seed}");
        lives(seed, 12, 60);
    }
}

#[test]
fn the_power_fails_at_every_write_and_flush_of_a_short_life() {
    let step: u64 = std::env::var("MILLRACE_CRASH_SEEDS").map_or(5, |_| 1);
    for crash_at in (1..400).step_by(usize::try_from(step).unwrap()) {
        let sim = Sim::new(crash_at);
        let producers = producers();
        let random = Rc::new(RefCell::new(Random::new(11)));
        sim.run_until(crate::io::Io::create_dir(&sim.io(), std::path::Path::new("/d"))).unwrap().unwrap();
        sim.crash_after(crash_at);
        let ended = sim.run_until(live(sim.io(), 1, producers.clone(), false, random.clone(), 30)).is_some();
        let io = sim.restart();
        sim.run_until(live(io, 2, producers.clone(), true, random.clone(), 10)).unwrap();
        if ended {
            return;
        }
    }
}
