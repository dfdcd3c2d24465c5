//! ListOffsets: offsets by timestamp, and the special ones.

use std::collections::HashMap;

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ListOffsetsRequest, ListOffsetsResponse,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
    },
};
use millrace_engine::api::{OffsetSpec, ReadBound, TopicPartition};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    wire::api::{
        Call, call,
        shape::{INT8, INT32, INT64, STRING, Shape, array},
    },
};

const PARTITION: Shape = &[INT32, INT32.since(4), INT64];
const SHAPE: Shape = &[INT32, INT8.since(2), array(&[STRING, array(PARTITION)]), INT32.since(10)];

/// ListOffsets. Version 11 has the layout of version 10 and one more special offset.
pub(crate) static API: Api = Api {
    key: ApiKey::ListOffsets,
    version_min: 1,
    version_max: 11,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Topic, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// What a partition's question asks for.
enum Question {
    Offset(OffsetSpec),
    /// An offset in tiered storage, which there is none of.
    Tiered,
}

/// Who asks.
#[derive(Clone, Copy)]
struct Asker {
    version: i16,
    /// Up to where it reads.
    bound: ReadBound,
}

async fn handle(context: Context, call: Call<ListOffsetsRequest>) -> ListOffsetsResponse {
    let asker = Asker { version: call.version(), bound: ReadBound::of_isolation_level(call.body.isolation_level) };
    let mut topics = Vec::with_capacity(call.body.topics.len());
    for topic in call.body.topics {
        topics.push(answer_topic(&context, asker, topic).await);
    }
    ListOffsetsResponse::default().with_topics(topics)
}

async fn answer_topic(context: &Context, asker: Asker, topic: ListOffsetsTopic) -> ListOffsetsTopicResponse {
    let found = context.topic(&topic.name, Operation::Describe);
    let mut times_asked = HashMap::new();
    for partition in &topic.partitions {
        *times_asked.entry(partition.partition_index).or_insert(0) += 1;
    }
    let mut answers = Vec::with_capacity(times_asked.len());
    for partition in &topic.partitions {
        // Taken out: the first of several stands for all of them.
        let Some(times) = times_asked.remove(&partition.partition_index) else {
            continue;
        };
        let index = partition.partition_index;
        let target = match &found {
            Err(error) if *error != ResponseError::UnknownTopicOrPartition => Err(*error),
            _ if times > 1 => Err(ResponseError::InvalidRequest),
            Ok(found) if (0..found.partitions).contains(&index) => {
                Ok(TopicPartition { topic: found.id, partition: index })
            }
            _ => Err(ResponseError::UnknownTopicOrPartition),
        };
        answers.push(answer_partition(context, asker, target, partition));
    }
    let answers = futures_util::future::join_all(answers).await;
    ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(answers)
}

async fn answer_partition(
    context: &Context,
    asker: Asker,
    target: Result<TopicPartition, ResponseError>,
    partition: &ListOffsetsPartition,
) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse::default()
        .with_partition_index(partition.partition_index)
        .with_timestamp(-1)
        .with_offset(-1);
    let partition_id = match target {
        Ok(partition_id) => partition_id,
        Err(error) => return response.with_error_code(error.code()),
    };
    let Some(question) = question(partition.timestamp, asker.version) else {
        return response.with_error_code(ResponseError::UnsupportedVersion.code());
    };
    let spec = match question {
        Question::Offset(spec) => spec,
        Question::Tiered => return response,
    };
    match context.engine().list_offset(partition_id, spec, asker.bound, partition.current_leader_epoch).await {
        Ok(found) => {
            let response = response.with_timestamp(found.timestamp_ms).with_offset(found.offset);
            if asker.version >= 4 { response.with_leader_epoch(found.leader_epoch) } else { response }
        }
        Err(error) => response.with_error_code(context.view().log_error(partition_id, &error).code()),
    }
}

/// What a timestamp asks for; `None` if its meaning is newer than the version (KIP-734, KIP-405, KIP-1005, KIP-1023).
fn question(timestamp: i64, version: i16) -> Option<Question> {
    let (question, version_min) = match timestamp {
        -1 => (Question::Offset(OffsetSpec::Latest), 1),
        -2 => (Question::Offset(OffsetSpec::Earliest), 1),
        -3 => (Question::Offset(OffsetSpec::MaxTimestamp), 7),
        -4 => (Question::Offset(OffsetSpec::Earliest), 8),
        -5 => (Question::Tiered, 9),
        -6 => (Question::Tiered, 11),
        timestamp if timestamp >= 0 => (Question::Offset(OffsetSpec::Timestamp(timestamp)), 1),
        _ => return None,
    };
    (version >= version_min).then_some(question)
}
