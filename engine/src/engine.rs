//! The engine as one shard's caller sees it: every partition of the node, wherever it lives.
//! CONTRACT SKELETON: bodies follow.
#![allow(unused_variables, clippy::unimplemented, missing_docs)]

use std::{any::Any, collections::{BTreeMap, HashMap}, future::Future, path::Path, rc::Rc};
use uuid::Uuid;
use crate::{api::*, config::TopicConfig};

/// A topic as every shard knows it. Immutable; a change makes a new one.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Settings that differ from the broker's defaults, as the user wrote them.
    pub overrides: BTreeMap<String, String>,
    /// All settings, parsed.
    pub config: Rc<TopicConfig>,
}

/// All topics. A snapshot: holders see no later change.
#[derive(Debug, Default, Clone)]
pub struct Topics {
    /// By name, sorted.
    pub by_name: BTreeMap<String, Rc<Topic>>,
    /// By id.
    pub by_id: HashMap<TopicId, Rc<Topic>>,
}

/// Handle to the whole node's engine on one shard; clones share it. Not `Send`.
#[derive(Clone)]
pub struct Engine { _inner: Rc<()> }

impl Engine {
    /// This shard's index.
    pub fn shard(&self) -> usize { unimplemented!() }
    /// Number of shards.
    pub fn shards(&self) -> usize { unimplemented!() }
    /// The shard that owns a partition: where its requests are served without a hop.
    pub fn owner(&self, partition: TopicPartition) -> usize { unimplemented!() }
    /// The cluster's id, kept in the data directory.
    pub fn cluster_id(&self) -> Uuid { unimplemented!() }
    /// This node's id.
    pub fn node_id(&self) -> i32 { unimplemented!() }
    /// The data directory.
    pub fn data_dir(&self) -> &Path { unimplemented!() }
    /// Broker-wide defaults that topics inherit, by *topic* setting name (e.g. from the config file).
    pub fn topic_defaults(&self) -> Rc<BTreeMap<String, String>> { unimplemented!() }
    /// Dynamic broker settings, by broker setting name; durable, the same on every shard.
    pub fn broker_settings(&self) -> Rc<BTreeMap<String, String>> { unimplemented!() }
    /// Changes dynamic broker settings. The engine checks only that it can store them; the caller knows which exist.
    pub async fn alter_broker_settings(&self, changes: Vec<ConfigChange>) -> Result<(), TopicError> { unimplemented!() }
    /// All topics now.
    pub fn topics(&self) -> Rc<Topics> { unimplemented!() }
    /// Creates a topic, durable and known to every shard when it returns. `validate_only` only checks.
    pub async fn create_topic(&self, topic: NewTopic, validate_only: bool) -> Result<Rc<Topic>, TopicError> { unimplemented!() }
    /// Deletes a topic.
    pub async fn delete_topic(&self, topic: TopicId) -> Result<(), TopicError> { unimplemented!() }
    /// Changes a topic's settings.
    pub async fn alter_topic(&self, topic: TopicId, changes: Vec<ConfigChange>, validate_only: bool) -> Result<(), TopicError> { unimplemented!() }
    /// Gives a topic more partitions: `partitions` in all.
    pub async fn create_partitions(&self, topic: TopicId, partitions: i32, validate_only: bool) -> Result<(), TopicError> { unimplemented!() }
    /// Appends batches. The order among calls is fixed when this returns; the future resolves once every batch is
    /// durable as its topic says (or refused). One answer per part, in order. Dropping the future undoes nothing.
    pub fn produce(&self, parts: Vec<ProducePartition>) -> impl Future<Output = Vec<Result<Produced, LogError>>> + 'static { async { unimplemented!() } }
    /// Reads; waits up to `max_wait` for `min_bytes`. One answer per partition, in order.
    pub async fn fetch(&self, fetch: Fetch) -> Vec<Result<Fetched, LogError>> { unimplemented!() }
    /// Answers a question for an offset.
    pub async fn list_offset(&self, partition: TopicPartition, spec: OffsetSpec, leader_epoch: i32) -> Result<FoundOffset, LogError> { unimplemented!() }
    /// End offset of a leader epoch: the largest epoch not above the one asked, and its end; (-1, -1) for none.
    pub async fn epoch_end_offset(&self, partition: TopicPartition, current_leader_epoch: i32, leader_epoch: i32) -> Result<(i32, i64), LogError> { unimplemented!() }
    /// Moves the log start up to `before` (-1: to the high watermark); answers the new log start, durable.
    pub async fn delete_records(&self, partition: TopicPartition, before: i64) -> Result<i64, LogError> { unimplemented!() }
    /// Bytes on disk of every partition of these topics (`None`: of all), for DescribeLogDirs.
    pub async fn partition_sizes(&self, topics: Option<Vec<TopicId>>) -> Vec<(TopicPartition, u64)> { unimplemented!() }
    /// Total and usable bytes of the data directory's file system.
    pub fn volume_bytes(&self) -> (u64, u64) { unimplemented!() }
    /// Idempotent producers that a partition remembers.
    pub async fn active_producers(&self, partition: TopicPartition) -> Result<Vec<ActiveProducer>, LogError> { unimplemented!() }
    /// A producer id that was never given out before.
    pub async fn next_producer_id(&self) -> Result<i64, LogError> { unimplemented!() }
    /// Runs `work` on another shard (or this one) with that shard's handle and brings its result back. Calls to one
    /// shard made in the same turn travel together.
    pub async fn on_shard<F, R>(&self, shard: usize, work: impl FnOnce(Engine) -> F + Send + 'static) -> R
    where F: Future<Output = R> + 'static, R: Send + 'static { unimplemented!() }
    /// Keeps a value for this shard's life, e.g. the wire's own state, so that work sent by [`Engine::on_shard`] finds it.
    pub fn attach<T: 'static>(&self, value: Rc<T>) { unimplemented!() }
    /// The value attached by [`Engine::attach`].
    pub fn attached<T: 'static>(&self) -> Option<Rc<T>> { let _: Option<Box<dyn Any>> = None; unimplemented!() }
    /// Resolves when the node was asked to stop.
    pub async fn stopping(&self) { unimplemented!() }
}
