//! What a shard's channel keeps of one partition, and what it wants to be woken for.

use millrace_engine::api::TopicPartition;

use super::link::Peer;
use crate::channel::{
    event::LinkId,
    follower::{Following, Stage},
    leader::Leadership,
};

/// One replica on this shard.
#[derive(Debug)]
pub(super) struct Hosted {
    /// Revision of the key that was assigned last.
    pub(super) revision: i64,
    /// Leader epoch of it. Never falls.
    pub(super) epoch: i32,
    pub(super) part: Part,
    /// What the engine was told last and has done.
    pub(super) acting: Option<Acting>,
    /// The transition that the engine is in.
    pub(super) under_way: Option<Change>,
    /// It is no replica any more, and goes when that transition has ended.
    pub(super) is_leaving: bool,
}

impl Default for Hosted {
    fn default() -> Self {
        Self { revision: -1, epoch: -1, part: Part::Waiting, acting: None, under_way: None, is_leaving: false }
    }
}

/// What the replica is.
#[derive(Debug, Default)]
pub(super) enum Part {
    /// Not assigned in this life of the node.
    #[default]
    Waiting,
    Leaderless,
    Leading(Box<Leadership>),
    Following(Box<Following>),
}

/// What an engine does with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acting {
    Leads(i32),
    Follows(i32),
}

/// A transition of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Lead(i32),
    Follow(i32),
    Cut(i64),
    BeginAnew(i64),
}

impl Hosted {
    /// The transition that the engine has to make next.
    pub(super) fn next_change(&self) -> Option<Change> {
        match &self.part {
            Part::Waiting => None,
            Part::Leaderless => match self.acting {
                Some(Acting::Follows(_)) => None,
                _ => Some(Change::Follow(self.epoch)),
            },
            Part::Leading(leadership) => {
                let epoch = leadership.epoch;
                (self.acting != Some(Acting::Leads(epoch))).then_some(Change::Lead(epoch))
            }
            Part::Following(following) => match following.stage {
                _ if self.acting != Some(Acting::Follows(following.epoch)) => Some(Change::Follow(following.epoch)),
                Stage::Cutting { end } => Some(Change::Cut(end)),
                Stage::BeginningAnew { log_start } => Some(Change::BeginAnew(log_start)),
                _ => None,
            },
        }
    }
}

/// What time brings. Few at any time: none belongs to a partition on which nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    /// Followers hear of high watermarks that moved.
    Notices,
    /// Restless partitions are looked at.
    Sweep,
    /// A connection is asked whether anybody is there.
    Beat(LinkId),
    /// A connection is tried again.
    Dial(Peer),
    /// A transition is tried again.
    Drive(TopicPartition),
    /// Followers that lag are read for, after a pause.
    Feed,
    /// The limit on what is followed is paid for.
    LetCome,
    /// A follower attaches again.
    Attach(TopicPartition),
}

/// Between two looks at restless partitions, in ms.
pub(super) const SWEEP_MS: u64 = 250;
