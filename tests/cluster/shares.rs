//! Share groups while nodes come and go: every record is accepted by somebody, none that was accepted comes again, and
//! how often a record was given back is not forgotten.

use std::{thread::sleep, time::Duration};

use crate::{rig::Rig, share_members::Members};

const PARTITIONS: i32 = 6;
const RECORDS: i64 = 600;

/// A topic, all of whose records the group is to accept, and the members of the group.
fn start(rig: &Rig) -> Members {
    rig.create_topic("orders", PARTITIONS, 3, &[("min.insync.replicas", "2")]);
    let members = Members::start(rig, "orders", PARTITIONS, RECORDS, 3);
    members.await_accepted(rig, 200);
    rig.await_in_sync("__share_group_state", 3);
    rig.await_in_sync("__consumer_offsets", 3);
    members
}

/// Records are accepted while a node is away; then it comes back.
fn go_on_without(rig: &mut Rig, members: &Members, id: i32) {
    members.await_more_accepted(rig, 100);
    rig.restart(&[id]);
    for topic in ["orders", "__share_group_state", "__consumer_offsets"] {
        rig.await_in_sync(topic, 3);
    }
}

#[test]
fn consumers_on_three_nodes_share_what_is_led_by_all_of_them() {
    let Some(rig) = Rig::start(3, "") else { return };
    let members = start(&rig);
    members.finish(&rig);
}

#[test]
fn nothing_is_lost_when_nodes_are_killed() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    let members = start(&rig);
    for topic in ["orders", "__share_group_state"] {
        let id = rig.leader(topic, 0);
        rig.kill(id);
        go_on_without(&mut rig, &members, id);
    }
    members.finish(&rig);
}

#[test]
fn nothing_is_lost_when_nodes_are_drained() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    let members = start(&rig);
    for id in 1..=2 {
        rig.stop(id);
        go_on_without(&mut rig, &members, id);
    }
    members.finish(&rig);
}

#[test]
fn a_leader_that_stood_still_writes_nothing_over_what_came_after_it() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    let members = start(&rig);
    let id = rig.leader("orders", 0);
    rig.node(id).process.pause();
    members.forgive(id);
    members.await_more_accepted(&rig, 200);
    rig.node(id).process.resume();
    rig.await_in_sync("orders", 3);
    sleep(Duration::from_millis(500));
    members.finish(&rig);
}
