//! One connection of a shard.

use std::collections::BTreeSet;

use millrace_engine::api::TopicPartition;

use crate::{
    channel::{
        copies::Copies,
        event::LinkId,
        frame::{Frame, ITEMS_MAX, Purpose, VERSION_MIN},
        stream::{Inbound, Outbound},
        turns::Turns,
    },
    cluster::model::{Member, NodeId},
};

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) shard: u32,
    pub(super) purpose: Purpose,
}

/// A connection that this shard opens and opens again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dialed {
    /// What there is at present.
    pub(super) link: Option<LinkId>,
    /// Attempts since it worked last.
    pub(super) failures: u32,
    /// An alarm will try again.
    pub(super) is_resting: bool,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    /// Being opened.
    Dialing,
    /// The first frame of the other end is waited for.
    Greeting,
    /// Both know each other.
    Up,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    /// The other end; of an accepted one, known once it said hello.
    pub(super) peer: Option<Peer>,
    /// Its life.
    pub(super) member: Option<Member>,
    pub(super) is_dialed: bool,
    pub(super) state: LinkState,
    /// Of the frames that both ends use.
    pub(super) version: u16,
    /// When anything was heard last, in ms.
    pub(super) heard_ms: u64,
    /// When payload was received last, in ms.
    pub(super) payload_ms: u64,
    /// Pings without an answer.
    pub(super) unanswered: u32,
    /// Somebody takes the process at the other end for gone: so many answers from now, one shows that it is not. Those before it
    /// are to older questions.
    pub(super) questioned: Option<u32>,
    /// To a follower.
    pub(super) outbound: Outbound,
    /// From a leader.
    pub(super) inbound: Inbound,
    /// Of an accepted live one: partitions whose followers attached through it.
    pub(super) attached: BTreeSet<TopicPartition>,
    /// Of an accepted live one: partitions whose marks the follower has not heard.
    pub(super) notices: BTreeSet<TopicPartition>,
    /// Of an accepted live one: partitions that lag, each to be read for next in its turn.
    pub(super) backlog: Turns,
    /// Of an accepted live one: partitions of which all is sent but that cannot go live yet.
    pub(super) resting: BTreeSet<TopicPartition>,
    /// Of an accepted live one: partitions that lag and that this shard's limit keeps back.
    pub(super) limited: BTreeSet<TopicPartition>,
    /// Of an accepted live one: partitions that lag and whose follower wants no chunks now.
    pub(super) held: BTreeSet<TopicPartition>,
    /// Of an accepted live one: chunks that are being read for its partitions, or were sent and are not confirmed.
    pub(super) copies: Copies,
    /// Of a dialed live one: partitions whose marks the leader may have to hear.
    pub(super) reports: BTreeSet<TopicPartition>,
    frames: Vec<Frame>,
}

impl Link {
    /// A connection that begins.
    pub(super) fn new(now_ms: u64, peer: Option<Peer>) -> Self {
        let is_dialed = peer.is_some();
        Self {
            peer,
            member: None,
            is_dialed,
            state: if is_dialed { LinkState::Dialing } else { LinkState::Greeting },
            version: VERSION_MIN,
            heard_ms: now_ms,
            payload_ms: now_ms,
            unanswered: 0,
            questioned: None,
            outbound: Outbound::default(),
            inbound: Inbound::default(),
            attached: BTreeSet::new(),
            notices: BTreeSet::new(),
            backlog: Turns::default(),
            resting: BTreeSet::new(),
            limited: BTreeSet::new(),
            held: BTreeSet::new(),
            copies: Copies::default(),
            reports: BTreeSet::new(),
            frames: Vec::new(),
        }
    }

    /// Whether it is one on which a leader speaks to a follower as groups are sealed.
    pub(super) fn is_to_follower(&self) -> bool {
        !self.is_dialed && self.peer.is_some_and(|peer| peer.purpose == Purpose::Live)
    }

    /// A partition is not read for any more.
    pub(super) fn leave_backlog(&mut self, partition: TopicPartition) {
        self.resting.remove(&partition);
        self.limited.remove(&partition);
        self.held.remove(&partition);
        self.backlog.remove(partition);
    }

    /// Puts a frame behind the others, into the last one if both are lists of one kind and fit.
    pub(super) fn say(&mut self, frame: Frame) {
        let Some(last) = self.frames.last_mut() else { return self.frames.push(frame) };
        match (last, frame) {
            (Frame::Attach(list), Frame::Attach(more)) if fit(list, &more) => list.extend(more),
            (Frame::Attached(list), Frame::Attached(more)) if fit(list, &more) => list.extend(more),
            (Frame::Positions(list), Frame::Positions(more)) if fit(list, &more) => list.extend(more),
            (Frame::Marks(list), Frame::Marks(more)) if fit(list, &more) => list.extend(more),
            (Frame::GoLive(list), Frame::GoLive(more)) if fit(list, &more) => list.extend(more),
            (Frame::CatchUp(list), Frame::CatchUp(more)) if fit(list, &more) => list.extend(more),
            (Frame::Detach(list), Frame::Detach(more)) if fit(list, &more) => list.extend(more),
            (Frame::LogStarts(list), Frame::LogStarts(more)) if fit(list, &more) => list.extend(more),
            (Frame::Hold(list), Frame::Hold(more)) if fit(list, &more) => list.extend(more),
            (_, frame) => self.frames.push(frame),
        }
    }

    /// What there is to send, in order.
    pub(super) fn take_frames(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.frames)
    }
}

fn fit<T>(list: &[T], more: &[T]) -> bool {
    list.len() + more.len() <= ITEMS_MAX
}
