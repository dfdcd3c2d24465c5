//! What consumers put into the classic protocol's opaque bytes: Kafka's embedded consumer protocol.

use std::{collections::BTreeSet, rc::Rc};

use bytes::Bytes;
use kafka_protocol::{
    messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription},
    protocol::Decodable,
};

use super::ClassicGroup;
use crate::wire::api::shape::{self, BYTES, INT32, INT32S, STRING, STRINGS, Shape, array};

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

const PARTITIONS: Shape = &[STRING, INT32S];
const SUBSCRIPTION: Shape = &[STRINGS, BYTES, array(PARTITIONS).since(1), INT32.since(2), STRING.since(3)];
const ASSIGNMENT: Shape = &[array(PARTITIONS), BYTES];

/// Reads a message behind its version, at most as `version_max`; clients send whatever they like here, and it is
/// treated like the body of a request.
fn read<M: Decodable>(bytes: &Bytes, shape: Shape, version_max: i16) -> Option<(i16, M)> {
    let version = i16::from_be_bytes(*bytes.first_chunk()?);
    let layout = version.min(version_max);
    if version < 0 {
        return None;
    }
    let mut checked = shape::checked(shape, layout, false, bytes.slice(size_of::<i16>()..)).ok()?;
    Some((version, M::decode(&mut checked, layout).ok()?))
}

/// Reads a member's metadata; `None` when it is not of the consumer protocol.
pub(crate) fn consumer_subscription(metadata: &Bytes) -> Option<ConsumerSubscription> {
    let (version, decoded) = read::<ConsumerProtocolSubscription>(metadata, SUBSCRIPTION, VERSION_MAX)?;
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
    Some(read(assignment, ASSIGNMENT, VERSION_MAX)?.1)
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
    let (_, decoded) = read::<ConsumerProtocolSubscription>(metadata, SUBSCRIPTION, 0)?;
    Some(decoded.topics.iter().map(|topic| Rc::from(topic.as_str())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_are_not_utf8_are_read_with_replacements() {
        let metadata = Bytes::from_static(b"\0\x01\0\0\0\x02\0\x01a\0\x02Z\xe4\xff\xff\xff\xff\0\0\0\0");
        let topics = subscribed(&metadata).expect("it is read");
        assert_eq!(topics.iter().map(|topic| &**topic).collect::<Vec<_>>(), ["Z\u{fffd}", "a"]);
        assert_eq!(consumer_subscription(&metadata).expect("it is read").topics, topics);
    }

    /// The message library makes room for as many elements as are declared.
    #[test]
    fn counts_that_nothing_backs_are_refused() {
        let metadata = Bytes::from_static(b"\0\0\x7f\xff\xff\xff\0\x01a");
        assert_eq!(subscribed(&metadata), None);
        assert_eq!(consumer_subscription(&metadata), None);
        assert!(consumer_assignment(&metadata).is_none());
    }
}
