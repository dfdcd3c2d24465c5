//! A static member that comes back under its instance id with a new member id (KIP-345).

use std::rc::Rc;

use kafka_protocol::{error::ResponseError, messages::JoinGroupResponse};

use super::{ClassicGroup, ClassicThen, Protocol, State, error_join, error_sync, join::Join, write_then};
use crate::coordinator::group::{effects::Scope, error::GroupError, strings::wire, timers::TimerKind};
use crate::coordinator::runtime::{Mark, Ticket};

/// First version whose leader can be told to skip the assignment (KIP-814).
const SKIP_ASSIGNMENT_VERSION: i16 = 9;

/// A replacement that does not change the group's generation, while it is made durable.
#[derive(Debug)]
pub(crate) struct StaticReplacement {
    old_id: Rc<str>,
    new_id: Rc<str>,
    /// What the member said of itself before, to go back to.
    old_protocols: Vec<Protocol>,
    old_rebalance_timeout_ms: i32,
    old_session_timeout_ms: i32,
    /// The leader as the client is told in versions that know of no skipping: the old id makes the client take itself
    /// for a follower, so that it assigns nothing.
    old_leader: Option<Rc<str>>,
    skips_assignment: bool,
    ticket: Mark<JoinGroupResponse>,
}

impl ClassicGroup {
    /// Puts `new_id` into the place of `old_id` and answers what the old one waited for.
    fn rename_static(&mut self, scope: &mut Scope<'_>, old_id: &Rc<str>, new_id: &Rc<str>) {
        self.reply_join(scope, old_id, error_join(old_id, ResponseError::FencedInstanceId));
        self.reply_sync(scope, old_id, error_sync(ResponseError::FencedInstanceId));
        scope.timers.cancel(&self.id, TimerKind::Session(Rc::clone(old_id)));
        let Some(mut member) = self.members.remove(old_id) else {
            return;
        };
        member.id = Rc::clone(new_id);
        if let Some(instance_id) = &member.instance_id {
            self.static_members.insert(Rc::clone(instance_id), Rc::clone(new_id));
        }
        if self.leader.as_ref() == Some(old_id) {
            self.leader = Some(Rc::clone(new_id));
        }
        if self.pending_sync.remove(old_id) {
            self.pending_sync.insert(Rc::clone(new_id));
        }
        self.members.insert(Rc::clone(new_id), member);
    }

    /// A static member that is known under another member id joins.
    pub(super) fn replace_static(
        &mut self,
        scope: &mut Scope<'_>,
        join: &Join<'_>,
        (old_id, new_id): (&Rc<str>, Rc<str>),
        ticket: Ticket<JoinGroupResponse>,
    ) {
        let old_leader = self.leader.clone();
        self.rename_static(scope, old_id, &new_id);
        let Some(member) = self.members.get(&new_id) else {
            return;
        };
        let replacement = StaticReplacement {
            old_id: Rc::clone(old_id),
            old_protocols: member.protocols.clone(),
            old_rebalance_timeout_ms: member.rebalance_timeout_ms,
            old_session_timeout_ms: member.session_timeout_ms,
            old_leader,
            skips_assignment: join.caller.version >= SKIP_ASSIGNMENT_VERSION,
            ticket: ticket.mark(),
            new_id: Rc::clone(&new_id),
        };
        self.update_member(join, &new_id);
        self.await_join(scope, &new_id, ticket);
        self.restart_session(scope, &new_id);
        match self.state {
            State::Stable if self.select_protocol() == self.protocol => {
                let then = ClassicThen::StaticReplaced(replacement);
                write_then(scope, &self.id, self.record(), then);
            }
            // in CompletingRebalance the leader may be assigning partitions to the old member id right now
            State::Stable | State::CompletingRebalance => self.prepare_rebalance(scope),
            State::PreparingRebalance | State::Empty => self.maybe_complete_join(scope),
        }
    }

    /// The new member id is durable, or could not be made so.
    pub(super) fn on_static_persisted(
        &mut self,
        scope: &mut Scope<'_>,
        replacement: StaticReplacement,
        result: Result<(), GroupError>,
    ) {
        let new_id = Rc::clone(&replacement.new_id);
        let waiting = self.members.get(&new_id).and_then(|member| member.awaiting_join.as_ref());
        let waits = waiting.is_some_and(|ticket| ticket.has(&replacement.ticket));
        // in a rebalance that began meanwhile it is one of those that joined, and is answered with them; once answered,
        // the next generation makes the new member id durable
        if !waits {
            return;
        }
        if let Err(error) = result {
            return self.revert_static(scope, replacement, error);
        }
        if self.state != State::Stable {
            return;
        }
        let mut reply = self.generation_reply(&new_id);
        if replacement.skips_assignment {
            reply.skip_assignment = self.leader.as_ref() == Some(&new_id);
        } else {
            reply.leader = wire(replacement.old_leader.as_deref().unwrap_or_default());
            reply.members.clear();
        }
        self.reply_join(scope, &new_id, reply);
    }

    fn revert_static(&mut self, scope: &mut Scope<'_>, replacement: StaticReplacement, error: GroupError) {
        let StaticReplacement { old_id, new_id, .. } = replacement;
        let Some(member) = self.members.get_mut(&new_id) else {
            return;
        };
        if let Some(ticket) = member.awaiting_join.take() {
            self.awaiting_join_count -= 1;
            scope.effects.reply(ticket, error_join("", error));
        }
        let fresh = std::mem::replace(&mut member.protocols, replacement.old_protocols.clone());
        member.rebalance_timeout_ms = replacement.old_rebalance_timeout_ms;
        member.session_timeout_ms = replacement.old_session_timeout_ms;
        self.count_protocols(&fresh, -1);
        self.count_protocols(&replacement.old_protocols, 1);
        self.rename_static(scope, &new_id, &old_id);
        self.restart_session(scope, &old_id);
        // members that joined with the group as it was must not wait for one that is no longer counted among them
        if self.state == State::PreparingRebalance {
            self.maybe_complete_join(scope);
        }
    }
}
