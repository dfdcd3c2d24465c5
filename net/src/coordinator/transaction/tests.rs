//! Every cell of the table of requests and states, and what holds between requests: as conversations with one machine whose
//! log takes everything at once, or when the test says so.

use std::{cell::RefCell, rc::Rc};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::TopicPartition,
    transactions::{Marker, OpenTransaction, Outcome},
};
use uuid::Uuid;

use super::{
    AddPartitions, Budget, Coordinator, Description, EndTransaction, Errand, Filter, InitProducerId, Marking,
    PartitionName, Place, Producer, Settings, State, Surroundings,
    coordinator::HOLD_MAX_MS,
    metadata::{LAST_EPOCH, Metadata, NO_PRODUCER},
    record::TransactionRecord,
};
use crate::coordinator::runtime::{Inbox, LogRecord, Machine, Replayed, Reply, Verdict};

const ID: &str = "id";
const TIMEOUT_MS: i32 = 60_000;
const NO_ERROR: Result<Producer, ResponseError> = Ok(NO_PRODUCER);

/// Topics by their names: those that begin with `h` are here, with `g` gone, all others elsewhere.
#[derive(Default)]
struct Around {
    version: std::cell::Cell<i16>,
    gone: RefCell<Vec<String>>,
}

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(topic.bytes().fold(1, |id, byte| id * 256 + u128::from(byte))), partition }
}

impl Surroundings for Around {
    fn place(&self, (topic, index): &PartitionName) -> Place {
        if self.gone.borrow().iter().any(|gone| **gone == **topic) {
            return Place::Gone;
        }
        match topic.as_bytes() {
            [b'h', ..] => Place::Here(at(topic, *index)),
            _ => Place::Elsewhere(at(topic, *index)),
        }
    }

    fn transaction_version(&self) -> i16 {
        self.version.get()
    }
}

#[derive(Debug, PartialEq)]
enum Told {
    Producer(Result<Producer, ResponseError>),
    Done(Result<(), ResponseError>),
    Verified(Result<Vec<bool>, ResponseError>),
    Described(Result<Description, ResponseError>),
}

/// A machine with its log, and partitions that take every marker.
struct World {
    around: Rc<Around>,
    budget: Rc<Budget>,
    machine: Coordinator,
    now_ms: i64,
    log: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Markers that came with records, and those that were sent.
    marked: Vec<Marker>,
    /// Writes, markers and producer ids wait for the test while this is set.
    is_slow: bool,
    sent: Vec<Marking>,
    admitted: Vec<(Vec<TopicPartition>, Producer)>,
    ids_asked: usize,
    next_producer_id: i64,
    told: Inbox<Told>,
}

impl World {
    fn new(version: i16) -> Self {
        let around = Rc::new(Around::default());
        around.version.set(version);
        let budget = Rc::<Budget>::default();
        let machine = Self::machine(&around, &budget);
        let mut world = Self {
            around,
            budget,
            machine,
            now_ms: 1_000_000,
            log: Vec::new(),
            marked: Vec::new(),
            is_slow: false,
            sent: Vec::new(),
            admitted: Vec::new(),
            ids_asked: 0,
            next_producer_id: 100,
            told: Inbox::new(),
        };
        world.machine.on_loaded(world.now_ms);
        world
    }

    fn machine(around: &Rc<Around>, budget: &Rc<Budget>) -> Coordinator {
        Coordinator::new(Rc::new(Settings::default()), Rc::clone(around) as _, Rc::clone(budget), 0)
    }

