//! Readers with any end, against a list of batches: what is read, waited for and found by timestamp is exactly what lies
//! below the end, also where that lies in a segment that has ended, in the active one, in an extent or in a batch.
use std::{collections::BTreeMap, rc::Rc};

use uuid::Uuid;

use super::{Known, Store, StoreOptions};
use crate::{
    api::{Acks, FetchPartition, FoundOffset, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record, batches},
    config::TopicConfig,
    io::{
        Io,
        sim::{START_MS, Sim, SimIo, random::Random},
    },
    partition::PartitionCell,
};

/// An interval of the index and a batch: how far off an estimate of a place in a segment may be.
const NEAR_BYTES: usize = (64 << 10) + 48_000;

const ID: TopicPartition = TopicPartition { topic: Uuid::from_u128(1), partition: 0 };

/// A batch as it was sent.
struct Sent {
    base_offset: i64,
    end_offset: i64,
    bytes: usize,
    timestamps: Vec<i64>,
}

struct Log {
    store: Rc<Store<SimIo>>,
    cell: Rc<PartitionCell>,
    sent: Vec<Sent>,
}

impl Log {
    async fn open(io: SimIo) -> Self {
        let options = StoreOptions { cache_bytes: 16 << 20, fetch_bytes: 1 << 20, ..StoreOptions::of_test(1) };
        io.create_dir(&options.data_dir).await.unwrap();
        let settings = BTreeMap::from([("internal.segment.bytes".to_owned(), "300000".to_owned())]);
        let config = Rc::new(TopicConfig::parse(&BTreeMap::new(), &settings).unwrap());
        let store = Store::open(io, options, &Known::from([(ID, config)])).await.unwrap();
        let cell = store.partition(ID).unwrap();
        Self { store, cell, sent: Vec::new() }
    }

    async fn send(&mut self, random: &mut Random) {
        let base_offset = self.sent.last().map_or(0, |last| last.end_offset);
        let timestamps: Vec<i64> = (0..1 + random.below(3)).map(|_| START_MS + random.below(1_000) as i64).collect();
        let mut builder = BatchBuilder::new(Codec::None, 0);
        for (offset, timestamp) in (0..).zip(&timestamps) {
            let value = Some(vec![b'v'; random.below(16_000)].into());
            builder.push(&Record { offset, timestamp: *timestamp, key: None, value, headers: vec![] });
        }
        let batch = builder.finish();
        let end_offset = base_offset + timestamps.len() as i64;
        self.sent.push(Sent { base_offset, end_offset, bytes: batch.len(), timestamps });
        let taken =
            self.store.append(ProducePartition { partition: ID, batch: batch.into() }, AppendOrigin::Client, Acks::All);
        taken.appended().await.unwrap().1.unwrap().wait().await.unwrap();
    }

    /// What is in segments is read from there.
    fn evict(&self) {
        let mut partition = self.cell.borrow_mut();
        let materialised = partition.marks().materialised();
        let evicted = partition.tail().extents().filter(|extent| extent.end_offset <= materialised);
        evicted.for_each(|extent| extent.backing.evict());
        partition.prune_tail();
    }

    fn end(&self) -> i64 {
        self.sent.last().map_or(0, |last| last.end_offset)
    }

    /// Batches that a reader may see, from the one that holds an offset on.
    fn below(&self, offset: i64, end: i64) -> impl Iterator<Item = &Sent> {
        self.sent.iter().filter(move |sent| sent.end_offset > offset && sent.end_offset <= end)
    }

    /// Base offsets of what is read.
    async fn read(&self, offset: i64, end: i64, max_bytes: usize, min_one: bool) -> Vec<i64> {
        let bound = ReadBound::HighWatermark; // the end is what counts
        let part = FetchPartition { partition: ID, offset, max_bytes, leader_epoch: -1, bound };
        let fetched = self.store.read_below(&self.cell, &part, end, max_bytes, min_one).await.unwrap();
        let chunks = fetched.records.chunks.iter().map(|chunk| chunk.as_slice().unwrap());
        chunks.flat_map(batches).map(|batch| batch.unwrap().0.base_offset).collect()
    }

