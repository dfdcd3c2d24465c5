//! The records of share groups in `__consumer_offsets` (Kafka 4.3:
//! `group-coordinator/src/main/resources/common/message/ShareGroup*.json`), types 10 to 15.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use uuid::Uuid;

use crate::coordinator::{
    fields::{Reader, RecordError, Writer},
    group::{
        assignment::Assignment,
        record::consumer::{ConsumerTargetMetadata, decode_target, encode_target},
    },
};

/// A record of a share group. A value of `None` is a tombstone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ShareRecord {
    /// What a member says of itself (type 10).
    Member(Rc<str>, Option<Box<MemberInfo>>),
    /// The group epoch (type 11).
    Epoch(Option<GroupEpoch>),
    /// The epoch of the target assignment (type 12).
    TargetMetadata(Option<ConsumerTargetMetadata>),
    /// A member's target assignment (type 13).
    Target(Rc<str>, Option<Rc<Assignment>>),
    /// A member's current assignment (type 14).
    Current(Rc<str>, Option<Current>),
    /// Which share partitions have state (type 15).
    Partitions(Option<Partitions>),
}

/// `ShareGroupMetadataValue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupEpoch {
    /// The group epoch.
    pub(crate) epoch: i32,
    /// Hash over the subscribed topics.
    pub(crate) metadata_hash: i64,
}

/// `ShareGroupMemberMetadataValue`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MemberInfo {
    /// Rack.
    pub(crate) rack_id: Option<Rc<str>>,
    /// The client's name for itself.
    pub(crate) client_id: Rc<str>,
    /// The client's address.
    pub(crate) client_host: Rc<str>,
    /// Subscribed topics, sorted.
    pub(crate) topic_names: Vec<Rc<str>>,
}

/// `ShareGroupCurrentMemberAssignmentValue`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Current {
    /// The member's epoch.
    pub(crate) epoch: i32,
    /// The one before, which it may still send when the answer with the new one was lost.
    pub(crate) previous_epoch: i32,
    /// What it has.
    pub(crate) assigned: Assignment,
}

/// `ShareGroupStatePartitionMetadataValue`: partitions by topic, with the topic's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Partitions {
    /// State is being made for them.
    pub(crate) initializing: BTreeMap<Uuid, Topic>,
    /// They have state: they may be assigned.
    pub(crate) initialized: BTreeMap<Uuid, Topic>,
    /// Their state is being deleted.
    pub(crate) deleting: BTreeMap<Uuid, Rc<str>>,
}

/// Some partitions of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topic {
    /// The topic's name.
    pub(crate) name: Rc<str>,
    /// Indexes.
    pub(crate) partitions: BTreeSet<i32>,
}

const MEMBER: i16 = 10;
const EPOCH: i16 = 11;
const TARGET_METADATA: i16 = 12;
const TARGET: i16 = 13;
const CURRENT: i16 = 14;
const PARTITIONS: i16 = 15;
/// Types of the records of share groups.
pub(crate) const KINDS: std::ops::RangeInclusive<i16> = MEMBER..=PARTITIONS;

impl ShareRecord {
    /// Its type.
    pub(crate) fn kind(&self) -> i16 {
        match self {
            ShareRecord::Member(..) => MEMBER,
            ShareRecord::Epoch(_) => EPOCH,
            ShareRecord::TargetMetadata(_) => TARGET_METADATA,
            ShareRecord::Target(..) => TARGET,
            ShareRecord::Current(..) => CURRENT,
            ShareRecord::Partitions(_) => PARTITIONS,
        }
    }

    /// The member that it is about.
    pub(crate) fn member(&self) -> Option<&Rc<str>> {
        match self {
            ShareRecord::Member(member, _) | ShareRecord::Target(member, _) | ShareRecord::Current(member, _) => {
                Some(member)
            }
            ShareRecord::Epoch(_) | ShareRecord::TargetMetadata(_) | ShareRecord::Partitions(_) => None,
        }
    }

