//! Groups that change between the classic and the consumer protocol while members are in them.
//!
//! A classic group becomes a consumer group when the first member joins by ConsumerGroupHeartbeat; a consumer group becomes
//! a classic group when the last such member is gone and others are left. The offsets stay where they are.

use std::{collections::BTreeSet, rc::Rc};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    error::ResponseError,
    messages::{ConsumerProtocolAssignment, consumer_protocol_assignment::TopicPartition},
    protocol::Encodable,
};
use uuid::Uuid;

use super::{ConsumerGroup, Member, TopicsView, subscription::sorted};
use crate::coordinator::group::{
    assignment::Assignment,
    classic::{self, ClassicGroup, Protocol, consumer_assignment, consumer_subscription},
    effects::Scope,
    error::Refusal,
    record::{AssignedPartitions, ClassicMetadata, ConsumerMember, ConsumerTargetMetadata, Record},
    settings::Settings,
    strings::wire,
};

/// Highest version of the embedded assignment; members of newer ones read it too.
const ASSIGNMENT_VERSION_MAX: i16 = 3;

/// An assignment as a member of the classic protocol expects it, in the version of its subscription.
pub(super) fn embedded_assignment(topics: TopicsView<'_>, metadata: &Bytes, assignment: &Assignment) -> Bytes {
    let version = consumer_subscription(metadata).map_or(0, |subscription| subscription.version);
    let named = assignment.iter().filter_map(|(topic, partitions)| {
        let (name, _) = topics.lookup.by_id(*topic)?;
        let partitions = partitions.iter().copied().collect();
        Some(TopicPartition::default().with_topic(wire(name).into()).with_partitions(partitions))
    });
    let message = ConsumerProtocolAssignment::default().with_assigned_partitions(named.collect());
    let mut bytes = BytesMut::new();
    bytes.put_i16(version);
    message
        .encode(&mut bytes, version.clamp(0, ASSIGNMENT_VERSION_MAX))
        .expect("an assignment fits every version of its message");
    bytes.freeze()
}

impl ConsumerGroup {
    /// Checks whether a classic group with members may become a consumer group.
    pub(crate) fn validate_upgrade(settings: &Settings, group: &ClassicGroup) -> Result<(), Refusal> {
        let reason = if !settings.migration_policy.upgrades() {
            "online upgrade is disabled"
        } else if !group.uses_consumer_protocol() {
            "the group does not use the consumer embedded protocol"
        } else if group.members().len() > settings.consumer_size_max {
            "the group size exceeds the consumer group maximum size"
        } else {
            return Ok(());
        };
        Err(cannot_upgrade(group, reason))
    }

    /// A consumer group with the members of a classic group, each owning what it was assigned last. The records that
    /// make it so replace the classic group's.
    pub(crate) fn upgrade(
        group: &ClassicGroup,
        topics: TopicsView<'_>,
        records: &mut Vec<Record>,
    ) -> Result<Self, Refusal> {
        let epoch = group.generation();
        let members: Vec<_> =
            group.members().values().map(|member| upgraded(group, member, topics)).collect::<Result<_, _>>()?;
        let id = Rc::clone(group.id());
        records.push(Record::GroupMetadata { group: Rc::clone(&id), value: None });
        let mut upgraded = Self::new(Rc::clone(&id));
        for member in &members {
            let record = upgraded.member_record(member);
            upgraded.put(records, record);
        }
        let hash = upgraded.metadata_hash_now(topics);
        let record = upgraded.epoch_record(epoch, hash);
        upgraded.put(records, record);
        for member in &members {
            let target: Assignment =
                member.assigned.iter().map(|(topic, epochs)| (*topic, epochs.keys().copied().collect())).collect();
            let (group, member) = (Rc::clone(&id), Rc::clone(&member.id));
            upgraded.put(records, Record::ConsumerTarget { group, member, value: Some(Rc::new(target)) });
        }
        let value = Some(ConsumerTargetMetadata { epoch, timestamp_ms: 0 });
        upgraded.put(records, Record::ConsumerTargetMetadata { group: id, value });
        for member in &members {
            let record = upgraded.current_record(member);
            upgraded.put(records, record);
        }
        Ok(upgraded)
    }

    /// Whether, once these members are gone, a classic group is left that may be made one.
    pub(super) fn can_downgrade(&self, settings: &Settings, leaving: &BTreeSet<Rc<str>>) -> bool {
        let mut staying = self.members.values().filter(|member| !leaving.contains(&member.id)).peekable();
        let count = self.members.len() - leaving.len();
        settings.migration_policy.downgrades()
            && staying.peek().is_some()
            && staying.all(|member| member.classic().is_some())
            && count <= settings.classic_size_max
    }

