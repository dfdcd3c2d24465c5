//! Random requests, failures and restarts against partitions that remember what markers they got: what holds of
//! transactions whatever happens.
//!
//! - Who was told that its transaction is committed finds every partition committed, and none aborted; and the other way
//!   round. No partition gets both.
//! - Of two ends of one epoch one counts at most. A producer that was fenced ends nothing any more.
//! - When everything has come to rest, no partition is left open, and everybody who asked has heard once.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::TopicPartition,
    transactions::{Marker, Outcome},
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    AddPartitions, Coordinator, EndTransaction, Errand, InitProducerId, Marked, Marking, PartitionName, Place,
    Producer, Questions, Settings, Surroundings, coordinator::HOLD_MAX_MS, request::Questioner,
};
use crate::coordinator::runtime::{Inbox, LogRecord, Machine, Replayed, Reply, Verdict, Write};

const ID: &str = "id";
const TOPICS: [&str; 3] = ["here", "elsewhere", "farther"];
const EVERY: u8 = u8::MAX;
const TIMEOUT_MS: i32 = 1_000;

struct Around {
    version: i16,
    /// Partitions can be asked for markers.
    answers: bool,
}

impl Surroundings for Around {
    fn place(&self, (topic, index): &PartitionName) -> Place {
        let id = TOPICS.iter().position(|known| **known == **topic).expect("one of those");
        let partition = TopicPartition { topic: Uuid::from_u128(1 + id as u128), partition: *index };
        if id == 0 { Place::Here(partition) } else { Place::Elsewhere(partition) }
    }

    fn transaction_version(&self) -> i16 {
        self.version
    }

    fn may_ask_for_markers(&self) -> bool {
        self.answers
    }
}

#[derive(Debug, Clone)]
enum Step {
    Init(bool),
    Add(usize, usize),
    End(usize, bool),
    /// The oldest write is durable, or is refused.
    Write(bool),
    /// The oldest markers that were sent are answered; of these partitions they were taken.
    Mark(u8),
    ProducerId(bool),
    Advance(i64),
    /// The node ends and starts anew; of the markers on their way those of these partitions were taken.
    Restart(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<bool>().prop_map(Step::Init),
        6 => (0usize..3, 0..TOPICS.len()).prop_map(|(who, topic)| Step::Add(who, topic)),
        5 => (0usize..3, any::<bool>()).prop_map(|(who, commits)| Step::End(who, commits)),
        10 => proptest::bool::weighted(0.97).prop_map(Step::Write),
        8 => prop_oneof![4 => Just(EVERY), 1 => any::<u8>()].prop_map(Step::Mark),
        5 => proptest::bool::weighted(0.9).prop_map(Step::ProducerId),
        3 => (0i64..1_500).prop_map(Step::Advance),
        1 => any::<u8>().prop_map(Step::Restart),
    ]
}

#[derive(Debug, Clone, PartialEq)]
enum Told {
    Begun(Result<Producer, ResponseError>),
    Added(Producer, usize, Result<(), ResponseError>),
    Ended(Producer, Outcome, Result<Producer, ResponseError>),
}

/// What a partition knows of the producer's transactions: as a log of adds and markers.
#[derive(Debug, Default)]
struct Partition {
    /// The producer whose transaction is open here.
    open: Option<Producer>,
    /// How those ended that were open here, by the producer as it was then and how often it has begun.
    ended: Vec<(Producer, Outcome)>,
    /// The last marker: whose, in which epoch, and what it said.
    last: Option<(i64, i16, Outcome)>,
}

struct World {
    version: i16,
    around: Rc<Around>,
    machine: Coordinator,
    now_ms: i64,
    log: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    writes: Vec<Write<super::record::TransactionRecord>>,
    sent: Vec<Marking>,
    asked_for: Vec<(Questioner, Questions)>,
    ids_asked: usize,
    next_producer_id: Rc<Cell<i64>>,
    told: Inbox<Told>,
    asked: usize,
    answered: usize,
    /// Producers as clients know them, newest last.
    producers: Vec<Producer>,
    partitions: RefCell<BTreeMap<usize, Partition>>,
    /// What clients were told of the ends of what they had written, by producer.
    claims: Vec<(Producer, Outcome, BTreeSet<usize>)>,
    /// Partitions that were written to, by the producer that did.
    written: BTreeMap<(i64, i16), BTreeSet<usize>>,
}

impl World {
    fn new(version: i16, answers: bool) -> Self {
        let around = Rc::new(Around { version, answers });
        let machine = Self::machine(&around);
        let mut world = Self {
            version,
            around,
            machine,
            now_ms: 0,
            log: Vec::new(),
            writes: Vec::new(),
            sent: Vec::new(),
            asked_for: Vec::new(),
            ids_asked: 0,
            next_producer_id: Rc::default(),
            told: Inbox::new(),
            asked: 0,
            answered: 0,
            producers: Vec::new(),
            partitions: RefCell::default(),
            claims: Vec::new(),
            written: BTreeMap::new(),
        };
        world.machine.on_loaded(0);
        world
    }

