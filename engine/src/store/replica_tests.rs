//! Partitions that are led and followed in turn, cut off, begun anew and trimmed, on a disk that loses power at any write or
//! flush: what is there afterwards is what a list of batches says that has had the same done to it, up to the last thing
//! that was answered or a little more, and never anything else. What is known of producers and of transactions is what a naive
//! look at those batches says, whoever led when they came.

mod conduct;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::future::join_all;
use uuid::Uuid;

use super::{Known, Store, StoreOptions, crash_tests::seeds};
use crate::{
    api::{Acks, FetchPartition, LogError, OffsetSpec, ProducePartition, ReadBound, TopicPartition},
    batch::{
        self, AppendOrigin, BatchBuilder, Codec, EndMarker, Outcome, Record, assign, batches, end_marker, records,
    },
    config::TopicConfig,
    format::epochs::LeaderEpochs,
    io::{
        Io,
        sim::{Sim, SimIo, random::Random},
    },
    replica_api::{CutBytes, LeaderLease, Leadership, LogTap, SealedGroup},
    transactions::{Decided, Marker},
};

/// A batch as a log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    base: i64,
    end: i64,
    epoch: i32,
    producer: i64,
    producer_epoch: i16,
    sequence: i32,
    part: Part,
    value: Vec<u8>,
}

/// What a batch is to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Of,
    Ends(Outcome),
    Outside,
}

/// Producers that write in transactions have smaller ids.
const OUTSIDE: i64 = 1_000_000;

/// A log as a list of batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Log {
    start: i64,
    end: i64,
    batches: Vec<Kept>,
    epochs: LeaderEpochs,
}

impl Log {
    fn cut(&mut self, to: i64) {
        if !(self.start..=self.end).contains(&to) {
            *self = Self { start: to, end: to, ..Self::default() };
            return;
        }
        self.batches.retain(|batch| batch.end <= to);
        self.epochs.cut(to);
        self.end = to;
    }

    /// Where a cut at an offset lands.
    fn landing(&self, offset: i64) -> i64 {
        let ends = self.batches.iter().map(|batch| batch.end).filter(|end| *end <= offset);
        if offset < self.start { offset } else { ends.max().unwrap_or(self.start) }
    }

    fn trim(&mut self, start: i64) {
        self.batches.retain(|batch| batch.end > start);
        self.epochs.trim(start);
        self.start = start;
    }

    fn push(&mut self, batch: Kept) {
        self.epochs.note(batch.epoch, batch.base);
        self.end = batch.end;
        self.batches.push(batch);
    }

    /// The last sequence of every producer that has a batch here, and a marker has none.
    fn sequences(&self) -> HashMap<i64, i32> {
        self.batches.iter().map(|batch| (batch.producer, batch.sequence)).collect()
    }

    /// The epoch of a producer of transactions, its next sequence, and whether it has one open.
    fn standing(&self, producer: i64) -> (i16, i32, bool) {
        match self.batches.iter().rev().find(|batch| batch.producer == producer) {
            None => (0, 0, false),
            Some(last) => (last.producer_epoch, last.sequence + 1, last.part == Part::Of),
        }
    }

    /// Transactions by their first offset here: whose, the marker that ended it, if one did, and how.
    fn transactions(&self) -> BTreeMap<i64, (i64, Option<(i64, Outcome)>)> {
        let (mut all, mut open) = (BTreeMap::new(), HashMap::new());
        for Kept { base, producer, part, .. } in &self.batches {
            match part {
                Part::Outside => {}
                Part::Of => {
                    let first = *open.entry(*producer).or_insert(*base);
                    all.entry(first).or_insert((*producer, None));
                }
                Part::Ends(outcome) => {
                    let first = open.remove(producer);
                    all.extend(first.map(|first| (first, (*producer, Some((*base, *outcome))))));
                }
            }
        }
        all
    }
}

/// A partition, what was done to it, and what it may be after a crash.
struct World {
    id: TopicPartition,
    config: Rc<TopicConfig>,
    /// A power cut may take what was acknowledged.
    written_only: bool,
    /// As it was when something was last answered that a crash may not take, and after each thing since.
    logs: Vec<Log>,
    epoch: i32,
    sent: u32,
    high_watermark: i64,
}

