//! What callers of the engine say and hear of replication: whom a leader waits for, how far a log is, what goes to
//! followers. Plain data, and the trait by which a shard tells of its groups.

use crate::api::{Chunk, Records, TopicPartition};

/// Runs of at least so many bytes are written to their segments at once. What a leader sent stays in memory then where it came
/// to, and its neighbours with it, if it has any there.
pub const FAT_BYTES: usize = 256 << 10;

/// Whom a leader has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// Nobody: consumers see what the log here has as safely as its topic asks.
    Alone,
    /// Replicas on other nodes: consumers see what [`crate::replica::Replica::advance_high_watermark`] says.
    Replicated {
        /// How many replicas there are, this one included.
        replicas: u32,
        /// How many of them are in sync, this one included.
        in_sync: u32,
    },
}

impl Leadership {
    /// Whether as many replicas are in sync as `min.insync.replicas` asks: of fewer replicas, all of them.
    pub(crate) fn has_enough(self, min_in_sync: i32) -> bool {
        match self {
            Self::Alone => true,
            Self::Replicated { replicas, in_sync } => {
                let wanted = u32::try_from(min_in_sync).unwrap_or(1);
                in_sync >= wanted.min(replicas)
            }
        }
    }
}

/// How far a replica's log is. Offsets are one past the last of what they speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaPosition {
    /// The first offset of the log.
    pub log_start: i64,
    /// What consumers may see.
    pub high_watermark: i64,
    /// What was written to the log here.
    pub written: i64,
    /// What is on stable storage here.
    pub durable: i64,
    /// What the log here has as safely as the topic asks: what a follower confirms and a leader counts for itself.
    pub kept: i64,
    /// What is in groups that were sealed: the open group begins here. Who was sent everything below gets the rest from the
    /// tap.
    pub sealed: i64,
    /// The end of the log.
    pub end: i64,
    /// The newest leader epoch that is known of the log; -1 for none.
    pub last_epoch: i32,
    /// Where that began; 0 if there is none.
    pub epoch_start: i64,
}

/// The answer to a look-up of a leader epoch (KIP-279): -1 twice if nothing is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// The largest known epoch that is not newer than the one asked for.
    pub epoch: i32,
    /// Where the next one begins, or where the log ends.
    pub end_offset: i64,
}

/// What becomes of the batches that a cut takes off the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutBytes {
    /// They are gone.
    Drop,
    /// A copy stays in a file beside the log, for people to look at.
    Keep,
}

/// What a read for a follower found.
#[derive(Debug)]
pub struct CaughtUp {
    /// Where the follower's log ends before it: batches begin here, or later if compaction left a gap.
    pub from: i64,
    /// Where it ends behind them.
    pub end_offset: i64,
    /// First offset of the leader's log.
    pub log_start: i64,
    /// What consumers may see.
    pub high_watermark: i64,
    /// Whole batches, all in memory.
    pub records: Records,
}

/// Consecutive batches of a partition in a sealed group.
#[derive(Clone, Debug)]
pub struct SealedRun {
    /// Whose.
    pub partition: TopicPartition,
    /// The leader epoch of all of them.
    pub leader_epoch: i32,
    /// The first offset.
    pub base_offset: i64,
    /// One past the last offset.
    pub end_offset: i64,
    /// The batches back to back, in the group's own memory.
    pub batches: Chunk,
}

/// What was sealed of partitions that are led here and have replicas on other nodes.
#[derive(Clone, Debug, Default)]
pub struct SealedGroup {
    /// One per partition, in the order in which they lie in the group.
    pub runs: Vec<SealedRun>,
}

/// Whether this node may act as a leader of what has replicas, as far as its own clock tells. Asked whenever a batch is taken or
/// read as leader: a process that was stopped may have been replaced without having heard of it.
pub trait LeaderLease {
    /// Whether it may.
    fn holds(&self) -> bool;
}

/// Hears of every group of a shard with batches of replicated partitions. Called in the shard's own turn, before the next
/// batch is taken; nothing is borrowed meanwhile.
pub trait LogTap {
    /// A group was sealed; its write is only beginning.
    fn sealed(&self, group: &SealedGroup);

    /// A replicated partition's log, led or followed here, is written and durable up to these offsets; or it lost its beginning.
    fn progressed(&self, partition: TopicPartition, written: i64, durable: i64);
}
