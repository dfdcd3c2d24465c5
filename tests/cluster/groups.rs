//! What groups committed outlives the node that kept it.

use crate::{committer::Committer, node::rounds, rig::Rig};

#[test]
fn committed_offsets_are_kept_over_the_loss_of_any_node() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 1, 3, &[("min.insync.replicas", "2")]);
    let load = crate::load::Load::start(&rig, "orders", 1, 1);
    load.await_more(&rig, 10);
    let produced = load.finish();
    rig.millrace(&["group", "reset", "billing", "--topic", "orders", "--to", "latest"]);
    rig.await_in_sync("__consumer_offsets", 3);
    let end = produced.acknowledged.count().to_string();
    for id in 1..=3 {
        rig.kill(id);
        rig.await_in_sync("__consumer_offsets", 2);
        let said = rig.millrace(&["group", "describe", "billing"]);
        let line = said.lines().find(|line| line.starts_with("orders")).unwrap_or_default();
        assert_eq!(line.split_whitespace().nth(2), Some(end.as_str()), "{said}");
        rig.restart(&[id]);
        rig.await_in_sync("__consumer_offsets", 3);
        rig.await_in_sync("orders", 3);
    }
}

#[test]
fn committed_offsets_never_go_back_while_coordinators_are_killed_and_stand_still() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 1, 3, &[("min.insync.replicas", "2")]);
    let committer = Committer::start(&rig, "billing");
    committer.await_more(&rig, 20);
    rig.await_in_sync("__consumer_offsets", 3);
    for _ in 0..rounds(1) {
        let coordinator = rig.client().coordinator("billing").unwrap();
        rig.kill(coordinator);
        committer.await_more(&rig, 20);
        rig.restart(&[coordinator]);
        rig.await_in_sync("__consumer_offsets", 3);
        committer.await_more(&rig, 20);
        // one that does not know that it was replaced
        let coordinator = rig.client().coordinator("billing").unwrap();
        rig.node(coordinator).process.pause();
        rig.until("another coordinator is found", || {
            rig.client_without(coordinator).coordinator("billing").is_ok_and(|found| found != coordinator)
        });
        committer.await_more(&rig, 20);
        rig.node(coordinator).process.resume();
        committer.ask(&rig, coordinator);
        rig.await_in_sync("__consumer_offsets", 3);
        committer.await_more(&rig, 20);
    }
    println!("{} commits", committer.finish());
}
