//! WriteTxnMarkers in version 2 (KIP-1228), in which a marker says its `transaction.version`: the message library has only
//! version 1.

use anyhow::{Result, ensure};
use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiKey, WriteTxnMarkersResponse, write_txn_markers_request::WritableTxnMarkerTopic,
        write_txn_markers_response::WritableTxnMarkerResult,
    },
    protocol::{
        Decodable, Encodable, HeaderVersion, Message, Request, VersionRange,
        buf::{ByteBuf, ByteBufMut},
    },
};

use super::{Ask, check_shape};
use crate::wire::api::shape::{INT16, INT32, INT64, STRING, Shape, array};

/// The version that is spoken here.
const VERSION: i16 = 2;
/// The one of the message library with the same topics in a request, and the same answer.
const KNOWN_VERSION: i16 = 1;
const VERSIONS: VersionRange = VersionRange { min: VERSION, max: VERSION };

/// The ends of transactions, to be written to partitions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WriteMarkersRequest {
    /// Each producer's.
    pub markers: Vec<TransactionMarkers>,
}

/// The end of one producer's transaction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TransactionMarkers {
    /// Whose.
    pub producer_id: i64,
    /// The epoch that the markers carry.
    pub producer_epoch: i16,
    /// Whether it is committed.
    pub is_commit: bool,
    /// Where.
    pub topics: Vec<WritableTxnMarkerTopic>,
    /// Epoch of the coordinator that decided.
    pub coordinator_epoch: i32,
    /// By whose rules the epoch is checked.
    pub transaction_version: i8,
}

/// What became of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WriteMarkersResponse {
    /// By producer, in the order of the request.
    pub markers: Vec<WritableTxnMarkerResult>,
}

impl Message for WriteMarkersRequest {
    const VERSIONS: VersionRange = VERSIONS;
    const DEPRECATED_VERSIONS: Option<VersionRange> = None;
}

impl HeaderVersion for WriteMarkersRequest {
    fn header_version(_: i16) -> i16 {
        2
    }
}

impl Request for WriteMarkersRequest {
    const KEY: i16 = ApiKey::WriteTxnMarkers as i16;
    type Response = WriteMarkersResponse;
}

impl Encodable for WriteMarkersRequest {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, version: i16) -> Result<()> {
        ensure!(version == VERSION, "version {version} is not spoken");
        put_varint(buf, self.markers.len() + 1);
        for marker in &self.markers {
            buf.put_i64(marker.producer_id);
            buf.put_i16(marker.producer_epoch);
            buf.put_u8(marker.is_commit.into());
            put_varint(buf, marker.topics.len() + 1);
            marker.topics.iter().try_for_each(|topic| topic.encode(buf, KNOWN_VERSION))?;
            buf.put_i32(marker.coordinator_epoch);
            buf.put_i8(marker.transaction_version);
            put_varint(buf, NO_TAGS);
        }
        put_varint(buf, NO_TAGS);
        Ok(())
    }

    fn compute_size(&self, version: i16) -> Result<usize> {
        let mut encoded = BytesMut::new();
        self.encode(&mut encoded, version)?;
        Ok(encoded.len())
    }
}

/// How many tagged fields there are.
const NO_TAGS: usize = 0;

/// A count as flexible versions have it: seven bits a byte, the lowest first.
fn put_varint(buf: &mut impl ByteBufMut, mut value: usize) {
    while value >= 0x80 {
        buf.put_u8(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

impl Decodable for WriteMarkersRequest {
    fn decode<B: ByteBuf>(_: &mut B, version: i16) -> Result<Self> {
        anyhow::bail!("version {version} is only sent from here")
    }
}

impl Message for WriteMarkersResponse {
    const VERSIONS: VersionRange = VERSIONS;
    const DEPRECATED_VERSIONS: Option<VersionRange> = None;
}

impl HeaderVersion for WriteMarkersResponse {
    fn header_version(_: i16) -> i16 {
        1
    }
}

impl Encodable for WriteMarkersResponse {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, _: i16) -> Result<()> {
        WriteTxnMarkersResponse::default().with_markers(self.markers.clone()).encode(buf, KNOWN_VERSION)
    }

    fn compute_size(&self, _: i16) -> Result<usize> {
        WriteTxnMarkersResponse::default().with_markers(self.markers.clone()).compute_size(KNOWN_VERSION)
    }
}

impl Decodable for WriteMarkersResponse {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> Result<Self> {
        ensure!(version == VERSION, "version {version} is not spoken");
        Ok(Self { markers: WriteTxnMarkersResponse::decode(buf, KNOWN_VERSION)?.markers })
    }
}

impl Ask for WriteMarkersRequest {
    const VERSION_MIN: i16 = VERSION;
    const VERSION_MAX: i16 = VERSION;

    fn check_answer(version: i16, body: &Bytes) -> Result<(), String> {
        check_shape::<Self>(MARKERS, version, body)
    }
}

pub(super) const MARKERS: Shape = &[array(&[INT64, array(&[STRING, array(&[INT32, INT16])])])];

#[cfg(test)]
mod tests {
    use kafka_protocol::{messages::TopicName, protocol::StrBytes};

    use super::*;

    #[test]
    fn markers_say_their_transaction_version() {
        let topic = WritableTxnMarkerTopic::default().with_name(TopicName(StrBytes::from_static_str("t")));
        let marker = TransactionMarkers {
            producer_id: 7,
            producer_epoch: 3,
            is_commit: true,
            topics: vec![topic.with_partition_indexes(vec![0, 1])],
            coordinator_epoch: 9,
            transaction_version: 2,
        };
        let mut encoded = BytesMut::new();
        WriteMarkersRequest { markers: vec![marker] }.encode(&mut encoded, 2).unwrap();
        let expected: &[&[u8]] = &[
            &[2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 1],
            &[2, 2, b't', 3, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            &[0, 0, 0, 9, 2, 0, 0],
        ];
        assert_eq!(encoded, expected.concat());
    }

    #[test]
    fn counts_of_more_than_seven_bits_go_on() {
        let mut encoded = BytesMut::new();
        put_varint(&mut encoded, 300);
        assert_eq!(&encoded[..], [0xac, 0x02]);
    }
}
