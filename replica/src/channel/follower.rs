//! One partition's follower in one epoch: what it asks of its engine and of its leader, and which runs it takes.
//!
//! Always: a run is appended only if it is of this epoch and attempt and begins where the log ends, otherwise the attempt is over;
//! a cut is durable before the partition attaches again; the high watermark is the leader's, never above the own end, and
//! never taken before the logs were found to match.

use std::collections::VecDeque;

use super::{
    event::LogPosition,
    frame::{Attach, LogStart, Marks, Position, Run, Verdict},
    guard::{Guard, Guards},
};
use crate::cluster::model::Member;
use millrace_engine::{api::TopicPartition, config::Durability};

/// First pause before attaching again, in ms; each further one is twice as long.
const RETRY_MS: u64 = 20;
/// Longest such pause.
const RETRY_MS_MAX: u64 = 1_000;

/// Where a follower is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The engine is to follow in this epoch.
    Preparing,
    /// The log's end is to be cut there.
    Cutting {
        /// New end.
        end: i64,
    },
    /// The log is to begin anew.
    BeginningAnew {
        /// First offset.
        log_start: i64,
    },
    /// It attaches as soon as there is a connection.
    Ready,
    /// It waits for a time before it attaches.
    Resting,
    /// The leader was told where the log stands.
    Attaching,
    /// The logs match.
    Attached(Mode),
}

/// Which way runs come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As chunks.
    CatchingUp,
    /// As chunks up to `at`; live runs that came already wait for them.
    Joining {
        /// Where the first live run begins.
        at: i64,
        /// Live runs, each beginning where the one before ends. Bounded by the credits of the connection.
        held: VecDeque<Run>,
        /// The leader has gone back to chunks meanwhile.
        back: bool,
    },
    /// As commit groups are sealed at the leader.
    Live,
}

/// The attempt is over: what the leader sends does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Following {
    partition: TopicPartition,
    /// The epoch.
    pub(crate) epoch: i32,
    /// Who leads.
    pub(crate) leader: Member,
    /// The shard that owns the partition there.
    pub(crate) shard: u32,
    /// Where it is on its way.
    pub(crate) stage: Stage,
    /// Names the attempt.
    pub(crate) attachment: u32,
    /// Where the log ends once all that the engine was asked for is done.
    pub(crate) end: i64,
    /// Up to where it is written.
    written: i64,
    /// Up to where it is flushed.
    durable: i64,
    /// The marks that the leader heard last.
    reported: (i64, i64),
    /// Up to here marks are told one by one; what came live is confirmed with its frame.
    report_to: i64,
    /// The leader's high watermark.
    heard_high_watermark: i64,
    high_watermark: i64,
    log_start: i64,
    /// Where the log begins in the engine, and what the leader believes of that: 0 before it hears of it.
    kept_from: (i64, i64),
    retries: u32,
    guards: Guards,
}

/// What runs lead to, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// To be appended.
    pub(crate) append: Vec<Run>,
    /// The high watermark rises to that, after the appends.
    pub(crate) high_watermark: Option<i64>,
    /// The log loses its beginning up to there.
    pub(crate) trim: Option<i64>,
}

impl Following {
    /// Begins an epoch.
    pub(crate) fn new(partition: TopicPartition, epoch: i32, leader: Member, shard: u32, guards: Guards) -> Self {
        Self {
            partition,
            epoch,
            leader,
            shard,
            stage: Stage::Preparing,
            attachment: 0,
            end: 0,
            written: 0,
            durable: 0,
            reported: (0, 0),
            report_to: 0,
            heard_high_watermark: 0,
            high_watermark: 0,
            log_start: 0,
            kept_from: (0, 0),
            retries: 0,
            guards,
        }
    }

    /// Says where the log stands, as a new attempt.
    pub(crate) fn attach(&mut self, attachment: u32, position: LogPosition) -> Attach {
        self.stage = Stage::Attaching;
        self.attachment = attachment;
        self.end = position.end;
        (self.written, self.durable) = (position.written, position.durable);
        self.reported = (position.written, position.durable);
        self.report_to = position.end;
        self.high_watermark = position.high_watermark;
        self.heard_high_watermark = 0;
        self.log_start = position.log_start;
        self.kept_from = (position.log_start, 0);
        Attach {
            partition: self.partition,
            attachment,
            epoch: self.epoch,
            end: position.end,
            written: position.written,
            durable: position.durable,
            last_epoch: position.last_epoch,
        }
    }

