//! A start after the end of partitions was cut off, on a disk that loses power: what is there is what a list of records
//! says that was cut at the same places, and offsets that were given out again have their new records.
//!
//! Cuts are written into the shared log between lives, as the log of a start of its own, where they would be in nobody's way;
//! those of a running node are `replica_tests`'.
use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc};

use uuid::Uuid;

use super::{Known, Store, StoreOptions, crash_tests::seeds};
use crate::{
    api::{Acks, FetchPartition, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record, assign, batches, records},
    config::TopicConfig,
    format::{
        epochs::LeaderEpochs,
        wal::{ENTRY_HEADER_BYTES, Era, GROUP_HEADER_BYTES, GroupEncoder, Stamp, entry_bytes},
    },
    io::{
        Buffer, File, Io, Open,
        sim::{Sim, SimIo, random::Random},
    },
};

const DIR: &str = "/d";
const PARTITIONS: i32 = 2;
const WAL_FILE_BYTES: usize = 2 << 20;

fn id(index: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(5), partition: index }
}

fn known() -> Known {
    let settings = BTreeMap::from([("internal.segment.bytes".to_owned(), "400000".to_owned())]);
    let config = Rc::new(TopicConfig::parse(&BTreeMap::new(), &settings).unwrap());
    (0..PARTITIONS).map(|index| (id(index), config.clone())).collect()
}

/// What a partition's log is to be.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Where `records` begin.
    base: i64,
    log_start: i64,
    /// What was sent, by offset, each in a batch of its own.
    records: Vec<Vec<u8>>,
    /// Everything below was acknowledged.
    acked: i64,
    epochs: LeaderEpochs,
    cuts: u32,
    /// Counts what was sent, so that no two records are the same.
    sent: u32,
}

impl Model {
    fn end(&self) -> i64 {
        self.base + i64::try_from(self.records.len()).unwrap()
    }

    /// A batch as a producer sends it.
    fn push(&mut self, size: usize, epoch: i32) -> Vec<u8> {
        self.sent += 1;
        let mut value = format!("{}/", self.sent).into_bytes();
        value.resize(value.len() + size, b'a' + u8::try_from(self.sent % 26).unwrap());
        let (offset, sequence) = (self.end(), i32::try_from(self.sent).unwrap());
        self.epochs.note(epoch, offset);
        self.records.push(value.clone());
        let mut builder = BatchBuilder::new(Codec::None, 0).producer(i64::from(sequence), 0, 0);
        builder.push(&Record { offset: 0, timestamp: 5, key: None, value: Some(value.into()), headers: vec![] });
        builder.finish()
    }

    fn cut(&mut self, to: i64) {
        self.cuts += 1;
        if !(self.log_start..=self.end()).contains(&to) {
            *self = Self { base: to, log_start: to, cuts: self.cuts, sent: self.sent, ..Self::default() };
        }
        self.records.truncate(usize::try_from(to - self.base).unwrap());
        self.epochs.cut(to);
        self.acked = to;
    }
}

