//! How a cluster is changed through one of its nodes.

use std::collections::BTreeMap;

use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    ElectLeadersRequest, FindCoordinatorRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest, TopicName,
    UnregisterBrokerRequest,
    alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
    create_partitions_request::CreatePartitionsTopic,
    create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
    elect_leaders_request::TopicPartitions,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use millrace_engine::api::{ConfigChange, NewTopic, TopicPartition};
use millrace_replica::cluster::plane::{
    AdminCode, AdminError, ConfigEdit, ControlError, CreatedTopic, ElectionKind, FactorChange, NewPlacement,
    ProducerIds, Question, Reassignment,
};
use uuid::Uuid;

use super::fixture::{Node, led, put_topic, text, visible, with_three_nodes};
use crate::broker::settings::resource::{BROKER, TOPIC};

fn new_topic(replication_factor: i16) -> CreateTopicsRequest {
    let topic = CreatableTopic::default().with_name(TopicName(text("new"))).with_num_partitions(-1);
    CreateTopicsRequest::default().with_topics(vec![topic.with_replication_factor(replication_factor)])
}

fn created() -> CreatedTopic {
    CreatedTopic { id: Uuid::from_u128(5), partitions: 6, replication_factor: 3, configs: BTreeMap::new() }
}

#[test]
fn topics_are_created_with_replicas() {
    with_three_nodes(&[("default.replication.factor", "2")], async |node: Node| {
        let told = node
            .call_with(7, new_topic(3), |question| {
                let Question::CreateTopics(topics, defaults, _, reply) = question else { panic!("{question:?}") };
                assert_eq!(topics[0].name, "new");
                assert_eq!(defaults.replication_factor, 2);
                let placement = NewPlacement::Spread { partitions: 1, replication_factor: 3 };
                assert_eq!(topics[0].placement, placement);
                reply.give(Ok(visible(vec![Ok(created())])));
            })
            .await;
        let topic = &told.topics[0];
        assert_eq!((topic.error_code, topic.num_partitions, topic.replication_factor), (0, 6, 3));
        assert_eq!(topic.topic_id, Uuid::from_u128(5));

        let refused = AdminError::new(AdminCode::InvalidReplicationFactor, "only 3 brokers");
        let told = node
            .call_with(7, new_topic(4), |question| {
                let Question::CreateTopics(_, _, _, reply) = question else { panic!("{question:?}") };
                reply.give(Ok(visible(vec![Err(refused)])));
            })
            .await;
        assert_eq!((told.topics[0].error_code, told.topics[0].error_message.as_deref()), (38, Some("only 3 brokers")));
    });
}

#[test]
fn topics_are_created_where_somebody_says() {
    with_three_nodes(&[], async |node: Node| {
        let assigned = |replicas: &[i32]| {
            let replicas = replicas.iter().copied().map(BrokerId).collect();
            let assignment = CreatableReplicaAssignment::default().with_broker_ids(replicas);
            let topic = CreatableTopic::default().with_name(TopicName(text("new"))).with_num_partitions(-1);
            let topic = topic.with_replication_factor(-1).with_assignments(vec![assignment]);
            CreateTopicsRequest::default().with_topics(vec![topic])
        };
        let told = node
            .call_with(7, assigned(&[3, 1]), |question| {
                let Question::CreateTopics(topics, _, _, reply) = question else { panic!("{question:?}") };
                assert_eq!(topics[0].placement, NewPlacement::Assigned(vec![(0, vec![3, 1])]));
                reply.give(Ok(visible(vec![Ok(created())])));
            })
            .await;
        assert_eq!(told.topics[0].error_code, 0);
        for illegal in [&[3, 3][..], &[9], &[]] {
            let told = node.call(7, assigned(illegal)).await;
            assert_eq!(told.topics[0].error_code, 39, "{illegal:?}");
        }
        assert!(node.has_no_question());
    });
}

#[test]
fn without_the_control_plane_clients_hear_why_and_try_again() {
    with_three_nodes(&[], async |node: Node| {
        let told = node
            .call_with(7, new_topic(3), |question| question.fail(ControlError::TimedOut("etcd is away".to_owned())))
            .await;
        assert_eq!((told.topics[0].error_code, told.topics[0].error_message.as_deref()), (7, Some("etcd is away")));
    });
}

