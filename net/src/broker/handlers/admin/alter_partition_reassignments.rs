//! AlterPartitionReassignments: moves partitions to other brokers, or ends that.

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ApiKey, BrokerId, TopicName,
        alter_partition_reassignments_request::ReassignablePartition,
        alter_partition_reassignments_response::{ReassignablePartitionResponse, ReassignableTopicResponse},
    },
};
use millrace_engine::api::TopicPartition;
use millrace_replica::cluster::plane::FactorChange;

use crate::{
    broker::{
        assignment::{self, Possible},
        context::{AllTopics, Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    errors::{ApiError, not_found},
    wire::api::{
        Call, call,
        shape::{BOOL, INT32, INT32S, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[INT32, BOOL.since(1), array(&[STRING, array(&[INT32, INT32S])])];

/// AlterPartitionReassignments.
pub(crate) static API: Api = Api {
    key: ApiKey::AlterPartitionReassignments,
    version_min: 0,
    version_max: 1,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Alter)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(
    context: Context,
    call: Call<AlterPartitionReassignmentsRequest>,
) -> AlterPartitionReassignmentsResponse {
    let topics = match context.cluster(Operation::Alter) {
        Ok(topics) => topics,
        Err(error) => return AlterPartitionReassignmentsResponse::default().with_error_code(error.code()),
    };
    let possible = Possible::of(&context.view());
    let checked: Vec<_> = call
        .body
        .topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(|partition| check((&topics, &possible), &topic.name, partition)))
        .collect();
    let legal = checked.iter().filter_map(|checked| checked.as_ref().ok().cloned()).collect();
    let factor = match call.body.allow_replication_factor_change {
        true => FactorChange::Allowed,
        false => FactorChange::Refused,
    };
    let mut answers = context.administration().reassign(legal, factor).await.into_iter();
    let mut outcomes = checked.into_iter().map(|checked| match checked {
        Ok(_) => answers.next().unwrap_or_else(|| Err(ResponseError::UnknownServerError.into())),
        Err(error) => Err(error),
    });
    let responses = call.body.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().zip(&mut outcomes).map(|(partition, outcome)| {
            let response = ReassignablePartitionResponse::default().with_partition_index(partition.partition_index);
            match outcome {
                Ok(()) => response.with_error_message(None),
                Err(error) => response.with_error_code(error.code()).with_error_message(error.message),
            }
        });
        let partitions = partitions.collect();
        ReassignableTopicResponse::default().with_name(topic.name).with_partitions(partitions)
    });
    AlterPartitionReassignmentsResponse::default()
        .with_allow_replication_factor_change(call.body.allow_replication_factor_change)
        .with_error_message(None)
        .with_responses(responses.collect())
}

/// What is asked for of one partition, if that makes sense. No replicas: the move that is under way shall end.
fn check(
    (topics, possible): (&AllTopics, &Possible),
    name: &TopicName,
    wanted: &ReassignablePartition,
) -> Result<(TopicPartition, Option<Vec<BrokerId>>), ApiError> {
    let unknown = |error| not_found(error, format!("Unable to find a topic named {}.", name.as_str()));
    let topic = topics.get(name).map_err(unknown)?;
    if !(0..topic.partitions).contains(&wanted.partition_index) {
        let reason = format!("Unable to find partition {}:{}.", name.as_str(), wanted.partition_index);
        return Err(ApiError::new(ResponseError::UnknownTopicOrPartition, reason));
    }
    if let Some(replicas) = &wanted.replicas {
        assignment::check_replicas(replicas, possible)?;
    }
    Ok((TopicPartition { topic: topic.id, partition: wanted.partition_index }, wanted.replicas.clone()))
}
