//! A machine that dies with its disk: another one in its place, or none, by the commands that README names.

use millrace_client::Topic;

use crate::{
    load::{Load, Produced},
    rig::Rig,
};

/// Some records to a topic of three partitions.
fn produced(rig: &Rig, topic: &str) -> Produced {
    let load = Load::start(rig, topic, 3, 2);
    load.await_more(rig, 30);
    load.finish()
}

/// Kills a node, and its disk is gone.
fn lose(rig: &mut Rig, id: i32) {
    rig.kill(id);
    rig.node(id).lose("");
}

fn replicas(topic: &Topic) -> impl Iterator<Item = &Vec<i32>> {
    topic.partitions.values().map(|partition| &partition.replicas)
}

#[test]
fn an_empty_directory_under_the_id_of_a_dead_node_gets_all_that_it_had() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let first = produced(&rig, "orders");
    let load = Load::start(&rig, "orders", 3, 2);
    load.await_more(&rig, 20);
    lose(&mut rig, 3);
    load.await_more(&rig, 20);
    rig.restart(&[3]);
    rig.await_in_sync("orders", 3);
    let second = load.finish();
    // the new one has what only the dead one had before: it can lead all
    rig.kill(1);
    rig.await_in_sync("orders", 2);
    rig.kill(2);
    rig.until("node 3 leads all", || {
        let topic = rig.client_of(3).topic("orders", false);
        topic.is_ok_and(|topic| topic.partitions.values().all(|it| it.leader == 3))
    });
    rig.verify("orders", first.run, &first.acknowledged);
    rig.verify("orders", second.run, &second.acknowledged);
    rig.await_in_sync("orders", 1);
    let status = rig.millrace(&["cluster", "status"]);
    let refusing = "3 partitions with fewer replicas in sync than min.insync.replicas";
    assert!(status.contains(refusing) && status.contains("orders-0, orders-1, orders-2"), "{status}");
    rig.restart(&[1, 2]);
    rig.await_in_sync("orders", 3);
}

#[test]
fn a_dead_node_is_drained_and_removed_and_another_one_has_its_replicas() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let first = produced(&rig, "orders");
    lose(&mut rig, 3);
    rig.await_in_sync("orders", 2);
    let status = rig.millrace(&["cluster", "status"]);
    assert!(status.contains("node 3 is away") && status.contains("'millrace cluster drain 3'"), "{status}");
    let (removed, said) = rig.try_millrace(&["cluster", "remove", "3"]);
    assert!(!removed && said.contains("'millrace cluster drain 3' gives them to others"), "{said}");
    rig.add(4);
    rig.await_all();
    let load = Load::start(&rig, "orders", 3, 2);
    load.await_more(&rig, 20);
    let planned = rig.millrace(&["cluster", "drain", "3", "--dry-run"]);
    assert!(replicas(&rig.topic("orders")).all(|nodes| nodes.contains(&3)), "it was only shown: {planned}");
    rig.millrace(&["cluster", "drain", "3"]);
    rig.await_in_sync("orders", 3);
    rig.until("node 3 has no replicas", || replicas(&rig.topic("orders")).all(|nodes| !nodes.contains(&3)));
    rig.millrace(&["cluster", "remove", "3"]);
    load.await_more(&rig, 20);
    let second = load.finish();
    for nodes in replicas(&rig.topic("orders")) {
        let mut nodes = nodes.clone();
        nodes.sort_unstable();
        assert_eq!(nodes, [1, 2, 4]);
    }
    rig.await_in_sync("orders", 3);
    rig.millrace(&["cluster", "balance"]);
    rig.until("preferred leaders lead", || {
        rig.topic("orders").partitions.values().all(|it| Some(&it.leader) == it.replicas.first())
    });
    rig.until("all is well", || {
        let status = rig.millrace(&["cluster", "status"]);
        assert!(!status.contains("node 3"), "{status}");
        status.contains("all is well")
    });
    rig.verify("orders", first.run, &first.acknowledged);
    rig.verify("orders", second.run, &second.acknowledged);
}

#[test]
fn a_partition_whose_leader_is_gone_for_good_is_led_by_a_follower_that_lacks_records_only_if_a_person_says_so() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 1, 2, &[]);
    let both = |rig: &Rig| rig.topic("orders").partitions[&0].replicas.clone();
    let load = Load::start(&rig, "orders", 1, 2);
    load.await_more(&rig, 30);
    let shared = load.finish();
    let leader = rig.leader("orders", 0);
    let follower = *both(&rig).iter().find(|id| **id != leader).unwrap();
    rig.kill(follower);
    rig.await_in_sync("orders", 1);
    let load = Load::start(&rig, "orders", 1, 2);
    load.await_more(&rig, 30);
    drop(load.finish()); // what only the leader has
    lose(&mut rig, leader);
    rig.restart(&[follower]);
    rig.until("nobody leads", || rig.topic("orders").partitions[&0].leader < 0);
    let status = rig.millrace(&["cluster", "status"]);
    assert!(status.contains("'millrace cluster promote --topic NAME'"), "{status}");
    let (promoted, said) = rig.try_millrace(&["cluster", "promote", "--topic", "orders"]);
    assert!(!promoted && said.contains("with --may-lose-records another one leads"), "{said}");
    assert!(rig.topic("orders").partitions[&0].leader < 0);
    rig.millrace(&["cluster", "promote", "--topic", "orders", "--may-lose-records"]);
    rig.until("the follower leads", || rig.topic("orders").partitions[&0].leader == follower);
    rig.verify("orders", shared.run, &shared.acknowledged);
    let (promoted, said) = rig.try_millrace(&["cluster", "promote", "--topic", "orders", "--may-lose-records"]);
    assert!(!promoted && said.contains("every partition of 'orders' has a leader"), "{said}");
    // the dead one's replica goes to the third node, and the cluster goes on without it
    rig.millrace(&["cluster", "drain", &leader.to_string()]);
    rig.await_in_sync("orders", 2);
    rig.until("the dead node has no replicas", || !both(&rig).contains(&leader));
    rig.millrace(&["cluster", "remove", &leader.to_string()]);
    let load = Load::start(&rig, "orders", 1, 2);
    load.await_more(&rig, 20);
    let later = load.finish();
    rig.verify("orders", later.run, &later.acknowledged);
}