#[test]
fn topics_grow_and_go() {
    with_three_nodes(&[], async |node: Node| {
        let topic =
            CreatePartitionsTopic::default().with_name(TopicName(text("t"))).with_count(6).with_assignments(None);
        let told = node
            .call_with(3, CreatePartitionsRequest::default().with_topics(vec![topic]), |question| {
                let Question::CreatePartitions(more, _, reply) = question else { panic!("{question:?}") };
                assert_eq!((more[0].topic.as_str(), more[0].count), ("t", 6));
                reply.give(Ok(visible(vec![Ok(())])));
            })
            .await;
        assert_eq!(told.results[0].error_code, 0);
        let id = node.topic;
        let told = node
            .call_with(5, DeleteTopicsRequest::default().with_topic_names(vec![TopicName(text("t"))]), |question| {
                let Question::DeleteTopics(topics, reply) = question else { panic!("{question:?}") };
                assert_eq!(topics, [id]);
                reply.give(Ok(visible(vec![Ok(())])));
            })
            .await;
        assert_eq!(told.responses[0].error_code, 0);
    });
}

fn alter(resource_type: i8, name: &str, setting: &str, value: &str) -> IncrementalAlterConfigsRequest {
    let config = AlterableConfig::default().with_name(text(setting)).with_value(Some(text(value)));
    let resource = AlterConfigsResource::default().with_resource_type(resource_type).with_resource_name(text(name));
    IncrementalAlterConfigsRequest::default().with_resources(vec![resource.with_configs(vec![config])])
}

#[test]
fn settings_change_for_a_topic_a_node_or_all() {
    with_three_nodes(&[], async |node: Node| {
        let told = node
            .call_with(1, alter(TOPIC, "t", "min.insync.replicas", "2"), |question| {
                let Question::AlterTopic(topic, edit, _, reply) = question else { panic!("{question:?}") };
                let change = ConfigChange::Set("min.insync.replicas".to_owned(), "2".to_owned());
                assert_eq!((topic.as_str(), edit), ("t", ConfigEdit::Incremental(vec![change])));
                reply.give(Ok(visible(Ok(()))));
            })
            .await;
        assert_eq!(told.responses[0].error_code, 0);
        let set = |name: &str| vec![ConfigChange::Set(name.to_owned(), "9".to_owned())];
        for (broker, kept_as) in [("2", "max.connections"), ("", "brokers/max.connections")] {
            let told = node
                .call_with(1, alter(BROKER, broker, "max.connections", "9"), |question| {
                    let Question::AlterSettings(mut decide, _, reply) = question else { panic!("{question:?}") };
                    let expected = set(kept_as);
                    assert_eq!(decide(&BTreeMap::new()), Ok(expected.clone()));
                    assert_eq!(decide(&BTreeMap::new()), Ok(expected), "it may be asked again");
                    reply.give(Ok(visible(Ok(()))));
                })
                .await;
            assert_eq!(told.responses[0].error_code, 0, "{broker:?}");
        }
        let told = node
            .call_with(1, alter(BROKER, "3", "max.connections", "9"), |question| {
                let Question::AlterSettingsOf(3, mut decide, _, reply) = question else { panic!("{question:?}") };
                assert_eq!(decide(&BTreeMap::new()), Ok(set("max.connections")));
                reply.give(Ok(visible(Ok(()))));
            })
            .await;
        assert_eq!(told.responses[0].error_code, 0);
        let told = node.call(1, alter(BROKER, "8", "max.connections", "9")).await;
        assert_eq!(told.responses[0].error_code, 42);
    });
}

/// One broker's own value acted on what it acknowledged, and not on who was elected.
#[test]
fn what_all_nodes_have_to_agree_on_is_set_for_all_of_them() {
    with_three_nodes(&[], async |node: Node| {
        for (name, value) in [
            ("log.flush.interval.messages", "9"),
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "true"),
        ] {
            for (broker, expected) in [("2", 40), ("", 0)] {
                let told = node
                    .call_with(1, alter(BROKER, broker, name, value), |question| {
                        let Question::AlterSettings(mut decide, _, reply) = question else { panic!("{question:?}") };
                        reply.give(Ok(visible(decide(&BTreeMap::new()).map(drop))));
                    })
                    .await;
                assert_eq!(told.responses[0].error_code, expected, "{name} of {broker:?}");
            }
            let told = node
                .call_with(1, alter(BROKER, "3", name, value), |question| {
                    let Question::AlterSettingsOf(3, mut decide, _, reply) = question else { panic!("{question:?}") };
                    reply.give(Ok(visible(decide(&BTreeMap::new()).map(drop))));
                })
                .await;
            assert_eq!(told.responses[0].error_code, 40, "{name} of another");
        }
    });
}

