//! Transactions as callers of the engine speak of them: who writes in one, how one ends, and who is asked whether a
//! producer's transaction includes a partition.
//!
//! The engine keeps what Kafka's partition leaders keep: which transactions are open in a partition, up to where it is
//! stable, which of them were aborted. What a transaction is across partitions, its coordinator decides, which is not
//! here. What always holds of them together: a transactional batch of a client is in the log only if its coordinator has
//! let the partition in, and it is acknowledged only once both the batch and that are on stable storage.
//!
//! Rules and names: KIP-98, KIP-890 (transaction version 2: the epoch goes up with each transaction, and partitions are
//! added by producing to them).

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;

use crate::api::{LogError, Produced, TopicPartition};
pub use crate::batch::{AbortedTransaction, Outcome};

/// In whose transaction the batches of a produce request are: all of them, as the request has one transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionalProducer {
    /// Its transactional id.
    pub transactional_id: Arc<str>,
    /// What becomes of partitions that the transaction does not include yet.
    pub adds: Adds,
}

/// How partitions come into a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adds {
    /// They were added before (Produce up to 11): the coordinator says whether that is so.
    Verify,
    /// By being produced to (Produce from 12 on, transaction version 2). A producer of which nothing is known begins with
    /// sequence 0 then (KAFKA-18202).
    Add,
}

/// What a partition's owner asks about a batch that must not be taken yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The partition that the batch is for.
    pub partition: TopicPartition,
    /// Who sent it.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// In which transaction, and whether the partition may be added to it.
    pub producer: TransactionalProducer,
}

/// A future that stays on its shard.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// The coordinator's yes.
pub enum Admission {
    /// The transaction includes the partition, on stable storage.
    Confirmed,
    /// The record that says so has its place in a log and will be on stable storage once this resolves; the batch is
    /// appended at once and acknowledged after both. Asked on the coordinator's own shard, record and batch so share a
    /// commit group, if the question's future is ready when it is first polled.
    Pending(LocalFuture<Result<(), LogError>>),
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Confirmed => "Confirmed",
            Self::Pending(_) => "Pending",
        })
    }
}

/// Who is asked whether a transaction includes a partition. One per shard, set by [`Engine::set_transaction_gate`].
///
/// [`Engine::set_transaction_gate`]: crate::engine::Engine::set_transaction_gate
pub trait TransactionGate {
    /// Answers a question; an error refuses the batch and those behind it. Called in the turn in which the batch arrived,
    /// and never again for the same producer, epoch and partition while an answer is awaited. The batch, and all that its
    /// producer sends to the partition after it, wait for the answer: [`ADMISSION_WAIT_MAX`]
    /// at most, then they are refused with [`LogError::ConcurrentTransactions`].
    fn ask(&self, question: Question) -> LocalFuture<Result<Admission, LogError>>;
}

/// How long a batch waits for its transaction's coordinator.
pub const ADMISSION_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// The end of a producer's transaction in one partition, to be written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Where.
    pub partition: TopicPartition,
    /// Whose.
    pub producer_id: i64,
    /// The epoch that the marker carries: from transaction version 2 on, one more than the transaction's.
    pub producer_epoch: i16,
    /// Epoch of the coordinator that decided.
    pub coordinator_epoch: i32,
    /// How it ends.
    pub outcome: Outcome,
    /// 2 and above: the epoch must go up, unless nothing is open or it cannot. Below, it may be the same.
    pub transaction_version: i16,
    /// Who has decided that.
    pub decided: Decided,
}

/// Why a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// Its coordinator says so.
    ByCoordinator,
    /// No coordinator will end it: it is refused if that is so no more, as its producer may have asked to be let in meanwhile.
    ByNobody {
        /// Where it was seen to begin.
        first_offset: i64,
        /// Where its newest batch was seen.
        last_batch_at: i64,
        /// Whether it was known then that a coordinator had it on stable storage.
        was_confirmed: bool,
    },
}

/// One part of what is written all at once.
#[derive(Clone, Debug)]
pub enum AtomicPart {
    /// A coordinator's records, as one batch with base offset 0.
    Batch {
        /// Where to.
        partition: TopicPartition,
        /// The batch.
        batch: Bytes,
    },
    /// The end of a transaction.
    Marker(Marker),
}

impl AtomicPart {
    /// Where it is written.
    pub fn partition(&self) -> TopicPartition {
        match self {
            Self::Batch { partition, .. } | Self::Marker(Marker { partition, .. }) => *partition,
        }
    }
}

/// Why parts that were to be written all at once were not: none of them was. Or they were, but this node ceased to lead one of
/// the partitions, or too few replicas are in sync, or the log failed ([`LogError::NotLeader`],
/// [`LogError::NotEnoughReplicasAfterAppend`], [`LogError::Storage`]): then nobody here knows what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("part {part}: {error}")]
pub struct AtomicRefused {
    /// The first one that cannot be written, or is in doubt.
    pub part: usize,
    /// Why.
    pub error: LogError,
}

/// The places of parts that were written all at once, in their order.
pub type AtomicAppended = Result<Vec<Produced>, AtomicRefused>;

/// A transaction that is open in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Where.
    pub partition: TopicPartition,
    /// Whose.
    pub producer_id: i64,
    /// The producer's newest epoch there.
    pub producer_epoch: i16,
    /// Epoch of the coordinator that wrote the producer's last marker there, or -1.
    pub coordinator_epoch: i32,
    /// Offset of its first batch.
    pub first_offset: i64,
    /// Offset of its newest batch since this node knows of it.
    pub last_batch_at: i64,
    /// When that was appended, ms since the epoch.
    pub started_ms: i64,
    /// Whether its coordinator is known to have it on stable storage.
    pub confirmed: bool,
}
