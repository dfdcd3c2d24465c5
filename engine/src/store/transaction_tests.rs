//! Transactions in one store: who is let in and in which order, where readers stop, what they are told, and what is kept
//! over restarts and compaction.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use uuid::Uuid;

use super::{Known, Store, StoreOptions, append::Taken};
use crate::{
    api::{Acks, FetchPartition, Fetched, LogError, ProducePartition, Produced, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Outcome, Record, batches, records},
    config::TopicConfig,
    io::{
        Io,
        sim::{Sim, SimIo},
    },
    partition::waiters::Waiter,
    signal::Signal,
    transactions::{
        AbortedTransaction, Adds, Admission, AtomicPart, Decided, LocalFuture, Marker, Question, TransactionGate,
        TransactionalProducer,
    },
};

pub(super) fn id(partition: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(5), partition }
}

fn known(settings: &[(&str, &str)]) -> Known {
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let config = Rc::new(TopicConfig::parse(&BTreeMap::new(), &settings).unwrap());
    (0..3).map(|partition| (id(partition), config.clone())).collect()
}

pub(super) async fn open(io: SimIo, run: u64, settings: &[(&str, &str)]) -> Rc<Store<SimIo>> {
    let options = StoreOptions::of_test(run);
    io.create_dir(&options.data_dir).await.unwrap();
    let store = Store::open(io, options, &known(settings)).await.unwrap();
    store.use_transactions();
    store
}

pub(super) fn in_store<F: Future<Output = ()> + 'static>(
    settings: &'static [(&str, &str)],
    test: impl FnOnce(Rc<Store<SimIo>>) -> F + 'static,
) {
    let sim = Sim::new(1);
    let io = sim.io();
    sim.run_until(async move { test(open(io, 1, settings).await).await }).unwrap();
}

pub(super) fn batch(producer: i64, epoch: i16, sequence: i32, key: &str) -> ProducePartition {
    let mut builder = BatchBuilder::new(Codec::None, 0).producer(producer, epoch, sequence).transactional();
    let (key, value) = (Some(Bytes::from(key.to_owned())), Some(Bytes::from(vec![b'v'; 300])));
    builder.push(&Record { offset: 0, timestamp: 1, key, value, headers: vec![] });
    ProducePartition { partition: id(0), batch: builder.finish().into() }
}

pub(super) fn plain(key: &str) -> ProducePartition {
    let mut builder = BatchBuilder::new(Codec::None, 0);
    let (key, value) = (Some(Bytes::from(key.to_owned())), Some(Bytes::from(vec![b'v'; 300])));
    builder.push(&Record { offset: 0, timestamp: 1, key, value, headers: vec![] });
    ProducePartition { partition: id(0), batch: builder.finish().into() }
}

pub(super) async fn done(taken: Taken) -> Result<Produced, LogError> {
    let (produced, wait) = taken.appended().await?;
    match wait {
        Some(wait) => wait.wait().await.map(|()| produced),
        None => Ok(produced),
    }
}

pub(super) async fn append(store: &Rc<Store<SimIo>>, part: ProducePartition) -> Result<i64, LogError> {
    done(store.append(part, AppendOrigin::Client, Acks::All)).await.map(|produced| produced.base_offset)
}

/// A batch of a transaction that was let in.
async fn write(store: &Rc<Store<SimIo>>, producer: i64, epoch: i16, sequence: i32, key: &str) -> i64 {
    store.let_in(id(0), producer, epoch).unwrap();
    append(store, batch(producer, epoch, sequence, key)).await.unwrap()
}

pub(super) fn marker(producer: i64, epoch: i16, outcome: Outcome) -> Marker {
    Marker {
        partition: id(0),
        producer_id: producer,
        producer_epoch: epoch,
        coordinator_epoch: 3,
        outcome,
        transaction_version: 2,
        decided: Decided::ByCoordinator,
    }
}

pub(super) async fn end(store: &Rc<Store<SimIo>>, marker: Marker) -> Result<i64, LogError> {
    let (produced, wait) = store.append_markers(vec![marker]).remove(0)?;
    wait.wait().await?;
    Ok(produced.base_offset)
}

fn part(offset: i64, bound: ReadBound) -> FetchPartition {
    FetchPartition { partition: id(0), offset, max_bytes: 1 << 20, leader_epoch: -1, bound }
}

pub(super) async fn fetch(store: &Rc<Store<SimIo>>, offset: i64) -> Fetched {
    store.read(&part(offset, ReadBound::LastStable), 1 << 20, true).await.unwrap()
}

