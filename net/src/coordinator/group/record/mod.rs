//! The records of `__consumer_offsets`, in Kafka's own formats, so that Kafka's tools read this topic and we read theirs.
//!
//! A key is the record's type (Kafka's `CoordinatorRecordType`, in the place of a version) and its fields; a value is a
//! version and its fields; no value is a tombstone. Formats: `group-coordinator/src/main/resources/common/message` of
//! Apache Kafka 4.3.

mod classic;
pub(super) mod consumer;

use std::rc::Rc;

pub(crate) use classic::{GroupMetadata, GroupMetadataMember, OffsetCommit};
pub(crate) use consumer::{
    AssignedPartitions, ClassicMetadata, ConsumerCurrent, ConsumerGroupEpoch, ConsumerMember, ConsumerRegex,
    ConsumerTargetMetadata,
};

use super::assignment::Assignment;
pub(crate) use crate::coordinator::fields::{Reader, RecordError, Writer};
use crate::coordinator::group::share::record::{self as share, ShareRecord};

/// A record of `__consumer_offsets`. A value of `None` is a tombstone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    /// A committed offset (types 0 and 1).
    OffsetCommit { group: Rc<str>, topic: Rc<str>, partition: i32, value: Option<OffsetCommit> },
    /// A classic group (type 2).
    GroupMetadata { group: Rc<str>, value: Option<GroupMetadata> },
    /// A consumer group's epoch (type 3).
    ConsumerGroup { group: Rc<str>, value: Option<ConsumerGroupEpoch> },
    /// What brokers before 4.1 knew of the subscribed topics (type 4): only ever deleted here.
    ConsumerPartitionMetadata { group: Rc<str>, value: Option<()> },
    /// A member of a consumer group (type 5).
    ConsumerMember { group: Rc<str>, member: Rc<str>, value: Option<Box<ConsumerMember>> },
    /// The epoch of a consumer group's target assignment (type 6).
    ConsumerTargetMetadata { group: Rc<str>, value: Option<ConsumerTargetMetadata> },
    /// A member's target assignment (type 7).
    ConsumerTarget { group: Rc<str>, member: Rc<str>, value: Option<Rc<Assignment>> },
    /// A member's current assignment (type 8).
    ConsumerCurrent { group: Rc<str>, member: Rc<str>, value: Option<ConsumerCurrent> },
    /// The topics that a regular expression stands for (type 16).
    ConsumerRegex { group: Rc<str>, regex: Rc<str>, value: Option<ConsumerRegex> },
    /// A record of a share group (types 10 to 15).
    Share { group: Rc<str>, record: ShareRecord },
}

const OFFSET_COMMIT: i16 = 1;
const GROUP_METADATA: i16 = 2;
const CONSUMER_GROUP: i16 = 3;
const CONSUMER_PARTITION_METADATA: i16 = 4;
const CONSUMER_MEMBER: i16 = 5;
const CONSUMER_TARGET_METADATA: i16 = 6;
const CONSUMER_TARGET: i16 = 7;
const CONSUMER_CURRENT: i16 = 8;
const CONSUMER_REGEX: i16 = 16;

impl Record {
    /// The group that it is about.
    pub(crate) fn group(&self) -> &Rc<str> {
        match self {
            Record::OffsetCommit { group, .. }
            | Record::GroupMetadata { group, .. }
            | Record::ConsumerGroup { group, .. }
            | Record::ConsumerPartitionMetadata { group, .. }
            | Record::ConsumerMember { group, .. }
            | Record::ConsumerTargetMetadata { group, .. }
            | Record::ConsumerTarget { group, .. }
            | Record::ConsumerCurrent { group, .. }
            | Record::ConsumerRegex { group, .. }
            | Record::Share { group, .. } => group,
        }
    }

