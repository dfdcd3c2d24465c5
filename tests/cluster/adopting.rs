//! An etcd that was restored from a backup, and a cluster that went on after it.

use std::{process::Command, time::Duration};

use millrace_client::TopicSpec;

use crate::{
    load::{Load, Produced},
    rig::Rig,
};

fn spec(name: &str) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions: Some(2), replicas: Some(3), settings: Vec::new() }
}

/// Some records to a topic of two partitions.
fn produced(rig: &Rig, topic: &str) -> Produced {
    let load = Load::start(rig, topic, 2, 2);
    load.await_more(rig, 30);
    load.finish()
}

fn delete(rig: &Rig, topic: &str) {
    // one that is not there was deleted by a try whose answer was lost
    rig.insist("a topic is deleted", |client| match client.delete_topic(topic) {
        Err(error) if error.code() == Some(3) => Ok(()), // UNKNOWN_TOPIC_OR_PARTITION
        outcome => outcome,
    });
}

/// Whether there is what a backup takes.
fn has_etcdctl() -> bool {
    let is_there = Command::new("etcdctl").arg("version").output().is_ok();
    if !is_there {
        println!("skipped: no etcdctl here to make a backup with (apt-get install etcd-client)");
    }
    is_there
}

/// All nodes refuse the etcd as it is now, and say what to do.
fn all_are_refused(rig: &mut Rig) {
    for id in 1..=3 {
        rig.node(id).process.start();
        let status = rig.node(id).process.await_end();
        let log = rig.node(id).process.log();
        assert!(!status.success() && log.contains("millrace cluster adopt"), "node {id}: {status}\n{log}");
    }
}

/// What it has would be taken for what this one has, which nobody would have heard of.
fn the_folder_of_another_node_is_refused(rig: &mut Rig) {
    swap_folders(rig);
    let (adopted, said) = rig.node(2).offline("cluster adopt");
    assert!(!adopted && said.contains("the directory is of node 1"), "{said}");
    swap_folders(rig);
}

/// Nodes 1 and 2 have each other's folder.
fn swap_folders(rig: &mut Rig) {
    let [one, two] = [1, 2].map(|id| rig.node(id).path(""));
    let aside = rig.node(1).path("../aside");
    for (from, to) in [(&one, &aside), (&two, &one), (&aside, &two)] {
        std::fs::rename(from, to).unwrap();
    }
}