    /// Takes the leader's answer. `looked_up` is the diverging epoch in the own list: the largest one not above it, and its end.
    pub(crate) fn hear(&mut self, verdict: Verdict, looked_up: Option<(i32, i64)>) {
        self.stage = match verdict {
            Verdict::Match => {
                self.report_to = i64::MAX;
                Stage::Attached(Mode::CatchingUp)
            }
            Verdict::Diverge { .. } if self.guards.is_off(Guard::TruncateBeforeAppend) => {
                Stage::Attached(Mode::CatchingUp)
            }
            Verdict::Diverge { epoch, end } => self.cut(epoch, end, looked_up),
            Verdict::Gone { log_start } => Stage::BeginningAnew { log_start },
            Verdict::Fenced { .. } | Verdict::Unknown | Verdict::NotLeader => Stage::Resting,
        };
    }

    /// Where the own log is to be cut (KIP-279): where the epoch ends in the log in which it ends first. Who does not have that
    /// epoch goes back to the one before, and asks again.
    fn cut(&self, epoch: i32, end: i64, looked_up: Option<(i32, i64)>) -> Stage {
        let end = match looked_up {
            Some((own, own_end)) if own == epoch => end.min(own_end),
            Some((_, own_end)) => own_end,
            None => end,
        };
        match end < self.log_start {
            true => Stage::BeginningAnew { log_start: end },
            false => Stage::Cutting { end: end.min(self.end) },
        }
    }

    /// The engine follows in this epoch.
    pub(crate) fn prepared(&mut self) {
        if self.stage == Stage::Preparing {
            self.stage = Stage::Ready;
        }
    }

    /// The log was cut, or begun anew, durably.
    pub(crate) fn was_cut(&mut self) {
        if matches!(self.stage, Stage::Cutting { .. } | Stage::BeginningAnew { .. }) {
            self.stage = Stage::Ready;
        }
    }

    /// Whether the leader was told of the present attempt.
    pub(crate) fn is_heard(&self) -> bool {
        matches!(self.stage, Stage::Attaching | Stage::Attached(_))
    }