impl World {
    fn new(partition: i32, settings: &[(&str, &str)]) -> Self {
        let overrides = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self {
            id: TopicPartition { topic: Uuid::from_u128(9), partition },
            config: Rc::new(TopicConfig::parse(&BTreeMap::new(), &overrides).unwrap()),
            written_only: settings.iter().any(|(key, _)| *key == "flush.messages"),
            logs: vec![Log::default()],
            epoch: 0,
            sent: 0,
            high_watermark: 0,
        }
    }

    fn log(&self) -> &Log {
        self.logs.last().expect("there is always one")
    }

    /// Something is about to be done; a crash may leave the log as it was, or as it will be.
    fn will(&mut self, change: impl FnOnce(&mut Log)) {
        let mut log = self.log().clone();
        change(&mut log);
        self.logs.push(log);
    }

    /// An epoch without a batch where the log starts may be known still. Where a power cut may take batches, the manifest may
    /// have heard of their epoch before, and goes on knowing it.
    fn comparable(&self, log: &Log) -> Log {
        let mut log = log.clone();
        log.epochs.trim(log.start);
        if self.written_only {
            log.epochs.cut(log.end);
        }
        log
    }

    /// It was answered: no crash takes it back.
    fn did(&mut self) {
        self.logs.drain(..self.logs.len() - 1);
    }

    /// The next batch of some producer: as the log will have it, and as its producer sends it.
    fn next_batch(&mut self, random: &mut Random, epoch: i32, gap: i64) -> (Kept, Vec<u8>) {
        self.sent += 1;
        if random.one_in(2) {
            return self.next_of_transaction(random, epoch, gap);
        }
        let sequences = self.log().sequences().into_iter();
        let known: Vec<(i64, i32)> = sequences.filter(|(producer, _)| *producer >= OUTSIDE).collect();
        let again = known.get(random.below(8)).copied();
        let (producer, sequence) = again.map_or((OUTSIDE + i64::from(self.sent), 0), |(id, last)| (id, last + 1));
        let mut value = format!("{}/", self.sent).into_bytes();
        let size = if random.one_in(4) { random.below(300_000) } else { random.below(3_000) };
        value.resize(value.len() + size, b'a' + u8::try_from(self.sent % 26).unwrap());
        let mut builder = BatchBuilder::new(Codec::None, 0).producer(producer, 0, sequence);
        let record = Record { offset: 0, timestamp: 5, key: None, value: Some(value.clone().into()), headers: vec![] };
        builder.push(&record);
        let base = self.log().end + gap;
        let part = Part::Outside;
        (Kept { base, end: base + 1, epoch, producer, producer_epoch: 0, sequence, part, value }, builder.finish())
    }

    /// A batch of a transaction, or its end: the next epoch begins with that (KIP-890).
    fn next_of_transaction(&mut self, random: &mut Random, epoch: i32, gap: i64) -> (Kept, Vec<u8>) {
        let last = self.log().batches.iter().rev().filter(|batch| batch.producer < OUTSIDE);
        let known: Vec<i64> = last.map(|batch| batch.producer).take(8).collect();
        let producer = known.get(random.below(10)).copied().unwrap_or(i64::from(self.sent));
        let (producer_epoch, sequence, is_open) = self.log().standing(producer);
        let base = self.log().end + gap;
        let kept =
            Kept { base, end: base + 1, epoch, producer, producer_epoch, sequence, part: Part::Of, value: vec![] };
        if is_open && random.one_in(2) {
            let outcome = if random.one_in(2) { Outcome::Commit } else { Outcome::Abort };
            let bytes = batch::marker(producer, producer_epoch + 1, EndMarker { outcome, coordinator_epoch: epoch }, 5);
            let (value, part) = (value(&bytes), Part::Ends(outcome));
            return (Kept { producer_epoch: producer_epoch + 1, sequence: -1, part, value, ..kept }, bytes);
        }
        let mut builder =
            BatchBuilder::new(Codec::None, 0).producer(producer, producer_epoch, sequence).transactional();
        let value = vec![b't'; random.below(2_000)];
        let record = Record { offset: 0, timestamp: 5, key: None, value: Some(value.clone().into()), headers: vec![] };
        builder.push(&record);
        (Kept { value, ..kept }, builder.finish())
    }
}

fn value(batch: &[u8]) -> Vec<u8> {
    records(batch).unwrap().remove(0).value.unwrap().to_vec()
}

