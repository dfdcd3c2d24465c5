//! ListConfigResources: what has settings (KIP-1142). Version 0 asks for client metrics subscriptions only.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ListConfigResourcesRequest, ListConfigResourcesResponse, list_config_resources_response::ConfigResource,
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        settings::{
            client_metrics,
            resource::{BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP, TOPIC},
        },
        table::{Api, OnDisconnect},
    },
    coordinator::group::KEPT_GROUPS,
    wire::api::{
        Call, call,
        shape::{INT8S, Shape},
    },
};

const SHAPE: Shape = &[INT8S.since(1)];

/// ListConfigResources.
pub(crate) static API: Api = Api {
    key: ApiKey::ListConfigResources,
    version_min: 0,
    version_max: 1,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::DescribeConfigs)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// All types that Kafka knows: topics, brokers, loggers, client metrics, groups.
const TYPES: [i8; 5] = [TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP];

async fn handle(context: Context, call: Call<ListConfigResourcesRequest>) -> ListConfigResourcesResponse {
    let response = ListConfigResourcesResponse::default();
    let topics = match context.cluster(Operation::DescribeConfigs) {
        Ok(topics) => topics,
        Err(error) => return response.with_error_code(error.code()),
    };
    let wanted = if call.version() == 0 { vec![CLIENT_METRICS] } else { call.body.resource_types };
    if wanted.iter().any(|wanted| !TYPES.contains(wanted)) {
        return response.with_error_code(ResponseError::UnsupportedVersion.code());
    }
    let is_wanted = |resource_type| wanted.is_empty() || wanted.contains(&resource_type);
    let resource = |name: String, resource_type| {
        let name = StrBytes::from_string(name);
        ConfigResource::default().with_resource_name(name).with_resource_type(resource_type)
    };
    let mut resources = Vec::new();
    if is_wanted(BROKER) {
        let brokers = context.view().broker_ids();
        resources.extend(brokers.into_iter().map(|broker| resource(broker.0.to_string(), BROKER)));
    }
    if is_wanted(TOPIC) {
        resources.extend(topics.iter().map(|topic| resource(topic.name.clone(), TOPIC)));
    }
    if is_wanted(GROUP) {
        let groups = KEPT_GROUPS.all(context.engine()).into_keys();
        resources.extend(groups.map(|group| resource(group, GROUP)));
    }
    if is_wanted(CLIENT_METRICS) {
        let subscriptions = client_metrics::KEPT.all(context.engine()).into_keys();
        resources.extend(subscriptions.map(|name| resource(name, CLIENT_METRICS)));
    }
    response.with_config_resources(resources)
}