#[test]
fn what_is_no_setting_or_does_nothing_is_refused_by_who_decides() {
    with_three_nodes(&[], async |node: Node| {
        for name in ["no.such.setting", "replica.alter.log.dirs.io.max.bytes.per.second"] {
            let told = node
                .call_with(1, alter(BROKER, "", name, "9"), |question| {
                    let Question::AlterSettings(mut decide, _, reply) = question else { panic!("{question:?}") };
                    let refused = decide(&BTreeMap::new()).expect_err(name);
                    assert_eq!(refused.code, AdminCode::InvalidConfig);
                    reply.give(Ok(visible(Err(refused))));
                })
                .await;
            assert_eq!(told.responses[0].error_code, 40);
        }
    });
}

#[test]
fn partitions_move_and_stop_moving() {
    with_three_nodes(&[], async |node: Node| {
        let to = |index, replicas: Option<&[i32]>| {
            let replicas = replicas.map(|all| all.iter().copied().map(BrokerId).collect());
            ReassignablePartition::default().with_partition_index(index).with_replicas(replicas)
        };
        // node 4 is away, and keeps what it has
        let away = to(2, Some(&[4, 1, 2]));
        let partitions = vec![to(0, Some(&[3, 2])), to(1, Some(&[2, 8])), away, to(3, None), to(9, None)];
        let topic = ReassignableTopic::default().with_name(TopicName(text("t"))).with_partitions(partitions);
        let request = AlterPartitionReassignmentsRequest::default().with_topics(vec![topic]);
        let told = node
            .call_with(0, request, |question| {
                let Question::Reassign(moves, reply) = question else { panic!("{question:?}") };
                let factor = FactorChange::Allowed;
                let wanted = |partition, replicas| Reassignment { topic: "t".to_owned(), partition, replicas, factor };
                assert_eq!(moves, [wanted(0, Some(vec![3, 2])), wanted(2, Some(vec![4, 1, 2])), wanted(3, None)]);
                let refused = AdminError::new(AdminCode::NoReassignmentInProgress, "none");
                reply.give(Ok(visible(vec![Ok(()), Ok(()), Err(refused)])));
            })
            .await;
        let codes: Vec<_> = told.responses[0].partitions.iter().map(|p| (p.partition_index, p.error_code)).collect();
        assert_eq!(codes, [(0, 0), (1, 39), (2, 0), (3, 85), (9, 3)]);
    });
}

/// KIP-860: the request's allow_replication_factor_change was echoed, and nothing came of it.
#[test]
fn partitions_move_with_as_many_replicas_as_they_have_if_that_is_asked_for() {
    with_three_nodes(&[], async |node: Node| {
        let two = ReassignablePartition::default().with_replicas(Some(vec![BrokerId(3), BrokerId(2)]));
        let topic = ReassignableTopic::default().with_name(TopicName(text("t"))).with_partitions(vec![two]);
        let request = AlterPartitionReassignmentsRequest::default().with_topics(vec![topic]);
        let text = "The replication factor is changed from 3 to 2";
        let told = node
            .call_with(1, request.with_allow_replication_factor_change(false), |question| {
                let Question::Reassign(moves, reply) = question else { panic!("{question:?}") };
                assert_eq!(moves[0].factor, FactorChange::Refused);
                reply.give(Ok(visible(vec![Err(AdminError::new(AdminCode::InvalidReplicationFactor, text))])));
            })
            .await;
        let answer = &told.responses[0].partitions[0];
        assert_eq!((answer.error_code, answer.error_message.as_deref()), (38, Some(text)));
        assert!(!told.allow_replication_factor_change);
    });
}