/// The log as the store has it.
async fn found(store: &Rc<Store<SimIo>>, id: TopicPartition) -> Log {
    let position = store.position(id).unwrap();
    let cell = store.partition(id).unwrap();
    let mut log = Log { start: position.log_start, end: position.end, ..Log::default() };
    log.epochs = cell.borrow().state().epochs;
    let mut offset = log.start;
    while offset < log.end {
        let bound = ReadBound::HighWatermark;
        let part = FetchPartition { partition: id, offset, max_bytes: 200_000, leader_epoch: -1, bound };
        let fetched = store.read_to_memory(&cell, &part, log.end).await.unwrap();
        offset = fetched.records.end_offset().unwrap_or_else(|| panic!("nothing at {offset} of {position:?}"));
        for chunk in &fetched.records.chunks {
            for (info, batch) in batches(chunk.as_slice().unwrap()).map(Result::unwrap) {
                log.batches.push(Kept {
                    base: info.base_offset,
                    end: info.last_offset() + 1,
                    epoch: info.leader_epoch,
                    producer: info.producer_id,
                    producer_epoch: info.producer_epoch,
                    sequence: info.base_sequence,
                    part: match info.is_control() {
                        true => Part::Ends(end_marker(batch).unwrap().unwrap().outcome),
                        false if info.is_transactional() => Part::Of,
                        false => Part::Outside,
                    },
                    value: value(batch),
                });
            }
        }
    }
    log
}

/// Compares at the begin of a life, which settles what the crash left.
async fn settle(store: &Rc<Store<SimIo>>, world: &RefCell<World>) {
    check(store, world).await;
    let id = world.borrow().id;
    let found = found(store, id).await;
    world.borrow_mut().logs = vec![found];
    world.borrow_mut().high_watermark = store.position(id).unwrap().high_watermark;
}

/// Compares with all that it may be.
async fn check(store: &Rc<Store<SimIo>>, world: &RefCell<World>) {
    let id = world.borrow().id;
    let found = found(store, id).await;
    // A trim is durable by itself: a power cut may take batches that were there before it.
    let trims: Vec<i64> = world.borrow().logs.iter().map(|log| log.start).collect();
    let is_found = |log: &Log| {
        let world = world.borrow();
        let mut log = log.clone();
        if trims.contains(&found.start) && (log.start..=log.end).contains(&found.start) {
            log.trim(found.start);
        }
        world.comparable(&log) == world.comparable(&found)
    };
    if !world.borrow().logs.iter().any(is_found) {
        let (world, short) = (world.borrow(), |log: &Log| (log.start, log.end, log.epochs.clone()));
        let expected: Vec<_> = world.logs.iter().map(short).collect();
        panic!("{id:?}: {:?} is none of {expected:?}", short(&found));
    }
    let told = world.borrow().high_watermark;
    let known: HashMap<i64, i32> = store
        .active_producers(id)
        .unwrap()
        .into_iter()
        .map(|producer| (producer.producer_id, producer.last_sequence))
        .collect();
    for (producer, sequence) in found.sequences() {
        assert_eq!(known.get(&producer), Some(&sequence), "{id:?}: producer {producer}");
    }
    check_transactions(store, id, &found).await;
    let position = store.position(id).unwrap();
    assert!(
        position.high_watermark <= told.max(position.log_start),
        "{id:?}: {position:?}, but no more than {told} was told"
    );
}

