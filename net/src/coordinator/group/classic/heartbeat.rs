//! Heartbeat and LeaveGroup.

use kafka_protocol::{
    error::ResponseError,
    messages::{
        HeartbeatRequest, LeaveGroupRequest, LeaveGroupResponse, leave_group_request::MemberIdentity,
        leave_group_response::MemberResponse,
    },
};

use super::{ClassicGroup, State};
use crate::coordinator::group::{effects::Scope, error::GroupError, timers::TimerKind};

impl ClassicGroup {
    /// Handles a Heartbeat.
    pub(crate) fn handle_heartbeat(
        &mut self,
        scope: &mut Scope<'_>,
        request: &HeartbeatRequest,
    ) -> Result<(), GroupError> {
        self.validate_member(&request.member_id, request.group_instance_id.as_deref())?;
        if request.generation_id != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        match self.state {
            State::Empty => Err(ResponseError::UnknownMemberId),
            State::PreparingRebalance => {
                self.restart_session(scope, &request.member_id);
                Err(ResponseError::RebalanceInProgress)
            }
            State::CompletingRebalance | State::Stable => {
                self.restart_session(scope, &request.member_id);
                Ok(())
            }
        }
    }

    /// Handles a LeaveGroup: each member goes or not by itself; then the others rebalance.
    pub(crate) fn handle_leave(&mut self, scope: &mut Scope<'_>, request: &LeaveGroupRequest) -> LeaveGroupResponse {
        let mut members = Vec::with_capacity(request.members.len());
        for identity in &request.members {
            let error = self.leave(scope, identity).err();
            members.push(member_response(identity, error));
        }
        if members.iter().any(|member| member.error_code == 0) {
            match self.state {
                State::Stable | State::CompletingRebalance => self.prepare_rebalance(scope),
                State::PreparingRebalance => self.maybe_complete_join(scope),
                State::Empty => {}
            }
        }
        LeaveGroupResponse::default().with_members(members)
    }

    fn leave(&mut self, scope: &mut Scope<'_>, identity: &MemberIdentity) -> Result<(), GroupError> {
        let member_id = identity.member_id.as_str();
        let instance_id = identity.group_instance_id.as_deref();
        if member_id.is_empty() {
            // an administrator removes a static member without knowing its member id
            let owner = instance_id.and_then(|instance_id| self.static_members.get(instance_id));
            let owner = owner.cloned().ok_or(ResponseError::UnknownMemberId)?;
            self.remove(scope, &owner);
            return Ok(());
        }
        if let Some(pending) = self.pending_join.get(member_id).cloned() {
            self.remove(scope, &pending);
            scope.timers.cancel(&self.id, TimerKind::Session(pending));
            return Ok(());
        }
        self.validate_member(member_id, instance_id)?;
        self.remove(scope, member_id);
        Ok(())
    }
}

/// What a LeaveGroup is told of one member.
pub(crate) fn member_response(identity: &MemberIdentity, error: Option<GroupError>) -> MemberResponse {
    MemberResponse::default()
        .with_member_id(identity.member_id.clone())
        .with_group_instance_id(identity.group_instance_id.clone())
        .with_error_code(error.map_or(0, |error| error.code()))
}