    /// Its key's bytes.
    pub(crate) fn key(&self) -> Vec<u8> {
        let (kind, second) = match self {
            Record::OffsetCommit { topic, .. } => (OFFSET_COMMIT, Some(topic)),
            Record::GroupMetadata { .. } => (GROUP_METADATA, None),
            Record::ConsumerGroup { .. } => (CONSUMER_GROUP, None),
            Record::ConsumerPartitionMetadata { .. } => (CONSUMER_PARTITION_METADATA, None),
            Record::ConsumerMember { member, .. } => (CONSUMER_MEMBER, Some(member)),
            Record::ConsumerTargetMetadata { .. } => (CONSUMER_TARGET_METADATA, None),
            Record::ConsumerTarget { member, .. } => (CONSUMER_TARGET, Some(member)),
            Record::ConsumerCurrent { member, .. } => (CONSUMER_CURRENT, Some(member)),
            Record::ConsumerRegex { regex, .. } => (CONSUMER_REGEX, Some(regex)),
            Record::Share { record, .. } => (record.kind(), record.member()),
        };
        let mut key = Writer::new(kind, false);
        key.string(self.group());
        if let Some(second) = second {
            key.string(second);
        }
        if let Record::OffsetCommit { partition, .. } = self {
            key.i32(*partition);
        }
        key.out
    }

    /// Its value's bytes; `None` for a tombstone.
    pub(crate) fn value(&self) -> Option<Vec<u8>> {
        match self {
            Record::OffsetCommit { value, .. } => value.as_ref().map(OffsetCommit::encode),
            Record::GroupMetadata { value, .. } => value.as_ref().map(GroupMetadata::encode),
            Record::ConsumerGroup { value, .. } => value.as_ref().map(ConsumerGroupEpoch::encode),
            Record::ConsumerPartitionMetadata { value, .. } => value.map(|()| consumer::empty_partition_metadata()),
            Record::ConsumerMember { value, .. } => value.as_ref().map(|value| value.encode()),
            Record::ConsumerTargetMetadata { value, .. } => value.as_ref().map(ConsumerTargetMetadata::encode),
            Record::ConsumerTarget { value, .. } => value.as_ref().map(|value| consumer::encode_target(value)),
            Record::ConsumerCurrent { value, .. } => value.as_ref().map(ConsumerCurrent::encode),
            Record::ConsumerRegex { value, .. } => value.as_ref().map(ConsumerRegex::encode),
            Record::Share { record, .. } => record.value(),
        }
    }

    /// Decodes a record. `Ok(None)` is a type that this coordinator does not keep.
    pub(crate) fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Option<Record>, RecordError> {
        let mut reader = Reader::new(key, false);
        let kind = reader.i16("the type of a key")?;
        if !matches!(kind, 0..=CONSUMER_CURRENT | CONSUMER_REGEX) && !share::KINDS.contains(&kind) {
            return Ok(None);
        }
        let group = reader.string("group")?;
        Ok(Some(match kind {
            0 | OFFSET_COMMIT => {
                let topic = reader.string("topic")?;
                let partition = reader.i32("partition")?;
                Record::OffsetCommit { group, topic, partition, value: value.map(OffsetCommit::decode).transpose()? }
            }
            GROUP_METADATA => Record::GroupMetadata { group, value: value.map(GroupMetadata::decode).transpose()? },
            CONSUMER_GROUP => {
                Record::ConsumerGroup { group, value: value.map(ConsumerGroupEpoch::decode).transpose()? }
            }
            CONSUMER_PARTITION_METADATA => Record::ConsumerPartitionMetadata { group, value: value.map(|_| ()) },
            CONSUMER_MEMBER => {
                let value = value.map(ConsumerMember::decode).transpose()?.map(Box::new);
                Record::ConsumerMember { group, member: reader.string("member")?, value }
            }
            CONSUMER_TARGET_METADATA => {
                let value = value.map(ConsumerTargetMetadata::decode).transpose()?;
                Record::ConsumerTargetMetadata { group, value }
            }
            CONSUMER_TARGET => {
                let value = value.map(consumer::decode_target).transpose()?.map(Rc::new);
                Record::ConsumerTarget { group, member: reader.string("member")?, value }
            }
            CONSUMER_CURRENT => {
                let value = value.map(ConsumerCurrent::decode).transpose()?;
                Record::ConsumerCurrent { group, member: reader.string("member")?, value }
            }
            kind if share::KINDS.contains(&kind) => {
                let record = ShareRecord::decode(kind, &mut reader, value)?;
                Record::Share { group, record }
            }
            _ => {
                let value = value.map(ConsumerRegex::decode).transpose()?;
                Record::ConsumerRegex { group, regex: reader.string("regular expression")?, value }
            }
        }))
    }
}

#[cfg(test)]
mod tests;