pub(super) fn offsets(fetched: &Fetched) -> Vec<i64> {
    let of = |chunk: &crate::chunk::Chunk| {
        let infos = batches(chunk.as_slice().unwrap()).map(|one| one.unwrap().0.base_offset);
        infos.collect::<Vec<_>>()
    };
    fetched.records.chunks.iter().flat_map(of).collect()
}

pub(super) fn aborted(fetched: &Fetched) -> Vec<(i64, i64)> {
    let of = |one: &AbortedTransaction| (one.producer_id, one.first_offset);
    fetched.aborted.as_ref().expect("it is told").iter().map(of).collect()
}

/// What is in segments is read from there.
pub(super) fn evict(store: &Rc<Store<SimIo>>) {
    let cell = store.partition(id(0)).unwrap();
    let mut partition = cell.borrow_mut();
    let materialised = partition.marks().materialised();
    let evicted = partition.tail().extents().filter(|extent| extent.end_offset <= materialised);
    evicted.for_each(|extent| extent.backing.evict());
    partition.prune_tail();
}

#[test]
fn who_reads_what_is_committed_stops_at_an_open_transaction_wherever_it_begins() {
    in_store(&[("internal.segment.bytes", "2000")], |store| async move {
        append(&store, plain("a")).await.unwrap();
        // Four batches of one group: the open transaction begins inside the extent.
        let waits: Vec<_> = [plain("b"), plain("c")]
            .map(|part| store.append(part, AppendOrigin::Client, Acks::All))
            .into_iter()
            .collect();
        store.let_in(id(0), 7, 0).unwrap();
        let open = store.append(batch(7, 0, 0, "d"), AppendOrigin::Client, Acks::All);
        let behind = store.append(plain("e"), AppendOrigin::Client, Acks::All);
        for taken in waits.into_iter().chain([open, behind]) {
            done(taken).await.unwrap();
        }
        for _ in 0..2 {
            let fetched = fetch(&store, 0).await;
            assert_eq!((fetched.high_watermark, fetched.last_stable_offset), (5, 3));
            assert_eq!((offsets(&fetched), aborted(&fetched)), (vec![0, 1, 2], vec![]));
            let at_its_begin = fetch(&store, 3).await;
            assert!(at_its_begin.records.is_empty() && at_its_begin.last_stable_offset == 3);
            assert_eq!(store.available(&[part(3, ReadBound::LastStable)]), 0, "who is there waits");
            assert_eq!(store.available(&[part(4, ReadBound::LastStable)]), 0);
            assert!(store.available(&[part(2, ReadBound::LastStable)]) > 0);
            store.materialise_all().await;
            evict(&store);
        }
        let waiter = Rc::new(Waiter::default());
        store.watch(&[part(3, ReadBound::LastStable)], &waiter, 1);
        append(&store, plain("f")).await.unwrap();
        assert!(!waiter.poll(std::task::Waker::noop()), "that is not for who reads what is committed");
        end(&store, marker(7, 1, Outcome::Commit)).await.unwrap();
        assert!(waiter.poll(std::task::Waker::noop()));
        assert_eq!(offsets(&fetch(&store, 3).await), [3, 4, 5, 6]);
    });
}

#[test]
fn aborted_transactions_are_told_from_memory_and_segments_and_after_a_restart() {
    const SETTINGS: &[(&str, &str)] = &[("internal.segment.bytes", "1500")];
    let sim = Sim::new(3);
    let fill = |io: SimIo| async move {
        let store = open(io, 1, SETTINGS).await;
        write(&store, 1, 0, 0, "a").await;
        write(&store, 2, 0, 0, "b").await;
        end(&store, marker(1, 1, Outcome::Abort)).await.unwrap();
        write(&store, 1, 1, 0, "c").await;
        for key in ["d", "e", "f", "g", "h", "i"] {
            append(&store, plain(key)).await.unwrap();
            if key == "f" {
                store.materialise_all().await;
            }
        }
        end(&store, marker(1, 2, Outcome::Commit)).await.unwrap();
        end(&store, marker(2, 1, Outcome::Abort)).await.unwrap();
        check_told(&store).await;
        store.materialise_all().await;
        check_told(&store).await;
        evict(&store);
        check_told(&store).await;
        write(&store, 3, 0, 0, "open").await;
    };
    sim.run_until(fill(sim.io())).unwrap();
    sim.crash();
    let again = |io: SimIo| async move {
        let store = open(io, 2, SETTINGS).await;
        check_told(&store).await;
        let open = store.open_transactions();
        assert_eq!(open.iter().map(|open| (open.producer_id, open.first_offset)).collect::<Vec<_>>(), [(3, 12)]);
        assert!(!open[0].confirmed, "its coordinator is asked");
        let active = store.active_producers(id(0)).unwrap();
        let of = |id: i64| active.iter().find(|one| one.producer_id == id).unwrap();
        assert_eq!((of(1).producer_epoch, of(1).coordinator_epoch, of(1).last_sequence), (2, 3, -1));
        assert_eq!((of(3).current_transaction_first_offset, of(3).coordinator_epoch), (12, -1));
    };
    let io = sim.restart();
    sim.run_until(again(io)).unwrap();
}

