//! SIGTERM: a node hands over what it leads before it leaves.

use crate::{load::Load, rig::Rig};

#[test]
fn a_node_that_is_stopped_leads_nothing_any_more() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 30, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 30, 3);
    load.await_more(&rig, 60);
    rig.stop(1);
    rig.until("the others lead all", || {
        rig.topic("orders").partitions.values().all(|it| it.leader >= 0 && it.leader != 1)
    });
    load.await_more(&rig, 60);
    let log = rig.node(1).process.log();
    assert!(log.contains("leads nothing any more"), "{log}");
    rig.restart(&[1]);
    rig.await_in_sync("orders", 3);
    let produced = load.finish();
    println!("longest gap of a producer: {:?}", produced.longest_gap);
    rig.verify("orders", produced.run, &produced.acknowledged);
}
