//! Nobody waits for what nobody does: whatever partitions write, rest, are trimmed, compacted and deleted, with few and
//! small files of the shared log and a small cache, there is no moment at which a group, a trim or a pass waits while
//! nothing is under way that will end.
//!
//! The simulation tells when no task can run and no operation is under way. Then only timers go on: the pauses of those
//! who produce here, the compactor's, and a look at the disk each second, which must not be what makes the log go on.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    path::Path,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{Either, join, join_all, select},
};
use uuid::Uuid;

use super::{Known, Owed, Store, StoreOptions, crash_tests::seeds};
use crate::{
    api::{Acks, FetchPartition, LogError, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record},
    config::TopicConfig,
    io::{
        Io,
        sim::{OpKind, START_MS, Sim, SimIo, Verdict, random::Random},
    },
    partition::keeping::Appending,
};

const MIB: u64 = 1 << 20;

/// How somebody produces.
#[derive(Clone, Copy)]
struct Habit {
    settings: &'static [(&'static str, &'static str)],
    /// Bytes of a batch at least and at most.
    bytes: (usize, usize),
    /// Batches in a row, and how long it rests then at most.
    burst_max: usize,
    rest_us_max: u64,
    partitions: i32,
}

/// Coordinators and quiet topics, busy ones, large batches that go to segments directly,
/// what is recompressed, and what is only written.
const HABITS: [Habit; 6] = [
    Habit {
        settings: &[("cleanup.policy", "compact"), ("internal.segment.bytes", "20000")],
        bytes: (60, 400),
        burst_max: 2,
        rest_us_max: 60_000,
        partitions: 3,
    },
    Habit { settings: &[], bytes: (60, 3_000), burst_max: 1, rest_us_max: 150_000, partitions: 2 },
    Habit {
        settings: &[("internal.segment.bytes", "900000"), ("retention.bytes", "2000000")],
        bytes: (1_000, 200_000),
        burst_max: 12,
        rest_us_max: 20_000,
        partitions: 3,
    },
    Habit { settings: &[], bytes: (200_000, 600_000), burst_max: 4, rest_us_max: 50_000, partitions: 1 },
    Habit {
        settings: &[("compression.type", "lz4")],
        bytes: (100, 100_000),
        burst_max: 4,
        rest_us_max: 50_000,
        partitions: 1,
    },
    Habit {
        settings: &[("flush.messages", "1000")],
        bytes: (100, 100_000),
        burst_max: 8,
        rest_us_max: 50_000,
        partitions: 2,
    },
];

/// A partition that is deleted and made anew now and then.
struct Place {
    habit: Habit,
    id: Cell<TopicPartition>,
    config: Rc<TopicConfig>,
}

/// One run of the property.
struct World {
    seed: u64,
    random: RefCell<Random>,
    places: Vec<Place>,
    next_topic: Cell<u128>,
    store: RefCell<Option<Rc<Store<SimIo>>>>,
}

impl World {
    fn new(seed: u64) -> Rc<Self> {
        let world = Self {
            seed,
            random: RefCell::new(Random::new(seed ^ 0x9106_4E55)),
            places: Vec::new(),
            next_topic: Cell::new(0),
            store: RefCell::default(),
        };
        let mut places = Vec::new();
        for habit in HABITS {
            let config = config(habit.settings);
            let count = world.random.borrow_mut().below(usize::try_from(habit.partitions).unwrap() + 1);
            places.extend((0..count).map(|_| Place { habit, id: Cell::new(world.new_id()), config: config.clone() }));
        }
        Rc::new(Self { places, ..world })
    }

    fn new_id(&self) -> TopicPartition {
        self.next_topic.set(self.next_topic.get() + 1);
        TopicPartition { topic: Uuid::from_u128(self.next_topic.get()), partition: 0 }
    }

    fn below(&self, end: usize) -> usize {
        self.random.borrow_mut().below(end)
    }

    fn one_in(&self, n: u64) -> bool {
        self.random.borrow_mut().one_in(n)
    }

    async fn rest(&self, store: &Store<SimIo>, us_max: u64) {
        let us = self.random.borrow_mut().between(0, us_max);
        store.io.sleep(Duration::from_micros(us)).await;
    }

