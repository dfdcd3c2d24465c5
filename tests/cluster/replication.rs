//! All is well: what is acknowledged is on all replicas.

use std::time::Duration;

use millrace_client::{OffsetQuestion, Resource, ResourceKind};

use crate::{
    load::{Load, offer},
    rig::Rig,
};

#[test]
fn what_is_acknowledged_by_three_nodes_is_read_back_whole() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("letters", 6, 3, &[("min.insync.replicas", "2")]);
    let leaders: Vec<i32> = rig.topic("letters").partitions.values().map(|it| it.leader).collect();
    assert!((1..=3).all(|id| leaders.contains(&id)), "every node leads something: {leaders:?}");
    let load = Load::start(&rig, "letters", 6, 3);
    load.await_more(&rig, 200);
    let produced = load.finish();
    rig.await_in_sync("letters", 3);
    rig.verify("letters", produced.run, &produced.acknowledged);
    // what one node has, the others have: each in turn is all that is left of two
    for id in 1..=3 {
        rig.kill(id);
        rig.await_in_sync("letters", 2);
        rig.verify("letters", produced.run, &produced.acknowledged);
        rig.restart(&[id]);
        rig.await_in_sync("letters", 3);
    }
}

#[test]
fn nodes_with_different_numbers_of_shards_replicate() {
    let Some(mut rig) = Rig::start(2, "") else { return };
    rig.add_with_shards(3, 2);
    rig.await_all();
    rig.create_topic("letters", 8, 3, &[]);
    let load = Load::start(&rig, "letters", 8, 2);
    load.await_more(&rig, 100);
    let produced = load.finish();
    rig.await_in_sync("letters", 3);
    rig.verify("letters", produced.run, &produced.acknowledged);
}

/// A leader heard of it only with the next change of its partition.
#[test]
fn a_changed_default_of_all_brokers_counts_at_once() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 1, 3, &[]);
    let leader = rig.leader("orders", 0);
    (1..=3).filter(|id| *id != leader).for_each(|id| rig.kill(id));
    rig.await_in_sync("orders", 1);
    let (all, name) = (Resource { kind: ResourceKind::Broker, name: String::new() }, "min.insync.replicas".to_owned());
    let mut client = rig.client_of(leader);
    // an etcd elects another controller first
    rig.until("the default is changed", || client.alter_config(&all, &[(name.clone(), "2".to_owned())], &[]).is_ok());
    rig.until("acks=all is refused", || offer(&mut client, leader, 0, -1).is_ok_and(|code| code == 19));
    rig.until("acks=1 is answered", || {
        let answer = offer(&mut client, leader, 0, 1);
        answer.is_ok_and(|code| {
            assert_eq!(code, 0, "acks=1 is taken");
            true
        })
    });
    let end = |rig: &Rig| rig.insist("the end is told", |client| client.offset("orders", 0, OffsetQuestion::Latest));
    let told = end(&rig);
    std::thread::sleep(Duration::from_millis(300));
    let still = end(&rig);
    assert_eq!((told, still), (Some(0), Some(0)), "consumers see what only one replica has\n{}", rig.logs());
    rig.insist("the default is what it was", |client| client.alter_config(&all, &[], std::slice::from_ref(&name)));
    // and one more for each answer that was lost
    rig.until("the record is seen", || end(&rig) >= Some(1));
}
