//! Members of a consumer group that still use the classic protocol.
//!
//! They are assigned to like the others. JoinGroup tells them their new epoch as a generation, SyncGroup what they own,
//! and Heartbeat that it is time to join again.

use std::{collections::BTreeSet, rc::Rc};

use bytes::Bytes;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        HeartbeatRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest,
        SyncGroupResponse, leave_group_request::MemberIdentity,
    },
};

use super::{
    ConsumerGroup, Left, Member, MemberState, Owned, TopicsView, convert::embedded_assignment, heartbeat::Found,
    subscription::sorted,
};
use crate::coordinator::group::{
    assignment::Assignment,
    classic::{CONSUMER_PROTOCOL_TYPE, ConsumerSubscription, Join, consumer_subscription, error_join, member_response},
    effects::Scope,
    error::GroupError,
    record::{ClassicMetadata, ConsumerMember, Record},
    settings::MigrationPolicy,
    strings::{optional_wire, wire},
    timers::TimerKind,
};

impl ConsumerGroup {
    /// Handles a JoinGroup. Refuses before anything changes.
    pub(crate) fn handle_classic_join(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        join: &Join<'_>,
        records: &mut Vec<Record>,
    ) -> Result<(JoinGroupResponse, Left), GroupError> {
        let request = join.request;
        let given_id = if request.member_id.is_empty() { &join.caller.fresh_id } else { &*request.member_id };
        let id: Rc<str> = Rc::from(given_id);
        if scope.settings.migration_policy == MigrationPolicy::Disabled || !self.supports(join) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        self.validate_size(scope.settings, &id).map_err(|refusal| refusal.error)?;
        if join.needs_member_id() {
            let reply = error_join("", ResponseError::MemberIdRequired).with_member_id(wire(&id));
            return Ok((reply, Left::Stays));
        }
        let metadata = request.protocols.first().map(|protocol| protocol.metadata.clone()).unwrap_or_default();
        let subscription = consumer_subscription(&metadata).ok_or(ResponseError::InconsistentGroupProtocol)?;
        let found = self.find_classic(join, id)?;
        let downgrades = self.replaces_last_consumer(scope, &found);

        let owned = owned_ids(&subscription, topics);
        let id = self.settle(found, records);
        let info = self.told_by_join(&id, join, &subscription);
        let changed = self.subscribe(scope, topics, &id, info, records);
        scope.timers.cancel(&self.id, TimerKind::MemberJoin(Rc::clone(&id)));
        let left = if downgrades {
            let rebalance = self.assignment_epoch < self.epoch;
            if !rebalance {
                self.reconcile(scope, topics, &id, changed, &owned, records);
            }
            Left::Downgraded(Box::new(self.downgrade(scope, topics, &BTreeSet::new(), rebalance, records)))
        } else {
            self.update_target(scope, topics, records);
            self.reconcile(scope, topics, &id, changed, &owned, records);
            Left::Stays
        };
        let member = self.members.get(&id).ok_or(ResponseError::UnknownMemberId)?;
        if matches!(left, Left::Stays) {
            self.restart_session(scope, member);
            let deadline = scope.now_ms + i64::from(request.rebalance_timeout_ms);
            scope.timers.schedule(&self.id, TimerKind::MemberSync(Rc::clone(&id)), deadline);
        }
        let protocol = member.classic_protocol().map(|(name, _)| &**name);
        let reply = JoinGroupResponse::default()
            .with_member_id(wire(&id))
            .with_generation_id(member.epoch)
            .with_protocol_type(optional_wire(Some(CONSUMER_PROTOCOL_TYPE)))
            .with_protocol_name(optional_wire(protocol));
        Ok((reply, left))
    }

    /// Whether all members of the classic protocol share one of these protocols.
    fn supports(&self, join: &Join<'_>) -> bool {
        let classic = || self.members.values().filter_map(Member::classic);
        let by_all = |name: &str| classic().all(|member| member.protocols.iter().any(|(own, _)| **own == *name));
        let mut names = join.request.protocols.iter().map(|protocol| protocol.name.as_str());
        *join.request.protocol_type == *CONSUMER_PROTOCOL_TYPE && names.any(by_all)
    }

    fn find_classic(&self, join: &Join<'_>, id: Rc<str>) -> Result<Found, GroupError> {
        let known = |id: Rc<str>| {
            if self.members.contains_key(&id) { Found::Known(id) } else { Found::New(id) }
        };
        let Some(instance_id) = join.request.group_instance_id.as_deref() else {
            return Ok(known(id));
        };
        if join.request.member_id.is_empty() {
            return Ok(match self.static_member(instance_id) {
                Some(member) => Found::Replaces { old: Rc::clone(&member.id), new: id },
                None => Found::New(id),
            });
        }
        let member = self.known_instance(&id, instance_id).map_err(|refusal| refusal.error)?;
        Ok(Found::Known(Rc::clone(&member.id)))
    }

    /// Whether a static member comes back with the classic protocol and was the last one that used the other.
    fn replaces_last_consumer(&self, scope: &Scope<'_>, found: &Found) -> bool {
        let Found::Replaces { old, .. } = found else {
            return false;
        };
        self.members.get(old).is_some_and(|member| member.classic().is_none())
            && self.classic_count() == self.members.len() - 1
            && scope.settings.migration_policy.downgrades()
            && self.members.len() <= scope.settings.classic_size_max
    }

