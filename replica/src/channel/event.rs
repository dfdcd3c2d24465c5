//! What a shard's channel is told: nodes, assignments, what happened in the engine and in the store of the cluster. Plain data,
//! and one view of the engine's logs that is only read.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_engine::{api::TopicPartition, config::Durability};

use crate::cluster::model::{Continued, Kept, Member, NodeId, PartitionState, TopicRules, Versioned};

/// A connection, in the words of one shard. Never used again once it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Where a partition's log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// First offset.
    pub log_start: i64,
    /// Up to where every replica in sync has it, as far as it is known here.
    pub high_watermark: i64,
    /// Up to where it is written.
    pub written: i64,
    /// Up to where it is flushed. `durable <= written <= end`.
    pub durable: i64,
    /// One past the last offset, whether written or not.
    pub end: i64,
    /// Last epoch of the log's list; -1 if that is empty.
    pub last_epoch: i32,
    /// Where that epoch begins; the log's start if there is none.
    pub epoch_start: i64,
    /// What an acknowledgement waits for here.
    pub durability: Durability,
}

impl LogPosition {
    /// Up to where this replica has the log as safely as its topic asks.
    pub fn confirmed(&self) -> i64 {
        match self.durability {
            Durability::Device => self.durable,
            Durability::Written => self.written,
        }
    }
}

/// The logs of one shard, to be looked at. What is asked in one turn of the shard sees one moment.
pub trait Logs {
    /// Where a log stands; none if the partition is not placed on this shard.
    fn position(&self, partition: TopicPartition) -> Option<LogPosition>;

    /// The largest epoch of the log's list that is not above `epoch`, and where it ends: the next one's start, or the log's end.
    /// If all of the list is above it: `epoch` itself and the start of the first, as in Kafka's `endOffsetFor`. None if the list
    /// is empty or there is no such log.
    fn end_of_epoch(&self, partition: TopicPartition, epoch: i32) -> Option<(i32, i64)>;
}

/// A node that lives, as far as the image tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveNode {
    /// Its present life.
    pub member: Member,
    /// The life before, if nothing was lost in between.
    pub continues: Option<Continued>,
    /// It asked to go: it joins no ISR.
    pub draining: bool,
    /// Its shards.
    pub shards: u32,
}

/// All nodes that live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(BTreeMap<NodeId, LiveNode>);

impl Nodes {
    /// Those nodes.
    pub fn new(nodes: impl IntoIterator<Item = LiveNode>) -> Self {
        Self(nodes.into_iter().map(|node| (node.member.node, node)).collect())
    }

    /// A node that lives.
    pub fn live(&self, node: NodeId) -> Option<&LiveNode> {
        self.0.get(&node)
    }

    /// Whether what `member` is entitled to belongs to the life that its node has now: that very life, or one that goes on with
    /// all that a topic of this durability was promised.
    pub fn holds(&self, member: Member, durability: Durability) -> bool {
        self.present(member, durability).is_some()
    }

    /// The node's present life if it may speak for `member`.
    pub fn present(&self, member: Member, durability: Durability) -> Option<Member> {
        let live = self.live(member.node)?;
        let continues = |continued: &Continued| {
            let kept = continued.kept == Kept::Written || durability == Durability::Device;
            continued.epoch == member.epoch && kept
        };
        (live.member == member || live.continues.as_ref().is_some_and(continues)).then_some(live.member)
    }
}

/// What this node has to do with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Leads it.
    Leader(LeaderRole),
    /// Follows.
    Follower {
        /// Whom.
        leader: Member,
        /// The shard that owns the partition there.
        shard: u32,
    },
    /// Has it, and nobody leads; or this node did in a former life, and has not been replaced yet.
    Leaderless,
}

/// What a leader must know of its partition's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderRole {
    /// The replicas.
    pub replicas: Vec<NodeId>,
    /// The committed ISR.
    pub isr: Vec<Member>,
    /// Eligible leader replicas (KIP-966). While there are any, the high watermark stands: they were promised that it does.
    pub elr: Vec<Member>,
    /// min.insync.replicas
    pub min_isr: usize,
    /// What the topic asks an acknowledgement to wait for.
    pub durability: Durability,
    /// Whether the key says that records may be acknowledged before they are flushed, or may have been.
    pub written: bool,
}

/// A partition's key, as far as one of its replicas is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Revision of the key: a lower one is older news.
    pub revision: i64,
    /// Leader epoch.
    pub epoch: i32,
    /// This node's part.
    pub role: Role,
}

impl Assignment {
    /// What the key means for the node `me`; none if it is no replica. `shard` is the one that owns the partition on the leader.
    /// A life that continues the leader's does not lead before the key says so, in an epoch of its own.
    pub fn of(
        state: &Versioned<PartitionState>,
        rules: &TopicRules,
        me: Member,
        nodes: &Nodes,
        shard: impl FnOnce(&LiveNode) -> u32,
    ) -> Option<Self> {
        let partition = &state.value;
        if !partition.replicas.contains(&me.node) {
            return None;
        }
        let role = match partition.leader {
            Some(leader) if leader.node != me.node => match nodes.live(leader.node) {
                Some(live) => Role::Follower { leader, shard: shard(live) },
                None => Role::Leaderless,
            },
            Some(leader) if leader == me => Role::Leader(LeaderRole {
                replicas: partition.replicas.clone(),
                isr: partition.isr.clone(),
                elr: partition.elr.clone(),
                min_isr: rules.min_isr,
                durability: rules.durability,
                written: partition.written,
            }),
            _ => Role::Leaderless,
        };
        Some(Self { revision: state.revision, epoch: partition.leader_epoch, role })
    }
}

/// One partition's run of a commit group that was just sealed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRun {
    /// The partition.
    pub partition: TopicPartition,
    /// Leader epoch that it was appended in.
    pub epoch: i32,
    /// Offset of the first record.
    pub base: i64,
    /// One past the last.
    pub end: i64,
    /// The batches, a slice of the group's buffer.
    pub bytes: Bytes,
}

/// How a piece of engine work ended. One kind of transition is under way per partition at most, so each names itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The transition that was asked for last (lead, follow, truncate, begin anew) is complete and durable.
    Changed,
    /// That transition failed: nothing is known to have changed.
    ChangeFailed,
    /// An append was refused (disk full, wrong offset, unreadable batch). Appends that succeed are not reported: marks tell.
    AppendFailed {
        /// Of which attempt.
        attachment: u32,
    },
    /// A read for a follower that lags ended.
    Read {
        /// For whom.
        link: LinkId,
        /// Which attempt of that follower.
        attachment: u32,
        /// Where it began.
        from: i64,
        /// What was found.
        result: Result<ReadRun, ReadFailure>,
    },
}

/// Batches that were read from a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRun {
    /// One past the last offset; where the read began if nothing is there yet.
    pub end: i64,
    /// The batches.
    pub bytes: Bytes,
}

/// Why a log could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// It begins later by now.
    Trimmed,
    /// The disk failed, or the partition is gone.
    Failed,
}

/// What became of a change of an ISR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsrOutcome {
    /// It is the key's value at this revision.
    Committed {
        /// That revision.
        revision: i64,
    },
    /// The key stayed as it was, surely: the leader falls back to the committed ISR.
    Refused,
    /// The key had changed before: what it says now will come as an assignment.
    Stale,
    /// Nobody knows (timeout, connection lost): it may have happened, or may happen yet.
    Unknown,
}
