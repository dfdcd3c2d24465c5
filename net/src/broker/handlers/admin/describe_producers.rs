//! DescribeProducers: the idempotent producers that partitions remember, and what they have open there.

use futures_util::future::join_all;
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DescribeProducersRequest, DescribeProducersResponse, ProducerId,
        describe_producers_response::{PartitionResponse, ProducerState, TopicResponse},
    },
};
use millrace_engine::{
    api::{ActiveProducer, TopicPartition},
    engine::Topic,
};

use crate::{
    broker::{
        context::{Allowed, Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    errors::{ApiError, UNKNOWN_PARTITION, check_topic_name, not_found},
    wire::api::{
        Call, call,
        shape::{INT32S, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[array(&[STRING, INT32S])];

/// DescribeProducers.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeProducers,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Topic, Operation::Read)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DescribeProducersRequest>) -> DescribeProducersResponse {
    let topics = context.topics();
    let mut responses = Vec::with_capacity(call.body.topics.len());
    for topic in call.body.topics {
        let found = check_topic_name(&topic.name).and_then(|()| {
            topics.get(&topic.name, Operation::Read).map_err(|error| not_found(error, UNKNOWN_PARTITION))
        });
        let partitions = topic.partition_indexes.iter().map(|&index| describe(&context, found.clone(), index));
        let partitions = join_all(partitions).await;
        responses.push(TopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    DescribeProducersResponse::default().with_topics(responses)
}

async fn describe(context: &Context, topic: Result<Allowed<&Topic>, ApiError>, index: i32) -> PartitionResponse {
    let response = PartitionResponse::default().with_partition_index(index).with_error_message(None);
    match producers(context, topic, index).await {
        Ok(producers) => response.with_active_producers(producers.into_iter().map(state).collect()),
        Err(error) => response.with_error_code(error.code()).with_error_message(error.message),
    }
}

async fn producers(
    context: &Context,
    topic: Result<Allowed<&Topic>, ApiError>,
    index: i32,
) -> Result<Vec<ActiveProducer>, ApiError> {
    let topic = topic?;
    if !(0..topic.partitions).contains(&index) {
        return Err(ResponseError::UnknownTopicOrPartition.into());
    }
    let partition = TopicPartition { topic: topic.id, partition: index };
    let producers = context.engine().active_producers(partition).await;
    producers.map_err(|error| context.view().log_error(partition, &error).into())
}

fn state(producer: ActiveProducer) -> ProducerState {
    ProducerState::default()
        .with_producer_id(ProducerId(producer.producer_id))
        .with_producer_epoch(producer.producer_epoch.into())
        .with_last_sequence(producer.last_sequence)
        .with_last_timestamp(producer.last_timestamp_ms)
        .with_coordinator_epoch(producer.coordinator_epoch)
        .with_current_txn_start_offset(producer.current_transaction_first_offset)
}
