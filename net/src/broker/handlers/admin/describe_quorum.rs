//! DescribeQuorum: the node is the only voter of its cluster, and up to date with itself.

use std::time::{SystemTime, UNIX_EPOCH};

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DescribeQuorumRequest, DescribeQuorumResponse,
        describe_quorum_request::TopicData as WantedTopic,
        describe_quorum_response::{Listener, Node, PartitionData, ReplicaState, TopicData},
    },
    protocol::StrBytes,
};
use millrace_engine::api::LEADER_EPOCH;

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    wire::api::{
        Call, call,
        shape::{INT32, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[array(&[STRING, array(&[INT32])])];

/// DescribeQuorum.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeQuorum,
    version_min: 0,
    version_max: 2,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DescribeQuorumRequest>) -> DescribeQuorumResponse {
    let version = call.version();
    let response = DescribeQuorumResponse::default().with_error_message(Some(StrBytes::new()));
    let code = context.cluster_code(Operation::Describe);
    if code != 0 {
        return response.with_error_code(code);
    }
    if !asks_for_metadata(&call.body.topics) {
        let refused = call.body.topics.into_iter().map(refuse).collect();
        return response.with_topics(refused);
    }
    let partition = PartitionData::default()
        .with_error_message(Some(StrBytes::new()))
        .with_leader_id(context.view().controller())
        .with_leader_epoch(LEADER_EPOCH)
        .with_current_voters(vec![this_voter(&context)]);
    let topics =
        call.body.topics.into_iter().map(|topic| {
            TopicData::default().with_topic_name(topic.topic_name).with_partitions(vec![partition.clone()])
        });
    let response = response.with_topics(topics.collect());
    if version >= 2 { response.with_nodes(vec![this_node(&context)]) } else { response }
}

/// Whether it asks for the cluster's metadata and nothing else, as a client does.
fn asks_for_metadata(topics: &[WantedTopic]) -> bool {
    let [topic] = topics else {
        return false;
    };
    let [partition] = topic.partitions.as_slice() else {
        return false;
    };
    topic.topic_name.as_str() == "__cluster_metadata" && partition.partition_index == 0
}

fn refuse(topic: WantedTopic) -> TopicData {
    let partitions = topic.partitions.iter().map(|partition| {
        PartitionData::default()
            .with_partition_index(partition.partition_index)
            .with_error_code(ResponseError::UnknownTopicOrPartition.code())
            .with_error_message(Some(StrBytes::from_static_str("This server does not host this topic-partition.")))
    });
    let partitions = partitions.collect();
    TopicData::default().with_topic_name(topic.topic_name).with_partitions(partitions)
}

fn this_voter(context: &Context) -> ReplicaState {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    ReplicaState::default()
        .with_replica_id(context.view().controller())
        .with_log_end_offset(0)
        .with_last_fetch_timestamp(now_ms)
        .with_last_caught_up_timestamp(now_ms)
}

fn this_node(context: &Context) -> Node {
    // All of them, with their names: who reads this chooses by name.
    let listeners = context.config().listeners.iter().map(|listener| {
        Listener::default()
            .with_name(StrBytes::from_string(listener.name.clone()))
            .with_host(StrBytes::from_string(listener.advertised_host.clone()))
            .with_port(listener.advertised_port)
    });
    Node::default().with_node_id(context.view().controller()).with_listeners(listeners.collect())
}