/// Offsets: 0 of producer 1, 1 of producer 2, 2 aborts the former, 3 of producer 1 again, which 10 commits; 11 aborts the
/// transaction of producer 2.
async fn check_told(store: &Rc<Store<SimIo>>) {
    let uncommitted = store.read(&part(0, ReadBound::HighWatermark), 1 << 20, true).await.unwrap();
    assert_eq!(uncommitted.aborted, None);
    let told = async |offset: i64, max_bytes: usize| {
        let fetched = store.read(&part(offset, ReadBound::LastStable), max_bytes, true).await.unwrap();
        let mut told = aborted(&fetched);
        told.sort_unstable();
        (offsets(&fetched).last().copied(), told)
    };
    assert_eq!(told(0, 1).await, (Some(0), vec![(1, 0)]), "only those that have records there");
    assert_eq!(told(1, 1).await, (Some(1), vec![(1, 0), (2, 1)]), "the first one goes up to its marker");
    assert_eq!(told(3, 1).await, (Some(3), vec![(2, 1)]));
    assert_eq!(told(0, 1 << 20).await, (Some(11), vec![(1, 0), (2, 1)]));
    assert_eq!(told(11, 1).await, (Some(11), vec![(2, 1)]));
}

#[test]
fn what_no_transaction_lets_in_is_refused() {
    in_store(&[], |store| async move {
        let refused = |error: Result<i64, LogError>| matches!(error, Err(LogError::InvalidTxnState(_)));
        assert!(refused(append(&store, batch(7, 0, 0, "a")).await));
        write(&store, 7, 0, 0, "a").await;
        assert_eq!(append(&store, batch(7, 0, 0, "a")).await, Ok(0), "a repetition");
        assert_eq!(append(&store, batch(7, 0, 1, "b")).await, Ok(1), "it is open");
        assert!(matches!(append(&store, batch(7, 0, 3, "c")).await, Err(LogError::OutOfOrderSequence(_))));
        let mut outside = BatchBuilder::new(Codec::None, 0).producer(7, 0, 2);
        outside.push(&Record { offset: 0, timestamp: 1, key: None, value: None, headers: vec![] });
        let outside = ProducePartition { partition: id(0), batch: outside.finish().into() };
        assert!(refused(append(&store, outside).await), "of no transaction, but one is open");
        assert_eq!(end(&store, marker(7, 1, Outcome::Abort)).await, Ok(2));
        assert_eq!(append(&store, batch(7, 0, 2, "late")).await, Err(LogError::InvalidProducerEpoch));
        assert!(refused(append(&store, batch(7, 1, 0, "next")).await), "the marker ended the admission");
        assert_eq!(store.let_in(id(0), 7, 0), Err(LogError::InvalidProducerEpoch));
        store.let_in(id(0), 7, 1).unwrap();
        assert!(matches!(append(&store, batch(7, 1, 5, "next")).await, Err(LogError::OutOfOrderSequence(_))));
        assert_eq!(append(&store, batch(7, 1, 0, "next")).await, Ok(3));
    });
}

#[test]
fn markers_are_taken_by_their_epochs() {
    in_store(&[], |store| async move {
        write(&store, 7, 4, 0, "a").await;
        let fenced = Err(LogError::InvalidProducerEpoch);
        assert_eq!(end(&store, marker(7, 3, Outcome::Abort)).await, fenced);
        assert_eq!(end(&store, marker(7, 4, Outcome::Abort)).await, fenced, "its epoch must go up");
        assert_eq!(end(&store, marker(7, 5, Outcome::Commit)).await, Ok(1));
        assert_eq!(end(&store, marker(7, 5, Outcome::Commit)).await, Ok(2), "a repetition");
        let old = Marker { coordinator_epoch: 2, ..marker(7, 6, Outcome::Commit) };
        assert_eq!(end(&store, old).await, Err(LogError::TransactionCoordinatorFenced { epoch: 2, known: 3 }));
        let lenient = Marker { transaction_version: 0, ..marker(8, 0, Outcome::Abort) };
        write(&store, 8, 0, 0, "b").await;
        assert_eq!(end(&store, lenient).await, Ok(4), "the same epoch");
        store.let_in(id(0), 8, 0).unwrap();
        assert_eq!(append(&store, batch(8, 0, 1, "c")).await, Ok(5), "its sequences go on");
        assert_eq!(end(&store, Marker { producer_epoch: i16::MAX, ..lenient }).await, Ok(6));
        assert_eq!(end(&store, marker(8, i16::MAX, Outcome::Abort)).await, Ok(7), "it cannot go up");
        assert_eq!(end(&store, marker(9, 0, Outcome::Abort)).await, Ok(8), "of nobody that is known");
    });
}

