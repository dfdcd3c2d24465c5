//! An upgrade: one node after the other is stopped and started, under load.

use crate::{load::Load, node::rounds, rig::Rig};

#[test]
fn a_rolling_restart_under_load_loses_no_acknowledged_record() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 6, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 6, 3);
    for _ in 0..rounds(1) {
        for id in 1..=3 {
            load.await_more(&rig, 50);
            rig.stop(id);
            load.await_more(&rig, 20);
            rig.restart(&[id]);
            rig.await_in_sync("orders", 3);
        }
    }
    let produced = load.finish();
    println!("longest gap of a producer: {:?}", produced.longest_gap);
    rig.verify("orders", produced.run, &produced.acknowledged);
}
