//! Answers to members of a classic group that wait, and what a member is told of a generation.

use kafka_protocol::{
    error::ResponseError,
    messages::{JoinGroupResponse, SyncGroupResponse, join_group_response::JoinGroupResponseMember},
};

use super::{ClassicGroup, Member};
use crate::coordinator::group::{
    effects::Scope,
    error::GroupError,
    strings::{optional_wire, wire},
};
use crate::coordinator::runtime::Ticket;

impl ClassicGroup {
    /// Lets a member wait for the end of the rebalance. A request that it sent before is told to try again.
    pub(super) fn await_join(&mut self, scope: &mut Scope<'_>, member_id: &str, ticket: Ticket<JoinGroupResponse>) {
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        match member.awaiting_join.replace(ticket) {
            None => self.awaiting_join_count += 1,
            Some(superseded) => {
                let reply = error_join(member_id, ResponseError::RebalanceInProgress);
                scope.effects.reply(superseded, reply);
            }
        }
    }

    pub(super) fn reply_join(&mut self, scope: &mut Scope<'_>, member_id: &str, reply: JoinGroupResponse) {
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        if let Some(ticket) = member.awaiting_join.take() {
            self.awaiting_join_count -= 1;
            scope.effects.reply(ticket, reply);
        }
    }

    /// Answers a waiting SyncGroup; says whether there was one.
    pub(super) fn reply_sync(&mut self, scope: &mut Scope<'_>, member_id: &str, reply: SyncGroupResponse) -> bool {
        let waiting = self.members.get_mut(member_id).and_then(|member| member.awaiting_sync.take());
        let Some(ticket) = waiting else { return false };
        scope.effects.reply(ticket, reply);
        true
    }

    /// What a member is told of the current generation. Only the leader learns who the others are.
    pub(super) fn generation_reply(&self, member_id: &str) -> JoinGroupResponse {
        let is_leader = self.leader.as_deref() == Some(member_id);
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let member = |member: &Member| {
            JoinGroupResponseMember::default()
                .with_member_id(wire(&member.id))
                .with_group_instance_id(optional_wire(member.instance_id.as_deref()))
                .with_metadata(member.metadata(protocol))
        };
        let members = if is_leader { self.members.values().map(member).collect() } else { Vec::new() };
        JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type(optional_wire(self.protocol_type()))
            .with_protocol_name(optional_wire(self.protocol()))
            .with_leader(wire(self.leader.as_deref().unwrap_or_default()))
            .with_member_id(wire(member_id))
            .with_members(members)
    }
}

/// A JoinGroup reply that only tells an error.
pub(crate) fn error_join(member_id: &str, error: GroupError) -> JoinGroupResponse {
    JoinGroupResponse::default().with_generation_id(-1).with_member_id(wire(member_id)).with_error_code(error.code())
}

/// A SyncGroup reply that only tells an error.
pub(crate) fn error_sync(error: GroupError) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(error.code())
}
