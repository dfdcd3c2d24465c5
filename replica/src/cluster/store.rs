//! What the control plane asks of its store, in etcd's terms: revisions, transactions with compares, leases, a watch.
//!
//! `etcd` itself keeps them, one of two nodes ([`super::kept`]), or [`super::memory`] with the same semantics, on which that
//! rests. Callers name keys without the cluster's prefix.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::restored::Progress;

/// Operations of one transaction at most, and compares at most: what etcd takes unless told otherwise.
pub const TRANSACTION_OPERATIONS_MAX: usize = 128;

/// Bytes of all keys and values of one transaction at most: below etcd's limit for a request, 1.5 MiB, with prefixes and lengths.
pub const TRANSACTION_BYTES_MAX: usize = 1 << 20;

/// A lease's id; 0 is none.
pub type LeaseId = i64;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key, without the cluster's prefix.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Revision that created it.
    pub created: i64,
    /// Revision of its last write.
    pub modified: i64,
    /// Writes since it was created, with that: 1 for a new key.
    pub version: i64,
    /// The lease that it goes with; 0 is none.
    pub lease: LeaseId,
}

/// What must hold for a transaction to be done. A key that is not there has 0 for both revisions and no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// The key was created by that revision; 0: it is not there.
    Created(String, i64),
    /// The key was not created by that revision.
    NotCreated(String, i64),
    /// The key is there.
    Exists(String),
    /// The key was last written by that revision; 0: it is not there.
    Modified(String, i64),
    /// The key has that value.
    Value(String, Vec<u8>),
}

impl Compare {
    /// The key looked at.
    pub fn key(&self) -> &str {
        match self {
            Self::Created(key, _) | Self::NotCreated(key, _) | Self::Modified(key, _) => key,
            Self::Exists(key) | Self::Value(key, _) => key,
        }
    }
}

/// What a transaction does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Writes a key, bound to a lease if it is not 0.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease, 0 for none.
        lease: LeaseId,
    },
    /// Deletes a key if it is there.
    Delete(String),
    /// Deletes every key that begins so.
    DeletePrefix(String),
}

impl Operation {
    /// The key that is written or deleted, or what those begin with that are.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete(key) | Self::DeletePrefix(key) => key,
        }
    }
}

/// All or nothing: the operations, if every compare holds. No key is written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is done then.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// One that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a compare, once.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.require(compare);
        self
    }

    /// Adds a compare, once.
    pub fn require(&mut self, compare: Compare) {
        if !self.compares.contains(&compare) {
            self.compares.push(compare);
        }
    }

    /// Adds a write without a lease.
    #[must_use]
    pub fn put(mut self, key: String, value: Vec<u8>) -> Self {
        self.operations.push(Operation::Put { key, value, lease: 0 });
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, key: String) -> Self {
        self.operations.push(Operation::Delete(key));
        self
    }

    /// Whether etcd takes it in one piece.
    pub fn fits(&self) -> bool {
        self.compares.len() <= TRANSACTION_OPERATIONS_MAX
            && self.operations.len() <= TRANSACTION_OPERATIONS_MAX
            && self.bytes() <= TRANSACTION_BYTES_MAX
    }

    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        let compared = self.compares.iter().map(|compare| match compare {
            Compare::Value(key, value) => key.len() + value.len(),
            other => other.key().len(),
        });
        let done = self.operations.iter().map(|operation| match operation {
            Operation::Put { key, value, .. } => key.len() + value.len(),
            other => other.key().len(),
        });
        compared.chain(done).sum()
    }
}

/// What came of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was done, and is that revision. What did not write has the store's.
    Done(i64),
    /// A compare did not hold; the store's revision. Nothing was done.
    Refused(i64),
}

/// Some keys, as they stood at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The store's revision when it answered.
    pub revision: i64,
    /// The keys, in their order.
    pub entries: Vec<KeyValue>,
    /// There are more behind the last one.
    pub more: bool,
}

/// One change that a watch tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A key was written.
    Put(KeyValue),
    /// A key is gone: deleted, or its lease ended.
    Gone {
        /// The key.
        key: String,
        /// The revision that took it away.
        revision: i64,
    },
}

impl Change {
    /// The revision that did it.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(entry) => entry.modified,
            Self::Gone { revision, .. } => *revision,
        }
    }

    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Gone { key, .. } => key,
        }
    }
}

/// What a watch brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watched {
    /// Changes, all those of each revision together, in order of revisions. None: the watch is there.
    Changes(Vec<Change>),
    /// Nothing came within the time.
    Quiet,
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum StoreError {
    /// No answer, or not from all that it takes. What was asked may have been done, or be done yet.
    #[error("etcd does not answer: {0}")]
    Away(String),
    /// The revision asked for is compacted away; what is left begins at that one. Read everything anew.
    #[error("etcd's history before revision {0} is compacted")]
    Compacted(i64),
    /// It answered, and said no. Nothing was done.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// Its space is used up: it takes no writes until somebody makes room. Nothing was done.
    #[error(
        "etcd takes no writes, its space is used up ({0}): 'etcdctl compact' up to its revision, 'etcdctl defrag', 'etcdctl \
         alarm disarm', and start it with --auto-compaction-retention 5m"
    )]
    Full(String),
    /// The lease is over or never was.
    #[error("the lease is over")]
    LeaseOver,
    /// The answer makes no sense. What was asked may have been done.
    #[error("etcd's answer makes no sense: {0}")]
    Nonsense(String),
}

impl StoreError {
    /// Whether what was asked may have been done all the same.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Nonsense(_))
    }
}

/// A store. Every call blocks, up to the timeout that the store was made with.
pub trait Store: Send {
    /// What a watch is held by.
    type Watch: Watch;

    /// Does a transaction, or not.
    fn transact(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// Keys that begin with `prefix`, from behind `after` on, at most `limit`, as they stood at `revision` (0: now).
    fn range(&mut self, prefix: &str, after: Option<&str>, revision: i64, limit: usize) -> Result<Page, StoreError>;

    /// Watches every key of the cluster, from that revision on.
    fn watch(&mut self, from: i64) -> Result<Self::Watch, StoreError>;

    /// A new lease.
    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Asks for a lease to last for its whole time again; the store's revision. That it says yes proves nothing of the
    /// lease: the key must be there.
    fn keep_alive(&mut self, lease: LeaseId) -> Result<i64, StoreError>;

    /// Ends a lease and all keys that go with it.
    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError>;

    /// Forgets history before that revision.
    fn compact(&mut self, revision: i64) -> Result<(), StoreError>;

    /// Which store this is: etcd's cluster id. Another one, and revisions mean nothing.
    fn identity(&mut self) -> Result<u64, StoreError>;

    /// How far it is; nothing of a store without a Raft log, which is not restored from backups.
    fn progress(&mut self) -> Result<Option<Progress>, StoreError> {
        Ok(None)
    }
}

/// A watch. Dropped, it ends.
pub trait Watch: Send {
    /// What came next, waiting for that long. After an error the watch is over.
    fn next(&mut self, wait: Duration) -> Result<Watched, StoreError>;
}
