//! How clients are sent to the node that has what they want.

use kafka_protocol::messages::{
    FetchRequest, FetchResponse, GroupId, ListOffsetsRequest, OffsetCommitRequest, OffsetFetchRequest, ProduceRequest,
    ProduceResponse, TopicName,
    fetch_request::{FetchPartition, FetchTopic},
    fetch_response::PartitionData,
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    offset_fetch_request::OffsetFetchRequestGroup,
    produce_request::{PartitionProduceData, TopicProduceData},
};
use millrace_engine::{
    api::{ConfigChange, TopicPartition},
    replica::{Leadership, Replica},
};

use super::fixture::{Node, one_batch, place, text, with_three_nodes};

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
        node.cluster.take_doubts([3].into());
        let told = node.call(17, fetch(&node, 3, "")).await;
        assert_eq!((only(&told).error_code, only(&told).current_leader.leader_id.0), (6, -1), "its process is gone");
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
        replica(&node, 0).follow(7).await.expect("it follows");
        let told = node.call(10, named(fetch(&node, 0, ""))).await;
        assert_eq!(only(&told).error_code, 6);
        let told = node.call(11, named(fetch(&node, 0, ""))).await;
        assert_ne!(told.responses[0].partitions[0].error_code, 6, "this node follows it");
    });
}

#[test]
fn consumers_are_sent_to_the_replica_in_their_rack() {
    with_three_nodes(&[RACK_AWARE], async |node: Node| {
        replica(&node, 1).lead(7, Leadership::Alone).await.expect("it leads");
        for (rack, nearest) in [("c", 3), ("a", 1), ("b", -1), ("z", -1), ("", -1)] {
            let told = node.call(17, fetch(&node, 1, rack)).await;
            let partition = only(&told);
            assert_eq!((partition.error_code, partition.preferred_read_replica.0), (0, nearest), "{rack}");
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
        replica(&node, 1).lead(7, Leadership::Alone).await.expect("it leads");
        let told = node.call(17, fetch(&node, 1, "c")).await;
        assert_eq!((only(&told).error_code, only(&told).preferred_read_replica.0), (0, -1));
    });
}

fn produce(node: &Node, partition: i32, acks: i16) -> ProduceRequest {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(one_batch()));
    let topic = TopicProduceData::default().with_topic_id(node.topic).with_partition_data(vec![data]);
    ProduceRequest::default().with_transactional_id(None).with_acks(acks).with_topic_data(vec![topic])
}

fn replica(node: &Node, partition: i32) -> Replica {
    node.engine.replica(TopicPartition { topic: node.topic, partition }).expect("it is here")
}

#[test]
fn producers_are_sent_to_the_leader() {
    with_three_nodes(&[], async |node: Node| {
        replica(&node, 0).follow(7).await.expect("it follows");
        let told = node.call(13, produce(&node, 0, -1)).await;
        let partition = &told.responses[0].partition_responses[0];
        assert_eq!(partition.error_code, 6);
        assert_eq!((partition.current_leader.leader_id.0, partition.current_leader.leader_epoch), (1, 7));
        let endpoints: Vec<_> = told.node_endpoints.iter().map(|at| (at.node_id.0, at.port)).collect();
        assert_eq!(endpoints, [(1, 9001)]);
    });
}

#[test]
fn leaders_alone_answer_for_offsets_and_epochs() {
    with_three_nodes(&[], async |node: Node| {
        let ask = |epoch| {
            let partition = ListOffsetsPartition::default().with_timestamp(-1).with_current_leader_epoch(epoch);
            let topic = ListOffsetsTopic::default().with_name(TopicName(text("t"))).with_partitions(vec![partition]);
            node.call(10, ListOffsetsRequest::default().with_topics(vec![topic]))
        };
        replica(&node, 0).follow(7).await.expect("it follows");
        assert_eq!(ask(-1).await.topics[0].partitions[0].error_code, 6, "NOT_LEADER_OR_FOLLOWER");
        replica(&node, 0).lead(8, Leadership::Alone).await.expect("it leads");
        let told = ask(8).await;
        let partition = &told.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.offset, partition.leader_epoch), (0, 0, 8));
        assert_eq!(ask(7).await.topics[0].partitions[0].error_code, 74, "FENCED_LEADER_EPOCH");
        assert_eq!(ask(9).await.topics[0].partitions[0].error_code, 75, "UNKNOWN_LEADER_EPOCH");
    });
}

