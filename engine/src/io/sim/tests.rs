//! What the simulation promises, first of all: same seed, same trace.

use std::{cell::Cell, collections::BTreeSet, time::Duration};

use super::{disk::SimBuffer, handle::SimFile, *};
use crate::{
    format::journal::{self, Journal},
    io::{BLOCK, Buffer, File, Io, Open, Share},
};

fn path(name: &str) -> std::path::PathBuf {
    Path::new("/d").join(name)
}

fn filled(io: &SimIo, blocks: usize, fill: u8) -> Rc<SimBuffer> {
    let mut buffer = io.buffer(blocks * BLOCK);
    buffer.bytes_mut().fill(fill);
    Rc::new(buffer)
}

/// A machine whose process has the directory /d.
fn machine(seed: u64) -> (Sim, SimIo) {
    let sim = Sim::new(seed);
    let io = sim.io();
    sim.run_until(io.create_dir(Path::new("/d"))).unwrap().unwrap();
    (sim, io)
}

/// A file whose first blocks are durable and full of `fill`, its name too.
async fn durable_file(io: &SimIo, name: &str, blocks: usize, fill: u8) -> SimFile {
    let file = io.open(&path(name), Open::Write).await.unwrap();
    file.write(filled(io, blocks, fill), 0).await.unwrap();
    file.flush().await.unwrap();
    io.sync_dir(Path::new("/d")).await.unwrap();
    file
}

/// Several tasks that write, flush, rename and sleep, over a crash.
fn busy_run(seed: u64) -> (String, Vec<Option<Vec<u8>>>) {
    let (sim, io) = machine(seed);
    for task in 0..4u8 {
        let own = io.clone();
        io.spawn(Share::Serving, async move {
            let name = format!("file-{task}");
            let file = own.open(&path(&name), Open::Write).await.unwrap();
            for round in 0..20u8 {
                file.write(filled(&own, 3, round), u64::from(round) * BLOCK as u64).await.unwrap();
                if round % 3 == task % 3 {
                    file.flush().await.unwrap();
                }
                own.sleep(Duration::from_micros(u64::from(task) * 100)).await;
                own.yield_now().await;
            }
            own.rename(&path(&name), &path(&format!("done-{task}"))).await.unwrap();
        });
    }
    sim.crash_after(70);
    assert_eq!(sim.run_until(io.sleep(Duration::from_secs(1_000))), None);
    let io = sim.restart();
    sim.run_until(async {
        let mut names = io.list(Path::new("/d")).await.unwrap();
        names.sort();
        names.len()
    });
    let files = sim.files().iter().map(|path| sim.file(path)).collect();
    (sim.trace(), files)
}

#[test]
fn the_same_seed_gives_the_same_trace_and_the_same_disk() {
    for seed in 0..20 {
        let (trace, files) = busy_run(seed);
        assert!(trace.lines().count() > 100);
        assert_eq!((trace.clone(), files), busy_run(seed));
        assert_ne!(trace, busy_run(seed + 1_000).0);
    }
}

#[test]
fn what_was_flushed_survives_and_anything_may_become_of_the_rest() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let (sim, io) = machine(seed);
        sim.run_until(async {
            let file = durable_file(&io, "a", 4, 1).await;
            file.write(filled(&io, 2, 2), 0).await.unwrap();
            file.flush().await.unwrap();
            file.write(filled(&io, 1, 3), 0).await.unwrap();
            file.write(filled(&io, 1, 4), BLOCK as u64 * 3).await.unwrap();
        });
        sim.crash();
        sim.restart();
        let bytes = sim.file(path("a")).unwrap();
        assert!(bytes[BLOCK..2 * BLOCK].iter().all(|&byte| byte == 2), "flushed");
        assert!(bytes[2 * BLOCK..3 * BLOCK].iter().all(|&byte| byte == 1), "flushed before");
        let state = |bytes: &[u8], old: u8, new: u8| {
            assert!(bytes.chunks(512).all(|sector| sector.iter().all(|&byte| byte == sector[0])), "sectors are whole");
            assert!(bytes.iter().all(|&byte| byte == old || byte == new));
            match (bytes.contains(&old), bytes.contains(&new)) {
                (true, true) => "torn",
                (true, false) => "lost",
                _ => "kept",
            }
        };
        seen.insert((state(&bytes[..BLOCK], 2, 3), state(&bytes[3 * BLOCK..], 1, 4)));
    }
    let all = ["torn", "lost", "kept"];
    let every: BTreeSet<_> = all.iter().flat_map(|&a| all.iter().map(move |&b| (a, b))).collect();
    assert_eq!(seen, every, "also the later write without the earlier one");
}

