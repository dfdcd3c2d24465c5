//! Stalls as a shard's log really has them, on a disk that stops or crawls.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    path::Path,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use uuid::Uuid;

use super::{Known, Left, Owed, Store, StoreOptions, append::Wait};
use crate::{
    api::{Acks, ProducePartition, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record},
    config::TopicConfig,
    io::{
        Io, Share,
        sim::{Op, OpKind, Sim, SimIo, Verdict},
    },
    stall::{Change, Waiting},
};

/// Three files of the smallest size.
const WAL_BYTES: u64 = 6 << 20;

fn partition(index: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(9), partition: index }
}

type Told = Rc<RefCell<Vec<Change<Waiting>>>>;

/// A shard with two partitions whose log is looked at every second.
struct Shard {
    store: Rc<Store<SimIo>>,
    io: SimIo,
    told: Told,
}

impl Shard {
    async fn open(io: SimIo, flush_messages: &str) -> Shard {
        io.create_dir(Path::new("/d")).await.unwrap();
        let overrides = BTreeMap::from([("flush.messages".to_owned(), flush_messages.to_owned())]);
        let config = Rc::new(TopicConfig::parse(&BTreeMap::new(), &overrides).unwrap());
        let known: Known = (0..2).map(|index| (partition(index), config.clone())).collect();
        let options = StoreOptions {
            cache_bytes: 24 << 20,
            wal_bytes: WAL_BYTES,
            reserve_bytes: 1 << 20,
            owed: Owed::new(1, WAL_BYTES),
            ..StoreOptions::of_test(1)
        };
        let store = Store::open(io.clone(), options, &known).await.unwrap_or_else(|error| panic!("{error}"));
        let shard = Shard { store, io, told: Told::default() };
        let (store, told, io) = (shard.store.clone(), shard.told.clone(), shard.io.clone());
        shard.io.spawn(Share::Serving, async move {
            loop {
                io.sleep(Duration::from_secs(1)).await;
                told.borrow_mut().extend(store.look_for_stalls());
            }
        });
        shard.wait(5).await; // files of the log are made
        shard
    }

    async fn wait(&self, seconds: u64) {
        self.io.sleep(Duration::from_secs(seconds)).await;
    }

    fn take(&self, index: i32, size: usize) -> Wait {
        let mut builder = BatchBuilder::new(Codec::None, 0);
        let value = Some(Bytes::from(vec![b'x'; size]));
        builder.push(&Record { offset: 0, timestamp: 1000, key: None, value, headers: vec![] });
        let part = ProducePartition { partition: partition(index), batch: builder.finish().into() };
        let (_, wait) =
            self.store.append(part, AppendOrigin::Client, Acks::All).appended().now_or_never().unwrap().unwrap();
        wait.unwrap()
    }

    fn told(&self) -> Vec<Change<Waiting>> {
        self.told.borrow().clone()
    }

    fn standing(&self) -> String {
        self.store.standing(|id| format!("topic-{}", id.partition)).to_string()
    }
}

fn live<F: Future<Output = ()>>(sim: &Sim, flush_messages: &str, body: impl FnOnce(Shard) -> F) {
    let io = sim.io();
    sim.run_until(async { body(Shard::open(io, flush_messages).await).await }).unwrap();
}

