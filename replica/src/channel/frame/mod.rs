//! What two shards say to each other, as values. The bytes are in `encode` and `decode`; the drawing of them, and the order
//! of a conversation, in CHANNEL.md.
//!
//! A frame's payload is never copied: it is slices of a commit group's buffer on the way out, and of the received frame on
//! the way in. Nothing that is declared is allocated before it was found to be there.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use millrace_engine::{api::TopicPartition, config::Durability};
use uuid::Uuid;

pub use self::{
    decode::{FrameError, FrameHeader, decode},
    encode::{EncodedFrame, encode},
};
use crate::cluster::model::{Member, NodeId};

/// Oldest version of the frames that is understood.
pub const VERSION_MIN: u16 = 1;
/// Newest version of the frames that is understood.
pub const VERSION_MAX: u16 = 2;
/// The version that tells log starts of followers, and has chunks held.
pub const VERSION_LOG_STARTS: u16 = 2;
/// Bytes before the head of a frame: what it is, how long, and the checksum.
pub const FRAME_HEADER_BYTES: usize = 20;
/// Head of a frame at most: everything but the payload.
pub const HEAD_BYTES_MAX: usize = 1 << 20;
/// Payload of a frame at most. A commit group of the engine has 24 MiB at most, and a batch fits a group.
pub const PAYLOAD_BYTES_MAX: usize = 24 << 20;
/// Partitions in one frame at most.
pub const ITEMS_MAX: usize = 8_192;

// The largest item has 80 bytes, so that a full list fits a head.
const _: () = assert!(ITEMS_MAX * 80 + 64 <= HEAD_BYTES_MAX);

/// What a connection is for. A bulk copy must never stand before what a producer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Attaching, commit groups as they are sealed, confirmations, marks.
    Live,
    /// Chunks of logs for partitions that lag.
    CatchUp,
}

/// First frame of a connection, from the node that opened it: the follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster that the caller is of.
    pub cluster: Uuid,
    /// The caller and its present life.
    pub from: Member,
    /// The caller's shard.
    pub from_shard: u32,
    /// The node that is called.
    pub to: NodeId,
    /// The shard there.
    pub to_shard: u32,
    /// What the connection is for.
    pub purpose: Purpose,
    /// Oldest version of frames that the caller understands.
    pub version_min: u16,
    /// Newest one.
    pub version_max: u16,
}

/// The answer to a [`Hello`] that is welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The called node and its present life.
    pub from: Member,
    /// The version that both use from here on.
    pub version: u16,
}

/// Why a [`Hello`] was not welcome. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another cluster.
    OtherCluster,
    /// Another node or shard than was meant: addresses have changed hands.
    OtherNode,
    /// No common version.
    OtherVersion,
    /// A life of the caller that is over, or that was not heard of yet.
    OtherLife,
    /// The called node is not registered at present.
    NotRegistered,
}

/// A follower says where one of its partitions stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The partition.
    pub partition: TopicPartition,
    /// Names this attempt among all of the follower's process. What carries another one is of a former attempt.
    pub attachment: u32,
    /// Leader epoch that the follower knows.
    pub epoch: i32,
    /// End of its log.
    pub end: i64,
    /// Up to where its log is written.
    pub written: i64,
    /// Up to where its log is flushed.
    pub durable: i64,
    /// Last epoch of its log; -1 if it has none.
    pub last_epoch: i32,
}

/// What a leader says to one [`Attach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The partition.
    pub partition: TopicPartition,
    /// Of which attempt.
    pub attachment: u32,
    /// The answer.
    pub verdict: Verdict,
}

/// How a follower's log stands to its leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a beginning of the leader's log: what follows will be sent.
    Match,
    /// It is not: the leader's log has `epoch` as the last one not above the follower's, which ends at `end` (KIP-279).
    Diverge {
        /// The largest epoch of the leader's log that is not above the follower's last.
        epoch: i32,
        /// Where that epoch ends in the leader's log.
        end: i64,
    },
    /// The leader knows this higher epoch.
    Fenced {
        /// That epoch.
        epoch: i32,
    },
    /// The leader has not heard of the follower's epoch yet, or has not noted it yet: try later.
    Unknown,
    /// The leader's log begins after the follower's end: begin anew there.
    Gone {
        /// First offset of the leader's log.
        log_start: i64,
    },
    /// The called node does not lead the partition.
    NotLeader,
}

/// Consecutive batches of one partition, and its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The partition.
    pub partition: TopicPartition,
    /// Which attempt of the follower it answers.
    pub attachment: u32,
    /// The leader's epoch.
    pub epoch: i32,
    /// Where the follower's log has to end. The first batch may begin later: compaction leaves gaps.
    pub base: i64,
    /// Where it ends after these.
    pub end: i64,
    /// The leader's high watermark when this was sent.
    pub high_watermark: i64,
    /// First offset of the leader's log.
    pub log_start: i64,
    /// What a confirmation of these bytes means. The leader's word: settings may reach the two at different times.
    pub durability: Durability,
    /// The batches.
    pub payload: Payload,
}

