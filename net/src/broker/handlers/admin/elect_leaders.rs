//! ElectLeaders: has the preferred replica lead, or any at all.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ElectLeadersRequest, ElectLeadersResponse, TopicName,
        elect_leaders_response::{PartitionResult, ReplicaElectionResult},
    },
    protocol::StrBytes,
};
use millrace_engine::{api::TopicPartition, engine::Topic};

use crate::{
    broker::{
        cluster::Election,
        context::{AllTopics, Authorization, Context, Operation, ResourceType},
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
    let response = ElectLeadersResponse::default();
    let election = match call.body.election_type {
        0 => Election::Preferred,
        1 => Election::Unclean,
        _ => return response.with_error_code(ResponseError::InvalidRequest.code()),
    };
    let topics = match context.cluster(Operation::Alter) {
        Ok(topics) => topics,
        Err(error) => return response.with_error_code(error.code()),
    };
    let wants_all = call.body.topic_partitions.is_none();
    let wanted: Vec<(TopicName, Vec<i32>)> = match call.body.topic_partitions {
        None => {
            let name = |topic: &Topic| TopicName(StrBytes::from_string(topic.name.clone()));
            topics.iter().map(|topic| (name(&topic), (0..topic.partitions).collect())).collect()
        }
        Some(wanted) => wanted.into_iter().map(|wanted| (wanted.topic, wanted.partitions)).collect(),
    };
    let found: Vec<_> = wanted
        .iter()
        .flat_map(|(name, partitions)| partitions.iter().map(|index| find(&topics, name, *index)))
        .collect();
    let legal = found.iter().filter_map(|found| found.as_ref().ok().copied()).collect();
    let mut answers = context.administration().elect(election, legal).await.into_iter();
    let mut outcomes = found.into_iter().map(|found| match found {
        Ok(_) => answers.next().unwrap_or_else(|| Err(ResponseError::UnknownServerError.into())),
        Err(error) => Err(error),
    });
    let results = wanted.into_iter().map(|(name, partitions)| {
        let results = partitions.into_iter().zip(&mut outcomes).filter(|(_, outcome)| {
            // of all partitions, those that need no election are not mentioned
            let is_needless = |error: &ApiError| error.error == ResponseError::ElectionNotNeeded;
            !wants_all || !outcome.as_ref().is_err_and(is_needless)
        });
        let results = results.map(|(index, outcome)| {
            let result = PartitionResult::default().with_partition_id(index).with_error_message(None);
            match outcome {
                Ok(()) => result,
                Err(error) => result.with_error_code(error.code()).with_error_message(error.message),
            }
        });
        ReplicaElectionResult::default().with_topic(name).with_partition_result(results.collect())
    });
    response.with_replica_election_results(results.collect())
}

fn find(topics: &AllTopics, name: &TopicName, index: i32) -> Result<TopicPartition, ApiError> {
    let refuse = |reason| Err(ApiError::new(ResponseError::UnknownTopicOrPartition, reason));
    match topics.get(name) {
        Err(_) => refuse(format!("No such topic as {}", name.as_str())),
        Ok(topic) if !(0..topic.partitions).contains(&index) => {
            refuse(format!("No such partition as {}-{index}", name.as_str()))
        }
        Ok(topic) => Ok(TopicPartition { topic: topic.id, partition: index }),
    }
}
