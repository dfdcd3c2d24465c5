//! What a node is started with, and why it could not start.

use std::{collections::BTreeMap, fmt, io, path::PathBuf};

use crate::{doubt::Doubts, format::catalog::Catalog, store::OpenError};

/// What a node is started with. Checked by [`crate::node::run`].
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

/// Who has the lock of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockHolder {
    /// A process that runs, by its number.
    Runs(u32),
    /// One that is not to be seen: it is gone, and the last of its writes have not ended, or it is in another container.
    Unseen,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs(pid) => write!(f, "pid {pid}"),
            Self::Unseen => f.write_str(
                "a process that is not to be seen: it is in another container, or was killed with writes on their way to \
                 the disk",
            ),
        }
    }
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process holds the data directory.
    #[error("the data directory {path} is in use by {holder}")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What is known of the other process.
        holder: LockHolder,
    },
    /// The file system refuses O_DIRECT.
    #[error("{path} lies on a file system without O_DIRECT ({reason})")]
    NoDirectIo {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// io_uring cannot be used.
    #[error("io_uring cannot be set up: {0}")]
    NoUring(String),
    /// What is in the data directory is damaged.
    #[error("{path}: {reason}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What.
        reason: String,
    },
    /// What is in the data directory was written by a version that knows more than this one.
    #[error("{path}: {reason}")]
    Newer {
        /// Where.
        path: PathBuf,
        /// What.
        reason: String,
    },
    /// Records that were acknowledged, as far as can be told, are not in the shared log.
    #[error("{path}: {doubts}")]
    Lost {
        /// The log's folder.
        path: PathBuf,
        /// Which.
        doubts: Box<Doubts>,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Options(String),
    /// Anything else of the operating system.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl StartError {
    /// A store that cannot be opened; the catalog knows the names of topics.
    pub(crate) fn of_open(error: OpenError, catalog: &Catalog) -> Self {
        match error {
            OpenError::Io { path, source } => Self::io(path.display(), source),
            OpenError::Damaged { path, reason } => Self::Damaged { path, reason },
            OpenError::Lost(mut doubts) => {
                doubts.name_topics(|id| Some(catalog.topics.get(&id.topic)?.name.clone()));
                Self::Lost { path: doubts.folder.clone(), doubts }
            }
        }
    }

    /// A file that could not be read or written, and what for.
    pub(crate) fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }
}
