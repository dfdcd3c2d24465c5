//! Coordinators on a real engine: what only shows where partitions, their owners and restarts are real.

mod cluster;

use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        GroupId, OffsetCommitRequest, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    },
    protocol::StrBytes,
};
use millrace_engine::{
    api::{Acks, LogError, NewTopic, OffsetSpec, ProducePartition, ReadBound, TopicPartition},
    batch::{BatchBuilder, Codec, Record},
    engine::Engine,
    transactions::{Adds, Outcome, TransactionalProducer},
};

use super::{
    LetIn, OffsetsOfTransaction, add_partitions, commit_offsets, describe, end, init_producer_id, let_in::report_loss,
};
use crate::{
    coordinator::{
        Coordinators, Settings,
        group::{self, caller::Caller},
        transaction::{self, EndTransaction, InitProducerId, Producer, State},
    },
    feature_levels::FeatureLevels,
    test_node::on_node,
};

fn start(engine: &Engine) {
    let few = |name: &str| (name.to_owned(), "2".to_owned());
    let given = [few("transaction.state.log.num.partitions"), few("offsets.topic.num.partitions")].into();
    let settings = Settings {
        groups: group::Settings::parse(&given).unwrap(),
        transactions: transaction::Settings::parse(&given).unwrap(),
        levels: FeatureLevels { transaction_version: 2 },
    };
    drop(Coordinators::start(engine, settings));
}

async fn new_topic(engine: &Engine, name: &str) -> TopicPartition {
    let new = NewTopic { name: name.to_owned(), partitions: 1, configs: BTreeMap::new() };
    TopicPartition { topic: engine.create_topic(new, false).await.unwrap().id, partition: 0 }
}

fn batch(producer: Producer, sequence: i32) -> Bytes {
    let mut batch = BatchBuilder::new(Codec::None, 0).producer(producer.id, producer.epoch, sequence).transactional();
    batch.push(&Record {
        offset: 0,
        timestamp: 1_700_000_000_000,
        key: None,
        value: Some(Bytes::from_static(b"value")),
        headers: vec![],
    });
    batch.finish().into()
}

async fn produce(
    engine: &Engine,
    partition: TopicPartition,
    (producer, sequence): (Producer, i32),
    adds: Adds,
) -> Result<i64, LogError> {
    let transactional = TransactionalProducer { transactional_id: Arc::from("id"), adds };
    let parts = vec![ProducePartition { partition, batch: batch(producer, sequence) }];
    let mut answers = engine.produce_in_transaction(transactional, Acks::All, parts).await;
    answers.pop().expect("one").map(|produced| produced.base_offset)
}

async fn last_stable(engine: &Engine, partition: TopicPartition) -> i64 {
    engine.list_offset(partition, OffsetSpec::Latest, ReadBound::LastStable, -1).await.unwrap().offset
}

async fn begin(engine: &Engine) -> Producer {
    init_producer_id(engine, "id", InitProducerId { timeout_ms: 60_000, expected: None }).await.unwrap()
}

fn commit(producer: Producer, client_version: i16) -> EndTransaction {
    EndTransaction { producer, outcome: Outcome::Commit, client_version }
}

/// Without that it would stop readers of committed records for ever.
#[test]
fn a_transaction_that_nobody_knows_is_aborted_before_clients_are_served() {
    on_node(async |engine: Engine, _| {
        let (known, unknown) = (new_topic(&engine, "known").await, new_topic(&engine, "unknown").await);
        engine.use_transactions().await.unwrap();
        let nobody = Producer { id: 77, epoch: 3 };
        engine.admit(vec![unknown], nobody.id, nobody.epoch).await;
        assert_eq!(produce(&engine, unknown, (nobody, 0), Adds::Verify).await, Ok(0));
        assert_eq!(last_stable(&engine, unknown).await, 0);
        start(&engine);
        Coordinators::started(&engine).await;
        assert_eq!(last_stable(&engine, unknown).await, 2, "its batch and the marker");
        assert!(engine.open_transactions().await.is_empty());

        let producer = begin(&engine).await;
        assert_eq!(produce(&engine, known, (producer, 0), Adds::Add).await, Ok(0));
        let reconciler = super::Reconciler::attach(&engine);
        reconciler.look_at_start().await.unwrap();
        assert_eq!(engine.open_transactions().await.len(), 1, "its coordinator will end it");
        assert_eq!(end(&engine, "id", commit(producer, 2)).await.unwrap().epoch, producer.epoch + 1);
        assert_eq!(last_stable(&engine, known).await, 2);
    });
}

