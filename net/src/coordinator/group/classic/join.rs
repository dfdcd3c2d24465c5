//! JoinGroup: who may come in, and what happens then.

use std::rc::Rc;

use kafka_protocol::{
    error::ResponseError,
    messages::{JoinGroupRequest, JoinGroupResponse},
};

use super::{ClassicGroup, Member, State, error_join, protocols};
use crate::coordinator::group::{
    caller::Caller, effects::Scope, error::GroupError, settings::NEW_MEMBER_JOIN_TIMEOUT_MS, timers::TimerKind,
};
use crate::coordinator::runtime::Ticket;

/// First version whose clients are sent back once with a member id (KIP-394).
const MEMBER_ID_REQUIRED_VERSION: i16 = 4;

/// A JoinGroup and whose it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Join<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) request: &'a JoinGroupRequest,
}

impl<'a> Join<'a> {
    fn member_id(&self) -> &'a str {
        &self.request.member_id
    }

    /// Instance id of a static member.
    pub(super) fn instance_id(&self) -> Option<&'a str> {
        self.request.group_instance_id.as_deref()
    }

    fn protocol_names(&self) -> impl Iterator<Item = &'a str> {
        self.request.protocols.iter().map(|protocol| protocol.name.as_str())
    }

    /// Whether the client must come back with the member id that it is given.
    pub(crate) fn needs_member_id(&self) -> bool {
        self.member_id().is_empty()
            && self.request.group_instance_id.is_none()
            && self.caller.version >= MEMBER_ID_REQUIRED_VERSION
    }
}

impl ClassicGroup {
    /// Handles a JoinGroup; the ticket is answered now, or at the end of the rebalance.
    pub(crate) fn handle_join(&mut self, scope: &mut Scope<'_>, join: &Join<'_>, ticket: Ticket<JoinGroupResponse>) {
        let member_id = join.member_id();
        if !self.accepts(scope.settings.classic_size_max, member_id) {
            self.remove(scope, member_id);
            return refuse(scope, ticket, "", ResponseError::GroupMaxSizeReached);
        }
        if !self.supports(&join.request.protocol_type, join.protocol_names()) {
            return refuse(scope, ticket, member_id, ResponseError::InconsistentGroupProtocol);
        }
        if member_id.is_empty() {
            self.join_unknown(scope, join, ticket);
        } else if self.pending_join.contains(member_id) && join.instance_id().is_none() {
            self.add_member(scope, join, Rc::from(member_id), ticket);
        } else {
            match self.validate_member(member_id, join.instance_id()) {
                Ok(()) => self.rejoin(scope, join, ticket),
                Err(error) => refuse(scope, ticket, member_id, error),
            }
        }
    }

    /// Whether there is room. While members join, those that wait count, so that a group that became too large sheds the
    /// last ones; later all members count.
    fn accepts(&self, size_max: usize, member_id: &str) -> bool {
        let member = self.members.get(member_id);
        match self.state {
            State::Empty => true,
            State::PreparingRebalance => {
                member.is_some_and(|member| member.awaiting_join.is_some()) || self.awaiting_join_count < size_max
            }
            State::CompletingRebalance | State::Stable => member.is_some() || self.members.len() < size_max,
        }
    }

    fn join_unknown(&mut self, scope: &mut Scope<'_>, join: &Join<'_>, ticket: Ticket<JoinGroupResponse>) {
        let new_id: Rc<str> = match join.instance_id() {
            Some(instance_id) => Rc::from(format!("{instance_id}-{}", join.caller.fresh_id)),
            None => Rc::from(format!("{}-{}", join.caller.client_id, join.caller.fresh_id)),
        };
        if let Some(old_id) = join.instance_id().and_then(|instance_id| self.static_members.get(instance_id)) {
            let old_id = Rc::clone(old_id);
            return self.replace_static(scope, join, (&old_id, new_id), ticket);
        }
        if join.needs_member_id() {
            self.pending_join.insert(Rc::clone(&new_id));
            let deadline = scope.now_ms + i64::from(join.request.session_timeout_ms);
            scope.timers.schedule(&self.id, TimerKind::Session(Rc::clone(&new_id)), deadline);
            return refuse(scope, ticket, &new_id, ResponseError::MemberIdRequired);
        }
        self.add_member(scope, join, new_id, ticket);
    }

    fn add_member(&mut self, scope: &mut Scope<'_>, join: &Join<'_>, id: Rc<str>, ticket: Ticket<JoinGroupResponse>) {
        if self.members.is_empty() {
            self.protocol_type = Some(Rc::from(join.request.protocol_type.as_str()));
        }
        if let Some(delay) = self.initial_delay.as_mut().filter(|_| self.state == State::PreparingRebalance) {
            delay.joined = true;
        }
        self.insert(Member {
            id: Rc::clone(&id),
            instance_id: join.instance_id().map(Rc::from),
            client_id: Rc::from(join.caller.client_id.as_str()),
            client_host: Rc::from(join.caller.client_host.as_str()),
            rebalance_timeout_ms: join.request.rebalance_timeout_ms,
            session_timeout_ms: join.request.session_timeout_ms,
            protocols: protocols(&join.request.protocols),
            assignment: bytes::Bytes::new(),
            awaiting_join: Some(ticket),
            awaiting_sync: None,
            is_new: true,
        });
        let deadline = scope.now_ms + i64::from(NEW_MEMBER_JOIN_TIMEOUT_MS);
        scope.timers.schedule(&self.id, TimerKind::Session(id), deadline);
        self.rebalance_or_complete_join(scope);
    }

    /// A known member joins again.
    fn rejoin(&mut self, scope: &mut Scope<'_>, join: &Join<'_>, ticket: Ticket<JoinGroupResponse>) {
        let member_id = join.member_id();
        let unchanged = self.members[member_id].matches(&join.request.protocols);
        let is_leader = self.leader.as_deref() == Some(member_id);
        match self.state {
            // it may not have heard the answer to its first JoinGroup: the generation has not changed
            State::CompletingRebalance if unchanged => self.tell_generation(scope, member_id, ticket),
            // a leader rejoins to have partitions assigned anew, for example after a topic changed
            State::Stable if unchanged && !is_leader => self.tell_generation(scope, member_id, ticket),
            State::Empty => refuse(scope, ticket, member_id, ResponseError::UnknownMemberId),
            State::PreparingRebalance | State::CompletingRebalance | State::Stable => {
                self.update_member(join, member_id);
                self.await_join(scope, member_id, ticket);
                self.rebalance_or_complete_join(scope);
            }
        }
    }

    fn tell_generation(&self, scope: &mut Scope<'_>, member_id: &str, ticket: Ticket<JoinGroupResponse>) {
        scope.effects.reply(ticket, self.generation_reply(member_id));
    }

    /// Takes over what a rejoining member says of itself.
    pub(super) fn update_member(&mut self, join: &Join<'_>, member_id: &str) {
        let fresh = protocols(&join.request.protocols);
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        let old = std::mem::replace(&mut member.protocols, fresh.clone());
        member.rebalance_timeout_ms = join.request.rebalance_timeout_ms;
        member.session_timeout_ms = join.request.session_timeout_ms;
        self.count_protocols(&old, -1);
        self.count_protocols(&fresh, 1);
    }
}

fn refuse(scope: &mut Scope<'_>, ticket: Ticket<JoinGroupResponse>, member_id: &str, error: GroupError) {
    scope.effects.reply(ticket, error_join(member_id, error));
}
