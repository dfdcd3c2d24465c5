//! Requests that no good client sends, answered as Kafka answers them.

use std::io::Write;

use bytes::{Buf, Bytes};
use kafka_protocol::{
    messages::{
        ApiVersionsResponse, CreateTopicsRequest, DeleteRecordsRequest, FetchResponse, GroupId, MetadataResponse,
        OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    },
    protocol::{Decodable, HeaderVersion, Request, StrBytes},
};
use millrace_engine::batch::{BatchBuilder, BatchInfo, Codec, Record, verify_crc};
use millrace_net::NetConfig;

use crate::{
    client::{Client, batch, fetch_request, produce_request, topic_name},
    node::{Node, config},
};

const TEXT: StrBytes = StrBytes::from_static_str("@@");

/// Sends a request in which every "@@" is replaced, which no library would encode.
fn call_with<R: Request>(client: &mut Client, version: i16, request: &R, instead: [u8; 2]) -> R::Response {
    let (mut bytes, _) = client.encode(version, request);
    let places: Vec<_> = (0..bytes.len() - 1).filter(|&at| bytes[at..].starts_with(b"@@")).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at..at + 2].copy_from_slice(&instead));
    client.stream().write_all(&bytes).expect("the node takes it");
    let mut response = client.receive().expect("a response");
    response.advance(if R::Response::header_version(version) >= 1 { 5 } else { 4 });
    R::Response::decode(&mut response, version).expect("a legal response")
}

#[test]
fn a_client_id_that_is_not_utf8_is_no_reason_to_hang_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    let frame = b"\0\0\0\x0c\0\x12\0\0\0\0\0\x07\0\x02\x5a\xe4";
    client.stream().write_all(frame).expect("the node takes it");
    let mut response = client.receive().expect("a response");
    assert_eq!(response.get_i32(), 7);
    let versions = ApiVersionsResponse::decode(&mut response, 0).expect("a legal response");
    assert_eq!(versions.error_code, 0);
}

#[test]
fn names_that_are_not_utf8_are_refused_by_what_they_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    let retention = CreatableTopicConfig::default().with_name(StrBytes::from_static_str("retention.ms"));
    let topics = [
        (TEXT, None, 17),
        (StrBytes::from_static_str("configured"), Some(retention.with_value(Some(TEXT))), 40),
        (StrBytes::from_static_str("named"), Some(CreatableTopicConfig::default().with_name(TEXT)), 40),
    ];
    for (name, config, expected) in topics {
        let topic = CreatableTopic::default()
            .with_name(name.into())
            .with_num_partitions(1)
            .with_replication_factor(-1)
            .with_configs(config.into_iter().collect());
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000);
        for version in [4, 7] {
            let response = call_with(&mut client, version, &request, [0x5a, 0xe4]);
            assert_eq!(response.topics[0].error_code, expected);
        }
    }
}

/// A few bytes of a frame must not become a multiple of what a frame may take.
#[test]
fn text_may_not_grow_beyond_the_largest_frame() {
    const NAME_BYTES: usize = 32_767;
    let dir = tempfile::tempdir().expect("a folder");
    let config = NetConfig { max_frame_bytes: 1 << 20, ..config() };
    let node = Node::start(dir.path(), 1, config);
    let ask = |names: usize| {
        let name = [&(NAME_BYTES as u16).to_be_bytes()[..], &[0xff; NAME_BYTES]].concat();
        let metadata =
            [&b"\0\x03\0\x04\0\0\0\x07\xff\xff"[..], &(names as u32).to_be_bytes(), &name.repeat(names), b"\0"];
        let metadata = metadata.concat();
        let mut client = node.client();
        client.stream().write_all(&(metadata.len() as u32).to_be_bytes()).expect("the node takes it");
        client.stream().write_all(&metadata).expect("the node takes it");
        client
    };
    for names in [8, 1] {
        let mut response = ask(names).receive().expect("a response");
        response.advance(4);
        let topics = MetadataResponse::decode(&mut response, 4).expect("a legal response").topics;
        assert!(topics.len() == 1 && topics[0].error_code == 17, "they are the same, and no topic can be called so");
    }
    assert!(ask(9).is_closed_by_node());
}

/// A client that commits binary metadata was cut off, and tried for ever.
#[test]
fn metadata_that_is_not_utf8_is_committed_with_replacements() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("t", 1);
    let group = GroupId(StrBytes::from_static_str("binary"));
    for version in 2..=9 {
        let partition =
            OffsetCommitRequestPartition::default().with_committed_offset(5).with_committed_metadata(Some(TEXT));
        let topic = OffsetCommitRequestTopic::default().with_name(topic_name("t")).with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(group.clone())
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let response = call_with(&mut client, version, &request, [0xff, 0xfe]);
        assert_eq!(response.topics[0].partitions[0].error_code, 0, "version {version}");
    }
    let topic = OffsetFetchRequestTopics::default().with_name(topic_name("t")).with_partition_indexes(vec![0]);
    let asked = OffsetFetchRequestGroup::default().with_group_id(group).with_member_epoch(-1);
    let asked = asked.with_topics(Some(vec![topic]));
    let response = client.call(9, &OffsetFetchRequest::default().with_groups(vec![asked]));
    let partition = &response.groups[0].topics[0].partitions[0];
    assert_eq!((partition.committed_offset, partition.metadata.as_deref()), (5, Some("\u{fffd}\u{fffd}")));
}

