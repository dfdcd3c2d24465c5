//! DescribeQuorum: who may be controller, and who is. A node that is alone is the only voter, and up to date with itself.

use std::time::{SystemTime, UNIX_EPOCH};

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, BrokerId, DescribeQuorumRequest, DescribeQuorumResponse,
        describe_quorum_request::TopicData as WantedTopic,
        describe_quorum_response::{Listener, Node, PartitionData, ReplicaState, TopicData},
    },
    protocol::StrBytes,
};

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
    let quorum = context.view().quorum();
    let own = BrokerId(context.engine().node_id());
    let partition = PartitionData::default()
        .with_error_message(Some(StrBytes::new()))
        .with_leader_id(quorum.leader)
        .with_leader_epoch(quorum.epoch)
        .with_high_watermark(quorum.seen)
        .with_current_voters(
            quorum.voters.iter().map(|(id, _)| voter(*id, (*id == own).then_some(quorum.seen))).collect(),
        );
    let topics =
        call.body.topics.into_iter().map(|topic| {
            TopicData::default().with_topic_name(topic.topic_name).with_partitions(vec![partition.clone()])
        });
    let response = response.with_topics(topics.collect());
    match version >= 2 {
        true => response.with_nodes(quorum.voters.into_iter().map(node).collect()),
        false => response,
    }
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

/// A voter that has seen changes up to there. How far others are, nobody tells: -1, as Kafka says of what it does not know.
fn voter(id: BrokerId, seen: Option<i64>) -> ReplicaState {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    let at_ms = seen.map_or(-1, |_| now_ms);
    ReplicaState::default()
        .with_replica_id(id)
        .with_log_end_offset(seen.unwrap_or(-1))
        .with_last_fetch_timestamp(at_ms)
        .with_last_caught_up_timestamp(at_ms)
}

fn node((id, listeners): (BrokerId, Vec<(String, String, u16)>)) -> Node {
    // All of them, with their names: who reads this chooses by name.
    let listeners = listeners.into_iter().map(|(name, host, port)| {
        let (name, host) = (StrBytes::from_string(name), StrBytes::from_string(host));
        Listener::default().with_name(name).with_host(host).with_port(port)
    });
    Node::default().with_node_id(id).with_listeners(listeners.collect())
}
