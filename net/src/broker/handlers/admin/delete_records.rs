//! DeleteRecords: moves the start of logs, and answers when all replicas whose nodes live have moved theirs.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DeleteRecordsRequest, DeleteRecordsResponse,
        delete_records_request::DeleteRecordsPartition,
        delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult},
    },
};
use millrace_engine::{api::TopicPartition, engine::Engine};
use millrace_replica::shell::{Shell, StillKept};

use crate::{
    broker::{
        cluster,
        context::{Authorization, Context, Found, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    wire::api::{
        Call, call,
        shape::{INT32, INT64, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[array(&[STRING, array(&[INT32, INT64])]), INT32];

/// DeleteRecords.
pub(crate) static API: Api = Api {
    key: ApiKey::DeleteRecords,
    version_min: 0,
    version_max: 2,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Topic, Operation::Delete)]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DeleteRecordsRequest>) -> DeleteRecordsResponse {
    let topics = context.topics();
    let until = Instant::now() + Duration::from_millis(u64::try_from(call.body.timeout_ms).unwrap_or(0));
    // all at once: who waits for one follower waits for it once
    let results = join_all(call.body.topics.into_iter().map(async |topic| {
        let found = topics.get(&topic.name, Operation::Delete);
        let partitions = topic.partitions.iter().map(|partition| delete(&context, &found, partition, until));
        let partitions = join_all(partitions).await;
        DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions)
    }));
    DeleteRecordsResponse::default().with_topics(results.await)
}

async fn delete(
    context: &Context,
    topic: &Found<'_>,
    wanted: &DeleteRecordsPartition,
    until: Instant,
) -> DeleteRecordsPartitionResult {
    let result =
        DeleteRecordsPartitionResult::default().with_partition_index(wanted.partition_index).with_low_watermark(-1);
    let topic = match topic {
        Ok(topic) if (0..topic.partitions).contains(&wanted.partition_index) => topic,
        Ok(_) => return result.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
        Err(error) => return result.with_error_code(error.code()),
    };
    if cluster::is_internal(&topic.name) {
        return result.with_error_code(ResponseError::InvalidTopicException.code());
    }
    if !topic.config.cleanup_policy.delete {
        // Records of a compacted topic go when a newer one of their key comes.
        return result.with_error_code(ResponseError::PolicyViolation.code());
    }
    let partition = TopicPartition { topic: topic.id, partition: wanted.partition_index };
    match context.engine().delete_records(partition, wanted.offset).await {
        Ok(log_start_offset) => match let_go_by_all(context, partition, log_start_offset, until).await {
            Ok(low_watermark) => result.with_low_watermark(low_watermark),
            Err(StillKept::InTime(low_watermark)) => {
                result.with_error_code(ResponseError::RequestTimedOut.code()).with_low_watermark(low_watermark)
            }
            Err(StillKept::NotLeader) => result.with_error_code(ResponseError::NotLeaderOrFollower.code()),
        },
        Err(error) => result.with_error_code(context.view().log_error(partition, &error).code()),
    }
}

/// Waits for the other replicas, if a partition can have some. The low watermark of all.
async fn let_go_by_all(
    context: &Context,
    partition: TopicPartition,
    before: i64,
    until: Instant,
) -> Result<i64, StillKept> {
    if !context.view().has_epochs() {
        return Ok(before);
    }
    let engine = context.engine();
    let wait = move |engine: Engine| async move {
        match engine.attached::<Shell>() {
            Some(shell) => {
                let patience = until.saturating_duration_since(Instant::now());
                shell.let_go_by_all(partition, before, patience).await
            }
            None => Ok(before),
        }
    };
    engine.on_shard(engine.owner(partition), wait).await
}
