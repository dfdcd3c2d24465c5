//! What groups committed outlives the node that kept it.

use crate::rig::Rig;

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
