//! What consumers put into the classic protocol's opaque bytes: Kafka's embedded consumer protocol.

use std::{collections::BTreeSet, rc::Rc};

use bytes::Bytes;
use kafka_protocol::{
    messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription},
    protocol::Decodable,
};

use super::ClassicGroup;

/// What a member's metadata says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ConsumerSubscription {
    /// Version that the member used: its assignment is written in the same.
    pub(crate) version: i16,
    /// Topics.
    pub(crate) topics: BTreeSet<Rc<str>>,
    /// Partitions that it owns, by topic name.
    pub(crate) owned: Vec<(Rc<str>, Vec<i32>)>,
    /// Its rack.
    pub(crate) rack_id: Option<Rc<str>>,
}

/// Highest version of both messages; a newer one begins with the same fields and is read as this one.
const VERSION_MAX: i16 = 3;

fn version(bytes: &mut Bytes) -> Option<i16> {
    let version = i16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    drop(bytes.split_to(2));
    (version >= 0).then_some(version)
}

/// Reads a member's metadata; `None` when it is not of the consumer protocol.
pub(crate) fn consumer_subscription(metadata: &Bytes) -> Option<ConsumerSubscription> {
    let mut bytes = metadata.clone();
    let version = version(&mut bytes)?;
    let decoded = ConsumerProtocolSubscription::decode(&mut bytes, version.min(VERSION_MAX)).ok()?;
    let owned = decoded.owned_partitions.iter();
    Some(ConsumerSubscription {
        version,
        topics: decoded.topics.iter().map(|topic| Rc::from(topic.as_str())).collect(),
        owned: owned.map(|owned| (Rc::from(owned.topic.as_str()), owned.partitions.clone())).collect(),
        rack_id: decoded.rack_id.filter(|rack| !rack.is_empty()).map(|rack| Rc::from(rack.as_str())),
    })
}

/// Reads a member's assignment; `None` when it is not of the consumer protocol.
pub(crate) fn consumer_assignment(assignment: &Bytes) -> Option<ConsumerProtocolAssignment> {
    let mut bytes = assignment.clone();
    let version = version(&mut bytes)?;
    ConsumerProtocolAssignment::decode(&mut bytes, version.min(VERSION_MAX)).ok()
}

impl ClassicGroup {
    /// Topics that the members subscribe to; `None` when they are no consumers or some metadata cannot be read.
    pub(super) fn subscribed_topics(&self) -> Option<BTreeSet<Rc<str>>> {
        if !self.uses_consumer_protocol() {
            return None;
        }
        if self.members.is_empty() {
            return Some(BTreeSet::new());
        }
        let protocol = self.protocol()?;
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            topics.extend(subscribed(&member.metadata(protocol))?);
        }
        Some(topics)
    }
}

/// Only the topics, which come first in every version: read as version 0.
fn subscribed(metadata: &Bytes) -> Option<BTreeSet<Rc<str>>> {
    let mut bytes = metadata.clone();
    version(&mut bytes)?;
    let decoded = ConsumerProtocolSubscription::decode(&mut bytes, 0).ok()?;
    Some(decoded.topics.iter().map(|topic| Rc::from(topic.as_str())).collect())
}
