//! Cables that break: a whole machine, the way to etcd alone, the way between nodes alone, one direction only.

use crate::{
    load::Load,
    network::{ETCD, Network},
    rig::Rig,
};

/// A cluster whose nodes have networks of their own, with a loaded topic.
fn loaded() -> Option<(Rig, Load)> {
    let rig = Rig::start_in(Network::make()?, 3)?;
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 3);
    load.await_more(&rig, 30);
    Some((rig, load))
}

fn finish(rig: &Rig, load: Load) {
    rig.await_in_sync("orders", 3);
    load.await_more(rig, 30);
    let produced = load.finish();
    println!("longest gap of a producer: {:?}", produced.longest_gap);
    rig.verify("orders", produced.run, &produced.acknowledged);
}

fn place(node: i32) -> u8 {
    u8::try_from(node).unwrap()
}

#[test]
fn a_leader_that_is_cut_off_is_replaced_and_comes_back() {
    let Some((rig, load)) = loaded() else { return };
    let leader = rig.leader("orders", 0);
    rig.network().cut(place(leader));
    rig.until("somebody else leads all", || {
        let topic = rig.client_without(leader).topic("orders", false);
        topic.is_ok_and(|topic| topic.partitions.values().all(|it| it.leader >= 0 && it.leader != leader))
    });
    load.await_more(&rig, 50);
    rig.network().mend(place(leader));
    finish(&rig, load);
}

#[test]
fn followers_that_do_not_hear_their_leader_leave_the_replicas_in_sync() {
    let Some((rig, load)) = loaded() else { return };
    let leader = rig.leader("orders", 0);
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    rig.network().deafen(place(follower), place(leader));
    load.await_more(&rig, 50);
    rig.network().hear(place(follower));
    finish(&rig, load);
}

#[test]
fn a_leader_that_does_not_reach_etcd_takes_nothing_that_is_lost() {
    let Some((rig, load)) = loaded() else { return };
    let leader = rig.leader("orders", 0);
    rig.network().deafen(ETCD, place(leader));
    rig.until("somebody else leads all", || {
        let topic = rig.client_without(leader).topic("orders", false);
        topic.is_ok_and(|topic| topic.partitions.values().all(|it| it.leader >= 0 && it.leader != leader))
    });
    load.await_more(&rig, 50);
    rig.network().hear(ETCD);
    finish(&rig, load);
}
