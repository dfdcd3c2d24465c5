//! Nodes come, and the cluster says how it is.

use crate::rig::Rig;

#[test]
fn the_state_of_a_cluster_is_shown_with_what_is_wrong() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 3, &[]);
    let said = rig.millrace(&["cluster", "status"]);
    assert!(said.contains("3 nodes") && !said.contains("under-replicated"), "{said}");
    rig.kill(3);
    rig.await_in_sync("orders", 2);
    let said = rig.millrace(&["cluster", "status"]);
    assert!(said.contains("orders") && said.contains("under-replicated") && said.contains('3'), "{said}");
    rig.restart(&[3]);
    rig.await_in_sync("orders", 3);
}
