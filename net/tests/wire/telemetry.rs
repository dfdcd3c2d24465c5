//! Metrics that clients push, and the subscriptions that ask them to (KIP-714).

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        AlterConfigsRequest, ApiVersionsRequest, DescribeConfigsRequest, GetTelemetrySubscriptionsRequest,
        GetTelemetrySubscriptionsResponse, IncrementalAlterConfigsRequest, ListConfigResourcesRequest,
        PushTelemetryRequest, alter_configs_request,
        describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    },
    protocol::StrBytes,
};
use uuid::Uuid;

use crate::{
    client::Client,
    metrics::{config_with_metrics, page},
    node::{Node, config},
};

const CLIENT_METRICS: i8 = 16;

const INVALID_CONFIG: i16 = 40;
const INVALID_REQUEST: i16 = 42;
const UNSUPPORTED_COMPRESSION_TYPE: i16 = 76;
const INVALID_RECORD: i16 = 87;
const THROTTLING_QUOTA_EXCEEDED: i16 = 89;
const UNKNOWN_SUBSCRIPTION_ID: i16 = 117;
const TELEMETRY_TOO_LARGE: i16 = 118;

/// What a consumer of librdkafka pushed, after decompression.
const PUSHED: &[u8] = include_bytes!("../../src/broker/telemetry/testdata/librdkafka-2.16.0.otlp");

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

/// Sets (`Some`) or deletes settings of a subscription; the error code.
fn alter(client: &mut Client, name: &'static str, settings: &[(&'static str, Option<&'static str>)]) -> i16 {
    let setting = |(name, value): &(&'static str, Option<&'static str>)| {
        let operation = if value.is_some() { 0 } else { 1 };
        AlterableConfig::default().with_name(text(name)).with_config_operation(operation).with_value(value.map(text))
    };
    let resource = AlterConfigsResource::default()
        .with_resource_type(CLIENT_METRICS)
        .with_resource_name(text(name))
        .with_configs(settings.iter().map(setting).collect());
    client.call(1, &IncrementalAlterConfigsRequest::default().with_resources(vec![resource])).responses[0].error_code
}

/// All settings of a subscription with their sources.
fn describe(client: &mut Client, name: &'static str) -> Vec<(String, String, i8)> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(CLIENT_METRICS)
        .with_resource_name(text(name))
        .with_configuration_keys(None);
    let response = client.call(4, &DescribeConfigsRequest::default().with_resources(vec![resource]));
    assert_eq!(response.results[0].error_code, 0);
    let shown = response.results[0].configs.iter();
    shown.map(|c| (c.name.to_string(), c.value.clone().expect("a value").to_string(), c.config_source)).collect()
}

/// Names of subscriptions, by either version.
fn list(client: &mut Client, version: i16) -> Vec<String> {
    let mut request = ListConfigResourcesRequest::default();
    if version > 0 {
        request.resource_types = vec![CLIENT_METRICS];
    }
    let response = client.call(version, &request);
    assert_eq!(response.error_code, 0);
    response.config_resources.iter().map(|resource| resource.resource_name.to_string()).collect()
}

fn get(client: &mut Client, id: Uuid) -> GetTelemetrySubscriptionsResponse {
    client.call(0, &GetTelemetrySubscriptionsRequest::default().with_client_instance_id(id))
}

fn push_request(granted: &GetTelemetrySubscriptionsResponse) -> PushTelemetryRequest {
    PushTelemetryRequest::default()
        .with_client_instance_id(granted.client_instance_id)
        .with_subscription_id(granted.subscription_id)
        .with_metrics(Bytes::from_static(PUSHED))
}

fn push(client: &mut Client, request: &PushTelemetryRequest) -> i16 {
    client.call(0, request).error_code
}