/// Errors told operators to run a command that there was not: a restored etcd kept every node out for good.
#[test]
fn a_cluster_goes_on_with_an_etcd_that_was_restored_from_a_backup() {
    if !has_etcdctl() {
        return;
    }
    let Some(mut rig) = Rig::start(3, "") else { return };
    let settings = [("min.insync.replicas", "2")];
    rig.create_topic("orders", 2, 3, &settings);
    rig.create_topic("gone", 1, 3, &[]);
    let first = produced(&rig, "orders");
    rig.etcd().save_backup();
    // whoever led is in sync no more, by the backup all are
    rig.kill(1);
    let second = produced(&rig, "orders");
    rig.await_in_sync("orders", 2);
    rig.restart(&[1]);
    rig.await_in_sync("orders", 3);
    rig.kill(3);
    rig.await_in_sync("orders", 2);
    let third = produced(&rig, "orders");
    rig.restart(&[3]);
    rig.await_in_sync("orders", 3);
    rig.create_topic("late", 2, 3, &settings);
    let late = produced(&rig, "late");
    delete(&rig, "gone");
    rig.kill(2);
    let fourth = produced(&rig, "orders");
    let before = rig.topic("orders");
    rig.kill(1);
    rig.kill(3);
    rig.etcd().restore_backup();
    all_are_refused(&mut rig);

    let catalog = |rig: &mut Rig| std::fs::read(rig.node(1).path("catalog")).unwrap();
    let as_it_was = catalog(&mut rig);
    let (looked, said) = rig.node(1).offline("cluster adopt --dry-run");
    assert!(catalog(&mut rig) == as_it_was, "opening logs counts as a start");
    assert!(looked && said.contains("has forgotten: late") && said.contains("nothing was changed"), "{said}");
    the_folder_of_another_node_is_refused(&mut rig);
    for id in [2, 1] {
        let (adopted, said) = rig.node(id).offline("cluster adopt");
        assert!(adopted && said.contains("have not adopted it yet"), "{said}");
    }
    // until all have, nobody is a member, or removes what the backup lacks
    rig.node(1).process.start();
    rig.until("node 1 says whom it waits for", || rig.logs().contains("only nodes 1,2 have said what they have"));
    std::thread::sleep(Duration::from_secs(1));
    rig.kill(1);
    let (_, said) = rig.node(1).offline("cluster adopt --dry-run");
    assert!(said.contains("has forgotten: late"), "{said}");
    let (adopted, said) = rig.node(3).offline("cluster adopt");
    assert!(adopted && said.contains("the newest log leads"), "{said}");
    assert!(said.contains("has again: late") && said.contains("are again: gone"), "{said}");
    rig.restart(&[2, 1, 3]);
    rig.await_in_sync("orders", 3);
    rig.await_in_sync("late", 3);
    for produced in [&first, &second, &third, &fourth] {
        rig.verify("orders", produced.run, &produced.acknowledged);
    }
    rig.verify("late", late.run, &late.acknowledged);
    assert!(rig.client().topic("gone", false).is_err());
    let now = rig.topic("orders");
    let goes_on = |(index, was): (&i32, &millrace_client::Partition)| {
        now.id == before.id && now.partitions[index].leader_epoch > was.leader_epoch
    };
    assert!(before.partitions.iter().all(goes_on), "{before:?} {now:?}");
    rig.create_topic("new", 2, 3, &settings);
    let new = produced(&rig, "new");
    rig.verify("new", new.run, &new.acknowledged);
}

#[test]
fn a_node_that_was_gone_when_the_others_adopted_follows_them() {
    if !has_etcdctl() {
        return;
    }
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 2, 3, &[("min.insync.replicas", "2")]);
    rig.etcd().save_backup();
    rig.kill(3);
    rig.await_in_sync("orders", 2);
    let kept = produced(&rig, "orders");
    rig.kill(1);
    rig.kill(2);
    rig.etcd().restore_backup();
    for id in [1, 2] {
        let (adopted, said) = rig.node(id).offline("cluster adopt --without 3");
        assert!(adopted, "{said}");
        assert_eq!(said.contains("partitions that node 3 had too"), id == 2, "{said}");
    }
    rig.restart(&[1, 2]);
    let (adopted, said) = rig.node(3).offline("cluster adopt");
    assert!(adopted && said.contains("it follows them"), "{said}");
    rig.restart(&[3]);
    rig.await_in_sync("orders", 3);
    rig.verify("orders", kept.run, &kept.acknowledged);
    rig.create_topic("new", 2, 3, &[]);
    assert!(rig.client().create_topic(&spec("new"), false).is_err());
}

fn all_adopt(rig: &mut Rig, ids: [i32; 3]) {
    for (index, id) in ids.into_iter().enumerate() {
        let (adopted, said) = rig.node(id).offline("cluster adopt");
        let expected = if index == 2 { "the newest log leads" } else { "have not adopted it yet" };
        assert!(adopted && said.contains(expected), "node {id}: {said}");
    }
}

