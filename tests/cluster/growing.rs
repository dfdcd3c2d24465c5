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
fn a_node_that_crashes_while_it_joins_goes_on_with_all_its_topics() {
    let Some(mut rig) = Rig::start_alone() else { return };
    rig.create_topic("letters", 2, 1, &[]);
    let load = Load::start(&rig, "letters", 2, 2);
    load.await_more(&rig, 50);
    let produced = load.finish();
    let more: Vec<String> = (0..100).map(|number| format!("more-{number}")).collect();
    more.iter().for_each(|name| rig.create_topic(name, 1, 1, &[]));
    let ids = |rig: &Rig| rig.client().all_topics().unwrap().into_iter().map(|it| (it.name, it.id)).collect::<Vec<_>>();
    let before = ids(&rig);
    rig.stop(1);
    rig.node(1).join();
    let is_joining = |rig: &mut Rig| rig.node(1).remembers("joining = true");
    for pause_ms in [0, 10, 30, 60, 100, 200] {
        rig.node(1).process.start();
        let begun = std::time::Instant::now();
        while !is_joining(&mut rig) && begun.elapsed() < crate::node::PATIENCE && !rig.node(1).remembers("epoch = ") {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        rig.kill(1);
    }
    rig.restart(&[1]);
    assert!(!is_joining(&mut rig));
    assert_eq!(ids(&rig), before);
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