#[test]
fn a_durable_write_survives_and_is_not_undone_by_an_older_one() {
    for seed in 0..200 {
        let (sim, io) = machine(seed);
        sim.run_until(async {
            let plain = durable_file(&io, "a", 1, 1).await;
            plain.write(filled(&io, 1, 2), 0).await.unwrap();
            let durable = io.open(&path("a"), Open::WriteDurable).await.unwrap();
            durable.write(filled(&io, 1, 3), 0).await.unwrap();
        });
        sim.crash();
        sim.restart();
        assert!(sim.file(path("a")).unwrap().iter().all(|&byte| byte == 3));
    }
}

#[test]
fn a_flush_covers_only_what_had_completed_when_it_was_called() {
    let mut lost = 0;
    for seed in 0..200 {
        let (sim, io) = machine(seed);
        sim.run_until(async {
            let file = durable_file(&io, "a", 2, 1).await;
            let late = file.write(filled(&io, 1, 2), 0);
            futures_util::future::join(file.flush(), late).await.1.unwrap();
        });
        sim.crash();
        sim.restart();
        lost += usize::from(sim.file(path("a")).unwrap()[0] == 1);
    }
    assert!(lost > 20, "{lost}");
}

#[test]
fn a_lengthened_file_may_have_any_length_and_zeroes_for_what_was_lost() {
    let mut lengths = BTreeSet::new();
    let mut zeroes = false;
    for seed in 0..300 {
        let (sim, io) = machine(seed);
        sim.run_until(async {
            let file = durable_file(&io, "a", 1, 1).await;
            file.write(filled(&io, 3, 2), BLOCK as u64).await.unwrap();
        });
        sim.crash();
        sim.restart();
        let bytes = sim.file(path("a")).unwrap();
        assert!(bytes[..BLOCK].iter().all(|&byte| byte == 1));
        zeroes |= bytes.contains(&0);
        lengths.insert(bytes.len() / BLOCK);
    }
    assert_eq!(lengths, BTreeSet::from([1, 2, 3, 4]));
    assert!(zeroes);
}

#[test]
fn names_are_durable_after_sync_dir_only() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let (sim, io) = machine(seed);
        sim.run_until(async {
            durable_file(&io, "synced", 1, 1).await;
            durable_file(&io, "removed", 1, 1).await;
            io.remove(&path("removed")).await.unwrap();
            let file = io.open(&path("new"), Open::Write).await.unwrap();
            file.write(filled(&io, 1, 1), 0).await.unwrap();
            file.flush().await.unwrap();
        });
        sim.crash();
        sim.restart();
        assert!(sim.file(path("synced")).is_some());
        let back = sim.file(path("removed"));
        assert!(back.as_ref().is_none_or(|bytes| bytes == &[1; BLOCK]), "a file that is back is whole");
        outcomes.insert((back.is_some(), sim.file(path("new")).is_some()));
    }
    assert_eq!(outcomes.len(), 4, "each independently of the other");
}

#[test]
fn a_rename_is_atomic_and_durable_once_it_returns() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let (sim, io) = machine(seed);
        let finished = sim.run_until(async {
            durable_file(&io, "old", 1, 1).await;
            durable_file(&io, "new", 1, 2).await;
            sim.crash_after(1 + seed % 2);
            io.rename(&path("new"), &path("old")).await.unwrap();
            io.sync_dir(Path::new("/d")).await.unwrap();
        });
        assert_eq!(finished, None);
        sim.restart();
        let left = (sim.file(path("old")).unwrap()[0], sim.file(path("new")).map(|bytes| bytes[0]));
        assert!([(1, Some(2)), (2, None)].contains(&left));
        assert!(seed % 2 == 0 || left == (2, None), "it had returned");
        outcomes.insert((seed % 2, left));
    }
    assert_eq!(outcomes.len(), 3);
}

