//! Transactions on a disk that loses power: whatever is under way at any write or flush, what was answered as committed is
//! there afterwards, all of it; what was never committed is shown to nobody who reads what is committed; no transaction is
//! torn; and what was stable stays so.
//!
//! The log that is found after a crash is the truth: what a store says of transactions must be what a naive look at all of
//! its batches says. A toy coordinator keeps its decisions in a partition of its own: on one shard together with the
//! markers, on several before them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use bytes::Bytes;
use futures_util::future::join_all;
use uuid::Uuid;

use super::{Known, Owed, Store, StoreOptions, crash_tests::seeds};
use crate::{
    api::{Acks, FetchPartition, Fetched, LogError, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, BatchInfo, Codec, Outcome, Record, batches, end_marker, records},
    config::TopicConfig,
    io::sim::{Sim, SimIo, random::Random},
    transactions::{AtomicPart, Decided, Marker},
};

const PARTITIONS: i32 = 5;
const PRODUCERS: i64 = 4;
/// Where the toy coordinator keeps its decisions: on the first shard.
const STATE: TopicPartition = TopicPartition { topic: Uuid::from_u128(8), partition: 0 };

type Stores = Vec<Rc<Store<SimIo>>>;

fn id(partition: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(7), partition }
}

fn config(partition: i32) -> Rc<TopicConfig> {
    let mut settings = BTreeMap::from([("internal.segment.bytes".to_owned(), "6000".to_owned())]);
    if partition % 2 == 1 {
        settings.insert("flush.messages".to_owned(), "1000".to_owned());
    }
    Rc::new(TopicConfig::parse(&BTreeMap::new(), &settings).unwrap())
}

/// A transaction as its producer knows it.
#[derive(Clone, Debug, Default)]
struct Sent {
    /// Batches that were acknowledged, by partition: their first offsets.
    acked: BTreeSet<(i32, i64)>,
    /// How it ended, if that was answered.
    answered: Option<Outcome>,
}

/// What survives lives: who wrote what, and what readers have seen.
struct World {
    random: RefCell<Random>,
    /// By producer and epoch.
    sent: RefCell<BTreeMap<(i64, i16), Sent>>,
    epochs: RefCell<BTreeMap<i64, i16>>,
    /// The highest last stable offset that was told, by partition.
    stable: RefCell<BTreeMap<i32, i64>>,
    plain: Cell<i32>,
    shards: usize,
}

fn owner(world: &World, partition: i32) -> usize {
    partition.unsigned_abs() as usize % world.shards
}

async fn open(io: SimIo, run: u64, world: &World) -> Stores {
    let mut stores = Vec::new();
    for shard in 0..world.shards {
        let own = (0..PARTITIONS).filter(|partition| owner(world, *partition) == shard);
        let mut known: Known = own.map(|partition| (id(partition), config(partition))).collect();
        if shard == 0 {
            known.insert(STATE, config(0));
        }
        let wal_bytes = 8 << 20;
        let options = StoreOptions {
            shard: u32::try_from(shard).unwrap(),
            owed: Owed::new(world.shards, wal_bytes),
            ..StoreOptions::of_test(run)
        };
        let store = Store::open(io.clone(), options, &known).await.unwrap_or_else(|error| panic!("{error}"));
        store.use_transactions();
        stores.push(store);
    }
    stores
}

fn batch(producer: i64, epoch: i16, sequence: i32, transactional: bool, text: &str) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, 0).producer(producer, epoch, sequence);
    if transactional {
        builder = builder.transactional();
    }
    for (offset, part) in text.split('|').enumerate() {
        let value = Some(Bytes::from(part.to_owned()));
        builder.push(&Record { offset: offset as i64, timestamp: 1, key: None, value, headers: vec![] });
    }
    builder.finish().into()
}

