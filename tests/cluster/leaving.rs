//! From several nodes back to one, with all that there is.

use crate::{load::Load, rig::Rig};

#[test]
fn the_last_node_of_a_cluster_goes_on_alone() {
    let Some(mut rig) = Rig::start(2, "") else { return };
    rig.create_topic("orders", 3, 2, &[]);
    let load = Load::start(&rig, "orders", 3, 2);
    load.await_more(&rig, 50);
    let produced = load.finish();
    let before = rig.topic("orders");
    rig.stop(1);
    let (left, said) = rig.node(1).offline("cluster leave");
    assert!(!left && said.contains("nodes 2 run") && said.contains("node 2 has replicas"), "{said}");
    rig.restart(&[1]);
    rig.await_in_sync("orders", 2);
    rig.millrace(&["cluster", "gather", "1"]);
    rig.until("node 1 has all", || rig.topic("orders").partitions.values().all(|it| it.replicas == [1]));
    rig.stop(2);
    // topics of coordinators may have got a second replica meanwhile
    rig.until("node 1 has all", || {
        rig.millrace(&["cluster", "gather", "1"]);
        rig.client()
            .all_topics()
            .is_ok_and(|all| all.iter().flat_map(|topic| topic.partitions.values()).all(|it| it.replicas == [1]))
    });
    rig.stop(1);
    // cut short after the first step, it is the cluster's node as before
    let member = rig.node(1).path("member.toml");
    let life = std::fs::read(&member).unwrap();
    let (left, said) = rig.node(1).offline("cluster leave --etcd-is-gone");
    assert!(left, "{said}");
    std::fs::write(&member, &life).unwrap();
    rig.restart(&[1]);
    rig.verify("orders", produced.run, &produced.acknowledged);
    rig.stop(1);
    let (looked, said) = rig.node(1).offline("cluster leave --dry-run");
    assert!(looked && said.contains("nothing was changed"), "{said}");
    let (left, said) = rig.node(1).offline("cluster leave");
    assert!(left && said.contains("the cluster is no more"), "{said}");
    assert!(!member.exists());
    rig.node(1).stay_alone();
    rig.restart(&[1]);
    let now = rig.topic("orders");
    assert_eq!(now.id, before.id);
    let goes_on = |(index, was): (&i32, &millrace_client::Partition)| {
        now.partitions[index].leader_epoch > was.leader_epoch && now.partitions[index].leader == 1
    };
    assert!(before.partitions.iter().all(goes_on), "{before:?} {now:?}");
    rig.verify("orders", produced.run, &produced.acknowledged);
    let load = Load::start(&rig, "orders", 3, 2);
    load.await_more(&rig, 50);
    load.finish();
    // and it may be the first of a cluster again
    rig.stop(1);
    let (joined, said) = rig.node(1).offline("cluster join");
    assert!(joined && said.contains("ids, offsets, groups and settings stay"), "{said}");
    rig.node(1).join();
    rig.restart(&[1]);
    rig.verify("orders", produced.run, &produced.acknowledged);
}