#[test]
fn what_is_written_at_once_is_written_whole_or_not_at_all() {
    in_store(&[], |store| async move {
        write(&store, 7, 0, 0, "a").await;
        let decision = || AtomicPart::Batch { partition: id(1), batch: plain("decision").batch };
        let elsewhere = Marker { partition: id(9), ..marker(7, 1, Outcome::Commit) };
        let parts = vec![decision(), AtomicPart::Marker(marker(7, 1, Outcome::Commit)), AtomicPart::Marker(elsewhere)];
        let refused = store.append_atomically(parts).err().unwrap();
        assert_eq!((refused.part, refused.error), (2, LogError::UnknownPartition));
        assert_eq!((store.bounds(id(0)).unwrap().1, store.bounds(id(1)).unwrap().1), (1, 0));
        let twice = vec![AtomicPart::Marker(marker(7, 1, Outcome::Commit)); 2];
        assert_eq!(store.append_atomically(twice).err().unwrap().part, 1);
        let groups = store.stats().wal_groups;
        let parts = vec![decision(), AtomicPart::Marker(marker(7, 1, Outcome::Commit)), decision()];
        let taken = store.append_atomically(parts).unwrap();
        assert_eq!(taken.iter().map(|(produced, _)| produced.base_offset).collect::<Vec<_>>(), [0, 1, 1]);
        for (_, wait) in taken {
            wait.wait().await.unwrap();
        }
        assert_eq!(store.stats().wal_groups, groups + 1);
        assert_eq!(fetch(&store, 0).await.last_stable_offset, 2);
    });
}

/// What decides on a transaction could be lost with the power where its topic asks for no flush, and markers on other shards
/// not.
#[test]
fn what_is_written_at_once_is_flushed_whatever_the_topics_ask() {
    in_store(&[("flush.messages", "1000")], |store| async move {
        let parts = vec![AtomicPart::Batch { partition: id(1), batch: plain("decision").batch }];
        let (_, wait) = store.append_atomically(parts).unwrap().remove(0);
        wait.wait().await.unwrap();
        assert!(!store.has_unflushed());
        append(&store, plain("other")).await.unwrap();
        assert!(store.has_unflushed(), "the topic asks for none");
    });
}

/// What a future waits for until the test gives it.
struct Given<T>(Rc<(Cell<Option<T>>, Signal)>);

impl<T: 'static> Given<T> {
    fn new() -> Self {
        Self(Rc::new((Cell::new(None), Signal::default())))
    }

    fn give(&self, value: T) {
        self.0.0.set(Some(value));
        self.0.1.notify();
    }

    fn future(&self) -> LocalFuture<T> {
        let given = self.0.clone();
        Box::pin(async move {
            given.1.wait().await;
            given.0.take().expect("it is given once")
        })
    }
}

/// A coordinator whose answers are given by the test.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) asked: RefCell<Vec<Question>>,
    answers: RefCell<VecDeque<Given<Result<Admission, LogError>>>>,
    /// Says yes at once.
    answers_at_once: Cell<bool>,
}

impl TransactionGate for Gate {
    fn ask(&self, question: Question) -> LocalFuture<Result<Admission, LogError>> {
        self.asked.borrow_mut().push(question);
        if self.answers_at_once.get() {
            return Box::pin(std::future::ready(Ok(Admission::Confirmed)));
        }
        let answer = Given::new();
        let future = answer.future();
        self.answers.borrow_mut().push_back(answer);
        future
    }
}

impl Gate {
    pub(super) fn set(store: &Rc<Store<SimIo>>) -> Rc<Self> {
        let gate = Rc::<Self>::default();
        store.set_transaction_gate(gate.clone());
        gate
    }

    pub(super) fn answer(&self, answer: Result<Admission, LogError>) {
        self.answers.borrow_mut().pop_front().expect("somebody asked").give(answer);
    }
}

fn of_id(adds: Adds) -> TransactionalProducer {
    TransactionalProducer { transactional_id: "t".into(), adds }
}

