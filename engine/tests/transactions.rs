//! Transactions in a whole node: over partitions of several shards, with readers that wait, a restart in between, and a
//! catalog that says that there may be some.

#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

mod with_node;

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use millrace_engine::{
    api::{
        Acks, Fetch, FetchPartition, Fetched, LogError, NewTopic, OffsetSpec, ProducePartition, ReadBound,
        TopicPartition,
    },
    batch::{AppendOrigin, BatchBuilder, Codec, Outcome, Record},
    engine::Engine,
    transactions::{
        Adds, Admission, AtomicPart, Decided, LocalFuture, Marker, Question, TransactionGate, TransactionalProducer,
    },
};
use with_node::{options, with_node};

const SHARDS: usize = 2;
const PARTITIONS: i32 = 4;

async fn topic(engine: &Engine) -> Vec<TopicPartition> {
    let topic = NewTopic { name: "t".into(), partitions: PARTITIONS, configs: Default::default() };
    engine.create_topic(topic, false).await.unwrap().partition_ids().collect()
}

fn known(engine: &Engine) -> Vec<TopicPartition> {
    engine.topics().by_name["t"].partition_ids().collect()
}

fn batch(producer: Option<(i64, i16, i32)>) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, 0);
    if let Some((id, epoch, sequence)) = producer {
        builder = builder.producer(id, epoch, sequence).transactional();
    }
    builder.push(&Record { offset: 0, timestamp: 5, key: None, value: Some("value".into()), headers: vec![] });
    builder.finish().into()
}

fn to_all(partitions: &[TopicPartition], producer: (i64, i16, i32)) -> Vec<ProducePartition> {
    let part = |partition: &TopicPartition| ProducePartition { partition: *partition, batch: batch(Some(producer)) };
    partitions.iter().map(part).collect()
}

fn markers(partitions: &[TopicPartition], (id, epoch): (i64, i16), outcome: Outcome) -> Vec<Marker> {
    let of = |partition: &TopicPartition| Marker {
        partition: *partition,
        producer_id: id,
        producer_epoch: epoch,
        coordinator_epoch: 0,
        outcome,
        transaction_version: 2,
        decided: Decided::ByCoordinator,
    };
    partitions.iter().map(of).collect()
}

fn of_id(adds: Adds) -> TransactionalProducer {
    TransactionalProducer { transactional_id: "t".into(), adds }
}

async fn fetch(engine: &Engine, partitions: &[TopicPartition], offset: i64, max_wait: Duration) -> Vec<Fetched> {
    let part = |partition: &TopicPartition| FetchPartition {
        partition: *partition,
        offset,
        max_bytes: 1 << 20,
        leader_epoch: -1,
        bound: ReadBound::LastStable,
    };
    let partitions = partitions.iter().map(part).collect();
    let answers = engine.fetch(Fetch { partitions, max_bytes: 1 << 20, min_bytes: 1, max_wait }).await;
    answers.into_iter().map(Result::unwrap).collect()
}

