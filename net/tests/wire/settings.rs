//! Settings of the broker and of groups: changed while the node runs, shown with where they come from, kept.

use kafka_protocol::{
    messages::{
        AlterConfigsRequest, ConsumerGroupHeartbeatRequest, DescribeConfigsRequest, GroupId,
        IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, TopicName, alter_configs_request,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::DescribeConfigsResourceResult,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    },
    protocol::{Decodable, StrBytes},
};

use crate::{
    client::Client,
    node::{Node, config},
};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const GROUP: i8 = 32;

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A request to change one setting.
fn alteration(
    (kind, resource): (i8, &str),
    operation: i8,
    (name, value): (&str, &str),
) -> IncrementalAlterConfigsRequest {
    let change = AlterableConfig::default()
        .with_name(text(name))
        .with_config_operation(operation)
        .with_value((operation != DELETE).then(|| text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(resource))
        .with_configs(vec![change]);
    IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
}

/// Changes one setting; answers the error code and its message.
fn alter(
    client: &mut Client,
    (kind, resource): (i8, &str),
    operation: i8,
    (name, value): (&str, &str),
) -> (i16, String) {
    let mut response = client.call(1, &alteration((kind, resource), operation, (name, value)));
    let answer = response.responses.remove(0);
    (answer.error_code, answer.error_message.map(|message| message.to_string()).unwrap_or_default())
}

fn describe_all(client: &mut Client, kind: i8, resource: &str) -> Vec<DescribeConfigsResourceResult> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(resource))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true);
    client.call(4, &request).results.remove(0).configs
}

/// Value, source, whether it is read-only, and the sources of the synonyms.
fn describe(client: &mut Client, kind: i8, resource: &str, name: &str) -> (String, i8, bool, Vec<i8>) {
    let all = describe_all(client, kind, resource);
    let found = all.into_iter().find(|config| &*config.name == name).expect("a known setting");
    let synonyms = found.synonyms.iter().map(|synonym| synonym.source).collect();
    (found.value.map_or("null".into(), |value| value.to_string()), found.config_source, found.read_only, synonyms)
}

#[test]
fn a_node_s_settings_count_more_than_those_of_all_brokers() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let is = |value: &str, source, synonyms: &[i8]| (value.to_string(), source, false, synonyms.to_vec());
    let [ms, hours] = ["log.retention.ms", "log.retention.hours"];
    assert_eq!(describe(&mut client, BROKER, "1", ms), is("null", 5, &[]));
    assert_eq!(describe(&mut client, BROKER, "1", hours), ("168".into(), 5, true, vec![5]));
    assert_eq!(alter(&mut client, (BROKER, "1"), SET, (ms, "5000")).0, 0);
    assert_eq!(describe(&mut client, TOPIC, "topic", "retention.ms"), is("5000", 2, &[2, 5]));
    assert_eq!(alter(&mut client, (BROKER, ""), SET, (ms, "6000")).0, 0);
    assert_eq!(describe(&mut client, TOPIC, "topic", "retention.ms"), is("5000", 2, &[2, 3, 5]));
    assert_eq!(describe(&mut client, BROKER, "1", ms), is("5000", 2, &[2, 3, 5]));
    let of_all: Vec<_> =
        describe_all(&mut client, BROKER, "").into_iter().map(|c| (c.name, c.value, c.config_source)).collect();
    assert_eq!(of_all, [(text(ms), Some(text("6000")), 3)]);
    assert_eq!(alter(&mut client, (BROKER, "1"), DELETE, (ms, "")).0, 0);
    drop(client);
    node.stop();

    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    assert_eq!(describe(&mut client, TOPIC, "topic", "retention.ms"), is("6000", 3, &[3, 5]));
    assert_eq!(alter(&mut client, (BROKER, ""), APPEND, ("log.cleanup.policy", "compact")).0, 0);
    assert_eq!(describe(&mut client, TOPIC, "topic", "cleanup.policy"), is("delete,compact", 3, &[3, 5]));

    // AlterConfigs sets back what it does not name, at its own level only.
    assert_eq!(alter(&mut client, (BROKER, "1"), SET, ("max.connections", "77")).0, 0);
    let setting = alter_configs_request::AlterableConfig::default()
        .with_name(text("log.cleaner.backoff.ms"))
        .with_value(Some(text("1000")));
    let resource = alter_configs_request::AlterConfigsResource::default()
        .with_resource_type(BROKER)
        .with_resource_name(text(""))
        .with_configs(vec![setting]);
    let response = client.call(2, &AlterConfigsRequest::default().with_resources(vec![resource]));
    assert_eq!(response.responses[0].error_code, 0);
    assert_eq!(describe(&mut client, TOPIC, "topic", "retention.ms"), is("604800000", 5, &[]));
    assert_eq!(describe(&mut client, BROKER, "1", "log.cleaner.backoff.ms"), is("1000", 3, &[3, 5]));
    assert_eq!(describe(&mut client, BROKER, "1", "max.connections"), is("77", 2, &[2, 5]));
}

