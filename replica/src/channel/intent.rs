//! What a shard's channel wants done. Plain data: a shell does it with sockets, the engine and the control plane, in the order in
//! which it is handed out, and reports what is said beside each.

use bytes::Bytes;
use millrace_engine::api::TopicPartition;

use super::{
    doubts::Sign,
    event::LinkId,
    frame::{Frame, Purpose},
};
use crate::cluster::{
    change::IsrProposal,
    model::{Member, NodeId},
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Open a connection to a shard of another node, at the address that the image has for it. Reported by
    /// `on_dialed`.
    Dial {
        /// What it will be called.
        link: LinkId,
        /// The node.
        node: NodeId,
        /// Its shard.
        shard: u32,
        /// What it is for: catch-up has its own share of the disk and the network.
        purpose: Purpose,
    },
    /// Close a connection once what was sent before is out, or at once. Not reported.
    HangUp {
        /// Which.
        link: LinkId,
    },
    /// Send a frame. Not reported; what is queued stays within the credits of the connection.
    Send {
        /// Where.
        link: LinkId,
        /// What.
        frame: Frame,
    },
    /// Have the engine do something.
    Work {
        /// On which partition.
        partition: TopicPartition,
        /// What.
        work: EngineWork,
    },
    /// Have the partition's key changed by the leader's transaction (compares: revision of the key, own life, the lives and no
    /// drain of whoever joins). Written also if the ISR is the one that the key has: then the write is what makes sure that
    /// no former proposal for the same revision can still happen. Reported by `on_isr_changed` with the same revision.
    ChangeIsr {
        /// The partition.
        partition: TopicPartition,
        /// Revision of the key that the proposal is made for.
        revision: i64,
        /// The leader, its epoch, and the ISR that it wants.
        proposal: IsrProposal,
    },
    /// Whoever waits for replicas to let go of the beginning of a partition that is led here may look again at where they
    /// begin. Not reported.
    LogStartsMoved {
        /// The partition.
        partition: TopicPartition,
    },
    /// There is a sign that the process of another node is gone, or that it is not: all shards are to hear of it. Not
    /// reported.
    Heed {
        /// Whose process.
        member: Member,
        /// What was seen.
        sign: Sign,
    },
}

/// Work for the engine. The first four are transitions: durable before they are reported by `on_done`, one at a time per
/// partition. Appends are done in the order of the intents, and before a transition that comes later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineWork {
    /// Note the epoch and the log's end, durably, then take appends of clients in it. The high watermark waits for
    /// [`EngineWork::AdvanceHighWatermark`]. Of an epoch that is led already: nothing, reported as done.
    Lead {
        /// The epoch.
        epoch: i32,
    },
    /// Take no appends of clients; take those of the epoch's leader.
    Follow {
        /// The epoch.
        epoch: i32,
    },
    /// Cut the log's end, and its list of epochs also where only that is longer (KAFKA-10706).
    Truncate {
        /// New end of the log. Its present end cuts the list only.
        end: i64,
    },
    /// Forget the whole log and begin at an offset.
    BeginAnew {
        /// First offset of the new log.
        log_start: i64,
    },
    /// Append batches as they are. `base` is the log's end; the first batch may begin later. A failure is reported by `on_done`.
    Append {
        /// Attempt of this follower, to be reported with a failure.
        attachment: u32,
        /// Epoch that the partition follows in. Batches carry their own.
        epoch: i32,
        /// Where the log ends.
        base: i64,
        /// Where it will end.
        end: i64,
        /// The batches.
        batches: Bytes,
    },
    /// Raise the high watermark. Never lower than one before in this epoch, never above the log's end. Not reported.
    AdvanceHighWatermark {
        /// The new one.
        high_watermark: i64,
    },
    /// How many are in sync: below min.insync.replicas, acks=all is refused. Not reported.
    SetInSync {
        /// Members of the committed ISR.
        count: usize,
    },
    /// Let go of what is before an offset, as the leader did. Not reported.
    Trim {
        /// First offset of the leader's log.
        log_start: i64,
    },
    /// Read batches for a follower that lags, also above the high watermark. Reported by `on_done`.
    Read {
        /// To be reported.
        link: LinkId,
        /// To be reported.
        attachment: u32,
        /// Where to begin.
        from: i64,
        /// Bytes at most; one batch may be larger.
        bytes_max: usize,
    },
}
