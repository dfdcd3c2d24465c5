//! Every cell of the table of requests and states, and what holds between requests: as conversations with one machine whose
//! log takes everything at once, or when the test says so.

mod add;
mod course;
mod end;
mod init;

use std::{cell::RefCell, rc::Rc};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::TopicPartition,
    transactions::{Marker, OpenTransaction, Outcome},
};
use uuid::Uuid;

use super::{
    AddPartitions, Budget, Coordinator, Description, EndTransaction, Errand, Filter, InitProducerId, Marking,
    PartitionName, Place, Producer, Progress, Questions, Settings, State, Surroundings,
    coordinator::HOLD_MAX_MS,
    metadata::{LAST_EPOCH, Metadata, NO_PRODUCER},
    record::TransactionRecord,
    request::Questioner,
};
use crate::coordinator::runtime::{Inbox, LogRecord, Machine, Replayed, Reply, Verdict};

const ID: &str = "id";
const TIMEOUT_MS: i32 = 60_000;
const NO_ERROR: Result<Producer, ResponseError> = Ok(NO_PRODUCER);

/// Topics by their names: those that begin with `h` are here, with `g` gone, all others elsewhere.
#[derive(Default)]
struct Around {
    version: std::cell::Cell<i16>,
    /// Partitions can be asked for markers.
    answers: std::cell::Cell<bool>,
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

    fn may_ask_for_markers(&self) -> bool {
        self.answers.get()
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
    asked_for: Vec<(Questioner, Questions)>,
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
            asked_for: Vec::new(),
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
                    Errand::AskForMarkers(by, asked) => self.asked_for.push((by, asked)),
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
        let is_asked = self.ids_asked > 0 || !self.asked_for.is_empty();
        for (by, asked) in std::mem::take(&mut self.asked_for) {
            let has_one = |markers: &[Marker]| markers.iter().any(|marker| self.marked.contains(marker));
            let found = asked.into_iter().map(|(id, markers)| (id, has_one(&markers))).collect();
            self.machine.handle_markers_found(self.now_ms, &by, found);
        }
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
                if answer.is_ok() && !(marking.only_where_open && self.marked.contains(marker)) {
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
