//! ListPartitionReassignments: partitions that are on their way to other replicas.

use kafka_protocol::messages::{
    ApiKey, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse, TopicName,
    list_partition_reassignments_response::{OngoingPartitionReassignment, OngoingTopicReassignment},
};
use kafka_protocol::protocol::StrBytes;
use millrace_engine::{api::TopicPartition, engine::Topic};

use crate::{
    broker::{
        cluster::ClusterView,
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    wire::api::{
        Call, call,
        shape::{INT32, INT32S, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[INT32, array(&[STRING, INT32S])];

/// ListPartitionReassignments.
pub(crate) static API: Api = Api {
    key: ApiKey::ListPartitionReassignments,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ListPartitionReassignmentsRequest>) -> ListPartitionReassignmentsResponse {
    let response = ListPartitionReassignmentsResponse::default().with_error_message(None);
    let topics = match context.cluster(Operation::Describe) {
        Ok(topics) => topics,
        Err(error) => return response.with_error_code(error.code()),
    };
    let view = context.view();
    let mut moving = Vec::new();
    match call.body.topics {
        None => {
            for topic in topics.iter() {
                moving.extend(of_topic(&view, &topic, 0..topic.partitions));
                glommio::yield_if_needed().await;
            }
        }
        Some(wanted) => {
            for wanted in wanted {
                if let Ok(topic) = topics.get(&wanted.name) {
                    moving.extend(of_topic(&view, &topic, wanted.partition_indexes));
                }
            }
        }
    }
    response.with_topics(moving)
}

/// Those of a topic's partitions that move; none if none does.
fn of_topic(
    view: &ClusterView<'_>,
    topic: &Topic,
    indexes: impl IntoIterator<Item = i32>,
) -> Option<OngoingTopicReassignment> {
    let moving = indexes.into_iter().filter_map(|index| {
        let moving = view.moving(TopicPartition { topic: topic.id, partition: index })?;
        let ongoing = OngoingPartitionReassignment::default().with_partition_index(index);
        let ongoing = ongoing.with_replicas(moving.replicas).with_adding_replicas(moving.adding);
        Some(ongoing.with_removing_replicas(moving.removing))
    });
    let moving: Vec<_> = moving.collect();
    let name = || TopicName(StrBytes::from_string(topic.name.clone()));
    (!moving.is_empty()).then(|| OngoingTopicReassignment::default().with_name(name()).with_partitions(moving))
}