/// One producer: transactions one after the other, each over some partitions.
async fn produce(stores: &Stores, world: &World, producer: i64, rounds: usize) {
    for _ in 0..rounds {
        let epoch = *world.epochs.borrow_mut().entry(producer).or_default();
        let chosen: Vec<i32> = (0..PARTITIONS).filter(|_| world.random.borrow_mut().one_in(2)).collect();
        let mut whole = true;
        for partition in &chosen {
            let store = &stores[owner(world, *partition)];
            whole &= write(store, world, (producer, epoch), *partition).await.is_ok();
        }
        let commits = whole && !world.random.borrow_mut().one_in(3);
        if world.random.borrow_mut().one_in(8) {
            return; // it stays open: its owner never comes back in this life
        }
        let outcome = if commits { Outcome::Commit } else { Outcome::Abort };
        if end(stores, world, (producer, epoch), outcome, &chosen).await.is_err() {
            return;
        }
        world.sent.borrow_mut().entry((producer, epoch)).or_default().answered = Some(outcome);
        world.epochs.borrow_mut().insert(producer, epoch + 1);
    }
}

async fn write(
    store: &Rc<Store<SimIo>>,
    world: &World,
    (producer, epoch): (i64, i16),
    partition: i32,
) -> Result<(), LogError> {
    store.let_in(id(partition), producer, epoch)?;
    let mut sequence = 0;
    let count = 1 + world.random.borrow_mut().below(3);
    for _ in 0..count {
        let fill = "x".repeat(bytes(&mut world.random.borrow_mut()));
        let records = 1 + world.random.borrow_mut().below(2);
        let text = vec![format!("{producer}/{epoch}/{fill}"); records].join("|");
        let part = ProducePartition { partition: id(partition), batch: batch(producer, epoch, sequence, true, &text) };
        let (produced, wait) = store.append(part, AppendOrigin::Client, Acks::All).appended().await?;
        sequence += i32::try_from(records).unwrap();
        if let Some(wait) = wait {
            wait.wait().await?;
        }
        let mut sent = world.sent.borrow_mut();
        sent.entry((producer, epoch)).or_default().acked.insert((partition, produced.base_offset));
    }
    Ok(())
}

/// Now and then a batch is so large that it goes to its segment beside the shared log.
fn bytes(random: &mut Random) -> usize {
    if random.one_in(20) { crate::replica_api::FAT_BYTES } else { random.below(900) }
}

/// The coordinator's end of a transaction: transaction version 2, so markers have the next epoch.
async fn end(
    stores: &Stores,
    world: &World,
    (producer, epoch): (i64, i16),
    outcome: Outcome,
    partitions: &[i32],
) -> Result<(), LogError> {
    let marker = |partition: &i32| Marker {
        partition: id(*partition),
        producer_id: producer,
        producer_epoch: epoch + 1,
        coordinator_epoch: 0,
        outcome,
        transaction_version: 2,
        decided: Decided::ByCoordinator,
    };
    let decision = batch(-1, -1, -1, false, &format!("{producer}/{epoch}/{outcome:?}"));
    let decision = AtomicPart::Batch { partition: STATE, batch: decision };
    if world.shards == 1 {
        let markers = partitions.iter().map(|partition| AtomicPart::Marker(marker(partition)));
        return append_atomically(&stores[0], [decision].into_iter().chain(markers).collect()).await;
    }
    append_atomically(&stores[0], vec![decision]).await?;
    let writing = stores.iter().enumerate().map(|(shard, store)| async move {
        let own = partitions.iter().filter(|partition| owner(world, **partition) == shard).map(marker);
        for taken in store.append_markers(own.collect()) {
            taken?.1.wait().await?;
        }
        Ok(())
    });
    join_all(writing.collect::<Vec<_>>()).await.into_iter().collect()
}

async fn append_atomically(store: &Rc<Store<SimIo>>, parts: Vec<AtomicPart>) -> Result<(), LogError> {
    for (_, wait) in store.append_atomically(parts).map_err(|refused| refused.error)? {
        wait.wait().await?;
    }
    Ok(())
}