#[test]
fn consumers_that_have_seen_more_than_a_new_leader_knows_of_wait() {
    with_three_nodes(&[], async |node: Node| {
        let leadership = Leadership::Replicated { replicas: 3, in_sync: 3 };
        replica(&node, 1).lead(8, leadership).await.expect("it leads");
        let told = node.call(13, produce(&node, 1, 1)).await;
        assert_eq!(told.responses[0].partition_responses[0].error_code, 0);
        let at = |offset| {
            let mut request = fetch(&node, 1, "");
            request.topics[0].partitions[0].fetch_offset = offset;
            node.call(17, request)
        };
        let told = at(1).await;
        assert_eq!((only(&told).error_code, only(&told).high_watermark), (0, 0));
        assert_eq!(only(&told).records.as_ref().map_or(0, |records| records.len()), 0);
        assert_eq!(only(&at(2).await).error_code, 1, "OFFSET_OUT_OF_RANGE");
        assert_eq!(
            only(&at(0).await).records.as_ref().map_or(0, |records| records.len()),
            0,
            "nobody has confirmed it"
        );
    });
}

#[test]
fn acks_of_all_need_enough_replicas() {
    with_three_nodes(&[], async |node: Node| {
        let change = ConfigChange::Set("min.insync.replicas".to_owned(), "2".to_owned());
        node.engine.alter_topic(node.topic, vec![change], false).await.expect("a setting");
        let leadership = Leadership::Replicated { replicas: 3, in_sync: 1 };
        replica(&node, 1).lead(8, leadership).await.expect("it leads");
        let told = node.call(13, produce(&node, 1, -1)).await;
        assert_eq!(told.responses[0].partition_responses[0].error_code, 19, "NOT_ENOUGH_REPLICAS");
        let told = node.call(13, produce(&node, 1, 1)).await;
        assert_eq!(told.responses[0].partition_responses[0].error_code, 0);
    });
}

/// All parts of a request were told that they were not confirmed in time, also those that were, or that another node leads by now.
#[test]
fn each_partition_hears_what_became_of_its_batch_when_the_time_is_over() {
    with_three_nodes(&[], async |node: Node| {
        let leadership = Leadership::Replicated { replicas: 3, in_sync: 3 };
        for partition in [0, 1] {
            replica(&node, partition).lead(8, leadership).await.expect("it leads");
        }
        replica(&node, 1).advance_high_watermark(100).expect("all of it is confirmed");
        let mut request = produce(&node, 0, -1).with_timeout_ms(50);
        request.topic_data[0].partition_data.extend(produce(&node, 1, -1).topic_data.remove(0).partition_data);
        let told = node.call(13, request.clone()).await;
        let codes = |told: &ProduceResponse| {
            let partitions = told.responses[0].partition_responses.iter();
            partitions.map(|partition| partition.error_code).collect::<Vec<_>>()
        };
        assert_eq!(codes(&told), [7, 0], "REQUEST_TIMED_OUT, and nothing");
        replica(&node, 1).follow(9).await.expect("it follows");
        assert_eq!(codes(&node.call(13, request).await), [7, 6], "and NOT_LEADER_OR_FOLLOWER");
    });
}

#[test]
fn coordinators_come_and_go_with_the_leadership_of_their_partition() {
    with_three_nodes(&[], async |node: Node| {
        let topic = uuid::Uuid::from_u128(6);
        place(&node.engine, topic, "__consumer_offsets", &[&[2, 1, 3]]).await;
        let replica = node.engine.replica(TopicPartition { topic, partition: 0 }).expect("it is here");
        let commit = || {
            let partition = OffsetCommitRequestPartition::default().with_committed_offset(5);
            let topic =
                OffsetCommitRequestTopic::default().with_name(TopicName(text("t"))).with_partitions(vec![partition]);
            let request = OffsetCommitRequest::default().with_group_id(GroupId(text("g"))).with_topics(vec![topic]);
            node.call(8, request.with_generation_id_or_member_epoch(-1))
        };
        let fetched = || {
            let group = OffsetFetchRequestGroup::default().with_group_id(GroupId(text("g"))).with_topics(None);
            node.call(8, OffsetFetchRequest::default().with_groups(vec![group]))
        };
        replica.lead(1, Leadership::Alone).await.expect("it leads");
        node.cluster.notice_leadership();
        assert_eq!(commit().await.topics[0].partitions[0].error_code, 0);
        replica.follow(2).await.expect("it follows");
        assert_eq!(fetched().await.groups[0].error_code, 16, "NOT_COORDINATOR, even before it is noticed");
        node.cluster.notice_leadership();
        assert_eq!(commit().await.topics[0].partitions[0].error_code, 16);
        replica.lead(3, Leadership::Alone).await.expect("it leads");
        node.cluster.notice_leadership();
        let told = fetched().await;
        assert_eq!(told.groups[0].error_code, 0);
        assert_eq!(told.groups[0].topics[0].partitions[0].committed_offset, 5, "what was committed is read again");
        assert_eq!(commit().await.topics[0].partitions[0].error_code, 0);
    });
}
