//! Requests that a shard may send to other brokers, and the shapes of their answers.

mod markers;
mod offsets;
mod transactions;

use bytes::Bytes;
use kafka_protocol::{
    messages::{ApiVersionsRequest, MetadataRequest},
    protocol::Request,
};

pub use self::markers::{TransactionMarkers, WriteMarkersRequest, WriteMarkersResponse};
use crate::wire::api::shape::{BOOL, INT16, INT32, INT32S, INT64, STRING, Shape, UUID, array, check};

/// A request whose answer has a known shape: its counts are checked against its bytes before it is decoded. To send a
/// further one is to write down its answer's shape here.
pub trait Ask: Request {
    /// The oldest version that will do.
    const VERSION_MIN: i16 = 0;
    /// The newest version whose answer is known.
    const VERSION_MAX: i16;

    /// Whether an answer, behind its header, can be decoded; if not, why.
    fn check_answer(version: i16, body: &Bytes) -> Result<(), String>;
}

/// Whether an answer, behind its header, has the shape that its request's version has.
pub(crate) fn check_shape<R: Request>(shape: Shape, version: i16, body: &Bytes) -> Result<(), String> {
    let flexible = R::header_version(version) >= 2;
    match check(shape, version, flexible, body).map_err(|error| error.to_string())? {
        0 => Ok(()),
        _ => Err("it has text that is not UTF-8".to_owned()),
    }
}

impl Ask for ApiVersionsRequest {
    const VERSION_MAX: i16 = 4;

    fn check_answer(version: i16, body: &Bytes) -> Result<(), String> {
        check_shape::<Self>(API_VERSIONS, version, body)
    }
}

const API_VERSIONS: Shape = &[
    INT16,
    array(&[INT16, INT16, INT16]),
    INT32.since(1),
    array(&[STRING, INT16, INT16]).since(3).tag(0),
    INT64.since(3).tag(1),
    array(&[STRING, INT16, INT16]).since(3).tag(2),
    BOOL.since(3).tag(3),
];

impl Ask for MetadataRequest {
    const VERSION_MAX: i16 = 13;

    fn check_answer(version: i16, body: &Bytes) -> Result<(), String> {
        check_shape::<Self>(METADATA, version, body)
    }
}

const METADATA: Shape = &[
    INT32.since(3),
    array(&[INT32, STRING, INT32, STRING.since(1)]),
    STRING.since(2),
    INT32.since(1),
    array(METADATA_TOPIC),
    INT32.since(8).until(10),
    INT16.since(13),
];

const METADATA_TOPIC: Shape = &[
    INT16,
    STRING,
    UUID.since(10),
    BOOL.since(1),
    array(&[INT16, INT32, INT32, INT32.since(7), INT32S, INT32S, INT32S.since(5)]),
    INT32.since(8),
];

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::{
        messages::{
            AddPartitionsToTxnRequest, DescribeTransactionsRequest, ListOffsetsRequest, ListTransactionsRequest,
        },
        protocol::{Decodable, Encodable},
    };

    use super::*;
    use crate::wire::api::shape::sample::{Random, Text, sample};

    fn answers_are_of_the_shape<R: Ask>(shape: Shape) {
        let mut random = Random::new(7);
        for version in R::VERSIONS.min.max(R::VERSION_MIN)..=R::VERSION_MAX {
            for _ in 0..60 {
                let flexible = R::header_version(version) >= 2;
                let body = Bytes::from(sample(shape, version, flexible, Text::Ascii, &mut random));
                assert_eq!(R::check_answer(version, &body), Ok(()));
                let mut rest = body.clone();
                let decoded = R::Response::decode(&mut rest, version);
                let decoded = decoded.unwrap_or_else(|error| panic!("version {version}: {error:#}"));
                assert!(rest.is_empty(), "version {version}");
                let mut encoded = BytesMut::new();
                decoded.encode(&mut encoded, version).expect("what was decoded can be encoded");
                // Not the same bytes: a tagged field that has its default is left out.
                assert_eq!(R::check_answer(version, &encoded.freeze()), Ok(()), "version {version}");
            }
        }
    }

    #[test]
    fn shapes_of_answers_are_those_of_the_message_library() {
        answers_are_of_the_shape::<ApiVersionsRequest>(API_VERSIONS);
        answers_are_of_the_shape::<MetadataRequest>(METADATA);
        answers_are_of_the_shape::<ListOffsetsRequest>(offsets::OFFSETS);
        answers_are_of_the_shape::<WriteMarkersRequest>(markers::MARKERS);
        answers_are_of_the_shape::<AddPartitionsToTxnRequest>(transactions::ADD_PARTITIONS);
        answers_are_of_the_shape::<ListTransactionsRequest>(transactions::LIST_TRANSACTIONS);
        answers_are_of_the_shape::<DescribeTransactionsRequest>(transactions::DESCRIBE_TRANSACTIONS);
    }

    #[test]
    fn counts_without_bytes_are_refused_before_anything_is_decoded() {
        let garbage = Bytes::from_static(&[0xff; 30]);
        assert!(ApiVersionsRequest::check_answer(3, &garbage).is_err());
        let many = [&[0; 4][..], &[0x7f, 0xff, 0xff, 0xff], &[0; 30]].concat();
        assert!(MetadataRequest::check_answer(8, &many.into()).is_err());
    }
}
