//! What requests do, and that every version of every API gets an answer.

use std::io::Write;

use bytes::{Buf, Bytes};
use kafka_protocol::{
    messages::{
        ApiKey, CreatePartitionsRequest, CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
        DescribeConfigsRequest, DescribeLogDirsRequest, DescribeTopicPartitionsRequest, FetchRequest,
        IncrementalAlterConfigsRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, ResponseKind,
        create_partitions_request::CreatePartitionsTopic,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        describe_configs_request::DescribeConfigsResource,
        describe_topic_partitions_request::{Cursor, TopicRequest},
        fetch_request::{FetchPartition, FetchTopic},
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
};
use millrace_engine::batch::{BatchBuilder, Codec, Record};
use millrace_net::{api_table, fuzz};

use crate::{
    client::{Client, batch, fetch_request, produce_request, topic_name},
    metrics::config_with_metrics,
    node::{Node, config},
};

#[test]
fn every_version_of_every_api_is_answered() {
    answers_every_sample("request");
}

/// Kafka reads any bytes as text: a client whose strings are not UTF-8 was cut off instead, for whatever it asked.
#[test]
fn every_version_of_every_api_is_answered_whose_text_is_not_utf8() {
    answers_every_sample("text");
}

/// A node that is alone closes the connection of who asks for it.
const ONLY_IN_CLUSTERS: ApiKey = ApiKey::UnregisterBroker;

fn answers_every_sample(target: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, _) = config_with_metrics();
    let node = Node::start(dir.path(), 2, config);
    let requests = fuzz::targets().iter().find(|found| found.name == target).expect("a target");
    let mut answered = Vec::new();
    for frame in (requests.seeds)() {
        let [key, version] = [&frame[0..2], &frame[2..4]].map(|mut field| field.get_i16());
        let api = ApiKey::try_from(key).expect("a known key");
        if api == ONLY_IN_CLUSTERS {
            continue;
        }
        let mut client = node.client();
        let length = u32::try_from(frame.len()).expect("small").to_be_bytes();
        client.stream().write_all(&[&length[..], &frame].concat()).expect("the node takes it");
        let mut response = client.receive().unwrap_or_else(|error| panic!("{api:?} {version}: {error}"));
        assert_eq!(response.get_i32(), 7, "the correlation id of the samples");
        if api.response_header_version(version) >= 1 {
            assert_eq!(response.get_u8(), 0);
        }
        answered.push((key, version));
        if matches!(
            (api, version),
            (ApiKey::OffsetCommit | ApiKey::OffsetFetch, 10)
                | (ApiKey::ShareAcknowledge, 2)
                | (ApiKey::TxnOffsetCommit, 6)
                | (ApiKey::DescribeShareGroupOffsets | ApiKey::ReadShareGroupStateSummary, 1)
        ) {
            // The library does not know their layout.
            continue;
        }
        let known = version.min(api.valid_versions().max);
        let decoded = ResponseKind::decode(api, &mut response, known);
        decoded.unwrap_or_else(|error| panic!("{api:?} {version}: {error:#}"));
        // The one field of DescribeLogDirs version 5 that the library does not know.
        let left = if (api, version) == (ApiKey::DescribeLogDirs, 5) { 1 } else { 0 };
        assert_eq!(response.len(), left, "{api:?} {version}");
    }
    let served = api_table().into_iter().filter(|api| api.key != ONLY_IN_CLUSTERS as i16);
    let served: Vec<_> =
        served.flat_map(|api| (api.version_min..=api.version_max).map(move |version| (api.key, version))).collect();
    assert_eq!(answered, served);
}

fn list_offset(client: &mut Client, version: i16, timestamp: i64) -> (i16, i64) {
    let partition = ListOffsetsPartition::default().with_partition_index(0).with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default().with_name(topic_name("topic")).with_partitions(vec![partition]);
    let response = client.call(version, &ListOffsetsRequest::default().with_topics(vec![topic]));
    let partition = &response.topics[0].partitions[0];
    (partition.error_code, partition.offset)
}

#[test]
fn offsets_are_listed_and_records_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let values: Vec<_> = (0..10_u8).map(|value| vec![value]).collect();
    assert_eq!(client.produce("topic", 0, &values), (0, 0));
    for (timestamp, offset) in
        [(-1, 10), (-2, 0), (-3, 9), (-4, 0), (-5, -1), (-6, -1), (1_700_000_000_004, 4), (1_800_000_000_000, -1)]
    {
        assert_eq!(list_offset(&mut client, 11, timestamp), (0, offset), "{timestamp}");
    }
    assert_eq!(list_offset(&mut client, 11, -7), (35, -1));
    assert_eq!(list_offset(&mut client, 6, -3), (35, -1), "newer than the version");

    let delete = |client: &mut Client, offset| {
        let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(offset);
        let topic = DeleteRecordsTopic::default().with_name(topic_name("topic")).with_partitions(vec![partition]);
        let response = client.call(2, &DeleteRecordsRequest::default().with_topics(vec![topic]));
        let partition = &response.topics[0].partitions[0];
        (partition.error_code, partition.low_watermark)
    };
    assert_eq!(delete(&mut client, 4), (0, 4));
    assert_eq!(delete(&mut client, 11), (1, -1));
    assert_eq!(list_offset(&mut client, 11, -2), (0, 4));
    let response = client.fetch(12, &fetch_request("topic", 0, 0, 0));
    assert_eq!(response.responses[0].partitions[0].error_code, 1, "the log starts later");
    assert_eq!(delete(&mut client, -1), (0, 10));
}