pub(super) fn send(
    store: &Rc<Store<SimIo>>,
    part: ProducePartition,
    adds: Adds,
) -> impl Future<Output = Result<i64, LogError>> {
    let taken = store.append_in_transaction(part, &of_id(adds), Acks::All);
    async move { done(taken).await.map(|produced| produced.base_offset) }
}

#[test]
fn a_batch_that_is_asked_for_is_not_passed_by_its_producers_next_ones() {
    in_store(&[], |store| async move {
        let gate = Gate::set(&store);
        let held = [0, 1, 2].map(|sequence| send(&store, batch(7, 0, sequence, "a"), Adds::Add));
        assert_eq!(append(&store, plain("other")).await, Ok(0), "others go on");
        gate.answer(Ok(Admission::Confirmed));
        assert_eq!(futures_util::future::join_all(held).await, [Ok(1), Ok(2), Ok(3)]);
        assert_eq!(gate.asked.borrow().len(), 1);
        assert_eq!(gate.asked.borrow()[0].producer, of_id(Adds::Add));
        assert_eq!(send(&store, batch(7, 0, 3, "b"), Adds::Add).await, Ok(4), "it is confirmed");
        assert_eq!(gate.asked.borrow().len(), 1);
    });
}

#[test]
fn a_no_counts_for_all_that_waits_and_the_next_one_asks_again() {
    in_store(&[], |store| async move {
        let gate = Gate::set(&store);
        let held = [0, 1].map(|sequence| send(&store, batch(7, 0, sequence, "a"), Adds::Verify));
        gate.answer(Err(LogError::TransactionAbortable("not in it")));
        let refused = Err(LogError::TransactionAbortable("not in it"));
        assert_eq!(futures_util::future::join_all(held).await, [refused.clone(), refused]);
        let again = send(&store, batch(7, 0, 0, "a"), Adds::Verify);
        gate.answer(Ok(Admission::Confirmed));
        assert_eq!(again.await, Ok(0));
    });
}

#[test]
fn a_coordinator_that_does_not_answer_is_not_waited_for_for_ever() {
    in_store(&[], |store| async move {
        let _gate = Gate::set(&store);
        let began = store.io.elapsed();
        let held = send(&store, batch(7, 0, 0, "a"), Adds::Add);
        assert!(matches!(held.await, Err(LogError::ConcurrentTransactions(_))));
        assert!(store.io.elapsed() - began >= Duration::from_secs(10));
        assert_eq!(store.bounds(id(0)).unwrap().1, 0);
    });
}

/// Verified, aborted, and only then appended, a batch began a transaction that nobody ended (KAFKA-14884).
#[test]
fn an_answer_from_before_a_marker_does_not_count() {
    in_store(&[], |store| async move {
        let gate = Gate::set(&store);
        let held = send(&store, batch(7, 0, 0, "a"), Adds::Verify);
        let lenient = Marker { transaction_version: 0, ..marker(7, 0, Outcome::Abort) };
        end(&store, lenient).await.unwrap();
        gate.answer(Ok(Admission::Confirmed));
        while gate.asked.borrow().len() < 2 {
            store.io.sleep(Duration::from_millis(1)).await;
        }
        gate.answer(Err(LogError::TransactionAbortable("it was aborted")));
        assert_eq!(held.await, Err(LogError::TransactionAbortable("it was aborted")));
        assert!(store.open_transactions().is_empty());
    });
}

#[test]
fn a_batch_is_acknowledged_once_its_coordinator_has_its_record_on_stable_storage() {
    in_store(&[], |store| async move {
        let gate = Gate::set(&store);
        let confirmed = Given::new();
        let mut first = Box::pin(send(&store, batch(7, 0, 0, "a"), Adds::Add));
        gate.answer(Ok(Admission::Pending(confirmed.future())));
        while store.bounds(id(0)).unwrap().1 < 1 {
            store.io.sleep(Duration::from_millis(1)).await;
        }
        let mut second = Box::pin(send(&store, batch(7, 0, 1, "b"), Adds::Add));
        while store.bounds(id(0)).unwrap().1 < 2 {
            store.io.sleep(Duration::from_millis(1)).await;
        }
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        assert!(!store.open_transactions()[0].confirmed);
        confirmed.give(Err(LogError::StorageFull));
        assert_eq!((first.await, second.await), (Err(LogError::StorageFull), Err(LogError::StorageFull)));
        // Sent again, it is in the log, but nobody would end it: so its coordinator is asked once more.
        let again = send(&store, batch(7, 0, 0, "a"), Adds::Add);
        assert_eq!(gate.asked.borrow().len(), 2);
        gate.answer(Ok(Admission::Confirmed));
        assert_eq!(again.await, Ok(0));
        assert!(store.open_transactions()[0].confirmed);
    });
}