#[test]
fn leaders_are_elected() {
    with_three_nodes(&[], async |node: Node| {
        let (topic, at) = (node.topic, |topic, partition| TopicPartition { topic, partition });
        let some = TopicPartitions::default().with_topic(TopicName(text("t"))).with_partitions(vec![2, 7, 0]);
        let request = ElectLeadersRequest::default().with_election_type(1).with_topic_partitions(Some(vec![some]));
        let needless = || AdminError::new(AdminCode::ElectionNotNeeded, "it has one");
        let told = node
            .call_with(2, request, |question| {
                let Question::ElectLeaders(kind, partitions, reply) = question else { panic!("{question:?}") };
                assert_eq!((kind, partitions), (ElectionKind::Unclean, vec![at(topic, 2), at(topic, 0)]));
                reply.give(Ok(visible(vec![Ok(()), Err(needless())])));
            })
            .await;
        let results = &told.replica_election_results[0].partition_result;
        assert_eq!(
            results.iter().map(|r| (r.partition_id, r.error_code)).collect::<Vec<_>>(),
            [(2, 0), (7, 3), (0, 84)]
        );

        let told = node
            .call_with(2, ElectLeadersRequest::default().with_topic_partitions(None), |question| {
                let Question::ElectLeaders(kind, partitions, reply) = question else { panic!("{question:?}") };
                assert_eq!((kind, partitions.len()), (ElectionKind::Preferred, 4));
                let unready = AdminError::new(AdminCode::PreferredLeaderNotAvailable, "not yet");
                reply.give(Ok(visible(vec![Err(needless()), Err(needless()), Err(unready), Ok(())])));
            })
            .await;
        let results = &told.replica_election_results[0].partition_result;
        assert_eq!(results.iter().map(|r| (r.partition_id, r.error_code)).collect::<Vec<_>>(), [(2, 80), (3, 0)]);
    });
}

#[test]
fn a_node_that_will_not_come_back_is_forgotten() {
    with_three_nodes(&[], async |node: Node| {
        let told = node
            .call_with(0, UnregisterBrokerRequest::default().with_broker_id(BrokerId(4)), |question| {
                let Question::Unregister(4, reply) = question else { panic!("{question:?}") };
                reply.give(Ok(visible(Ok(()))));
            })
            .await;
        assert_eq!(told.error_code, 0);
    });
}

#[test]
fn producer_ids_come_in_blocks() {
    with_three_nodes(&[], async |node: Node| {
        let request = || InitProducerIdRequest::default().with_transactional_id(None);
        let block = |first| {
            move |question: Question| {
                let Question::ProducerIds(reply) = question else { panic!("{question:?}") };
                reply.give(Ok(ProducerIds { first, count: 2 }));
            }
        };
        assert_eq!(node.call_with(5, request(), block(4000)).await.producer_id.0, 4000);
        assert_eq!(node.call(5, request()).await.producer_id.0, 4001);
        assert_eq!(node.call_with(5, request(), block(9000)).await.producer_id.0, 9000);
        let none = |question: Question| question.fail(ControlError::TimedOut("away".to_owned()));
        assert_eq!(node.call(5, request()).await.producer_id.0, 9001);
        assert_eq!(node.call_with(5, request(), none).await.error_code, 7);
    });
}

#[test]
fn topics_of_coordinators_have_three_replicas() {
    with_three_nodes(&[], async |node: Node| {
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g")]);
        let new = NewTopic { name: "__consumer_offsets".to_owned(), partitions: 1, configs: BTreeMap::new() };
        let answered = async {
            let Question::CreateTopics(topics, _, _, reply) = node.question().await else { panic!("a topic is made") };
            assert_eq!(topics[0].name, "__consumer_offsets");
            assert_eq!(topics[0].placement, NewPlacement::Spread { partitions: 1, replication_factor: 3 });
            assert_eq!(topics[0].configs["cleanup.policy"], "compact");
            // whoever runs the node brings its engine into agreement before it passes the image on
            let id = node.engine.create_topic(new, false).await.expect("a topic").id;
            let mut image = (*node.cluster.image()).clone();
            put_topic(&mut image, id, "__consumer_offsets", vec![led(1, &[1, 2, 3], &[1, 2, 3])]);
            image.revision += 1;
            let revision = image.revision;
            reply.give(Ok(millrace_replica::cluster::plane::Visible { revision, outcome: vec![Ok(created())] }));
            node.cluster.take_image(image);
        };
        let (told, ()) = futures_util::future::join(node.call(6, request), answered).await;
        assert_eq!((told.coordinators[0].error_code, told.coordinators[0].node_id.0), (0, 1));
    });
}
