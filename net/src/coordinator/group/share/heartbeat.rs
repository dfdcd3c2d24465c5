//! ShareGroupHeartbeat: joins, says what changed, carries assignments, leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ShareGroupHeartbeatRequest, ShareGroupHeartbeatResponse,
        share_group_heartbeat_response::{Assignment as WireAssignment, TopicPartitions},
    },
};
use uuid::Uuid;

use super::{
    Current, GroupEpoch, Member, ShareGroup, ShareRecord, StateWork, Topic,
    assignor::{self, Subscriber},
};
use crate::coordinator::{
    group::{
        TopicsView,
        assignment::Assignment,
        caller::Caller,
        effects::Scope,
        error::Refusal,
        record::{ConsumerTargetMetadata, Record},
        strings::wire,
    },
    share::settings::GroupSettings,
};

/// Epoch of a member that joins.
pub(crate) const JOIN_EPOCH: i32 = 0;
/// Epoch of a member that leaves.
pub(crate) const LEAVE_EPOCH: i32 = -1;

/// Checks a request by itself, before any group is looked at.
pub(crate) fn validate(request: &ShareGroupHeartbeatRequest) -> Result<(), Refusal> {
    let invalid = |message: &str| Err(Refusal::new(ResponseError::InvalidRequest, message));
    if request.member_id.trim().is_empty() {
        return invalid("MemberId can't be empty.");
    }
    if request.group_id.trim().is_empty() {
        return invalid("GroupId can't be empty.");
    }
    if request.rack_id.as_ref().is_some_and(|rack| rack.trim().is_empty()) {
        return invalid("RackId can't be empty.");
    }
    let names_topics = request.subscribed_topic_names.as_ref().is_some_and(|names| !names.is_empty());
    match request.member_epoch {
        JOIN_EPOCH if !names_topics => invalid("SubscribedTopicNames must be set in first request."),
        epoch if epoch < LEAVE_EPOCH => invalid("MemberEpoch is invalid."),
        _ => Ok(()),
    }
}

impl ShareGroup {
    /// Handles a heartbeat of a member that stays. The state of share partitions may have to be made before the answer.
    pub(crate) fn handle_heartbeat(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        caller: &Caller,
        settings: &GroupSettings,
        request: &ShareGroupHeartbeatRequest,
        records: &mut Vec<Record>,
    ) -> Result<(ShareGroupHeartbeatResponse, Option<StateWork>), Refusal> {
        let id: Rc<str> = Rc::from(request.member_id.as_str());
        self.check_member(scope, &id, request.member_epoch)?;
        let before = self.members.get(&id).cloned();
        let has_new_subscription = self.update_member(&id, before.as_ref(), caller, request, records);
        let needs_assignment = self.assignment_epoch >= self.epoch && self.has_unassigned();
        let bump = has_new_subscription || needs_assignment;
        if bump || self.seen_topics != Some(topics.version) {
            let hash = self.hash_of(topics);
            self.seen_topics = Some(topics.version);
            if bump || hash != self.metadata_hash {
                let value = GroupEpoch { epoch: self.epoch + 1, metadata_hash: hash };
                self.put(records, ShareRecord::Epoch(Some(value)));
            }
        }
        self.update_target(scope, topics, settings, records);
        let is_changed = self.reconcile(&id, topics, bump, records);
        self.restart_session(scope, &id, settings.session_timeout_ms);
        let member = self.members.get(&id).cloned().unwrap_or_default();
        let is_full = request.member_epoch == JOIN_EPOCH || request.subscribed_topic_names.is_some();
        let assignment = (is_full || is_changed).then(|| wire_assignment(&member.current.assigned));
        let response = ShareGroupHeartbeatResponse::default()
            .with_member_id(Some(wire(&id)))
            .with_member_epoch(member.current.epoch)
            .with_heartbeat_interval_ms(i32::try_from(settings.heartbeat_interval_ms).unwrap_or(i32::MAX))
            .with_assignment(assignment);
        Ok((response, self.begin_state(scope, topics, records)))
    }

    /// Handles a heartbeat with which a member leaves.
    pub(crate) fn handle_leave(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        request: &ShareGroupHeartbeatRequest,
        records: &mut Vec<Record>,
    ) -> Result<ShareGroupHeartbeatResponse, Refusal> {
        let id: Rc<str> = Rc::from(request.member_id.as_str());
        if !self.members.contains_key(&id) {
            return Err(self.unknown_member(&id));
        }
        self.fence(scope, topics, &id, records);
        Ok(ShareGroupHeartbeatResponse::default()
            .with_member_id(Some(wire(&id)))
            .with_member_epoch(request.member_epoch))
    }

    fn unknown_member(&self, id: &str) -> Refusal {
        let message = format!("Member {id} is not a member of group {}.", self.id);
        Refusal::new(ResponseError::UnknownMemberId, message)
    }