/// The record that lets a partition in was lost with the process, and the batch beside it was not: what was nobody's was aborted,
/// and the batch, sent again, was answered as one that is there (an answered commit lacked it).
#[test]
fn a_batch_that_was_aborted_as_nobodys_is_asked_for_and_written_again() {
    in_store(&[], |store| async move {
        let gate = Gate::set(&store);
        let confirmed = Given::new();
        let first = send(&store, batch(7, 0, 0, "a"), Adds::Add);
        gate.answer(Ok(Admission::Pending(confirmed.future())));
        while store.bounds(id(0)).unwrap().1 < 1 {
            store.io.sleep(Duration::from_millis(1)).await;
        }
        confirmed.give(Err(LogError::ShuttingDown));
        assert!(first.await.is_err());
        let decided = Decided::ByNobody { first_offset: 0, last_batch_at: 0, was_confirmed: false };
        let nobodys = Marker { transaction_version: 0, decided, ..marker(7, 0, Outcome::Abort) };
        assert_eq!(end(&store, nobodys).await, Ok(1));
        assert!(end(&store, nobodys).await.is_err(), "it has ended");
        let again = send(&store, batch(7, 0, 0, "a"), Adds::Add);
        assert_eq!(gate.asked.borrow().len(), 2);
        gate.answer(Ok(Admission::Confirmed));
        assert_eq!(again.await, Ok(2));
        for first_offset in [0, 2] {
            let decided = Decided::ByNobody { first_offset, last_batch_at: first_offset, was_confirmed: false };
            let late = end(&store, Marker { decided, ..nobodys }).await;
            assert!(matches!(late, Err(LogError::InvalidTxnState(_))), "what is acknowledged is somebody's: {late:?}");
        }
        assert_eq!(end(&store, marker(7, 1, Outcome::Commit)).await, Ok(3));
        let told = fetch(&store, 0).await;
        assert_eq!(aborted(&told), [(7, 0)]);
    });
}

#[test]
fn a_coordinator_that_answers_at_once_holds_nothing_up() {
    in_store(&[], |store| async move {
        let gate = Gate::set(&store);
        gate.answers_at_once.set(true);
        let first = store.append_in_transaction(batch(7, 0, 0, "a"), &of_id(Adds::Add), Acks::All);
        assert!(matches!(first, Taken::Now(Ok(_))));
        let unknown = store.append_in_transaction(batch(8, 0, 5, "a"), &of_id(Adds::Add), Acks::All);
        assert!(matches!(unknown, Taken::Now(Err(LogError::OutOfOrderSequence(_)))), "it begins with sequence 0");
        let verified = store.append_in_transaction(batch(8, 0, 5, "a"), &of_id(Adds::Verify), Acks::All);
        assert!(matches!(verified, Taken::Now(Ok(_))), "it may have been forgotten");
    });
}

#[test]
fn a_trim_past_an_open_transaction_leaves_it_open() {
    in_store(&[], |store| async move {
        write(&store, 7, 0, 0, "a").await;
        append(&store, plain("b")).await.unwrap();
        append(&store, plain("c")).await.unwrap();
        assert_eq!(store.trim(id(0), 2).await, Ok(2));
        let fetched = fetch(&store, 2).await;
        assert_eq!((fetched.last_stable_offset, fetched.records.len()), (2, 0));
        end(&store, marker(7, 1, Outcome::Abort)).await.unwrap();
        let fetched = fetch(&store, 2).await;
        assert_eq!((fetched.last_stable_offset, offsets(&fetched)), (4, vec![2, 3]));
    });
}

#[test]
fn producers_with_an_open_transaction_do_not_expire() {
    in_store(&[], |store| async move {
        write(&store, 7, 0, 0, "a").await;
        write(&store, 8, 0, 0, "b").await;
        end(&store, marker(8, 1, Outcome::Abort)).await.unwrap();
        store.retain(-1_000_000).await;
        let left = store.active_producers(id(0)).unwrap();
        assert_eq!(left.iter().map(|one| one.producer_id).collect::<Vec<_>>(), [7]);
    });
}

#[test]
fn nothing_of_a_transaction_is_taken_before_the_catalog_says_so() {
    in_store(&[], |store| async move {
        store.transactions_in_use.set(false);
        let refused = |error: LogError| matches!(error, LogError::InvalidTxnState(_));
        assert!(refused(append(&store, batch(7, 0, 0, "a")).await.unwrap_err()));
        assert!(refused(store.let_in(id(0), 7, 0).unwrap_err()));
        assert!(refused(end(&store, marker(7, 0, Outcome::Abort)).await.unwrap_err()));
    });
}

