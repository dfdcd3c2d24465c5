//! AlterPartitionReassignments: a partition stays where the node put it; anything else is refused.

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ApiKey, BrokerId, TopicName,
        alter_partition_reassignments_request::ReassignablePartition,
        alter_partition_reassignments_response::{ReassignablePartitionResponse, ReassignableTopicResponse},
    },
};
use millrace_engine::api::TopicPartition;

use crate::{
    broker::{
        assignment,
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
    let brokers = context.view().broker_ids();
    let responses = call.body.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let response = ReassignablePartitionResponse::default().with_partition_index(partition.partition_index);
            match reassign(&context, (&topics, &brokers), &topic.name, partition) {
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

fn reassign(
    context: &Context,
    (topics, brokers): (&AllTopics, &[BrokerId]),
    name: &TopicName,
    wanted: &ReassignablePartition,
) -> Result<(), ApiError> {
    let unknown = |error| not_found(error, format!("Unable to find a topic named {}.", name.as_str()));
    let topic = topics.get(name).map_err(unknown)?;
    if !(0..topic.partitions).contains(&wanted.partition_index) {
        let reason = format!("Unable to find partition {}:{}.", name.as_str(), wanted.partition_index);
        return Err(ApiError::new(ResponseError::UnknownTopicOrPartition, reason));
    }
    // Null cancels a reassignment, of which there is none.
    let replicas = wanted.replicas.as_ref().ok_or(ApiError::from(ResponseError::NoReassignmentInProgress))?;
    assignment::check_replicas(replicas, brokers)?;
    let partition = TopicPartition { topic: topic.id, partition: wanted.partition_index };
    let leader = context.view().partition(partition).leader_id();
    if *replicas != [leader] {
        let reason = format!("The partition lives on broker {} and cannot be moved.", leader.0);
        return Err(ApiError::new(ResponseError::InvalidReplicaAssignment, reason));
    }
    Ok(())
}
