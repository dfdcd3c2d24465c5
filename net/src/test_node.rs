//! A node of one shard in a directory of its own, for tests that need a real engine.

use std::collections::BTreeMap;

use millrace_engine::{
    engine::Engine,
    node::{NodeOptions, Stopper, run},
};

/// As [`on_numbered_node`], on node 1.
pub(crate) fn on_node(body: impl AsyncFn(Engine, Stopper) + Clone + Send + 'static) {
    on_numbered_node(1, body);
}

/// Runs a test's body on a node of that id, which is asked to stop when the body ends, if the body did not.
pub(crate) fn on_numbered_node(node_id: i32, body: impl AsyncFn(Engine, Stopper) + Clone + Send + 'static) {
    let dir = tempfile::tempdir().expect("a directory");
    let options = NodeOptions {
        data_dir: dir.path().to_owned(),
        node_id,
        shards: 1,
        pin: false,
        memory_bytes: 64 << 20,
        reserve_bytes: 1 << 20,
        wal_bytes: 96 << 20,
        topic_defaults: BTreeMap::new(),
        producer_id_expiration_ms: 86_400_000,
        retention_check_ms: 300_000,
    };
    let stopper = Stopper::default();
    let stop = stopper.clone();
    let work = move |engine: Engine| {
        let (body, stop) = (body.clone(), stop.clone());
        async move {
            body(engine, stop.clone()).await;
            stop.stop();
        }
    };
    run(options, stopper, work).expect("a clean end");
}