    fn options(&self) -> StoreOptions {
        let wal_bytes = (6 + 2 * self.below(2) as u64) * MIB; // three or four files
        StoreOptions {
            cache_bytes: (3 + self.below(8)) << 20,
            fetch_bytes: 1 << 20,
            wal_bytes,
            reserve_bytes: 1000,
            owed: Owed::new(1, wal_bytes),
            ..StoreOptions::of_test(1)
        }
    }

    /// Produces in bursts, with some batches in flight.
    async fn produce(&self, store: &Store<SimIo>, place: &Place, bursts: usize) {
        for _ in 0..bursts {
            let mut flying = VecDeque::new();
            for _ in 0..1 + self.below(place.habit.burst_max) {
                let (least, most) = place.habit.bytes;
                let bytes = least + self.below(most - least);
                let part = ProducePartition {
                    partition: place.id.get(),
                    batch: batch(&format!("key-{}", self.below(20)), bytes),
                };
                match store.append(part, AppendOrigin::Client, Acks::All).appended().await {
                    Ok((_, wait)) => flying.extend(wait),
                    // a topic may go while its batch is recompressed
                    Err(LogError::StorageFull | LogError::UnknownPartition) => break,
                    Err(other) => panic!("seed {}: {other}", self.seed),
                }
                if flying.len() == 4 {
                    flying.pop_front().unwrap().wait().await.unwrap();
                }
            }
            for wait in flying {
                wait.wait().await.unwrap();
            }
            self.rest(store, place.habit.rest_us_max).await;
        }
    }

    /// Everything else that happens to a shard.
    async fn disturb(&self, store: &Rc<Store<SimIo>>, times: usize) {
        for _ in 0..times {
            let place = &self.places[self.below(self.places.len())];
            match self.below(10) {
                0 => {
                    let (start, end) = store.bounds(place.id.get()).unwrap();
                    let before = start + self.below(usize::try_from(end - start).unwrap() + 1) as i64;
                    let trimmed = store.trim(place.id.get(), before).await;
                    // it may be deleted meanwhile
                    assert!(matches!(trimmed, Ok(_) | Err(LogError::UnknownPartition)), "{trimmed:?}");
                }
                1 => store.materialise_all().await,
                2 => store.retain(1000).await,
                3 => store.compact().await,
                4 => {
                    let removed = store.remove_partition(place.id.get()).unwrap();
                    place.id.set(self.new_id());
                    store.put_partition(place.id.get(), place.config.clone());
                    removed.wait().await;
                }
                _ => self.rest(store, 60_000).await,
            }
        }
    }

    /// Reads from anywhere, within the memory for that, and is slow to send it.
    async fn consume(&self, store: &Rc<Store<SimIo>>, times: usize) {
        for _ in 0..times {
            let permit = store.fetch_memory.acquire(usize::MAX).await;
            let id = self.places[self.below(self.places.len())].id.get();
            let (start, end) = store.bounds(id).unwrap();
            let offset = start + self.below(usize::try_from(end - start).unwrap() + 1) as i64;
            let part = FetchPartition {
                partition: id,
                offset,
                max_bytes: permit.bytes(),
                leader_epoch: -1,
                bound: ReadBound::HighWatermark,
            };
            let mut read = store.read(&part, permit.bytes(), true).await;
            permit.cover(read.iter_mut().flat_map(|fetched| &mut fetched.records.chunks));
            self.rest(store, 20_000).await;
        }
    }

    /// What a node does each second.
    async fn look_after(&self, store: &Rc<Store<SimIo>>) {
        loop {
            store.io.sleep(Duration::from_secs(1)).await;
            assert!(store.io.elapsed() < Duration::from_secs(600), "seed {}: it has no end", self.seed);
            store.check_space();
            store.flush_written().await.unwrap();
        }
    }

    async fn live(self: &Rc<Self>, io: SimIo) {
        let known: Known = self.places.iter().map(|place| (place.id.get(), place.config.clone())).collect();
        let store = Store::open(io, self.options(), &known).await.unwrap();
        self.store.replace(Some(store.clone()));
        let producing = join_all(self.places.iter().map(|place| self.produce(&store, place, 12)));
        let disturbing = join_all((0..2).map(|_| self.disturb(&store, 12)));
        let consuming = join_all((0..3).map(|_| self.consume(&store, 20)));
        let working = Box::pin(join(producing, join(disturbing, consuming)));
        select(working, Box::pin(self.look_after(&store))).await;
        store.close().await;
    }

