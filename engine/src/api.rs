//! What callers of the engine say and hear: plain data that may cross shards, and the errors.
//!
//! Everything here but [`Records`] is `Send`; a [`Records`] read on another shard arrives as plain bytes.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use uuid::Uuid;

pub use crate::batch::AbortedTransaction;
use crate::batch::BatchError;

/// A topic's id, as Kafka's protocol carries it. Never the nil UUID.
pub type TopicId = Uuid;

/// One partition of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic's id.
    pub topic: TopicId,
    /// Index of the partition, from 0.
    pub partition: i32,
}

/// The leader epoch of a partition that is on one node alone: leadership never moves.
pub const LEADER_EPOCH: i32 = 0;

/// One partition's part of a produce request.
#[derive(Debug)]
pub struct ProducePartition {
    /// Where to.
    pub partition: TopicPartition,
    /// One record batch (magic 2), as it came off the wire.
    pub batch: Bytes,
}

/// How many replicas must have a batch before it is answered, as Kafka's `acks` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// 0: no answer is waited for.
    None,
    /// 1: the leader.
    Leader,
    /// -1: every replica that is in sync.
    All,
}

impl Acks {
    /// As it stands in a produce request; none if it has no meaning there (INVALID_REQUIRED_ACKS).
    pub fn of_wire(acks: i16) -> Option<Self> {
        match acks {
            0 => Some(Self::None),
            1 => Some(Self::Leader),
            -1 => Some(Self::All),
            _ => None,
        }
    }
}

/// What the answer to a batch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcksWithin {
    /// Who must have it.
    pub acks: Acks,
    /// How long that is waited for: then it is [`LogError::NotInTime`]. None: for as long as it takes.
    pub patience: Option<Duration>,
}

impl From<Acks> for AcksWithin {
    fn from(acks: Acks) -> Self {
        Self { acks, patience: None }
    }
}

/// The answer to one partition's part of a produce request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the batch's first record.
    pub base_offset: i64,
    /// Time of the append in ms since the epoch if the topic uses LogAppendTime, else -1.
    pub append_time_ms: i64,
    /// First offset of the log.
    pub log_start_offset: i64,
}

/// Up to where a reader sees a partition's log. No batch that goes beyond is read, waited for or found by its timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBound {
    /// The high watermark: who reads what is uncommitted too.
    HighWatermark,
    /// The last stable offset: who reads what is committed.
    LastStable,
}

impl ReadBound {
    /// That of one of Kafka's isolation levels: 1 is READ_COMMITTED, anything else reads what is uncommitted too.
    pub fn of_isolation_level(level: i8) -> Self {
        if level == 1 { Self::LastStable } else { Self::HighWatermark }
    }
}

/// One partition's part of a fetch.
#[derive(Debug, Clone, Copy)]
pub struct FetchPartition {
    /// Where from.
    pub partition: TopicPartition,
    /// First offset wanted.
    pub offset: i64,
    /// Bytes wanted at most; the first batch of a fetch is returned whole all the same (KIP-74).
    pub max_bytes: usize,
    /// The epoch that the client believes in, or -1.
    pub leader_epoch: i32,
    /// Up to where it may read.
    pub bound: ReadBound,
}

/// A fetch over several partitions.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Partitions in the order of preference.
    pub partitions: Vec<FetchPartition>,
    /// Bytes wanted at most over all partitions.
    pub max_bytes: usize,
    /// Answer as soon as that many bytes are there...
    pub min_bytes: usize,
    /// ...or that much time has gone by.
    pub max_wait: Duration,
}

/// One partition's part of a fetch's answer.
#[derive(Debug)]
pub struct Fetched {
    /// End of what consumers may see. Also set with [`LogError::OffsetOutOfRange`].
    pub high_watermark: i64,
    /// End of what readers of committed records may see.
    pub last_stable_offset: i64,
    /// First offset of the log.
    pub log_start_offset: i64,
    /// Whole batches, the first one holding the offset asked for.
    pub records: Records,
    /// Transactions that were aborted and have a batch in the records, in the order of their markers, which for each producer
    /// is that of their first offsets; perhaps some that have none. `None` for who reads what is uncommitted.
    pub aborted: Option<Vec<AbortedTransaction>>,
}

/// A question for one partition's offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The end for who asks (-1 on the wire).
    Latest,
    /// The log start offset (-2 and -4).
    Earliest,
    /// The record with the largest timestamp (-3).
    MaxTimestamp,
    /// The first record with a timestamp of at least that many ms.
    Timestamp(i64),
}

/// An offset and the timestamp of its record in ms; -1 where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset, or -1 when no record answers the question.
    pub offset: i64,
    /// The record's timestamp, or -1 for latest and earliest.
    pub timestamp_ms: i64,
    /// The leader epoch of what is there; at the end of the log the present one; -1 when there is none.
    pub leader_epoch: i32,
}

/// A topic to create.
#[derive(Debug, Clone)]
pub struct NewTopic {
    /// A legal topic name (the engine checks).
    pub name: String,
    /// Number of partitions, at least 1.
    pub partitions: i32,
    /// Settings that differ from the defaults.
    pub configs: BTreeMap<String, String>,
}

/// One change of a topic's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigChange {
    /// Set to a value.
    Set(String, String),
    /// Back to the default.
    Delete(String),
    /// Adds members to a list; those that are in it already stay once.
    Append(String, String),
    /// Takes members out of a list.
    Subtract(String, String),
}

impl ConfigChange {
    /// The setting's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Set(name, _) | Self::Delete(name) | Self::Append(name, _) | Self::Subtract(name, _) => name,
        }
    }
}