/// Lives of a store on one disk.
struct World {
    sim: Sim,
    random: Rc<RefCell<Random>>,
    models: Rc<RefCell<Vec<Model>>>,
    run: u64,
    /// Cuts below what segments held.
    deep_cuts: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = Sim::new(seed);
        sim.run_until(sim.io().create_dir(Path::new(DIR))).unwrap().unwrap();
        let models = Rc::new(RefCell::new(vec![Model::default(); PARTITIONS as usize]));
        Self { sim, random: Rc::new(RefCell::new(Random::new(seed ^ 0xC07))), models, run: 0, deep_cuts: 0 }
    }

    fn next_run(&mut self) -> (u64, SimIo) {
        self.run += 1;
        (self.run, if self.run == 1 { self.sim.io() } else { self.sim.restart() })
    }

    /// A life, which the power ends at any time. Answers what segments hold, if it got to its end.
    fn live(&mut self) -> Option<Vec<i64>> {
        let (run, io) = self.next_run();
        if self.random.borrow_mut().one_in(2) {
            let crash_at = self.random.borrow_mut().between(1, 120);
            self.sim.crash_after(crash_at);
        }
        let (models, random) = (self.models.clone(), self.random.clone());
        self.sim.run_until(async move {
            let store =
                Store::open(io, StoreOptions::of_test(run), &known()).await.unwrap_or_else(|error| panic!("{error}"));
            for index in 0..PARTITIONS {
                let mut model = models.borrow()[index as usize].clone();
                check(&store, index, &mut model).await;
                models.borrow_mut()[index as usize] = model;
            }
            work(&store, &models, &random).await;
            let held = |index| store.partition(id(index)).unwrap().borrow().marks().materialised();
            (0..PARTITIONS).map(held).collect()
        })
    }

    /// Writes a file of the log as a start of its own would, with one group.
    fn write_log(&mut self, length: usize, encode: impl FnOnce(&mut GroupEncoder<'_>)) {
        let (run, io) = self.next_run();
        let dir = Path::new(DIR).join("wal-0");
        let written = async {
            let names = io.list(&dir).await.unwrap();
            let ids = names.iter().filter_map(|name| name.strip_suffix(".wal")?.parse::<u64>().ok());
            let path = dir.join(format!("{:08}.wal", ids.max().unwrap_or(0) + 1));
            let file = io.open(&path, Open::Write).await.unwrap();
            for at in (0..WAL_FILE_BYTES).step_by(crate::io::IO_BYTES_MAX) {
                let mut zeroes = io.buffer(crate::io::IO_BYTES_MAX);
                zeroes.bytes_mut().fill(0);
                file.write(Rc::new(zeroes), at as u64).await.unwrap();
            }
            let mut buffer = io.buffer(length.next_multiple_of(crate::io::BLOCK));
            let mut encoder = GroupEncoder::new(buffer.bytes_mut());
            encode(&mut encoder);
            encoder.finish(Stamp { run, shard: 0, sequence: 1, durable_sequence: 0 }, 7);
            file.write(Rc::new(buffer), 0).await.unwrap();
            file.flush().await.unwrap();
            file.close().await.unwrap();
            io.sync_dir(&dir).await.unwrap();
        };
        self.sim.run_until(written).unwrap();
        self.sim.crash();
    }

    /// Cuts a partition and goes on behind the cut, as a follower does when it has a new leader.
    fn cut(&mut self, index: i32, held: i64) {
        let model = &mut self.models.borrow_mut()[index as usize].clone();
        let mut random = self.random.borrow_mut();
        let (from, log_start) = (model.end(), model.log_start);
        let inside = log_start + i64::try_from(random.below(usize::try_from(from - log_start).unwrap() + 1)).unwrap();
        let to = if random.one_in(12) { from + 50 } else { inside };
        self.deep_cuts += u32::from(to < held);
        model.cut(to);
        let epoch = model.epochs.starts().last().map_or(0, |last| last.epoch.get()) + 1;
        let era = Era { leader_epoch: epoch, cuts: model.cuts };
        let has_start = random.one_in(2);
        if has_start {
            model.epochs.note(epoch, to);
        }
        let more = random.below(3);
        let batches = (to..).take(more).map(|offset| {
            let mut batch = model.push(random.below(900), epoch);
            assign(&mut batch, offset, epoch, None);
            batch
        });
        let bytes = batches.collect::<Vec<_>>().concat();
        model.acked = model.end();
        drop(random);
        let length = GROUP_HEADER_BYTES + 2 * ENTRY_HEADER_BYTES + entry_bytes(Some(bytes.len()));
        let end = model.end();
        self.write_log(length, |encoder| {
            encoder.cut(id(index), (from, to), era);
            if has_start {
                encoder.epoch_start(id(index), to, era);
            }
            if !bytes.is_empty() {
                encoder.inline(id(index), (to, end), era, bytes.len()).1.copy_from_slice(&bytes);
            }
        });
        self.models.borrow_mut()[index as usize] = model.clone();
    }
}