const COMPACTED: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("internal.segment.bytes", "1200"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("delete.retention.ms", "1000"),
];

/// Brings all to segments, ends the active one, and compacts.
async fn compact(store: &Rc<Store<SimIo>>, count: usize) {
    for at in 0..6 {
        append(store, plain(&format!("filler-{count}-{at}"))).await.unwrap();
    }
    store.materialise_all().await;
    store.compact().await;
    evict(store);
}

/// Base offsets of the batches below an offset, with the number of their records.
async fn left_below(store: &Rc<Store<SimIo>>, end: i64) -> Vec<(i64, i32)> {
    let fetched = store.read(&part(0, ReadBound::HighWatermark), 1 << 20, true).await.unwrap();
    let mut left = Vec::new();
    for chunk in &fetched.records.chunks {
        for one in batches(chunk.as_slice().unwrap()) {
            let (info, bytes) = one.unwrap();
            assert_eq!(records(bytes).unwrap().len(), usize::try_from(info.record_count).unwrap());
            left.extend((info.base_offset < end).then_some((info.base_offset, info.record_count)));
        }
    }
    left
}

#[test]
fn aborted_records_go_at_once_and_their_marker_two_rounds_later() {
    in_store(COMPACTED, |store| async move {
        append(&store, plain("k")).await.unwrap(); // 0: the newest value, as 1 does not count
        write(&store, 7, 0, 0, "k").await; // 1
        end(&store, marker(7, 1, Outcome::Abort)).await.unwrap(); // 2
        write(&store, 7, 1, 0, "c").await; // 3
        end(&store, marker(7, 2, Outcome::Commit)).await.unwrap(); // 4
        write(&store, 7, 2, 0, "z").await; // 5: the producer's last one
        end(&store, marker(7, 3, Outcome::Commit)).await.unwrap(); // 6
        append(&store, plain("c")).await.unwrap(); // 7: newer than 3
        compact(&store, 0).await;
        let first = left_below(&store, 8).await;
        assert_eq!(first, [(0, 1), (2, 1), (4, 1), (5, 1), (6, 1), (7, 1)], "records go at once");
        compact(&store, 1).await;
        assert_eq!(left_below(&store, 8).await, first, "markers of nothing get their horizon");
        store.io.sleep(Duration::from_secs(2)).await;
        compact(&store, 2).await;
        assert_eq!(left_below(&store, 8).await, [(0, 1), (5, 1), (6, 1), (7, 1)], "and go");
        let fetched = fetch(&store, 0).await;
        assert_eq!(aborted(&fetched), []);
    });
}

#[test]
fn what_is_not_decided_is_not_compacted() {
    in_store(COMPACTED, |store| async move {
        append(&store, plain("k")).await.unwrap();
        write(&store, 7, 0, 0, "k").await;
        compact(&store, 0).await;
        assert_eq!(left_below(&store, 2).await, [(0, 1), (1, 1)]);
        end(&store, marker(7, 1, Outcome::Commit)).await.unwrap();
        compact(&store, 1).await;
        assert_eq!(left_below(&store, 2).await, [(1, 1)]);
    });
}

#[test]
fn a_segment_ends_before_it_has_too_many_aborted_transactions() {
    use crate::format::transactions::ABORTED_OF_SEGMENT_MAX;
    // batches are of 1970, markers are not
    in_store(&[("segment.ms", "9000000000000")], |store| async move {
        let rounds = i64::try_from(ABORTED_OF_SEGMENT_MAX / 1_000 + 2).unwrap();
        for round in 0..rounds {
            for producer in round * 1_000..(round + 1) * 1_000 {
                store.let_in(id(0), producer, 0).unwrap();
                let taken = store.append(batch(producer, 0, 0, "k"), AppendOrigin::Client, Acks::All);
                taken.appended().await.unwrap();
            }
            let markers = (round * 1_000..(round + 1) * 1_000).map(|producer| marker(producer, 1, Outcome::Abort));
            for taken in store.append_markers(markers.collect()) {
                taken.unwrap().1.wait().await.unwrap();
            }
        }
        store.materialise_all().await;
        let cell = store.partition(id(0)).unwrap();
        let segments = cell.borrow().segments().all().len();
        assert_eq!(segments, 2);
        evict(&store);
        let first = fetch(&store, 0).await;
        assert_eq!(aborted(&first)[0], (0, 0));
        assert_eq!(store.read(&part(0, ReadBound::LastStable), 400, true).await.unwrap().aborted.unwrap().len(), 1);
    });
}