/// A transaction is open that no coordinator knows.
async fn begin_as_nobody(engine: &Engine) -> Rc<super::Reconciler> {
    let partition = new_topic(engine, "topic").await;
    start(engine);
    Coordinators::started(engine).await;
    engine.use_transactions().await.unwrap();
    let nobody = Producer { id: 77, epoch: 3 };
    engine.admit(vec![partition], nobody.id, nobody.epoch).await;
    assert_eq!(produce(engine, partition, (nobody, 0), Adds::Verify).await, Ok(0));
    super::Reconciler::attach(engine)
}

/// A transaction may begin between two looks: what nobody knew in only one of them is left alone.
#[test]
fn later_only_what_was_nobodys_twice_is_aborted() {
    on_node(async |engine: Engine, _| {
        let reconciler = begin_as_nobody(&engine).await;
        let old = |mut open: Vec<millrace_engine::transactions::OpenTransaction>| {
            open.iter_mut().for_each(|open| open.started_ms = 0);
            open
        };
        let open = old(engine.open_transactions().await);
        reconciler.look_through(open.clone()).await.unwrap();
        assert_eq!(engine.open_transactions().await.len(), 1);
        reconciler.look_through(open).await.unwrap();
        assert_eq!(engine.open_transactions().await.len(), 0);
    });
}

/// The commit of a transaction that includes a partition without a batch there made count what a lost one had left.
#[test]
fn a_commit_leaves_alone_what_a_lost_transaction_has_left() {
    on_node(async |engine: Engine, _| {
        let partition = new_topic(&engine, "topic").await;
        start(&engine);
        Coordinators::started(&engine).await;
        let lost = begin(&engine).await;
        engine.admit(vec![partition], lost.id, lost.epoch).await;
        assert_eq!(produce(&engine, partition, (lost, 0), Adds::Verify).await, Ok(0));
        let next = begin(&engine).await;
        assert_eq!((next.id, next.epoch), (lost.id, lost.epoch + 1));
        assert_eq!(add_partitions(&engine, "id", next, vec![("topic".to_owned(), 0)], 2).await, Ok(()));
        assert_eq!(end(&engine, "id", commit(next, 2)).await.map(|after| after.epoch), Ok(next.epoch + 1));
        assert_eq!(last_stable(&engine, partition).await, 0, "nothing is committed here");
        let reconciler = super::Reconciler::attach(&engine);
        for _ in 0..2 {
            assert_eq!(engine.open_transactions().await.len(), 1);
            reconciler.look_through(engine.open_transactions().await).await.unwrap();
        }
        assert_eq!(last_stable(&engine, partition).await, 2, "a batch and its abort");
    });
}

/// Readers of committed records stood still for two minutes.
#[test]
fn what_was_let_in_by_a_record_that_is_lost_is_looked_at_at_once() {
    on_node(async |engine: Engine, _| {
        let reconciler = begin_as_nobody(&engine).await;
        let lost = LetIn::Beside(Box::pin(std::future::ready(Err(ResponseError::CoordinatorNotAvailable))));
        let LetIn::Beside(confirmed) = report_loss(&engine, lost) else { panic!("it is not confirmed") };
        assert_eq!(confirmed.await, Err(ResponseError::CoordinatorNotAvailable));
        assert!(reconciler.is_asked_for_within(Duration::from_secs(60)).await);
        // nobody waits any longer for what takes too long
        let late = LetIn::Beside(Box::pin(std::future::pending()));
        let LetIn::Beside(mut confirmed) = report_loss(&engine, late) else { panic!("it is not confirmed") };
        assert_eq!((&mut confirmed).now_or_never(), None);
        assert!(!reconciler.is_asked_for_within(Duration::ZERO).await);
        drop(confirmed);
        assert!(reconciler.is_asked_for_within(Duration::from_secs(60)).await);
        let kept = LetIn::Beside(Box::pin(std::future::ready(Ok(()))));
        let LetIn::Beside(confirmed) = report_loss(&engine, kept) else { panic!("it is not confirmed") };
        assert_eq!(confirmed.await, Ok(()));
        assert!(!reconciler.is_asked_for_within(Duration::ZERO).await);
        reconciler.look(0).await.unwrap();
        assert_eq!(engine.open_transactions().await.len(), 1, "it may be in an add that is under way");
        reconciler.look_through(engine.open_transactions().await).await.unwrap();
        assert_eq!(engine.open_transactions().await.len(), 0);
    });
}

