//! Transactions of a cluster, as node 2 sees them: its own coordinator, those of others, and who is asked by whom.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, EndTxnRequest, FindCoordinatorRequest, InitProducerIdRequest, ListTransactionsRequest,
    ProduceRequest, ProducerId, TopicName, TransactionalId,
    add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
    produce_request::{PartitionProduceData, TopicProduceData},
};
use millrace_engine::{
    api::{OffsetSpec, ReadBound, TopicPartition},
    batch::{BatchBuilder, Codec, Record},
    replica::Leadership,
};
use millrace_replica::cluster::{
    model::{Endpoint, NodeState},
    plane::{ProducerIds, Question},
};
use uuid::Uuid;

use super::fixture::{Node, led, place, put_topic, text, with_three_nodes};

/// The topic of transactions has one partition here.
const FEW: (&str, &str) = ("transaction.state.log.num.partitions", "1");

fn id() -> TransactionalId {
    TransactionalId(text("id"))
}

/// Has a node coordinate all transactions. The engine of this one leads what it leads in its image.
async fn coordinate(node: &Node, coordinator: i32) {
    let topic = Uuid::from_u128(9);
    place(&node.engine, topic, "__transaction_state", &[&[2, 1, 3]]).await;
    let mut image = (*node.cluster.image()).clone();
    put_topic(&mut image, topic, "__transaction_state", vec![led(coordinator, &[2, 1, 3], &[2, 1, 3])]);
    image.revision += 1;
    if coordinator == 2 {
        let replica = node.engine.replica(TopicPartition { topic, partition: 0 }).expect("it is here");
        replica.lead(7, Leadership::Alone).await.expect("it leads");
    }
    let own = TopicPartition { topic: node.topic, partition: 1 };
    node.engine.replica(own).expect("it is here").lead(7, Leadership::Alone).await.expect("it leads");
    node.cluster.take_image(image);
    node.cluster.notice_leadership();
}

/// Has other nodes be at this address.
fn move_others(node: &Node, address: SocketAddr) {
    let mut image = (*node.cluster.image()).clone();
    let nodes = image.nodes.iter().map(|(id, state)| {
        let endpoint = Endpoint { host: address.ip().to_string(), port: address.port(), ..state.endpoints[0].clone() };
        let moved = NodeState { endpoints: vec![endpoint], ..(**state).clone() };
        (*id, if *id == 2 { Arc::clone(state) } else { Arc::new(moved) })
    });
    image.nodes = Arc::new(nodes.collect());
    image.revision += 1;
    node.cluster.take_image(image);
}

async fn begin(node: &Node) -> (i64, i16) {
    let init = InitProducerIdRequest::default().with_transactional_id(Some(id())).with_transaction_timeout_ms(60_000);
    let told = node
        .call_with(5, init.with_producer_id(ProducerId(-1)).with_producer_epoch(-1), |question| match question {
            Question::ProducerIds(reply) => reply.give(Ok(ProducerIds { first: 4000, count: 10 })),
            other => panic!("{other:?}"),
        })
        .await;
    assert_eq!(told.error_code, 0);
    (told.producer_id.0, told.producer_epoch)
}

fn batch((producer_id, epoch): (i64, i16), sequence: i32) -> Bytes {
    let mut batch = BatchBuilder::new(Codec::None, 0).producer(producer_id, epoch, sequence).transactional();
    let value = Some(Bytes::from_static(b"v"));
    batch.push(&Record { offset: 0, timestamp: 1_700_000_000_000, key: None, value, headers: Vec::new() });
    batch.finish().into()
}

async fn produce(node: &Node, partition: i32, producer: (i64, i16), sequence: i32) -> i16 {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch(producer, sequence)));
    let topic = TopicProduceData::default().with_topic_id(node.topic).with_partition_data(vec![data]);
    let request = ProduceRequest::default().with_transactional_id(Some(id())).with_acks(-1).with_timeout_ms(30_000);
    let told = node.call(13, request.with_topic_data(vec![topic])).await;
    told.responses[0].partition_responses[0].error_code
}

async fn last_stable(node: &Node) -> i64 {
    let own = TopicPartition { topic: node.topic, partition: 1 };
    node.engine.list_offset(own, OffsetSpec::Latest, ReadBound::LastStable, -1).await.expect("an offset").offset
}