    /// The classic group of the members that stay, with the assignments that they were to have. `rebalance` makes them
    /// join again at once.
    pub(super) fn downgrade(
        &self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        leaving: &BTreeSet<Rc<str>>,
        rebalance: bool,
        records: &mut Vec<Record>,
    ) -> ClassicGroup {
        records.extend(self.tombstones());
        self.close(scope);
        let staying = self.members.values().filter(|member| !leaving.contains(&member.id));
        let members = staying.map(downgraded).collect();
        let mut group = ClassicGroup::from_consumer_group(Rc::clone(&self.id), self.epoch, members, scope.now_ms);
        let protocol = group.protocol().unwrap_or_default().to_owned();
        let assignments: Vec<_> = group
            .members()
            .values()
            .map(|member| {
                let target = self.target.get(&member.id).cloned().unwrap_or_default();
                (Rc::clone(&member.id), embedded_assignment(topics, &member.metadata(&protocol), &target))
            })
            .collect();
        for (member, assignment) in assignments {
            group.set_assignment(&member, assignment);
        }
        records.push(group.record());
        group.on_loaded(scope);
        if rebalance {
            group.prepare_rebalance(scope);
        }
        group
    }
}

fn cannot_upgrade(group: &ClassicGroup, reason: &str) -> Refusal {
    let message = format!("Cannot upgrade classic group {} to consumer group because {reason}.", group.id());
    Refusal::new(ResponseError::GroupIdNotFound, message)
}

fn upgraded(group: &ClassicGroup, member: &classic::Member, topics: TopicsView<'_>) -> Result<Member, Refusal> {
    let malformed = || cannot_upgrade(group, "the embedded consumer protocol is malformed");
    let first = || member.protocols.first().map(|protocol| protocol.metadata.clone()).unwrap_or_default();
    // a group in its first rebalance has not agreed on a protocol yet
    let metadata = group.protocol().map_or_else(first, |protocol| member.metadata(protocol));
    let subscription = consumer_subscription(&metadata).ok_or_else(malformed)?;
    let mut assigned = AssignedPartitions::new();
    // who has just joined may not have an assignment yet
    if !member.assignment.is_empty() {
        let assignment = consumer_assignment(&member.assignment).ok_or_else(malformed)?;
        if assignment.user_data.is_some_and(|data| !data.is_empty()) {
            let reason = "an unsupported custom assignor is in use. Please refer to the documentation or switch to a \
                          default assignor before re-attempting the upgrade";
            return Err(cannot_upgrade(group, reason));
        }
        for topic in &assignment.assigned_partitions {
            if let Some((id, _)) = topics.lookup.by_name(&topic.topic) {
                assigned
                    .insert(id, topic.partitions.iter().map(|partition| (*partition, group.generation())).collect());
            }
        }
        assigned.retain(|_: &Uuid, partitions| !partitions.is_empty());
    }
    let protocols = member.protocols.iter().map(|protocol| (Rc::clone(&protocol.name), protocol.metadata.clone()));
    let info = ConsumerMember {
        instance_id: member.instance_id.clone(),
        rack_id: subscription.rack_id,
        client_id: Rc::clone(&member.client_id),
        client_host: Rc::clone(&member.client_host),
        topic_names: sorted(subscription.topics.into_iter()),
        topic_regex: None,
        rebalance_timeout_ms: member.rebalance_timeout_ms,
        server_assignor: None,
        classic: Some(ClassicMetadata {
            session_timeout_ms: member.session_timeout_ms,
            protocols: protocols.collect(),
        }),
    };
    let mut upgraded = Member::new(Rc::clone(&member.id));
    upgraded.info = Rc::new(info);
    upgraded.epoch = group.generation();
    upgraded.previous_epoch = group.generation();
    upgraded.assigned = assigned;
    Ok(upgraded)
}

fn downgraded(member: &Member) -> classic::Member {
    let classic = member.classic();
    let protocols = classic.map(|classic| classic.protocols.as_slice()).unwrap_or_default();
    let protocol = |(name, metadata): &(Rc<str>, Bytes)| Protocol { name: Rc::clone(name), metadata: metadata.clone() };
    classic::Member::settled(
        Rc::clone(&member.id),
        member.info.instance_id.clone(),
        (Rc::clone(&member.info.client_id), Rc::clone(&member.info.client_host)),
        (member.info.rebalance_timeout_ms, classic.map_or(0, |classic| classic.session_timeout_ms)),
        protocols.iter().map(protocol).collect(),
    )
}
