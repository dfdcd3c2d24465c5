//! Share groups over the wire: records go to one member at a time, come back when they are given back, and what was
//! acknowledged outlives the node.

use std::collections::BTreeMap;

use kafka_protocol::{
    ResponseError,
    messages::{
        DeleteGroupsRequest, DescribeShareGroupOffsetsRequest, GroupId, IncrementalAlterConfigsRequest,
        ListGroupsRequest, OffsetFetchRequest, ShareAcknowledgeRequest, ShareFetchRequest, ShareFetchResponse,
        ShareGroupHeartbeatRequest,
        describe_share_group_offsets_request::DescribeShareGroupOffsetsRequestGroup,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        metadata_request::MetadataRequestTopic,
        offset_fetch_request::OffsetFetchRequestGroup,
        share_acknowledge_request::{self, AcknowledgePartition, AcknowledgeTopic},
        share_fetch_request::{FetchPartition, FetchTopic},
        share_fetch_response::PartitionData,
    },
    protocol::{Decodable, StrBytes},
};
use millrace_net::NetConfig;
use uuid::Uuid;

use crate::{
    client::{Client, topic_name},
    node::{Node, config},
    txn_offsets::{Producer, transactional},
};

const GROUP: &str = "shared";
const ACCEPT: i8 = 1;
const RELEASE: i8 = 2;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group() -> GroupId {
    GroupId(text(GROUP))
}

/// Locks that end soon, so that a test may wait for that.
fn short_locks() -> NetConfig {
    let settings = ["group.share.min.record.lock.duration.ms", "group.share.record.lock.duration.ms"];
    let broker_settings: BTreeMap<_, _> = settings.map(|name| (name.to_owned(), "1000".to_owned())).into();
    NetConfig { broker_settings, ..config() }
}

/// A topic that the group reads from its start; answers its id.
fn prepare(client: &mut Client, values: usize) -> Uuid {
    client.create_topic("topic", 1);
    let values: Vec<_> = (0..values).map(|at| format!("value {at}").into_bytes()).collect();
    assert_eq!(client.produce("topic", 0, &values).0, 0);
    set(client, "share.auto.offset.reset", "earliest");
    topic_id(client)
}

/// Sets a setting of the group.
fn set(client: &mut Client, name: &str, value: &str) {
    let config =
        AlterableConfig::default().with_name(text(name)).with_config_operation(0).with_value(Some(text(value)));
    let resource = AlterConfigsResource::default().with_resource_type(32).with_resource_name(text(GROUP));
    let resource = resource.with_configs(vec![config]);
    let altered = client.call(1, &IncrementalAlterConfigsRequest::default().with_resources(vec![resource]));
    assert_eq!(altered.responses[0].error_code, 0);
}

fn topic_id(client: &mut Client) -> Uuid {
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name("topic")));
    let request = kafka_protocol::messages::MetadataRequest::default().with_topics(Some(vec![topic]));
    client.call(12, &request).topics[0].topic_id
}

fn beat(client: &mut Client, member: &str, epoch: i32) -> i16 {
    let names = (epoch == 0).then(|| vec![topic_name("topic")]);
    let request = ShareGroupHeartbeatRequest::default()
        .with_group_id(group())
        .with_member_id(text(member))
        .with_member_epoch(epoch)
        .with_subscribed_topic_names(names);
    client.call_coordinator(1, &request, |response| response.error_code).error_code
}