/// One idempotent producer that a partition remembers (DescribeProducers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveProducer {
    /// Its id.
    pub producer_id: i64,
    /// Its newest epoch.
    pub producer_epoch: i16,
    /// Sequence of its last record, or -1 if it has none in its epoch.
    pub last_sequence: i32,
    /// Largest timestamp of its last batch, in ms; that of a marker counts.
    pub last_timestamp_ms: i64,
    /// Epoch of the coordinator that wrote its last marker, or -1.
    pub coordinator_epoch: i32,
    /// Offset of the first batch of its open transaction, or -1.
    pub current_transaction_first_offset: i64,
}

/// Why a request for data was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No such topic id or partition, or it was deleted meanwhile.
    #[error("unknown topic or partition")]
    UnknownPartition,
    /// The offset lies outside the log.
    #[error("offset out of range: the log holds {log_start_offset}..{high_watermark}")]
    OffsetOutOfRange {
        /// First offset of the log.
        log_start_offset: i64,
        /// End of the log as consumers see it.
        high_watermark: i64,
    },
    /// The client's leader epoch is newer than ours.
    #[error("unknown leader epoch")]
    UnknownLeaderEpoch,
    /// The client's leader epoch is older than ours.
    #[error("fenced leader epoch")]
    FencedLeaderEpoch,
    /// This node does not lead the partition; or, who wants to follow or cut it: it does not follow.
    #[error("not the leader of the partition, or not its follower")]
    NotLeader,
    /// Fewer replicas are in sync than `min.insync.replicas`: nothing was appended.
    #[error("fewer replicas are in sync than min.insync.replicas")]
    NotEnoughReplicas,
    /// The same since the batch was appended: it may not survive this leader.
    #[error("fewer replicas are in sync than min.insync.replicas since the batch was appended")]
    NotEnoughReplicasAfterAppend,
    /// It was not confirmed in the time that was given for that. It may be in all logs all the same, or come to be.
    #[error("the batch was not confirmed in time")]
    NotInTime,
    /// The leader is new and does not know yet how far consumers may have been.
    #[error("the new leader does not know the high watermark yet")]
    OffsetNotAvailable,
    /// What a follower is to append does not begin where its log ends.
    #[error("the log ends at {expected}, but what follows begins at {found}")]
    UnexpectedOffset {
        /// Where the log ends.
        expected: i64,
        /// Where what is to be appended begins.
        found: i64,
    },
    /// The batch cannot be accepted.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// An idempotent producer's sequence has a gap.
    #[error("out of order sequence number: {0}")]
    OutOfOrderSequence(String),
    /// An idempotent producer's epoch is older than one seen before.
    #[error("invalid producer epoch")]
    InvalidProducerEpoch,
    /// The batch is not part of a transaction that is open here, or one that is not of a transaction would be in one.
    #[error("invalid transaction state: {0}")]
    InvalidTxnState(&'static str),
    /// A marker of a coordinator whose epoch is older than that of one seen before.
    #[error("the transaction coordinator was fenced: its epoch {epoch} is older than {known}")]
    TransactionCoordinatorFenced {
        /// The marker's.
        epoch: i32,
        /// Seen before.
        known: i32,
    },
    /// The transaction's coordinator has not answered, or there are more transactions than are kept: try again.
    #[error("concurrent transactions: {0}")]
    ConcurrentTransactions(&'static str),
    /// The coordinator knows of no such transaction, or the partition is not in it: the transaction can be aborted.
    #[error("the transaction must be aborted: {0}")]
    TransactionAbortable(&'static str),
    /// The transaction's coordinator knows another producer for the transactional id.
    #[error("the transactional id has another producer")]
    InvalidProducerIdMapping,
    /// The transaction's coordinator is not known, not there or still loading: try again.
    #[error("the transaction's coordinator is not available")]
    TransactionCoordinatorNotAvailable,
    /// Nothing is known of this producer id any more.
    #[error("unknown producer id")]
    UnknownProducerId,
    /// Free space is below the reserve: produce again when space was made.
    #[error("disk is full: free space is below the reserve, produce is refused until space is made")]
    StorageFull,
    /// A write or flush failed; the log takes no appends until a restart.
    #[error("storage error: {0}")]
    Storage(String),
    /// The node is stopping.
    #[error("shutting down")]
    ShuttingDown,
}

/// Why a change to the topics was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// A topic of that name is there already.
    #[error("topic '{0}' already exists")]
    Exists(String),
    /// No topic of that name or id.
    #[error("no such topic")]
    Unknown,
    /// Not a legal name.
    #[error("invalid topic name: {0}")]
    InvalidName(String),
    /// Not a legal number of partitions.
    #[error("invalid number of partitions: {0}")]
    InvalidPartitions(String),
    /// Not a legal setting.
    #[error("{0}")]
    InvalidConfig(String),
    /// The catalog could not be written.
    #[error("storage error: {0}")]
    Storage(String),
}

/// The bytes of a fetch, as pieces to be sent one after the other.
#[derive(Debug, Default)]
pub struct Records {
    /// The pieces in order.
    pub chunks: Vec<Chunk>,
}

impl Records {
    /// Size of all pieces in bytes.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Chunk::len).sum()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One past the last offset, of what lies in memory; none if nothing does.
    pub(crate) fn end_offset(&self) -> Option<i64> {
        let last = self.chunks.iter().filter_map(Chunk::as_slice).next_back()?;
        crate::batch::batches(last).flatten().last().map(|(info, _)| info.last_offset() + 1)
    }
}

pub use crate::chunk::{Chunk, FileRange};
