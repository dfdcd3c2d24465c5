//! CreatePartitions.

use std::collections::HashMap;

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, CreatePartitionsRequest, CreatePartitionsResponse, create_partitions_request::CreatePartitionsTopic,
        create_partitions_response::CreatePartitionsTopicResult,
    },
};

use crate::{
    broker::{
        assignment::{self, Possible},
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    errors::ApiError,
    wire::api::{
        Call, call,
        shape::{BOOL, INT32, INT32S, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[array(&[STRING, INT32, array(&[INT32S])]), INT32, BOOL];

/// CreatePartitions.
pub(crate) static API: Api = Api {
    key: ApiKey::CreatePartitions,
    version_min: 0,
    version_max: 3,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Topic, Operation::Alter)]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<CreatePartitionsRequest>) -> CreatePartitionsResponse {
    let mut counts: HashMap<_, usize> = HashMap::new();
    for topic in &call.body.topics {
        *counts.entry(&topic.name).or_default() += 1;
    }
    let mut results = Vec::with_capacity(counts.len());
    for topic in &call.body.topics {
        let outcome = match counts.remove(&topic.name) {
            None => continue,
            Some(1) => create(&context, call.body.validate_only, topic).await,
            Some(_) => Err(ApiError::new(ResponseError::InvalidRequest, "Duplicate topic name.")),
        };
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        results.push(match outcome {
            Ok(()) => result,
            Err(error) => result.with_error_code(error.code()).with_error_message(error.message),
        });
    }
    CreatePartitionsResponse::default().with_results(results)
}

async fn create(context: &Context, validate_only: bool, wanted: &CreatePartitionsTopic) -> Result<(), ApiError> {
    let topic = context.topic(&wanted.name, Operation::Alter)?;
    let added = wanted.count.saturating_sub(topic.partitions);
    if added == 0 {
        let reason = format!("Topic already has {} partition(s).", topic.partitions);
        return Err(ApiError::new(ResponseError::InvalidPartitions, reason));
    }
    if added < 0 {
        let reason = format!(
            "The topic {} currently has {} partition(s); {} would not be an increase.",
            topic.name, topic.partitions, wanted.count
        );
        return Err(ApiError::new(ResponseError::InvalidPartitions, reason));
    }
    if let Some(assignments) = &wanted.assignments {
        if usize::try_from(added) != Ok(assignments.len()) {
            let reason = format!(
                "Attempted to add {added} additional partition(s), but only {} assignment(s) were specified.",
                assignments.len()
            );
            return Err(ApiError::new(ResponseError::InvalidReplicaAssignment, reason));
        }
        let possible = Possible::of(&context.view());
        for assignment in assignments {
            assignment::check_replicas(&assignment.broker_ids, &possible)?;
        }
    }
    let assigned = wanted.assignments.as_ref();
    let assigned = assigned.map(|all| all.iter().map(|assignment| assignment.broker_ids.clone()).collect());
    context.administration().create_partitions(topic.id, wanted.count, assigned, validate_only).await
}