#[test]
fn a_renamed_file_does_not_vanish_with_the_name_it_had() {
    for seed in 0..100 {
        let (sim, io) = machine(seed);
        sim.run_until(async {
            let file = io.open(&path("making"), Open::Write).await.unwrap();
            file.write(filled(&io, 1, 7), 0).await.unwrap();
            file.flush().await.unwrap();
            io.rename(&path("making"), &path("made")).await.unwrap();
        });
        sim.crash();
        sim.restart();
        assert_eq!(sim.files(), [path("made")]);
        assert_eq!(sim.file(path("made")).unwrap(), [7; BLOCK]);
    }
}

#[test]
fn a_removed_directory_may_come_back_in_part_but_never_without_its_folder() {
    let mut sizes = BTreeSet::new();
    for seed in 0..200 {
        let (sim, io) = machine(seed);
        sim.run_until(async {
            io.create_dir(&path("topic/0")).await.unwrap();
            for name in ["topic/0/a", "topic/0/b"] {
                io.open(&path(name), Open::Write).await.unwrap();
            }
            io.sync_dir(&path("topic/0")).await.unwrap();
            io.remove(&path("topic")).await.unwrap();
        });
        sim.crash();
        let io = sim.restart();
        let files = sim.files();
        sizes.insert(files.len());
        sim.run_until(async {
            for file in files {
                let listed = io.list(file.parent().unwrap()).await.unwrap();
                assert!(listed.contains(&file.file_name().unwrap().to_string_lossy().into_owned()));
                assert!(io.list(&path("")).await.unwrap().contains(&"topic".to_owned()));
            }
        });
    }
    assert_eq!(sizes, BTreeSet::from([0, 1, 2]));
}

#[test]
fn a_killed_process_loses_no_completed_write_but_a_later_power_cut_may() {
    let mut lost = false;
    for seed in 0..100 {
        let (sim, io) = machine(seed);
        sim.run_until(async {
            let file = durable_file(&io, "a", 1, 1).await;
            file.write(filled(&io, 1, 2), 0).await.unwrap();
        });
        sim.kill();
        sim.restart();
        assert_eq!(sim.file(path("a")).unwrap(), [2; BLOCK]);
        sim.crash();
        sim.restart();
        lost |= sim.file(path("a")).unwrap() != [2; BLOCK];
    }
    assert!(lost);
}

#[test]
fn a_crash_comes_at_the_chosen_operation_and_ends_everything() {
    let (sim, io) = machine(1);
    let before = sim.changes();
    let reached = Rc::new(Cell::new(0));
    let seen = reached.clone();
    sim.crash_after(4);
    let finished = sim.run_until(async {
        let file = durable_file(&io, "a", 1, 1).await; // open, write, flush, sync_dir
        seen.set(1);
        file.flush().await.unwrap();
        seen.set(2);
    });
    assert_eq!((finished, reached.get(), sim.changes() - before), (None, 0, 4));
    assert!(sim.has_ended());
    // The former life's handle is dead, the new one works.
    let new = sim.restart();
    let raced = sim.run_until(async {
        let b = path("b");
        let dead = std::pin::pin!(io.open(&b, Open::Write));
        let alive = std::pin::pin!(new.sleep(Duration::from_secs(9)));
        matches!(futures_util::future::select(dead, alive).await, futures_util::future::Either::Right(_))
    });
    assert_eq!(raced, Some(true));
}

