//! The rebalance: from the first join to the moment when everybody knows the new generation.

use kafka_protocol::error::ResponseError;

use super::{ClassicGroup, InitialDelay, State, error_sync};
use crate::coordinator::group::{
    effects::{Scope, Then},
    timers::TimerKind,
};

impl ClassicGroup {
    /// A member came, went or changed: begins a rebalance, or ends the one under way if nobody is missing any more.
    pub(super) fn rebalance_or_complete_join(&mut self, scope: &mut Scope<'_>) {
        match self.state {
            State::PreparingRebalance => self.maybe_complete_join(scope),
            State::Empty | State::CompletingRebalance | State::Stable => self.prepare_rebalance(scope),
        }
    }

    /// Begins a rebalance: everybody must join again.
    pub(crate) fn prepare_rebalance(&mut self, scope: &mut Scope<'_>) {
        if self.state == State::CompletingRebalance {
            self.reset_assignments(scope, ResponseError::RebalanceInProgress);
        }
        self.pending_sync.clear();
        scope.timers.cancel(&self.id, TimerKind::GroupSync);
        let initial = self.state == State::Empty;
        self.transition_to(State::PreparingRebalance, scope.now_ms);
        if initial {
            let step_ms = scope.settings.initial_rebalance_delay_ms;
            let left_ms = self.rebalance_timeout_ms().saturating_sub(step_ms).max(0);
            self.initial_delay = Some(InitialDelay { step_ms, left_ms, joined: false });
            self.schedule_join(scope, step_ms);
        } else {
            self.initial_delay = None;
            if self.all_joined() {
                self.complete_join(scope);
            } else {
                self.schedule_join(scope, self.rebalance_timeout_ms());
            }
        }
    }

    /// Ends the join phase if everybody is there. The first rebalance of an empty group runs its time all the same.
    pub(super) fn maybe_complete_join(&mut self, scope: &mut Scope<'_>) {
        if self.state == State::PreparingRebalance && self.previous != State::Empty && self.all_joined() {
            self.complete_join(scope);
        }
    }

    /// Whether every member waits and every member id that was given out was used.
    pub(super) fn all_joined(&self) -> bool {
        self.members.len() == self.awaiting_join_count && self.pending_join.is_empty()
    }

    fn schedule_join(&self, scope: &mut Scope<'_>, after_ms: i32) {
        scope.timers.schedule(&self.id, TimerKind::GroupJoin, scope.now_ms + i64::from(after_ms));
    }

    /// The time to join is over, or this step of the first rebalance's delay.
    pub(crate) fn handle_join_timeout(&mut self, scope: &mut Scope<'_>) {
        if self.state != State::PreparingRebalance {
            return;
        }
        match self.initial_delay {
            Some(delay) if delay.joined && delay.left_ms != 0 => {
                let step_ms = scope.settings.initial_rebalance_delay_ms.min(delay.left_ms);
                let left_ms = (delay.left_ms - delay.step_ms).max(0);
                self.initial_delay = Some(InitialDelay { step_ms, left_ms, joined: false });
                self.schedule_join(scope, step_ms);
            }
            _ => self.complete_join(scope),
        }
    }

    /// Ends the join phase: dynamic members that did not come are out, the others learn the new generation.
    pub(super) fn complete_join(&mut self, scope: &mut Scope<'_>) {
        scope.timers.cancel(&self.id, TimerKind::GroupJoin);
        self.initial_delay = None;
        let absent = self.members.values().filter(|member| member.awaiting_join.is_none());
        let absent: Vec<_> =
            absent.filter(|member| member.instance_id.is_none()).map(|member| member.id.clone()).collect();
        absent.iter().for_each(|member| self.remove(scope, member));
        if self.members.is_empty() {
            return self.become_empty(scope);
        }
        if !self.elect_joined_leader() {
            // only static members are left and none of them joined: their session timeouts will decide
            return self.schedule_join(scope, self.rebalance_timeout_ms());
        }
        self.next_generation();
        self.transition_to(State::CompletingRebalance, scope.now_ms);
        let members: Vec<_> = self.members.keys().cloned().collect();
        for member in &members {
            let reply = self.generation_reply(member);
            self.reply_join(scope, member, reply);
            self.restart_session(scope, member);
            if let Some(member) = self.members.get_mut(member) {
                member.is_new = false;
            }
        }
        self.pending_sync.extend(members);
        let deadline = scope.now_ms + i64::from(self.rebalance_timeout_ms());
        scope.timers.schedule(&self.id, TimerKind::GroupSync, deadline);
    }

    fn next_generation(&mut self) {
        self.generation += 1;
        self.protocol = self.select_protocol();
        self.topics = self.subscribed_topics();
        self.pending_sync.clear();
    }

    fn become_empty(&mut self, scope: &mut Scope<'_>) {
        self.next_generation();
        self.transition_to(State::Empty, scope.now_ms);
        // nobody waits for this: should it be lost, the older generation comes back and times out
        scope.effects.write(vec![self.record()], Then::Keep);
    }

    /// Makes sure that the leader is one of those that joined; false when nobody did.
    fn elect_joined_leader(&mut self) -> bool {
        let joined = |id: &std::rc::Rc<str>| self.members.get(id).is_some_and(|member| member.awaiting_join.is_some());
        if self.leader.as_ref().is_some_and(joined) {
            return true;
        }
        let Some(member) = self.members.values().find(|member| member.awaiting_join.is_some()) else {
            return false;
        };
        self.leader = Some(member.id.clone());
        true
    }

    /// Forgets the assignments and sends whoever waits for one away.
    pub(super) fn reset_assignments(&mut self, scope: &mut Scope<'_>, error: ResponseError) {
        let members: Vec<_> = self.members.keys().cloned().collect();
        for member in &members {
            if let Some(member) = self.members.get_mut(member) {
                member.assignment = bytes::Bytes::new();
            }
            if self.reply_sync(scope, member, error_sync(error)) {
                self.restart_session(scope, member);
            }
        }
    }

    /// A member was not heard of for too long, or did not come back with the member id that it was given.
    pub(crate) fn handle_session_timeout(&mut self, scope: &mut Scope<'_>, member_id: &str) {
        if self.pending_join.contains(member_id) {
            self.remove(scope, member_id);
            return self.complete_join_if_all_joined(scope);
        }
        let Some(member) = self.members.get(member_id) else {
            return;
        };
        if !member.is_kept_alive_by_waiting() {
            self.remove(scope, member_id);
            match self.state {
                State::Stable | State::CompletingRebalance => self.prepare_rebalance(scope),
                State::PreparingRebalance => self.complete_join_if_all_joined(scope),
                State::Empty => {}
            }
        }
    }

    fn complete_join_if_all_joined(&mut self, scope: &mut Scope<'_>) {
        if self.state == State::PreparingRebalance && self.all_joined() {
            self.complete_join(scope);
        }
    }

    /// Some members joined and then did not sync in time: they are out, and the others start anew.
    pub(crate) fn handle_sync_timeout(&mut self, scope: &mut Scope<'_>) {
        if !matches!(self.state, State::CompletingRebalance | State::Stable) || self.pending_sync.is_empty() {
            return;
        }
        let late = std::mem::take(&mut self.pending_sync);
        late.iter().for_each(|member| self.remove(scope, member));
        self.prepare_rebalance(scope);
    }
}
