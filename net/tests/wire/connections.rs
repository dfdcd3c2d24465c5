//! How connections behave: order, acknowledgements, what closes them, how a node stops.

use std::io::Write;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, ProduceRequest, RequestHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use crate::{
    client::{batch, fetch_request, produce_request},
    node::{Node, config},
};

fn metadata() -> MetadataRequest {
    MetadataRequest::default().with_topics(None)
}

#[test]
fn replies_leave_in_request_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 4);
    // The first waits for its time to run out; all that follow could be answered at once.
    let mut sent = vec![client.send(12, &fetch_request("topic", 0, 0, 500))];
    for partition in 1..4 {
        sent.push(client.send(9, &produce_request("topic", partition, -1, batch(&[b"value".to_vec()]))));
        sent.push(client.send(12, &metadata()));
    }
    let received: Vec<_> = sent.iter().map(|_| client.receive_correlation_id()).collect();
    assert_eq!(received, sent);
}

#[test]
fn batches_of_one_connection_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let count = 500;
    for number in 0..count {
        client.send(9, &produce_request("topic", 0, -1, batch(&[format!("{number}").into_bytes()])));
    }
    for number in 0..count {
        let mut response = client.receive().expect("a response");
        response.advance(5);
        let response = kafka_protocol::messages::ProduceResponse::decode(&mut response, 9).expect("legal");
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (0, number));
    }
}

#[test]
fn requests_cut_into_single_bytes_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    client.stream().set_nodelay(true).expect("a socket");
    let (bytes, correlation_id) = client.encode(12, &metadata());
    for byte in bytes {
        client.stream().write_all(&[byte]).expect("the node takes it");
    }
    assert_eq!(client.receive_correlation_id(), correlation_id);
}

#[test]
fn acks_zero_gets_no_response() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    client.send(9, &produce_request("topic", 0, 0, batch(&[b"silent".to_vec()])));
    let answered = client.send(12, &metadata());
    assert_eq!(client.receive_correlation_id(), answered);
    assert_eq!(client.produce("topic", 0, &[b"loud".to_vec()]), (0, 1));
}

#[test]
fn acks_that_have_no_meaning_append_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let mut produce = |acks| {
        let response = client.call(9, &produce_request("topic", 0, acks, batch(&[b"value".to_vec()])));
        let partition = &response.responses[0].partition_responses[0];
        (partition.error_code, partition.base_offset)
    };
    assert_eq!([-1, 1, 2, -2, 1].map(&mut produce), [(0, 0), (0, 1), (21, -1), (21, -1), (0, 2)]);
}

#[test]
fn an_error_with_acks_zero_closes_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    client.send(9, &produce_request("nowhere", 0, 0, batch(&[b"lost".to_vec()])));
    assert!(client.is_closed_by_node());
}

#[test]
fn what_cannot_be_understood_closes_only_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let frames: &[&[u8]] = &[
        // Lengths: negative, beyond the limit, too short for a header.
        &[0xff; 4],
        &[0x7f, 0xff, 0xff, 0xff],
        &[0, 0, 0, 7],
        // No such API; a version of Metadata that is not served; a Produce that nobody serves any more.
        &[0, 0, 0, 10, 0, 99, 0, 0, 0, 0, 0, 1, 0xff, 0xff],
        &[0, 0, 0, 10, 0, 3, 0, 99, 0, 0, 0, 1, 0xff, 0xff],
        &[0, 0, 0, 10, 0, 0, 0, 2, 0, 0, 0, 1, 0xff, 0xff],
        // Metadata version 1 of two billion topics.
        &[0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff],
        // A client id that is longer than the frame.
        &[0, 0, 0, 10, 0, 3, 0, 1, 0, 0, 0, 1, 0x7f, 0xff],
    ];
    let mut bystander = node.client();
    for frame in frames {
        let mut client = node.client();
        client.stream().write_all(frame).expect("the node takes it");
        assert!(client.is_closed_by_node(), "{frame:?}");
    }
    bystander.call(12, &metadata());
}

#[test]
fn earlier_requests_are_answered_before_a_damaged_one_closes() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    let (mut bytes, correlation_id) = client.encode(12, &metadata());
    bytes.extend_from_slice(&[0xff; 4]);
    client.stream().write_all(&bytes).expect("the node takes it");
    assert_eq!(client.receive_correlation_id(), correlation_id);
    assert!(client.is_closed_by_node());
}

