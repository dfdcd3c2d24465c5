//! DeleteTopics, by name or by id.

use std::{collections::HashMap, rc::Rc};

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DeleteTopicsRequest, DeleteTopicsResponse, TopicName, delete_topics_request::DeleteTopicState,
        delete_topics_response::DeletableTopicResult,
    },
    protocol::StrBytes,
};
use millrace_engine::engine::Topic;
use uuid::Uuid;

use crate::{
    broker::{
        context::{Allowed, Authorization, Context, Operation, ResourceType, TopicRef},
        table::{Api, OnDisconnect},
    },
    errors::{ApiError, UNKNOWN_PARTITION, not_found},
    wire::api::{
        Call, call,
        shape::{INT32, STRING, STRINGS, Shape, UUID, array},
    },
};

const SHAPE: Shape = &[array(&[STRING, UUID]).since(6), STRINGS.until(5), INT32];

/// DeleteTopics.
pub(crate) static API: Api = Api {
    key: ApiKey::DeleteTopics,
    version_min: 1,
    version_max: 6,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Cluster, Operation::Delete),
        (ResourceType::Topic, Operation::Delete),
        (ResourceType::Topic, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DeleteTopicsRequest>) -> DeleteTopicsResponse {
    let by_name = |name| DeleteTopicState::default().with_name(Some(name));
    let wanted = call.body.topic_names.into_iter().map(by_name).chain(call.body.topics);
    let wanted: Vec<_> = wanted.map(|topic| (topic.name, topic.topic_id)).collect();
    let mut counts: HashMap<&(Option<TopicName>, Uuid), usize> = HashMap::new();
    for key in &wanted {
        *counts.entry(key).or_default() += 1;
    }
    let mut responses = Vec::with_capacity(counts.len());
    for key in &wanted {
        // Taken out: the first of several stands for all of them.
        let Some(count) = counts.remove(key) else {
            continue;
        };
        responses.push(delete(&context, key, count).await);
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

async fn delete(context: &Context, (name, id): &(Option<TopicName>, Uuid), count: usize) -> DeletableTopicResult {
    let result = DeletableTopicResult::default().with_name(name.clone()).with_topic_id(*id);
    let found = match find(context, name.as_ref(), *id) {
        Ok(_) if count > 1 && name.is_some() => {
            Err(ApiError::new(ResponseError::InvalidRequest, "Duplicate topic name."))
        }
        Ok(_) if count > 1 => Err(ApiError::new(ResponseError::InvalidRequest, "Duplicate topic id.")),
        found => found,
    };
    let outcome = match found {
        Ok(topic) => context.administration().delete_topic(topic.id).await.map(|()| topic),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(topic) => {
            tracing::info!(topic = %topic.name, id = %topic.id, "topic deleted");
            result.with_name(Some(TopicName(StrBytes::from_string(topic.name.clone())))).with_topic_id(topic.id)
        }
        Err(error) => {
            let shown = match error.error {
                ResponseError::TopicAuthorizationFailed if name.is_none() => {
                    context.topic(*id, Operation::Describe).ok()
                }
                _ => None,
            };
            let name = shown.map(|topic| TopicName(StrBytes::from_string(topic.name.clone()))).or(name.clone());
            result.with_name(name).with_error_code(error.code()).with_error_message(error.message)
        }
    }
}

/// Who may delete all topics may delete this one.
fn may_delete(context: &Context, topic: TopicRef<'_>) -> Result<Allowed<Rc<Topic>>, ResponseError> {
    match context.cluster(Operation::Delete) {
        Ok(all) => all.get(topic),
        Err(_) => context.topic(topic, Operation::Delete),
    }
}

/// The topic that shall go. Who may not delete it is told its name only if that may be shown.
fn find(context: &Context, name: Option<&TopicName>, id: Uuid) -> Result<Allowed<Rc<Topic>>, ApiError> {
    match name {
        Some(_) if !id.is_nil() => {
            let reason = "You may not specify both topic name and topic id.";
            Err(ApiError::new(ResponseError::InvalidRequest, reason))
        }
        None if id.is_nil() => {
            let reason = "Neither topic name nor id were specified.";
            Err(ApiError::new(ResponseError::InvalidRequest, reason))
        }
        Some(name) => may_delete(context, name.into()).map_err(|error| not_found(error, UNKNOWN_PARTITION)),
        None => {
            may_delete(context, id.into()).map_err(|error| not_found(error, "This server does not host this topic ID."))
        }
    }
}