    async fn check_read(&self, random: &mut Random, (offset, end): (i64, i64)) {
        let (max_bytes, min_one) = ([1, 20_000, 100_000, 10 << 20][random.below(4)], random.one_in(2));
        let mut left = max_bytes;
        let mut expected = Vec::new();
        for sent in self.below(offset, end) {
            let is_wanted = sent.bytes <= left || (expected.is_empty() && min_one);
            if !is_wanted {
                break;
            }
            left = left.saturating_sub(sent.bytes);
            expected.push(sent.base_offset);
        }
        let read = self.read(offset, end, max_bytes, min_one).await;
        assert_eq!(read, expected, "{offset}..{end}, {max_bytes} bytes, {min_one}");
    }

    /// An end that hides what there is must not make a reader come again and again.
    fn check_available(&self, (offset, end): (i64, i64)) {
        let there: usize = self.below(offset, end).map(|sent| sent.bytes).sum();
        let partition = self.cell.borrow();
        let said = partition.available(offset, end, usize::MAX, |_| None);
        let is_exact = partition.tail().has(offset);
        let ends_with_batch = self.sent.iter().any(|sent| sent.end_offset == end);
        if is_exact {
            assert_eq!(said, there, "{offset}..{end}");
        } else if ends_with_batch {
            assert!(said.abs_diff(there) < 2 * NEAR_BYTES, "{offset}..{end}: {said} of {there}");
            assert_eq!(said == 0, there == 0, "{offset}..{end}");
        }
    }

    async fn check_timestamps(&self, random: &mut Random, end: i64) {
        let below = || self.below(0, end).flat_map(|sent| (sent.base_offset..).zip(sent.timestamps.iter().copied()));
        let found = |found: Option<(i64, i64)>| {
            let (offset, timestamp_ms) = found.unwrap_or((-1, -1));
            FoundOffset { offset, timestamp_ms, leader_epoch: -1 }
        };
        let asked = START_MS + random.below(1_050) as i64;
        let first = below().find(|(_, timestamp)| *timestamp >= asked);
        assert_eq!(self.store.by_timestamp(ID, asked, end).await.unwrap(), found(first), "{asked} below {end}");
        let largest = below().map(|(_, timestamp)| timestamp).max();
        let newest = below().find(|(_, timestamp)| Some(*timestamp) == largest);
        assert_eq!(self.store.max_timestamp(ID, end).await.unwrap(), found(newest), "newest below {end}");
    }

    async fn check(&self, random: &mut Random, times: usize) {
        for _ in 0..times {
            let offset = random.below(usize::try_from(self.end()).unwrap() + 1) as i64;
            let end = match random.one_in(2) {
                true => random.below(usize::try_from(self.end()).unwrap() + 1) as i64,
                false => (offset + random.below(8) as i64).min(self.end()), // close by
            };
            self.check_read(random, (offset, end)).await;
            self.check_available((offset, end));
            self.check_timestamps(random, end).await;
        }
    }
}

fn run(seed: u64) {
    let sim = Sim::new(seed);
    let mut random = Random::new(seed);
    sim.run_until(async {
        let mut log = Log::open(sim.io()).await;
        for _ in 0..70 {
            log.send(&mut random).await;
        }
        log.check(&mut random, 200).await; // all of it is in memory
        log.store.materialise_all().await;
        for _ in 0..20 {
            log.send(&mut random).await;
        }
        log.check(&mut random, 200).await;
        log.evict();
        log.check(&mut random, 400).await;
        let partition = log.cell.borrow();
        assert!(partition.segments().all().len() > 3 && partition.segments().active().is_some());
        assert!(partition.tail().extents().count() == 20);
    })
    .unwrap();
}

#[test]
fn nothing_at_or_beyond_its_end_is_seen_by_a_reader() {
    (0..4).for_each(run);
}