/// Kafka looks at nothing else before it.
#[test]
fn sync_group_must_say_its_protocol_from_version_5_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    let text = |text| Some(StrBytes::from_static_str(text));
    for (protocol_type, protocol_name, expected) in [
        (None, None, 23),
        (text("consumer"), None, 23),
        (None, text("range"), 23),
        (text("consumer"), text("range"), 25),
    ] {
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(StrBytes::from_static_str("g")))
            .with_member_id(StrBytes::from_static_str("nobody"))
            .with_protocol_type(protocol_type.clone())
            .with_protocol_name(protocol_name.clone());
        let code = client.call(5, &request).error_code;
        assert_eq!(code, expected, "{protocol_type:?} {protocol_name:?}");
    }
}

fn record(timestamp: i64) -> Record {
    Record { offset: 0, timestamp, key: None, value: Some(Bytes::from_static(b"value")), headers: vec![] }
}

fn one(codec: Codec, timestamp: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec, 0);
    builder.push(&record(timestamp));
    builder.finish()
}

const NOW_MS: i64 = 1_700_000_000_000;

#[test]
fn zstd_needs_version_7_of_produce() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    client.create_topic("t", 1);
    for version in 3..=9 {
        let request = produce_request("t", 0, -1, one(Codec::Zstd, NOW_MS).into());
        let response = client.call(version, &request);
        let expected = if version < 7 { 76 } else { 0 };
        assert_eq!(response.responses[0].partition_responses[0].error_code, expected, "version {version}");
    }
}

/// Kafka's table, but for the delete horizon, which only compaction sets here.
#[test]
fn attributes_that_are_not_a_producers_are_cleared() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    client.create_topic("t", 1);
    for (offset, (sent, kept)) in [(0x08, 0), (0x40, 0), (0x80, 0x80), (0xffc8, 0)].into_iter().enumerate() {
        let mut bytes = one(Codec::None, NOW_MS);
        bytes[21..23].copy_from_slice(&u16::to_be_bytes(sent));
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        let response = client.call(9, &produce_request("t", 0, -1, bytes.into()));
        assert_eq!(response.responses[0].partition_responses[0].error_code, 0, "{sent:#x}");
        let fetched: FetchResponse = client.fetch(12, &fetch_request("t", 0, offset as i64, 5000));
        let batch = fetched.responses[0].partitions[0].records.clone().expect("records");
        let info = BatchInfo::parse(&batch).expect("a batch");
        assert_eq!((info.attributes, info.max_timestamp), (kept, NOW_MS), "{sent:#x}");
        assert!(verify_crc(&batch));
    }
}

#[test]
fn refused_records_come_with_the_first_offset_of_the_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("t", 2);
    for partition in 0..2 {
        for _ in 0..4 {
            assert_eq!(client.produce("t", partition, &[b"value".to_vec()]).0, 0);
        }
        let asked = DeleteRecordsPartition::default().with_partition_index(partition).with_offset(3);
        let topic = DeleteRecordsTopic::default().with_name(topic_name("t")).with_partitions(vec![asked]);
        let deleted = client.call(2, &DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000));
        assert_eq!(deleted.topics[0].partitions[0].low_watermark, 3);
    }
    let good = batch(&[b"value".to_vec()]);
    let far = one(Codec::None, 4_000_000_000_000);
    let mut spoilt = good.to_vec();
    spoilt[65] ^= 1;
    let mut old = good.to_vec();
    old[16] = 1;
    let mut sequenced = BatchBuilder::new(Codec::None, 0).producer(7, 0, 0);
    sequenced.push(&record(NOW_MS));
    let mut skips = BatchBuilder::new(Codec::None, 0).producer(7, 0, 9);
    skips.push(&record(NOW_MS));
    let cases = [
        ("a good one", good.clone(), (0, 3)),
        ("a time too far ahead", far.into(), (32, 3)),
        ("a wrong checksum", spoilt.into(), (2, -1)),
        ("magic 1", old.into(), (87, -1)),
        ("two batches", [&good[..], &good].concat().into(), (87, -1)),
        ("bytes that are no batch behind it", [&good[..], b"\0"].concat().into(), (0, 3)),
        ("a sequence to begin with", sequenced.finish().into(), (0, 3)),
        ("a sequence out of order", skips.finish().into(), (45, 3)),
    ];
    for (what, batch, expected) in cases {
        for partition in 0..2 {
            let response = client.call(9, &produce_request("t", partition, -1, batch.clone()));
            let answer = &response.responses[0].partition_responses[0];
            assert_eq!((answer.error_code, answer.log_start_offset), expected, "{what}");
        }
    }
}
