//! What a leader knows of one follower of one partition. It begins when the follower attaches, in one epoch of the leader, and
//! says nothing about any other.

use millrace_engine::config::Durability;

use super::{event::LinkId, frame::Chunks};
use crate::cluster::model::Member;

/// How a follower gets what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// As commit groups are sealed. The next run begins at `next`.
    Live {
        /// Where what was sent ends.
        next: i64,
    },
    /// No credits: nothing is sent before all that was has been confirmed.
    Paused {
        /// Where what was sent ends.
        next: i64,
    },
    /// In chunks, read from the log.
    CatchUp {
        /// Where what was sent ends.
        next: i64,
        /// A read is under way.
        is_reading: bool,
    },
}

impl Flow {
    /// Where what was sent ends.
    pub(crate) fn next(self) -> i64 {
        match self {
            Self::Live { next } | Self::Paused { next } | Self::CatchUp { next, .. } => next,
        }
    }
}

/// A follower as its leader sees it.
#[derive(Clone, Debug)]
pub(crate) struct Follower {
    /// The life that attached.
    pub(crate) member: Member,
    /// Its live connection; none once that broke.
    pub(crate) link: Option<LinkId>,
    /// Which of its attempts.
    pub(crate) attachment: u32,
    /// Up to where it has the log as safely as the topic asks. Rises.
    pub(crate) confirmed: i64,
    /// Up to where it surely flushed the log. Rises.
    pub(crate) durable: i64,
    /// What it confirmed without a flush, or still may, lies below. Rises.
    pub(crate) unflushed: i64,
    /// How it gets more.
    pub(crate) flow: Flow,
    /// Where its log begins, if it speaks of that.
    pub(crate) log_start: Option<i64>,
    /// Whether it wants chunks.
    pub(crate) chunks: Chunks,
    /// Last time, in ms, at which it had all that the leader had.
    pub(crate) caught_up_ms: u64,
    /// The leader's end at a time: once it is confirmed, the follower had caught up by then.
    goal: (i64, u64),
    /// Since when, in ms, it has made no headway because its connection broke, or its attempts ended; whether or not it has
    /// attached again.
    pub(crate) broken_ms: Option<u64>,
}

impl Follower {
    /// One that just attached, whose log ends at `end` and matches the leader's.
    pub(crate) fn new(now_ms: u64, member: Member, link: LinkId, attachment: u32, confirmed: i64, flow: Flow) -> Self {
        let goal = (i64::MAX, now_ms);
        Self {
            member,
            link: Some(link),
            attachment,
            confirmed,
            durable: 0,
            unflushed: 0,
            flow,
            log_start: None,
            chunks: Chunks::Come,
            caught_up_ms: now_ms,
            goal,
            broken_ms: None,
        }
    }

    /// Takes a confirmation; `leader_end` is where the leader's log ends now.
    pub(crate) fn confirm(&mut self, now_ms: u64, offset: i64, leader_end: i64) {
        if self.link.is_some() && (offset > self.confirmed || offset >= leader_end) {
            self.broken_ms = None;
        }
        self.confirmed = self.confirmed.max(offset);
        if self.confirmed >= leader_end {
            self.caught_up_ms = now_ms;
        } else if self.confirmed >= self.goal.0 {
            self.caught_up_ms = self.caught_up_ms.max(self.goal.1);
        } else if self.goal.0 != i64::MAX {
            return;
        }
        self.goal = (leader_end, now_ms);
    }

    /// It has all below `durable` flushed, and confirms what is below `confirmed`.
    pub(crate) fn note_flushed(&mut self, durable: i64, confirmed: i64) {
        self.durable = self.durable.max(durable);
        self.unflushed = self.unflushed.max(confirmed);
    }

    /// It is sent all below `end`, and will confirm it.
    pub(crate) fn sent(&mut self, end: i64, durability: Durability) {
        self.flow = Flow::Live { next: end };
        if durability == Durability::Written {
            self.unflushed = self.unflushed.max(end);
        }
    }

    /// The leader's log is about to grow from `leader_end`.
    pub(crate) fn note_growth(&mut self, now_ms: u64, leader_end: i64) {
        if self.confirmed >= leader_end {
            self.caught_up_ms = now_ms;
        }
    }

    /// Its connection broke.
    pub(crate) fn break_off(&mut self, now_ms: u64) {
        if self.link.take().is_some() {
            self.broken_ms.get_or_insert(now_ms);
        }
    }

    /// Goes on from a former attempt of the same life: attaching again is no headway.
    pub(crate) fn resume(&mut self, now_ms: u64, former: &Self, leader_end: i64) {
        if former.member != self.member {
            return;
        }
        self.caught_up_ms = former.caught_up_ms;
        if self.confirmed <= former.confirmed {
            self.broken_ms = Some(former.broken_ms.unwrap_or(now_ms));
        }
        self.confirm(now_ms, self.confirmed, leader_end);
    }
}
