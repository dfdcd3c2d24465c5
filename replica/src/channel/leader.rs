//! One partition's leader in one epoch: who follows, up to where everybody who matters has the log, and who is in sync.
//!
//! Always: the high watermark only rises, never above what any member of the maximal ISR confirmed in this epoch; one change of
//! the ISR is under way at most; a change of unknown outcome counts as made and as not made, whichever is stricter, until
//! the key has another revision.

use millrace_engine::config::Durability;

use super::{
    event::{IsrOutcome, LeaderRole, LinkId, LiveNode, LogPosition, Nodes},
    frame::{Attach, Position, Verdict},
    guard::{Guard, Guards},
    progress::{Flow, Follower},
};
use crate::cluster::model::Member;

/// A follower that has not caught up for so long is out of sync, if nothing else is said: replica.lag.time.max.ms.
pub const LAG_MS_MAX: u64 = 30_000;
/// Patience with a follower whose connection broke while records wait for it.
pub(crate) const BROKEN_MS_MAX: u64 = 1_000;
/// Patience with a follower that has not attached in this epoch while records wait for it: it may hear of the epoch later.
pub(crate) const UNHEARD_MS_MAX: u64 = 3_000;
/// A follower joins again only so long after it was put out: each change is a write of the cluster's store.
pub(crate) const REJOIN_MS: u64 = 10_000;
/// Pause before a change that failed is asked for again.
const RETRY_MS: u64 = 500;

