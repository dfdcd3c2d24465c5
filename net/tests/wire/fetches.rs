//! What a fetch waits for: its smallest number of bytes, wherever they lie, and nothing less.

use std::time::{Duration, Instant};

use kafka_protocol::messages::{
    DeleteRecordsRequest, FetchRequest,
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
};

use crate::{
    client::{Client, fetch_request, topic_name},
    node::{Node, config},
};

/// Nobody waits that long.
const LONG_MS: i32 = 55_000;

/// Produces one batch of about that size; answers its offset.
fn produce(client: &mut Client, bytes: usize) -> i64 {
    let (error, offset) = client.produce("topic", 0, &[vec![b'x'; bytes]]);
    assert_eq!(error, 0);
    offset
}

fn fetch_from(offset: i64, min_bytes: i32, max_wait_ms: i32) -> FetchRequest {
    fetch_request("topic", 0, offset, max_wait_ms).with_min_bytes(min_bytes)
}

/// Sends a fetch on a connection of its own.
fn send(node: &Node, request: &FetchRequest) -> Client {
    let mut client = node.client();
    client.send(12, request);
    client
}

/// The high watermark when the fetch was answered: tells how long it waited.
fn high_watermark_at_answer(client: &mut Client) -> i64 {
    use kafka_protocol::{messages::FetchResponse, protocol::Decodable};
    let mut response = client.receive().expect("a response").split_off(5);
    let response = FetchResponse::decode(&mut response, 12).expect("a legal response");
    let partition = &response.responses[0].partitions[0];
    assert_eq!(partition.error_code, 0);
    assert!(partition.records.as_ref().is_some_and(|records| !records.is_empty()));
    partition.high_watermark
}

/// Below what was in segments a fetch was answered at once, whatever it had asked for.
#[test]
fn a_fetch_waits_for_its_bytes_wherever_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut producer = node.client();
    producer.create_topic("topic", 1);
    for _ in 0..12 {
        produce(&mut producer, 800_000);
    }
    let mut waiting = [0, 6, 11].map(|offset| (offset, send(&node, &fetch_from(offset, 15_000_000, LONG_MS))));
    while produce(&mut producer, 800_000) < 40 {}
    for (offset, client) in &mut waiting {
        let end = high_watermark_at_answer(client);
        assert!(end >= *offset + 19, "offset {offset} had less than 15 MB behind it at {end}");
    }
    let little = fetch_from(30, 15_000_000, LONG_MS).with_max_bytes(4_000_000);
    assert_eq!(high_watermark_at_answer(&mut send(&node, &little)), 41, "more than max_bytes is not waited for");
    let began = Instant::now();
    assert_eq!(high_watermark_at_answer(&mut send(&node, &fetch_from(30, 15_000_000, 700))), 41);
    assert!(began.elapsed() >= Duration::from_millis(700), "it waits its time");
}

/// Batches that were brought to segments, and records that were deleted, ended a wait.
#[test]
fn a_fetch_that_waits_is_not_ended_by_what_happens_to_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut producer = node.client();
    producer.create_topic("topic", 1);
    produce(&mut producer, 100_000);
    produce(&mut producer, 100_000);
    let mut waiting = [0, 1].map(|offset| send(&node, &fetch_from(offset, 15_000_000, LONG_MS)));
    while produce(&mut producer, 100_000) < 100 {}
    let delete = |client: &mut Client, offset| {
        let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(offset);
        let topic = DeleteRecordsTopic::default().with_name(topic_name("topic")).with_partitions(vec![partition]);
        let response = client.call(2, &DeleteRecordsRequest::default().with_topics(vec![topic]));
        assert_eq!(response.topics[0].partitions[0].low_watermark, offset);
    };
    delete(&mut producer, 1);
    let [first, second] = &mut waiting;
    let refused = first.receive().expect("an answer at once, as its offset is gone");
    assert!(refused.len() < 1_000, "an error and no records");
    while produce(&mut producer, 100_000) < 160 {}
    let end = high_watermark_at_answer(second);
    assert!(end >= 150, "15 MB were not there at {end}");
}
