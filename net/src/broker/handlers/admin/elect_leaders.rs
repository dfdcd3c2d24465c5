//! ElectLeaders: a partition with one replica has its leader already.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ElectLeadersRequest, ElectLeadersResponse, TopicName,
        elect_leaders_response::{PartitionResult, ReplicaElectionResult},
    },
    protocol::StrBytes,
};
use millrace_engine::engine::Topic;

use crate::{
    broker::{
        context::{AllTopics, Allowed, Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    errors::ApiError,
    wire::api::{
        Call, call,
        shape::{INT8, INT32, INT32S, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[INT8.since(1), array(&[STRING, INT32S]), INT32];

/// ElectLeaders.
pub(crate) static API: Api = Api {
    key: ApiKey::ElectLeaders,
    version_min: 0,
    version_max: 2,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Alter)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ElectLeadersRequest>) -> ElectLeadersResponse {
    const PREFERRED: i8 = 0;
    const UNCLEAN: i8 = 1;
    let response = ElectLeadersResponse::default();
    if !matches!(call.body.election_type, PREFERRED | UNCLEAN) {
        return response.with_error_code(ResponseError::InvalidRequest.code());
    }
    let topics = match context.cluster(Operation::Alter) {
        Ok(topics) => topics,
        Err(error) => return response.with_error_code(error.code()),
    };
    let result =
        |topic, partitions| ReplicaElectionResult::default().with_topic(topic).with_partition_result(partitions);
    let results = match call.body.topic_partitions {
        // All partitions: those that need no election are not mentioned.
        None => {
            let name = |topic: Allowed<&Topic>| TopicName(StrBytes::from_string(topic.name.clone()));
            topics.iter().map(|topic| result(name(topic), Vec::new())).collect()
        }
        Some(wanted) => wanted
            .into_iter()
            .map(|wanted| {
                let partitions = wanted.partitions.iter().map(|&index| elect(&topics, &wanted.topic, index));
                let partitions = partitions.collect();
                result(wanted.topic, partitions)
            })
            .collect(),
    };
    response.with_replica_election_results(results)
}

fn elect(topics: &AllTopics, name: &TopicName, index: i32) -> PartitionResult {
    let error = match topics.get(name) {
        Err(_) => {
            let reason = format!("No such topic as {}", name.as_str());
            ApiError::new(ResponseError::UnknownTopicOrPartition, reason)
        }
        Ok(topic) if !(0..topic.partitions).contains(&index) => {
            let reason = format!("No such partition as {}-{index}", name.as_str());
            ApiError::new(ResponseError::UnknownTopicOrPartition, reason)
        }
        Ok(_) => ApiError::new(ResponseError::ElectionNotNeeded, "Leader election not needed for topic partition."),
    };
    PartitionResult::default().with_partition_id(index).with_error_code(error.code()).with_error_message(error.message)
}