async fn end(node: &Node, (producer_id, epoch): (i64, i16), commits: bool) -> (i16, i16) {
    let request = EndTxnRequest::default().with_transactional_id(id()).with_committed(commits);
    let told = node.call(5, request.with_producer_id(ProducerId(producer_id)).with_producer_epoch(epoch)).await;
    (told.error_code, told.producer_epoch)
}

#[test]
fn a_transaction_whose_coordinator_is_here_ends_in_the_partitions_that_are_here() {
    with_three_nodes(&[FEW], async |node: Node| {
        coordinate(&node, 2).await;
        let producer = begin(&node).await;
        assert_eq!(producer, (4000, 0), "of the cluster's block");
        assert_eq!(produce(&node, 1, producer, 0).await, 0);
        assert_eq!(last_stable(&node).await, 0);
        assert_eq!(end(&node, producer, true).await, (0, 1));
        assert_eq!(last_stable(&node).await, 2, "the record and the marker");
    });
}

#[test]
fn who_coordinates_an_id_is_found_and_others_send_away() {
    with_three_nodes(&[FEW], async |node: Node| {
        coordinate(&node, 3).await;
        let find = FindCoordinatorRequest::default().with_key_type(1).with_coordinator_keys(vec![text("id")]);
        let found = node.call(6, find).await;
        assert_eq!((found.coordinators[0].error_code, found.coordinators[0].node_id.0), (0, 3));
        let init = InitProducerIdRequest::default().with_transactional_id(Some(id()));
        let init = init.with_transaction_timeout_ms(1000).with_producer_id(ProducerId(-1)).with_producer_epoch(-1);
        assert_eq!(node.call(5, init).await.error_code, 16, "NOT_COORDINATOR");
        assert_eq!(end(&node, (1, 0), true).await.0, 16);
    });
}

/// A batch whose coordinator cannot be asked is not taken, and nothing of it is left.
#[test]
fn a_batch_waits_for_a_coordinator_that_is_away_and_is_refused() {
    with_three_nodes(&[FEW], async |node: Node| {
        coordinate(&node, 3).await;
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        move_others(&node, free);
        assert_eq!(produce(&node, 1, (4000, 0), 0).await, 19, "NOT_ENOUGH_REPLICAS, which is tried again");
        assert_eq!(last_stable(&node).await, 0);
        assert!(node.engine.open_transactions().await.is_empty());
    });
}

/// The coordinator goes on until every partition knows: one that nobody leads is waited for.
#[test]
fn an_end_waits_for_partitions_that_nobody_leads() {
    with_three_nodes(&[FEW], async |node: Node| {
        coordinate(&node, 2).await;
        let producer = begin(&node).await;
        // as the leader of a partition of another node would ask
        let partitions = AddPartitionsToTxnTopic::default().with_name(TopicName(text("t"))).with_partitions(vec![1, 2]);
        let transaction = AddPartitionsToTxnTransaction::default()
            .with_transactional_id(id())
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1)
            .with_topics(vec![partitions]);
        let added = node.call(5, AddPartitionsToTxnRequest::default().with_transactions(vec![transaction])).await;
        let results = &added.results_by_transaction[0].topic_results[0].results_by_partition;
        assert!(results.iter().all(|result| result.partition_error_code == 0), "{added:?}");
        let ended = std::pin::pin!(end(&node, producer, true));
        let leader_comes = async {
            let listed = async || {
                let told = node.call(0, ListTransactionsRequest::default()).await;
                told.transaction_states.into_iter().next().map(|state| state.transaction_state.to_string())
            };
            while listed().await.as_deref() != Some("PrepareCommit") {
                glommio::timer::sleep(std::time::Duration::from_millis(5)).await;
            }
            // this node becomes its leader
            let mut image = (*node.cluster.image()).clone();
            put_topic(&mut image, node.topic, "t", vec![led(2, &[2], &[2]), led(2, &[2], &[2]), led(2, &[2], &[2])]);
            image.revision += 1;
            place(&node.engine, node.topic, "t", &[&[2], &[2], &[2], &[1, 3]]).await;
            let third = TopicPartition { topic: node.topic, partition: 2 };
            node.engine.replica(third).expect("it is here").lead(8, Leadership::Alone).await.expect("it leads");
            node.cluster.take_image(image);
        };
        let (ended, ()) = futures_util::future::join(ended, leader_comes).await;
        assert_eq!(ended, (0, 1));
    });
}
