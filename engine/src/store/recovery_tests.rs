//! Single steps of the argument in FORMAT.md, each on a disk that loses power, fails or fills where it would hurt.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{join, join_all},
};
use uuid::Uuid;

use super::{Known, Owed, Store, StoreOptions, append::Wait};
use crate::{
    api::{Acks, FetchPartition, LogError, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record, batches, records},
    config::TopicConfig,
    io::{
        Io,
        sim::{OpKind, Sim, SimIo, Verdict},
    },
};

/// Larger than what takes the fat path.
pub(super) const FAT: usize = 300_000;
const WAL_BYTES: u64 = 16 << 20;
const WRITTEN: &[(&str, &str)] = &[("flush.messages", "1000")];
pub(super) const DEVICE: &[(&str, &str)] = &[];

pub(super) fn partition(index: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(9), partition: index }
}

/// A machine and the settings of its partitions.
pub(super) struct Machine {
    pub(super) sim: Sim,
    pub(super) known: Known,
    run: Cell<u64>,
    pub(super) reserve_bytes: u64,
    /// Of the node; one is opened.
    shards: usize,
    cache_bytes: Cell<usize>,
}

impl Machine {
    pub(super) fn new(seed: u64, settings: &[&[(&str, &str)]]) -> Self {
        let sim = Sim::new(seed);
        sim.run_until(sim.io().create_dir(Path::new("/d"))).unwrap().unwrap();
        let config = |settings: &&[(&str, &str)]| {
            let overrides = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            Rc::new(TopicConfig::parse(&BTreeMap::new(), &overrides).unwrap())
        };
        let known = (0..).zip(settings).map(|(at, settings)| (partition(at), config(settings))).collect();
        Self { sim, known, run: Cell::new(0), reserve_bytes: 0, shards: 1, cache_bytes: Cell::new(24 << 20) }
    }

    pub(super) fn options(&self, run: u64) -> StoreOptions {
        StoreOptions {
            cache_bytes: self.cache_bytes.get(),
            wal_bytes: WAL_BYTES,
            reserve_bytes: self.reserve_bytes,
            owed: Owed::new(self.shards, WAL_BYTES),
            ..StoreOptions::of_test(run)
        }
    }

    /// A start that is not to serve: its number, and its disk.
    pub(super) fn next_run(&self) -> (u64, SimIo) {
        let run = self.run.replace(self.run.get() + 1) + 1;
        (run, if run == 1 { self.sim.io() } else { self.sim.restart() })
    }

    /// Runs a life on what the last one left.
    pub(super) fn live<F: Future<Output = ()>>(&self, body: impl FnOnce(Rc<Store<SimIo>>) -> F) {
        let (run, io) = self.next_run();
        let options = self.options(run);
        let life = async {
            let store = Store::open(io, options, &self.known).await.unwrap_or_else(|error| panic!("{error}"));
            body(store).await;
        };
        self.sim.run_until(life).unwrap();
    }
}

fn value(index: i32, offset: i64, size: usize) -> Vec<u8> {
    let mut value = format!("{index}/{offset}/").into_bytes();
    value.resize(value.len() + size, b'a' + u8::try_from(offset % 26).unwrap());
    value
}

/// Takes a batch of one record.
fn take(store: &Store<SimIo>, index: i32, size: usize) -> Option<Wait> {
    try_take(store, index, size).unwrap()
}

pub(super) fn try_take(store: &Store<SimIo>, index: i32, size: usize) -> Result<Option<Wait>, LogError> {
    try_take_of(store, index, size, 1000)
}

fn try_take_of(store: &Store<SimIo>, index: i32, size: usize, timestamp: i64) -> Result<Option<Wait>, LogError> {
    let offset = store.partition(partition(index)).unwrap().borrow().marks().end();
    let mut builder = BatchBuilder::new(Codec::None, 0);
    let value = Some(Bytes::from(value(index, offset, size)));
    builder.push(&Record { offset: 0, timestamp, key: None, value, headers: vec![] });
    let part = ProducePartition { partition: partition(index), batch: builder.finish().into() };
    let (produced, wait) =
        store.append(part, AppendOrigin::Client, Acks::All).appended().now_or_never().expect("nothing waits")?;
    assert_eq!(produced.base_offset, offset);
    Ok(wait)
}