#[test]
fn subscriptions_are_kept_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = config_with_metrics();
    let node = Node::start(dir.path(), 2, config);
    let mut client = node.client();
    let settings = [("metrics", Some(" a.b , c,c ")), ("interval.ms", Some("100")), ("match", Some("client_id=x.*"))];
    assert_eq!(alter(&mut client, "one/two", &settings), 0);
    assert_eq!(alter(&mut client, "other", &[("metrics", Some("*"))]), 0);
    for (setting, code) in [
        (("interval.ms", Some("99")), INVALID_REQUEST),
        (("interval", Some("100")), INVALID_REQUEST),
        (("interval.ms", Some("x")), INVALID_CONFIG),
        (("match", Some("name=x")), INVALID_CONFIG),
        (("metrics", Some("a,,b")), INVALID_CONFIG),
    ] {
        assert_eq!(alter(&mut client, "other", &[setting]), code, "{setting:?}");
    }
    assert_eq!(alter(&mut client, "", &[("metrics", Some("*"))]), INVALID_REQUEST);
    drop(client);
    node.stop();

    let (config, _) = config_with_metrics();
    let node = Node::start(dir.path(), 1, config);
    let mut client = node.client();
    let shown = |settings: [(&str, &str, i8); 3]| settings.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c)).to_vec();
    let expected = shown([("interval.ms", "100", 7), ("match", "client_id=x.*", 7), ("metrics", "a.b,c", 7)]);
    assert_eq!(describe(&mut client, "one/two"), expected);
    let expected = shown([("interval.ms", "300000", 5), ("match", "", 5), ("metrics", "*", 7)]);
    assert_eq!(describe(&mut client, "other"), expected);
    assert_eq!(list(&mut client, 0), ["one/two", "other"]);
    assert_eq!(list(&mut client, 1), ["one/two", "other"]);
    // AlterConfigs replaces all settings.
    let interval = alter_configs_request::AlterableConfig::default().with_name(text("interval.ms"));
    let resource = alter_configs_request::AlterConfigsResource::default()
        .with_resource_type(CLIENT_METRICS)
        .with_resource_name(text("other"))
        .with_configs(vec![interval.with_value(Some(text("500")))]);
    let altered = client.call(1, &AlterConfigsRequest::default().with_resources(vec![resource]));
    assert_eq!(altered.responses[0].error_code, 0);
    let expected = shown([("interval.ms", "500", 7), ("match", "", 5), ("metrics", "", 5)]);
    assert_eq!(describe(&mut client, "other"), expected);
    assert_eq!(alter(&mut client, "other", &[("interval.ms", None), ("metrics", None), ("match", None)]), 0);
    assert_eq!(list(&mut client, 1), ["one/two"]);
}

#[test]
fn what_is_pushed_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (config, address) = config_with_metrics();
    let node = Node::start(dir.path(), 2, config);
    let mut client = node.client();
    assert_eq!(alter(&mut client, "all", &[("metrics", Some("*")), ("interval.ms", Some("3600000"))]), 0);
    assert_eq!(alter(&mut client, "few", &[("metrics", Some("x")), ("match", Some("client_id=nobody"))]), 0);
    let granted = get(&mut client, Uuid::nil());
    assert_eq!((granted.error_code, granted.push_interval_ms), (0, 300_000), "the shortest interval counts");
    assert_eq!(granted.requested_metrics, [text("*")]);
    assert_eq!(granted.accepted_compression_types, [4, 3, 1, 2]);
    assert_eq!(granted.telemetry_max_bytes, 1 << 20);
    assert!(granted.delta_temporality && !granted.client_instance_id.is_nil());

    assert_eq!(push(&mut client, &push_request(&granted)), 0);
    let page = page(address);
    let samples: Vec<_> = page.lines().filter(|line| line.starts_with("org_apache_kafka_consumer_")).collect();
    assert_eq!(samples.len(), 15, "{page}");
    assert!(samples.iter().all(|sample| sample.contains("{client_id=\"test\",client_instance_id=\"")), "{samples:?}");
    assert!(page.contains("\nmillrace_client_series 15\n") && page.contains("\nmillrace_client_instances 1\n"));

    assert_eq!(push(&mut client, &push_request(&granted)), THROTTLING_QUOTA_EXCEEDED);
    assert_eq!(get(&mut client, granted.client_instance_id).error_code, THROTTLING_QUOTA_EXCEEDED);
    let last = push_request(&granted).with_terminating(true);
    assert_eq!(push(&mut client, &last), 0);
    assert_eq!(push(&mut client, &last), INVALID_REQUEST);
}

