//! How members of a share group are sent to the nodes that lead what they read, and to the coordinators of its state.

use kafka_protocol::messages::{
    ApiVersionsRequest, FindCoordinatorRequest, GroupId, ShareAcknowledgeRequest, ShareFetchRequest,
    share_acknowledge_request::{self, AcknowledgePartition, AcknowledgeTopic},
    share_fetch_request::{FetchPartition, FetchTopic},
};
use uuid::Uuid;

use super::fixture::{Node, led, place, put_topic, text, with_three_nodes};

fn fetch(node: &Node, epoch: i32, partition: i32) -> ShareFetchRequest {
    let partition = FetchPartition::default().with_partition_index(partition);
    let topic = FetchTopic::default().with_topic_id(node.topic).with_partitions(vec![partition]);
    ShareFetchRequest::default()
        .with_group_id(Some(GroupId(text("g"))))
        .with_member_id(Some(text("m")))
        .with_share_session_epoch(epoch)
        .with_max_bytes(1000)
        .with_max_records(10)
        .with_batch_size(10)
        .with_topics(vec![topic])
}

#[test]
fn members_are_sent_to_the_leader_with_its_address() {
    with_three_nodes(&[], async |node: Node| {
        let told = node.call(1, fetch(&node, 0, 3)).await;
        let partition = &told.responses[0].partitions[0];
        assert_eq!((told.error_code, partition.error_code), (0, 6), "NOT_LEADER_OR_FOLLOWER");
        assert_eq!((partition.current_leader.leader_id, partition.current_leader.leader_epoch), (3, 7));
        let endpoints: Vec<_> =
            told.node_endpoints.iter().map(|at| (at.node_id.0, at.host.to_string(), at.port)).collect();
        assert_eq!(endpoints, [(3, "host3".to_owned(), 9003)]);

        let batch = share_acknowledge_request::AcknowledgementBatch::default().with_acknowledge_types(vec![1]);
        let part = AcknowledgePartition::default().with_partition_index(3).with_acknowledgement_batches(vec![batch]);
        let part = AcknowledgeTopic::default().with_topic_id(node.topic).with_partitions(vec![part]);
        let request = ShareAcknowledgeRequest::default()
            .with_group_id(Some(GroupId(text("g"))))
            .with_member_id(Some(text("m")))
            .with_share_session_epoch(1)
            .with_topics(vec![part]);
        let told = node.call(1, request).await;
        let partition = &told.responses[0].partitions[0];
        assert_eq!((told.error_code, partition.error_code, partition.current_leader.leader_id), (0, 6, 3));
        assert_eq!(told.node_endpoints[0].port, 9003);

        let told = node.call(1, fetch(&node, 0, 2)).await;
        let partition = &told.responses[0].partitions[0];
        assert_eq!((partition.error_code, partition.current_leader.leader_id), (6, -1), "nobody leads");
    });
}

#[test]
fn the_coordinator_of_state_is_who_leads_its_partition() {
    with_three_nodes(&[], async |node: Node| {
        let states = Uuid::from_u128(50);
        place(&node.engine, states, "__share_group_state", &[&[3, 2]]).await;
        let mut image = (*node.cluster.image()).clone();
        put_topic(&mut image, states, "__share_group_state", vec![led(3, &[3, 2], &[3])]);
        node.cluster.take_image(image);
        let key = text(&format!("g:{}:1", crate::kafka_uuid::kafka_uuid(node.topic)));
        let request = FindCoordinatorRequest::default().with_key_type(2).with_coordinator_keys(vec![key]);
        let told = node.call(6, request).await;
        let found = &told.coordinators[0];
        assert_eq!((found.error_code, found.node_id.0, found.port), (0, 3, 9003));
    });
}

#[test]
fn share_groups_are_there() {
    with_three_nodes(&[], async |node: Node| {
        let request = ApiVersionsRequest::default().with_client_software_name(text("a"));
        let told = node.call(4, request.with_client_software_version(text("1"))).await;
        for key in (76..=79).chain(83..=87).chain(90..=92) {
            assert!(told.api_keys.iter().any(|api| api.api_key == key), "{key}");
        }
        let level = told.finalized_features.iter().find(|found| &*found.name == "share.version");
        assert_eq!(level.map(|found| found.max_version_level), Some(1));
    });
}