pub(super) async fn acknowledged(wait: Option<Wait>) -> Result<(), LogError> {
    match wait {
        Some(wait) => wait.wait().await,
        None => Ok(()),
    }
}

pub(super) async fn produce(store: &Store<SimIo>, index: i32, size: usize) {
    acknowledged(take(store, index, size)).await.unwrap();
}

/// Has the keeper look at a partition.
fn note(store: &Store<SimIo>, index: i32) {
    let cell = store.partition(partition(index)).unwrap();
    store.keeper.look_at(cell);
    store.keeper.notify();
}

/// Reads a partition from its log start on: every record is what it was, up to the end that is answered.
pub(super) async fn check(store: &Store<SimIo>, index: i32) -> i64 {
    let (start, end) = store.bounds(partition(index)).unwrap();
    let mut offset = start;
    while offset < end {
        let part = FetchPartition {
            partition: partition(index),
            offset,
            max_bytes: 1 << 20,
            leader_epoch: -1,
            bound: ReadBound::HighWatermark,
        };
        let fetched = store.read(&part, 1 << 20, true).await.unwrap();
        assert!(!fetched.records.chunks.is_empty(), "nothing at {offset} of {end}");
        for chunk in fetched.records.chunks {
            for batch in batches(chunk.as_slice().unwrap()) {
                let (_, batch) = batch.unwrap();
                let record = records(batch).unwrap().remove(0);
                let found = record.value.unwrap();
                assert_eq!(record.offset, offset);
                assert!(found == value(index, offset, found.len() - value(index, offset, 0).len()), "offset {offset}");
                offset += 1;
            }
        }
    }
    end
}

#[test]
fn a_flushed_group_takes_the_fat_runs_before_it_along() {
    for seed in 0..60 {
        let machine = Machine::new(seed, &[WRITTEN, DEVICE]);
        machine.live(async |store| {
            produce(&store, 0, FAT).await;
            produce(&store, 1, 10).await;
            produce(&store, 1, 10).await;
        });
        machine.sim.crash();
        machine.live(async |store| {
            assert_eq!(check(&store, 1).await, 2);
            assert_eq!(check(&store, 0).await, 1, "what was before a durable group is durable");
        });
    }
}

#[test]
fn what_is_called_durable_with_flush_written_is_so() {
    for seed in 0..60 {
        let machine = Machine::new(seed, &[WRITTEN]);
        machine.live(async |store| {
            produce(&store, 0, FAT).await;
            produce(&store, 0, 10).await;
            store.flush_written().await.unwrap();
        });
        machine.sim.crash();
        machine.live(async |store| assert_eq!(check(&store, 0).await, 2));
    }
}

#[test]
fn what_a_restart_found_survives_the_next_power_cut() {
    for seed in 0..60 {
        let machine = Machine::new(seed, &[WRITTEN, DEVICE]);
        machine.live(async |store| produce(&store, 0, 10).await);
        machine.sim.kill();
        machine.live(async |store| {
            assert_eq!(check(&store, 0).await, 1, "the process died, not the power");
            let waits = [take(&store, 0, 10), take(&store, 1, 10)];
            for ended in join_all(waits.map(acknowledged)).await {
                ended.unwrap();
            }
        });
        machine.sim.crash();
        machine.live(async |store| {
            assert_eq!(check(&store, 0).await, 2);
            assert_eq!(check(&store, 1).await, 1);
        });
    }
}

