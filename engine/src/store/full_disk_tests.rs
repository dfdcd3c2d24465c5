//! Starts on a disk without a free block: what was there is there, and space that is made again can be used.
use std::{cell::Cell, rc::Rc, time::Duration};

use super::{
    Store,
    recovery_tests::{DEVICE, FAT, Machine, acknowledged, check, partition, produce, try_take},
};
use crate::{
    api::LogError,
    format::journal,
    io::{
        Io,
        sim::{Sim, SimIo},
    },
};

const MANIFEST: &str = "/d/manifest-1-0";
const RESERVE_BYTES: u64 = 500_000;

/// A node that was killed, or lost power, when its disk had no free block: with fat runs that its manifest does not know,
/// and small ones that are in the log only.
fn full_machine(seed: u64) -> Machine {
    let mut machine = Machine::new(seed, &[&[("segment.bytes", "1048576")], DEVICE]);
    machine.reserve_bytes = RESERVE_BYTES;
    for _ in 0..2 {
        machine.live(async |store| {
            for _ in 0..6 {
                produce(&store, 0, FAT).await;
                produce(&store, 1, 10).await;
            }
        });
        machine.sim.crash();
    }
    machine.sim.set_free_bytes(0);
    machine
}

fn pages(sim: &Sim) -> usize {
    journal::pages(&sim.file(MANIFEST).unwrap()).unwrap().len()
}

/// What a life does from a full disk on: reads all, is refused, makes space, appends. `end` is what partition 1 then has.
async fn live_on(store: Rc<Store<SimIo>>, end: &Cell<i64>) {
    store.check_space_anew();
    assert!(check(&store, 1).await >= end.get(), "what was acknowledged");
    assert_eq!(check(&store, 0).await, 12);
    if store.is_full() {
        assert_eq!(try_take(&store, 1, 10).unwrap_err(), LogError::StorageFull);
    }
    assert_eq!(store.trim(partition(0), 12).await, Ok(12));
    store.io.sleep(Duration::from_secs(2)).await;
    store.check_space();
    acknowledged(try_take(&store, 1, 10).unwrap()).await.unwrap();
    end.set(store.bounds(partition(1)).unwrap().1);
}

/// A start failed on a full disk: it wrote its manifest anew beside the old one.
#[test]
fn a_start_needs_no_free_block() {
    for seed in 0..20 {
        let machine = full_machine(seed);
        let before = pages(&machine.sim);
        let end = Cell::new(12);
        machine.live(async |store| {
            assert!(store.is_full());
            assert_eq!(pages(&machine.sim), before + 2, "what fat runs there are, and where runs end");
            live_on(store, &end).await;
        });
        machine.sim.crash();
        machine.live(async |store| {
            assert_eq!(check(&store, 1).await, 13);
            assert_eq!(store.bounds(partition(0)).unwrap(), (12, 12));
        });
        let names = machine.sim.files();
        assert!(!names.iter().any(|name| name.extension().is_some_and(|ext| ext == "making")), "{names:?}");
    }
}

#[test]
fn the_power_fails_at_every_write_of_a_start_without_a_free_block() {
    for crash in 1.. {
        let machine = full_machine(crash);
        let end = Cell::new(12);
        let (run, io) = machine.next_run();
        machine.sim.crash_after(crash);
        let life = async {
            let store = Store::open(io, machine.options(run), &machine.known).await.unwrap();
            live_on(store, &end).await;
        };
        let is_whole = machine.sim.run_until(life).is_some();
        for _ in 0..2 {
            machine.sim.crash();
            machine.sim.set_free_bytes(0);
            machine.live(async |store| {
                assert!(check(&store, 1).await >= end.get(), "crash {crash}");
                check(&store, 0).await;
            });
        }
        if is_whole {
            return;
        }
    }
}

#[test]
fn starts_without_a_free_block_follow_each_other() {
    let machine = full_machine(1);
    for _ in 0..60 {
        machine.live(async |store| {
            assert_eq!((check(&store, 0).await, check(&store, 1).await), (12, 12));
        });
        machine.sim.kill();
    }
}
