//! The codecs of this folder against the message library, for every version.

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        FetchResponse as LibraryFetchResponse, ProduceRequest as LibraryProduceRequest, TopicName, TransactionalId,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use millrace_engine::{
    api::{Chunk, Records},
    transactions::AbortedTransaction,
};
use proptest::{collection::vec, option, prelude::*};
use uuid::Uuid;

use super::{
    fetch_response::{FetchResponse, Hints, NodeEndpoint, PartitionResponse, TopicResponse},
    produce_request::{PartitionData, ProduceRequest, TopicData},
};

fn text() -> impl Strategy<Value = StrBytes> {
    "[a-zé]{0,20}".prop_map(StrBytes::from_string)
}

fn bytes(length_max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..length_max).prop_map(Bytes::from)
}

fn produce_request(version: i16) -> impl Strategy<Value = ProduceRequest> {
    let partition =
        (any::<i32>(), option::weighted(0.9, bytes(300))).prop_map(|(index, records)| PartitionData { index, records });
    let topic = (text(), any::<u128>(), vec(partition, 0..4)).prop_map(move |(name, id, partitions)| {
        let (name, id) = if version >= 13 { (StrBytes::new(), Uuid::from_u128(id)) } else { (name, Uuid::nil()) };
        TopicData { name, id, partitions }
    });
    (option::of(text()), any::<i16>(), any::<i32>(), vec(topic, 0..4)).prop_map(
        |(transactional_id, acks, timeout_ms, topics)| ProduceRequest { transactional_id, acks, timeout_ms, topics },
    )
}

fn encode_with_library(request: &ProduceRequest, version: i16) -> Bytes {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            PartitionProduceData::default().with_index(partition.index).with_records(partition.records.clone())
        });
        TopicProduceData::default()
            .with_name(TopicName(topic.name.clone()))
            .with_topic_id(topic.id)
            .with_partition_data(partitions.collect())
            .with_unknown_tagged_fields(tagged(version))
    });
    let request = LibraryProduceRequest::default()
        .with_transactional_id(request.transactional_id.clone().map(TransactionalId))
        .with_acks(request.acks)
        .with_timeout_ms(request.timeout_ms)
        .with_topic_data(topics.collect())
        .with_unknown_tagged_fields(tagged(version));
    let mut encoded = BytesMut::new();
    request.encode(&mut encoded, version).expect("a legal request");
    encoded.freeze()
}

/// A tagged field that nobody knows.
fn tagged(version: i16) -> std::collections::BTreeMap<i32, Bytes> {
    let field = (version >= 9).then(|| (300, Bytes::from_static(b"future")));
    field.into_iter().collect()
}

fn partition_response() -> impl Strategy<Value = PartitionResponse> {
    let numbers = (any::<i32>(), any::<i16>(), any::<i64>(), any::<i64>(), any::<i64>());
    let aborted = (any::<i64>(), any::<i64>())
        .prop_map(|(producer_id, first_offset)| AbortedTransaction { producer_id, first_offset });
    let aborted = option::of(vec(aborted, 0..3));
    let hints = (option::of(any::<i32>()), option::of(any::<(i32, i32)>()), option::of(any::<(i32, i64)>()));
    let hints = hints.prop_map(|(preferred_read_replica, current_leader, diverging)| Hints {
        preferred_read_replica,
        current_leader,
        diverging,
    });
    (numbers, hints, aborted, vec(bytes(200), 0..3)).prop_map(|(numbers, hints, aborted, chunks)| {
        let (index, error_code, high_watermark, last_stable_offset, log_start_offset) = numbers;
        let records = Records { chunks: chunks.into_iter().map(Chunk::Bytes).collect() };
        PartitionResponse {
            index,
            error_code,
            high_watermark,
            last_stable_offset,
            log_start_offset,
            aborted,
            hints,
            records,
        }
    })
}

fn fetch_response() -> impl Strategy<Value = FetchResponse> {
    let topic = (text(), any::<u128>(), vec(partition_response(), 0..4))
        .prop_map(|(name, id, partitions)| TopicResponse { name, id: Uuid::from_u128(id), partitions });
    let endpoint = (any::<i32>(), text(), any::<i32>(), option::of(text()))
        .prop_map(|(id, host, port, rack)| NodeEndpoint { id, host, port, rack });
    (any::<i16>(), any::<i32>(), vec(topic, 0..4), vec(endpoint, 0..3)).prop_map(
        |(error_code, session_id, topics, node_endpoints)| FetchResponse {
            error_code,
            session_id,
            topics,
            node_endpoints,
        },
    )
}