/// Compares what the store says of transactions with a naive look at the log. What began before the log starts is not seen there.
async fn check_transactions(store: &Rc<Store<SimIo>>, id: TopicPartition, log: &Log) {
    let all = log.transactions();
    let open = store.open_transactions().into_iter().filter(|open| open.partition == id);
    let open: BTreeSet<_> = open.map(|open| (open.first_offset, open.producer_id)).collect();
    let naive = all.iter().filter(|(_, (_, end))| end.is_none()).map(|(first, (producer, _))| (*first, *producer));
    assert_known(log.start, &open, &naive.collect());

    let position = store.position(id).unwrap();
    let stable = store.partition(id).unwrap().borrow().end_for(ReadBound::LastStable);
    let safe = position.high_watermark.min(position.durable);
    let is_undecided = |end: &Option<(i64, Outcome)>| end.is_none_or(|(marker, _)| marker >= safe);
    let undecided = all.iter().find(|(_, (_, end))| is_undecided(end)).map_or(i64::MAX, |(first, _)| *first);
    let expected = undecided.min(position.high_watermark).max(log.start);
    let is_unsafe = |batch: &Kept| matches!(batch.part, Part::Ends(_)) && batch.base >= safe;
    let began_before = open.iter().any(|(first, _)| *first < log.start) || log.batches.iter().any(is_unsafe);
    let is_unsure = store.partition(id).unwrap().borrow().is_unsure_what_is_stable();
    assert!(!is_unsure || safe < position.end, "all markers are safe: {position:?}");
    let is_at_start = stable == log.start && (is_unsure || began_before);
    assert!(is_at_start || stable == expected, "{stable} of {position:?}, not {expected}");

    let part = FetchPartition {
        partition: id,
        offset: log.start,
        max_bytes: 8 << 20,
        leader_epoch: -1,
        bound: ReadBound::LastStable,
    };
    // who neither leads nor follows answers nobody
    let Ok(fetched) = store.read(&part, 8 << 20, true).await else { return };
    let told = fetched.aborted.unwrap().into_iter().map(|one| (one.first_offset, one.producer_id)).collect();
    let read = fetched.records.end_offset().unwrap_or(log.start);
    let aborted = all.iter().filter_map(|(first, (producer, end))| {
        let (marker, outcome) = (*end)?;
        (outcome == Outcome::Abort && marker < safe && *first < read).then_some((*first, *producer))
    });
    assert_known(log.start, &told, &aborted.collect());
}

fn assert_known(start: i64, told: &BTreeSet<(i64, i64)>, naive: &BTreeSet<(i64, i64)>) {
    let began_before: BTreeSet<i64> = told.iter().filter(|(first, _)| *first < start).map(|(_, id)| *id).collect();
    let told: BTreeSet<_> = told.iter().filter(|(first, _)| *first >= start).copied().collect();
    let not_told = naive.difference(&told).filter(|(_, id)| !began_before.contains(id));
    assert_eq!((told.difference(naive).next(), not_told.collect::<Vec<_>>()), (None, vec![]), "{told:?}, {naive:?}");
}

/// Follows in a new epoch.
async fn follow(store: &Rc<Store<SimIo>>, world: &RefCell<World>) -> Result<(), LogError> {
    let (id, epoch) = (world.borrow().id, world.borrow().epoch + 1);
    world.borrow_mut().epoch = epoch;
    store.follow(id, epoch).await.map(drop)
}

/// Leads in a new epoch, and takes some batches of producers.
async fn lead(store: &Rc<Store<SimIo>>, world: &RefCell<World>, random: &RefCell<Random>) -> Result<(), LogError> {
    let (id, epoch) = (world.borrow().id, world.borrow().epoch + 1);
    world.borrow_mut().epoch = epoch;
    world.borrow_mut().will(|log| {
        log.epochs.note(epoch, log.end);
    });
    store.lead(id, epoch, Leadership::Replicated { replicas: 3, in_sync: 3 }).await?;
    world.borrow_mut().did();
    let mut waits = Vec::new();
    let count = random.borrow_mut().below(5);
    for _ in 0..count {
        let (kept, batch) = world.borrow_mut().next_batch(&mut random.borrow_mut(), epoch, 0);
        world.borrow_mut().will(|log| log.push(kept.clone()));
        let (base, wait) = take(store, id, kept, batch).await?;
        assert_eq!(base, world.borrow().log().end - 1);
        waits.extend(wait);
    }
    for wait in waits {
        wait.logged().await?; // no follower ever has it
    }
    if !world.borrow().written_only {
        world.borrow_mut().did();
    }
    Ok(())
}

/// Takes a batch as a leader does.
async fn take(
    store: &Rc<Store<SimIo>>,
    id: TopicPartition,
    kept: Kept,
    batch: Vec<u8>,
) -> Result<(i64, Option<super::append::Wait>), LogError> {
    if let Part::Ends(outcome) = kept.part {
        let marker = Marker {
            partition: id,
            producer_id: kept.producer,
            producer_epoch: kept.producer_epoch,
            coordinator_epoch: kept.epoch,
            outcome,
            transaction_version: 2,
            decided: Decided::ByCoordinator,
        };
        let (produced, wait) = store.append_markers(vec![marker]).remove(0)?;
        return Ok((produced.base_offset, Some(wait)));
    }
    if kept.part == Part::Of {
        store.let_in(id, kept.producer, kept.producer_epoch)?;
    }
    let part = ProducePartition { partition: id, batch: batch.into() };
    let (produced, wait) = store.append(part, AppendOrigin::Client, Acks::Leader).appended().await?;
    Ok((produced.base_offset, wait))
}

