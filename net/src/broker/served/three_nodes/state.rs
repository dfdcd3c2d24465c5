//! What a node says of its cluster.

use futures_util::FutureExt;
use kafka_protocol::messages::{
    ApiVersionsRequest, BrokerId, DescribeClusterRequest, DescribeConfigsRequest, DescribeQuorumRequest,
    DescribeTopicPartitionsRequest, FindCoordinatorRequest, ListConfigResourcesRequest,
    ListPartitionReassignmentsRequest, MetadataRequest, TopicName,
    describe_configs_request::DescribeConfigsResource,
    describe_quorum_request::{PartitionData, TopicData},
    describe_topic_partitions_request::TopicRequest,
    list_partition_reassignments_request::ListPartitionReassignmentsTopics,
    metadata_request::MetadataRequestTopic,
};
use millrace_engine::api::NewTopic;
use uuid::Uuid;

use super::fixture::{Node, led, place, put_topic, text, with_three_nodes};
use crate::broker::settings::resource::BROKER;

fn ids(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|broker| broker.0).collect()
}

#[test]
fn metadata_names_nodes_leaders_and_who_is_away() {
    with_three_nodes(&[], async |node: Node| {
        let wanted = MetadataRequestTopic::default().with_name(Some(TopicName(text("t"))));
        let told = node.call(12, MetadataRequest::default().with_topics(Some(vec![wanted]))).await;
        let brokers: Vec<_> = told
            .brokers
            .iter()
            .map(|b| (b.node_id.0, b.host.to_string(), b.port, b.rack.as_deref().unwrap_or("-").to_owned()))
            .collect();
        let expected =
            [(1, "a"), (2, "b"), (3, "c")].map(|(id, rack)| (id, format!("host{id}"), 9000 + id, rack.to_owned()));
        assert_eq!(brokers, expected);
        assert_eq!(told.controller_id, 3);
        assert_eq!(told.cluster_id.as_deref(), Some("AAAAAAAAAAAAAAAAAAAATQ"));
        let partitions: Vec<_> = told.topics[0]
            .partitions
            .iter()
            .map(|p| {
                let lists = [&p.replica_nodes, &p.isr_nodes, &p.offline_replicas].map(|all| ids(all));
                (p.error_code, p.leader_id.0, p.leader_epoch, lists)
            })
            .collect();
        let expected = [
            (0, 1, 7, [vec![1, 2, 4], vec![1], vec![4]]),
            (0, 2, 7, [vec![2, 3, 1], vec![2, 3, 1], vec![]]),
            // LEADER_NOT_AVAILABLE
            (5, -1, 9, [vec![4, 1], vec![], vec![4]]),
            (0, 3, 7, [vec![1, 3], vec![3], vec![]]),
        ];
        assert_eq!(partitions, expected);
    });
}

/// Asked in the moment in which a leader's process ended, a node named it as before: librdkafka went back there and asked
/// again after a second.
#[test]
fn a_leader_whose_process_is_gone_is_named_no_more() {
    with_three_nodes(&[], async |node: Node| {
        node.cluster.take_doubts([3].into());
        let wanted = MetadataRequestTopic::default().with_name(Some(TopicName(text("t"))));
        let told = node.call(12, MetadataRequest::default().with_topics(Some(vec![wanted]))).await;
        let leaders: Vec<_> = told.topics[0].partitions.iter().map(|p| (p.error_code, p.leader_id.0)).collect();
        assert_eq!(leaders, [(0, 1), (0, 2), (5, -1), (5, -1)], "LEADER_NOT_AVAILABLE");
        assert_eq!(told.brokers.len(), 3, "it is not fenced");
    });
}