#[test]
fn what_was_never_acknowledged_keeps_no_later_life_from_starting() {
    for seed in 0..150 {
        let machine = Machine::new(seed, &[DEVICE, DEVICE]);
        for _ in 0..3 {
            machine.live(async |store| {
                let kept = store.partition(partition(0)).unwrap().borrow().marks().end();
                produce(&store, 1, 10).await;
                for size in [10, FAT, 10, FAT] {
                    drop(take(&store, 0, size));
                    store.io.sleep(Duration::from_micros(20 * (seed % 8))).await;
                }
                assert!(kept <= check(&store, 0).await);
            });
            machine.sim.crash();
            for _ in 0..3 {
                // Nothing is produced, so that the shared log is wiped and forgotten.
                machine.live(async |store| {
                    store.materialise_all().await;
                    store.io.sleep(Duration::from_secs(1)).await;
                });
                machine.sim.kill();
            }
        }
    }
}

#[test]
fn the_manifest_never_knows_more_than_was_flushed() {
    for seed in 0..60 {
        let machine = Machine::new(seed, &[WRITTEN]);
        machine.live(async |store| {
            let notes = async {
                loop {
                    note(&store, 0);
                    store.materialise_all().await;
                    store.io.sleep(Duration::from_micros(200)).await;
                }
            };
            let appends = async {
                for _ in 0..10 {
                    produce(&store, 0, FAT).await;
                }
            };
            futures_util::future::select(Box::pin(notes), Box::pin(appends)).await;
        });
        machine.sim.crash();
        machine.live(async |store| assert!(check(&store, 0).await <= 10));
    }
}

#[test]
fn the_reserve_stays_whatever_is_appended_between_two_looks_at_the_disk() {
    for (size, files) in [(100_000, 2), (FAT, 4)] {
        let mut machine = Machine::new(1, &[&[("segment.bytes", "1048576")]]);
        machine.reserve_bytes = 4 << 20;
        machine.live(async |store| {
            produce(&store, 0, 10).await;
            let room = store.options.wal_file_bytes() * files;
            machine.sim.set_free_bytes(machine.reserve_bytes + room);
            while !store.full.get() {
                acknowledged(take(&store, 0, size)).await.unwrap();
            }
            assert!(store.partition(partition(0)).unwrap().borrow().marks().end() > 10);
            store.materialise_all().await;
            let free = store.io.free_bytes(Path::new("/d")).unwrap();
            assert!(free > machine.reserve_bytes / 4 * 3, "{free} bytes are left after records of {size} bytes");
        });
    }
}

#[test]
fn records_can_be_deleted_without_a_free_byte() {
    let mut machine = Machine::new(1, &[&[("segment.bytes", "1048576")]]);
    machine.reserve_bytes = 500_000;
    machine.live(async |store| {
        for _ in 0..6 {
            produce(&store, 0, FAT).await;
        }
        store.materialise_all().await;
        machine.sim.set_free_bytes(0);
        store.check_space();
        assert_eq!(try_take(&store, 0, 10).unwrap_err(), LogError::StorageFull);
        for before in 1..=6 {
            assert_eq!(store.trim(partition(0), before).await, Ok(before));
        }
        store.io.sleep(Duration::from_secs(2)).await;
        store.check_space();
        produce(&store, 0, 10).await;
    });
}

#[test]
fn a_log_without_room_for_its_files_takes_nothing() {
    for (shards, files) in [(1, 2), (3, 6)] {
        let mut machine = Machine::new(1, &[DEVICE]);
        (machine.reserve_bytes, machine.shards) = (1 << 20, shards);
        let wanted = machine.reserve_bytes + files * StoreOptions::bytes_to_go_round(WAL_BYTES) / 2;
        machine.sim.set_free_bytes(wanted);
        machine.live(async |store| {
            assert_eq!(try_take(&store, 0, 10).unwrap_err(), LogError::StorageFull, "the manifest took some");
            store.io.sleep(Duration::from_secs(1)).await;
            machine.sim.set_free_bytes(wanted + machine.reserve_bytes);
            store.check_space();
            produce(&store, 0, 10).await;
        });
    }
}

