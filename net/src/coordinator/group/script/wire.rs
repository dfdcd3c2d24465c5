//! Short texts for the opaque bytes of the consumer protocol, and topics to subscribe to.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName,
        consumer_protocol_assignment::TopicPartition as Assigned,
        consumer_protocol_subscription::TopicPartition as Owned,
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use uuid::Uuid;

use crate::coordinator::group::topics::TopicLookup;

/// Topics by name: id and partitions. The id of the n-th topic made is n.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeTopics {
    pub(crate) topics: BTreeMap<String, (Uuid, i32)>,
    made: u128,
}

impl FakeTopics {
    /// Makes a topic, or changes its number of partitions; 0 deletes it.
    pub(crate) fn set(&mut self, name: &str, partitions: i32) {
        if partitions == 0 {
            self.topics.remove(name);
            return;
        }
        if !self.topics.contains_key(name) {
            self.made += 1;
        }
        let made = Uuid::from_u128(self.made);
        self.topics.entry(name.to_owned()).or_insert((made, 0)).1 = partitions;
    }
}

impl TopicLookup for FakeTopics {
    fn by_name(&self, name: &str) -> Option<(Uuid, i32)> {
        self.topics.get(name).copied()
    }

    fn by_id(&self, id: Uuid) -> Option<(&str, i32)> {
        let found = self.topics.iter().find(|(_, (other, _))| *other == id);
        found.map(|(name, (_, partitions))| (name.as_str(), *partitions))
    }
}

/// `t/0+t/1+u/0`
pub(crate) fn partitions(text: &str) -> BTreeMap<String, Vec<i32>> {
    let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for part in text.split('+').filter(|part| !part.is_empty()) {
        let (topic, partition) = part.split_once('/').unwrap();
        topics.entry(topic.to_owned()).or_default().push(partition.parse().unwrap());
    }
    topics
}

fn name(text: &str) -> TopicName {
    TopicName(StrBytes::from_string(text.to_owned()))
}

/// A member's metadata: `@t+u` is a subscription to topics, `@t+u|t/0` one that owns partitions; all else is taken as is.
pub(crate) fn metadata(text: &str) -> Bytes {
    let Some(text) = text.strip_prefix('@') else {
        return Bytes::copy_from_slice(text.as_bytes());
    };
    let (topics, owned) = text.split_once('|').unwrap_or((text, ""));
    let topics = topics.split('+').filter(|topic| !topic.is_empty());
    let owned = partitions(owned).into_iter();
    let subscription = ConsumerProtocolSubscription::default()
        .with_topics(topics.map(|topic| StrBytes::from_string(topic.to_owned())).collect())
        .with_owned_partitions(
            owned
                .map(|(topic, partitions)| Owned::default().with_topic(name(&topic)).with_partitions(partitions))
                .collect(),
        );
    let mut bytes = BytesMut::new();
    bytes.put_i16(1);
    subscription.encode(&mut bytes, 1).unwrap();
    bytes.freeze()
}

/// A member's assignment: `@t/0+t/1`; all else is taken as is.
pub(crate) fn assignment(text: &str) -> Bytes {
    let Some(text) = text.strip_prefix('@') else {
        return Bytes::copy_from_slice(text.as_bytes());
    };
    let assigned = partitions(text).into_iter();
    let assignment = ConsumerProtocolAssignment::default().with_assigned_partitions(
        assigned
            .map(|(topic, partitions)| Assigned::default().with_topic(name(&topic)).with_partitions(partitions))
            .collect(),
    );
    let mut bytes = BytesMut::new();
    bytes.put_i16(1);
    assignment.encode(&mut bytes, 1).unwrap();
    bytes.freeze()
}

/// The text of either.
pub(crate) fn show(bytes: &Bytes) -> String {
    if bytes.len() < 2 || bytes[0] != 0 {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut rest = bytes.slice(2..);
    if let Ok(assignment) = ConsumerProtocolAssignment::decode(&mut rest, 1)
        && rest.is_empty()
    {
        let parts = assignment.assigned_partitions.iter().flat_map(|topic| {
            topic.partitions.iter().map(move |partition| format!("{}/{partition}", topic.topic.as_str()))
        });
        return format!("@{}", parts.collect::<Vec<_>>().join("+"));
    }
    let mut rest = bytes.slice(2..);
    let subscription = ConsumerProtocolSubscription::decode(&mut rest, 1).unwrap();
    let topics: Vec<_> = subscription.topics.iter().map(|topic| topic.as_str()).collect();
    format!("@{}", topics.join("+"))
}
