//! From any shard to the one that coordinates a group.

use std::{future::Future, rc::Rc, time::Duration};

use futures_util::future::Either;
use kafka_protocol::error::ResponseError;
use millrace_engine::{api::TopicPartition, engine::Engine};

use super::{Groups, ensure_offsets_topic, partition_of};
use crate::coordinator::{
    group::{coordinator::Coordinator, error::GroupError},
    runtime::Ticket,
};

/// How long a shard's part of a list may take before the list goes without it.
const SHARD_TIMEOUT: Duration = Duration::from_secs(5);

/// This shard's coordinators, which may still be starting.
async fn here(engine: &Engine) -> Rc<Groups> {
    engine.attachment().await
}

/// The partition of `__consumer_offsets` that a group belongs to.
async fn locate(engine: &Engine, group: &str) -> Result<TopicPartition, GroupError> {
    let groups = here(engine).await;
    let topic = ensure_offsets_topic(engine, groups.settings()).await?;
    Ok(partition_of(&topic, group))
}

/// The shard that coordinates a group.
pub(crate) async fn coordinator_shard(engine: &Engine, group: &str) -> Result<usize, GroupError> {
    Ok(engine.owner(locate(engine, group).await?))
}

/// Lets the coordinator of a group handle a request, on whatever shard it is, and brings its reply.
pub(crate) async fn ask<R: Send + 'static>(
    engine: &Engine,
    group: &str,
    work: impl FnOnce(&mut Coordinator, i64, Ticket<R>) + Send + 'static,
) -> Result<R, GroupError> {
    let partition = locate(engine, group).await?;
    let shard = engine.owner(partition);
    engine.on_shard(shard, move |engine| async move { here(&engine).await.ask(partition, work).await }).await
}

/// Does something with this many groups, all at once: each with its own coordinator. Answers come in the order of the
/// groups.
pub(crate) async fn on_groups<R>(groups: Vec<String>, each: impl AsyncFn(String) -> R) -> Vec<R> {
    futures_util::future::join_all(groups.into_iter().map(|group| each(group))).await
}

/// Looks at the coordinator of a group. A shard that does not answer in time is told of as one that still loads, so that
/// it does not hold up what others say.
pub(crate) async fn read<R: Send + 'static>(
    engine: &Engine,
    group: &str,
    look: impl FnOnce(&Coordinator) -> R + Send + 'static,
) -> Result<R, GroupError> {
    let partition = locate(engine, group).await?;
    let shard = engine.owner(partition);
    let seen = engine.on_shard(shard, move |engine| async move { here(&engine).await.read(partition, look).await });
    in_time(seen).await.unwrap_or(Err(ResponseError::CoordinatorLoadInProgress))
}

/// What a shard answers, if it does so in time.
async fn in_time<R>(answer: impl Future<Output = R>) -> Option<R> {
    let (answer, timeout) = (std::pin::pin!(answer), std::pin::pin!(glommio::timer::sleep(SHARD_TIMEOUT)));
    match futures_util::future::select(answer, timeout).await {
        Either::Left((answer, _)) => Some(answer),
        Either::Right(_) => None,
    }
}

/// Looks at all coordinators of some shards, side by side. A shard that does not answer in time, or a partition that
/// cannot be loaded, is told of by an error beside what the others say.
pub(crate) async fn on_every_shard<R: Send + 'static>(
    engine: &Engine,
    shards: Vec<usize>,
    look: impl Fn(&Coordinator) -> Vec<R> + Clone + Send + 'static,
) -> (Vec<R>, Option<GroupError>) {
    let parts = shards.into_iter().map(|shard| {
        let look = look.clone();
        let part = engine.on_shard(shard, move |engine| async move {
            let groups = here(&engine).await;
            on_this_shard(&groups, look).await
        });
        async move { in_time(part).await.unwrap_or((Vec::new(), Some(ResponseError::CoordinatorLoadInProgress))) }
    });
    merge(futures_util::future::join_all(parts).await)
}

async fn on_this_shard<R>(groups: &Rc<Groups>, look: impl Fn(&Coordinator) -> Vec<R>) -> (Vec<R>, Option<GroupError>) {
    let Some(topic) = super::offsets_topic(&groups.engine) else {
        return (Vec::new(), None);
    };
    let all = (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition });
    let owned = all.filter(|partition| groups.engine.owner(*partition) == groups.engine.shard());
    let mut parts = Vec::new();
    for partition in owned {
        parts.push(match groups.read(partition, &look).await {
            Ok(found) => (found, None),
            Err(error) => (Vec::new(), Some(error)),
        });
    }
    merge(parts)
}

fn merge<R>(parts: Vec<(Vec<R>, Option<GroupError>)>) -> (Vec<R>, Option<GroupError>) {
    let mut all = Vec::new();
    let mut first = None;
    for (found, error) in parts {
        all.extend(found);
        first = first.or(error);
    }
    (all, first)
}