#[test]
fn retention_goes_on_without_a_free_byte_for_the_tail() {
    let settings: &[_] = &[("segment.bytes", "1048576"), ("retention.bytes", "1000000")];
    let machine = Machine::new(1, &[settings]);
    machine.live(async |store| {
        for _ in 0..9 {
            produce(&store, 0, FAT).await;
        }
        produce(&store, 0, 100_000).await;
        machine.sim.set_free_bytes(0);
        store.materialise_all().await;
        assert!(store.has_live(), "the tail found no space");
        store.retain(1_000_000).await;
        assert!(store.bounds(partition(0)).unwrap().0 > 0);
    });
}

#[test]
fn what_was_there_comes_to_segments_though_producers_never_rest() {
    let machine = Machine::new(1, &[DEVICE, DEVICE]);
    machine.live(async |store| {
        produce(&store, 1, 10).await;
        let load = join_all((0..50).map(async |_| {
            for _ in 0..200 {
                produce(&store, 0, 2_000).await;
            }
        }));
        let all = store.materialise_all();
        let first = futures_util::future::select(Box::pin(load), Box::pin(all)).await;
        assert!(matches!(first, futures_util::future::Either::Right(_)));
        assert_eq!(store.partition(partition(1)).unwrap().borrow().marks().materialised(), 1);
    });
}

#[test]
fn a_note_that_found_no_space_is_made_up_for() {
    for seed in 0..10 {
        let machine = Machine::new(seed, &[&[("internal.segment.bytes", "1000000")], DEVICE]);
        machine.live(async |store| {
            produce(&store, 1, 10).await;
            let mut refused = 0;
            machine.sim.watch(move |op| {
                let note = op.kind == OpKind::Write && op.path.to_str().unwrap().contains("manifest");
                refused += u64::from(note);
                if note && refused <= 2 { Verdict::Fail(ErrorKind::StorageFull) } else { Verdict::Go }
            });
            for _ in 0..8 {
                while store.full.get() {
                    store.io.sleep(Duration::from_secs(1)).await;
                }
                produce(&store, 0, FAT).await;
                note(&store, 0);
                store.io.sleep(Duration::from_millis(20)).await;
            }
            while store.has_live() {
                store.materialise_all().await; // gives up when there is no space
            }
            store.close().await;
            assert!(store.wal.borrow().oldest_holders().next().is_none(), "the shared log is not needed for anything");
        });
        machine.sim.crash();
        machine.live(async |store| {
            assert_eq!(check(&store, 0).await, 8);
            assert_eq!(check(&store, 1).await, 1);
        });
    }
}

#[test]
fn a_rewritten_manifest_knows_every_index_entry_once() {
    let machine = Machine::new(1, &[DEVICE, DEVICE]);
    machine.live(async |store| {
        for round in 0..200 {
            if round % 20 == 0 {
                produce(&store, 0, FAT).await; // not noted by itself
            }
            produce(&store, 1, 10).await;
            note(&store, 1);
            store.io.sleep(Duration::from_millis(10)).await;
        }
        store.materialise_all().await;
    });
    machine.sim.crash();
    machine.live(async |store| {
        assert_eq!(check(&store, 0).await, 10);
        assert_eq!(check(&store, 1).await, 200);
        let cell = store.partition(partition(0)).unwrap();
        let index = cell.borrow().segments().all()[0].index.clone().unwrap();
        assert!(index.len() >= 10);
        assert!(index.windows(2).all(|pair| pair[0].position.get() < pair[1].position.get()), "{index:?}");
    });
}