#[test]
fn a_transaction_over_shards_is_seen_once_it_ends_and_an_open_one_outlives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    with_node(options(folder.path(), SHARDS), |engine| async move {
        let partitions = topic(&engine).await;
        let refused =
            engine.produce_in_transaction(of_id(Adds::Verify), Acks::All, to_all(&partitions, (7, 0, 0))).await;
        let not_in_use = |answer: &Result<_, LogError>| matches!(answer, Err(LogError::InvalidTxnState(_)));
        assert!(refused.iter().all(not_in_use), "the catalog does not say that there may be any");
        engine.use_transactions().await.unwrap();
        assert!(engine.admit(partitions.clone(), 7, 0).await.iter().all(Result::is_ok));
        // Neither call is waited for: letters stay in order.
        let written = engine.produce_in_transaction(of_id(Adds::Verify), Acks::All, to_all(&partitions, (7, 0, 0)));
        let ended = engine.write_markers(markers(&partitions, (7, 1), Outcome::Commit));
        let reading = fetch(&engine, &partitions, 0, Duration::from_secs(20));
        let (written, ended, read) = futures_util::future::join3(written, ended, reading).await;
        assert!(written.iter().all(|one| one.as_ref().unwrap().base_offset == 0));
        assert!(ended.iter().all(|one| one.as_ref().unwrap().base_offset == 1));
        assert!(read.iter().any(|one| !one.records.is_empty()));
        let late = engine.produce_in_transaction(of_id(Adds::Verify), Acks::All, to_all(&partitions, (7, 0, 1))).await;
        assert!(late.iter().all(|one| *one == Err(LogError::InvalidProducerEpoch)));
        assert!(engine.admit(partitions.clone(), 8, 0).await.iter().all(Result::is_ok));
        let open = engine.produce_in_transaction(of_id(Adds::Verify), Acks::All, to_all(&partitions, (8, 0, 0))).await;
        assert!(open.iter().all(Result::is_ok));
        assert_eq!(engine.open_transactions().await.len(), partitions.len());
        assert!(engine.open_transactions().await.iter().all(|open| open.confirmed));
    });
    with_node(options(folder.path(), SHARDS), |engine| async move {
        let partitions = known(&engine);
        let open = engine.open_transactions().await;
        assert_eq!(open.len(), partitions.len());
        assert!(open.iter().all(|open| (open.producer_id, open.first_offset, open.confirmed) == (8, 2, false)));
        let stable = engine.list_offset(partitions[0], OffsetSpec::Latest, ReadBound::LastStable, -1).await.unwrap();
        assert_eq!(stable.offset, 2);
        assert!(engine.admit(partitions.clone(), 8, 0).await.iter().all(Result::is_ok), "its coordinator knows it");
        assert!(engine.open_transactions().await.iter().all(|open| open.confirmed));
        let ended = engine.write_markers(markers(&partitions, (8, 1), Outcome::Abort)).await;
        assert!(ended.iter().all(Result::is_ok));
        for fetched in fetch(&engine, &partitions, 0, Duration::ZERO).await {
            let aborted = fetched.aborted.unwrap();
            assert_eq!(aborted.iter().map(|one| (one.producer_id, one.first_offset)).collect::<Vec<_>>(), [(8, 2)]);
            assert_eq!((fetched.last_stable_offset, fetched.high_watermark), (4, 4));
        }
    });
}

/// A coordinator on each shard, which writes its record to a partition of that shard.
struct Gate {
    engine: Engine,
    state: TopicPartition,
    asked: Cell<usize>,
}

impl TransactionGate for Gate {
    fn ask(&self, _question: Question) -> LocalFuture<Result<Admission, LogError>> {
        self.asked.set(self.asked.get() + 1);
        let part = ProducePartition { partition: self.state, batch: batch(None) };
        let written = self.engine.produce(AppendOrigin::Coordinator, Acks::All, vec![part]);
        let confirmed = Box::pin(async move { written.await.remove(0).map(drop) });
        Box::pin(std::future::ready(Ok(Admission::Pending(confirmed))))
    }
}

#[test]
fn a_coordinator_on_the_same_shard_writes_its_record_beside_the_first_batch() {
    let folder = tempfile::tempdir().unwrap();
    with_node(options(folder.path(), 1), |engine| async move {
        let partitions = topic(&engine).await;
        engine.use_transactions().await.unwrap();
        let gate = Rc::new(Gate { engine: engine.clone(), state: partitions[3], asked: Cell::new(0) });
        engine.set_transaction_gate(gate.clone());
        let groups = engine.stats().await.wal_groups;
        let part = |sequence| ProducePartition { partition: partitions[0], batch: batch(Some((7, 0, sequence))) };
        let sent =
            (0..3).map(|sequence| engine.produce_in_transaction(of_id(Adds::Add), Acks::All, vec![part(sequence)]));
        for answers in join_all(sent.collect::<Vec<_>>()).await {
            answers[0].as_ref().unwrap();
        }
        assert_eq!(gate.asked.get(), 1);
        assert_eq!(engine.stats().await.wal_groups, groups + 1, "all in one group");
        let decision = AtomicPart::Batch { partition: partitions[3], batch: batch(None) };
        let marker = AtomicPart::Marker(markers(&partitions[..1], (7, 1), Outcome::Commit)[0]);
        let written = engine.append_atomically(vec![decision, marker]).await.unwrap();
        assert_eq!(written.iter().map(|one| one.base_offset).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(engine.stats().await.wal_groups, groups + 2);
    });
}

#[test]
fn parts_of_several_shards_are_not_written_at_once() {
    let folder = tempfile::tempdir().unwrap();
    with_node(options(folder.path(), SHARDS), |engine| async move {
        let partitions = topic(&engine).await;
        engine.use_transactions().await.unwrap();
        let parts = markers(&partitions, (7, 1), Outcome::Commit).into_iter().map(AtomicPart::Marker).collect();
        let refused = engine.append_atomically(parts).await.unwrap_err();
        assert_eq!(refused.part, 1);
        assert!(engine.append_atomically(Vec::new()).await.unwrap().is_empty());
    });
}
