//! A node that stands still for a while, and does not know it.

use std::time::Duration;

use crate::{
    load::{Load, offer},
    network::{ETCD, Network},
    rig::Rig,
};

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

#[test]
fn the_status_says_what_a_follower_that_stands_still_lacks() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 1, 3, &[("min.insync.replicas", "2")]);
    let follower = (1..=3).find(|id| *id != rig.leader("orders", 0)).unwrap();
    let row = |rig: &Rig| {
        let said = rig.millrace(&["cluster", "status"]);
        said.lines().find(|line| line.starts_with(&follower.to_string())).unwrap_or_default().to_owned()
    };
    rig.until("nothing is lacked", || row(&rig).ends_with("nothing"));
    let load = Load::start(&rig, "orders", 1, 2);
    rig.node(follower).process.pause();
    load.await_more(&rig, 50);
    rig.until("the status says what it lacks", || row(&rig).contains(" records, "));
    rig.node(follower).process.resume();
    let produced = load.finish();
    rig.await_in_sync("orders", 3);
    rig.until("nothing is lacked any more", || row(&rig).ends_with("nothing"));
    rig.verify("orders", produced.run, &produced.acknowledged);
}

/// It went on acknowledging what its successor does not have, for as long as it did not hear of that.
#[test]
fn a_leader_that_slept_for_longer_than_its_lease_takes_nothing_before_it_has_asked() {
    let Some(network) = Network::make() else { return };
    let Some(mut rig) = Rig::start_in(network, 3) else { return };
    rig.create_topic("orders", 1, 3, &[]);
    let leader = rig.leader("orders", 0);
    let place = u8::try_from(leader).unwrap();
    let mut client = rig.client_of(leader);
    rig.until("it takes records", || offer(&mut client, leader, 0, 1).is_ok_and(|code| code == 0));
    rig.network().deafen(place, ETCD);
    rig.node(leader).process.pause();
    rig.until("somebody else leads", || {
        let topic = rig.client_without(leader).topic("orders", false);
        topic.is_ok_and(|topic| topic.partitions[&0].leader >= 0 && topic.partitions[&0].leader != leader)
    });
    rig.node(leader).process.resume();
    rig.until("it says something", || {
        let answer = offer(&mut client, leader, 0, 1);
        answer.is_ok_and(|code| {
            assert_eq!(code, 6, "NOT_LEADER_OR_FOLLOWER");
            true
        })
    });
    rig.network().hear(place);
    rig.await_in_sync("orders", 3);
}