/// Appends what a leader sent, now and then of several epochs or with a gap.
async fn append(store: &Rc<Store<SimIo>>, world: &RefCell<World>, random: &RefCell<Random>) -> Result<(), LogError> {
    let (id, epoch) = (world.borrow().id, world.borrow().epoch);
    let mut last = None;
    let count = 1 + random.borrow_mut().below(3);
    for _ in 0..count {
        let newest = world.borrow().log().epochs.newest().map_or(0, |newest| newest.epoch.get());
        let gap = if random.borrow_mut().one_in(6) { 2 } else { 0 };
        let of = random.borrow_mut().between(newest as u64, epoch as u64 + 1) as i32;
        let before = world.borrow().log().end;
        let (kept, mut batch) = world.borrow_mut().next_batch(&mut random.borrow_mut(), of, gap);
        assign(&mut batch, kept.base, of, None);
        world.borrow_mut().will(|log| {
            log.epochs.note(of, before); // an epoch begins where the log ended
            log.push(kept);
        });
        last = Some(store.append_as_follower(id, epoch, before, &Bytes::from(batch))?);
    }
    let last = last.expect("one at least");
    if random.borrow_mut().one_in(3) {
        return Ok(()); // what comes next finds it on its way
    }
    last.kept().await?;
    if !world.borrow().written_only {
        world.borrow_mut().did();
    }
    let kept = store.position(id).unwrap().kept;
    let told = random.borrow_mut().between(0, kept as u64 + 1) as i64;
    let high_watermark = world.borrow().high_watermark.max(told);
    world.borrow_mut().high_watermark = high_watermark;
    assert_eq!(store.advance_high_watermark(id, told).unwrap(), high_watermark.min(kept));
    Ok(())
}

async fn cut(store: &Rc<Store<SimIo>>, world: &RefCell<World>, random: &RefCell<Random>) -> Result<(), LogError> {
    let id = world.borrow().id;
    let log = world.borrow().log().clone();
    let choice = random.borrow_mut().below(8);
    let wanted = match choice {
        0 => log.end + 3,
        1 => random.borrow_mut().between(0, log.end as u64 + 1) as i64,
        2 => log.end, // epochs only
        _ => log.end - random.borrow_mut().below(12) as i64,
    };
    let wanted = wanted.max(0);
    let anew = random.borrow_mut().one_in(8);
    let to = if anew { wanted } else { log.landing(wanted.min(log.end)) };
    world.borrow_mut().will(|log| log.cut(log.landing(to.min(log.end))));
    if anew && world.borrow().log().end < to {
        world.borrow_mut().will(|log| log.cut(to));
    }
    let position = match anew {
        true => {
            world.borrow_mut().will(|log| log.trim(log.start.max(to)));
            // A leader's log starts no later than consumers see it.
            let high_watermark = world.borrow().high_watermark.max(to);
            world.borrow_mut().high_watermark = high_watermark;
            store.begin_anew(id, to).await?
        }
        false => store.truncate(id, wanted, CutBytes::Keep).await?,
    };
    assert_eq!((position.end, position.kept), (to, to), "{position:?}, wanted {wanted} of {log:?}");
    let mut world = world.borrow_mut();
    if !world.written_only || to != log.end {
        world.did(); // where nothing is cut off nothing is flushed either
    }
    world.high_watermark = world.high_watermark.min(position.end).max(position.high_watermark);
    Ok(())
}

async fn trim(store: &Rc<Store<SimIo>>, world: &RefCell<World>, random: &RefCell<Random>) -> Result<(), LogError> {
    let id = world.borrow().id;
    let seen = store.position(id).unwrap().high_watermark;
    let ends: Vec<i64> =
        world.borrow().log().batches.iter().map(|batch| batch.end).filter(|end| *end <= seen).collect();
    let Some(to) = ends.get(random.borrow_mut().below(ends.len().max(1))).copied() else { return Ok(()) };
    world.borrow_mut().will(|log| log.trim(to));
    assert_eq!(store.trim_as_follower(id, to).await?, to); // says nothing of what is on its way
    Ok(())
}