#[test]
fn bad_pushes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = config_with_metrics();
    let node = Node::start(dir.path(), 2, config);
    let refused = |change: &dyn Fn(PushTelemetryRequest) -> PushTelemetryRequest| {
        let mut client = node.client();
        let granted = get(&mut client, Uuid::nil());
        push(&mut client, &change(push_request(&granted)))
    };
    assert_eq!(refused(&|push| push), 0);
    assert_eq!(refused(&|push| push.with_client_instance_id(Uuid::nil())), INVALID_REQUEST);
    assert_eq!(refused(&|push| push.with_client_instance_id(Uuid::from_u128(1))), INVALID_REQUEST);
    assert_eq!(refused(&|push| push.with_subscription_id(1)), UNKNOWN_SUBSCRIPTION_ID);
    assert_eq!(refused(&|push| push.with_compression_type(5)), UNSUPPORTED_COMPRESSION_TYPE);
    assert_eq!(refused(&|push| push.with_compression_type(-1)), UNSUPPORTED_COMPRESSION_TYPE);
    assert_eq!(refused(&|push| push.with_metrics(vec![0; (1 << 20) + 1].into())), TELEMETRY_TOO_LARGE);
    assert_eq!(refused(&|push| push.with_metrics(Bytes::from_static(b"\x0a\x05x"))), INVALID_RECORD);
    assert_eq!(refused(&|push| push.with_compression_type(4)), INVALID_RECORD, "it is not compressed");
    assert_eq!(refused(&|push| push.with_metrics(Bytes::new())), 0);
    // a gzip file of 2 MiB of zeroes
    let bomb = include_bytes!("testdata/zeroes.gz");
    let bomb = |push: PushTelemetryRequest| push.with_compression_type(1).with_metrics(Bytes::from_static(bomb));
    assert_eq!(refused(&bomb), TELEMETRY_TOO_LARGE);
}

#[test]
fn a_changed_subscription_must_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = config_with_metrics();
    let node = Node::start(dir.path(), 2, config);
    let mut client = node.client();
    let granted = get(&mut client, Uuid::nil());
    assert!(granted.requested_metrics.is_empty(), "nobody has asked for anything");
    let settings = [("metrics", Some("org.apache.kafka.consumer.")), ("interval.ms", Some("100"))];
    assert_eq!(alter(&mut client, "all", &settings), 0);
    assert_eq!(push(&mut client, &push_request(&granted)), UNKNOWN_SUBSCRIPTION_ID);
    let changed = get(&mut client, granted.client_instance_id);
    assert_eq!((changed.error_code, changed.client_instance_id), (0, granted.client_instance_id));
    assert_eq!(changed.requested_metrics, [text("org.apache.kafka.consumer.")]);
    // The refused push began an interval.
    let mut pushed = THROTTLING_QUOTA_EXCEEDED;
    while pushed == THROTTLING_QUOTA_EXCEEDED {
        std::thread::sleep(Duration::from_millis(20));
        pushed = push(&mut client, &push_request(&changed));
    }
    assert_eq!(pushed, 0);
}

#[test]
fn without_a_page_nobody_is_asked_to_push() {
    let dir = tempfile::tempdir().unwrap();
    let lists = |node: &Node| {
        let versions = node.client().call(
            3,
            &ApiVersionsRequest::default().with_client_software_name(text("t")).with_client_software_version(text("1")),
        );
        versions.api_keys.iter().filter(|api| [71, 72].contains(&api.api_key)).count()
    };
    let node = Node::start(dir.path(), 1, config());
    assert_eq!(lists(&node), 0);
    let mut client = node.client();
    client.send(0, &GetTelemetrySubscriptionsRequest::default());
    assert!(client.is_closed_by_node());
    // subscriptions can be made all the same
    assert_eq!(alter(&mut node.client(), "all", &[("metrics", Some("*"))]), 0);
    node.stop();
    let (config, _) = config_with_metrics();
    let node = Node::start(dir.path(), 1, config);
    assert_eq!(lists(&node), 2);
    assert_eq!(get(&mut node.client(), Uuid::nil()).requested_metrics, [text("*")]);
}
