//! Values of consumer groups (KIP-848): all of version 0, all with tagged fields.

use std::{collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use uuid::Uuid;

use super::{Assignment, Reader, RecordError, Writer, classic::version};

fn open<'a>(bytes: &'a [u8], what: &'static str) -> Result<Reader<'a>, RecordError> {
    version(bytes, 0, what)?;
    Ok(Reader::new(&bytes[2..], true))
}

/// `ConsumerGroupMetadataValue`: the group epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConsumerGroupEpoch {
    /// The group epoch.
    pub(crate) epoch: i32,
    /// Hash over the subscribed topics (KIP-1101); 0 where there is none.
    pub(crate) metadata_hash: i64,
}

impl ConsumerGroupEpoch {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.i32(self.epoch);
        if self.metadata_hash == 0 {
            writer.tags(&[]);
        } else {
            writer.tags(&[(0, self.metadata_hash.to_be_bytes().to_vec())]);
        }
        writer.out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes, "ConsumerGroupMetadataValue")?;
        let epoch = reader.i32("Epoch")?;
        let mut metadata_hash = 0;
        reader.tags(|tag, field| {
            if tag == 0 {
                metadata_hash = field.i64("MetadataHash")?;
            }
            Ok(())
        })?;
        Ok(Self { epoch, metadata_hash })
    }
}

/// `ConsumerGroupTargetAssignmentMetadataValue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConsumerTargetMetadata {
    /// The group epoch that the target assignment was made for.
    pub(crate) epoch: i32,
    /// When it was made, ms since the epoch (KIP-1263); 0 where it is not known.
    pub(crate) timestamp_ms: i64,
}

impl ConsumerTargetMetadata {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.i32(self.epoch);
        if self.timestamp_ms == 0 {
            writer.tags(&[]);
        } else {
            writer.tags(&[(0, self.timestamp_ms.to_be_bytes().to_vec())]);
        }
        writer.out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes, "ConsumerGroupTargetAssignmentMetadataValue")?;
        let epoch = reader.i32("AssignmentEpoch")?;
        let mut timestamp_ms = 0;
        reader.tags(|tag, field| {
            if tag == 0 {
                timestamp_ms = field.i64("AssignmentTimestamp")?;
            }
            Ok(())
        })?;
        Ok(Self { epoch, timestamp_ms })
    }
}

/// What the classic protocol says of a member of a consumer group that still uses it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClassicMetadata {
    /// Session timeout in ms.
    pub(crate) session_timeout_ms: i32,
    /// Protocols with their metadata, most wanted first.
    pub(crate) protocols: Vec<(Rc<str>, Bytes)>,
}

/// `ConsumerGroupMemberMetadataValue`: what a member says of itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConsumerMember {
    /// Instance id of a static member.
    pub(crate) instance_id: Option<Rc<str>>,
    /// Rack.
    pub(crate) rack_id: Option<Rc<str>>,
    /// The client's name for itself.
    pub(crate) client_id: Rc<str>,
    /// The client's address.
    pub(crate) client_host: Rc<str>,
    /// Subscribed topics by name, sorted.
    pub(crate) topic_names: Vec<Rc<str>>,
    /// Subscribed topics by regular expression.
    pub(crate) topic_regex: Option<Rc<str>>,
    /// Rebalance timeout in ms.
    pub(crate) rebalance_timeout_ms: i32,
    /// The server-side assignor that it wants.
    pub(crate) server_assignor: Option<Rc<str>>,
    /// Set while the member uses the classic protocol.
    pub(crate) classic: Option<ClassicMetadata>,
}

impl ConsumerMember {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.nullable_string(self.instance_id.as_deref());
        writer.nullable_string(self.rack_id.as_deref());
        writer.string(&self.client_id);
        writer.string(&self.client_host);
        writer.vec(&self.topic_names, |writer, name| writer.string(name));
        writer.nullable_string(self.topic_regex.as_deref());
        writer.i32(self.rebalance_timeout_ms);
        writer.nullable_string(self.server_assignor.as_deref());
        match &self.classic {
            None => writer.tags(&[]),
            Some(classic) => writer.tags(&[(0, classic.encode())]),
        }
        writer.out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes, "ConsumerGroupMemberMetadataValue")?;
        let mut value = Self {
            instance_id: reader.nullable_string("InstanceId")?,
            rack_id: reader.nullable_string("RackId")?,
            client_id: reader.string("ClientId")?,
            client_host: reader.string("ClientHost")?,
            topic_names: reader.vec("SubscribedTopicNames", |reader| reader.string("a topic name"))?,
            topic_regex: reader.nullable_string("SubscribedTopicRegex")?,
            rebalance_timeout_ms: reader.i32("RebalanceTimeoutMs")?,
            server_assignor: reader.nullable_string("ServerAssignor")?,
            classic: None,
        };
        reader.tags(|tag, field| {
            if tag == 0 {
                value.classic = ClassicMetadata::decode(field)?;
            }
            Ok(())
        })?;
        Ok(value)
    }
}

impl ClassicMetadata {
    /// The tagged struct with the byte before it that says that it is not null.
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::tagged();
        writer.varint(1);
        writer.i32(self.session_timeout_ms);
        writer.vec(&self.protocols, |writer, (name, metadata)| {
            writer.string(name);
            writer.bytes(metadata);
            writer.tags(&[]);
        });
        writer.tags(&[]);
        writer.out
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Option<Self>, RecordError> {
        if reader.varint("ClassicMemberMetadata")? == 0 {
            return Ok(None);
        }
        let session_timeout_ms = reader.i32("SessionTimeoutMs")?;
        let protocols = reader.vec("SupportedProtocols", |reader| {
            let protocol = (reader.string("Name")?, reader.bytes("Metadata")?);
            reader.no_tags()?;
            Ok(protocol)
        })?;
        reader.no_tags()?;
        Ok(Some(Self { session_timeout_ms, protocols }))
    }
}

