//! How clients are sent to the node that has what they want.

use kafka_protocol::messages::{
    FetchRequest, FetchResponse, TopicName,
    fetch_request::{FetchPartition, FetchTopic},
    fetch_response::PartitionData,
};

use super::fixture::{Node, text, with_three_nodes};

const RACK_AWARE: (&str, &str) = ("replica.selector.class", "org.apache.kafka.common.replica.RackAwareReplicaSelector");

fn fetch(node: &Node, partition: i32, rack: &str) -> FetchRequest {
    let partition = FetchPartition::default().with_partition(partition).with_partition_max_bytes(1000);
    let topic = FetchTopic::default().with_topic_id(node.topic).with_partitions(vec![partition]);
    FetchRequest::default().with_max_bytes(1000).with_rack_id(text(rack)).with_topics(vec![topic])
}

fn only(told: &FetchResponse) -> &PartitionData {
    &told.responses[0].partitions[0]
}

#[test]
fn a_fetch_for_another_node_names_the_leader_and_where_it_is() {
    with_three_nodes(&[], async |node: Node| {
        let told = node.call(17, fetch(&node, 3, "")).await;
        let partition = only(&told);
        assert_eq!(partition.error_code, 6, "NOT_LEADER_OR_FOLLOWER");
        assert_eq!((partition.current_leader.leader_id.0, partition.current_leader.leader_epoch), (3, 7));
        let endpoints: Vec<_> =
            told.node_endpoints.iter().map(|at| (at.node_id.0, at.host.to_string(), at.port)).collect();
        assert_eq!(endpoints, [(3, "host3".to_owned(), 9003)]);

        let told = node.call(15, fetch(&node, 3, "")).await;
        assert_eq!((only(&told).error_code, told.node_endpoints.len()), (6, 0), "older clients ask for metadata");
        let told = node.call(17, fetch(&node, 2, "")).await;
        assert_eq!((only(&told).error_code, only(&told).current_leader.leader_id.0), (6, -1), "nobody leads");
    });
}

#[test]
fn old_clients_do_not_read_from_followers() {
    with_three_nodes(&[], async |node: Node| {
        let named = |request: FetchRequest| {
            let mut request = request;
            request.topics[0].topic = TopicName(text("t"));
            request.topics[0].topic_id = uuid::Uuid::nil();
            request
        };
        let told = node.call(10, named(fetch(&node, 0, ""))).await;
        assert_eq!(only(&told).error_code, 6);
        let told = node.call(11, named(fetch(&node, 0, ""))).await;
        assert_ne!(told.responses[0].partitions[0].error_code, 6, "this node follows it");
    });
}

#[test]
fn consumers_are_sent_to_the_replica_in_their_rack() {
    with_three_nodes(&[RACK_AWARE], async |node: Node| {
        for (rack, replica) in [("c", 3), ("a", 1), ("b", -1), ("z", -1), ("", -1)] {
            let told = node.call(17, fetch(&node, 1, rack)).await;
            let partition = only(&told);
            assert_eq!((partition.error_code, partition.preferred_read_replica.0), (0, replica), "{rack}");
            assert_eq!((partition.high_watermark, partition.log_start_offset), (0, 0));
        }
        // what nobody has is asked of the leader
        let mut request = fetch(&node, 1, "c");
        request.topics[0].partitions[0].fetch_offset = 5;
        let told = node.call(17, request).await;
        assert_eq!((only(&told).error_code, only(&told).preferred_read_replica.0), (1, -1));
    });
}

#[test]
fn without_a_selector_consumers_stay_with_the_leader() {
    with_three_nodes(&[], async |node: Node| {
        let told = node.call(17, fetch(&node, 1, "c")).await;
        assert_eq!((only(&told).error_code, only(&told).preferred_read_replica.0), (0, -1));
    });
}