    /// Whether the logs were found to match, and runs come.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.stage, Stage::Attached(_))
    }

    /// Records below the leader's high watermark, as far as that was heard, that are not here.
    pub(crate) fn lag(&self) -> i64 {
        (self.heard_high_watermark - self.end).max(0)
    }

    /// How long to wait before the next attempt, in ms.
    pub(crate) fn next_pause_ms(&mut self) -> u64 {
        let pause = RETRY_MS << self.retries.min(8);
        self.retries += 1;
        pause.min(RETRY_MS_MAX)
    }

    /// Takes a run that came live.
    pub(crate) fn take_live(&mut self, run: Run) -> Result<Taken, Mismatch> {
        self.check(&run)?;
        let end = self.end;
        match &mut self.stage {
            Stage::Attached(Mode::Live) if run.base == end || self.guards.is_off(Guard::RunsFit) => {
                Ok(self.append(run))
            }
            Stage::Attached(Mode::Joining { at, held, back: false }) => {
                let from = held.back().map_or(*at, |last| last.end);
                if run.base != from {
                    return Err(Mismatch);
                }
                held.push_back(run);
                Ok(Taken::default())
            }
            _ => Err(Mismatch),
        }
    }

    /// Takes a chunk.
    pub(crate) fn take_chunk(&mut self, run: Run) -> Result<Taken, Mismatch> {
        self.check(&run)?;
        if run.base != self.end && !self.guards.is_off(Guard::RunsFit) {
            return Err(Mismatch);
        }
        match &self.stage {
            Stage::Attached(Mode::CatchingUp) => Ok(self.append(run)),
            Stage::Attached(Mode::Joining { at, .. }) if run.end <= *at => {
                let mut taken = self.append(run);
                self.join(&mut taken);
                Ok(taken)
            }
            _ => Err(Mismatch),
        }
    }

    fn check(&self, run: &Run) -> Result<(), Mismatch> {
        let is_of_epoch = run.epoch == self.epoch || self.guards.is_off(Guard::RunsFit);
        if is_of_epoch { Ok(()) } else { Err(Mismatch) }
    }

    /// Takes what was held back if all chunks before it are there.
    fn join(&mut self, taken: &mut Taken) {
        let Stage::Attached(Mode::Joining { at, held, back }) = &mut self.stage else { return };
        if *at != self.end {
            return;
        }
        let held = std::mem::take(held);
        let mode = if *back { Mode::CatchingUp } else { Mode::Live };
        self.stage = Stage::Attached(mode);
        for run in held {
            let more = self.append(run);
            taken.append.extend(more.append);
            taken.high_watermark = more.high_watermark.or(taken.high_watermark);
            taken.trim = more.trim.or(taken.trim);
        }
    }

    fn append(&mut self, run: Run) -> Taken {
        self.end = run.end;
        let (high_watermark, log_start) = (run.high_watermark, run.log_start);
        let mut taken = self.marks(high_watermark, log_start);
        taken.append.push(run);
        taken
    }

    fn marks(&mut self, high_watermark: i64, log_start: i64) -> Taken {
        self.heard_high_watermark = self.heard_high_watermark.max(high_watermark);
        let reached = self.heard_high_watermark.min(self.end);
        let rises = reached > self.high_watermark;
        self.high_watermark = self.high_watermark.max(reached);
        let trims = log_start > self.log_start && log_start <= self.high_watermark;
        if trims {
            self.log_start = log_start;
        }
        Taken { append: Vec::new(), high_watermark: rises.then_some(reached), trim: trims.then_some(log_start) }
    }

    /// Takes the leader's marks.
    pub(crate) fn take_marks(&mut self, marks: &Marks) -> Taken {
        let is_attached = matches!(self.stage, Stage::Attached(_)) && marks.epoch == self.epoch;
        if is_attached { self.marks(marks.high_watermark, marks.log_start) } else { Taken::default() }
    }

    /// The leader goes over to live runs.
    pub(crate) fn go_live(&mut self, at: i64) -> Result<(), Mismatch> {
        match &self.stage {
            Stage::Attached(Mode::CatchingUp) if at >= self.end => {
                self.stage = Stage::Attached(Mode::Joining { at, held: VecDeque::new(), back: false });
                self.report_to = at;
                self.join(&mut Taken::default());
                if self.stage == Stage::Attached(Mode::Live) {
                    self.retries = 0;
                }
                Ok(())
            }
            _ => Err(Mismatch),
        }
    }

    /// The leader goes back to chunks.
    pub(crate) fn catch_up(&mut self, at: i64) -> Result<(), Mismatch> {
        let own = self.end;
        match &mut self.stage {
            Stage::Attached(mode @ (Mode::Live | Mode::CatchingUp)) if at == own => {
                *mode = Mode::CatchingUp;
                self.report_to = i64::MAX;
                Ok(())
            }
            Stage::Attached(Mode::Joining { at: joins, held, back })
                if held.back().map_or(*joins, |last| last.end) == at =>
            {
                *back = true;
                self.report_to = i64::MAX;
                Ok(())
            }
            _ => Err(Mismatch),
        }
    }

    /// The log was written or flushed further, and stands there now.
    pub(crate) fn progress(&mut self, position: LogPosition) {
        if position.written > self.written {
            self.retries = 0;
        }
        (self.written, self.durable) = (position.written, position.durable);
        self.kept_from.0 = position.log_start;
    }

    /// Where the log begins, if the leader has to hear of it.
    pub(crate) fn next_log_start(&mut self) -> Option<LogStart> {
        let (kept, told) = self.kept_from;
        let log_start = if self.guards.is_off(Guard::LogStartDurable) { self.log_start } else { kept };
        if !self.is_attached() || log_start <= told || self.guards.is_off(Guard::LogStartTold) {
            return None;
        }
        self.kept_from.1 = log_start;
        Some(LogStart { partition: self.partition, attachment: self.attachment, log_start })
    }

    /// Whether the log is so far as safe as a run asks.
    pub(crate) fn has(&self, end: i64, durability: Durability) -> bool {
        if self.guards.is_off(Guard::ConfirmDurable) {
            return true;
        }
        match durability {
            Durability::Device => self.durable >= end,
            Durability::Written => self.written >= end,
        }
    }

    /// Marks that the leader has to hear of, if there are any.
    pub(crate) fn next_report(&mut self) -> Option<Position> {
        let now = (self.written, self.durable);
        let is_due =
            matches!(self.stage, Stage::Attached(_)) && now != self.reported && self.reported.1 < self.report_to;
        if !is_due {
            return None;
        }
        self.reported = now;
        let (written, durable) = now;
        Some(Position { partition: self.partition, attachment: self.attachment, written, durable })
    }

    /// Whether it is attached, and runs come as chunks.
    pub(crate) fn is_catching_up(&self) -> bool {
        matches!(self.stage, Stage::Attached(Mode::CatchingUp | Mode::Joining { .. }))
    }

    /// Whether its leader may send chunks that are not on their way yet: it has said nothing of going live.
    #[cfg(test)]
    pub(crate) fn awaits_chunks(&self) -> bool {
        matches!(self.stage, Stage::Attached(Mode::CatchingUp))
    }
}

#[cfg(test)]
mod tests;