    fn check_member(&self, scope: &Scope<'_>, id: &Rc<str>, epoch: i32) -> Result<(), Refusal> {
        let known = self.members.get(id);
        let size_max = scope.settings.share.size("group.share.max.size");
        if known.is_none() && self.members.len() >= size_max {
            let message = format!("The share group has reached its maximum capacity of {size_max} members.");
            return Err(Refusal::new(ResponseError::GroupMaxSizeReached, message));
        }
        if epoch == JOIN_EPOCH {
            return Ok(());
        }
        let member = known.ok_or_else(|| self.unknown_member(id))?;
        let (has, had) = (member.current.epoch, member.current.previous_epoch);
        if epoch == has || (epoch < has && epoch == had) {
            return Ok(());
        }
        let than = if epoch > has { "greater" } else { "smaller" };
        let message = format!(
            "The share group member has a {than} member epoch ({epoch}) than the one known by the group coordinator \
             ({has}). The member must abandon all its partitions and rejoin."
        );
        Err(Refusal::new(ResponseError::FencedMemberEpoch, message))
    }

    /// Takes over what a member says of itself. Answers whether its subscription changed.
    fn update_member(
        &mut self,
        id: &Rc<str>,
        before: Option<&Member>,
        caller: &Caller,
        request: &ShareGroupHeartbeatRequest,
        records: &mut Vec<Record>,
    ) -> bool {
        let mut info = before.map(|member| member.info.clone()).unwrap_or_default();
        info.client_id = Rc::from(caller.client_id.as_str());
        info.client_host = Rc::from(caller.client_host.as_str());
        if let Some(rack) = &request.rack_id {
            info.rack_id = Some(Rc::from(rack.as_str()));
        }
        if let Some(names) = &request.subscribed_topic_names {
            let names: BTreeSet<Rc<str>> = names.iter().map(|name| Rc::from(name.as_str())).collect();
            info.topic_names = names.into_iter().collect();
        }
        if before.is_some_and(|before| before.info == info) {
            return false;
        }
        let is_other = before.is_none_or(|before| before.info.topic_names != info.topic_names);
        self.put(records, ShareRecord::Member(Rc::clone(id), Some(Box::new(info))));
        is_other
    }

    /// Whether partitions that have state and are subscribed to are with nobody, or topics lost partitions.
    fn has_unassigned(&self) -> bool {
        let mut assigned = Assignment::new();
        for (topic, indexes) in self.target.values().flat_map(|target| target.iter()) {
            assigned.entry(*topic).or_default().extend(indexes);
        }
        let subscribed = self.subscribed();
        let wanted = self.partitions.initialized.iter().filter(|(_, topic)| subscribed.contains(&topic.name));
        let mut wanted = wanted.filter(|(_, topic)| !topic.partitions.is_empty());
        wanted.any(|(id, topic)| assigned.get(id) != Some(&topic.partitions))
    }

    /// Makes a new target assignment if the group epoch is ahead of it and enough time went by.
    fn update_target(
        &mut self,
        scope: &Scope<'_>,
        topics: TopicsView<'_>,
        settings: &GroupSettings,
        records: &mut Vec<Record>,
    ) {
        let interval_ms = settings.assignment_interval_ms;
        let is_due = self.assignment_timestamp_ms == 0
            || interval_ms == 0
            || scope.now_ms >= self.assignment_timestamp_ms + interval_ms;
        if self.assignment_epoch >= self.epoch || !is_due {
            return;
        }
        let none = Rc::default();
        let subscriber = |(id, member): (&Rc<str>, &Member)| Subscriber {
            topics: subscribed_ids(member, topics),
            target: self.target.get(id).unwrap_or(&none),
        };
        let members: Vec<_> = self.members.iter().map(subscriber).collect();
        let initialized = self.partitions.initialized.iter();
        let assignable: BTreeMap<Uuid, BTreeSet<i32>> =
            initialized.map(|(id, topic)| (*id, topic.partitions.clone())).collect();
        let assignments = assignor::assign(&members, &assignable);
        let changed = self
            .members
            .keys()
            .zip(assignments)
            .filter(|(id, assignment)| self.target.get(*id).is_none_or(|target| **target != *assignment));
        let changed: Vec<_> = changed.map(|(id, assignment)| (Rc::clone(id), Rc::new(assignment))).collect();
        for (id, assignment) in changed {
            self.put(records, ShareRecord::Target(id, Some(assignment)));
        }
        let value = ConsumerTargetMetadata { epoch: self.epoch, timestamp_ms: scope.now_ms };
        self.put(records, ShareRecord::TargetMetadata(Some(value)));
    }

