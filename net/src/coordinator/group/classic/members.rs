//! The members of a classic group as a set: who comes in, who goes, and what all of them can follow.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use kafka_protocol::error::ResponseError;

use super::{ClassicGroup, Member, Protocol, State, error_join, error_sync};
use crate::coordinator::group::{effects::Scope, timers::TimerKind};

impl ClassicGroup {
    pub(super) fn insert(&mut self, member: Member) {
        if let Some(instance_id) = &member.instance_id {
            self.static_members.insert(Rc::clone(instance_id), Rc::clone(&member.id));
        }
        self.count_protocols(&member.protocols, 1);
        self.awaiting_join_count += usize::from(member.awaiting_join.is_some());
        self.pending_join.remove(&member.id);
        self.leader.get_or_insert_with(|| Rc::clone(&member.id));
        self.members.insert(Rc::clone(&member.id), member);
    }

    /// Removes a member, or a member id that was only given out; answers what it waited for.
    pub(super) fn remove(&mut self, scope: &mut Scope<'_>, member_id: &str) {
        self.pending_join.remove(member_id);
        self.pending_sync.remove(member_id);
        let Some(member) = self.members.get(member_id) else {
            return;
        };
        let id = Rc::clone(&member.id);
        self.reply_join(scope, member_id, error_join("", ResponseError::UnknownMemberId));
        self.reply_sync(scope, member_id, error_sync(ResponseError::UnknownMemberId));
        let member = self.members.remove(member_id).expect("it was found above");
        scope.timers.cancel(&self.id, TimerKind::Session(id));
        self.count_protocols(&member.protocols, -1);
        if let Some(instance_id) = &member.instance_id {
            self.static_members.remove(instance_id);
        }
        if self.leader.as_deref() == Some(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    pub(super) fn count_protocols(&mut self, protocols: &[Protocol], by: isize) {
        let names: BTreeSet<_> = protocols.iter().map(|protocol| &protocol.name).collect();
        for name in names {
            let count = self.supported.entry(Rc::clone(name)).or_default();
            *count = count.checked_add_signed(by).expect("protocols are counted in pairs");
            if *count == 0 {
                self.supported.remove(name);
            }
        }
    }

    /// Whether a member with these protocols fits to the others.
    pub(super) fn supports<'a>(&self, protocol_type: &str, mut names: impl Iterator<Item = &'a str>) -> bool {
        if self.state == State::Empty {
            return !protocol_type.is_empty() && names.next().is_some();
        }
        let by_all = |name: &str| self.supported.get(name).copied().unwrap_or_default() == self.members.len();
        self.protocol_type.as_deref() == Some(protocol_type) && names.any(by_all)
    }

    /// The protocol that most members prefer among those that all follow; the first by name of equals.
    pub(super) fn select_protocol(&self) -> Option<Rc<str>> {
        let mut votes: BTreeMap<&Rc<str>, usize> = BTreeMap::new();
        for member in self.members.values() {
            let by_all = |protocol: &&Protocol| self.supported.get(&protocol.name) == Some(&self.members.len());
            if let Some(favourite) = member.protocols.iter().find(by_all) {
                *votes.entry(&favourite.name).or_default() += 1;
            }
        }
        let best = votes.into_iter().rev().max_by_key(|(_, votes)| *votes);
        best.map(|(name, _)| Rc::clone(name))
    }

    pub(super) fn rebalance_timeout_ms(&self) -> i32 {
        self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0)
    }

    pub(super) fn restart_session(&self, scope: &mut Scope<'_>, member_id: &str) {
        if let Some(member) = self.members.get(member_id) {
            let deadline = scope.now_ms + i64::from(member.session_timeout_ms);
            scope.timers.schedule(&self.id, TimerKind::Session(Rc::clone(&member.id)), deadline);
        }
    }
}