#[test]
fn topics_are_created_on_demand_only() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    let ask = |client: &mut Client, name, create| {
        let topic = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(create);
        let response = client.call(12, &request);
        (response.topics[0].error_code, response.topics[0].partitions.len())
    };
    assert_eq!(ask(&mut client, "fresh", false), (3, 0));
    assert_eq!(ask(&mut client, "fresh", true), (0, 1));
    assert_eq!(ask(&mut client, "fresh", false), (0, 1));
    assert_eq!(ask(&mut client, "not legal", true), (17, 0));
    assert_eq!(ask(&mut client, "__consumer_offsets", true), (0, 50), "as the coordinator makes it");
    assert_eq!(ask(&mut client, "__transaction_state", true), (0, 50));

    // What the node keeps there is for nobody else to change.
    assert_eq!(client.produce("__consumer_offsets", 0, &[vec![0]]).0, 17);
    let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(-1);
    let topic = DeleteRecordsTopic::default().with_name(topic_name("__consumer_offsets"));
    let topic = topic.with_partitions(vec![partition]);
    let response = client.call(2, &DeleteRecordsRequest::default().with_topics(vec![topic]));
    assert_eq!(response.topics[0].partitions[0].error_code, 17);
}

#[test]
fn topics_grow_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 2);
    let grow = |client: &mut Client, count| {
        let topic =
            CreatePartitionsTopic::default().with_name(topic_name("topic")).with_count(count).with_assignments(None);
        client.call(3, &CreatePartitionsRequest::default().with_topics(vec![topic])).results[0].error_code
    };
    assert_eq!(grow(&mut client, 1), 37);
    assert_eq!(grow(&mut client, 5), 0);
    assert_eq!(client.produce("topic", 4, &[b"new".to_vec()]), (0, 0));
    let sizes = client.call(4, &DescribeLogDirsRequest::default().with_topics(None));
    assert_eq!(sizes.results[0].topics[0].partitions.len(), 5);

    let delete = DeleteTopicsRequest::default().with_topic_names(vec![topic_name("topic")]);
    assert_eq!(client.call(5, &delete).responses[0].error_code, 0);
    assert_eq!(client.call(5, &delete).responses[0].error_code, 3);
    assert_eq!(client.produce("topic", 0, &[b"late".to_vec()]).0, 3);
}

#[test]
fn settings_are_altered_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let [topic, retention, policy] = ["topic", "retention.ms", "cleanup.policy"].map(StrBytes::from_static_str);
    let change = |name: &StrBytes, operation, value: Option<&'static str>| {
        AlterableConfig::default()
            .with_name(name.clone())
            .with_config_operation(operation)
            .with_value(value.map(StrBytes::from_static_str))
    };
    let alter = |client: &mut Client, changes, validate_only| {
        let resource = AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(topic.clone())
            .with_configs(changes);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        client.call(1, &request.with_validate_only(validate_only)).responses[0].error_code
    };
    let describe = |client: &mut Client, name: &StrBytes| {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(topic.clone())
            .with_configuration_keys(Some(vec![name.clone()]));
        let request = DescribeConfigsRequest::default()
            .with_resources(vec![resource])
            .with_include_documentation(true)
            .with_include_synonyms(true);
        let response = client.call(4, &request);
        let setting = &response.results[0].configs[0];
        assert!(setting.documentation.as_ref().is_some_and(|text| !text.is_empty()));
        (setting.value.as_ref().expect("never null").to_string(), setting.config_source)
    };
    assert_eq!(alter(&mut client, vec![change(&retention, 0, Some("5000"))], true), 0);
    assert_eq!(describe(&mut client, &retention), ("604800000".to_string(), 5), "it was only checked");
    assert_eq!(alter(&mut client, vec![change(&retention, 0, Some("5000"))], false), 0);
    assert_eq!(describe(&mut client, &retention), ("5000".to_string(), 1));
    assert_eq!(alter(&mut client, vec![change(&policy, 2, Some("compact"))], false), 0);
    assert_eq!(describe(&mut client, &policy), ("delete,compact".to_string(), 1));
    assert_eq!(alter(&mut client, vec![change(&policy, 3, Some("delete"))], false), 0);
    assert_eq!(describe(&mut client, &policy), ("compact".to_string(), 1));
    assert_eq!(alter(&mut client, vec![change(&retention, 1, None)], false), 0);
    assert_eq!(describe(&mut client, &retention), ("604800000".to_string(), 5));
    assert_eq!(alter(&mut client, vec![change(&retention, 0, Some("soon"))], false), 40);
    assert_eq!(alter(&mut client, vec![change(&retention, 2, Some("1"))], false), 40);
    let twice = vec![change(&retention, 1, None), change(&retention, 1, None)];
    assert_eq!(alter(&mut client, twice, false), 42);
}