async fn work(store: Rc<Store<SimIo>>, world: &RefCell<World>, random: &RefCell<Random>, rounds: usize) {
    for _ in 0..rounds {
        let choice = random.borrow_mut().below(10);
        let done = match choice {
            0 => lead(&store, world, random).await,
            1 => trim(&store, world, random).await,
            2..=4 => follow_and(&store, world, async || cut(&store, world, random).await).await,
            _ => follow_and(&store, world, async || append(&store, world, random).await).await,
        };
        done.unwrap_or_else(|error| panic!("{error}"));
        if random.borrow_mut().one_in(6) {
            let id = world.borrow().id;
            let cell = store.partition(id).unwrap();
            store.await_groups(&cell).await.unwrap();
            check(&store, world).await;
            let found = found(&store, id).await;
            assert_eq!(world.borrow().comparable(&found), world.borrow().comparable(world.borrow().log()));
        }
    }
}

/// Does something as a follower.
async fn follow_and(
    store: &Rc<Store<SimIo>>,
    world: &RefCell<World>,
    what: impl AsyncFnOnce() -> Result<(), LogError>,
) -> Result<(), LogError> {
    let id = world.borrow().id;
    let epoch = world.borrow().epoch;
    if !matches!(store.append_as_follower(id, epoch, -1, &Bytes::new()), Err(LogError::UnexpectedOffset { .. })) {
        follow(store, world).await?;
    }
    what().await
}

async fn live(io: SimIo, run: u64, worlds: Rc<Vec<RefCell<World>>>, random: Rc<RefCell<Random>>, rounds: usize) {
    let known: Known = worlds.iter().map(|world| (world.borrow().id, world.borrow().config.clone())).collect();
    let replicated = Rc::new(known.keys().copied().collect());
    let options = StoreOptions { replicated, ..StoreOptions::of_test(run) };
    let store = Store::open(io, options, &known).await.unwrap_or_else(|error| panic!("{error}"));
    store.use_transactions();
    for world in worlds.iter() {
        settle(&store, world).await;
    }
    let working = join_all(worlds.iter().map(|world| work(store.clone(), world, &random, rounds)));
    let disturbing = async {
        for _ in 0..rounds {
            let choice = random.borrow_mut().below(3);
            match choice {
                0 => store.materialise_all().await,
                1 => drop(store.flush_written().await),
                _ => store.io.sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    };
    futures_util::future::join(working, disturbing).await;
    for world in worlds.iter() {
        let cell = store.partition(world.borrow().id).unwrap();
        store.await_groups(&cell).await.unwrap();
        check(&store, world).await;
    }
}

fn worlds() -> Rc<Vec<RefCell<World>>> {
    let small = ("internal.segment.bytes", "400000");
    let all = [World::new(0, &[small]), World::new(1, &[]), World::new(2, &[small, ("flush.messages", "1000")])];
    Rc::new(all.map(RefCell::new).into())
}

fn lives(seed: u64, count: u64, rounds: usize) {
    let sim = Sim::new(seed);
    let (worlds, random) = (worlds(), Rc::new(RefCell::new(Random::new(seed ^ 0xF0110))));
    sim.run_until(sim.io().create_dir(Path::new("/d"))).unwrap().unwrap();
    for run in 1..=count {
        let io = if run == 1 { sim.io() } else { sim.restart() };
        if run < count {
            let crash_at = random.borrow_mut().between(1, 60 + 4 * rounds as u64);
            sim.crash_after(crash_at);
        }
        if sim.run_until(live(io, run, worlds.clone(), random.clone(), rounds)).is_some() {
            sim.crash();
        }
    }
}

#[test]
fn a_log_is_what_was_done_to_it_whenever_the_power_fails() {
    for seed in seeds(12) {
        println!("seed {seed}");
        lives(seed, 10, 40);
    }
}

#[test]
fn the_power_fails_at_every_write_and_flush_of_a_cut_and_what_follows() {
    let step: u64 = std::env::var("MILLRACE_CRASH_SEEDS").map_or(7, |_| 1);
    for crash_at in (1..400).step_by(usize::try_from(step).unwrap()) {
        println!("crash at {crash_at}");
        let sim = Sim::new(crash_at);
        let (worlds, random) = (worlds(), Rc::new(RefCell::new(Random::new(5))));
        sim.run_until(sim.io().create_dir(Path::new("/d"))).unwrap().unwrap();
        sim.crash_after(crash_at);
        let ended = sim.run_until(live(sim.io(), 1, worlds.clone(), random.clone(), 25)).is_some();
        let io = sim.restart();
        sim.run_until(live(io, 2, worlds, random, 6)).unwrap();
        if ended {
            return;
        }
    }
}