    /// Nothing is under way: nobody may wait for anything but time.
    fn check_idle(&self) {
        let Some(store) = self.store.borrow().clone() else { return };
        let groups = (!store.groups.borrow().is_empty(), !store.flight.borrow().is_empty());
        let waiting = store.keeper.waiting();
        let fetches = store.fetch_memory.is_contended() && store.fetch_memory.used() == 0;
        assert!(
            groups == (false, false) && waiting == [0; 3] && !fetches && !store.standing.get(),
            "seed {}: nothing is under way, but there wait: groups to be written and written {groups:?}; trims, jobs, passes \
             {waiting:?}; fetches {fetches}; pump starved {}, live bytes {}, cached {}",
            self.seed,
            store.starved.get(),
            store.live_bytes.get(),
            store.cache.borrow().bytes(),
        );
    }
}

fn batch(key: &str, bytes: usize) -> Bytes {
    let (key, value) = (Some(Bytes::from(key.to_owned())), Some(Bytes::from(vec![b'v'; bytes])));
    let mut builder = BatchBuilder::new(Codec::None, 0);
    builder.push(&Record { offset: 0, timestamp: START_MS, key, value, headers: vec![] });
    builder.finish().into()
}

/// One schedule. Some have a disk that lets the log have two files only.
fn run(seed: u64) {
    let world = World::new(seed);
    if world.places.is_empty() {
        return;
    }
    let sim = Sim::new(seed);
    sim.run_until(sim.io().create_dir(Path::new("/d"))).unwrap().unwrap();
    if world.one_in(4) {
        let mut made = 0;
        sim.watch(move |op| {
            let begins =
                op.kind == OpKind::Open && op.path.starts_with("/d/wal-0") && op.path.extension().unwrap() == "making";
            made += usize::from(begins);
            if begins && made > super::wal_files::GOES_ROUND {
                return Verdict::Fail(std::io::ErrorKind::StorageFull);
            }
            Verdict::Go
        });
    }
    let watched = world.clone();
    sim.watch_idle(move || watched.check_idle());
    sim.run_until(world.live(sim.io())).unwrap();
    world.store.replace(None);
}

/// A partition that wrote into a file of the shared log again after the file was recycled was not listed as one that
/// stands in the way of the next recycling: the log stood until something else came to the partition.
#[test]
fn nobody_waits_while_nothing_is_under_way() {
    for seed in seeds(24) {
        println!("seed {seed}");
        run(seed);
    }
}

/// A store with one partition of these settings, the disk below it, and a clock.
async fn open_one(sim: &Sim, settings: &[(&str, &str)], cache_bytes: usize) -> (Rc<Store<SimIo>>, TopicPartition) {
    sim.io().create_dir(Path::new("/d")).await.unwrap();
    let id = TopicPartition { topic: Uuid::from_u128(1), partition: 0 };
    let options = StoreOptions { cache_bytes, ..World::new(0).options() };
    let store = Store::open(sim.io(), options, &Known::from([(id, config(settings))])).await.unwrap();
    (store, id)
}

fn config(settings: &[(&str, &str)]) -> Rc<TopicConfig> {
    let overrides = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Rc::new(TopicConfig::parse(&BTreeMap::new(), &overrides).unwrap())
}

fn append(store: &Store<SimIo>, partition: TopicPartition, bytes: usize) -> super::append::Wait {
    let taken =
        store.append(ProducePartition { partition, batch: batch("key", bytes) }, AppendOrigin::Client, Acks::All);
    taken.appended().now_or_never().unwrap().unwrap().1.unwrap()
}

/// What a future says, or `None` if it is not done after a virtual time in which everything that is due is done.
async fn soon<T>(store: &Store<SimIo>, future: impl Future<Output = T>) -> Option<T> {
    match select(std::pin::pin!(future), std::pin::pin!(store.io.sleep(Duration::from_secs(10)))).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}

