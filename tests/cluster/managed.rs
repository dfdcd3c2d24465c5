//! `--etcd managed`: the nodes bring the etcd that they need.

use crate::{load::Load, rig::Rig};

#[test]
fn three_nodes_that_run_their_own_etcd_outlive_one_of_them() {
    let Some(mut rig) = Rig::start_managed() else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 2);
    load.await_more(&rig, 20);
    for id in 1..=3 {
        rig.kill(id);
        load.await_more(&rig, 20);
        rig.restart(&[id]);
        rig.await_in_sync("orders", 3);
    }
    let produced = load.finish();
    println!("longest gap of a producer: {:?}", produced.longest_gap);
    rig.verify("orders", produced.run, &produced.acknowledged);
    rig.stop(2);
    rig.restart(&[2]);
    rig.await_in_sync("orders", 3);
}

#[test]
fn a_node_whose_etcd_lost_its_folder_joins_the_others_again() {
    let Some(mut rig) = Rig::start_managed() else { return };
    rig.create_topic("orders", 1, 3, &[("min.insync.replicas", "2")]);
    rig.kill(2);
    rig.node(2).lose("etcd");
    rig.restart(&[2]);
    rig.await_in_sync("orders", 3);
    assert!(rig.node(2).process.log().contains("it is replaced by a new one"), "{}", rig.logs());
    // until it is put in, a majority is both of the others
    let wal = rig.node(2).path("etcd/member/wal");
    rig.until("the new member runs", || std::fs::read_dir(&wal).is_ok_and(|mut files| files.next().is_some()));
    // it counts: without one of the others it is one of the majority
    rig.kill(1);
    rig.until("topics are created with the new member's vote", || {
        let spec = millrace_client::TopicSpec {
            name: "later".to_owned(),
            partitions: Some(1),
            replicas: Some(2),
            settings: Vec::new(),
        };
        match rig.client_without(1).create_topic(&spec, false) {
            Ok(()) => true,
            Err(error) => error.code() == Some(36),
        }
    });
}

#[test]
fn etcds_that_are_killed_one_after_the_other_are_started_again() {
    let Some(mut rig) = Rig::start_managed() else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 2);
    load.await_more(&rig, 20);
    // one of them was the leader of the etcds
    for id in 1..=3 {
        rig.node(id).process.kill_child("etcd");
        load.await_more(&rig, 20);
        let spec = millrace_client::TopicSpec {
            name: format!("after-{id}"),
            partitions: Some(1),
            replicas: Some(3),
            settings: Vec::new(),
        };
        rig.until("topics are created", || match rig.client().create_topic(&spec, false) {
            Ok(()) => true,
            Err(error) => error.code() == Some(36),
        });
        rig.await_in_sync("orders", 3);
    }
    let produced = load.finish();
    rig.verify("orders", produced.run, &produced.acknowledged);
}
