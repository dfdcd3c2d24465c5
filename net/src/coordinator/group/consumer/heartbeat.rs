//! ConsumerGroupHeartbeat: joins, says what changed, and carries assignments.

use std::rc::Rc;

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse,
        consumer_group_heartbeat_response::{Assignment as WireAssignment, TopicPartitions},
    },
};

use super::{
    ConsumerGroup, JOIN_EPOCH, LEAVE_EPOCH, Member, Owned, STATIC_LEAVE_EPOCH, TopicsView, subscription::sorted,
};
use crate::coordinator::group::{
    assignment::Assignment,
    caller::Caller,
    effects::Scope,
    error::Refusal,
    record::{AssignedPartitions, ConsumerMember, Record},
    settings::Settings,
    strings::wire,
};

/// First version in which the client makes its own member id.
const CLIENT_MEMBER_ID_VERSION: i16 = 1;

/// Checks a request by itself, before any group is looked at.
pub(crate) fn validate(
    settings: &Settings,
    version: i16,
    request: &ConsumerGroupHeartbeatRequest,
) -> Result<(), Refusal> {
    let invalid = |message: &str| Err(Refusal::new(ResponseError::InvalidRequest, message));
    let is_blank =
        |text: &Option<kafka_protocol::protocol::StrBytes>| text.as_ref().is_some_and(|text| text.trim().is_empty());
    let epoch = request.member_epoch;
    let needs_id = version >= CLIENT_MEMBER_ID_VERSION || epoch > JOIN_EPOCH || epoch == LEAVE_EPOCH;
    if needs_id && request.member_id.trim().is_empty() {
        return invalid("MemberId can't be empty.");
    } else if request.group_id.trim().is_empty() {
        return invalid("GroupId can't be empty.");
    } else if is_blank(&request.instance_id) {
        return invalid("InstanceId can't be empty.");
    } else if is_blank(&request.rack_id) {
        return invalid("RackId can't be empty.");
    }
    if epoch == JOIN_EPOCH {
        if request.rebalance_timeout_ms == -1 {
            return invalid("RebalanceTimeoutMs must be provided in first request.");
        } else if request.topic_partitions.as_ref().is_none_or(|owned| !owned.is_empty()) {
            return invalid("TopicPartitions must be empty when (re-)joining.");
        } else if request.subscribed_topic_names.is_none() && request.subscribed_topic_regex.is_none() {
            return invalid("Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.");
        }
    } else if epoch == STATIC_LEAVE_EPOCH && request.instance_id.is_none() {
        return invalid("InstanceId can't be null.");
    } else if epoch < STATIC_LEAVE_EPOCH {
        return invalid("MemberEpoch is invalid.");
    }
    match &request.server_assignor {
        Some(name) if !settings.consumer_assignors.iter().any(|assignor| *assignor.name() == **name) => {
            let names: Vec<_> = settings.consumer_assignors.iter().map(|assignor| assignor.name()).collect();
            let message = format!("ServerAssignor {name} is not supported. Supported assignors: {}.", names.join(", "));
            Err(Refusal::new(ResponseError::UnsupportedAssignor, message))
        }
        _ => Ok(()),
    }
}

/// How a request finds its member.
pub(super) enum Found {
    /// It is there.
    Known(Rc<str>),
    /// It is new.
    New(Rc<str>),
    /// A static member comes back under a new member id.
    Replaces {
        /// The member that is there.
        old: Rc<str>,
        /// Its new id.
        new: Rc<str>,
    },
}

/// What a request says the member owns.
fn owned(request: &ConsumerGroupHeartbeatRequest) -> Owned {
    let topics = request.topic_partitions.as_ref()?;
    let mut owned = Assignment::new();
    for topic in topics {
        owned.entry(topic.topic_id).or_default().extend(&topic.partitions);
    }
    owned.retain(|_, partitions| !partitions.is_empty());
    Some(owned)
}

impl ConsumerGroup {
    /// Checks that there is room for a member.
    pub(crate) fn validate_size(&self, settings: &Settings, member_id: &str) -> Result<(), Refusal> {
        let size_max = settings.consumer_size_max;
        if self.members.len() < size_max || self.members.contains_key(member_id) {
            return Ok(());
        }
        let message = format!("The consumer group has reached its maximum capacity of {size_max} members.");
        Err(Refusal::new(ResponseError::GroupMaxSizeReached, message))
    }