#[test]
fn batches_of_version_1_wait_for_nothing_once_their_partition_was_added() {
    on_node(async |engine: Engine, _| {
        let partition = new_topic(&engine, "topic").await;
        start(&engine);
        Coordinators::started(&engine).await;
        let producer = begin(&engine).await;
        let refused = produce(&engine, partition, (producer, 0), Adds::Verify).await;
        assert!(matches!(refused, Err(LogError::TransactionAbortable(_))), "{refused:?}");
        let names = vec![("topic".to_owned(), 0)];
        assert_eq!(add_partitions(&engine, "id", producer, names, 0).await, Ok(()));
        assert_eq!(produce(&engine, partition, (producer, 0), Adds::Verify).await, Ok(0));
        assert_eq!(last_stable(&engine, partition).await, 0);
        assert_eq!(end(&engine, "id", commit(producer, 0)).await, Ok(Producer { id: -1, epoch: -1 }));
        assert_eq!(last_stable(&engine, partition).await, 2);
        // the epoch is the same, and yet it is in no transaction any more
        let late = produce(&engine, partition, (producer, 1), Adds::Verify).await;
        assert!(matches!(late, Err(LogError::TransactionAbortable(_))), "{late:?}");
    });
}

/// Codes of the answer for the only partition of the topic.
async fn commit_offset(engine: &Engine, producer: Producer, request: &str) -> Vec<i16> {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(7);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(StrBytes::from_static_str("topic")))
        .with_partitions(vec![partition]);
    let commit = OffsetsOfTransaction {
        id: "id".to_owned(),
        producer,
        adds: Adds::Add,
        caller: Caller { fresh_id: request.to_owned(), ..Caller::default() },
        offsets: OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_static_str("group")))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]),
    };
    let answer = commit_offsets(engine, "group", commit).await.unwrap();
    answer.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code).collect()
}

/// The group's partition came into the transaction by one write, and only then the offsets were written.
#[test]
fn offsets_share_a_write_with_the_record_that_lets_them_in() {
    on_node(async |engine: Engine, _| {
        let partition = new_topic(&engine, "topic").await;
        start(&engine);
        Coordinators::started(&engine).await;
        let mut producer = begin(&engine).await;
        for transaction in ["first", "second"] {
            let produced = produce(&engine, partition, (producer, 0), Adds::Add).await;
            assert!(produced.is_ok(), "{produced:?}");
            let before = engine.stats().await.wal_groups;
            assert_eq!(commit_offset(&engine, producer, transaction).await, [0]);
            assert_eq!(engine.stats().await.wal_groups - before, 1, "in the {transaction} transaction");
            let open = engine.open_transactions().await;
            assert!(open.len() == 2 && describe(&engine, "id").await.unwrap().partitions.len() == 2, "{open:?}");
            producer = end(&engine, "id", commit(producer, 2)).await.unwrap();
            assert!(engine.open_transactions().await.is_empty());
        }
    });
}

#[test]
fn a_topic_that_is_deleted_does_not_hold_up_the_end() {
    on_node(async |engine: Engine, _| {
        let (kept, gone) = (new_topic(&engine, "kept").await, new_topic(&engine, "gone").await);
        start(&engine);
        Coordinators::started(&engine).await;
        let producer = begin(&engine).await;
        for partition in [kept, gone] {
            assert_eq!(produce(&engine, partition, (producer, 0), Adds::Add).await, Ok(0));
        }
        engine.delete_topic(gone.topic).await.unwrap();
        assert_eq!(end(&engine, "id", commit(producer, 2)).await.map(|next| next.epoch), Ok(producer.epoch + 1));
        assert_eq!(last_stable(&engine, kept).await, 2);
        assert_eq!(describe(&engine, "id").await.unwrap().state, State::CompleteCommit);
    });
}

#[test]
fn ids_that_nobody_has_begun_with_make_no_topic() {
    on_node(async |engine: Engine, _| {
        start(&engine);
        Coordinators::started(&engine).await;
        let producer = Producer { id: 1, epoch: 0 };
        assert_eq!(end(&engine, "id", commit(producer, 2)).await, Err(ResponseError::NotCoordinator));
        assert_eq!(describe(&engine, "id").await, Err(ResponseError::TransactionalIdNotFound));
        assert!(engine.topics().by_id.is_empty());
    });
}
