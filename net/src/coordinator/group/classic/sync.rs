//! SyncGroup: the leader brings the assignment, everybody is told its part once that is durable.

use std::{collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use kafka_protocol::{
    error::ResponseError,
    messages::{SyncGroupRequest, SyncGroupResponse},
};

use super::{ClassicGroup, ClassicThen, State, error_sync, write_then};
use crate::coordinator::group::{effects::Scope, error::GroupError, strings::optional_wire, timers::TimerKind};
use crate::coordinator::runtime::Ticket;

impl ClassicGroup {
    /// Handles a SyncGroup; the ticket is answered now, or when the leader's assignment is durable.
    pub(crate) fn handle_sync(
        &mut self,
        scope: &mut Scope<'_>,
        request: &SyncGroupRequest,
        ticket: Ticket<SyncGroupResponse>,
    ) {
        let member_id = request.member_id.as_str();
        if let Err(error) = self.validate_sync(request) {
            return scope.effects.reply(ticket, error_sync(error));
        }
        match self.state {
            State::Empty => scope.effects.reply(ticket, error_sync(ResponseError::UnknownMemberId)),
            State::PreparingRebalance => scope.effects.reply(ticket, error_sync(ResponseError::RebalanceInProgress)),
            State::Stable => {
                self.note_sync(scope, member_id);
                scope.effects.reply(ticket, self.assignment_reply(member_id));
            }
            State::CompletingRebalance => {
                self.await_sync(scope, member_id, ticket);
                self.note_sync(scope, member_id);
                if self.leader.as_deref() == Some(member_id) {
                    self.persist_assignment(scope, request);
                }
            }
        }
    }

    fn validate_sync(&self, request: &SyncGroupRequest) -> Result<(), GroupError> {
        self.validate_member(&request.member_id, request.group_instance_id.as_deref())?;
        if request.generation_id != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        let differs =
            |asked: Option<&str>, own: Option<&str>| asked.is_some_and(|asked| own.is_some_and(|own| asked != own));
        if differs(request.protocol_type.as_deref(), self.protocol_type())
            || differs(request.protocol_name.as_deref(), self.protocol())
        {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        Ok(())
    }

    fn note_sync(&mut self, scope: &mut Scope<'_>, member_id: &str) {
        self.pending_sync.remove(member_id);
        if self.pending_sync.is_empty() {
            scope.timers.cancel(&self.id, TimerKind::GroupSync);
        }
    }

    fn await_sync(&mut self, scope: &mut Scope<'_>, member_id: &str, ticket: Ticket<SyncGroupResponse>) {
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        if let Some(superseded) = member.awaiting_sync.replace(ticket) {
            scope.effects.reply(superseded, error_sync(ResponseError::RebalanceInProgress));
        }
    }

    fn persist_assignment(&mut self, scope: &mut Scope<'_>, request: &SyncGroupRequest) {
        let mut assignments: BTreeMap<Rc<str>, Bytes> = BTreeMap::new();
        for part in &request.assignments {
            if let Some(member) = self.members.get(part.member_id.as_str()) {
                assignments.insert(Rc::clone(&member.id), Bytes::copy_from_slice(&part.assignment));
            }
        }
        let record = self.record_with(|member| assignments.get(&member.id).cloned().unwrap_or_default());
        let then = ClassicThen::Assigned { generation: self.generation, assignments };
        write_then(scope, &self.id, record, then);
    }

    /// The assignment is durable, or could not be made so. If the group has moved on meanwhile, it is of no interest.
    pub(super) fn on_assignment_persisted(
        &mut self,
        scope: &mut Scope<'_>,
        generation: i32,
        assignments: &BTreeMap<Rc<str>, Bytes>,
        result: Result<(), GroupError>,
    ) {
        if self.state != State::CompletingRebalance || generation != self.generation {
            return;
        }
        if let Err(error) = result {
            self.reset_assignments(scope, error);
            return self.prepare_rebalance(scope);
        }
        self.transition_to(State::Stable, scope.now_ms);
        let members: Vec<_> = self.members.keys().cloned().collect();
        for id in &members {
            if let Some(member) = self.members.get_mut(id) {
                member.assignment = assignments.get(id).cloned().unwrap_or_default();
            }
            let reply = self.assignment_reply(id);
            // a session that ended while the member waited was passed over, so that the clock must be started again
            if self.reply_sync(scope, id, reply) {
                self.restart_session(scope, id);
            }
        }
    }

    fn assignment_reply(&self, member_id: &str) -> SyncGroupResponse {
        let assignment = self.members.get(member_id).map(|member| member.assignment.clone()).unwrap_or_default();
        SyncGroupResponse::default()
            .with_protocol_type(optional_wire(self.protocol_type()))
            .with_protocol_name(optional_wire(self.protocol()))
            .with_assignment(assignment)
    }
}