/// Records of no transaction, of producers that have none.
async fn produce_plainly(stores: &Stores, world: &World, rounds: usize) {
    for _ in 0..rounds {
        let partition = i32::try_from(world.random.borrow_mut().below(PARTITIONS as usize)).unwrap();
        let producer = 1_000 + i64::from(world.plain.get());
        world.plain.set(world.plain.get() + 1);
        let part = ProducePartition { partition: id(partition), batch: batch(producer, 0, 0, false, "plain") };
        let store = &stores[owner(world, partition)];
        match store.append(part, AppendOrigin::Client, Acks::All).appended().await {
            Ok((_, Some(wait))) => drop(wait.wait().await),
            Ok((_, None)) => {}
            Err(_) => return,
        }
    }
}

/// A batch as it was found.
struct Found {
    info: BatchInfo,
    outcome: Option<Outcome>,
    /// Of its first record.
    value: String,
}

/// All of a partition's batches.
async fn read_all(store: &Rc<Store<SimIo>>, partition: TopicPartition) -> Vec<Found> {
    let (start, end) = store.bounds(partition).unwrap();
    let mut found: Vec<Found> = Vec::new();
    let mut offset = start;
    while offset < end {
        let fetched = fetch(store, partition, offset, ReadBound::HighWatermark, 1 << 20).await;
        assert_eq!(fetched.aborted, None);
        for chunk in fetched.records.chunks {
            for one in batches(chunk.as_slice().unwrap()) {
                let (info, bytes) = one.unwrap();
                offset = info.last_offset() + 1;
                let outcome = end_marker(bytes).unwrap().filter(|_| info.is_control()).map(|end| end.outcome);
                let value = records(bytes).unwrap().remove(0).value.unwrap();
                found.push(Found { info, outcome, value: String::from_utf8_lossy(&value).into_owned() });
            }
        }
    }
    found
}

async fn fetch(
    store: &Rc<Store<SimIo>>,
    partition: TopicPartition,
    offset: i64,
    bound: ReadBound,
    max_bytes: usize,
) -> Fetched {
    let part = FetchPartition { partition, offset, max_bytes, leader_epoch: -1, bound };
    store.read(&part, max_bytes, true).await.unwrap()
}

/// What a naive look at a partition says.
#[derive(Default)]
struct Naive {
    /// First offsets of open transactions by producer.
    open: BTreeMap<i64, i64>,
    /// Offsets of records that are committed, or of no transaction.
    counts: BTreeSet<i64>,
    end: i64,
}

fn look_naively(found: &[Found]) -> Naive {
    let mut naive = Naive::default();
    let mut pending: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for Found { info, outcome, .. } in found {
        let id = info.producer_id;
        let own = info.base_offset..=info.last_offset();
        naive.end = info.last_offset() + 1;
        match outcome {
            Some(outcome) => {
                let written = pending.remove(&id).unwrap_or_default();
                naive.open.remove(&id);
                if *outcome == Outcome::Commit {
                    naive.counts.extend(written);
                }
            }
            None if info.is_transactional() => {
                naive.open.entry(id).or_insert(info.base_offset);
                pending.entry(id).or_default().extend(own);
            }
            None => naive.counts.extend(own),
        }
    }
    naive
}

/// What a client makes of it that reads what is committed, in fetches of some size.
async fn read_as_client(store: &Rc<Store<SimIo>>, partition: TopicPartition, max_bytes: usize) -> (BTreeSet<i64>, i64) {
    let mut offset = store.bounds(partition).unwrap().0;
    let mut counts = BTreeSet::new();
    loop {
        let fetched = fetch(store, partition, offset, ReadBound::LastStable, max_bytes).await;
        let mut aborted = fetched.aborted.expect("the list is there");
        let own_first: Vec<_> = aborted.iter().map(|one| (one.producer_id, one.first_offset)).collect();
        for (at, (producer, first)) in own_first.iter().enumerate() {
            let ascends = own_first[..at].iter().all(|(other, before)| other != producer || before < first);
            assert!(ascends, "first offsets of a producer ascend");
        }
        aborted.sort_by_key(|one| one.first_offset);
        let mut aborted = aborted.into_iter().peekable();
        let mut skipped = BTreeSet::new();
        let before = offset;
        for chunk in &fetched.records.chunks {
            for one in batches(chunk.as_slice().unwrap()) {
                let (info, bytes) = one.unwrap();
                while let Some(begun) = aborted.next_if(|one| one.first_offset <= info.last_offset()) {
                    skipped.insert(begun.producer_id);
                }
                offset = info.last_offset() + 1;
                if info.is_control() {
                    if end_marker(bytes).unwrap().is_some_and(|end| end.outcome == Outcome::Abort) {
                        skipped.remove(&info.producer_id);
                    }
                } else if !(info.is_transactional() && skipped.contains(&info.producer_id)) {
                    counts.extend(info.base_offset..=info.last_offset());
                }
            }
        }
        assert!(offset <= fetched.last_stable_offset);
        if offset == before {
            assert_eq!(offset, fetched.last_stable_offset, "an answer is empty only at the last stable offset");
            return (counts, offset);
        }
    }
}