#[test]
fn injected_errors_reach_the_caller_and_a_failed_flush_is_not_made_good_by_the_next() {
    let mut lost = false;
    for seed in 0..60 {
        let (sim, io) = machine(seed);
        let file = sim.run_until(durable_file(&io, "a", 1, 1)).unwrap();
        let flushes = Cell::new(0);
        sim.watch(move |op| {
            flushes.set(flushes.get() + u32::from(op.kind == OpKind::Flush));
            match op.kind {
                OpKind::Flush if flushes.get() == 1 => Verdict::Fail(io::ErrorKind::Other),
                OpKind::Open => Verdict::Fail(io::ErrorKind::PermissionDenied),
                _ => Verdict::Go,
            }
        });
        sim.run_until(async {
            assert_eq!(io.open(&path("b"), Open::Write).await.err().unwrap().kind(), io::ErrorKind::PermissionDenied);
            file.write(filled(&io, 1, 2), 0).await.unwrap();
            assert!(file.flush().await.is_err());
            assert!(file.flush().await.is_ok());
        });
        sim.crash();
        sim.restart();
        lost |= sim.file(path("a")).unwrap() != [2; BLOCK];
    }
    assert!(lost);
}

#[test]
fn a_full_disk_refuses_growth_until_something_is_removed() {
    let (sim, io) = machine(5);
    sim.run_until(async {
        let a = durable_file(&io, "a", 4, 1).await;
        let b = durable_file(&io, "b", 4, 1).await;
        sim.set_free_bytes(2 * BLOCK as u64);
        assert_eq!(io.free_bytes(Path::new("/d")).unwrap(), 2 * BLOCK as u64);
        let refused = b.write(filled(&io, 3, 2), 4 * BLOCK as u64).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert_eq!(sim.file(path("b")).unwrap().len(), 4 * BLOCK, "nothing was written");
        b.write(filled(&io, 4, 2), 0).await.unwrap();
        io.remove(&path("a")).await.unwrap();
        b.write(filled(&io, 3, 2), 4 * BLOCK as u64).await.unwrap_err();
        a.close().await.unwrap();
        b.write(filled(&io, 3, 2), 4 * BLOCK as u64).await.unwrap();
        assert_eq!(io.free_bytes(Path::new("/d")).unwrap(), 3 * BLOCK as u64);
    });
}