/// A change of the ISR that was asked for.
#[derive(Clone, Debug)]
struct Change {
    /// What was asked for last.
    isr: Vec<Member>,
    /// What may become of this revision of the key: all that was ever asked for.
    possible: Vec<Member>,
    /// Whether what was asked for last takes back that records may be acknowledged before they are flushed, and whether anything did.
    is_flushed: bool,
    may_be_flushed: bool,
    state: ChangeState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChangeState {
    /// An answer is due.
    Asked,
    /// An answer is due, and a former one never came.
    AskedAgain,
    /// No answer came.
    Doubtful,
    /// The key has another value by now, which will come.
    Stale,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Leadership {
    /// This node's life.
    me: Member,
    /// The epoch.
    pub(crate) epoch: i32,
    /// Revision of the key.
    pub(crate) revision: i64,
    /// The key.
    pub(crate) role: LeaderRole,
    /// Since when, in ms.
    since_ms: u64,
    /// A follower that has not caught up for so long is out of sync.
    lag_ms_max: u64,
    /// Where the epoch begins; none before it is noted durably.
    pub(crate) start: Option<i64>,
    /// Rises.
    pub(crate) high_watermark: i64,
    /// Where the log begins, as far as followers are told.
    pub(crate) log_start: i64,
    /// Where the last commit group ends that followers were told of.
    pub(crate) sealed: i64,
    /// Who attached in this epoch, one life per node.
    pub(crate) followers: Vec<Follower>,
    change: Option<Change>,
    /// Nothing is asked for before.
    not_before_ms: u64,
    /// Whom this leader put out of the ISR, and when.
    left: Vec<(Member, u64)>,
    /// Who attached before the epoch was noted.
    pub(crate) early: Vec<(LinkId, Attach)>,
    guards: Guards,
}

impl Leadership {
    /// Begins an epoch, in which nobody has been heard yet.
    pub(crate) fn new(now_ms: u64, me: Member, epoch: i32, revision: i64, role: LeaderRole, guards: Guards) -> Self {
        Self {
            me,
            epoch,
            revision,
            role,
            since_ms: now_ms,
            lag_ms_max: LAG_MS_MAX,
            start: None,
            high_watermark: 0,
            log_start: 0,
            sealed: 0,
            followers: Vec::new(),
            change: None,
            not_before_ms: 0,
            left: Vec::new(),
            early: Vec::new(),
            guards,
        }
    }

    /// With another patience for those that lag.
    pub(crate) fn with_lag(self, lag_ms_max: u64) -> Self {
        Self { lag_ms_max, ..self }
    }

    /// The epoch is noted durably.
    pub(crate) fn begin(&mut self, position: LogPosition) {
        self.start = Some(position.epoch_start);
        self.high_watermark = position.high_watermark;
        self.log_start = position.log_start;
        self.sealed = position.end;
    }

    /// The key was changed, in the same epoch, by whomever. Older news is no news.
    pub(crate) fn update(&mut self, revision: i64, role: LeaderRole) {
        if revision < self.revision {
            self.role.min_isr = role.min_isr;
            self.role.durability = role.durability;
            return;
        }
        self.left.retain(|(member, _)| !role.isr.contains(member));
        if revision > self.revision {
            self.change = None;
        }
        (self.revision, self.role) = (revision, role);
        let replicas = &self.role.replicas;
        self.followers.retain(|follower| replicas.contains(&follower.member.node));
    }

    /// What a follower hears that says where it stands. `looked_up` is its last epoch in this log's list.
    pub(crate) fn verdict(&self, attach: &Attach, position: LogPosition, looked_up: Option<(i32, i64)>) -> Verdict {
        if attach.epoch < self.epoch {
            return Verdict::Fenced { epoch: self.epoch };
        }
        if attach.epoch > self.epoch || self.start.is_none() {
            return Verdict::Unknown;
        }
        let gone = Verdict::Gone { log_start: position.log_start };
        if attach.end < position.log_start {
            return gone;
        }
        if attach.last_epoch < 0 || self.guards.is_off(Guard::LastEpochAtAttach) {
            return if attach.end <= position.end { Verdict::Match } else { gone };
        }
        match looked_up {
            // all that the two may have in common is before this log's start: nothing shows that it is the same
            Some((_, end)) if end <= position.log_start => gone,
            Some((epoch, end)) if epoch < attach.last_epoch || end < attach.end => Verdict::Diverge { epoch, end },
            Some(_) => Verdict::Match,
            None => gone,
        }
    }

    /// Takes up a follower whose log matches.
    pub(crate) fn take_up(&mut self, now_ms: u64, member: Member, link: LinkId, attach: &Attach, flow: Flow) {
        let promise = self.promise();
        let confirmed = match promise {
            _ if self.guards.is_off(Guard::ConfirmedAtAttach) => attach.end,
            Durability::Device => attach.durable,
            Durability::Written => attach.written,
        };
        let mut follower = Follower::new(now_ms, member, link, attach.attachment, confirmed, flow);
        follower.note_flushed(attach.durable, if promise == Durability::Written { confirmed } else { 0 });
        if let Some(at) = self.followers.iter().position(|former| former.member.node == member.node) {
            follower.resume(now_ms, &self.followers.swap_remove(at), self.sealed);
        }
        self.followers.push(follower);
    }

    /// The follower that attached through a connection, in the attempt that is meant.
    pub(crate) fn follower(&mut self, link: LinkId, attachment: u32) -> Option<&mut Follower> {
        self.followers.iter_mut().find(|follower| follower.link == Some(link) && follower.attachment == attachment)
    }

    /// A follower has more of the log.
    pub(crate) fn confirm(&mut self, now_ms: u64, link: LinkId, attachment: u32, offset: i64, leader_end: i64) {
        if let Some(follower) = self.follower(link, attachment) {
            follower.confirm(now_ms, offset.min(leader_end), leader_end);
        }
    }

    /// What an acknowledgement waits for: for the flush, unless the topic asks for less, the key says so, and nothing that was asked for
    /// may have changed that.
    pub(crate) fn promise(&self) -> Durability {
        let is_noted = self.role.written && self.change.as_ref().is_none_or(|change| !change.may_be_flushed);
        match self.role.durability {
            Durability::Written if is_noted || self.guards.is_off(Guard::PromiseNoted) => Durability::Written,
            _ => Durability::Device,
        }
    }

    /// What a member must have kept of its life before to be that member still.
    fn trust(&self) -> Durability {
        if self.role.written { Durability::Written } else { self.role.durability }
    }

    /// Whether the key says that records may be acknowledged before they are flushed, and nothing of the kind is left: all that
    /// any leader may have acknowledged is flushed by all that were promised to have it, and so is whatever followers may confirm.
    pub(crate) fn is_flushed(&self, position: LogPosition, nodes: &Nodes) -> bool {
        let Some(start) = self.start else { return false };
        if !self.role.written || self.role.durability == Durability::Written || !self.role.elr.is_empty() {
            return false;
        }
        let least = start.max(self.high_watermark);
        let others = self.role.isr.iter().filter(|member| member.node != self.me.node);
        let mut in_sync = others.map(|member| {
            let present = nodes.present(*member, self.trust());
            self.followers.iter().find(|follower| Some(follower.member) == present)
        });
        let has_all = |it: Option<&Follower>| it.is_some_and(|it| it.durable >= it.unflushed.max(least));
        // one that is not in sync may be soon, by what it confirmed
        let mut others = self.followers.iter().filter(|follower| follower.link.is_some());
        let is_safe = position.durable >= least && in_sync.all(has_all) && others.all(|it| it.durable >= it.unflushed);
        is_safe || self.guards.is_off(Guard::PromiseKept)
    }

    /// Whether what was asked for last takes back that records may be acknowledged before they are flushed.
    pub(crate) fn asks_to_flush(&self) -> bool {
        self.change.as_ref().is_some_and(|change| change.is_flushed)
    }

    /// Up to where all replicas whose nodes live have let go of the log; -1 if one of them is not there, or does not tell.
    pub(crate) fn low_watermark(&self, position: LogPosition, nodes: &Nodes) -> i64 {
        let others = self.role.replicas.iter().filter(|node| **node != self.me.node);
        let unknown = if self.guards.is_off(Guard::LowWatermarkOfAll) { position.log_start } else { -1 };
        let of = |live: &LiveNode| {
            let follower = self.followers.iter().find(|it| it.member == live.member && it.link.is_some());
            follower.and_then(|follower| follower.log_start).unwrap_or(unknown)
        };
        others.filter_map(|node| nodes.live(*node)).map(of).fold(position.log_start, i64::min)
    }

    /// The committed ISR and whatever else may be the ISR by now.
    pub(crate) fn maximal_isr(&self) -> Vec<Member> {
        let mut maximal = self.role.isr.clone();
        if let Some(change) = &self.change {
            if self.guards.is_off(Guard::MaximalIsr) {
                return change.isr.clone();
            }
            maximal.extend(change.possible.iter().filter(|member| !self.role.isr.contains(member)));
        }
        maximal
    }

    /// What a member of an ISR confirmed in this epoch; none if it was not heard, or its life is over.
    fn confirmed(&self, member: Member, nodes: &Nodes) -> Option<i64> {
        let present = nodes.present(member, self.trust());
        let speaks = |follower: &&Follower| Some(follower.member) == present;
        self.followers.iter().find(speaks).map(|follower| follower.confirmed)
    }

    /// Raises the high watermark as far as it may rise; none if it stays.
    pub(crate) fn advance(&mut self, now_ms: u64, position: LogPosition, nodes: &Nodes) -> Option<i64> {
        let start = self.start?;
        let is_too_small = self.role.isr.len() < self.in_sync_min() || !self.role.elr.is_empty();
        if is_too_small && !self.guards.is_off(Guard::InSyncMin) {
            return None;
        }
        let mut committed = match self.promise() {
            Durability::Device => position.durable,
            Durability::Written => position.confirmed(),
        };
        for member in self.maximal_isr() {
            if member.node == self.me.node {
                continue;
            }
            match self.confirmed(member, nodes) {
                Some(confirmed) => committed = committed.min(confirmed),
                None if self.guards.is_off(Guard::HeardInEpoch) => {}
                None => return None,
            }
        }
        for follower in &self.followers {
            let waits = follower.confirmed >= start.max(self.high_watermark) && self.may_join(now_ms, follower, nodes);
            if waits {
                committed = committed.min(follower.confirmed);
            }
        }
        (committed > self.high_watermark).then(|| {
            self.high_watermark = committed;
            committed
        })
    }

    /// Whether a follower outside the ISR is on its way into it. The high watermark waits for it, or it would run ahead for ever.
    fn may_join(&self, now_ms: u64, follower: &Follower, nodes: &Nodes) -> bool {
        let is_eligible = nodes.live(follower.member.node).is_some_and(|live| {
            live.member == follower.member && !live.draining && self.role.replicas.contains(&live.member.node)
        });
        let is_broken = follower.link.is_none() || follower.broken_ms.is_some();
        let is_live = matches!(follower.flow, Flow::Live { .. }) && !is_broken;
        is_eligible && is_live && now_ms.saturating_sub(follower.caught_up_ms) <= self.lag_ms_max
    }

    fn in_sync_min(&self) -> usize {
        self.role.min_isr.min(self.role.replicas.len())
    }

    /// The ISR that is to be asked for now; none if there is nothing to ask for.
    pub(crate) fn next_change(&mut self, now_ms: u64, position: LogPosition, nodes: &Nodes) -> Option<Vec<Member>> {
        let start = self.start?;
        if now_ms < self.not_before_ms {
            return None;
        }
        if let Some(change) = &mut self.change {
            if change.state != ChangeState::Doubtful {
                return None;
            }
            // whatever may still happen at this revision cannot once this one has
            change.state = ChangeState::AskedAgain;
            change.isr.clone_from(&self.role.isr);
            change.is_flushed = false;
            return Some(change.isr.clone());
        }
        let other = self.shrunk(now_ms, position, nodes).or_else(|| self.expanded(now_ms, start, nodes));
        let is_flushed = other.is_none() && self.is_flushed(position, nodes);
        let isr = other.or_else(|| is_flushed.then(|| self.role.isr.clone()))?;
        let mut possible = self.role.isr.clone();
        possible.extend(isr.iter().filter(|member| !self.role.isr.contains(member)));
        let state = ChangeState::Asked;
        self.change = Some(Change { isr: isr.clone(), possible, is_flushed, may_be_flushed: is_flushed, state });
        Some(isr)
    }

    /// The ISR without those that are out of sync, if there are any.
    fn shrunk(&mut self, now_ms: u64, position: LogPosition, nodes: &Nodes) -> Option<Vec<Member>> {
        let (out, rest): (Vec<Member>, Vec<Member>) =
            self.role.isr.iter().partition(|member| !self.is_in_sync(now_ms, **member, position, nodes));
        if out.is_empty() {
            return None;
        }
        self.left.retain(|(member, _)| !out.contains(member));
        self.left.extend(out.into_iter().map(|member| (member, now_ms)));
        Some(rest)
    }

    fn is_in_sync(&self, now_ms: u64, member: Member, position: LogPosition, nodes: &Nodes) -> bool {
        if member.node == self.me.node || position.end <= self.high_watermark {
            return true;
        }
        let present = nodes.present(member, self.trust());
        let follower = self.followers.iter().find(|follower| Some(follower.member) == present);
        match follower {
            None => now_ms.saturating_sub(self.since_ms) < UNHEARD_MS_MAX,
            Some(follower) => match follower.broken_ms {
                Some(broken_ms) => now_ms.saturating_sub(broken_ms) < BROKEN_MS_MAX,
                None => {
                    let lags_ms = now_ms.saturating_sub(follower.caught_up_ms);
                    follower.confirmed >= position.end || lags_ms <= self.lag_ms_max
                }
            },
        }
    }

    /// The ISR with one more, if one caught up.
    fn expanded(&self, now_ms: u64, start: i64, nodes: &Nodes) -> Option<Vec<Member>> {
        let start = if self.guards.is_off(Guard::EpochStart) { 0 } else { start };
        let from = if self.guards.is_off(Guard::JoinAtHighWatermark) { start } else { start.max(self.high_watermark) };
        let is_member = |follower: &Follower| {
            let speaks = |member: &&Member| nodes.present(**member, self.trust()) == Some(follower.member);
            self.role.isr.iter().any(|member| member.node == follower.member.node || speaks(&member))
        };
        let rests = |follower: &Follower| {
            self.left.iter().any(|(member, at)| *member == follower.member && now_ms.saturating_sub(*at) < REJOIN_MS)
        };
        let joins = |follower: &&Follower| {
            let may = self.may_join(now_ms, follower, nodes) && follower.confirmed >= from;
            may && !is_member(follower) && !rests(follower)
        };
        let follower = self.followers.iter().find(joins)?;
        let mut isr = self.role.isr.clone();
        isr.push(follower.member);
        Some(isr)
    }

    /// What became of the change that was asked for at a revision. True if the committed ISR is another now.
    pub(crate) fn conclude(&mut self, now_ms: u64, revision: i64, outcome: IsrOutcome) -> bool {
        if revision != self.revision {
            return false;
        }
        let Some(change) = &mut self.change else { return false };
        match outcome {
            // a write of the same revision is none: it says nothing of a former change
            IsrOutcome::Committed { revision }
                if revision == self.revision && change.state == ChangeState::AskedAgain =>
            {
                change.state = ChangeState::Doubtful;
            }
            IsrOutcome::Committed { revision } => {
                self.revision = revision;
                self.role.isr = std::mem::take(&mut change.isr);
                self.role.written &= !change.is_flushed;
                self.change = None;
                return true;
            }
            IsrOutcome::Refused if change.state == ChangeState::Asked => self.change = None,
            IsrOutcome::Unknown if self.guards.is_off(Guard::UnknownOutcome) => self.change = None,
            IsrOutcome::Refused | IsrOutcome::Unknown => change.state = ChangeState::Doubtful,
            IsrOutcome::Stale => change.state = ChangeState::Stale,
        }
        self.not_before_ms = now_ms + RETRY_MS;
        false
    }

    /// What a follower's marks confirm, as this topic asks.
    pub(crate) fn confirmed_of(&self, told: &Position) -> i64 {
        match self.promise() {
            Durability::Device => told.durable,
            Durability::Written => told.written,
        }
    }

    /// Whether a follower that is there is not in the committed ISR.
    pub(crate) fn has_outsider(&self) -> bool {
        let is_member = |follower: &Follower| self.role.isr.iter().any(|member| member.node == follower.member.node);
        self.followers.iter().any(|follower| follower.link.is_some() && !is_member(follower))
    }

    /// Whether a life of a node is in the committed ISR.
    pub(crate) fn is_in_isr(&self, member: Member, nodes: &Nodes) -> bool {
        self.role.isr.iter().any(|entry| nodes.present(*entry, self.trust()) == Some(member))
    }

    /// Whether time alone may change something: records wait, a change is under way or due, or a replica is not in sync.
    pub(crate) fn is_restless(&self, position: LogPosition, nodes: &Nodes) -> bool {
        let is_changing = self.change.is_some() || self.is_flushed(position, nodes);
        is_changing || position.end > self.high_watermark || self.has_outsider()
    }
}

#[cfg(test)]
mod tests;
