//! Partitions that move to other nodes, under load.

use millrace_client::Reassignment;

use crate::{
    load::{Load, offer},
    rig::Rig,
};

/// A leader whose partition moved away altogether led it again, as it heard of the number of replicas after it heard that it is
/// none of them: it took records that nobody ever confirmed, and with acks=1 said that they were safe. Producers waited for it
/// until their requests timed out.
#[test]
fn a_node_that_a_partition_moved_away_from_takes_nothing_for_it() {
    let Some(rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 2, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 3);
    load.await_more(&rig, 30);
    let mut former = Vec::new();
    let mut moves = Vec::new();
    for (partition, found) in rig.topic("orders").partitions {
        let third = (1..=3).find(|id| !found.replicas.contains(id)).unwrap();
        let other = *found.replicas.iter().find(|id| **id != found.leader).unwrap();
        former.push((partition, found.leader));
        moves.push(Reassignment { topic: "orders".to_owned(), partition, replicas: Some(vec![other, third]) });
    }
    rig.insist("all are to move", |client| client.reassign(&moves));
    rig.until("all have moved", || rig.client().reassigning().is_ok_and(|left| left.is_empty()));
    load.await_more(&rig, 30);
    for (partition, node) in former {
        rig.until("the former leader sends producers away", || {
            let answer = offer(&mut rig.client_of(node), node, partition, 1);
            answer.is_ok_and(|code| {
                assert_ne!(code, 0, "node {node} took a record for partition {partition}\n{}", rig.logs());
                code == 6 // NOT_LEADER_OR_FOLLOWER
            })
        });
    }
    let produced = load.finish();
    println!("longest gap of a producer: {:?}", produced.longest_gap);
    rig.await_in_sync("orders", 2);
    rig.verify("orders", produced.run, &produced.acknowledged);
}
