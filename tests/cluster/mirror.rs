//! Two nodes without an etcd: one leads, the other follows, and a person changes that.

use std::process::Command;

use crate::{load::Load, network::Network, node::binary, rig::Rig};

#[test]
fn a_follower_is_promoted_by_a_person_and_has_all_that_was_acknowledged() {
    let mut rig = Rig::start_mirror("stop");
    rig.create_topic("orders", 3, 2, &[]);
    let load = Load::start(&rig, "orders", 3, 2);
    load.await_more(&rig, 50);
    rig.stop(2);
    let (promoted, said) = rig.node(2).offline("promote --fenced 'nothing was done'");
    assert!(!promoted && said.contains("node 1 answers"), "{said}");
    rig.restart(&[2]);
    rig.await_in_sync("orders", 2);
    load.await_more(&rig, 50);
    rig.kill(1);
    rig.kill(2);
    let (promoted, said) = rig.node(2).offline("promote --fenced 'power off'");
    assert!(promoted && said.contains("orders-0") && said.contains("node 2 leads from term 2 on"), "{said}");
    rig.restart(&[2]);
    rig.until("node 2 leads", || rig.topic("orders").partitions.values().all(|it| it.leader == 2));
    // the former leader follows; with both there, what wants to be acknowledged by all is taken again
    rig.restart(&[1]);
    rig.await_in_sync("orders", 2);
    load.await_more(&rig, 50);
    let produced = load.finish();
    rig.verify("orders", produced.run, &produced.acknowledged);
    assert!(rig.topic("orders").partitions.values().all(|it| it.leader == 2));
}

#[test]
fn without_its_follower_a_leader_that_shall_stop_takes_nothing_for_all() {
    let mut rig = Rig::start_mirror("stop");
    rig.create_topic("orders", 1, 2, &[]);
    rig.kill(2);
    rig.await_in_sync("orders", 1);
    let load = Load::start(&rig, "orders", 1, 1);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(load.acknowledged(), 0);
    rig.restart(&[2]);
    load.await_more(&rig, 10);
    let produced = load.finish();
    rig.verify("orders", produced.run, &produced.acknowledged);
}

#[test]
fn what_only_a_former_leader_had_is_kept_beside_its_log() {
    let mut rig = Rig::start_mirror("continue");
    rig.create_topic("orders", 1, 2, &[]);
    let load = Load::start(&rig, "orders", 1, 1);
    load.await_more(&rig, 20);
    rig.kill(2);
    load.await_more(&rig, 50);
    load.finish();
    rig.kill(1);
    let (promoted, said) = rig.node(2).offline("promote --fenced 'power off'");
    assert!(promoted && said.contains("what it took since then is not here"), "{said}");
    rig.restart(&[2]);
    rig.until("node 2 leads", || rig.topic("orders").partitions[&0].leader == 2);
    let load = Load::start(&rig, "orders", 1, 1);
    load.await_more(&rig, 20);
    rig.restart(&[1]);
    rig.await_in_sync("orders", 2);
    let produced = load.finish();
    rig.verify("orders", produced.run, &produced.acknowledged);
    let folder = rig.node(1).path("cut-off");
    let copies: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(copies.len(), 1, "{copies:?}");
    let file = std::fs::read_dir(&copies[0]).unwrap().next().unwrap().unwrap().path();
    let dumped = Command::new(binary()).args(["log", "dump"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&dumped.stdout);
    assert!(dumped.status.success() && said.contains("batch"), "{said}{}", String::from_utf8_lossy(&dumped.stderr));
}

#[test]
fn a_leader_that_was_cut_off_ends_when_it_hears_of_its_successor() {
    let Some(network) = Network::make() else { return };
    let mut rig = Rig::start_mirror_in(network, "continue");
    rig.create_topic("orders", 1, 2, &[]);
    let load = Load::start(&rig, "orders", 1, 1);
    load.await_more(&rig, 20);
    rig.network().cut(1);
    rig.kill(2);
    let (promoted, said) = rig.node(2).offline("promote --fenced 'its cable is cut'");
    assert!(promoted, "{said}");
    rig.restart(&[2]);
    // what the former leader took alone is nobody's but its own: none was acknowledged over the cut cable
    load.await_more(&rig, 20);
    rig.network().mend(1);
    let status = rig.node(1).process.await_end();
    let log = rig.node(1).process.log();
    assert!(!status.success() && log.contains("node 2 leads since it was promoted"), "{status} {log}");
    rig.restart(&[1]);
    rig.await_in_sync("orders", 2);
    load.await_more(&rig, 20);
    let produced = load.finish();
    rig.verify("orders", produced.run, &produced.acknowledged);
}