    /// Whether it deletes.
    pub(crate) fn is_tombstone(&self) -> bool {
        self.value().is_none()
    }

    /// Its value's bytes; `None` for a tombstone.
    pub(crate) fn value(&self) -> Option<Vec<u8>> {
        match self {
            ShareRecord::Member(_, value) => value.as_ref().map(|value| value.encode()),
            ShareRecord::Epoch(value) => value.as_ref().map(GroupEpoch::encode),
            ShareRecord::TargetMetadata(value) => value.as_ref().map(ConsumerTargetMetadata::encode),
            ShareRecord::Target(_, value) => value.as_ref().map(|value| encode_target(value)),
            ShareRecord::Current(_, value) => value.as_ref().map(Current::encode),
            ShareRecord::Partitions(value) => value.as_ref().map(Partitions::encode),
        }
    }

    /// Decodes a value; `key` stands behind the group's id.
    pub(crate) fn decode(kind: i16, key: &mut Reader<'_>, value: Option<&[u8]>) -> Result<Self, RecordError> {
        Ok(match kind {
            MEMBER => {
                ShareRecord::Member(key.string("MemberId")?, value.map(MemberInfo::decode).transpose()?.map(Box::new))
            }
            EPOCH => ShareRecord::Epoch(value.map(GroupEpoch::decode).transpose()?),
            TARGET_METADATA => ShareRecord::TargetMetadata(value.map(ConsumerTargetMetadata::decode).transpose()?),
            TARGET => ShareRecord::Target(key.string("MemberId")?, value.map(decode_target).transpose()?.map(Rc::new)),
            CURRENT => ShareRecord::Current(key.string("MemberId")?, value.map(Current::decode).transpose()?),
            _ => ShareRecord::Partitions(value.map(Partitions::decode).transpose()?),
        })
    }
}

fn open(bytes: &[u8]) -> Result<Reader<'_>, RecordError> {
    match Reader::new(bytes, false).i16("the version of a value")? {
        0 => Ok(Reader::new(&bytes[2..], true)),
        _ => Err(RecordError::Malformed("a value of a version that is not known")),
    }
}

impl GroupEpoch {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.i32(self.epoch);
        writer.i64(self.metadata_hash);
        writer.tags(&[]);
        writer.out
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes)?;
        let value = Self { epoch: reader.i32("Epoch")?, metadata_hash: reader.i64("MetadataHash")? };
        reader.no_tags()?;
        Ok(value)
    }
}

impl MemberInfo {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.nullable_string(self.rack_id.as_deref());
        writer.string(&self.client_id);
        writer.string(&self.client_host);
        writer.vec(&self.topic_names, |writer, name| writer.string(name));
        writer.tags(&[]);
        writer.out
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes)?;
        let value = Self {
            rack_id: reader.nullable_string("RackId")?,
            client_id: reader.string("ClientId")?,
            client_host: reader.string("ClientHost")?,
            topic_names: reader.vec("SubscribedTopicNames", |reader| reader.string("a topic name"))?,
        };
        reader.no_tags()?;
        Ok(value)
    }
}

impl Current {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.i32(self.epoch);
        writer.i32(self.previous_epoch);
        // always stable: members of share groups need not give partitions back first
        writer.i8(0);
        let topics: Vec<_> = self.assigned.iter().collect();
        writer.vec(&topics, |writer, (topic, partitions)| {
            writer.uuid(**topic);
            encode_indexes(writer, partitions);
            writer.tags(&[]);
        });
        writer.tags(&[]);
        writer.out
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes)?;
        let (epoch, previous_epoch) = (reader.i32("MemberEpoch")?, reader.i32("PreviousMemberEpoch")?);
        reader.i8("State")?;
        let assigned = reader.vec("AssignedPartitions", |reader| {
            let topic = (reader.uuid("TopicId")?, decode_indexes(reader)?);
            reader.no_tags()?;
            Ok(topic)
        })?;
        reader.no_tags()?;
        Ok(Self { epoch, previous_epoch, assigned: assigned.into_iter().collect() })
    }
}