/// What a response says, in a form that both sides can be brought into.
fn told(response: &FetchResponse, version: i16) -> Vec<String> {
    let mut told =
        vec![if version >= 7 { format!("{} {}", response.error_code, response.session_id) } else { "0 0".to_string() }];
    let endpoints = response.node_endpoints.iter().filter(|_| version >= 16);
    told.extend(endpoints.map(|at| format!("{} {} {} {:?}", at.id, at.host, at.port, at.rack)));
    for topic in &response.topics {
        let id = if version >= 13 { topic.id.to_string() } else { topic.name.to_string() };
        told.push(format!("{id} {}", topic.partitions.len()));
        for partition in &topic.partitions {
            let records: Vec<u8> =
                partition.records.chunks.iter().flat_map(|chunk| chunk.as_slice().expect("memory").to_vec()).collect();
            let start = if version >= 5 { partition.log_start_offset } else { -1 };
            let aborted = partition.aborted.as_ref().map(|aborted| {
                aborted.iter().map(|aborted| (aborted.producer_id, aborted.first_offset)).collect::<Vec<_>>()
            });
            let hints = partition.hints;
            told.push(format!(
                "{} {:?} {:?}",
                hints.preferred_read_replica.filter(|_| version >= 11).unwrap_or(-1),
                hints.current_leader.filter(|_| version >= 16).unwrap_or((-1, -1)),
                hints.diverging.filter(|_| version >= 12).unwrap_or((-1, -1)),
            ));
            told.push(format!(
                "{} {} {} {} {start} {aborted:?} {records:?}",
                partition.index, partition.error_code, partition.high_watermark, partition.last_stable_offset
            ));
        }
    }
    told
}

fn told_by_library(response: &LibraryFetchResponse, version: i16) -> Vec<String> {
    let mut told = vec![format!("{} {}", response.error_code, response.session_id)];
    let endpoints = response.node_endpoints.iter();
    told.extend(endpoints.map(|at| format!("{} {} {} {:?}", at.node_id.0, at.host, at.port, at.rack)));
    for topic in &response.responses {
        let id = if version >= 13 { topic.topic_id.to_string() } else { topic.topic.to_string() };
        told.push(format!("{id} {}", topic.partitions.len()));
        for partition in &topic.partitions {
            let records = partition.records.as_ref().expect("records are never null").to_vec();
            let aborted = partition.aborted_transactions.as_ref().map(|aborted| {
                aborted.iter().map(|aborted| (aborted.producer_id.0, aborted.first_offset)).collect::<Vec<_>>()
            });
            let (leader, diverging) = (&partition.current_leader, &partition.diverging_epoch);
            told.push(format!(
                "{} {:?} {:?}",
                partition.preferred_read_replica.0,
                (leader.leader_id.0, leader.leader_epoch),
                (diverging.epoch, diverging.end_offset)
            ));
            told.push(format!(
                "{} {} {} {} {} {aborted:?} {records:?}",
                partition.partition_index,
                partition.error_code,
                partition.high_watermark,
                partition.last_stable_offset,
                partition.log_start_offset
            ));
        }
    }
    told
}

proptest! {
    #[test]
    fn produce_requests_decode_as_the_library_encodes_them(
        (version, request) in (3..=13_i16).prop_flat_map(|version| (Just(version), produce_request(version)))
    ) {
        let encoded = encode_with_library(&request, version);
        prop_assert_eq!(ProduceRequest::decode(encoded, version), Ok(request));
    }

    #[test]
    fn every_cut_of_a_produce_request_is_refused(
        (version, request) in (3..=13_i16).prop_flat_map(|version| (Just(version), produce_request(version))),
        cut in any::<prop::sample::Index>(),
    ) {
        let encoded = encode_with_library(&request, version);
        let length = cut.index(encoded.len());
        prop_assert!(ProduceRequest::decode(encoded.slice(..length), version).is_err());
    }

    #[test]
    fn fetch_responses_are_what_the_library_decodes(
        version in 4..=18_i16, correlation_id in any::<i32>(), response in fetch_response()
    ) {
        let expected = told(&response, version);
        let pieces = response.encode(correlation_id, version).expect("it is small").into_pieces();
        let encoded: Vec<u8> = pieces.flat_map(|piece| piece.as_slice().expect("memory").to_vec()).collect();
        let mut encoded = Bytes::from(encoded);
        prop_assert_eq!(usize::try_from(encoded.get_i32()), Ok(encoded.len()));
        prop_assert_eq!(encoded.get_i32(), correlation_id);
        if version >= 12 {
            prop_assert_eq!(encoded.get_u8(), 0);
        }
        let body = encoded.clone();
        let decoded = LibraryFetchResponse::decode(&mut encoded, version).expect("a legal response");
        prop_assert!(encoded.is_empty());
        prop_assert_eq!(told_by_library(&decoded, version), expected);
        let mut again = BytesMut::new();
        decoded.encode(&mut again, version).expect("a legal response");
        prop_assert_eq!(again.freeze(), body);
    }
}

#[test]
fn records_are_not_copied() {
    let frame = encode_with_library(
        &ProduceRequest {
            transactional_id: None,
            acks: 1,
            timeout_ms: 1,
            topics: vec![TopicData {
                name: StrBytes::from_static_str("topic"),
                id: Uuid::nil(),
                partitions: vec![PartitionData { index: 0, records: Some(Bytes::from_static(&[7; 100])) }],
            }],
        },
        9,
    );
    let range = frame.as_ptr_range();
    let request = ProduceRequest::decode(frame.clone(), 9).expect("legal");
    let records = request.topics[0].partitions[0].records.as_ref().expect("records");
    assert!(range.contains(&records.as_ptr()));
}