/// It waited for 5 ms whatever it was asked, and whatever came meanwhile. Then the answer was the one of before.
#[test]
fn metadata_waits_for_news_only_where_it_names_others_as_leaders() {
    with_three_nodes(&[], async |node: Node| {
        let ask = |name: &str| {
            let wanted = MetadataRequestTopic::default().with_name(Some(TopicName(text(name))));
            node.call(12, MetadataRequest::default().with_topics(Some(vec![wanted])))
        };
        let mine = Uuid::from_u128(6);
        place(&node.engine, mine, "mine", &[&[2, 3]]).await;
        let mut image = (*node.cluster.image()).clone();
        put_topic(&mut image, mine, "mine", vec![led(2, &[2, 3], &[2, 3])]);
        node.cluster.take_image(image);
        let told = ask("mine").now_or_never().expect("nobody else leads it");
        assert_eq!(told.topics[0].partitions[0].leader_id.0, 2);

        let mut asked = Box::pin(ask("t"));
        assert!((&mut asked).now_or_never().is_none(), "node 3 leads one, and may be gone");
        node.cluster.take_doubts([3].into());
        let told = asked.now_or_never().expect("there is news");
        let leaders: Vec<_> = told.topics[0].partitions.iter().map(|p| (p.error_code, p.leader_id.0)).collect();
        assert_eq!(leaders, [(0, 1), (0, 2), (5, -1), (5, -1)], "LEADER_NOT_AVAILABLE");
    });
}

#[test]
fn partitions_are_described_with_eligible_replicas() {
    with_three_nodes(&[], async |node: Node| {
        let request = DescribeTopicPartitionsRequest::default().with_cursor(None).with_response_partition_limit(10);
        let request = request.with_topics(vec![TopicRequest::default().with_name(TopicName(text("t")))]);
        let told = node.call(0, request).await;
        let eligible: Vec<_> = told.topics[0]
            .partitions
            .iter()
            .map(|p| {
                let lists = [&p.eligible_leader_replicas, &p.last_known_elr];
                (p.error_code, lists.map(|all| ids(all.as_deref().unwrap_or_default())))
            })
            .collect();
        let none = [vec![], vec![]];
        let expected = [(0, [vec![2], vec![]]), (0, none.clone()), (5, [vec![4], vec![4]]), (0, none)];
        assert_eq!(eligible, expected);
    });
}

#[test]
fn nodes_that_are_away_are_listed_for_who_asks_for_them() {
    with_three_nodes(&[], async |node: Node| {
        let listed = async |include| {
            let told = node
                .call(2, DescribeClusterRequest::default().with_endpoint_type(1).with_include_fenced_brokers(include))
                .await;
            assert_eq!(told.controller_id, 3);
            told.brokers.iter().map(|broker| (broker.broker_id.0, broker.is_fenced)).collect::<Vec<_>>()
        };
        assert_eq!(listed(false).await, [(1, false), (2, false), (3, false)]);
        assert_eq!(listed(true).await, [(1, false), (2, false), (3, false), (4, true)]);
        let told = node.call(1, ListConfigResourcesRequest::default().with_resource_types(vec![BROKER])).await;
        let names: Vec<_> = told.config_resources.iter().map(|found| found.resource_name.to_string()).collect();
        assert_eq!(names, ["1", "2", "3"]);
    });
}

#[test]
fn the_quorum_is_the_nodes_that_may_be_controller() {
    with_three_nodes(&[], async |node: Node| {
        let topic = TopicData::default().with_topic_name(TopicName(text("__cluster_metadata")));
        let topic = topic.with_partitions(vec![PartitionData::default()]);
        let told = node.call(2, DescribeQuorumRequest::default().with_topics(vec![topic])).await;
        let quorum = &told.topics[0].partitions[0];
        assert_eq!((quorum.leader_id.0, quorum.leader_epoch, quorum.high_watermark), (3, 42, 1000));
        let voters: Vec<_> =
            quorum.current_voters.iter().map(|voter| (voter.replica_id.0, voter.log_end_offset)).collect();
        assert_eq!(voters, [(1, -1), (2, 1000), (3, -1)], "how far others are is not known");
        let nodes: Vec<_> = told.nodes.iter().map(|node| (node.node_id.0, node.listeners[0].port)).collect();
        assert_eq!(nodes, [(1, 9001), (2, 9002), (3, 9003)]);
    });
}