#[test]
fn topics_are_described_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    for (name, partitions) in [("a", 3), ("b", 1), ("c", 4)] {
        client.create_topic(name, partitions);
    }
    let mut cursor: Option<Cursor> = None;
    let mut seen = Vec::new();
    let mut pages = 0;
    loop {
        let request = DescribeTopicPartitionsRequest::default()
            .with_topics(["c", "a", "b"].map(|name| TopicRequest::default().with_name(topic_name(name))).to_vec())
            .with_response_partition_limit(2)
            .with_cursor(cursor.take());
        let response = client.call(0, &request);
        pages += 1;
        for topic in &response.topics {
            let name = topic.name.as_ref().expect("named").to_string();
            seen.extend(topic.partitions.iter().map(|partition| (name.clone(), partition.partition_index)));
        }
        let Some(next) = response.next_cursor else {
            break;
        };
        cursor = Some(Cursor::default().with_topic_name(next.topic_name).with_partition_index(next.partition_index));
    }
    let expected = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1), ("c", 2), ("c", 3)];
    assert_eq!(seen, expected.map(|(name, index)| (name.to_string(), index)));
    assert_eq!(pages, 4);
}

#[test]
fn a_session_tells_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    // One shard: a session lives where its connection does.
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    client.create_topic("topic", 2);
    let partition = |index, offset| {
        FetchPartition::default().with_partition(index).with_fetch_offset(offset).with_partition_max_bytes(1 << 20)
    };
    let request = |id, epoch, partitions: Vec<FetchPartition>| {
        let topic = FetchTopic::default().with_topic(topic_name("topic")).with_partitions(partitions);
        FetchRequest::default()
            .with_max_wait_ms(100)
            .with_min_bytes(1)
            .with_max_bytes(1 << 20)
            .with_session_id(id)
            .with_session_epoch(epoch)
            .with_topics(vec![topic])
    };
    let full = client.fetch(12, &request(0, 0, vec![partition(0, 0), partition(1, 0)]));
    assert_ne!(full.session_id, 0);
    assert_eq!(full.responses[0].partitions.len(), 2);
    let quiet = client.fetch(12, &request(full.session_id, 1, vec![]));
    assert!(quiet.responses.is_empty());
    assert_eq!(client.produce("topic", 1, &[b"news".to_vec()]), (0, 0));
    let news = client.fetch(12, &request(full.session_id, 2, vec![]));
    let [told] = news.responses[0].partitions.as_slice() else {
        panic!("one partition has changed");
    };
    assert_eq!((told.partition_index, told.high_watermark), (1, 1));
    assert_eq!(client.fetch(12, &request(full.session_id, 9, vec![])).error_code, 71);
    assert_eq!(client.fetch(12, &request(full.session_id + 1, 1, vec![])).error_code, 70);
}

#[test]
fn producer_ids_rise_and_batches_of_transactions_need_a_transactional_id() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let ids: Vec<_> = (0..3)
        .map(|_| {
            let response = client.call(5, &InitProducerIdRequest::default().with_transactional_id(None));
            assert_eq!(response.error_code, 0);
            response.producer_id.0
        })
        .collect();
    assert!(ids[0] < ids[1] && ids[1] < ids[2]);

    let record = Record {
        offset: 0,
        timestamp: 1_700_000_000_000,
        key: None,
        value: Some(Bytes::from_static(b"value")),
        headers: vec![],
    };
    let mut transactional = BatchBuilder::new(Codec::None, 0).producer(ids[0], 0, 0).transactional();
    transactional.push(&record);
    let response = client.call(9, &produce_request("topic", 0, -1, transactional.finish().into()));
    assert_ne!(response.responses[0].partition_responses[0].error_code, 0);
}

#[test]
fn records_that_a_compacted_topic_refuses_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    let setting = CreatableTopicConfig::default()
        .with_name(StrBytes::from_static_str("cleanup.policy"))
        .with_value(Some(StrBytes::from_static_str("compact")));
    let topic = CreatableTopic::default()
        .with_name(topic_name("topic"))
        .with_num_partitions(1)
        .with_replication_factor(1)
        .with_configs(vec![setting]);
    let created = client.call(7, &CreateTopicsRequest::default().with_topics(vec![topic]));
    assert_eq!(created.topics[0].error_code, 0);
    let request = produce_request("topic", 0, -1, batch(&[b"a".to_vec(), b"b".to_vec()]));
    for (version, named) in [(7, vec![]), (8, vec![0, 1]), (12, vec![0, 1])] {
        let response = client.call(version, &request);
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!(partition.error_code, 87);
        let errors = partition.record_errors.iter().map(|error| error.batch_index);
        assert_eq!(errors.collect::<Vec<_>>(), named, "version {version}");
    }
}
