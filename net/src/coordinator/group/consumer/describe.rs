//! ConsumerGroupDescribe.

use std::collections::BTreeMap;

use kafka_protocol::messages::consumer_group_describe_response::{
    Assignment as WireAssignment, DescribedGroup, Member as WireMember, TopicPartitions,
};
use uuid::Uuid;

use super::{ConsumerGroup, Member, TopicsView};
use crate::coordinator::group::{
    assignor::Assignor,
    strings::{optional_wire, wire},
};

impl ConsumerGroup {
    /// Describes the group; `assignors` are those of the settings.
    pub(crate) fn describe(&self, topics: TopicsView<'_>, assignors: &[Assignor]) -> DescribedGroup {
        let member = |member: &Member| {
            let mut owned: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
            // it is still responsible for what it must give back
            for ((topic, partition), _) in
                super::partitions(&member.assigned).chain(super::partitions(&member.pending_revocation))
            {
                owned.entry(topic).or_default().push(partition);
            }
            let target = self.target.get(&member.id).cloned().unwrap_or_default();
            let target = target.iter().map(|(topic, partitions)| (*topic, partitions.iter().copied().collect()));
            WireMember::default()
                .with_member_id(wire(&member.id))
                .with_instance_id(optional_wire(member.info.instance_id.as_deref()))
                .with_rack_id(optional_wire(member.info.rack_id.as_deref()))
                .with_member_epoch(member.epoch)
                .with_client_id(wire(&member.info.client_id))
                .with_client_host(wire(&member.info.client_host))
                .with_subscribed_topic_names(member.info.topic_names.iter().map(|name| wire(name).into()).collect())
                .with_subscribed_topic_regex(optional_wire(member.info.topic_regex.as_deref()))
                .with_assignment(with_names(topics, owned.into_iter()))
                .with_target_assignment(with_names(topics, target))
                .with_member_type(if member.classic().is_some() { 0 } else { 1 })
        };
        DescribedGroup::default()
            .with_group_id(wire(&self.id).into())
            .with_group_state(wire(self.state().name()))
            .with_group_epoch(self.epoch)
            .with_assignment_epoch(self.assignment_epoch)
            .with_assignor_name(wire(self.wanted_assignor(assignors).name()))
            .with_members(self.members.values().map(member).collect())
    }
}

/// Partitions with the names of their topics; deleted topics are left out.
fn with_names(topics: TopicsView<'_>, partitions: impl Iterator<Item = (Uuid, Vec<i32>)>) -> WireAssignment {
    let named = partitions.filter_map(|(topic, partitions)| {
        let (name, _) = topics.lookup.by_id(topic)?;
        let named = TopicPartitions::default().with_topic_id(topic).with_topic_name(wire(name).into());
        Some(named.with_partitions(partitions))
    });
    WireAssignment::default().with_topic_partitions(named.collect())
}