/// Compares what stores say with what their logs say, and with what was answered.
async fn check(stores: &Stores, world: &World) -> BTreeMap<i32, Vec<Found>> {
    let mut logs = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let store = &stores[owner(world, partition)];
        let found = read_all(store, id(partition)).await;
        let naive = look_naively(&found);
        let open: BTreeMap<i64, i64> = store
            .open_transactions()
            .into_iter()
            .filter(|open| open.partition == id(partition))
            .map(|open| (open.producer_id, open.first_offset))
            .collect();
        assert_eq!(open, naive.open, "partition {partition}");
        let expected = naive.open.values().min().copied().unwrap_or(naive.end);
        let max_bytes = 200 + world.random.borrow_mut().below(5_000);
        let (counts, stable) = read_as_client(store, id(partition), max_bytes).await;
        assert_eq!(stable, expected, "partition {partition}");
        assert_eq!(counts, naive.counts.range(..stable).copied().collect(), "partition {partition}");
        let mut seen = world.stable.borrow_mut();
        let before = seen.entry(partition).or_default();
        assert!(partition % 2 == 1 || stable >= *before, "partition {partition}: {stable} was stable up to {before}");
        *before = stable;
        logs.insert(partition, found);
    }
    logs
}

/// What the coordinator does at a start: open transactions end as was decided, or are aborted.
async fn reconcile(stores: &Stores, world: &World) {
    let mut decided: BTreeSet<(i64, i16)> = BTreeSet::new();
    for found in read_all(&stores[0], STATE).await {
        let parts: Vec<_> = found.value.split('/').collect();
        if parts[2] == "Commit" {
            decided.insert((parts[0].parse().unwrap(), parts[1].parse().unwrap()));
        }
    }
    for store in stores {
        let markers = store.open_transactions().into_iter().map(|open| Marker {
            partition: open.partition,
            producer_id: open.producer_id,
            producer_epoch: open.producer_epoch + 1,
            coordinator_epoch: 0,
            outcome: match decided.contains(&(open.producer_id, open.producer_epoch)) {
                true => Outcome::Commit,
                false => Outcome::Abort,
            },
            transaction_version: 2,
            decided: Decided::ByCoordinator,
        });
        for taken in store.append_markers(markers.collect()) {
            taken.unwrap().1.wait().await.unwrap();
        }
    }
    for producer in 0..PRODUCERS {
        // a new instance of the producer: whatever it was about to do is over
        *world.epochs.borrow_mut().entry(producer).or_default() += 2;
    }
    let logs = check(stores, world).await;
    check_whole(world, &logs, &decided);
}

/// Every transaction is committed in all of its partitions or in none, and what was answered counts.
fn check_whole(world: &World, logs: &BTreeMap<i32, Vec<Found>>, decided: &BTreeSet<(i64, i16)>) {
    let mut ends: BTreeMap<(i64, i16), BTreeSet<bool>> = BTreeMap::new();
    let mut counting: BTreeSet<(i32, i64)> = BTreeSet::new();
    for (partition, found) in logs {
        let counts = look_naively(found).counts;
        for Found { info, .. } in found.iter().filter(|found| found.info.is_transactional() && found.outcome.is_none())
        {
            let does_count = counts.contains(&info.base_offset);
            ends.entry((info.producer_id, info.producer_epoch)).or_default().insert(does_count);
            if does_count {
                counting.insert((*partition, info.base_offset));
            }
        }
    }
    for (key, outcomes) in &ends {
        assert_eq!(outcomes.len(), 1, "transaction {key:?} is torn");
        assert_eq!(outcomes.contains(&true), decided.contains(key), "transaction {key:?} ends as was decided");
    }
    for (key, sent) in &*world.sent.borrow() {
        match sent.answered {
            Some(Outcome::Commit) => assert!(sent.acked.is_subset(&counting), "{key:?} was answered: {sent:?}"),
            Some(Outcome::Abort) => assert!(!decided.contains(key), "{key:?} was answered as aborted"),
            None => {}
        }
    }
}

