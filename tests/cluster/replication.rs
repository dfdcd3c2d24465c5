//! All is well: what is acknowledged is on all replicas.

use crate::{load::Load, rig::Rig};

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