/// What is appended by a step.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(i64),
    End(i64, Outcome),
    Plain,
}

/// One offset each. Transactions lie across each other; producer 1 has three.
const STEPS: &[Step] = {
    use Step::{End, Plain, Write};
    &[
        Write(1),
        Plain,
        Write(2),
        End(1, Outcome::Abort),
        Write(1),
        Write(3),
        Plain,
        End(1, Outcome::Commit),
        Plain,
        End(3, Outcome::Abort),
        Write(1),
        Plain,
        End(2, Outcome::Commit),
        End(1, Outcome::Abort),
        Plain,
        Write(2),
    ]
};

async fn take_steps(store: &Rc<Store<SimIo>>, materialise: impl Fn(usize) -> bool) {
    let mut producers = BTreeMap::from([(1, (0, 0)), (2, (0, 0)), (3, (0, 0))]);
    for (at, step) in STEPS.iter().enumerate() {
        match step {
            Step::Plain => drop(append(store, plain("p")).await.unwrap()),
            Step::Write(producer) => {
                let (epoch, sequence) = producers[producer];
                write(store, *producer, epoch, sequence, "k").await;
                producers.insert(*producer, (epoch, sequence + 1));
            }
            Step::End(producer, outcome) => {
                let (epoch, _) = producers[producer];
                end(store, marker(*producer, epoch + 1, *outcome)).await.unwrap();
                producers.insert(*producer, (epoch + 1, 0));
            }
        }
        if materialise(at) {
            store.materialise_all().await;
        }
    }
}

/// Producers and first offsets.
type Begun = Vec<(i64, i64)>;

/// Open transactions and aborted ones of the first so many steps.
fn after_steps(count: usize) -> (Begun, Begun) {
    let (mut open, mut aborted) = (BTreeMap::new(), Vec::new());
    for (offset, step) in (0..).zip(&STEPS[..count]) {
        match step {
            Step::Plain => {}
            Step::Write(producer) => drop(open.entry(*producer).or_insert(offset)),
            Step::End(producer, outcome) => {
                let first = open.remove(producer).unwrap();
                aborted.extend((*outcome == Outcome::Abort).then_some((*producer, first)));
            }
        }
    }
    let mut open: Vec<_> = open.into_iter().collect();
    open.sort_unstable_by_key(|(_, first)| *first);
    (open, aborted)
}

async fn check_after_steps(store: &Rc<Store<SimIo>>, count: usize, what: &str) {
    let (open, told) = after_steps(count);
    let found: Vec<_> = store.open_transactions().iter().map(|open| (open.producer_id, open.first_offset)).collect();
    assert_eq!(found, open, "{what}");
    let stable = open.first().map_or(count as i64, |(_, first)| *first);
    let fetched = fetch(store, 0).await;
    assert_eq!(fetched.last_stable_offset, stable, "{what}");
    let below: Vec<_> = told.into_iter().filter(|(_, first)| *first < stable).collect();
    assert_eq!(aborted(&fetched), below, "{what}");
}

#[test]
fn a_cut_opens_again_what_markers_had_ended_that_it_takes() {
    const SETTINGS: &[(&str, &str)] = &[("internal.segment.bytes", "1500")];
    for count in 0..=STEPS.len() {
        for (materialised, in_memory) in [(0, true), (7, true), (7, false), (99, true), (99, false)] {
            let what = format!("{count} steps are left, {materialised} were in segments, {in_memory}");
            let sim = Sim::new(5);
            let cut = |io: SimIo| {
                let what = what.clone();
                async move {
                    let store = open(io, 1, SETTINGS).await;
                    take_steps(&store, |at| at < materialised).await;
                    if !in_memory {
                        evict(&store);
                    }
                    check_after_steps(&store, STEPS.len(), &what).await;
                    store.follow(id(0), 1).await.unwrap();
                    store.truncate(id(0), count as i64, crate::replica::CutBytes::Drop).await.unwrap();
                    store.advance_high_watermark(id(0), count as i64).unwrap();
                    check_after_steps(&store, count, &what).await;
                }
            };
            sim.run_until(cut(sim.io())).unwrap();
            sim.crash();
            let io = sim.restart();
            let again = async move {
                let store = open(io, 2, SETTINGS).await;
                check_after_steps(&store, count, &format!("{what}, after a restart")).await;
                store.materialise_all().await;
                evict(&store);
                check_after_steps(&store, count, &format!("{what}, after a restart, in segments")).await;
            };
            sim.run_until(again).unwrap();
        }
    }
}