/// Bytes with their checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The bytes.
    pub bytes: Bytes,
    /// Their CRC-32C.
    pub crc: u32,
}

impl Payload {
    /// Sums up the bytes, once for all followers that they go to.
    pub fn new(bytes: Bytes) -> Self {
        let crc = crc32c::crc32c(&bytes);
        Self { bytes, crc }
    }
}

/// What one commit group, or a part of it, has for one follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Number of the frame on its connection, from 1, without a gap.
    pub sequence: u64,
    /// Runs of one partition stand in the order of their offsets.
    pub runs: Vec<Run>,
}

/// A follower has all that came up to this frame, as safely as its runs asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// Number of the last such frame.
    pub sequence: u64,
}

/// A follower's marks of one partition, where no confirmation of a live frame tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The partition.
    pub partition: TopicPartition,
    /// Of which attempt.
    pub attachment: u32,
    /// Up to where the follower's log is written.
    pub written: i64,
    /// Up to where it is flushed.
    pub durable: i64,
}

/// A leader's marks of one partition, where no run tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The partition.
    pub partition: TopicPartition,
    /// Which attempt of the follower it answers.
    pub attachment: u32,
    /// The leader's epoch.
    pub epoch: i32,
    /// The leader's high watermark.
    pub high_watermark: i64,
    /// First offset of its log.
    pub log_start: i64,
}

/// Which way a partition's runs come from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The partition.
    pub partition: TopicPartition,
    /// Which attempt of the follower it answers.
    pub attachment: u32,
    /// Where its log ends, or will end, when the next run comes that way.
    pub at: i64,
}

/// A follower's log begins there by now, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// The partition.
    pub partition: TopicPartition,
    /// Of which attempt.
    pub attachment: u32,
    /// First offset of the follower's log.
    pub log_start: i64,
}

/// Whether a follower wants chunks of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The partition.
    pub partition: TopicPartition,
    /// Of which attempt.
    pub attachment: u32,
    /// What it wants.
    pub chunks: Chunks,
}

/// What a follower wants of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// They come, as after each attempt's begin.
    Come,
    /// None is read before it says otherwise: the follower is over its limit. What is under way may come.
    Wait,
}

/// A partition is not followed any more on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detach {
    /// The partition.
    pub partition: TopicPartition,
    /// Which attempt ends.
    pub attachment: u32,
    /// Leader epoch that the sender knows.
    pub epoch: i32,
    /// Why.
    pub reason: DetachReason,
}

/// Why a partition is not followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetachReason {
    /// The sender's epoch or part in the partition changed.
    Moved,
    /// A run did not begin where the follower's log ends, or was of another epoch.
    Mismatch,
    /// The sender could not read or write its log.
    Failed,
    /// The leader's log begins after what the follower would need next.
    Trimmed,
}

/// Anything that one shard says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Follower to leader, first.
    Hello(Hello),
    /// Leader to follower, first.
    Welcome(Welcome),
    /// Leader to follower, first and last.
    Refuse(Refusal),
    /// Follower to leader, live.
    Attach(Vec<Attach>),
    /// Leader to follower, live.
    Attached(Vec<Attached>),
    /// Leader to follower, live.
    Live(Live),
    /// Follower to leader, live.
    Confirm(Confirm),
    /// Follower to leader: payload bytes that the leader may have sent on this connection in all, rising.
    Credit(u64),
    /// Leader to follower, catch-up: a piece of one partition's log.
    Chunk(Run),
    /// Follower to leader, either.
    Positions(Vec<Position>),
    /// Leader to follower, live.
    Marks(Vec<Marks>),
    /// Leader to follower, live: the next run of each is a live one.
    GoLive(Vec<Switch>),
    /// Leader to follower, live: the next run of each is a chunk. Sent runs stay valid.
    CatchUp(Vec<Switch>),
    /// Either way, live.
    Detach(Vec<Detach>),
    /// Either way: is anybody there?
    Ping,
    /// The answer to a [`Frame::Ping`].
    Pong,
    /// Follower to leader, live; since version 2.
    LogStarts(Vec<LogStart>),
    /// Follower to leader, live; since version 2.
    Hold(Vec<Hold>),
}

impl Frame {
    /// Bytes of batches in it: what credits are counted in.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Live(live) => live.runs.iter().map(|run| run.payload.bytes.len()).sum(),
            Self::Chunk(run) => run.payload.bytes.len(),
            _ => 0,
        }
    }
}

/// The version that a kind of frame came with: each frame says it of itself, so that what both versions have is the same in both.
fn version_of(kind: u16) -> u16 {
    if kind <= 16 { VERSION_MIN } else { VERSION_LOG_STARTS }
}