#[test]
fn a_dropped_operation_still_happens() {
    let (sim, io) = machine(3);
    sim.run_until(async {
        let file = durable_file(&io, "a", 1, 1).await;
        let write = Box::pin(file.write(filled(&io, 1, 2), 0));
        let done = futures_util::future::select(write, Box::pin(io.sleep(Duration::ZERO))).await;
        assert!(matches!(done, futures_util::future::Either::Right(_)), "it was begun, and dropped at once");
        drop(done);
        io.sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(sim.file(path("a")).unwrap(), [2; BLOCK]);
}

#[test]
fn reads_are_short_at_the_end_and_operations_complete_out_of_order() {
    let mut orders = BTreeSet::new();
    for seed in 0..50 {
        let (sim, io) = machine(seed);
        let order = sim.run_until(async {
            let file = durable_file(&io, "a", 2, 1).await;
            assert_eq!(file.read(BLOCK as u64, 4 * BLOCK).await.unwrap().bytes(), [1; BLOCK]);
            assert!(file.read(2 * BLOCK as u64, BLOCK).await.unwrap().bytes().is_empty());
            let order = RefCell::new(Vec::new());
            let write = async |n: u64| {
                file.write(filled(&io, 1, 1), n * BLOCK as u64).await.unwrap();
                order.borrow_mut().push(n);
            };
            futures_util::future::join3(write(0), write(1), write(2)).await;
            order.into_inner()
        });
        orders.insert(order.unwrap());
    }
    assert_eq!(orders.len(), 6);
}

#[test]
fn virtual_time_costs_no_time() {
    let (sim, io) = machine(2);
    let before = io.now_ms();
    sim.run_until(io.sleep(Duration::from_secs(86_400 * 365)));
    assert_eq!(io.now_ms() - before, 86_400 * 365 * 1_000);
}

#[test]
#[should_panic(expected = "all tasks wait for ever")]
fn a_deadlock_is_told() {
    machine(2).0.run_until(std::future::pending::<()>());
}

#[test]
fn rot_changes_what_is_read() {
    let (sim, io) = machine(2);
    sim.run_until(durable_file(&io, "a", 2, 1));
    sim.crash();
    let io = sim.restart();
    sim.corrupt(path("a"), 5_000, 0x80);
    sim.run_until(async {
        let file = io.open(&path("a"), Open::Read).await.unwrap();
        let read = file.read(0, 2 * BLOCK).await.unwrap();
        assert_eq!(read.bytes()[5_000], 0x81);
        assert_eq!(read.bytes().iter().filter(|&&byte| byte != 1).count(), 1);
    });
}

#[test]
fn a_journal_on_a_full_disk_says_so_while_it_still_has_space_for_some() {
    let (sim, io) = machine(1);
    sim.run_until(async {
        let mut journal = Journal::create(io.clone(), path("journal"), &[]).await.unwrap();
        sim.set_free_bytes(0);
        let mut appended = 0;
        while journal.has_space().await {
            journal.append(b"another").await.unwrap();
            appended += 1;
        }
        assert!(appended > 10);
        for _ in 0..60 {
            journal.append(b"an end").await.unwrap();
        }
        sim.set_free_bytes(1 << 20);
        assert!(journal.has_space().await);
    })
    .unwrap();
}

#[test]
fn a_journal_that_finds_no_space_leaves_what_there_was() {
    let (sim, io) = machine(1);
    sim.run_until(async {
        drop(Journal::create(io.clone(), path("journal"), &[vec![1; 9]]).await.unwrap());
        let before = sim.file(path("journal")).unwrap();
        sim.set_free_bytes(BLOCK as u64);
        let full = Journal::create(io.clone(), path("journal"), &[vec![2; 9], vec![2; 9]]).await.map(drop).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!((sim.files(), sim.file(path("journal")).unwrap()), (vec![path("journal")], before));
        assert_eq!(io.free_bytes(Path::new("/d")).unwrap(), BLOCK as u64);
    });
}

#[test]
fn a_new_journal_takes_what_space_there_is() {
    let (sim, io) = machine(1);
    sim.run_until(async {
        sim.set_free_bytes(400 << 10);
        let mut journal = Journal::create(io.clone(), path("journal"), &[]).await.unwrap();
        assert!(!journal.has_space().await);
        sim.set_free_bytes(0);
        for _ in 0..60 {
            journal.append(b"an end").await.unwrap();
        }
    });
}

/// What a journal is for, crashed at every operation: payloads whose append returned are there, in order, and at most
/// the one that was under way follows them.
#[test]
fn a_journal_keeps_what_it_promised_at_every_crash_point() {
    async fn work(io: SimIo, promised: &Cell<usize>) {
        let mut journal = Journal::create(io.clone(), path("journal"), &[payload(0)]).await.unwrap();
        promised.set(1);
        for n in 1..8 {
            match n {
                4 => journal.rewrite(&(0..=n).map(payload).collect::<Vec<_>>()).await.unwrap(),
                _ => journal.append(&payload(n)).await.unwrap(),
            }
            promised.set(n + 1);
        }
    }
    fn payload(n: usize) -> Vec<u8> {
        vec![u8::try_from(n).unwrap() + 1; 1 + n * 3_000]
    }
    let (sim, io) = machine(0);
    sim.run_until(work(io, &Cell::new(0)));
    for crash in 1..=sim.changes() - 1 {
        for seed in 0..30 {
            let (sim, io) = machine(seed);
            let promised = Cell::new(0);
            sim.crash_after(crash);
            assert_eq!(sim.run_until(work(io, &promised)), None);
            sim.restart();
            let Some(file) = sim.file(path("journal")) else {
                assert_eq!(promised.get(), 0, "seed {seed}, crash {crash}");
                continue;
            };
            let pages = journal::pages(&file).unwrap();
            assert!((promised.get()..=promised.get() + 1).contains(&pages.len()), "seed {seed}, crash {crash}");
            (0..).zip(&pages).for_each(|(n, page)| assert_eq!(*page, payload(n)));
        }
    }
}
