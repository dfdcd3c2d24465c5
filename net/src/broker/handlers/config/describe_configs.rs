//! DescribeConfigs: settings of topics, of the broker, of groups and of subscriptions of client metrics.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DescribeConfigsRequest, DescribeConfigsResponse,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym},
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        settings::{
            broker, client_metrics,
            entries::{self, Setting},
            group, resource,
        },
        table::{Api, OnDisconnect},
    },
    errors::{ApiError, check_topic_name},
    wire::api::{
        Call, call,
        shape::{BOOL, INT8, STRING, STRINGS, Shape, array},
    },
};

const SHAPE: Shape = &[array(&[INT8, STRING, STRINGS]), BOOL, BOOL.since(3)];

/// DescribeConfigs.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeConfigs,
    version_min: 1,
    version_max: 4,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Topic, Operation::DescribeConfigs),
        (ResourceType::Group, Operation::DescribeConfigs),
        (ResourceType::Cluster, Operation::DescribeConfigs),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DescribeConfigsRequest>) -> DescribeConfigsResponse {
    let request = &call.body;
    let mut results = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        results.push(match settings(&context, resource) {
            Ok(settings) => {
                let wanted = settings.into_iter().filter(|setting| is_wanted(resource, setting));
                let configs = wanted.map(|setting| describe(request, setting)).collect();
                result.with_error_message(Some(StrBytes::new())).with_configs(configs)
            }
            Err(error) => {
                let message = error.message.clone().unwrap_or_default();
                result.with_error_code(error.code()).with_error_message(Some(message))
            }
        });
        glommio::yield_if_needed().await;
    }
    DescribeConfigsResponse::default().with_results(results)
}

fn settings(context: &Context, resource: &DescribeConfigsResource) -> Result<Vec<Setting>, ApiError> {
    let name = &*resource.resource_name;
    resource::authorize(context, (resource.resource_type, name), Operation::DescribeConfigs)?;
    match resource.resource_type {
        resource::TOPIC => {
            check_topic_name(name)?;
            let topic = context.topic(name, Operation::DescribeConfigs)?;
            let dynamic = context.engine().broker_settings();
            Ok(entries::of_topic(&topic.overrides, broker::inherited(context, &dynamic)))
        }
        resource::BROKER if name.is_empty() => Ok(broker::describe_changed(context)),
        resource::BROKER => {
            resource::check_broker(context, name)?;
            Ok(broker::describe(context))
        }
        resource::GROUP if name.is_empty() => {
            Err(ApiError::new(ResponseError::InvalidRequest, "Group name must not be empty"))
        }
        resource::GROUP => Ok(group::describe(context.engine(), &context.config().broker_settings, name)),
        resource::CLIENT_METRICS if name.is_empty() => {
            Err(ApiError::new(ResponseError::InvalidRequest, "Client metrics subscription name must not be empty"))
        }
        resource::CLIENT_METRICS => Ok(client_metrics::describe(context.engine(), name)),
        other => Err(resource::unknown_type(other)),
    }
}

/// A resource may name the settings it wants; none named, or null, is all.
fn is_wanted(resource: &DescribeConfigsResource, setting: &Setting) -> bool {
    match &resource.configuration_keys {
        Some(wanted) if !wanted.is_empty() => wanted.contains(&setting.name),
        _ => true,
    }
}

fn describe(request: &DescribeConfigsRequest, setting: Setting) -> DescribeConfigsResourceResult {
    let synonyms = setting.levels.into_iter().map(|level| {
        DescribeConfigsSynonym::default()
            .with_name(level.name)
            .with_value(Some(level.value))
            .with_source(level.source as i8)
    });
    let synonyms = if request.include_synonyms { synonyms.collect() } else { Vec::new() };
    DescribeConfigsResourceResult::default()
        .with_name(setting.name)
        .with_value(setting.value)
        .with_read_only(setting.is_read_only)
        .with_config_source(setting.source as i8)
        .with_synonyms(synonyms)
        .with_config_type(entries::wire_kind(setting.kind))
        .with_documentation(request.include_documentation.then_some(setting.documentation))
}