    fn machine(around: &Rc<Around>) -> Coordinator {
        Coordinator::new(Rc::new(Settings::default()), Rc::clone(around) as _, Rc::default(), 0)
    }

    /// Of the markers on their way some are taken, whoever has sent them.
    fn restart(&mut self, taken: u8) {
        for marking in std::mem::take(&mut self.sent) {
            self.take_markers(&marking, taken);
        }
        self.machine.close(self.now_ms, ResponseError::NotCoordinator);
        self.machine.take_replies().into_iter().for_each(Reply::send);
        self.machine = Self::machine(&self.around);
        self.writes.clear();
        self.asked_for.clear();
        self.ids_asked = 0;
        for (offset, (key, value)) in self.log.iter().enumerate() {
            let record = Replayed { offset: offset as i64, producer: None, key, value: value.as_deref() };
            self.machine.replay(&record).expect("it was written here");
        }
        self.machine.on_loaded(self.now_ms);
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Init(expects) => {
                let expected = self.producers.last().copied().filter(|_| expects);
                self.asked += 1;
                let ticket = self.told.ticket(|answer| Some(Told::Begun(answer.and_then(|answer| answer))));
                let init = InitProducerId { timeout_ms: TIMEOUT_MS, expected };
                self.machine.handle_init_producer_id(self.now_ms, ID, init, ticket);
            }
            Step::Add(who, topic) => {
                let Some(producer) = self.producer(who) else { return };
                self.asked += 1;
                let note = move |answer: Result<Result<(), _>, _>| {
                    Some(Told::Added(producer, topic, answer.and_then(|answer| answer)))
                };
                let ticket = self.told.ticket(note);
                let partitions = [(Rc::from(TOPICS[topic]), 0)].into();
                let add = AddPartitions { producer, partitions, client_version: self.version };
                self.machine.handle_add_partitions(self.now_ms, ID, add, ticket);
            }
            Step::End(who, commits) => {
                let Some(producer) = self.producer(who) else { return };
                self.asked += 1;
                let outcome = if commits { Outcome::Commit } else { Outcome::Abort };
                let note = move |answer: Result<Result<Producer, _>, _>| {
                    Some(Told::Ended(producer, outcome, answer.and_then(|answer| answer)))
                };
                let ticket = self.told.ticket(note);
                let end = EndTransaction { producer, outcome, client_version: self.version };
                self.machine.handle_end(self.now_ms, ID, end, ticket);
            }
            Step::Write(is_taken) => self.write(is_taken),
            Step::Mark(taken) => self.mark(taken),
            Step::ProducerId(is_there) => {
                if self.ids_asked > 0 {
                    self.ids_asked -= 1;
                    self.next_producer_id.set(self.next_producer_id.get() + 1);
                    let id = self.next_producer_id.get();
                    let id = if is_there { Ok(id) } else { Err(ResponseError::CoordinatorNotAvailable) };
                    self.machine.handle_producer_id(self.now_ms, id);
                }
            }
            Step::Advance(by_ms) => {
                self.now_ms += by_ms;
                self.machine.handle_timeouts(self.now_ms);
                self.machine.handle_tick(self.now_ms);
            }
            Step::Restart(taken) => self.restart(taken),
        }
        self.settle();
    }

    /// The newest producer, or one before it.
    fn producer(&self, who: usize) -> Option<Producer> {
        let at = self.producers.len().checked_sub(1 + who)?;
        self.producers.get(at).copied()
    }

    fn write(&mut self, is_taken: bool) {
        if self.writes.is_empty() {
            return;
        }
        let write = self.writes.remove(0);
        if !is_taken {
            let verdict = self.machine.on_persisted(self.now_ms, write.id, Err(ResponseError::CoordinatorNotAvailable));
            assert_eq!(verdict, Verdict::Rebuild);
            return self.restart(if self.now_ms % 2 == 0 { EVERY } else { 0b101 });
        }
        let offset = self.log.len() as i64;
        self.log.extend(write.records.iter().map(|record| (record.key(), record.value())));
        write.markers.iter().for_each(|marker| self.take_marker(marker));
        assert_eq!(self.machine.on_persisted(self.now_ms, write.id, Ok(offset)), Verdict::Stands);
    }

    fn mark(&mut self, taken: u8) {
        if let Some((by, asked)) = self.asked_for.pop() {
            let found = asked.into_iter().map(|(id, markers)| (id, markers.iter().any(|marker| self.has(marker))));
            return self.machine.handle_markers_found(self.now_ms, &by, found.collect());
        }
        if self.sent.is_empty() {
            return;
        }
        let marking = self.sent.remove(0);
        let marked = self.take_markers(&marking, taken);
        self.machine.handle_marked(self.now_ms, &marking, marked);
    }

    fn take_markers(&self, marking: &Marking, taken: u8) -> Marked {
        let marked = marking.markers.iter().map(|(name, marker)| {
            let is_taken = taken & (1 << index(marker)) != 0;
            let is_open = self.partitions.borrow().get(&index(marker)).is_some_and(|known| known.open.is_some());
            if is_taken && (is_open || !marking.only_where_open) {
                self.take_marker(marker);
            }
            let answer = if is_taken { Ok(()) } else { Err(ResponseError::NotLeaderOrFollower) };
            (name.clone(), answer)
        });
        marked.collect()
    }

    fn has(&self, marker: &Marker) -> bool {
        let last = self.partitions.borrow().get(&index(marker)).and_then(|known| known.last);
        last == Some((marker.producer_id, marker.producer_epoch, marker.outcome))
    }

    fn take_marker(&self, marker: &Marker) {
        let mut partitions = self.partitions.borrow_mut();
        let partition = partitions.entry(index(marker)).or_default();
        partition.last = Some((marker.producer_id, marker.producer_epoch, marker.outcome));
        if let Some(open) = partition.open.filter(|open| open.id == marker.producer_id) {
            assert!(marker.producer_epoch >= open.epoch, "{marker:?} {open:?}");
            partition.open = None;
            partition.ended.push((open, marker.outcome));
        }
    }

    fn settle(&mut self) {
        self.machine.take_replies().into_iter().for_each(Reply::send);
        self.writes.extend(self.machine.take_writes());
        for errand in self.machine.take_errands() {
            match errand {
                Errand::ProducerId => self.ids_asked += 1,
                Errand::Admit(..) => {}
                Errand::Mark(marking) => self.sent.push(marking),
                Errand::AskForMarkers(by, asked) => self.asked_for.push((by, asked)),
            }
        }
        for told in self.told.take() {
            self.answered += 1;
            self.hear(told);
        }
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Begun(Ok(producer)) => self.producers.push(producer),
            Told::Added(producer, topic, Ok(())) => {
                // a client writes once it was let in; what comes after the end is refused by the partition's guard, which
                // asks the coordinator: here, whether it still is the newest producer that anybody knows
                let mut partitions = self.partitions.borrow_mut();
                let partition = partitions.entry(topic).or_default();
                let is_newest = self.producers.last() == Some(&producer);
                if is_newest && partition.open.is_none_or(|open| open == producer) {
                    partition.open = Some(producer);
                    self.written.entry((producer.id, producer.epoch)).or_default().insert(topic);
                }
            }
            Told::Ended(producer, outcome, Ok(next)) => {
                let written = self.written.get(&(producer.id, producer.epoch)).cloned().unwrap_or_default();
                if self.version >= 2 {
                    self.claims.push((producer, outcome, written));
                    if next != producer {
                        self.producers.push(next);
                    }
                }
            }
            Told::Begun(Err(_)) | Told::Added(_, _, Err(_)) | Told::Ended(_, _, Err(_)) => {}
        }
    }

    fn come_to_rest(&mut self) {
        for _ in 0..200 {
            for step in [Step::ProducerId(true), Step::Write(true), Step::Mark(EVERY), Step::Advance(HOLD_MAX_MS)] {
                self.run(&step);
            }
        }
        assert_eq!((self.writes.len(), self.sent.len(), self.ids_asked), (0, 0, 0));
        assert_eq!(self.answered, self.asked, "everybody hears once");
        for (topic, partition) in self.partitions.borrow().iter() {
            assert_eq!(partition.open, None, "{topic} is left open");
        }
        for (producer, outcome, topics) in &self.claims {
            for topic in topics {
                let ended = self.ends(*producer, *topic);
                let wrong = ended.iter().any(|how| how != outcome);
                assert!(!wrong, "{producer:?} was told {outcome:?}, and partition {topic} has {ended:?}");
            }
        }
        for ((id, epoch), topics) in self.written.iter().filter(|_| self.version >= 2) {
            let producer = Producer { id: *id, epoch: *epoch };
            let ended: Vec<_> = topics.iter().flat_map(|topic| self.ends(producer, *topic)).collect();
            assert!(ended.iter().all(|how| *how == ended[0]), "{producer:?} is torn: {ended:?}");
        }
    }

    /// How the transactions of a producer in one epoch ended in a partition.
    fn ends(&self, producer: Producer, topic: usize) -> Vec<Outcome> {
        let partitions = self.partitions.borrow();
        let ended = partitions.get(&topic).into_iter().flat_map(|known| &known.ended);
        ended.filter(|(who, _)| *who == producer).map(|(_, how)| *how).collect()
    }
}

fn index(marker: &Marker) -> usize {
    usize::try_from(marker.partition.topic.as_u128() - 1).expect("a small number")
}

proptest! {
    #[test]
    fn ends_are_as_they_were_told(answers in any::<bool>(), steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new(2, answers);
        steps.iter().for_each(|step| world.run(step));
        world.come_to_rest();
    }

    #[test]
    fn nothing_stays_open_by_version_0(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new(0, true);
        steps.iter().for_each(|step| world.run(step));
        world.come_to_rest();
    }
}
