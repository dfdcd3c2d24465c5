//! Without etcd, what is going on goes on; what needs a decision says why it waits.

use millrace_client::TopicSpec;

use crate::{load::Load, rig::Rig};

#[test]
fn produce_goes_on_while_etcd_is_away_and_topics_wait_for_it() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 2);
    load.await_more(&rig, 20);
    rig.etcd().kill();
    load.await_more(&rig, 100);
    let spec = TopicSpec { name: "later".to_owned(), partitions: Some(1), replicas: Some(3), settings: Vec::new() };
    let refused = rig.client().create_topic(&spec, false);
    refused.expect_err("nobody can decide");
    // longer than any lease: who is a member is over, what is acknowledged is not
    std::thread::sleep(std::time::Duration::from_secs(6));
    load.await_more(&rig, 50);
    rig.etcd().restart();
    rig.until("topics are created again", || match rig.client().create_topic(&spec, false) {
        Ok(()) => true,
        Err(error) => error.code() == Some(36), // an attempt that seemed to fail had been taken
    });
    load.await_more(&rig, 50);
    let produced = load.finish();
    rig.await_in_sync("orders", 3);
    rig.verify("orders", produced.run, &produced.acknowledged);
}