#[test]
fn settings_that_cannot_change_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    let mut refused = |level, name, value| alter(&mut client, (BROKER, level), SET, (name, value));
    for (name, value, code, reason) in [
        ("num.partitions", "3", 42, "Cannot update these configs dynamically: [num.partitions]"),
        ("log.retention.hours", "3", 42, "Cannot update these configs dynamically: [log.retention.hours]"),
        ("log.retention.ms", "x", 42, "invalid value x for log.retention.ms: not an integer of 64 bits"),
        ("num.io.threads", "3", 40, "num.io.threads would change nothing: there is one thread per shard"),
        ("no.such.setting", "3", 40, "Unknown broker config name: no.such.setting"),
        ("message.max.bytes", "-1", 42, "must be at least 0"),
    ] {
        for level in ["", "1"] {
            let (told, message) = refused(level, name, value);
            assert!(told == code && message.contains(reason), "{name}: {told} {message}");
        }
    }
    assert_eq!(refused("2", "log.retention.ms", "5000").0, 42, "another broker");
}

#[test]
fn a_group_has_settings_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let group = (GROUP, "group");
    let heartbeat = "consumer.heartbeat.interval.ms";
    assert_eq!(describe(&mut client, GROUP, "group", heartbeat), ("5000".into(), 5, false, vec![5]));
    assert_eq!(alter(&mut client, group, SET, (heartbeat, "6000")).0, 0);
    assert_eq!(describe(&mut client, GROUP, "group", heartbeat), ("6000".into(), 8, false, vec![8, 5]));
    assert_eq!(alter(&mut client, group, SET, (heartbeat, "60000")).0, 40);
    assert_eq!(alter(&mut client, group, SET, ("streams.session.timeout.ms", "50000")).0, 40);
    assert_eq!(alter(&mut client, group, SET, ("nonsense", "1")).0, 40);
    assert_eq!(alter(&mut client, (GROUP, ""), SET, (heartbeat, "6000")).0, 42);
    let interval = "group.consumer.assignment.interval.ms";
    assert_eq!(alter(&mut client, (BROKER, ""), SET, (interval, "500")).0, 0);
    let shown = describe(&mut client, GROUP, "group", "consumer.assignment.interval.ms");
    assert_eq!(shown, ("500".into(), 3, false, vec![3, 5]));

    let mut told = |group: &str| {
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text("member"))
            .with_rebalance_timeout_ms(10_000)
            .with_subscribed_topic_names(Some(vec![TopicName(text("topic"))]))
            .with_topic_partitions(Some(vec![]));
        let response = client.call_coordinator(1, &request, |response| response.error_code);
        (response.error_code, response.heartbeat_interval_ms)
    };
    assert_eq!(told("group"), (0, 6000));
    assert_eq!(told("other"), (0, 5000));
}

/// Each was once checked against what was set before either: both were taken, and the group had a heartbeat interval
/// above its session timeout.
#[test]
fn changes_at_the_same_time_are_checked_with_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.broker_settings.insert("group.consumer.min.session.timeout.ms".into(), "10000".into());
    let node = Node::start(dir.path(), 2, config);
    let mut client = node.client();
    for setting in [("consumer.session.timeout.ms", "12000"), ("consumer.heartbeat.interval.ms", "15000")] {
        client.send(1, &alteration((GROUP, "g"), SET, setting));
    }
    let codes = [(); 2].map(|()| {
        let mut response = client.receive().expect("an answer");
        bytes::Buf::advance(&mut response, 5);
        let response = IncrementalAlterConfigsResponse::decode(&mut response, 1).expect("a legal answer");
        response.responses[0].error_code
    });
    assert_eq!(codes, [0, 40]);
}