/// Appends, moves log starts, and brings tails to segments, each now and then.
async fn work(store: &Rc<Store<SimIo>>, models: &RefCell<Vec<Model>>, random: &RefCell<Random>) {
    let rounds = random.borrow_mut().below(14);
    for _ in 0..rounds {
        let index = random.borrow_mut().below(PARTITIONS as usize);
        let choice = random.borrow_mut().below(10);
        let id = id(i32::try_from(index).unwrap());
        match choice {
            0 => store.materialise_all().await,
            1 => {
                let (log_start, end) = store.bounds(id).unwrap();
                let before = log_start + (end - log_start) / 3;
                // It counts from when the manifest says so, which nobody hears who loses power then.
                if store.trim(id, before).await.is_ok() {
                    let model = &mut models.borrow_mut()[index];
                    model.log_start = model.log_start.max(before);
                    model.epochs.trim(model.log_start);
                }
            }
            _ => {
                let size = if choice < 4 { 300_000 } else { random.borrow_mut().below(3_000) };
                let batch = models.borrow_mut()[index].push(size, 0).into();
                let taken = store
                    .append(ProducePartition { partition: id, batch }, AppendOrigin::Client, Acks::All)
                    .appended()
                    .await;
                if let Some(wait) = taken.unwrap().1 {
                    wait.wait().await.unwrap();
                }
                let end = models.borrow()[index].end();
                models.borrow_mut()[index].acked = end;
            }
        }
    }
}

/// Reads everything and compares; what nobody was told of may be there or not.
async fn check(store: &Rc<Store<SimIo>>, index: i32, model: &mut Model) {
    let (log_start, end) = store.bounds(id(index)).unwrap();
    assert!((model.acked..=model.end()).contains(&end), "partition {index} ends at {end}: {model:?}");
    assert!((model.log_start..=end).contains(&log_start), "partition {index} starts at {log_start}: {model:?}");
    model.records.truncate(usize::try_from(end - model.base).unwrap());
    model.epochs.end_at(end);
    if log_start > model.log_start {
        model.log_start = log_start;
        model.epochs.trim(log_start);
    }
    let cell = store.partition(id(index)).unwrap();
    let epochs = cell.borrow().state().epochs;
    if epochs != model.epochs && model.epochs.starts().last().is_some_and(|last| last.epoch.get() == 0) {
        model.epochs.cut(end); // the first record of a life was never acknowledged
    }
    assert_eq!((&epochs, cell.borrow().era().cuts), (&model.epochs, model.cuts), "partition {index}");
    let mut offset = log_start;
    while offset < end {
        let part = FetchPartition {
            partition: id(index),
            offset,
            max_bytes: 1 << 20,
            leader_epoch: -1,
            bound: ReadBound::HighWatermark,
        };
        let fetched = store.read(&part, 1 << 20, true).await.unwrap();
        for chunk in fetched.records.chunks {
            for batch in batches(chunk.as_slice().unwrap()) {
                let record = records(batch.unwrap().1).unwrap().remove(0);
                if record.offset < offset {
                    continue; // before the log's start
                }
                assert_eq!(record.offset, offset);
                let expected = &model.records[usize::try_from(offset - model.base).unwrap()];
                assert!(record.value.as_deref() == Some(expected), "partition {index}, offset {offset}");
                offset += 1;
            }
        }
    }
}

#[test]
fn cut_logs_are_what_lists_are_that_were_cut() {
    let seeds = seeds(12);
    let mut deep_cuts = 0;
    for seed in seeds.clone() {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..24 {
            let Some(held) = world.live() else { continue };
            world.sim.crash();
            for (index, held) in (0..).zip(held) {
                if world.random.borrow_mut().one_in(2) {
                    world.cut(index, held);
                }
            }
        }
        deep_cuts += world.deep_cuts;
    }
    let few = seeds.end - seeds.start < 12; // one alone may have none
    assert!(few || deep_cuts > 0, "no cut reached a segment");
}
