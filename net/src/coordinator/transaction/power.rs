//! Coordinators and the engine's stores together on a disk that loses power, on one shard and on three: whatever is under way
//! when it fails,
//!
//! - a transaction counts in all partitions that it wrote to or in none;
//! - what was answered as committed counts, all of it; what was answered as aborted, or whose end nobody asked for, never
//!   does, not even for a moment;
//! - what readers of committed records have seen they see again, and what is stable stays so;
//! - once coordinators are loaded, nothing is open that none of them will end.
//!
//! The machines are those of production, kept by the runtime's slots; letters take their time, and what they carry out is
//! what the shell does ([`life`]). A model that finds nothing proves little: with a rule taken out it finds what that rule is
//! for.

mod life;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Duration,
};

use futures_util::future::{join, join_all};
use millrace_engine::{
    api::TopicPartition,
    batch::{BatchInfo, end_marker},
    simulated::{Machine, Stable},
    transactions::Outcome,
};
use uuid::Uuid;

use self::life::Life;
use super::Producer;

/// Transactional ids.
const IDS: usize = 4;
/// Partitions that are written to.
const DATA: i32 = 5;
/// Partitions that coordinators keep their state in.
const STATES: i32 = 2;
const DATA_TOPIC: &str = "data";

fn data(index: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(7), partition: index }
}

fn state(index: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(8), partition: index }
}

/// The state partition of an id.
fn coordinated(id: usize) -> TopicPartition {
    state(i32::try_from(id).expect("a few ids") % STATES)
}

fn all_partitions() -> Vec<TopicPartition> {
    (0..DATA).map(data).chain((0..STATES).map(state)).collect()
}

/// A rule that is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Markers count once they are on stable storage.
    DurableMarkers,
    /// What is nobody's is aborted at the start.
    Reconciliation,
}

/// Numbers by chance, the same for the same seed.
struct Chance(Cell<u64>);