#[test]
fn a_fat_run_that_comes_during_a_trim_is_kept() {
    for seed in 0..60 {
        let machine = Machine::new(seed, &[DEVICE]);
        machine.live(async |store| {
            produce(&store, 0, FAT).await;
            store.materialise_all().await;
            let trim = store.trim(partition(0), 1);
            let append = async {
                store.io.sleep(Duration::from_micros(seed * 20)).await;
                produce(&store, 0, FAT).await;
                produce(&store, 0, 10).await;
            };
            let (trimmed, ()) = join(trim, append).await;
            assert_eq!(trimmed.unwrap(), 1);
            assert_eq!(check(&store, 0).await, 3);
        });
        machine.sim.crash();
        machine.live(async |store| assert_eq!(check(&store, 0).await, 3));
    }
}

#[test]
fn a_trim_that_comes_during_a_fat_run_is_done_after_it() {
    for seed in 0..50 {
        let machine = Machine::new(seed, &[DEVICE]);
        machine.live(|store| async move {
            produce(&store, 0, 100).await;
            let append = take(&store, 0, FAT);
            let trim = async {
                // the run is on its way then; nothing else comes that would wake the keeper
                store.io.sleep(Duration::from_micros(seed * 10)).await;
                assert_eq!(store.trim(partition(0), 1).await, Ok(1));
            };
            join(trim, acknowledged(append)).await.1.unwrap();
        });
    }
}

#[test]
fn deleting_a_partition_under_way_harms_nobody_else() {
    for seed in 0..60 {
        let machine = Machine::new(seed, &[DEVICE, DEVICE]);
        machine.live(async |store| {
            produce(&store, 0, FAT).await;
            let mut flying = Vec::new();
            for index in [0, 1, 0, 0] {
                flying.push(take(&store, index, FAT));
                store.io.sleep(Duration::from_micros(1 + seed * 5)).await;
            }
            let removed = store.remove_partition(partition(0));
            join_all(flying.into_iter().map(acknowledged)).await;
            removed.unwrap().wait().await;
            assert_eq!(*store.failed.borrow(), None);
            produce(&store, 1, 10).await;
            assert_eq!(check(&store, 1).await, 2);
        });
    }
}

/// A round that was writing the segment of a partition opened it again after the deletion had closed it, and it stayed
/// open, with its space.
#[test]
fn a_partition_deleted_while_it_is_materialised_leaves_no_file_open() {
    for seed in 0..60 {
        let machine = Machine::new(seed, &[DEVICE]);
        machine.live(async |store| {
            for _ in 0..8 {
                produce(&store, 0, 200_000).await;
            }
            store.io.sleep(Duration::from_micros(1 + seed * 20)).await;
            store.remove_partition(partition(0)).unwrap().wait().await;
            assert_eq!(*store.failed.borrow(), None);
            assert_eq!(store.segments.open_count(), 0, "seed {seed}");
        });
        assert_eq!(
            machine.sim.files().iter().filter(|path| path.extension().is_some_and(|end| end == "log")).count(),
            0
        );
    }
}

/// What an append that was cut short had left behind a segment's end stood there still when the segment ended without
/// another batch: a recovery that reads on to the footer took it for one.
#[test]
fn nothing_stands_between_a_segment_s_last_batch_and_its_footer() {
    let machine = Machine::new(1, &[&[("segment.ms", "1000")]]);
    let segment = Cell::new((0, 0));
    let mut path = PathBuf::new();
    machine.live(async |store| {
        produce(&store, 0, 10).await;
        store.materialise_all().await;
        let active = store.partition(partition(0)).unwrap().borrow().segments().all()[0].clone();
        segment.set((active.size, active.footer_position()));
        path = store.segments.path(partition(0), active.name());
        store.close().await;
    });
    let (end, footer) = segment.get();
    machine.sim.corrupt(&path, end, 0xff);
    machine.live(async |store| {
        acknowledged(try_take_of(&store, 0, 10, 3000).unwrap()).await.unwrap();
        store.materialise_all().await;
        assert!(store.partition(partition(0)).unwrap().borrow().segments().all()[0].sealed);
    });
    let file = machine.sim.file(&path).unwrap();
    let between = &file[usize::try_from(end).unwrap()..usize::try_from(footer).unwrap()];
    assert!(between.iter().all(|byte| *byte == 0));
}

