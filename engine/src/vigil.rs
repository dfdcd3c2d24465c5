//! A shard's own look at itself: every second it looks whether anything stands still, says so once, and leaves word for
//! the threads outside. It never makes anything move.

use std::time::Duration;

use crate::{
    api::TopicPartition,
    engine::Engine,
    io::Io,
    stall::{Change, Waiting},
    vitals::ShardVitals,
};

const TICK: Duration = Duration::from_secs(1);

/// Looks until the executor ends: also while the node stops, which may take long because of what is seen here.
pub(crate) async fn keep_vigil(engine: Engine) {
    loop {
        engine.0.io.sleep(TICK).await;
        if let Some(change) = engine.0.store.look_for_stalls() {
            tell(&engine, change);
        }
        leave_word(&engine);
    }
}

fn tell(engine: &Engine, change: Change<Waiting>) {
    let shard = engine.shard();
    match change {
        Change::Begun { who, waited } => {
            let standing = engine.0.store.standing(|id| name(engine, id));
            tracing::error!(
                shard,
                "stalled: {who} has waited for {} s while nothing moved; {standing}",
                waited.as_secs()
            );
        }
        Change::Over { who, lasted } => {
            tracing::warn!(shard, "the stall is over: nothing moved for {who} for {} s", lasted.as_secs());
        }
    }
}

fn leave_word(engine: &Engine) {
    let store = &engine.0.store;
    let is_stopping = engine.is_stopping();
    engine.0.mail.tell(ShardVitals {
        is_stalled: store.is_stalled() || engine.0.requests_stalled.get(),
        left_bytes: store.live_bytes(),
        left_partitions: is_stopping.then(|| store.left().partitions),
    });
}

/// What people call a partition.
fn name(engine: &Engine, id: TopicPartition) -> String {
    match engine.topics().by_id.get(&id.topic) {
        Some(topic) => format!("{}-{}", topic.name, id.partition),
        None => format!("{}-{}", id.topic, id.partition),
    }
}