    /// Handles a heartbeat of a member that stays; it must have passed [`validate`]. Refuses before anything changes.
    pub(crate) fn handle_heartbeat(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        caller: &Caller,
        request: &ConsumerGroupHeartbeatRequest,
        records: &mut Vec<Record>,
    ) -> Result<ConsumerGroupHeartbeatResponse, Refusal> {
        self.validate_size(scope.settings, &request.member_id)?;
        let owned = owned(request);
        let found = self.find(caller, request, &owned)?;
        self.validate_regex(request.subscribed_topic_regex.as_deref())?;

        let id = self.settle(found, records);
        let before = self.members.get(&id).map(|member| member.assigned.clone()).unwrap_or_default();
        let info = self.told(&id, caller, request);
        let changed = self.subscribe(scope, topics, &id, info, records);
        self.update_target(scope, topics, records);
        self.reconcile(scope, topics, &id, changed, &owned, records);

        let Some(member) = self.members.get(&id) else {
            return Err(super::unknown_member(&id, &self.id));
        };
        self.restart_session(scope, member);
        let is_full = request.rebalance_timeout_ms != -1
            && (request.subscribed_topic_names.is_some() || request.subscribed_topic_regex.is_some())
            && request.topic_partitions.is_some();
        let tells = request.member_epoch == JOIN_EPOCH || is_full || member.assigned != before;
        Ok(ConsumerGroupHeartbeatResponse::default()
            .with_member_id(Some(wire(&member.id)))
            .with_member_epoch(member.epoch)
            .with_heartbeat_interval_ms(scope.configs.consumer(&self.id).heartbeat_interval_ms)
            .with_assignment(tells.then(|| wire_assignment(&member.assigned))))
    }

    /// Finds the member that a request is about, and checks its epoch.
    fn find(&self, caller: &Caller, request: &ConsumerGroupHeartbeatRequest, owned: &Owned) -> Result<Found, Refusal> {
        let id: Rc<str> = match request.member_id.as_str() {
            "" => Rc::from(caller.fresh_id.as_str()),
            id => Rc::from(id),
        };
        let joins = request.member_epoch == JOIN_EPOCH;
        let member = match request.instance_id.as_deref() {
            None => match self.members.get(&id) {
                Some(member) => member,
                None if joins => return Ok(Found::New(id)),
                None => return Err(super::unknown_member(&id, &self.id)),
            },
            Some(instance_id) => match self.static_member(instance_id) {
                None if joins => return Ok(Found::New(id)),
                None => return Err(unknown_instance(instance_id)),
                Some(member) if joins => {
                    if member.classic().is_none() && member.epoch != STATIC_LEAVE_EPOCH {
                        return Err(unreleased(member, &id, instance_id));
                    }
                    return Ok(Found::Replaces { old: Rc::clone(&member.id), new: id });
                }
                Some(member) => {
                    validate_instance(member, &id, instance_id)?;
                    member
                }
            },
        };
        self.validate_epoch(member, request.member_epoch, owned)?;
        self.validate_state(member, owned)?;
        Ok(Found::Known(id))
    }

    /// Makes sure that the member is there. A static member takes over everything from the one before.
    pub(super) fn settle(&mut self, found: Found, records: &mut Vec<Record>) -> Rc<str> {
        let (old, new) = match found {
            Found::Known(id) => return id,
            Found::New(id) => {
                // not a record yet: that follows with what the member says of itself
                self.members.insert(Rc::clone(&id), Member::new(Rc::clone(&id)));
                return id;
            }
            Found::Replaces { old, new } => (old, new),
        };
        let Some(member) = self.members.get(&old) else {
            return new;
        };
        let member = Member { id: Rc::clone(&new), epoch: JOIN_EPOCH, previous_epoch: JOIN_EPOCH, ..member.clone() };
        let target = self.target.get(&old).cloned().unwrap_or_default();
        for record in self.member_tombstones(&old) {
            self.put(records, record);
        }
        let (group, id) = (Rc::clone(&self.id), Rc::clone(&new));
        let record = self.member_record(&member);
        self.put(records, record);
        self.put(records, Record::ConsumerTarget { group, member: id, value: Some(target) });
        let record = self.current_record(&member);
        self.put(records, record);
        new
    }