#[test]
fn unknown_versions_of_api_versions_are_answered_in_version_0() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    let header = RequestHeader::default()
        .with_request_api_key(18)
        .with_request_api_version(77)
        .with_correlation_id(5)
        .with_client_id(Some(StrBytes::from_static_str("newer")));
    let mut frame = bytes::BytesMut::new();
    header.encode(&mut frame, 2).expect("a legal header");
    frame.extend_from_slice(b"who knows");
    let length = u32::try_from(frame.len()).expect("small").to_be_bytes();
    client.stream().write_all(&[&length[..], &frame].concat()).expect("the node takes it");
    let mut response: Bytes = client.receive().expect("a response");
    assert_eq!(response.get_i32(), 5);
    let decoded = ApiVersionsResponse::decode(&mut response, 0).expect("version 0");
    assert!(response.is_empty());
    assert_eq!(decoded.error_code, 35);
    let [own] = decoded.api_keys.as_slice() else {
        panic!("only the range of the API itself");
    };
    assert_eq!((own.api_key, own.min_version, own.max_version), (18, 0, 4));
    // The client goes on with a version that is known.
    let request = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("test"))
        .with_client_software_version(StrBytes::from_static_str("1"));
    assert_eq!(client.call(3, &request).error_code, 0);
}

#[test]
fn a_half_closed_connection_still_gets_its_answers() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let request: ProduceRequest = produce_request("topic", 0, -1, batch(&[b"value".to_vec()]));
    let correlation_id = client.send(9, &request);
    client.stream().shutdown(std::net::Shutdown::Write).expect("a socket");
    assert_eq!(client.receive_correlation_id(), correlation_id);
    assert!(client.is_closed_by_node());
}

#[test]
fn a_node_stops_though_a_fetch_waits() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    client.send(12, &fetch_request("topic", 0, 0, i32::MAX));
    node.stop();
    assert!(client.is_closed_by_node());
}

#[test]
fn what_was_acknowledged_is_fetched_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    // Enough for segments, the tail and several fetches; every value tells its number.
    let value = |number: usize| {
        let mut value = vec![(number % 251) as u8; 10_000];
        value[..8].copy_from_slice(&(number as u64).to_be_bytes());
        value
    };
    let batches = 300;
    for number in 0..batches {
        let values: Vec<_> = (0..10).map(|at| value(number * 10 + at)).collect();
        assert_eq!(client.produce("topic", 0, &values), (0, (number * 10) as i64));
    }
    let read_all = |node: &Node| {
        let mut client = node.client();
        let mut next = 0;
        while next < batches * 10 {
            let response = client.fetch(12, &fetch_request("topic", 0, next as i64, 1000));
            let partition = &response.responses[0].partitions[0];
            assert_eq!(partition.error_code, 0);
            assert_eq!(partition.high_watermark, (batches * 10) as i64);
            let mut records = partition.records.clone().expect("never null");
            assert!(!records.is_empty());
            while !records.is_empty() {
                let base_offset = records.clone().get_u64() as usize;
                let length = 12 + records.slice(8..12).get_u32() as usize;
                let batch = records.split_to(length);
                assert_eq!(base_offset, next);
                for record in millrace_engine::batch::records(&batch).expect("a legal batch") {
                    assert_eq!(record.value.as_deref(), Some(&value(next)[..]));
                    next += 1;
                }
            }
        }
    };
    read_all(&node);
    node.stop();
    let node = Node::start(dir.path(), 2, config());
    read_all(&node);
}

#[test]
fn fetches_of_one_connection_are_answered_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 2);
    for partition in 0..2 {
        assert_eq!(client.produce("topic", partition, &[vec![b'v'; 900_000]]), (0, 0));
    }
    let sent: Vec<_> = (0..200).map(|number| client.send(12, &fetch_request("topic", number % 2, 0, 100))).collect();
    for correlation_id in sent {
        let mut response = client.receive().expect("a response");
        assert!(response.len() > 900_000);
        assert_eq!(response.get_i32(), correlation_id);
    }
}