/// A trim that had to wait for a fat run waited for ever when the log failed meanwhile: the run never ended.
#[test]
fn a_trim_is_refused_when_the_log_fails_before_its_tail_is_in_segments() {
    let sim = Sim::new(1);
    sim.run_until(async {
        let (store, id) = open_one(&sim, &[], 8 << 20).await;
        append(&store, id, 100).wait().await.unwrap();
        sim.watch(|op| match op.kind == OpKind::Write && op.path.starts_with("/d/wal-0") {
            true => Verdict::Fail(std::io::ErrorKind::Other),
            false => Verdict::Go,
        });
        let fat = append(&store, id, crate::replica_api::FAT_BYTES);
        while store.flight.borrow().is_empty() {
            store.io.yield_now().await;
        }
        let trimmed = soon(&store, store.trim(id, 1)).await;
        assert!(matches!(trimmed, Some(Err(LogError::Storage(_)))), "{trimmed:?}");
        fat.wait().await.unwrap_err();
    });
}

/// A topic came to want each group flushed while what was only written was in the log: nobody told the keeper of the
/// flush that let it bring that to segments, and a trim waited for the next event.
#[test]
fn a_trim_goes_on_when_what_was_only_written_is_flushed() {
    let sim = Sim::new(1);
    sim.run_until(async {
        let (store, id) = open_one(&sim, &[("flush.messages", "1000")], 8 << 20).await;
        append(&store, id, 100).wait().await.unwrap();
        store.put_partition(id, config(&[]));
        let trim = join(soon(&store, store.trim(id, 1)), async {
            store.io.sleep(Duration::from_secs(1)).await;
            store.flush_written().await.unwrap();
        });
        assert_eq!(trim.await.0, Some(Ok(1)));
    });
}

/// A topic came to want a flush while a large run was on its way to its segment: the segment then held what consumers
/// could not see by the high watermark, and were given all the same.
#[test]
fn a_fat_run_is_seen_although_its_topic_came_to_want_a_flush() {
    let sim = Sim::new(1);
    sim.run_until(async {
        let (store, id) = open_one(&sim, &[("flush.messages", "1000")], 8 << 20).await;
        append(&store, id, 100).wait().await.unwrap();
        let fat = append(&store, id, crate::replica_api::FAT_BYTES);
        while store.flight.borrow().is_empty() {
            store.io.yield_now().await;
        }
        store.put_partition(id, config(&[]));
        fat.wait().await.unwrap();
        let marks = *store.partition(id).unwrap().borrow().marks();
        assert_eq!((marks.materialised(), marks.high_watermark(), marks.durable()), (2, 2, 0));
    });
}

/// Tails were in segments and their memory was free, but the manifest had no space to say so: the pump was not told of
/// the memory.
#[test]
fn groups_go_on_when_tails_are_in_segments_whatever_becomes_of_the_note() {
    let sim = Sim::new(1);
    sim.run_until(async {
        let (store, id) = open_one(&sim, &[], 1_200_000).await;
        sim.watch(|op| match op.kind == OpKind::Write && op.path.to_string_lossy().contains("manifest") {
            true => Verdict::Fail(std::io::ErrorKind::StorageFull),
            false => Verdict::Go,
        });
        // of different partitions: no run is fat
        let ids = (0..40).map(|partition| TopicPartition { partition, ..id });
        ids.clone().for_each(|id| store.put_partition(id, config(&[])));
        let waits: Vec<_> = ids.map(|id| append(&store, id, 100_000)).collect();
        assert!(soon(&store, join_all(waits.into_iter().map(|wait| wait.wait()))).await.is_some());
        assert!(store.live_bytes.get() < 4_000_000);
    });
}

/// What must not happen is seen when it does.
#[test]
fn a_log_that_stands_by_a_fault_is_noted_until_it_goes_on() {
    let sim = Sim::new(1);
    sim.run_until(async {
        let (store, id) = open_one(&sim, &[], 8 << 20).await;
        append(&store, id, 100).wait().await.unwrap();
        let cell = store.partition(id).unwrap();
        cell.borrow_mut().set_appending(Appending::Keeper); // as if a round had forgotten it
        let other = TopicPartition { topic: Uuid::from_u128(2), partition: 0 };
        store.put_partition(other, config(&[]));
        let waits: Vec<_> = (0..100).map(|_| append(&store, other, 100_000)).collect();
        let mut all = Box::pin(join_all(waits.into_iter().map(|wait| wait.wait())));
        assert!(soon(&store, &mut all).await.is_none());
        assert!(store.standing.get());
        cell.borrow_mut().set_appending(Appending::Nobody);
        store.keeper.notify();
        assert!(soon(&store, &mut all).await.is_some());
        assert!(!store.standing.get());
    });
}
