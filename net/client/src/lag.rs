//! What nodes say of themselves for which Kafka has no question: what followers lack of the partitions that they lead, and what
//! keeps them from etcd. millrace answers it in tagged fields of DescribeLogDirs, which other clients pass over, and only to
//! whoever asks for the folders of no topic.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::DescribeLogDirsRequest;

use crate::{cluster::Cluster, error::ClientError};

/// Tags of the fields, far above those that Kafka gives out one by one.
pub const FOLLOWER_LAGS_TAG: i32 = 0x4d52;
/// See [`FOLLOWER_LAGS_TAG`].
pub const ETCD_TROUBLE_TAG: i32 = 0x4d53;

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeWord {
    /// What followers lack of the partitions that it leads; none if it does not say: it is older, or no millrace.
    pub lags: Option<Vec<FollowerLag>>,
    /// Why etcd does not do what it asks, and the way out, for people; none if it does, or the node does not say.
    pub etcd_trouble: Option<String>,
}

/// What one follower lacks of the partitions that one node leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowerLag {
    /// The follower.
    pub node: i32,
    /// Partitions that it follows.
    pub partitions: u32,
    /// Those of them in whose ISR it is.
    pub in_sync: u32,
    /// Records that it lacks in all.
    pub records: u64,
    /// About how many bytes they have.
    pub bytes: u64,
    /// The longest time for which it has lacked records of one, in ms.
    pub ms: u64,
}

impl FollowerLag {
    const BYTES: usize = 36;

    /// Of partitions that two nodes lead.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            node: other.node,
            partitions: self.partitions.saturating_add(other.partitions),
            in_sync: self.in_sync.saturating_add(other.in_sync),
            records: self.records.saturating_add(other.records),
            bytes: self.bytes.saturating_add(other.bytes),
            ms: self.ms.max(other.ms),
        }
    }

    /// The field's value: one after the other.
    pub fn encode(lags: &[Self]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(lags.len() * Self::BYTES);
        for lag in lags {
            bytes.put_i32(lag.node);
            bytes.put_u32(lag.partitions);
            bytes.put_u32(lag.in_sync);
            bytes.put_u64(lag.records);
            bytes.put_u64(lag.bytes);
            bytes.put_u64(lag.ms);
        }
        bytes.freeze()
    }

    fn decode(mut bytes: &[u8]) -> Vec<Self> {
        let mut lags = Vec::new();
        while bytes.len() >= Self::BYTES {
            lags.push(Self {
                node: bytes.get_i32(),
                partitions: bytes.get_u32(),
                in_sync: bytes.get_u32(),
                records: bytes.get_u64(),
                bytes: bytes.get_u64(),
                ms: bytes.get_u64(),
            });
        }
        lags
    }
}

impl Cluster {
    /// Asks a node for what it says of itself.
    pub fn word_of(&mut self, node: i32) -> Result<NodeWord, ClientError> {
        let request = |_| DescribeLogDirsRequest::default().with_topics(Some(Vec::new()));
        let response = self.broker(node, request)?;
        ClientError::check(format!("node {node}"), response.error_code, None)?;
        let said = |tag: i32| response.unknown_tagged_fields.get(&tag);
        Ok(NodeWord {
            lags: said(FOLLOWER_LAGS_TAG).map(|bytes| FollowerLag::decode(bytes)),
            etcd_trouble: said(ETCD_TROUBLE_TAG).map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let lag = FollowerLag { node: 3, partitions: 10, in_sync: 9, records: 7, bytes: 1 << 40, ms: 250 };
        let lags = [lag, FollowerLag { node: 2, ..FollowerLag::default() }];
        assert_eq!(FollowerLag::decode(&FollowerLag::encode(&lags)), lags);
        assert_eq!(FollowerLag::encode(&lags).len(), 2 * FollowerLag::BYTES);
    }
}
