//! Members that leave or are thrown out.

use std::{collections::BTreeSet, rc::Rc};

use kafka_protocol::{
    error::ResponseError,
    messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse},
};

use super::{ConsumerGroup, MemberState, STATIC_LEAVE_EPOCH, TopicsView, cancel_timers};
use crate::coordinator::group::{
    classic::ClassicGroup,
    effects::Scope,
    error::Refusal,
    record::{AssignedPartitions, ConsumerTargetMetadata, Record},
    strings::wire,
};

/// What becomes of a group that members leave.
#[derive(Debug)]
pub(crate) enum Left {
    /// It stays what it is.
    Stays,
    /// Only members of the classic protocol are left: it is a classic group now.
    Downgraded(Box<ClassicGroup>),
}

impl ConsumerGroup {
    /// Handles a heartbeat with which a member leaves, for good or (a static one) for a while.
    pub(crate) fn handle_leave(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        request: &ConsumerGroupHeartbeatRequest,
        records: &mut Vec<Record>,
    ) -> Result<(ConsumerGroupHeartbeatResponse, Left), Refusal> {
        let response = ConsumerGroupHeartbeatResponse::default()
            .with_member_id(Some(wire(&request.member_id)))
            .with_member_epoch(request.member_epoch);
        let id = match request.instance_id.as_deref() {
            None => {
                let member = self.members.get(request.member_id.as_str());
                let member = member.ok_or_else(|| super::unknown_member(&request.member_id, &self.id))?;
                Rc::clone(&member.id)
            }
            Some(instance_id) => Rc::clone(&self.known_instance(&request.member_id, instance_id)?.id),
        };
        if request.instance_id.is_some() && request.member_epoch == STATIC_LEAVE_EPOCH {
            self.pause(&id, records);
            return Ok((response, Left::Stays));
        }
        let left = self.fence(scope, topics, &[id].into(), records);
        Ok((response, left))
    }

    /// A static member leaves for a while: its partitions wait for it until its session ends.
    fn pause(&mut self, id: &Rc<str>, records: &mut Vec<Record>) {
        let Some(member) = self.members.get(id) else {
            return;
        };
        let mut member = member.clone();
        member.epoch = STATIC_LEAVE_EPOCH;
        member.pending_revocation = AssignedPartitions::new();
        // whoever comes back under another member id has had them from the start
        member.assigned.values_mut().flat_map(|epochs| epochs.values_mut()).for_each(|epoch| *epoch = 0);
        let record = self.current_record(&member);
        self.put(records, record);
    }

    /// Throws members out. Their partitions are free, and the group epoch rises.
    pub(crate) fn fence(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        ids: &BTreeSet<Rc<str>>,
        records: &mut Vec<Record>,
    ) -> Left {
        if ids.is_empty() {
            return Left::Stays;
        }
        ids.iter().for_each(|id| cancel_timers(scope, &self.id, id));
        if self.can_downgrade(scope.settings, ids) {
            return Left::Downgraded(Box::new(self.downgrade(scope, topics, ids, true, records)));
        }
        for id in ids {
            for record in self.member_tombstones(id) {
                self.put(records, record);
            }
        }
        let unused = self.regexes.keys().filter(|regex| !self.regex_members.contains_key(*regex));
        for regex in unused.cloned().collect::<Vec<_>>() {
            self.forget_regex(&regex, records);
        }
        let hash = self.metadata_hash_now(topics);
        let record = self.epoch_record(self.epoch + 1, hash);
        self.put(records, record);
        if self.members.is_empty() {
            // nobody is spared a rebalance by making the next one to join wait for the assignment interval
            let value = Some(ConsumerTargetMetadata { epoch: self.epoch, timestamp_ms: 0 });
            self.put(records, Record::ConsumerTargetMetadata { group: Rc::clone(&self.id), value });
        }
        Left::Stays
    }

    /// A member was not heard of for too long, or did not join or sync in time.
    pub(crate) fn handle_member_timeout(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        id: &Rc<str>,
        records: &mut Vec<Record>,
    ) -> Left {
        let ids: BTreeSet<_> = self.members.contains_key(id).then(|| Rc::clone(id)).into_iter().collect();
        self.fence(scope, topics, &ids, records)
    }

    /// A member did not give its partitions back in time.
    pub(crate) fn handle_rebalance_timeout(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        id: &Rc<str>,
        records: &mut Vec<Record>,
    ) -> Left {
        let late = self.members.get(id).is_some_and(|member| member.state == MemberState::UnrevokedPartitions);
        let ids: BTreeSet<_> = late.then(|| Rc::clone(id)).into_iter().collect();
        self.fence(scope, topics, &ids, records)
    }

    /// The error of a group that cannot be found as a consumer group.
    pub(crate) fn not_found(id: &str, is_other: bool) -> Refusal {
        let message = if is_other {
            format!("Group {id} is not a consumer group.")
        } else {
            format!("Consumer group {id} not found.")
        };
        Refusal::new(ResponseError::GroupIdNotFound, message)
    }
}