impl Partitions {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        for topics in [&self.initializing, &self.initialized] {
            let topics: Vec<_> = topics.iter().collect();
            writer.vec(&topics, |writer, (id, topic)| {
                writer.uuid(**id);
                writer.string(&topic.name);
                encode_indexes(writer, &topic.partitions);
                writer.tags(&[]);
            });
        }
        let deleting: Vec<_> = self.deleting.iter().collect();
        writer.vec(&deleting, |writer, (id, name)| {
            writer.uuid(**id);
            writer.string(name);
            writer.tags(&[]);
        });
        writer.tags(&[]);
        writer.out
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes)?;
        let mut topics = |what| {
            reader.vec(what, |reader| {
                let id = reader.uuid("TopicId")?;
                let topic = Topic { name: reader.string("TopicName")?, partitions: decode_indexes(reader)? };
                reader.no_tags()?;
                Ok((id, topic))
            })
        };
        let (initializing, initialized) = (topics("InitializingTopics")?, topics("InitializedTopics")?);
        let deleting = reader.vec("DeletingTopics", |reader| {
            let topic = (reader.uuid("TopicId")?, reader.string("TopicName")?);
            reader.no_tags()?;
            Ok(topic)
        })?;
        reader.no_tags()?;
        Ok(Self {
            initializing: initializing.into_iter().collect(),
            initialized: initialized.into_iter().collect(),
            deleting: deleting.into_iter().collect(),
        })
    }
}

fn encode_indexes(writer: &mut Writer, partitions: &BTreeSet<i32>) {
    let indexes: Vec<i32> = partitions.iter().copied().collect();
    writer.vec(&indexes, |writer, index| writer.i32(*index));
}

fn decode_indexes(reader: &mut Reader<'_>) -> Result<BTreeSet<i32>, RecordError> {
    Ok(reader.vec("Partitions", |reader| reader.i32("a partition"))?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::group::record::Record;

    #[test]
    fn records_round_trip_and_are_never_read_past_their_end() {
        let assigned: Assignment = [(Uuid::from_u128(9), [1, 4].into())].into();
        let topic = Topic { name: Rc::from("t"), partitions: [0, 2].into() };
        let member = MemberInfo { client_id: Rc::from("c"), topic_names: vec![Rc::from("t")], ..MemberInfo::default() };
        let partitions = Partitions {
            initializing: [(Uuid::from_u128(9), topic.clone())].into(),
            initialized: [(Uuid::from_u128(8), topic)].into(),
            deleting: [(Uuid::from_u128(7), Rc::from("gone"))].into(),
        };
        for record in [
            ShareRecord::Member(Rc::from("m"), Some(Box::new(member))),
            ShareRecord::Epoch(Some(GroupEpoch { epoch: 4, metadata_hash: -3 })),
            ShareRecord::TargetMetadata(Some(ConsumerTargetMetadata { epoch: 4, timestamp_ms: 77 })),
            ShareRecord::Target(Rc::from("m"), Some(Rc::new(assigned.clone()))),
            ShareRecord::Current(Rc::from("m"), Some(Current { epoch: 4, previous_epoch: 3, assigned })),
            ShareRecord::Partitions(Some(partitions)),
            ShareRecord::Partitions(None),
        ] {
            let record = Record::Share { group: Rc::from("g"), record };
            let (key, value) = (record.key(), record.value());
            assert_eq!(Record::decode(&key, value.as_deref()), Ok(Some(record)));
            for cut in 0..value.as_ref().map_or(0, Vec::len) {
                assert!(Record::decode(&key, value.as_ref().map(|value| &value[..cut])).is_err());
            }
        }
    }
}