impl Chance {
    fn next(&self) -> u64 {
        let seed = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(seed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Whose transaction: a producer's id and epoch.
type Key = (i64, i16);

/// A transaction as its client knows it.
#[derive(Debug, Clone, Default)]
struct Sent {
    /// Batches that were acknowledged: partition and offset.
    acked: BTreeSet<(i32, i64)>,
    /// How it was asked to end, and whether that was answered.
    asked: Option<Outcome>,
    is_answered: bool,
}

/// What outlives lives.
struct World {
    chance: Chance,
    shards: usize,
    without: Without,
    next_producer_id: Cell<i64>,
    sent: RefCell<BTreeMap<Key, Sent>>,
    /// Transactions that a reader of committed records has seen.
    seen: RefCell<BTreeSet<Key>>,
    /// The highest end of what is stable, by partition.
    stable: RefCell<BTreeMap<i32, i64>>,
}

impl World {
    fn new(seed: u64, shards: usize, without: Without) -> Rc<Self> {
        Rc::new(Self {
            chance: Chance(Cell::new(seed)),
            shards,
            without,
            next_producer_id: Cell::new(100),
            sent: RefCell::default(),
            seen: RefCell::default(),
            stable: RefCell::default(),
        })
    }

    fn with_sent(&self, producer: Producer, change: impl FnOnce(&mut Sent)) {
        change(self.sent.borrow_mut().entry((producer.id, producer.epoch)).or_default());
    }

    /// What a reader of committed records is given now.
    fn note_seen(&self, partition: i32, stable: &Stable) {
        let mut ends = self.stable.borrow_mut();
        let before = ends.entry(partition).or_default();
        assert!(stable.end >= *before, "partition {partition} was stable up to {before}, now {}", stable.end);
        *before = stable.end;
        self.seen.borrow_mut().extend(committed_of(stable));
    }
}

/// What a client makes of what it is given.
fn committed_of(stable: &Stable) -> BTreeSet<Key> {
    let mut aborted = stable.aborted.clone();
    aborted.sort_by_key(|one| one.first_offset);
    let mut aborted = aborted.into_iter().peekable();
    let (mut skipped, mut committed) = (BTreeSet::new(), BTreeSet::new());
    for (info, bytes) in &stable.batches {
        while let Some(begun) = aborted.next_if(|one| one.first_offset <= info.last_offset()) {
            skipped.insert(begun.producer_id);
        }
        match end_of(info, bytes) {
            Some(Outcome::Abort) => {
                skipped.remove(&info.producer_id);
            }
            None if !skipped.contains(&info.producer_id) => {
                committed.insert((info.producer_id, info.producer_epoch));
            }
            Some(Outcome::Commit) | None => {}
        }
    }
    committed
}

fn end_of(info: &BatchInfo, bytes: &[u8]) -> Option<Outcome> {
    end_marker(bytes).expect("the log is whole").filter(|_| info.is_control()).map(|end| end.outcome)
}

/// What the logs say of each transaction: how it ended in which partition (`None`: it has not), and where its batches are.
#[derive(Default)]
struct Logged {
    ends: BTreeMap<Key, BTreeMap<i32, Option<Outcome>>>,
    offsets: BTreeMap<Key, BTreeSet<(i32, i64)>>,
}

async fn look_at_logs(life: &Life) -> Logged {
    let mut logged = Logged::default();
    for partition in 0..DATA {
        let mut open: BTreeMap<i64, Key> = BTreeMap::new();
        for (info, bytes) in life.shards.all_batches(data(partition)).await {
            let key = (info.producer_id, info.producer_epoch);
            match end_of(&info, &bytes) {
                Some(outcome) => {
                    if let Some(key) = open.remove(&info.producer_id) {
                        logged.ends.entry(key).or_default().insert(partition, Some(outcome));
                    }
                }
                None => {
                    open.insert(info.producer_id, key);
                    logged.ends.entry(key).or_default().insert(partition, None);
                    logged.offsets.entry(key).or_default().insert((partition, info.base_offset));
                }
            }
        }
    }
    logged
}

/// Compares what the logs say with what clients were told, when coordinators have loaded and nothing is under way.
async fn check(life: &Life) {
    let world = &life.world;
    for partition in 0..DATA {
        let stable = life.shards.stable(data(partition)).await;
        world.note_seen(partition, &stable);
    }
    let logged = look_at_logs(life).await;
    for (key, ends) in &logged.ends {
        let outcomes: BTreeSet<_> = ends.values().map(|end| end.map(|outcome| outcome == Outcome::Commit)).collect();
        // what was lost of its adds is aborted before what is open ends
        let is_committed = outcomes.contains(&Some(true));
        assert!(!is_committed || outcomes.len() == 1, "{key:?} is torn: {ends:?}");
        let sent = world.sent.borrow().get(key).cloned().unwrap_or_default();
        let is_told = sent.asked.filter(|_| sent.is_answered);
        match is_told {
            Some(Outcome::Commit) => assert!(is_committed, "{key:?} was answered as committed: {ends:?}"),
            Some(Outcome::Abort) => assert!(!is_committed, "{key:?} was answered as aborted: {ends:?}"),
            None if sent.asked != Some(Outcome::Commit) => assert!(!is_committed, "nobody has committed {key:?}"),
            None => {}
        }
        assert!(is_committed || !world.seen.borrow().contains(key), "{key:?} was seen and does not count: {ends:?}");
        if is_committed {
            let missing: Vec<_> = sent.acked.difference(&logged.offsets[key]).collect();
            assert!(missing.is_empty(), "{key:?} has lost {missing:?}");
        }
    }
    for (key, sent) in &*world.sent.borrow() {
        let is_committed = sent.is_answered && sent.asked == Some(Outcome::Commit) && !sent.acked.is_empty();
        assert!(!is_committed || logged.ends.contains_key(key), "{key:?} was answered as committed and is lost");
    }
    life.check_owned();
}

/// One life: what the last one left is checked, then clients go on until the power fails or they are done.
async fn live(machine: Rc<Machine>, number: u64, world: Rc<World>, rounds: usize) {
    let life = Life::begin(&machine, number, Rc::clone(&world)).await;
    life.come_to_rest().await;
    check(&life).await;
    let clients = join_all((0..IDS).map(|id| life.run_client(id, rounds)));
    let readers = async {
        for _ in 0..rounds * 3 {
            life.shards.sleep(Duration::from_micros(300)).await;
            for partition in 0..DATA {
                let stable = life.shards.stable(data(partition)).await;
                world.note_seen(partition, &stable);
            }
        }
    };
    join(clients, readers).await;
    life.come_to_rest().await;
    check(&life).await;
}

/// Some lives on one disk, each but the last cut off at an operation by chance. Answers how many transactions were committed
/// for sure.
fn live_on(seed: u64, shards: usize, lives: u64, rounds: usize, without: Without) -> usize {
    let (machine, world) = (Rc::new(Machine::new(seed)), World::new(seed ^ 0xbeef, shards, without));
    for number in 1..=lives {
        if number < lives {
            machine.lose_power_after(5 + world.chance.below(25 * rounds as u64));
        }
        machine.run(live(Rc::clone(&machine), number, Rc::clone(&world), rounds));
        machine.restart();
    }
    let sent = world.sent.borrow();
    let is_committed = |sent: &&Sent| sent.is_answered && sent.asked == Some(Outcome::Commit) && !sent.acked.is_empty();
    sent.values().filter(is_committed).count()
}

/// The seeds that are tried: a few, unless the environment asks for more.
fn seeds(few: u64) -> Range<u64> {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let first = number("MILLRACE_CRASH_FIRST", 0);
    first..first + number("MILLRACE_CRASH_SEEDS", few)
}

#[test]
fn transactions_are_whole_whenever_the_power_fails() {
    let mut committed = 0;
    for seed in seeds(6) {
        println!("seed {seed}");
        for shards in [1, 3] {
            committed += live_on(seed, shards, 5, 6, Without::Nothing);
        }
    }
    assert!(committed > 5, "it proves little: {committed} transactions were committed");
}

#[test]
fn the_power_fails_at_every_operation_of_a_few_transactions() {
    let step = std::env::var("MILLRACE_CRASH_SEEDS").map_or(9, |_| 1);
    for shards in [1, 3] {
        for crash_at in (1..600).step_by(step) {
            let (machine, world) = (Rc::new(Machine::new(crash_at)), World::new(11, shards, Without::Nothing));
            machine.lose_power_after(crash_at);
            let is_over = machine.run(live(Rc::clone(&machine), 1, Rc::clone(&world), 3)).is_some();
            machine.restart();
            machine.run(live(Rc::clone(&machine), 2, world, 1)).expect("power is on");
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn with_a_rule_taken_out_something_is_found() {
    for without in [Without::DurableMarkers, Without::Reconciliation] {
        let is_found = |seed| catch_unwind(AssertUnwindSafe(|| live_on(seed, 3, 6, 6, without))).is_err();
        assert!((0..60).any(is_found), "{without:?}");
    }
}
