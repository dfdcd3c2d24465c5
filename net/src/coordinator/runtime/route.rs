//! From any shard to the machine that coordinates a key: by the internal topic, which is made when it is first needed.

use std::{future::Future, rc::Rc, time::Duration};

use futures_util::future::{Either, LocalBoxFuture, join_all, select};
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{NewTopic, TopicError, TopicPartition},
    engine::{Engine, Topic},
};

use super::{
    shell::{Kind, Runtime},
    ticket::Ticket,
};
use crate::errors::log_error;

/// What coordinators ask of the control plane of a cluster: what is the engine's own business on a node that is alone.
pub(crate) trait ClusterControl {
    /// Makes an internal topic, unless it is there; this shard's engine knows it when that is done.
    fn make_topic(&self, topic: NewTopic) -> LocalBoxFuture<'_, Result<(), ResponseError>>;
    /// A producer id that was never given out before.
    fn next_producer_id(&self) -> LocalBoxFuture<'_, Result<i64, ResponseError>>;
}

/// Attached to the engine of every shard of a node in a cluster.
pub(crate) struct AttachedControl(pub(crate) Box<dyn ClusterControl>);

/// A producer id that was never given out before.
pub(crate) async fn next_producer_id(engine: &Engine) -> Result<i64, ResponseError> {
    match engine.attached::<AttachedControl>() {
        Some(control) => control.0.next_producer_id().await,
        None => engine.next_producer_id().await.map_err(|error| log_error(&error)),
    }
}

/// How long a shard may take to show what it has before others go on without it.
const SHARD_TIMEOUT: Duration = Duration::from_secs(5);

/// The partition that a key belongs to: Java's `String.hashCode` without its sign, modulo the number of partitions, as
/// every Kafka client and tool expects.
fn partition_of(topic: &Topic, key: &str) -> TopicPartition {
    TopicPartition { topic: topic.id, partition: index_of(key, topic.partitions) }
}

fn index_of(key: &str, partitions: i32) -> i32 {
    java_hash(key).checked_abs().unwrap_or(0) % partitions.max(1)
}

fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0, |hash: i32, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// What a shard answers, if it does so in time.
async fn in_time<R>(answer: impl Future<Output = R>) -> Option<R> {
    let (answer, timeout) = (std::pin::pin!(answer), std::pin::pin!(glommio::timer::sleep(SHARD_TIMEOUT)));
    match select(answer, timeout).await {
        Either::Left((answer, _)) => Some(answer),
        Either::Right(_) => None,
    }
}

impl<K: Kind> Runtime<K> {
    /// The topic, if it is there.
    pub(crate) fn topic(engine: &Engine) -> Option<Rc<Topic>> {
        engine.topics().by_name.get(K::TOPIC).cloned()
    }

    async fn make_topic(engine: &Engine) -> Result<Rc<Topic>, ResponseError> {
        let new = Self::here(engine).await.kind().new_topic();
        if let Some(control) = engine.attached::<AttachedControl>() {
            control.0.make_topic(new).await?;
            return Self::topic(engine).ok_or(ResponseError::CoordinatorNotAvailable);
        }
        match engine.create_topic(new, false).await {
            Ok(topic) => Ok(topic),
            // another shard was faster
            Err(TopicError::Exists(_)) => Self::topic(engine).ok_or(ResponseError::CoordinatorNotAvailable),
            Err(error) => {
                tracing::error!(topic = K::TOPIC, %error, "the topic cannot be created");
                Err(ResponseError::CoordinatorNotAvailable)
            }
        }
    }

    /// The partition that a key belongs to, if the topic is there.
    pub(crate) fn place(engine: &Engine, key: &str) -> Option<TopicPartition> {
        Some(partition_of(&*Self::topic(engine)?, key))
    }

    /// The partition that a key belongs to.
    pub(crate) async fn locate(engine: &Engine, key: &str) -> Result<TopicPartition, ResponseError> {
        let topic = match Self::topic(engine) {
            Some(topic) => topic,
            None => Self::make_topic(engine).await?,
        };
        Ok(partition_of(&topic, key))
    }

    /// Lets the machine of a key handle a request, on whatever shard it is, and brings its answer.
    pub(crate) async fn ask_for<R: Send + 'static>(
        engine: &Engine,
        key: &str,
        work: impl FnOnce(&mut K::Machine, i64, Ticket<R>) + Send + 'static,
    ) -> Result<R, ResponseError> {
        let partition = Self::locate(engine, key).await?;
        let asked = move |engine| async move { Self::here(&engine).await.ask(partition, work).await };
        engine.on_shard(engine.owner(partition), asked).await
    }

    /// Looks at the machine of a key. A shard that does not answer in time is told of as one that still loads, so that it
    /// does not hold up what others say.
    pub(crate) async fn read_for<R: Send + 'static>(
        engine: &Engine,
        key: &str,
        look: impl FnOnce(&K::Machine) -> R + Send + 'static,
    ) -> Result<R, ResponseError> {
        let partition = Self::locate(engine, key).await?;
        let seen = move |engine| async move { Self::here(&engine).await.read(partition, look).await };
        let seen = engine.on_shard(engine.owner(partition), seen);
        in_time(seen).await.unwrap_or(Err(ResponseError::CoordinatorLoadInProgress))
    }

    /// Looks at all machines of some shards, side by side. A shard that does not answer in time, or a partition that
    /// cannot be loaded, is told of by an error beside what the others say.
    pub(crate) async fn read_all<R: Send + 'static>(
        engine: &Engine,
        shards: Vec<usize>,
        look: impl Fn(&K::Machine) -> Vec<R> + Clone + Send + 'static,
    ) -> (Vec<R>, Option<ResponseError>) {
        let parts = shards.into_iter().map(|shard| {
            let look = look.clone();
            let part =
                engine.on_shard(shard, move |engine| async move { Self::here(&engine).await.read_here(look).await });
            async move { in_time(part).await.unwrap_or((Vec::new(), Some(ResponseError::CoordinatorLoadInProgress))) }
        });
        merge(join_all(parts).await)
    }

    async fn read_here<R>(self: Rc<Self>, look: impl Fn(&K::Machine) -> Vec<R>) -> (Vec<R>, Option<ResponseError>) {
        let mut parts = Vec::new();
        for partition in self.led().into_keys() {
            parts.push(match self.read(partition, &look).await {
                Ok(found) => (found, None),
                Err(error) => (Vec::new(), Some(error)),
            });
        }
        merge(parts)
    }
}

fn merge<R>(parts: Vec<(Vec<R>, Option<ResponseError>)>) -> (Vec<R>, Option<ResponseError>) {
    let mut all = Vec::new();
    let mut first = None;
    for (found, error) in parts {
        all.extend(found);
        first = first.or(error);
    }
    (all, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_belong_where_java_says() {
        // hashCode of "group" is 98629247, of "" 0
        assert_eq!(index_of("group", 50), 47);
        assert_eq!(index_of("", 50), 0);
        // a string whose hash is the smallest number, which has no absolute value
        assert_eq!(java_hash("polygenelubricants"), i32::MIN);
        assert_eq!(index_of("polygenelubricants", 50), 0);
        // characters beyond 16 bits count as two
        assert_eq!(java_hash("\u{1f980}"), 0xd83e * 31 + 0xdd80);
    }
}
