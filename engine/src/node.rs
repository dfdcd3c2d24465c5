//! Starts and stops a node: one executor thread per shard.
//! CONTRACT SKELETON: bodies follow.
#![allow(unused_variables, clippy::unimplemented, missing_docs)]

use std::{collections::BTreeMap, future::Future, path::PathBuf, sync::Arc};
use crate::engine::Engine;

/// What a node is started with. Checked by [`run`].
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Where everything is kept; created when missing.
    pub data_dir: PathBuf,
    /// The node's id as Kafka clients see it.
    pub node_id: i32,
    /// Number of shards, at least 1.
    pub shards: usize,
    /// Pin each shard to a CPU of its own.
    pub pin: bool,
    /// Memory of all shards together for cached and in-flight records, in bytes (receive buffers are the wire's).
    pub memory_bytes: usize,
    /// Free bytes of the file system below which produce is refused.
    pub reserve_bytes: u64,
    /// Size of a shard's write-ahead log in bytes.
    pub wal_bytes: u64,
    /// Defaults of topic settings, by topic setting name.
    pub topic_defaults: BTreeMap<String, String>,
    /// How long an idle producer id is remembered, ms (`producer.id.expiration.ms`).
    pub producer_id_expiration_ms: i64,
    /// Pause between rounds of retention, ms (`log.retention.check.interval.ms`).
    pub retention_check_ms: i64,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process holds the data directory.
    #[error("the data directory {path} is locked by another process{holder}")]
    Locked { path: PathBuf, holder: String },
    /// The file system refuses O_DIRECT.
    #[error("{path} lies on a file system without O_DIRECT ({reason})")]
    NoDirectIo { path: PathBuf, reason: String },
    /// io_uring cannot be used.
    #[error("io_uring cannot be set up: {0}")]
    NoUring(String),
    /// What is in the data directory is damaged or of an unknown format.
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
    /// A setting makes no sense.
    #[error("{0}")]
    Options(String),
    /// Anything else of the operating system.
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

/// Asks a node to stop, from any thread. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stopper { _inner: Arc<()> }

impl Stopper {
    /// Asks.
    pub fn stop(&self) { unimplemented!() }
}

/// Runs a node until it was stopped: recovers the data, starts `shards` threads, runs `serve` on each, and once all
/// have returned brings everything to rest and closes it. Blocks the calling thread.
pub fn run<F, Fut>(options: NodeOptions, stopper: Stopper, serve: F) -> Result<(), StartError>
where
    F: Fn(Engine) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    unimplemented!()
}
