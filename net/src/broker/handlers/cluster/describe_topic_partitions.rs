//! DescribeTopicPartitions: topics page by page (KIP-966).

use std::collections::BTreeSet;

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, TopicName,
        describe_topic_partitions_response::{
            Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
        },
    },
    protocol::StrBytes,
};
use millrace_engine::{api::TopicPartition, engine::Topic};

use crate::{
    broker::{
        cluster,
        context::{Authorization, Context, Operation, ResourceType},
        settings::broker::RESPONSE_PARTITIONS_MAX,
        table::{Api, OnDisconnect},
    },
    errors::check_topic_name,
    wire::api::{
        Call, call,
        shape::{INT32, STRING, Shape, array, optional},
    },
};

const SHAPE: Shape = &[array(&[STRING]), INT32, optional(&[STRING, INT32])];

/// DescribeTopicPartitions.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeTopicPartitions,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Topic, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

type TopicAnswer = DescribeTopicPartitionsResponseTopic;

async fn handle(context: Context, call: Call<DescribeTopicPartitionsRequest>) -> DescribeTopicPartitionsResponse {
    let request = call.body;
    let response = DescribeTopicPartitionsResponse::default();
    if request.cursor.as_ref().is_some_and(|cursor| cursor.partition_index < 0) {
        let refuse =
            |topic| refuse(&context, topic, ResponseError::InvalidRequest).with_topic_authorized_operations(i32::MIN);
        return response.with_topics(request.topics.into_iter().map(|topic| refuse(topic.name)).collect());
    }
    let topics = context.topics();
    let cursor = request.cursor.as_ref().map(|cursor| (cursor.topic_name.as_str(), cursor.partition_index));
    let start = cursor.map_or("", |(topic, _)| topic);
    let wanted: BTreeSet<&str> = match request.topics.is_empty() {
        true => topics.visible(start, Operation::Describe).map(|topic| topic.inner().name.as_str()).collect(),
        false => request.topics.iter().map(|topic| topic.name.as_str()).filter(|name| *name >= start).collect(),
    };
    let mut left = request.response_partition_limit.clamp(1, RESPONSE_PARTITIONS_MAX);
    let mut answers = Vec::new();
    for name in wanted {
        let topic = match topics.get(name, Operation::Describe) {
            Ok(topic) => topic,
            Err(error) => {
                let error = match check_topic_name(name) {
                    Err(illegal) if error == ResponseError::UnknownTopicOrPartition => illegal.error,
                    _ => error,
                };
                answers.push(refuse(&context, topic_name(name), error));
                continue;
            }
        };
        let first = cursor.filter(|(topic, _)| *topic == name).map_or(0, |(_, index)| index);
        if left == 0 {
            return response.with_topics(answers).with_next_cursor(Some(next_cursor(name, first)));
        }
        let end = topic.partitions.min(first.saturating_add(left));
        answers.push(describe(&context, &topic, first, end));
        left -= (end - first).max(0);
        if end < topic.partitions && end >= first {
            return response.with_topics(answers).with_next_cursor(Some(next_cursor(name, end)));
        }
        glommio::yield_if_needed().await;
    }
    response.with_topics(answers).with_next_cursor(None)
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_string()))
}

fn next_cursor(topic: &str, partition: i32) -> Cursor {
    Cursor::default().with_topic_name(topic_name(topic)).with_partition_index(partition)
}

fn refuse(context: &Context, name: TopicName, error: ResponseError) -> TopicAnswer {
    let operations = context.topic_operations(name.as_str());
    TopicAnswer::default()
        .with_error_code(error.code())
        .with_name(Some(name))
        .with_topic_authorized_operations(operations)
}

fn describe(context: &Context, topic: &Topic, first: i32, end: i32) -> TopicAnswer {
    let view = context.view();
    let partitions = (first..end).map(|index| {
        let state = view.partition(TopicPartition { topic: topic.id, partition: index });
        DescribeTopicPartitionsResponsePartition::default()
            .with_partition_index(index)
            .with_error_code(state.error_code())
            .with_leader_id(state.leader_id())
            .with_leader_epoch(state.leader_epoch)
            .with_replica_nodes(state.replicas)
            .with_isr_nodes(state.isr)
            .with_eligible_leader_replicas(Some(state.eligible))
            .with_last_known_elr(Some(state.last_known_eligible))
            .with_offline_replicas(state.offline)
    });
    TopicAnswer::default()
        .with_name(Some(topic_name(&topic.name)))
        .with_topic_id(topic.id)
        .with_is_internal(cluster::is_internal(&topic.name))
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(context.topic_operations(&topic.name))
}