/// Encodes a `ConsumerGroupTargetAssignmentMemberValue`.
pub(crate) fn encode_target(assignment: &Assignment) -> Vec<u8> {
    let mut writer = Writer::new(0, true);
    let topics: Vec<_> = assignment.iter().collect();
    writer.vec(&topics, |writer, (topic, partitions)| {
        writer.uuid(**topic);
        let partitions: Vec<i32> = partitions.iter().copied().collect();
        writer.vec(&partitions, |writer, partition| writer.i32(*partition));
        writer.tags(&[]);
    });
    writer.tags(&[]);
    writer.out
}

/// Decodes a `ConsumerGroupTargetAssignmentMemberValue`.
pub(crate) fn decode_target(bytes: &[u8]) -> Result<Assignment, RecordError> {
    let mut reader = open(bytes, "ConsumerGroupTargetAssignmentMemberValue")?;
    let topics = reader.vec("TopicPartitions", |reader| {
        let topic = reader.uuid("TopicId")?;
        let partitions = reader.vec("Partitions", |reader| reader.i32("a partition"))?;
        reader.no_tags()?;
        Ok((topic, partitions.into_iter().collect()))
    })?;
    reader.no_tags()?;
    Ok(topics.into_iter().collect())
}

/// Partitions of a member with the epoch in which each was given to it.
pub(crate) type AssignedPartitions = BTreeMap<Uuid, BTreeMap<i32, i32>>;

/// `ConsumerGroupCurrentMemberAssignmentValue`: where a member stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConsumerCurrent {
    /// Its epoch.
    pub(crate) epoch: i32,
    /// The epoch before, which a member may still send when the answer with the new one was lost.
    pub(crate) previous_epoch: i32,
    /// State: 0 stable, 1 unrevoked partitions, 2 unreleased partitions.
    pub(crate) state: i8,
    /// What it owns.
    pub(crate) assigned: AssignedPartitions,
    /// What it must give back.
    pub(crate) pending_revocation: AssignedPartitions,
}

impl ConsumerCurrent {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.i32(self.epoch);
        writer.i32(self.previous_epoch);
        writer.i8(self.state);
        encode_epochs(&mut writer, &self.assigned);
        encode_epochs(&mut writer, &self.pending_revocation);
        writer.tags(&[]);
        writer.out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes, "ConsumerGroupCurrentMemberAssignmentValue")?;
        let epoch = reader.i32("MemberEpoch")?;
        let value = Self {
            epoch,
            previous_epoch: reader.i32("PreviousMemberEpoch")?,
            state: reader.i8("State")?,
            assigned: decode_epochs(&mut reader, epoch)?,
            pending_revocation: decode_epochs(&mut reader, epoch)?,
        };
        reader.no_tags()?;
        Ok(value)
    }
}

fn encode_epochs(writer: &mut Writer, partitions: &AssignedPartitions) {
    let topics: Vec<_> = partitions.iter().collect();
    writer.vec(&topics, |writer, (topic, epochs)| {
        writer.uuid(**topic);
        let indexes: Vec<i32> = epochs.keys().copied().collect();
        writer.vec(&indexes, |writer, partition| writer.i32(*partition));
        let epochs: Vec<i32> = epochs.values().copied().collect();
        let mut tag = Writer::tagged();
        tag.vec(&epochs, |writer, epoch| writer.i32(*epoch));
        writer.tags(&[(0, tag.out)]);
    });
}

/// Brokers before 4.3 wrote no epochs per partition: then the member's own counts.
fn decode_epochs(reader: &mut Reader<'_>, member_epoch: i32) -> Result<AssignedPartitions, RecordError> {
    let topics = reader.vec("TopicPartitions", |reader| {
        let topic = reader.uuid("TopicId")?;
        let partitions = reader.vec("Partitions", |reader| reader.i32("a partition"))?;
        let mut epochs = None;
        reader.tags(|tag, field| {
            if tag == 0 {
                epochs = field.nullable_vec("AssignmentEpochs", |field| field.i32("an epoch"))?;
            }
            Ok(())
        })?;
        let epochs = epochs
            .filter(|epochs| epochs.len() == partitions.len())
            .unwrap_or_else(|| vec![member_epoch.max(0); partitions.len()]);
        Ok((topic, partitions.into_iter().zip(epochs).collect()))
    })?;
    Ok(topics.into_iter().collect())
}

/// `ConsumerGroupRegularExpressionValue`: the topics that matched when it was last looked at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConsumerRegex {
    /// The topics, sorted.
    pub(crate) topics: Vec<Rc<str>>,
    /// Version of the topics that they were taken from.
    pub(crate) version: i64,
    /// When they were looked up, ms since the epoch.
    pub(crate) timestamp_ms: i64,
}

impl ConsumerRegex {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.vec(&self.topics, |writer, topic| writer.string(topic));
        writer.i64(self.version);
        writer.i64(self.timestamp_ms);
        writer.tags(&[]);
        writer.out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes, "ConsumerGroupRegularExpressionValue")?;
        let value = Self {
            topics: reader.vec("Topics", |reader| reader.string("a topic"))?,
            version: reader.i64("Version")?,
            timestamp_ms: reader.i64("Timestamp")?,
        };
        reader.no_tags()?;
        Ok(value)
    }
}

/// A `ConsumerGroupPartitionMetadataValue` without topics.
pub(super) fn empty_partition_metadata() -> Vec<u8> {
    let mut writer = Writer::new(0, true);
    writer.vec(&[(); 0], |_, ()| {});
    writer.tags(&[]);
    writer.out
}