    /// The machine ends where it is, and another one reads the log.
    fn restart(&mut self) {
        self.machine = Self::machine(&self.around, &self.budget);
        self.ids_asked = 0;
        for (offset, (key, value)) in self.log.iter().enumerate() {
            let record = Replayed { offset: offset as i64, producer: None, key, value: value.as_deref() };
            self.machine.replay(&record).expect("it was just written");
        }
        self.machine.on_loaded(self.now_ms);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            self.machine.take_replies().into_iter().for_each(Reply::send);
            let mut is_done = true;
            for errand in self.machine.take_errands() {
                is_done = false;
                match errand {
                    Errand::ProducerId => self.ids_asked += 1,
                    Errand::Admit(partitions, producer) => self.admitted.push((partitions, producer)),
                    Errand::Mark(marking) => self.sent.push(marking),
                }
            }
            if !self.is_slow {
                is_done &= !self.work();
            }
            if is_done {
                return;
            }
        }
    }

    /// Does what waits.
    fn work(&mut self) -> bool {
        let has_written = self.write();
        let has_marked = self.mark(|_| Ok(()));
        let is_asked = self.ids_asked > 0;
        for _ in 0..std::mem::take(&mut self.ids_asked) {
            self.next_producer_id += 1;
            self.machine.handle_producer_id(self.now_ms, Ok(self.next_producer_id));
        }
        has_written || has_marked || is_asked
    }

    fn write(&mut self) -> bool {
        let writes = self.machine.take_writes();
        let has_some = !writes.is_empty();
        for write in writes {
            let offset = self.log.len() as i64;
            self.log.extend(write.records.iter().map(|record| (record.key(), record.value())));
            self.marked.extend(write.markers);
            assert_eq!(self.machine.on_persisted(self.now_ms, write.id, Ok(offset)), Verdict::Stands);
        }
        has_some
    }

    fn mark(&mut self, answer: impl Fn(&PartitionName) -> Result<(), ResponseError>) -> bool {
        let sent = std::mem::take(&mut self.sent);
        for marking in &sent {
            let marked = marking.markers.iter().map(|(name, marker)| {
                let answer = answer(name);
                if answer.is_ok() {
                    self.marked.push(*marker);
                }
                (name.clone(), answer)
            });
            let marked = marked.collect();
            self.machine.handle_marked(self.now_ms, marking, marked);
        }
        !sent.is_empty()
    }

    fn advance(&mut self, by_ms: i64) {
        self.now_ms += by_ms;
        self.machine.handle_timeouts(self.now_ms);
        self.machine.handle_tick(self.now_ms);
        self.settle();
    }

    /// What was told since the last look.
    fn heard(&mut self) -> Vec<Told> {
        self.settle();
        self.told.take()
    }

    fn only(&mut self) -> Told {
        let mut heard = self.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        heard.remove(0)
    }

    fn ask_init(&mut self, expected: Option<Producer>) {
        let ticket = self.told.ticket(|answer| Some(Told::Producer(answer.and_then(|answer| answer))));
        let init = InitProducerId { timeout_ms: TIMEOUT_MS, expected };
        self.machine.handle_init_producer_id(self.now_ms, ID, init, ticket);
        self.settle();
    }

    fn init(&mut self, expected: Option<Producer>) -> Result<Producer, ResponseError> {
        self.ask_init(expected);
        match self.only() {
            Told::Producer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn ask_add(&mut self, producer: Producer, topic: &str, version: i16) {
        let ticket = self.told.ticket(|answer| Some(Told::Done(answer.and_then(|answer| answer))));
        let partitions = [(Rc::from(topic), 0)].into();
        let add = AddPartitions { producer, partitions, client_version: version };
        self.machine.handle_add_partitions(self.now_ms, ID, add, ticket);
        self.settle();
    }

    fn add(&mut self, producer: Producer, topic: &str, version: i16) -> Result<(), ResponseError> {
        self.ask_add(producer, topic, version);
        match self.only() {
            Told::Done(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn verify(&mut self, producer: Producer, topics: &[&str]) -> Result<Vec<bool>, ResponseError> {
        let ticket = self.told.ticket(|answer| Some(Told::Verified(answer.and_then(|answer| answer))));
        let partitions: Vec<_> = topics.iter().map(|topic| (Rc::from(*topic), 0)).collect();
        self.machine.handle_verify(ID, producer, &partitions, ticket);
        match self.only() {
            Told::Verified(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn ask_end(&mut self, producer: Producer, outcome: Outcome, version: i16) {
        let ticket = self.told.ticket(|answer| Some(Told::Producer(answer.and_then(|answer| answer))));
        let end = EndTransaction { producer, outcome, client_version: version };
        self.machine.handle_end(self.now_ms, ID, end, ticket);
        self.settle();
    }

    fn end(&mut self, producer: Producer, outcome: Outcome, version: i16) -> Result<Producer, ResponseError> {
        self.ask_end(producer, outcome, version);
        match self.only() {
            Told::Producer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn describe(&mut self) -> Result<Description, ResponseError> {
        let ticket = self.told.ticket(|answer| Some(Told::Described(answer.and_then(|answer| answer))));
        self.machine.handle_describe(ID, ticket);
        match self.only() {
            Told::Described(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self) -> State {
        self.describe().expect("the id is known").state
    }

    /// A world whose id is in a state, with the producer that it has.
    fn in_state(version: i16, state: State) -> (Self, Producer) {
        let mut world = Self::new(version);
        let producer = world.init(None).unwrap();
        let outcome = match state {
            State::Empty => return (world, producer),
            State::Ongoing => {
                world.add(producer, "elsewhere", version).unwrap();
                return (world, producer);
            }
            State::PrepareCommit | State::CompleteCommit => Commit,
            State::PrepareAbort | State::CompleteAbort => Abort,
        };
        world.add(producer, "elsewhere", version).unwrap();
        if state.is_prepared() {
            world.is_slow = true;
            world.ask_end(producer, outcome, version);
            world.write();
            world.settle();
            assert_eq!(world.told.take(), []);
        } else {
            world.end(producer, outcome, version).unwrap();
        }
        let bumped = if version == 2 { 1 } else { 0 };
        assert_eq!(world.state(), state);
        (world, Producer { epoch: producer.epoch + bumped, ..producer })
    }

    /// Sets the state of the id, as if the log had said so.
    fn set(&mut self, metadata: Metadata) {
        let record = TransactionRecord { id: ID.into(), metadata: Some(metadata), version: 1 };
        self.log.push((record.key(), record.value()));
        self.restart();
    }
}

fn epoch(producer: Producer, by: i16) -> Producer {
    Producer { epoch: producer.epoch + by, ..producer }
}

const OTHER: i64 = 9_999;

fn other(producer: Producer) -> Producer {
    Producer { id: OTHER, ..producer }
}

use Outcome::{Abort, Commit};
use ResponseError::{ConcurrentTransactions, InvalidProducerIdMapping, InvalidTxnState, ProducerFenced};

// ---- InitProducerId without an expected producer

#[test]
fn init_of_no_such_id_creates_it_at_epoch_0() {
    let mut world = World::new(2);
    assert_eq!(world.init(None), Ok(Producer { id: 101, epoch: 0 }));
    assert_eq!(world.state(), State::Empty);
    let mut world = World::new(2);
    assert_eq!(world.init(Some(Producer { id: 5, epoch: 7 })), Ok(Producer { id: 101, epoch: 0 }));
}

#[test]
fn init_bumps_the_epoch_of_an_id_that_is_at_rest() {
    for version in [0, 2] {
        for state in [State::Empty, State::CompleteCommit, State::CompleteAbort] {
            let (mut world, producer) = World::in_state(version, state);
            assert_eq!(world.init(None), Ok(epoch(producer, 1)), "{version} {state:?}");
            assert_eq!(world.state(), State::Empty);
        }
    }
}

/// Exactly one bump for the fence (KAFKA-19367), and one for the client.
#[test]
fn init_aborts_what_is_ongoing_and_is_held_until_that_is_over() {
    for version in [0, 2] {
        let (mut world, producer) = World::in_state(version, State::Ongoing);
        assert_eq!(world.init(None), Ok(epoch(producer, 2)), "{version}");
        let marker = world.marked.pop().unwrap();
        assert_eq!((marker.producer_epoch, marker.outcome), (producer.epoch + 1, Abort));
        assert_eq!(marker.transaction_version, version);
        assert_eq!(world.add(producer, "x", version), Err(ProducerFenced));
    }
}

#[test]
fn init_while_an_end_is_under_way_is_held() {
    for state in [State::PrepareCommit, State::PrepareAbort] {
        let (mut world, producer) = World::in_state(2, state);
        world.ask_init(None);
        assert_eq!(world.told.take(), []);
        world.is_slow = false;
        let heard = world.heard();
        assert_eq!(heard, [Told::Producer(Ok(producer)), Told::Producer(Ok(epoch(producer, 1)))]);
    }
}

#[test]
fn who_is_held_too_long_is_told_to_try_again() {
    let (mut world, producer) = World::in_state(2, State::PrepareCommit);
    world.ask_init(None);
    world.ask_add(producer, "x", 2);
    world.advance(HOLD_MAX_MS - 1);
    assert_eq!(world.told.take(), []);
    world.advance(1);
    let late = [
        Told::Producer(Err(ConcurrentTransactions)),
        Told::Done(Err(ConcurrentTransactions)),
        Told::Producer(Err(ConcurrentTransactions)),
    ];
    assert_eq!(world.told.take(), late);
    // the end itself goes on, and its repetition is answered
    world.is_slow = false;
    world.settle();
    assert_eq!(world.end(epoch(producer, -1), Commit, 2), Ok(producer));
}

#[test]
fn timeouts_beyond_the_limit_are_refused() {
    let mut world = World::new(2);
    for timeout_ms in [0, -1, 900_001] {
        let ticket = world.told.ticket(|answer| Some(Told::Producer(answer.and_then(|answer| answer))));
        let init = InitProducerId { timeout_ms, expected: None };
        world.machine.handle_init_producer_id(world.now_ms, ID, init, ticket);
        assert_eq!(world.only(), Told::Producer(Err(ResponseError::InvalidTransactionTimeout)));
    }
}

// ---- InitProducerId with an expected producer (KIP-360)

#[test]
fn init_of_another_producer_is_fenced() {
    for state in [State::Empty, State::Ongoing, State::CompleteCommit] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.init(Some(other(producer))), Err(ProducerFenced), "{state:?}");
    }
}

#[test]
fn init_of_the_current_producer_bumps_and_its_repetition_does_not() {
    let (mut world, producer) = World::in_state(2, State::CompleteAbort);
    assert_eq!(world.init(Some(producer)), Ok(epoch(producer, 1)));
    assert_eq!(world.init(Some(producer)), Ok(epoch(producer, 1)));
    world.restart();
    // KAFKA-20357: Kafka has forgotten that after a restart
    assert_eq!(world.init(Some(producer)), Ok(epoch(producer, 1)));
    assert_eq!(world.init(Some(epoch(producer, -1))), Err(ProducerFenced));
    assert_eq!(world.init(Some(epoch(producer, 2))), Err(ProducerFenced));
}

/// Kafka aborts the transaction of the successor before it fences the zombie.
#[test]
fn init_of_a_zombie_leaves_the_ongoing_transaction_alone() {
    let (mut world, producer) = World::in_state(2, State::Ongoing);
    assert_eq!(world.init(Some(epoch(producer, 5))), Err(ProducerFenced));
    assert_eq!(world.state(), State::Ongoing);
}

#[test]
fn an_exhausted_epoch_goes_on_with_another_producer_id() {
    for expects in [false, true] {
        let mut world = World::new(2);
        world.set(Metadata { epoch: LAST_EPOCH, ..Metadata::new(7, TIMEOUT_MS, 0) });
        let current = Producer { id: 7, epoch: LAST_EPOCH };
        let expected = expects.then_some(current);
        assert_eq!(world.init(expected), Ok(Producer { id: 101, epoch: 0 }));
        // who has not got the answer gets it again, also after a restart
        world.restart();
        let again = world.init(Some(current));
        assert_eq!(again, if expects { Ok(Producer { id: 101, epoch: 0 }) } else { Err(ProducerFenced) });
    }
}

#[test]
fn an_exhausted_epoch_and_another_expected_one_is_fenced() {
    let mut world = World::new(2);
    world.set(Metadata { epoch: LAST_EPOCH, ..Metadata::new(7, TIMEOUT_MS, 0) });
    assert_eq!(world.init(Some(Producer { id: 7, epoch: 3 })), Err(ProducerFenced));
}

// ---- AddPartitionsToTxn, AddOffsetsToTxn, implicit adds

#[test]
fn adds_to_no_such_id_are_refused() {
    let mut world = World::new(2);
    assert_eq!(world.add(Producer { id: 1, epoch: 0 }, "x", 2), Err(InvalidProducerIdMapping));
    assert_eq!(world.verify(Producer { id: 1, epoch: 0 }, &["x"]), Err(InvalidProducerIdMapping));
}

#[test]
fn adds_of_another_producer_or_epoch_are_refused() {
    for state in [State::Empty, State::Ongoing, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.add(other(producer), "x", 2), Err(InvalidProducerIdMapping), "{state:?}");
        for wrong in [epoch(producer, -1), epoch(producer, 1)] {
            assert_eq!(world.add(wrong, "x", 2), Err(ProducerFenced), "{state:?}");
        }
    }
}

#[test]
fn adds_begin_a_transaction_or_go_on_with_it() {
    for state in [State::Empty, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(2, state);
        world.advance(5);
        assert_eq!(world.add(producer, "x", 2), Ok(()), "{state:?}");
        let described = world.describe().unwrap();
        assert_eq!((described.state, described.start_ms), (State::Ongoing, world.now_ms));
        assert_eq!(described.partitions, [("x".to_owned(), 0)]);
        world.advance(5);
        assert_eq!(world.add(producer, "y", 2), Ok(()));
        assert_eq!(world.describe().unwrap().start_ms, world.now_ms - 5);
        // what is in already is not written again
        let records = world.log.len();
        assert_eq!(world.add(producer, "x", 2), Ok(()));
        assert_eq!(world.log.len(), records);
    }
}

#[test]
fn adds_are_held_until_the_end_before_them_is_over() {
    for state in [State::PrepareCommit, State::PrepareAbort] {
        let (mut world, producer) = World::in_state(2, state);
        world.ask_add(producer, "x", 2);
        assert_eq!(world.told.take(), []);
        assert!(!world.write(), "the record of the next transaction is not written before the markers are there");
        world.is_slow = false;
        assert_eq!(world.heard(), [Told::Producer(Ok(producer)), Told::Done(Ok(()))]);
        assert_eq!(world.state(), State::Ongoing);
    }
}

#[test]
fn adds_that_come_together_do_not_wait_for_each_other() {
    let (mut world, producer) = World::in_state(2, State::Empty);
    world.is_slow = true;
    world.ask_add(producer, "x", 2);
    world.ask_add(producer, "y", 2);
    world.ask_add(producer, "x", 2);
    assert_eq!(world.told.take(), [], "nothing is told before it is durable");
    assert!(world.write());
    assert_eq!(world.heard(), [Told::Done(Ok(())), Told::Done(Ok(())), Told::Done(Ok(()))]);
}

#[test]
fn owners_are_told_of_partitions_that_were_added_by_version_0_once_that_is_durable() {
    let (mut world, producer) = World::in_state(0, State::Empty);
    world.is_slow = true;
    world.ask_add(producer, "x", 0);
    assert_eq!(world.admitted, []);
    world.write();
    world.settle();
    assert_eq!(world.admitted, [(vec![at("x", 0)], producer)]);
    world.admitted.clear();
    world.is_slow = false;
    world.restart();
    assert_eq!(world.admitted, [(vec![at("x", 0)], producer)]);
}

// ---- AddPartitionsToTxn, only verified

#[test]
fn verification_says_which_partitions_are_in() {
    let (mut world, producer) = World::in_state(2, State::Ongoing);
    assert_eq!(world.verify(producer, &["elsewhere", "x"]), Ok(vec![true, false]));
    assert_eq!(world.verify(other(producer), &["elsewhere"]), Err(InvalidProducerIdMapping));
    assert_eq!(world.verify(epoch(producer, -1), &["elsewhere"]), Err(ProducerFenced));
    for state in [State::Empty, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.verify(producer, &["elsewhere"]), Ok(vec![false]), "{state:?}");
    }
}

#[test]
fn verification_while_an_end_is_under_way_is_to_be_tried_again() {
    for state in [State::PrepareCommit, State::PrepareAbort] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.verify(producer, &["elsewhere"]), Err(ConcurrentTransactions), "{state:?}");
    }
}

// ---- EndTxn by version 0

#[test]
fn end_by_version_0_keeps_the_epoch() {
    for (outcome, state) in [(Commit, State::CompleteCommit), (Abort, State::CompleteAbort)] {
        let (mut world, producer) = World::in_state(0, State::Ongoing);
        assert_eq!(world.end(producer, outcome, 0), NO_ERROR);
        assert_eq!(world.state(), state);
        assert_eq!((world.marked[0].producer_epoch, world.marked[0].outcome), (producer.epoch, outcome));
        assert_eq!(world.add(producer, "x", 0), Ok(()));
    }
}

#[test]
fn end_by_version_0_of_another_producer_or_epoch_is_refused() {
    let producer = Producer { id: 1, epoch: 0 };
    assert_eq!(World::new(0).end(producer, Commit, 0), Err(InvalidProducerIdMapping));
    for state in [State::Empty, State::Ongoing, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(0, state);
        assert_eq!(world.end(other(producer), Commit, 0), Err(InvalidProducerIdMapping), "{state:?}");
        for by in [-1, 1] {
            assert_eq!(world.end(epoch(producer, by), Commit, 0), Err(ProducerFenced), "{state:?}");
        }
    }
}

#[test]
fn end_by_version_0_in_other_states() {
    let same = |state| match state {
        State::CompleteCommit => Commit,
        _ => Abort,
    };
    for outcome in [Commit, Abort] {
        let (mut world, producer) = World::in_state(0, State::Empty);
        assert_eq!(world.end(producer, outcome, 0), Err(InvalidTxnState));
        for state in [State::CompleteCommit, State::CompleteAbort] {
            let (mut world, producer) = World::in_state(0, state);
            let is_same = outcome == same(state);
            let expected = if is_same { Ok(producer) } else { Err(InvalidTxnState) };
            assert_eq!(world.end(producer, outcome, 0), expected, "{state:?} {outcome:?}");
        }
        for (state, first) in [(State::PrepareCommit, Commit), (State::PrepareAbort, Abort)] {
            let (mut world, producer) = World::in_state(0, state);
            world.ask_end(producer, outcome, 0);
            assert_eq!(world.told.take(), [], "it is held");
            world.is_slow = false;
            let second = if outcome == first { Ok(producer) } else { Err(InvalidTxnState) };
            assert_eq!(world.heard(), [Told::Producer(NO_ERROR), Told::Producer(second)]);
        }
    }
}

// ---- EndTxn by version 2

#[test]
fn end_by_version_2_bumps_the_epoch_and_markers_carry_it() {
    for outcome in [Commit, Abort] {
        let (mut world, producer) = World::in_state(2, State::Ongoing);
        assert_eq!(world.end(producer, outcome, 2), Ok(epoch(producer, 1)));
        assert_eq!(world.marked[0].producer_epoch, producer.epoch + 1);
        // the repetition gets the same, and nothing more is marked
        assert_eq!(world.end(producer, outcome, 2), Ok(epoch(producer, 1)));
        world.restart();
        assert_eq!(world.end(producer, outcome, 2), Ok(epoch(producer, 1)));
        assert_eq!(world.marked.len(), 1);
    }
}

#[test]
fn end_by_version_2_at_rest_with_the_current_epoch() {
    for state in [State::Empty, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.end(producer, Commit, 2), Err(InvalidTxnState), "{state:?}");
        assert_eq!(world.end(producer, Abort, 2), Ok(epoch(producer, 1)), "{state:?}");
        assert_eq!(world.state(), State::CompleteAbort);
    }
}

#[test]
fn end_by_version_2_of_another_producer_or_epoch_is_refused() {
    let producer = Producer { id: 1, epoch: 0 };
    assert_eq!(World::new(2).end(producer, Commit, 2), Err(InvalidProducerIdMapping));
    for outcome in [Commit, Abort] {
        for state in [State::Empty, State::Ongoing] {
            let (mut world, producer) = World::in_state(2, state);
            assert_eq!(world.end(other(producer), outcome, 2), Err(InvalidProducerIdMapping), "{state:?}");
            for by in [-2, -1, 1] {
                assert_eq!(world.end(epoch(producer, by), outcome, 2), Err(ProducerFenced), "{state:?} {by}");
            }
        }
    }
}

#[test]
fn end_by_version_2_repeated_with_another_outcome_is_refused() {
    let (mut world, producer) = World::in_state(2, State::CompleteCommit);
    assert_eq!(world.end(epoch(producer, -1), Abort, 2), Err(InvalidTxnState));
    assert_eq!(world.end(epoch(producer, -2), Commit, 2), Err(ProducerFenced));
}

/// KAFKA-20785: the error of the invalid state is fatal to Kafka Streams.
#[test]
fn a_commit_after_the_timeout_is_fenced_by_version_2() {
    let (mut world, producer) = World::in_state(2, State::Ongoing);
    world.advance(i64::from(TIMEOUT_MS) + 10_000);
    assert_eq!(world.state(), State::CompleteAbort);
    assert_eq!(world.end(producer, Commit, 2), Err(ProducerFenced));
    // an abort has happened as asked for: the producer may go on
    assert_eq!(world.end(producer, Abort, 2), Ok(epoch(producer, 1)));
}

#[test]
fn end_by_version_2_while_an_end_is_under_way_is_held() {
    for (state, first) in [(State::PrepareCommit, Commit), (State::PrepareAbort, Abort)] {
        let (mut world, producer) = World::in_state(2, state);
        world.ask_end(epoch(producer, -1), first, 2);
        assert_eq!(world.told.take(), []);
        world.is_slow = false;
        assert_eq!(world.heard(), [Told::Producer(Ok(producer)), Told::Producer(Ok(producer))]);
        assert_eq!(world.marked.len(), 1);
    }
}

/// KAFKA-18464: an empty abort right after a commit fenced its own producer.
#[test]
fn commit_begin_and_abort_back_to_back_are_never_refused() {
    let mut world = World::new(2);
    let mut producer = world.init(None).unwrap();
    for turn in 0..1000 {
        world.is_slow = turn % 3 == 0;
        world.ask_add(producer, if turn % 2 == 0 { "here" } else { "elsewhere" }, 2);
        world.ask_end(producer, Commit, 2);
        world.is_slow = false;
        let heard = world.heard();
        let next = epoch(producer, 1);
        assert_eq!(heard, [Told::Done(Ok(())), Told::Producer(Ok(next))], "{turn}");
        producer = world.end(next, Abort, 2).unwrap();
        if producer.epoch > 30_000 {
            return;
        }
    }
}

#[test]
fn an_exhausted_epoch_ends_with_another_producer_id() {
    for outcome in [Commit, Abort] {
        for is_restarted in [false, true] {
            let mut world = World::new(2);
            world.set(Metadata { epoch: LAST_EPOCH, ..Metadata::new(7, TIMEOUT_MS, 0) });
            let last = Producer { id: 7, epoch: LAST_EPOCH };
            world.add(last, "elsewhere", 2).unwrap();
            world.is_slow = true;
            world.ask_end(last, outcome, 2);
            world.is_slow = false;
            let ids = std::mem::take(&mut world.ids_asked);
            assert_eq!(ids, 1, "the next id is there before the end is decided");
            world.machine.handle_producer_id(world.now_ms, Ok(8));
            let next = Producer { id: 8, epoch: 0 };
            assert_eq!(world.only(), Told::Producer(Ok(next)));
            let marker = world.marked[0];
            assert_eq!((marker.producer_id, marker.producer_epoch), (7, i16::MAX));
            if is_restarted {
                world.restart();
            }
            let repeated = world.end(last, outcome, 2);
            assert_eq!(repeated, Ok(next), "KAFKA-18660");
            assert_eq!(world.end(last, if outcome == Commit { Abort } else { Commit }, 2).is_err(), true);
            assert_eq!(world.add(next, "x", 2), Ok(()));
        }
    }
}

/// KAFKA-20090, KAFKA-20310: the next producer id of a fence was lost.
#[test]
fn an_exhausted_epoch_is_fenced_with_another_producer_id_also_over_a_restart() {
    let mut world = World::new(2);
    world.set(Metadata { epoch: LAST_EPOCH, ..Metadata::new(7, TIMEOUT_MS, 0) });
    world.add(Producer { id: 7, epoch: LAST_EPOCH }, "elsewhere", 2).unwrap();
    world.is_slow = true;
    world.advance(i64::from(TIMEOUT_MS) + 10_000);
    assert_eq!(std::mem::take(&mut world.ids_asked), 1);
    world.machine.handle_producer_id(world.now_ms, Ok(8));
    world.advance(100);
    world.write();
    world.sent.clear();
    assert_eq!(world.machine.next_deadline_ms().is_some(), true);
    world.is_slow = false;
    world.restart();
    assert_eq!(world.state(), State::CompleteAbort);
    assert_eq!(world.describe().unwrap().producer, Producer { id: 8, epoch: 0 });
}

// ---- markers

#[test]
fn where_all_partitions_are_here_the_end_is_one_write() {
    let (mut world, producer) = World::in_state(2, State::Empty);
    world.add(producer, "here", 2).unwrap();
    world.add(producer, "here too", 2).unwrap();
    let records = world.log.len();
    assert_eq!(world.end(producer, Commit, 2), Ok(epoch(producer, 1)));
    assert_eq!(world.log.len(), records + 1);
    assert_eq!(world.marked.len(), 2);
    let mut restarted = world;
    restarted.restart();
    assert_eq!(restarted.state(), State::CompleteCommit);
    assert_eq!(restarted.sent, []);
}

#[test]
fn the_end_is_answered_when_all_markers_are_there() {
    let (mut world, producer) = World::in_state(2, State::Empty);
    for topic in ["here", "one", "two"] {
        world.add(producer, topic, 2).unwrap();
    }
    world.is_slow = true;
    world.ask_end(producer, Commit, 2);
    assert_eq!(world.sent, [], "not before the decision is durable");
    world.write();
    world.settle();
    assert_eq!(world.marked.len(), 1, "that of this shard goes with the decision");
    assert_eq!(world.sent[0].markers.len(), 2);
    assert_eq!(world.describe().unwrap().partitions.len(), 2);
    world.mark(|(topic, _)| if &**topic == "one" { Ok(()) } else { Err(ResponseError::NotLeaderOrFollower) });
    assert_eq!(world.describe().unwrap().partitions, [("two".to_owned(), 0)]);
    assert_eq!(world.told.take(), []);
    world.advance(100);
    assert_eq!(world.sent[0].markers.len(), 1);
    world.mark(|_| Ok(()));
    assert_eq!(world.only(), Told::Producer(Ok(epoch(producer, 1))));
}

#[test]
fn partitions_that_have_seen_a_newer_epoch_or_are_gone_need_no_marker() {
    for error in [ResponseError::InvalidProducerEpoch, ResponseError::TransactionCoordinatorFenced] {
        let (mut world, producer) = World::in_state(2, State::PrepareCommit);
        world.mark(|_| Err(error));
        assert_eq!(world.only(), Told::Producer(Ok(producer)));
    }
    let (mut world, producer) = World::in_state(2, State::PrepareCommit);
    world.mark(|_| Err(ResponseError::UnknownTopicOrPartition));
    assert_eq!(world.heard(), []);
    world.around.gone.borrow_mut().push("elsewhere".to_owned());
    world.advance(100);
    assert_eq!(world.only(), Told::Producer(Ok(producer)));
}

#[test]
fn what_was_decided_before_a_restart_is_completed_after_it_without_doubled_markers() {
    for (state, complete) in
        [(State::PrepareCommit, State::CompleteCommit), (State::PrepareAbort, State::CompleteAbort)]
    {
        let (mut world, producer) = World::in_state(2, state);
        world.sent.clear();
        world.restart();
        world.told.take();
        assert!(world.sent[0].only_where_open);
        assert_eq!(world.state(), state);
        // who had its answer before the restart begins the next one, and is held
        world.ask_add(producer, "x", 2);
        assert_eq!(world.told.take(), []);
        world.is_slow = false;
        assert_eq!(world.only(), Told::Done(Ok(())));
        assert_eq!(world.end(producer, Abort, 2), Ok(epoch(producer, 1)));
        let mut states = world
            .log
            .iter()
            .map(|(key, value)| TransactionRecord::decode(key, value.as_deref()).unwrap().metadata.unwrap().state);
        assert!(states.any(|state| state == complete));
    }
}

#[test]
fn markers_of_another_transaction_change_nothing() {
    let (mut world, _) = World::in_state(2, State::PrepareCommit);
    let marking = world.sent[0].clone();
    let marked: Vec<_> = marking.markers.iter().map(|(name, _)| (name.clone(), Ok(()))).collect();
    let stale = Marking { start_ms: marking.start_ms - 1, ..marking };
    world.machine.handle_marked(world.now_ms, &stale, marked);
    assert_eq!(world.state(), State::PrepareCommit);
}

// ---- time

#[test]
fn a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced() {
    for version in [0, 2] {
        let (mut world, producer) = World::in_state(version, State::Ongoing);
        world.advance(i64::from(TIMEOUT_MS) - 1);
        assert_eq!(world.state(), State::Ongoing);
        world.advance(10_001);
        assert_eq!(world.state(), State::CompleteAbort);
        assert_eq!(world.marked[0].producer_epoch, producer.epoch + 1);
        assert_eq!(world.add(producer, "x", version), Err(ProducerFenced));
        if version == 0 {
            assert_eq!(world.end(producer, Commit, 0), Err(ProducerFenced));
        }
    }
}

#[test]
fn the_time_of_a_transaction_goes_on_over_a_restart() {
    let (mut world, _) = World::in_state(2, State::Ongoing);
    world.now_ms += i64::from(TIMEOUT_MS);
    world.restart();
    world.advance(10_000);
    assert_eq!(world.state(), State::CompleteAbort);
}

#[test]
fn ids_are_forgotten_when_nobody_used_them_for_long_unless_a_transaction_is_ongoing() {
    const WEEK_MS: i64 = 7 * 24 * 3_600_000;
    let (mut world, _) = World::in_state(2, State::CompleteCommit);
    world.advance(WEEK_MS - 1);
    assert_eq!(world.state(), State::CompleteCommit);
    world.advance(3_600_001);
    assert_eq!(world.describe(), Err(ResponseError::TransactionalIdNotFound));
    assert_eq!(world.budget.bytes(), 0);
    world.restart();
    assert_eq!(world.describe(), Err(ResponseError::TransactionalIdNotFound));

    let (mut world, _) = World::in_state(2, State::PrepareCommit);
    world.advance(2 * WEEK_MS);
    world.told.take();
    assert_eq!(world.state(), State::PrepareCommit);
}

#[test]
fn ids_beyond_the_budget_are_refused() {
    let mut world = World::new(2);
    let long = "x".repeat(super::budget::ID_BYTES_MAX);
    let ticket = world.told.ticket(|answer| Some(Told::Producer(answer.and_then(|answer| answer))));
    let init = InitProducerId { timeout_ms: 1, expected: None };
    world.machine.handle_init_producer_id(world.now_ms, &long, init, ticket);
    assert_eq!(world.only(), Told::Producer(Err(ResponseError::CoordinatorNotAvailable)));
}

// ---- what is told of transactions

#[test]
fn lists_are_filtered() {
    let (world, producer) = World::in_state(2, State::Ongoing);
    let listed = |filter: &Filter, later_ms| world.machine.list(filter, world.now_ms + later_ms).len();
    assert_eq!(listed(&Filter::default(), 0), 1);
    assert_eq!(listed(&Filter { states: [State::Empty].into(), ..Filter::default() }, 0), 0);
    assert_eq!(listed(&Filter { producer_ids: [producer.id].into(), ..Filter::default() }, 0), 1);
    assert_eq!(listed(&Filter { producer_ids: [OTHER].into(), ..Filter::default() }, 0), 0);
    let longer = Filter { longer_than_ms: Some(10), ..Filter::default() };
    assert_eq!([listed(&longer, 10), listed(&longer, 11)], [0, 1]);
    let named = |pattern| Filter { pattern: Some(regex::Regex::new(pattern).unwrap()), ..Filter::default() };
    assert_eq!([listed(&named("^id$"), 0), listed(&named("^x$"), 0)], [1, 0]);
}

#[test]
fn an_open_transaction_is_claimed_by_who_will_end_it() {
    let open = |producer: Producer, topic| OpenTransaction {
        partition: at(topic, 0),
        producer_id: producer.id,
        producer_epoch: producer.epoch,
        coordinator_epoch: -1,
        first_offset: 0,
        started_ms: 0,
        confirmed: true,
    };
    let (world, producer) = World::in_state(2, State::Ongoing);
    let asked = [
        open(producer, "x"),
        open(producer, "elsewhere"),
        open(other(producer), "elsewhere"),
        open(epoch(producer, -1), "elsewhere"),
    ];
    assert_eq!(world.machine.claimed(&asked), [1]);
    let (world, producer) = World::in_state(2, State::PrepareAbort);
    assert_eq!(world.machine.claimed(&[open(epoch(producer, -1), "elsewhere")]), [0]);
    let (world, producer) = World::in_state(2, State::CompleteAbort);
    assert_eq!(world.machine.claimed(&[open(epoch(producer, -1), "elsewhere")]), [0; 0]);
}

#[test]
fn records_are_of_the_version_that_the_level_allows() {
    for (level, version) in [(0, 0), (1, 1), (2, 1)] {
        let (world, _) = World::in_state(level, State::Ongoing);
        let versions: Vec<_> = world.log.iter().map(|(_, value)| value.as_ref().unwrap()[1]).collect();
        assert!(versions.iter().all(|found| *found == version), "{level}: {versions:?}");
    }
}

// ---- failures

#[test]
fn a_record_that_is_not_written_takes_the_machine_with_it_and_everybody_hears() {
    let (mut world, producer) = World::in_state(2, State::Ongoing);
    world.is_slow = true;
    world.ask_end(producer, Commit, 2);
    world.ask_init(None);
    let writes = world.machine.take_writes();
    let failed = world.machine.on_persisted(world.now_ms, writes[0].id, Err(ResponseError::CoordinatorNotAvailable));
    assert_eq!(failed, Verdict::Rebuild);
    world.machine.close(world.now_ms, ResponseError::NotCoordinator);
    assert_eq!(
        world.heard(),
        [Told::Producer(Err(ResponseError::NotCoordinator)), Told::Producer(Err(ResponseError::NotCoordinator))]
    );
    world.is_slow = false;
    world.restart();
    assert_eq!(world.state(), State::Ongoing);
    assert_eq!(world.end(producer, Commit, 2), Ok(epoch(producer, 1)));
}

#[test]
fn who_needs_a_producer_id_hears_when_there_is_none() {
    let mut world = World::new(2);
    world.is_slow = true;
    world.ask_init(None);
    world.machine.handle_producer_id(world.now_ms, Err(ResponseError::CoordinatorNotAvailable));
    assert_eq!(world.only(), Told::Producer(Err(ResponseError::CoordinatorNotAvailable)));
}
