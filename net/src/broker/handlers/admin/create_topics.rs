//! CreateTopics.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    broker::{
        assignment::{self, Possible},
        cluster::{CreatedTopic, Layout, TopicPlan},
        context::{Authorization, Context, Operation, ResourceType},
        settings::{broker, entries},
        table::{Api, OnDisconnect},
    },
    errors::ApiError,
    wire::api::{
        Call, call,
        shape::{BOOL, INT16, INT32, INT32S, STRING, Shape, array},
    },
};
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, CreateTopicsRequest, CreateTopicsResponse,
        create_topics_request::CreatableTopic,
        create_topics_response::{CreatableTopicConfigs, CreatableTopicResult},
    },
};

const TOPIC: Shape = &[STRING, INT32, INT16, array(&[INT32, INT32S]), array(&[STRING, STRING])];
const SHAPE: Shape = &[array(TOPIC), INT32, BOOL];

/// CreateTopics.
pub(crate) static API: Api = Api {
    key: ApiKey::CreateTopics,
    version_min: 2,
    version_max: 7,
    advertised_min: 2,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Cluster, Operation::Create),
        (ResourceType::Topic, Operation::Create),
        (ResourceType::Topic, Operation::DescribeConfigs),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

/// The name of the topic that a Kafka cluster keeps its own state in; nobody may create it.
const CLUSTER_METADATA: &str = "__cluster_metadata";

async fn handle(context: Context, call: Call<CreateTopicsRequest>) -> CreateTopicsResponse {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for topic in &call.body.topics {
        *counts.entry(&topic.name).or_default() += 1;
    }
    let mut answered = HashSet::new();
    let mut topics = Vec::with_capacity(counts.len());
    for topic in &call.body.topics {
        if !answered.insert(&topic.name) {
            continue;
        }
        let outcome = if counts[topic.name.as_str()] > 1 {
            Err(ApiError::new(ResponseError::InvalidRequest, "Duplicate topic name."))
        } else {
            create(&context, call.body.validate_only, topic).await
        };
        topics.push(match outcome {
            Ok(created) => describe(&context, call.version(), topic, &created),
            Err(error) => CreatableTopicResult::default()
                .with_name(topic.name.clone())
                .with_error_code(error.code())
                .with_error_message(error.message),
        });
    }
    CreateTopicsResponse::default().with_topics(topics)
}

async fn create(context: &Context, validate_only: bool, topic: &CreatableTopic) -> Result<CreatedTopic, ApiError> {
    if topic.name.as_str() == CLUSTER_METADATA {
        let reason = format!("Creation of internal topic {CLUSTER_METADATA} is prohibited.");
        return Err(ApiError::new(ResponseError::InvalidRequest, reason));
    }
    context.create_topic(&topic.name).map_err(|error| ApiError::new(error, "Authorization failed."))?;
    let layout = layout(context, topic)?;
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let value = config.value.as_ref().ok_or_else(|| {
            let reason = format!("Null value not supported for topic configs: {}", config.name);
            ApiError::new(ResponseError::InvalidConfig, reason)
        })?;
        configs.insert(config.name.to_string(), value.to_string());
    }
    let plan = TopicPlan { name: topic.name.to_string(), layout, configs };
    let created = context.administration().create_topic(plan, validate_only).await?;
    if !validate_only {
        tracing::info!(topic = %*topic.name, id = %created.id, partitions = created.partitions, "topic created");
    }
    Ok(created)
}

/// The partitions, from the count or the manual assignment.
fn layout(context: &Context, topic: &CreatableTopic) -> Result<Layout, ApiError> {
    let refuse = |error, reason: &str| Err(ApiError::new(error, reason));
    if !topic.assignments.is_empty() {
        const REQUEST: ResponseError = ResponseError::InvalidRequest;
        if topic.replication_factor != -1 {
            let reason = "A manual partition assignment was specified, but replication factor was not set to -1.";
            return refuse(REQUEST, reason);
        }
        if topic.num_partitions != -1 {
            let reason = "A manual partition assignment was specified, but numPartitions was not set to -1.";
            return refuse(REQUEST, reason);
        }
        let possible = Possible::of(&context.view());
        let assignments = topic.assignments.iter();
        let assignments = assignments.map(|one| (one.partition_index, one.broker_ids.as_slice()));
        return assignment::check_topic(assignments, &possible).map(Layout::Assigned);
    }
    let replication_factor = match topic.replication_factor {
        -1 => None,
        factor if factor < 1 => {
            let reason = "Replication factor must be larger than 0, or -1 to use the default value.";
            return refuse(ResponseError::InvalidReplicationFactor, reason);
        }
        factor if factor > 1 && !context.view().has_epochs() => {
            let reason = format!("Replication factor {factor} cannot be reached: a partition has one replica.");
            return refuse(ResponseError::InvalidReplicationFactor, &reason);
        }
        factor => Some(factor),
    };
    let partitions = match topic.num_partitions {
        -1 => context.config().num_partitions,
        count if count < 1 => {
            let reason = "Number of partitions was set to an invalid non-positive value.";
            return refuse(ResponseError::InvalidPartitions, reason);
        }
        count => count,
    };
    Ok(Layout::Automatic { partitions, replication_factor })
}

fn describe(context: &Context, version: i16, topic: &CreatableTopic, created: &CreatedTopic) -> CreatableTopicResult {
    let result = CreatableTopicResult::default().with_name(topic.name.clone()).with_topic_id(created.id);
    let result = result.with_error_message(None);
    if version < 5 {
        return result;
    }
    if let Err(error) = context.topic_name(&topic.name, Operation::DescribeConfigs) {
        let secret = result.with_num_partitions(-1).with_replication_factor(-1).with_configs(None);
        return secret.with_topic_config_error_code(error.code());
    }
    let dynamic = context.engine().broker_settings();
    let settings = entries::of_topic(&created.overrides, broker::inherited(context, &dynamic));
    let configs = settings.into_iter().map(|setting| {
        CreatableTopicConfigs::default()
            .with_name(setting.name)
            .with_value(setting.value)
            .with_config_source(setting.source as i8)
    });
    result
        .with_num_partitions(created.partitions)
        .with_replication_factor(created.replication_factor)
        .with_configs(Some(configs.collect()))
}