fn fetch_request(member: &str, topic: Uuid, epoch: i32, wait_ms: i32) -> ShareFetchRequest {
    let partition = FetchPartition::default().with_partition_index(0);
    let topic = FetchTopic::default().with_topic_id(topic).with_partitions(vec![partition]);
    ShareFetchRequest::default()
        .with_group_id(Some(group()))
        .with_member_id(Some(text(member)))
        .with_share_session_epoch(epoch)
        .with_max_wait_ms(wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_max_records(100)
        .with_batch_size(100)
        .with_topics(if epoch == 0 { vec![topic] } else { Vec::new() })
}

fn fetch(client: &mut Client, member: &str, topic: Uuid, epoch: i32, wait_ms: i32) -> PartitionData {
    fetched(client.call(1, &fetch_request(member, topic, epoch, wait_ms)))
}

fn fetched(response: ShareFetchResponse) -> PartitionData {
    assert_eq!(response.error_code, 0, "{:?}", response.error_message);
    response.responses.into_iter().next().map_or_else(PartitionData::default, |mut topic| topic.partitions.remove(0))
}

fn acquired(partition: &PartitionData) -> Vec<(i64, i64, i16)> {
    assert_eq!(partition.error_code, 0);
    let acquired = partition.acquired_records.iter();
    acquired.map(|range| (range.first_offset, range.last_offset, range.delivery_count)).collect()
}

fn acknowledge(client: &mut Client, member: &str, topic: Uuid, epoch: i32, (first, last, kind): (i64, i64, i8)) -> i16 {
    let batch = share_acknowledge_request::AcknowledgementBatch::default()
        .with_first_offset(first)
        .with_last_offset(last)
        .with_acknowledge_types(vec![kind]);
    let partition = AcknowledgePartition::default().with_partition_index(0).with_acknowledgement_batches(vec![batch]);
    let topic = AcknowledgeTopic::default().with_topic_id(topic).with_partitions(vec![partition]);
    let request = ShareAcknowledgeRequest::default()
        .with_group_id(Some(group()))
        .with_member_id(Some(text(member)))
        .with_share_session_epoch(epoch)
        .with_topics(vec![topic]);
    let response = client.call(1, &request);
    assert_eq!(response.error_code, 0);
    response.responses[0].partitions[0].error_code
}

fn start_offset(client: &mut Client) -> i64 {
    let wanted = DescribeShareGroupOffsetsRequestGroup::default().with_group_id(group()).with_topics(None);
    let response = client.call(0, &DescribeShareGroupOffsetsRequest::default().with_groups(vec![wanted]));
    response.groups[0].topics[0].partitions[0].start_offset
}

#[test]
fn accepted_records_do_not_come_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = config();
    let node = Node::start(dir.path(), 2, config.clone());
    let mut client = node.client();
    let topic = prepare(&mut client, 10);
    assert_eq!(beat(&mut client, "a", 0), 0);
    assert_eq!(acquired(&fetch(&mut client, "a", topic, 0, 60_000)), [(0, 9, 1)]);
    assert_eq!(acknowledge(&mut client, "a", topic, 1, (0, 4, ACCEPT)), 0);
    assert_eq!(acknowledge(&mut client, "a", topic, 2, (7, 7, ACCEPT)), 0);
    assert_eq!(acknowledge(&mut client, "a", topic, 3, (6, 8, ACCEPT)), ResponseError::InvalidRecordState.code());
    node.stop();

    let node = Node::start(dir.path(), 3, config);
    let mut client = node.client();
    let found = acquired(&fetch(&mut client, "b", topic, 0, 60_000));
    let ranges: Vec<_> = found.iter().map(|(first, last, _)| (*first, *last)).collect();
    assert_eq!(ranges, [(5, 6), (8, 9)]);
    assert_eq!(acknowledge(&mut client, "b", topic, 1, (5, 9, ACCEPT)), ResponseError::InvalidRecordState.code());
    assert_eq!(acknowledge(&mut client, "b", topic, 2, (5, 6, ACCEPT)), 0);
    assert_eq!(acknowledge(&mut client, "b", topic, 3, (8, 9, ACCEPT)), 0);
    assert!(start_offset(&mut client) >= 5);
    assert_eq!(acquired(&fetch(&mut client, "b", topic, 4, 0)), []);
}

#[test]
fn a_waiting_fetch_gets_what_others_give_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let (mut first, mut second) = (node.client(), node.client());
    let topic = prepare(&mut first, 3);
    assert_eq!(beat(&mut first, "a", 0), 0);
    assert_eq!(acquired(&fetch(&mut first, "a", topic, 0, 60_000)), [(0, 2, 1)]);
    let waiting = std::thread::spawn(move || acquired(&fetch(&mut second, "b", topic, 0, 60_000)));
    assert_eq!(acknowledge(&mut first, "a", topic, 1, (1, 1, RELEASE)), 0);
    assert_eq!(waiting.join().unwrap(), [(1, 1, 2)]);

    // a connection that is closed gives back all that its session has
    let mut third = node.client();
    let waiting = std::thread::spawn(move || acquired(&fetch(&mut third, "c", topic, 0, 60_000)));
    drop(first);
    let found = waiting.join().unwrap();
    assert!(found.iter().all(|(_, _, count)| *count >= 2) && !found.is_empty(), "{found:?}");
}