#[test]
fn moves_that_are_under_way_are_listed() {
    with_three_nodes(&[], async |node: Node| {
        let told = node.call(0, ListPartitionReassignmentsRequest::default().with_topics(None)).await;
        let [topic] = told.topics.as_slice() else { panic!("{told:?}") };
        let [moving] = topic.partitions.as_slice() else { panic!("{topic:?}") };
        let lists = [&moving.replicas, &moving.adding_replicas, &moving.removing_replicas].map(|all| ids(all));
        assert_eq!((moving.partition_index, lists), (3, [vec![1, 3], vec![1], vec![3]]));
        let wanted = ListPartitionReassignmentsTopics::default().with_name(TopicName(text("t")));
        let wanted = vec![wanted.with_partition_indexes(vec![0, 1])];
        let told = node.call(0, ListPartitionReassignmentsRequest::default().with_topics(Some(wanted))).await;
        assert_eq!(told.topics, []);
    });
}

#[test]
fn the_coordinator_of_a_group_is_who_leads_its_partition() {
    with_three_nodes(&[], async |node: Node| {
        let new = NewTopic { name: "__consumer_offsets".to_owned(), partitions: 1, configs: Default::default() };
        let offsets = node.engine.create_topic(new, false).await.expect("a topic").id;
        let mut image = (*node.cluster.image()).clone();
        put_topic(&mut image, offsets, "__consumer_offsets", vec![led(3, &[3, 2], &[3])]);
        node.cluster.take_image(image.clone());
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g")]);
        let told = node.call(6, request.clone()).await;
        let found = &told.coordinators[0];
        assert_eq!((found.error_code, found.node_id.0, found.host.as_str(), found.port), (0, 3, "host3", 9003));

        put_topic(&mut image, offsets, "__consumer_offsets", vec![led(4, &[4], &[4])]);
        node.cluster.take_image(image);
        let told = node.call(6, request).await;
        assert_eq!(told.coordinators[0].error_code, 15, "COORDINATOR_NOT_AVAILABLE");
    });
}

#[test]
fn only_a_cluster_has_eligible_replicas_and_brokers_to_unregister() {
    with_three_nodes(&[], async |node: Node| {
        let request = ApiVersionsRequest::default().with_client_software_name(text("a"));
        let told = node.call(4, request.with_client_software_version(text("1"))).await;
        assert!(told.api_keys.iter().any(|api| api.api_key == 64));
        let level = told.finalized_features.iter().find(|found| &*found.name == "eligible.leader.replicas.version");
        assert_eq!(level.map(|found| found.max_version_level), Some(1));
    });
}

#[test]
fn settings_of_replication_are_shown_as_they_are() {
    let settings = [("default.replication.factor", "3"), ("replica.lag.time.max.ms", "30000")];
    with_three_nodes(&settings, async |node: Node| {
        let shown = async |broker: &str| {
            let resource = DescribeConfigsResource::default().with_resource_type(BROKER);
            let resource = resource.with_resource_name(text(broker)).with_configuration_keys(None);
            let told = node.call(4, DescribeConfigsRequest::default().with_resources(vec![resource])).await;
            told.results.into_iter().next().expect("an answer")
        };
        let told = shown("2").await;
        for (name, value, source) in [
            ("default.replication.factor", "3", 4),
            ("replica.lag.time.max.ms", "30000", 4),
            ("offsets.topic.replication.factor", "3", 5),
            ("auto.leader.rebalance.enable", "true", 5),
        ] {
            let found = told.configs.iter().find(|config| &*config.name == name).expect(name);
            assert_eq!((found.value.as_deref(), found.config_source), (Some(value), source), "{name}");
        }
        assert_eq!(shown("3").await.error_code, 42, "another node's are asked of that one");
    });
}