/// While the cell says so, operations that it is asked of take that much longer.
fn late_while(sim: &Sim, is_late: &Rc<Cell<bool>>, by: Duration, which: fn(&Op<'_>) -> bool) {
    let is_late = is_late.clone();
    sim.watch(move |op| if is_late.get() && which(op) { Verdict::Late(by) } else { Verdict::Go });
}

fn is_of_log(op: &Op<'_>) -> bool {
    op.path.extension().is_some_and(|extension| extension == "wal")
}

#[test]
fn a_write_that_does_not_end_is_told_once_with_who_waits_and_once_when_it_is_over() {
    let (sim, stopped) = (Sim::new(1), Rc::new(Cell::new(false)));
    late_while(&sim, &stopped, Duration::from_secs(100), is_of_log);
    live(&sim, "1", |shard| async move {
        stopped.set(true);
        let first = shard.take(0, 100);
        shard.wait(1).await;
        stopped.set(false);
        let second = shard.take(1, 100);
        shard.wait(60).await;
        let told = shard.told();
        assert!(matches!(told[..], [Change::Begun { who: Waiting::Group, .. }]), "{told:?}");
        assert!(shard.store.is_stalled());
        let stats = shard.store.stats();
        assert!(stats.is_stalled && stats.stalls == 1 && stats.oldest_group_seconds > 50, "{stats:?}");
        let standing = shard.standing();
        assert!(standing.starts_with("groups: 1 of"), "{standing}");
        assert!(standing.contains("[Writing] at the disk") && standing.contains("keeper: sleeps"), "{standing}");
        assert!(standing.contains("is held by topic-0 (1)"), "{standing}");
        first.wait().await.unwrap();
        second.wait().await.unwrap();
        shard.wait(2).await;
        let told = shard.told();
        let [Change::Begun { .. }, Change::Over { who: Waiting::Group, lasted }] = told[..] else {
            panic!("{told:?}");
        };
        assert!((95..=101).contains(&lasted.as_secs()), "{lasted:?}");
        assert!(!shard.store.stats().is_stalled);
    });
}

#[test]
fn a_flush_of_written_records_that_does_not_end_is_told() {
    let (sim, stopped) = (Sim::new(2), Rc::new(Cell::new(false)));
    late_while(&sim, &stopped, Duration::from_secs(1 << 30), |op| op.kind == OpKind::Flush);
    live(&sim, "1000", |shard| async move {
        shard.take(0, 100).wait().await.unwrap();
        stopped.set(true);
        let store = shard.store.clone();
        shard.io.spawn(Share::Background, async move { drop(store.flush_written().await) });
        shard.wait(60).await;
        let told = shard.told();
        assert!(matches!(told[..], [Change::Begun { who: Waiting::Flush, .. }]), "{told:?}");
    });
}

#[test]
fn a_file_that_is_not_made_is_told_before_anybody_needs_it() {
    let (sim, stopped) = (Sim::new(3), Rc::new(Cell::new(true)));
    late_while(&sim, &stopped, Duration::from_secs(1 << 30), |op| {
        op.path.extension().is_some_and(|extension| extension == "making") && op.kind == OpKind::Write
    });
    live(&sim, "1", |shard| async move {
        shard.wait(10).await;
        let told = shard.told();
        assert!(matches!(told[..], [Change::Begun { who: Waiting::LogFile, .. }]), "{told:?}");
        assert!(shard.standing().contains("one in the making lacks"), "{}", shard.standing());
    });
}

#[test]
fn a_round_that_stands_still_holds_the_log_up_and_says_so() {
    let (sim, stopped) = (Sim::new(4), Rc::new(Cell::new(false)));
    late_while(&sim, &stopped, Duration::from_secs(1 << 30), |op| {
        op.kind == OpKind::Flush && op.path.extension().is_some_and(|extension| extension == "log")
    });
    live(&sim, "1", |shard| async move {
        stopped.set(true);
        for _ in 0..100 {
            shard.take(0, 100_000); // one by one: large runs would not go through the log
            shard.io.sleep(Duration::from_millis(50)).await;
        }
        shard.wait(60).await;
        let told = shard.told();
        assert!(matches!(told[..], [Change::Begun { .. }]), "{told:?}");
        let standing = shard.standing();
        assert!(standing.contains("the pump lacks room") && standing.contains("to segments"), "{standing}");
        assert!(standing.contains("is held by topic-0"), "{standing}");
        assert!(shard.store.left().bytes > WAL_BYTES / 2 && shard.store.left().partitions == 1);
    });
}

#[test]
fn a_disk_that_crawls_is_no_stall() {
    for seed in 5..10 {
        let (sim, slow) = (Sim::new(seed), Rc::new(Cell::new(false)));
        late_while(&sim, &slow, Duration::from_secs(2), |op| op.kind.changes_disk());
        live(&sim, "1", |shard| async move {
            slow.set(true);
            for round in 0..100 {
                let wait = shard.take(round % 2, 150_000);
                if round % 10 == 0 {
                    wait.wait().await.unwrap();
                }
            }
            shard.wait(300).await;
            assert_eq!(shard.told(), []);
            slow.set(false);
            shard.store.close().await;
            assert_eq!(shard.store.left(), Left::default());
        });
    }
}

#[test]
fn a_full_disk_is_no_stall() {
    for seed in 10..20 {
        let sim = &Sim::new(seed);
        live(sim, "1", |shard| async move {
            shard.wait(1).await;
            // what it owes to the log, and no block for segments
            sim.set_free_bytes(4096);
            let taken: Vec<_> = (0..60).map(|_| shard.take(0, 100_000)).collect();
            shard.wait(120).await;
            assert!(shard.store.stats().is_full);
            assert_eq!(shard.told(), [], "{}", shard.standing());
            sim.set_free_bytes(1 << 30);
            for wait in taken {
                wait.wait().await.unwrap();
            }
            shard.wait(10).await;
            assert_eq!(shard.told(), []);
        });
    }
}