    fn told_by_join(&self, id: &str, join: &Join<'_>, subscription: &ConsumerSubscription) -> ConsumerMember {
        let request = join.request;
        let old = self.members.get(id).map(|member| &member.info);
        let protocols = request
            .protocols
            .iter()
            .map(|protocol| (Rc::from(protocol.name.as_str()), Bytes::copy_from_slice(&protocol.metadata)));
        let instance_id = request.group_instance_id.as_deref().map(Rc::from);
        ConsumerMember {
            instance_id: instance_id.or_else(|| old.and_then(|old| old.instance_id.clone())),
            rack_id: subscription.rack_id.clone().or_else(|| old.and_then(|old| old.rack_id.clone())),
            client_id: Rc::from(join.caller.client_id.as_str()),
            client_host: Rc::from(join.caller.client_host.as_str()),
            topic_names: sorted(subscription.topics.iter().cloned()),
            // the classic protocol has no regular expressions on this side
            topic_regex: Some(Rc::from("")),
            rebalance_timeout_ms: request.rebalance_timeout_ms,
            server_assignor: old.and_then(|old| old.server_assignor.clone()),
            classic: Some(ClassicMetadata {
                session_timeout_ms: request.session_timeout_ms,
                protocols: protocols.collect(),
            }),
        }
    }

    /// Finds a member of the classic protocol.
    fn classic_member(&self, id: &str, instance_id: Option<&str>) -> Result<&Member, GroupError> {
        let member = match instance_id {
            Some(instance_id) => self.known_instance(id, instance_id).map_err(|refusal| refusal.error)?,
            None => self.members.get(id).ok_or(ResponseError::UnknownMemberId)?,
        };
        if member.classic().is_some() { Ok(member) } else { Err(ResponseError::UnknownMemberId) }
    }

    /// Handles a SyncGroup: tells the member what it owns.
    pub(crate) fn handle_classic_sync(
        &self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        request: &SyncGroupRequest,
    ) -> Result<SyncGroupResponse, GroupError> {
        let member = self.classic_member(&request.member_id, request.group_instance_id.as_deref())?;
        if member.epoch != request.generation_id {
            return Err(ResponseError::IllegalGeneration);
        }
        let (protocol, metadata) = member.classic_protocol().ok_or(ResponseError::InconsistentGroupProtocol)?;
        let differs = |asked: Option<&str>, own: &str| asked.is_some_and(|asked| asked != own);
        if differs(request.protocol_type.as_deref(), CONSUMER_PROTOCOL_TYPE)
            || differs(request.protocol_name.as_deref(), protocol)
        {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        // one that must give back first has joined already, and does so again by itself
        if self.assignment_epoch > member.epoch && member.state != MemberState::UnrevokedPartitions {
            self.await_rejoin(scope, member);
            return Err(ResponseError::RebalanceInProgress);
        }
        scope.timers.cancel(&self.id, TimerKind::MemberSync(Rc::clone(&member.id)));
        self.restart_session(scope, member);
        let owned: Assignment =
            member.assigned.iter().map(|(topic, epochs)| (*topic, epochs.keys().copied().collect())).collect();
        Ok(SyncGroupResponse::default()
            .with_protocol_type(request.protocol_type.clone())
            .with_protocol_name(request.protocol_name.clone())
            .with_assignment(embedded_assignment(topics, metadata, &owned)))
    }

    fn await_rejoin(&self, scope: &mut Scope<'_>, member: &Member) {
        let deadline = scope.now_ms + i64::from(member.info.rebalance_timeout_ms);
        scope.timers.schedule_if_absent(&self.id, TimerKind::MemberJoin(Rc::clone(&member.id)), deadline);
    }

    /// Handles a Heartbeat: tells the member to join again when there is something for it to do.
    pub(crate) fn handle_classic_heartbeat(
        &self,
        scope: &mut Scope<'_>,
        request: &HeartbeatRequest,
    ) -> Result<(), GroupError> {
        let member = self.classic_member(&request.member_id, request.group_instance_id.as_deref())?;
        if member.epoch != request.generation_id {
            return Err(ResponseError::IllegalGeneration);
        }
        self.restart_session(scope, member);
        let must_rejoin = member.epoch < self.assignment_epoch
            || member.state == MemberState::UnrevokedPartitions
            || (member.state == MemberState::UnreleasedPartitions && !self.waits_for_others(member));
        if must_rejoin {
            self.await_rejoin(scope, member);
            return Err(ResponseError::RebalanceInProgress);
        }
        Ok(())
    }

    /// Handles a LeaveGroup, which may name members of either protocol.
    pub(crate) fn handle_classic_leave(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        request: &LeaveGroupRequest,
        records: &mut Vec<Record>,
    ) -> (LeaveGroupResponse, Left) {
        let mut leaving = BTreeSet::new();
        let members = request.members.iter().map(|identity| {
            let error = self.find_leaving(identity).map(|id| leaving.insert(id)).err();
            member_response(identity, error)
        });
        let reply = LeaveGroupResponse::default().with_members(members.collect());
        let left = self.fence(scope, topics, &leaving, records);
        (reply, left)
    }

    fn find_leaving(&self, identity: &MemberIdentity) -> Result<Rc<str>, GroupError> {
        let id = identity.member_id.as_str();
        let member = match identity.group_instance_id.as_deref() {
            None => self.members.get(id),
            // an administrator does not know the member id
            Some(instance_id) if id.is_empty() => self.static_member(instance_id),
            Some(instance_id) => Some(self.known_instance(id, instance_id).map_err(|refusal| refusal.error)?),
        };
        member.map(|member| Rc::clone(&member.id)).ok_or(ResponseError::UnknownMemberId)
    }
}

fn owned_ids(subscription: &ConsumerSubscription, topics: TopicsView<'_>) -> Owned {
    let known = subscription.owned.iter().filter(|(_, partitions)| !partitions.is_empty());
    let owned = known.filter_map(|(name, partitions)| {
        let (id, _) = topics.lookup.by_name(name)?;
        Some((id, partitions.iter().copied().collect()))
    });
    Some(owned.collect())
}
