//! kill -9 of leaders, followers and everybody: what was acknowledged is there afterwards, once and in order.

use std::time::Duration;

use millrace_bench::payload::splitmix64;

use crate::{load::Load, node::rounds, rig::Rig};

#[test]
fn a_killed_leader_is_replaced_under_load_and_joins_again() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 3);
    for _ in 0..rounds(2) {
        load.await_more(&rig, 100);
        let leader = rig.leader("orders", 0);
        rig.kill(leader);
        rig.until("somebody else leads", || {
            let now = rig.topic("orders").partitions[&0].leader;
            now >= 0 && now != leader
        });
        load.await_more(&rig, 100);
        rig.restart(&[leader]);
        rig.await_in_sync("orders", 3);
    }
    let produced = load.finish();
    println!("longest gap of a producer: {:?}", produced.longest_gap);
    rig.verify("orders", produced.run, &produced.acknowledged);
}

#[test]
fn all_nodes_killed_at_once_lose_nothing_that_was_acknowledged() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 3);
    for _ in 0..rounds(1) {
        load.await_more(&rig, 100);
        for id in 1..=3 {
            rig.kill(id);
        }
        rig.restart(&[1, 2, 3]);
        load.await_more(&rig, 50);
    }
    let produced = load.finish();
    rig.await_in_sync("orders", 3);
    rig.verify("orders", produced.run, &produced.acknowledged);
}

#[test]
fn nodes_killed_at_random_lose_nothing_that_was_acknowledged() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 4, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 4, 2);
    let mut random = 7;
    for _ in 0..rounds(3) {
        load.await_more(&rig, 20);
        let id = 1 + i32::try_from(splitmix64(&mut random) % 3).unwrap();
        rig.kill(id);
        std::thread::sleep(Duration::from_millis(splitmix64(&mut random) % 3000));
        rig.restart(&[id]);
        rig.await_in_sync("orders", 3);
    }
    let produced = load.finish();
    rig.verify("orders", produced.run, &produced.acknowledged);
}

#[test]
fn too_few_replicas_in_sync_refuse_what_wants_all() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 1, 3, &[("min.insync.replicas", "2")]);
    let leader = rig.leader("orders", 0);
    let others: Vec<i32> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        rig.kill(*id);
    }
    let load = Load::start(&rig, "orders", 1, 1);
    rig.await_in_sync("orders", 1);
    rig.restart(&others);
    // what was refused is tried again by the producer, and taken
    load.await_more(&rig, 10);
    let produced = load.finish();
    rig.await_in_sync("orders", 3);
    rig.verify("orders", produced.run, &produced.acknowledged);
}
