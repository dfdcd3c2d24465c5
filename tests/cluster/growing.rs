//! From one node to three, with what it has.

use crate::{load::Load, rig::Rig};

#[test]
fn a_node_with_data_becomes_the_first_of_three() {
    let Some(mut rig) = Rig::start_alone() else { return };
    rig.create_topic("letters", 3, 1, &[]);
    let load = Load::start(&rig, "letters", 3, 2);
    load.await_more(&rig, 50);
    let produced = load.finish();
    let id = rig.topic("letters").id;
    rig.stop(1);
    rig.node(1).join();
    rig.restart(&[1]);
    rig.add(2);
    rig.add(3);
    rig.await_all();
    assert_eq!(rig.topic("letters").id, id, "the topic is the one that it was");
    rig.millrace(&["cluster", "spread", "--replicas", "3"]);
    rig.await_in_sync("letters", 3);
    rig.kill(1);
    rig.await_in_sync("letters", 2);
    rig.verify("letters", produced.run, &produced.acknowledged);
}

#[test]
fn a_node_with_topics_cannot_join_a_cluster_that_has_others() {
    let Some(mut rig) = Rig::start_alone() else { return };
    rig.create_topic("mine", 1, 1, &[]);
    rig.stop(1);
    rig.add(2);
    rig.node(2).await_ready();
    rig.create_topic("theirs", 1, 1, &[]);
    rig.node(1).join();
    rig.node(1).process.start();
    let status = rig.node(1).process.await_end();
    let log = rig.node(1).process.log();
    assert!(!status.success() && log.contains("start this node with an empty --data"), "{status}: {log}");
    // and alone it has everything as before
    rig.node(1).stay_alone();
    rig.restart(&[1]);
    assert!(rig.client_of(1).topic("mine", false).is_ok());
}
