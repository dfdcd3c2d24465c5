//! A node that stands still for a while, and does not know it.

use std::time::Duration;

use crate::{load::Load, rig::Rig};

#[test]
fn a_paused_leader_is_replaced_and_takes_nothing_back() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 3);
    load.await_more(&rig, 50);
    let leader = rig.leader("orders", 0);
    rig.node(leader).process.pause();
    let others: Vec<i32> = (1..=3).filter(|id| *id != leader).collect();
    rig.until("somebody else leads", || {
        let topic = rig.client_of(others[0]).topic("orders", false);
        topic.is_ok_and(|topic| topic.partitions.values().all(|it| it.leader >= 0 && it.leader != leader))
    });
    load.await_more(&rig, 50);
    rig.node(leader).process.resume();
    rig.await_in_sync("orders", 3);
    load.await_more(&rig, 50);
    let produced = load.finish();
    rig.verify("orders", produced.run, &produced.acknowledged);
}

#[test]
fn a_paused_follower_leaves_the_replicas_in_sync_and_comes_back() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 1, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 1, 2);
    load.await_more(&rig, 20);
    let follower = (1..=3).find(|id| *id != rig.leader("orders", 0)).unwrap();
    rig.node(follower).process.pause();
    std::thread::sleep(Duration::from_millis(500));
    load.await_more(&rig, 50);
    rig.node(follower).process.resume();
    rig.await_in_sync("orders", 3);
    let produced = load.finish();
    rig.verify("orders", produced.run, &produced.acknowledged);
}
