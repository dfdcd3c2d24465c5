//! A whole node for the length of a test's body.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    path::Path,
    sync::{Arc, Mutex},
};

use futures_util::FutureExt;
use millrace_engine::{
    engine::Engine,
    node::{NodeOptions, Stopper, run},
};

/// A small node whose retention does not run by itself within a test.
pub(crate) fn options(dir: &Path, shards: usize) -> NodeOptions {
    NodeOptions {
        data_dir: dir.to_owned(),
        node_id: 1,
        shards,
        pin: false,
        memory_bytes: shards * (64 << 20),
        reserve_bytes: 1 << 20,
        wal_bytes: 96 << 20,
        topic_defaults: BTreeMap::new(),
        producer_id_expiration_ms: 86_400_000,
        retention_check_ms: 300_000,
    }
}

/// Runs a node, and `body` on shard 0 of it; stops when the body ends.
pub(crate) fn with_node<T, F, Fut>(options: NodeOptions, body: F) -> T
where
    T: Send + 'static,
    F: FnOnce(Engine) -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    let stopper = Stopper::default();
    let body = Arc::new(Mutex::new(Some(body)));
    let result = Arc::new(Mutex::new(None));
    let (out, stop) = (result.clone(), stopper.clone());
    run(options, stopper, move |engine: Engine| {
        let (body, out, stop) = (body.clone(), out.clone(), stop.clone());
        async move {
            if engine.shard() != 0 {
                return engine.stopping().await;
            }
            let body = body.lock().unwrap().take().unwrap();
            // A panic of one shard would leave the others waiting.
            let value = AssertUnwindSafe(body(engine)).catch_unwind().await;
            out.lock().unwrap().replace(value);
            stop.stop();
        }
    })
    .unwrap();
    let value = result.lock().unwrap().take();
    value.unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
