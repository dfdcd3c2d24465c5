//! OffsetForLeaderEpoch: where a leader epoch ended, so that consumers find out about lost records.

use futures_util::future::join_all;
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
        offset_for_leader_epoch_request::OffsetForLeaderPartition,
        offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
    },
};
use millrace_engine::api::TopicPartition;

use crate::{
    broker::{
        context::{Authorization, Context, Found, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    wire::api::{
        Call, call,
        shape::{INT32, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[INT32.since(3), array(&[STRING, array(&[INT32, INT32, INT32])])];

/// OffsetForLeaderEpoch.
pub(crate) static API: Api = Api {
    key: ApiKey::OffsetForLeaderEpoch,
    version_min: 2,
    version_max: 4,
    advertised_min: 2,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Topic, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<OffsetForLeaderEpochRequest>) -> OffsetForLeaderEpochResponse {
    let topics = context.topics();
    let mut results = Vec::with_capacity(call.body.topics.len());
    for topic in call.body.topics {
        let found = topics.get(&topic.topic, Operation::Describe);
        let partitions = topic.partitions.iter().map(|partition| answer(&context, &found, partition));
        let partitions = join_all(partitions).await;
        results.push(OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions));
    }
    OffsetForLeaderEpochResponse::default().with_topics(results)
}

async fn answer(context: &Context, topic: &Found<'_>, wanted: &OffsetForLeaderPartition) -> EpochEndOffset {
    let result = EpochEndOffset::default().with_partition(wanted.partition);
    let topic = match topic {
        Ok(topic) if (0..topic.partitions).contains(&wanted.partition) => topic,
        Ok(_) => return result.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
        Err(error) => return result.with_error_code(error.code()),
    };
    let partition = TopicPartition { topic: topic.id, partition: wanted.partition };
    let engine = context.engine();
    match engine.epoch_end_offset(partition, wanted.current_leader_epoch, wanted.leader_epoch).await {
        Ok((leader_epoch, end_offset)) => result.with_leader_epoch(leader_epoch).with_end_offset(end_offset),
        Err(error) => result.with_error_code(context.view().log_error(partition, &error).code()),
    }
}