    /// Gives a member its target. Answers whether what it has changed.
    fn reconcile(
        &mut self,
        id: &Rc<str>,
        topics: TopicsView<'_>,
        has_new_subscription: bool,
        records: &mut Vec<Record>,
    ) -> bool {
        let Some(member) = self.members.get(id) else { return false };
        if member.current.epoch == self.assignment_epoch && !has_new_subscription {
            return false;
        }
        let wanted = subscribed_ids(member, topics);
        let target = self.target.get(id).map(|target| (**target).clone()).unwrap_or_default();
        let assigned: Assignment = target.into_iter().filter(|(topic, _)| wanted.contains(topic)).collect();
        let mut current = Current { assigned, ..member.current.clone() };
        if current.epoch != self.assignment_epoch {
            (current.previous_epoch, current.epoch) = (current.epoch, self.assignment_epoch);
        }
        if current == member.current {
            return false;
        }
        let is_changed = current.assigned != member.current.assigned;
        self.put(records, ShareRecord::Current(Rc::clone(id), Some(current)));
        is_changed
    }

    /// Subscribed partitions for which no state was made yet, nor is being made.
    fn begin_state(
        &mut self,
        scope: &Scope<'_>,
        topics: TopicsView<'_>,
        records: &mut Vec<Record>,
    ) -> Option<StateWork> {
        let mut work = StateWork { state_epoch: self.epoch, partitions: Vec::new() };
        let mut begun: BTreeMap<Uuid, Topic> = BTreeMap::new();
        for name in self.subscribed() {
            let Some((id, count)) = topics.lookup.by_name(name) else { continue };
            let is_waited_for = self.initializing_until_ms.get(&id).is_some_and(|until_ms| scope.now_ms < *until_ms);
            let initialized = self.partitions.initialized.get(&id);
            let initializing = self.partitions.initializing.get(&id).filter(|_| is_waited_for);
            let has = |index: &i32| {
                let has = |topic: Option<&Topic>| topic.is_some_and(|topic| topic.partitions.contains(index));
                has(initialized) || has(initializing)
            };
            let missing: BTreeSet<i32> = (0..count).filter(|index| !has(index)).collect();
            if !missing.is_empty() {
                work.partitions.extend(missing.iter().map(|index| (id, *index, -1)));
                begun.insert(id, Topic { name: Rc::clone(name), partitions: missing });
            }
        }
        if begun.is_empty() {
            return None;
        }
        self.note_begun(scope, begun, records);
        Some(work)
    }

    /// Notes down that state is being made for partitions.
    pub(super) fn note_begun(&mut self, scope: &Scope<'_>, begun: BTreeMap<Uuid, Topic>, records: &mut Vec<Record>) {
        let retry_ms = scope.settings.share.get("group.share.initialize.retry.interval.ms");
        let mut partitions = self.partitions.clone();
        for (id, topic) in begun {
            self.initializing_until_ms.insert(id, scope.now_ms.saturating_add(retry_ms));
            partitions.deleting.remove(&id);
            add(&mut partitions.initializing, id, topic);
        }
        self.put(records, ShareRecord::Partitions(Some(partitions)));
    }

    /// The state of partitions was made, or could not be.
    pub(crate) fn on_state_made(
        &mut self,
        topics: TopicsView<'_>,
        made: &[(Uuid, i32, i64)],
        is_made: bool,
        records: &mut Vec<Record>,
    ) {
        let mut partitions = self.partitions.clone();
        for (id, index, _) in made {
            if let Some(topic) = partitions.initializing.get_mut(id) {
                topic.partitions.remove(index);
                if topic.partitions.is_empty() {
                    partitions.initializing.remove(id);
                    self.initializing_until_ms.remove(id);
                }
            }
            // of a topic that was deleted meanwhile nothing is left
            if let Some((name, _)) = topics.lookup.by_id(*id).filter(|_| is_made) {
                let topic = Topic { name: Rc::from(name), partitions: [*index].into() };
                add(&mut partitions.initialized, *id, topic);
            }
        }
        if partitions != self.partitions {
            self.put(records, ShareRecord::Partitions(Some(partitions)));
        }
    }

    /// Which share partitions have state.
    pub(crate) fn initialized(&self) -> Vec<(Uuid, Vec<i32>)> {
        let topics = self.partitions.initialized.iter();
        topics.map(|(id, topic)| (*id, topic.partitions.iter().copied().collect())).collect()
    }
}

fn add(topics: &mut BTreeMap<Uuid, Topic>, id: Uuid, topic: Topic) {
    match topics.get_mut(&id) {
        Some(known) => known.partitions.extend(topic.partitions),
        None => {
            topics.insert(id, topic);
        }
    }
}

fn subscribed_ids(member: &Member, topics: TopicsView<'_>) -> BTreeSet<Uuid> {
    let names = member.info.topic_names.iter();
    names.filter_map(|name| topics.lookup.by_name(name)).map(|(id, _)| id).collect()
}

fn wire_assignment(assigned: &Assignment) -> WireAssignment {
    let topics = assigned.iter().filter(|(_, indexes)| !indexes.is_empty()).map(|(id, indexes)| {
        TopicPartitions::default().with_topic_id(*id).with_partitions(indexes.iter().copied().collect())
    });
    WireAssignment::default().with_topic_partitions(topics.collect())
}