#[test]
fn a_waiting_fetch_gets_what_is_produced_and_what_locks_set_free() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, short_locks());
    let (mut first, mut second) = (node.client(), node.client());
    let topic = prepare(&mut first, 1);
    assert_eq!(beat(&mut first, "a", 0), 0);
    assert_eq!(acquired(&fetch(&mut first, "a", topic, 0, 60_000)), [(0, 0, 1)]);
    // that lock ends soon, and those from here on outlast what is done under them
    set(&mut first, "share.record.lock.duration.ms", "30000");
    // nobody acknowledges: the lock ends
    assert_eq!(acquired(&fetch(&mut second, "b", topic, 0, 60_000)), [(0, 0, 2)]);
    assert_eq!(acknowledge(&mut first, "a", topic, 1, (0, 0, ACCEPT)), ResponseError::InvalidRecordState.code());
    assert_eq!(acknowledge(&mut second, "b", topic, 1, (0, 0, ACCEPT)), 0);
    let waiting = std::thread::spawn(move || acquired(&fetch(&mut second, "b", topic, 2, 60_000)));
    assert_eq!(first.produce("topic", 0, &[b"late".to_vec()]).0, 0);
    assert_eq!(waiting.join().unwrap(), [(1, 1, 1)]);
}

#[test]
fn share_groups_are_listed_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    prepare(&mut client, 1);
    assert_eq!(beat(&mut client, "a", 0), 0);
    let ask = OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(None);
    let committed = client.call(8, &OffsetFetchRequest::default().with_groups(vec![ask])).groups.remove(0);
    assert_eq!((committed.error_code, committed.topics.len()), (0, 0), "it commits nothing");
    let listed = client.call(5, &ListGroupsRequest::default()).groups;
    assert_eq!((&*listed[0].group_type, &*listed[0].group_state), ("share", "Stable"));
    let mut delete = || {
        let request = DeleteGroupsRequest::default().with_groups_names(vec![group()]);
        client.call(2, &request).results[0].error_code
    };
    assert_eq!(delete(), ResponseError::NonEmptyGroup.code());
    assert_eq!(beat(&mut node.client(), "a", -1), 0);
    assert_eq!(delete(), 0);
    assert_eq!(delete(), ResponseError::GroupIdNotFound.code());
}

/// A fetch whose bytes were there, but not in whole batches, looked for them again and again until its time was over.
#[test]
fn a_member_waits_for_as_many_bytes_as_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut producer = node.client();
    let topic = prepare(&mut producer, 1);
    let mut member = node.client();
    assert_eq!(beat(&mut member, "member", 0), 0);
    let long_ms = 600_000; // the client does not wait that long
    let request = fetch_request("member", topic, 0, long_ms).with_min_bytes(1_500_000).with_max_bytes(3 << 20);
    member.send(1, &request);
    for _ in 0..6 {
        assert_eq!(producer.produce("topic", 0, &[vec![b'x'; 800_000]]).0, 0);
    }
    let mut response = member.receive().expect("an answer").split_off(5);
    let first = fetched(ShareFetchResponse::decode(&mut response, 1).expect("a legal response"));
    let taken = acquired(&first).last().expect("records").1;
    assert!(taken >= 2, "two large batches are as much, it got {taken}");
    let request = fetch_request("member", topic, 1, long_ms).with_min_bytes(1_000_000);
    let second = fetched(member.call(1, &request));
    assert_eq!(acquired(&second), [(taken + 1, taken + 1, 1)], "one batch fits");
}

#[test]
fn a_group_that_reads_committed_records_gets_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, transactional());
    let mut client = node.client();
    let topic = prepare(&mut client, 1);
    set(&mut client, "share.isolation.level", "read_committed");
    let mut producer = Producer::new(&mut client, "id");
    for is_committed in [false, true] {
        producer.write(&mut client, "topic", "of a transaction");
        producer.end(&mut client, is_committed);
    }
    producer.write(&mut client, "topic", "of an open one");
    assert_eq!(beat(&mut client, "a", 0), 0);
    let offsets = |found: PartitionData| -> Vec<i64> {
        acquired(&found).into_iter().flat_map(|(first, last, _)| first..=last).collect()
    };
    // 1 is aborted, and 2 and 4 are markers, which clients know to leave out
    assert_eq!(offsets(fetch(&mut client, "a", topic, 0, 60_000)), [0, 2, 3, 4]);
    assert_eq!(offsets(fetch(&mut client, "a", topic, 1, 0)), Vec::<i64>::new());
    producer.end(&mut client, true);
    assert_eq!(offsets(fetch(&mut client, "a", topic, 2, 60_000)), [5, 6]);
}