/// A start put all that was in the log only into memory, however little of it there was now.
#[test]
fn a_start_with_less_memory_than_lives_in_the_log_stays_within_it() {
    const LEFT: usize = 1 << 20;
    for (seed, without_space) in (0..6).zip([false, false, true].into_iter().cycle()) {
        let machine = Machine::new(seed, &[DEVICE; 12]);
        machine.live(async |store| {
            for index in (0..12).cycle().take(48) {
                // Files of the log are made meanwhile: a log that is short of them brings its tails to segments.
                store.io.sleep(Duration::from_millis(100)).await;
                produce(&store, index, 200_000).await;
            }
            let live = store.live_bytes.get();
            assert!(live > 3 * LEFT, "{live} bytes live in the log only");
        });
        machine.sim.kill();
        machine.cache_bytes.set(LEFT);
        if without_space {
            machine.sim.set_free_bytes(4 << 20); // for the manifest
        }
        for _ in 0..2 {
            machine.live(async |store| {
                let cached = store.cache.borrow().bytes();
                assert!(cached <= LEFT || without_space, "{cached} bytes in memory");
                for index in 0..12 {
                    assert_eq!(check(&store, index).await, 4);
                }
            });
            machine.sim.crash();
        }
    }
}

/// Whatever group of the log is lost, a start says so if it was durable, and what can be read comes to segments without it.
#[test]
fn what_a_damaged_log_gives_back_is_salvaged() {
    for lost in 0..12 {
        salvage_without(lost, &[10]);
        salvage_without(lost, &[10, FAT, 10, 10, FAT]);
    }
}

/// Loses one of twelve groups of three partitions, which got records of these sizes in turn.
fn salvage_without(lost: u64, sizes: &'static [usize]) {
    let log = Path::new("/d/wal-0/00000001.wal");
    let has_fat = sizes.contains(&FAT);
    let machine = Machine::new(lost, &[DEVICE, DEVICE, DEVICE]);
    machine.live(async |store| {
        for (at, size) in (0..12).zip(sizes.iter().cycle()) {
            produce(&store, at % 3, *size).await;
        }
    });
    machine.sim.crash();
    let was_durable = lost < 11; // nobody saw the last one durable
    machine.sim.corrupt(log, lost * 4096 + 80, 1);
    let (run, io) = machine.next_run();
    let (hurt, hole) = (i32::try_from(lost % 3).unwrap(), i64::try_from(lost / 3).unwrap());
    let salvage = async {
        let doubts = Store::doubts(&io, &machine.options(run), &machine.known).await.unwrap();
        assert_eq!(doubts.is_empty(), !was_durable, "group {}", lost + 1);
        for doubt in doubts.partitions.iter().filter(|_| !has_fat) {
            assert_eq!((doubt.id.partition, doubt.from, doubt.found, doubt.until), (hurt, hole, hole + 1, 4));
        }
        // The last records of a partition leave no trace; a later run that went to the segment brings them along.
        assert!(has_fat || doubts.partitions.len() == usize::from(lost < 9), "{doubts}");
        let opened = Store::open(io.clone(), machine.options(run), &machine.known).await;
        assert_eq!(opened.is_err(), was_durable);
        if was_durable {
            let files = Store::salvage(io.clone(), machine.options(run), &machine.known).await.unwrap();
            for file in files {
                io.remove(&file).await.unwrap();
            }
            io.sync_dir(log.parent().unwrap()).await.unwrap();
        }
    };
    machine.sim.run_until(salvage).unwrap();
    machine.sim.crash();
    for more in 0..2 {
        machine.live(async |store| {
            for index in 0..3 {
                let end = check(&store, index).await;
                let kept = if index == hurt { hole..=4 } else { 4..=4 };
                assert!(kept.contains(&(end - more)), "partition {index} ends at {end} without group {}", lost + 1);
                produce(&store, index, 10).await;
            }
        });
        machine.sim.crash();
    }
}