/// It was taken for one that the others had done without, and gave its records up.
#[test]
fn a_node_that_was_replaced_after_an_adoption_is_asked_in_the_next_one() {
    if !has_etcdctl() {
        return;
    }
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 2, 3, &[]);
    rig.etcd().save_backup();
    (1..=3).for_each(|id| rig.kill(id));
    rig.etcd().restore_backup();
    all_adopt(&mut rig, [1, 2, 3]);
    let (adopted, said) = rig.node(1).offline("cluster adopt");
    assert!(!adopted && said.contains("nothing shows that this etcd was restored"), "{said}");
    rig.restart(&[1, 2, 3]);
    rig.await_in_sync("orders", 3);
    rig.kill(3);
    rig.node(3).lose("");
    rig.restart(&[3]);
    rig.await_in_sync("orders", 3);
    rig.etcd().save_backup();
    rig.kill(1);
    rig.kill(2);
    rig.await_in_sync("orders", 1);
    let alone = produced(&rig, "orders");
    rig.kill(3);
    rig.etcd().restore_backup();
    all_adopt(&mut rig, [3, 1, 2]);
    rig.restart(&[1, 2, 3]);
    rig.await_in_sync("orders", 3);
    rig.verify("orders", alone.run, &alone.acknowledged);
}

/// It was started on the backup, which still calls it in sync, led, and had the others cut what it lacked.
#[test]
fn a_node_that_went_before_the_backup_was_made_does_not_go_on_with_it_alone() {
    if !has_etcdctl() {
        return;
    }
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 2, 3, &[("min.insync.replicas", "2")]);
    rig.kill(2);
    rig.etcd().save_backup();
    let kept = produced(&rig, "orders");
    rig.kill(1);
    rig.kill(3);
    rig.etcd().restore_backup_as_it_was();
    rig.node(3).lose("");
    for id in [2, 3] {
        rig.node(id).process.start();
        let status = rig.node(id).process.await_end();
        let log = rig.node(id).process.log();
        assert!(!status.success() && log.contains("etcd was restored from a backup"), "node {id}: {status}\n{log}");
    }
    let (adopted, said) = rig.node(3).offline("cluster adopt");
    assert!(!adopted && said.contains("there is nothing to adopt"), "{said}");
    for id in [2, 1] {
        let (adopted, said) = rig.node(id).offline("cluster adopt --without 3");
        assert!(adopted, "{said}");
    }
    rig.restart(&[1, 2, 3]);
    rig.await_in_sync("orders", 3);
    rig.verify("orders", kept.run, &kept.acknowledged);
}

#[test]
fn an_etcd_of_another_cluster_is_not_adopted() {
    let Some(mut rig) = Rig::start(1, "") else { return };
    rig.stop(1);
    rig.etcd().kill();
    rig.etcd().begin_anew();
    let (adopted, said) = rig.node(1).offline("cluster adopt");
    assert!(!adopted && said.contains("holds no cluster of the name 'tested'"), "{said}");
    rig.etcd().put("/millrace/tested/cluster", r#"{"v":1,"d":"00000000-0000-0000-0000-000000000007"}"#);
    let (adopted, said) = rig.node(1).offline("cluster adopt");
    assert!(!adopted && said.contains("its id is 00000000-0000-0000-0000-000000000007"), "{said}");
}

#[test]
fn nodes_that_run_their_own_etcd_adopt_what_was_restored_together() {
    if !has_etcdctl() {
        return;
    }
    let Some(mut rig) = Rig::start_managed() else { return };
    rig.create_topic("orders", 2, 3, &[("min.insync.replicas", "2")]);
    rig.save_managed_backup();
    let kept = produced(&rig, "orders");
    rig.create_topic("late", 2, 3, &[]);
    (1..=3).for_each(|id| rig.kill(id));
    rig.restore_managed_backup();
    let adopted: Vec<_> = std::thread::scope(|scope| {
        let nodes = rig.each_node().iter();
        let running: Vec<_> = nodes.map(|node| scope.spawn(|| node.offline("cluster adopt"))).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(adopted.iter().all(|(adopted, _)| *adopted), "{adopted:?}");
    rig.restart(&[1, 2, 3]);
    rig.await_in_sync("orders", 3);
    rig.await_in_sync("late", 3);
    rig.verify("orders", kept.run, &kept.acknowledged);
    rig.create_topic("new", 2, 3, &[]);
}