    /// The member with what this request says of it; fields that are left out stay.
    fn told(&self, id: &str, caller: &Caller, request: &ConsumerGroupHeartbeatRequest) -> ConsumerMember {
        let mut info = self.members.get(id).map(|member| (*member.info).clone()).unwrap_or_else(|| {
            let member = Member::new(Rc::from(id));
            (*member.info).clone()
        });
        let copy = |text: &kafka_protocol::protocol::StrBytes| Rc::<str>::from(text.as_str());
        let update = |field: &mut Option<Rc<str>>, said: &Option<kafka_protocol::protocol::StrBytes>| {
            if let Some(said) = said {
                *field = Some(copy(said));
            }
        };
        update(&mut info.instance_id, &request.instance_id);
        update(&mut info.rack_id, &request.rack_id);
        update(&mut info.server_assignor, &request.server_assignor);
        update(&mut info.topic_regex, &request.subscribed_topic_regex);
        if request.rebalance_timeout_ms != -1 {
            info.rebalance_timeout_ms = request.rebalance_timeout_ms;
        }
        if let Some(names) = &request.subscribed_topic_names {
            info.topic_names = sorted(names.iter().map(|name| copy(name)));
        }
        info.client_id = Rc::from(caller.client_id.as_str());
        info.client_host = Rc::from(caller.client_host.as_str());
        info.classic = None;
        info
    }

    /// Takes over what a member says of itself and raises the group epoch where that changes the assignment. Answers
    /// whether the subscription changed.
    pub(super) fn subscribe(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        id: &Rc<str>,
        info: ConsumerMember,
        records: &mut Vec<Record>,
    ) -> bool {
        let old = self.members.get(id).map(|member| Rc::clone(&member.info));
        let old = old.unwrap_or_else(|| Member::new(Rc::clone(id)).info);
        let names_changed = old.topic_names != info.topic_names;
        let regexes = self.regexes_before(&old, &info);
        if *old != info {
            let (group, member, value) = (Rc::clone(&self.id), Rc::clone(id), Some(Box::new(info)));
            self.put(records, Record::ConsumerMember { group, member, value });
        }
        let change = self.change_regex(scope, topics, regexes, records);
        let bump = names_changed || change.is_resolved;
        if bump || self.is_metadata_stale(topics) {
            self.update_metadata(topics, bump, records);
        }
        names_changed || change.changed
    }
}

fn unknown_instance(instance_id: &str) -> Refusal {
    Refusal::new(ResponseError::UnknownMemberId, format!("Instance id {instance_id} is unknown."))
}

fn unreleased(member: &Member, id: &str, instance_id: &str) -> Refusal {
    let message = format!(
        "Static member {id} with instance id {instance_id} cannot join the group because the instance id is owned by \
         {} member.",
        member.id
    );
    Refusal::new(ResponseError::UnreleasedInstanceId, message)
}

/// Checks that a static member is still the one behind its instance id.
pub(super) fn validate_instance(member: &Member, id: &str, instance_id: &str) -> Result<(), Refusal> {
    if *member.id == *id {
        return Ok(());
    }
    let message = format!("Static member {id} with instance id {instance_id} was fenced by member {}.", member.id);
    Err(Refusal::new(ResponseError::FencedInstanceId, message))
}

impl ConsumerGroup {
    /// The member behind an instance id, if it is that member.
    pub(super) fn known_instance(&self, id: &str, instance_id: &str) -> Result<&Member, Refusal> {
        let member = self.static_member(instance_id).ok_or_else(|| unknown_instance(instance_id))?;
        validate_instance(member, id, instance_id)?;
        Ok(member)
    }
}

fn wire_assignment(assigned: &AssignedPartitions) -> WireAssignment {
    let topic = |(topic, epochs): (&uuid::Uuid, &std::collections::BTreeMap<i32, i32>)| {
        TopicPartitions::default().with_topic_id(*topic).with_partitions(epochs.keys().copied().collect())
    };
    WireAssignment::default().with_topic_partitions(assigned.iter().map(topic).collect())
}