/// What is told to be stable must be so after a power cut.
fn note_stable(stores: &Stores, world: &World) {
    for partition in 0..PARTITIONS {
        let Ok(cell) = stores[owner(world, partition)].partition(id(partition)) else { continue };
        let stable = cell.borrow().end_for(ReadBound::LastStable);
        let mut seen = world.stable.borrow_mut();
        let before = seen.entry(partition).or_default();
        *before = stable.max(*before);
    }
}

async fn live(io: SimIo, run: u64, world: Rc<World>, rounds: usize) {
    let stores = open(io, run, &world).await;
    check(&stores, &world).await;
    reconcile(&stores, &world).await;
    let producing = join_all((0..PRODUCERS).map(|producer| produce(&stores, &world, producer, rounds)));
    let plainly = produce_plainly(&stores, &world, rounds * 2);
    let disturbing = async {
        for _ in 0..rounds {
            let store = &stores[world.random.borrow_mut().below(stores.len())];
            let choice = world.random.borrow_mut().below(3);
            match choice {
                0 => store.materialise_all().await,
                1 => drop(store.flush_written().await),
                _ => crate::io::Io::sleep(&store.io, std::time::Duration::from_millis(1)).await,
            }
            note_stable(&stores, &world);
        }
    };
    futures_util::future::join3(producing, plainly, disturbing).await;
    check(&stores, &world).await;
}

fn world(seed: u64, shards: usize) -> Rc<World> {
    Rc::new(World {
        random: RefCell::new(Random::new(seed)),
        sent: RefCell::default(),
        epochs: RefCell::default(),
        stable: RefCell::default(),
        plain: Cell::new(0),
        shards,
    })
}

fn new_disk(seed: u64) -> Sim {
    let sim = Sim::new(seed);
    sim.run_until(crate::io::Io::create_dir(&sim.io(), std::path::Path::new("/d"))).unwrap().unwrap();
    sim
}

/// Many short lives on one disk, each cut off at a random write or flush.
fn lives(seed: u64, shards: usize, count: u64, rounds: usize) {
    let (sim, world) = (new_disk(seed), world(seed ^ 0xBEEF, shards));
    for run in 1..=count {
        let io = if run == 1 { sim.io() } else { sim.restart() };
        let crash_at = world.random.borrow_mut().between(1, 30 + 6 * rounds as u64);
        if run < count {
            sim.crash_after(crash_at);
        }
        if sim.run_until(live(io, run, world.clone(), rounds)).is_some() {
            sim.crash();
        }
    }
}

#[test]
fn no_transaction_is_torn_or_lost_whenever_the_power_fails() {
    for seed in seeds(6) {
        println!("seed {seed}");
        lives(seed, 1, 8, 12);
        lives(seed, 3, 8, 12);
    }
}

#[test]
fn the_power_fails_at_every_write_and_flush_of_a_few_transactions() {
    let step: u64 = std::env::var("MILLRACE_CRASH_SEEDS").map_or(7, |_| 1);
    for shards in [1, 3] {
        for crash_at in (1..300).step_by(usize::try_from(step).unwrap()) {
            let (sim, world) = (new_disk(crash_at), world(11, shards));
            sim.crash_after(crash_at);
            let ended = sim.run_until(live(sim.io(), 1, world.clone(), 5)).is_some();
            let io = sim.restart();
            sim.run_until(live(io, 2, world, 3)).unwrap();
            if ended {
                break;
            }
        }
    }
}
