//! What is not records survives kill -9 as well: committed offsets, deleted records, settings, producer ids.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use kafka_protocol::{
    messages::{
        CreatePartitionsRequest, DeleteRecordsRequest, DescribeConfigsRequest, GroupId, IncrementalAlterConfigsRequest,
        OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, TopicName,
        create_partitions_request::CreatePartitionsTopic,
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestTopic,
        offset_fetch_response::OffsetFetchResponseTopic,
    },
    protocol::{Request, StrBytes},
};
use millrace_bench::client;

use crate::{
    broker::{Broker, PATIENCE, rounds},
    writer::Writer,
};

const TOPIC_RESOURCE: i8 = 2;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic(name: &str) -> TopicName {
    TopicName(text(name))
}

fn commit(broker: &Broker, group: &str, offsets: &[i64]) {
    commit_to(broker, group, "state", offsets);
}

/// Commits offsets as a consumer that assigns partitions to itself does.
pub(crate) fn commit_to(broker: &Broker, group: &str, name: &str, offsets: &[i64]) {
    let partitions = offsets.iter().zip(0..).map(|(&offset, partition)| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(offset)
            .with_committed_metadata(Some(text("where I am")))
    });
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![
            OffsetCommitRequestTopic::default().with_name(topic(name)).with_partitions(partitions.collect()),
        ]);
    let codes = |response: &OffsetCommitResponse| -> Vec<i16> {
        response.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code).collect()
    };
    let response = call_coordinator(broker, 7, &request, |response| codes(response)[0]);
    assert_eq!(codes(&response), vec![0; offsets.len()], "{}", broker.log());
}

fn committed(broker: &Broker, group: &str, partitions: i32) -> Vec<i64> {
    let asked =
        OffsetFetchRequestTopic::default().with_name(topic("state")).with_partition_indexes((0..partitions).collect());
    let topics = fetch_offsets(broker, group, Some(vec![asked]));
    topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.committed_offset).collect()
}

/// Topics that a group has committed offsets of.
pub(crate) fn committed_topics(broker: &Broker, group: &str) -> Vec<String> {
    fetch_offsets(broker, group, None).iter().map(|topic| topic.name.to_string()).collect()
}

fn fetch_offsets(
    broker: &Broker,
    group: &str,
    asked: Option<Vec<OffsetFetchRequestTopic>>,
) -> Vec<OffsetFetchResponseTopic> {
    let request = OffsetFetchRequest::default().with_group_id(GroupId(text(group))).with_topics(asked);
    let response = call_coordinator(broker, 5, &request, |response| response.error_code);
    assert_eq!(response.error_code, 0, "{}", broker.log());
    response.topics
}

/// Asks a coordinator, again for as long as it is being loaded or its topic is being made. `code` finds the error in an
/// answer.
fn call_coordinator<R: Request>(
    broker: &Broker,
    version: i16,
    request: &R,
    code: impl Fn(&R::Response) -> i16,
) -> R::Response {
    let start = Instant::now();
    loop {
        let response = broker.connect().call(version, request).unwrap();
        // COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR
        if !(14..=16).contains(&code(&response)) || start.elapsed() >= PATIENCE {
            return response;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn committed_offsets_survive_kill_9() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic("state", 3);
    assert_eq!(committed(&broker, "nobody", 3), [-1, -1, -1]);
    for round in 1..=i64::from(rounds(4)) {
        for group in 0..5 {
            commit(&broker, &format!("group-{group}"), &[round, round * 2, round * 1_000 + group]);
        }
        broker.kill();
        broker.restart();
        for group in 0..5 {
            let expected = [round, round * 2, round * 1_000 + group];
            assert_eq!(committed(&broker, &format!("group-{group}"), 3), expected, "{}", broker.log());
        }
    }
}

#[test]
fn deleted_records_stay_deleted_after_kill_9() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic("state", 1);
    let mut writer = Writer::new(broker.address, "state", 1, 1, 0);
    writer.write(100);
    for before in [1, 7, 200, 300] {
        let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(before);
        let asked = DeleteRecordsTopic::default().with_name(topic("state")).with_partitions(vec![partition]);
        let request = DeleteRecordsRequest::default().with_topics(vec![asked]).with_timeout_ms(30_000);
        let response = broker.connect().call(1, &request).unwrap();
        let answer = &response.topics[0].partitions[0];
        assert_eq!((answer.error_code, answer.low_watermark), (0, before));
        broker.kill();
        broker.restart();
        let mut connection = broker.connect();
        let ends: Vec<i64> = [-2, -1]
            .into_iter()
            .flat_map(|at| client::list_offsets(&mut connection, "state", &[0], at).unwrap())
            .collect();
        assert_eq!(ends, [before, 300]);
    }
}

#[test]
fn settings_and_added_partitions_survive_kill_9() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic("state", 1);
    for round in 1..=i32::try_from(rounds(3)).unwrap() {
        let set = AlterableConfig::default()
            .with_name(text("retention.ms"))
            .with_value(Some(text(&format!("{round}000000"))));
        let resource = AlterConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(text("state"))
            .with_configs(vec![set]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let response = broker.connect().call(1, &request).unwrap();
        assert_eq!(response.responses[0].error_code, 0);
        let grown =
            CreatePartitionsTopic::default().with_name(topic("state")).with_count(1 + round).with_assignments(None);
        let request = CreatePartitionsRequest::default().with_topics(vec![grown]).with_timeout_ms(30_000);
        let response = broker.connect().call(2, &request).unwrap();
        assert_eq!(response.results[0].error_code, 0);
        broker.kill();
        broker.restart();
        assert_eq!(broker.leaders("state").by_partition.len(), 1 + round as usize);
        let asked = DescribeConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(text("state"))
            .with_configuration_keys(Some(vec![text("retention.ms")]));
        let response =
            broker.connect().call(4, &DescribeConfigsRequest::default().with_resources(vec![asked])).unwrap();
        let found = response.results[0].configs[0].value.as_ref().map(|value| value.as_str().to_owned());
        assert_eq!(found, Some(format!("{round}000000")));
    }
}

#[test]
fn producer_ids_are_never_given_out_twice() {
    let mut broker = Broker::start("--shards 3");
    let mut seen = BTreeSet::new();
    for _ in 0..rounds(5) {
        for _ in 0..20 {
            let (id, epoch) = client::init_producer_id(&mut broker.connect()).unwrap();
            assert!(id >= 0 && epoch == 0 && seen.insert(id), "{id} was given out before");
        }
        broker.kill();
        broker.restart();
    }
}
