//! DeleteTopics, by name or by id.

use std::collections::HashMap;

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DeleteTopicsRequest, DeleteTopicsResponse, TopicName, delete_topics_request::DeleteTopicState,
        delete_topics_response::DeletableTopicResult,
    },
    protocol::StrBytes,
};
use uuid::Uuid;

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        errors::{ApiError, topic_error},
        table::{Api, OnDisconnect},
    },
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
        Ok((name, id)) => match context.engine().delete_topic(id).await {
            Ok(()) => Ok((name, id)),
            Err(error) => Err(topic_error(&error)),
        },
        Err(error) => Err(error),
    };
    match outcome {
        Ok((name, id)) => {
            tracing::info!(topic = %name, %id, "topic deleted");
            result.with_name(Some(TopicName(StrBytes::from_string(name)))).with_topic_id(id)
        }
        Err(error) => result.with_error_code(error.code()).with_error_message(error.message),
    }
}

fn find(context: &Context, name: Option<&TopicName>, id: Uuid) -> Result<(String, Uuid), ApiError> {
    let topics = context.engine().topics();
    let topic = match name {
        Some(_) if !id.is_nil() => {
            let reason = "You may not specify both topic name and topic id.";
            return Err(ApiError::new(ResponseError::InvalidRequest, reason));
        }
        None if id.is_nil() => {
            let reason = "Neither topic name nor id were specified.";
            return Err(ApiError::new(ResponseError::InvalidRequest, reason));
        }
        Some(name) => topics.by_name.get(name.as_str()).ok_or(ApiError::new(
            ResponseError::UnknownTopicOrPartition,
            "This server does not host this topic-partition.",
        ))?,
        None => topics
            .by_id
            .get(&id)
            .ok_or(ApiError::new(ResponseError::UnknownTopicId, "This server does not host this topic ID."))?,
    };
    Ok((topic.name.clone(), topic.id))
}
