//! Values of classic groups and of committed offsets: `GroupMetadataValue` and `OffsetCommitValue`.

use std::rc::Rc;

use bytes::Bytes;
use uuid::Uuid;

use super::{Reader, RecordError, Writer};

/// Version of `GroupMetadataValue` that is written, as Kafka 4.3 does.
const GROUP_METADATA_VERSION: i16 = 3;
/// Newest version of both values; the first one with tagged fields (KIP-915).
const FLEXIBLE_VERSION: i16 = 4;
/// The version of an offset that carries its own expiry.
const OFFSET_EXPIRE_VERSION: i16 = 1;

/// Value of a committed offset.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OffsetCommit {
    /// The offset.
    pub(crate) offset: i64,
    /// Epoch of the last consumed record, or -1.
    pub(crate) leader_epoch: i32,
    /// What the client wants kept; may be empty.
    pub(crate) metadata: Rc<str>,
    /// When it was committed, ms since the epoch.
    pub(crate) commit_timestamp_ms: i64,
    /// When it expires (only OffsetCommit 2-4 can say so), or -1 for the broker's retention.
    pub(crate) expire_timestamp_ms: i64,
    /// The topic's id; nil where it is not known.
    pub(crate) topic_id: Uuid,
}

impl OffsetCommit {
    /// Encodes it in version 4, or in 1 when it has an expiry of its own.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let expires = self.expire_timestamp_ms != -1;
        let version = if expires { OFFSET_EXPIRE_VERSION } else { FLEXIBLE_VERSION };
        let mut writer = Writer::new(version, !expires);
        writer.i64(self.offset);
        if !expires {
            writer.i32(self.leader_epoch);
        }
        writer.string(&self.metadata);
        writer.i64(self.commit_timestamp_ms);
        if expires {
            writer.i64(self.expire_timestamp_ms);
        } else if self.topic_id.is_nil() {
            writer.tags(&[]);
        } else {
            writer.tags(&[(0, self.topic_id.as_bytes().to_vec())]);
        }
        writer.out
    }

    /// Decodes any version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let version = version(bytes, FLEXIBLE_VERSION, "OffsetCommitValue")?;
        let mut reader = Reader::new(&bytes[2..], version >= FLEXIBLE_VERSION);
        let mut topic_id = Uuid::nil();
        let value = Self {
            offset: reader.i64("offset")?,
            leader_epoch: if version >= 3 { reader.i32("leaderEpoch")? } else { -1 },
            metadata: reader.string("metadata")?,
            commit_timestamp_ms: reader.i64("commitTimestamp")?,
            expire_timestamp_ms: if version == 1 { reader.i64("expireTimestamp")? } else { -1 },
            topic_id,
        };
        reader.tags(|tag, field| {
            if tag == 0 {
                topic_id = field.uuid("topicId")?;
            }
            Ok(())
        })?;
        Ok(Self { topic_id, ..value })
    }
}

/// Value of a classic group: its last generation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupMetadata {
    /// Protocol type; empty when there was none yet.
    pub(crate) protocol_type: Rc<str>,
    /// Generation.
    pub(crate) generation: i32,
    /// The protocol all members agreed on.
    pub(crate) protocol: Option<Rc<str>>,
    /// Member id of the leader.
    pub(crate) leader: Option<Rc<str>>,
    /// When the state was entered, ms since the epoch, or -1.
    pub(crate) state_timestamp_ms: i64,
    /// Its members.
    pub(crate) members: Vec<GroupMetadataMember>,
}

/// A member of a classic group.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupMetadataMember {
    /// Member id.
    pub(crate) member_id: Rc<str>,
    /// Instance id of a static member.
    pub(crate) instance_id: Option<Rc<str>>,
    /// The client's name for itself.
    pub(crate) client_id: Rc<str>,
    /// The client's address.
    pub(crate) client_host: Rc<str>,
    /// Rebalance timeout in ms, or -1 for the session timeout.
    pub(crate) rebalance_timeout_ms: i32,
    /// Session timeout in ms.
    pub(crate) session_timeout_ms: i32,
    /// Its metadata for the agreed protocol.
    pub(crate) subscription: Bytes,
    /// Its assignment.
    pub(crate) assignment: Bytes,
}

impl GroupMetadata {
    /// Encodes it in version 3.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(GROUP_METADATA_VERSION, false);
        writer.string(&self.protocol_type);
        writer.i32(self.generation);
        writer.nullable_string(self.protocol.as_deref());
        writer.nullable_string(self.leader.as_deref());
        writer.i64(self.state_timestamp_ms);
        writer.vec(&self.members, |writer, member| {
            writer.string(&member.member_id);
            writer.nullable_string(member.instance_id.as_deref());
            writer.string(&member.client_id);
            writer.string(&member.client_host);
            writer.i32(member.rebalance_timeout_ms);
            writer.i32(member.session_timeout_ms);
            writer.bytes(&member.subscription);
            writer.bytes(&member.assignment);
        });
        writer.out
    }

    /// Decodes any version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let version = version(bytes, FLEXIBLE_VERSION, "GroupMetadataValue")?;
        let mut reader = Reader::new(&bytes[2..], version >= FLEXIBLE_VERSION);
        let value = Self {
            protocol_type: reader.string("protocolType")?,
            generation: reader.i32("generation")?,
            protocol: reader.nullable_string("protocol")?,
            leader: reader.nullable_string("leader")?,
            state_timestamp_ms: if version >= 2 { reader.i64("currentStateTimestamp")? } else { -1 },
            members: reader.vec("members", |reader| {
                let member = GroupMetadataMember {
                    member_id: reader.string("memberId")?,
                    instance_id: if version >= 3 { reader.nullable_string("groupInstanceId")? } else { None },
                    client_id: reader.string("clientId")?,
                    client_host: reader.string("clientHost")?,
                    rebalance_timeout_ms: if version >= 1 { reader.i32("rebalanceTimeout")? } else { -1 },
                    session_timeout_ms: reader.i32("sessionTimeout")?,
                    subscription: reader.bytes("subscription")?,
                    assignment: reader.bytes("assignment")?,
                };
                reader.no_tags()?;
                Ok(member)
            })?,
        };
        reader.no_tags()?;
        Ok(value)
    }
}

/// The version that a value begins with, if it is a known one.
pub(super) fn version(bytes: &[u8], newest: i16, what: &'static str) -> Result<i16, RecordError> {
    let version = Reader::new(bytes, false).i16("a version")?;
    if (0..=newest).contains(&version) { Ok(version) } else { Err(RecordError::Version { what, version }) }
}
