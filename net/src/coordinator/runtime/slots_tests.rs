//! Slots over a log and leaders that are made up: whatever is read, written, lost and made again in whatever order, each
//! who asks hears once, nobody hears of what is not in the log, and nothing is left of a former life.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    rc::Rc,
};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{LogError, TopicPartition},
    batch,
    engine::Topics,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    Answer, Inbox, Reply, Ticket,
    effects::{Effects, Then, Write, WriteId},
    machine::{LogRecord, Machine, Replayed, Verdict},
    slots::{Append, AppendFailure, Appended, Entrance, Load, LoadGate, Slots},
};

const PARTITIONS: i32 = 2;
const HOLD_MS: i64 = 100;

#[derive(Debug)]
struct Value(u64);

impl LogRecord for Value {
    fn key(&self) -> Vec<u8> {
        b"v".to_vec()
    }

    fn value(&self) -> Option<Vec<u8>> {
        Some(self.0.to_be_bytes().to_vec())
    }
}

/// Values of a write; they were taken over already, or are when they are durable.
#[derive(Debug)]
struct Added {
    values: Vec<u64>,
    is_ahead: bool,
}

impl Then for Added {
    fn runs_ahead(&self) -> bool {
        self.is_ahead
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Told {
    Added(Vec<u64>),
    Known(BTreeSet<u64>),
    Failed(ResponseError),
}

impl Answer for Told {
    fn fail(&mut self, error: ResponseError) {
        *self = Told::Failed(error);
    }
}

/// Keeps a set of values, some ahead of the log.
struct Toy {
    known: BTreeSet<u64>,
    effects: Effects<Value, Added>,
    held: Vec<(i64, Ticket<Told>)>,
    /// First value and offset of every write that was told to be durable.
    durable: Rc<RefCell<Vec<(u64, i64)>>>,
}

impl Toy {
    fn add(&mut self, values: Vec<u64>, is_ahead: bool, ticket: Ticket<Told>) {
        if is_ahead {
            self.known.extend(&values);
        }
        let records = values.iter().copied().map(Value).collect();
        let told = Told::Added(values.clone());
        self.effects.write_then_reply(records, Added { values, is_ahead }, ticket, told);
    }

    fn look(&mut self, ticket: Ticket<Told>) {
        self.effects.reply_when_settled(ticket, Told::Known(self.known.clone()));
    }
}

impl Machine for Toy {
    type Record = Value;
    type Errand = Infallible;
    type Unreadable = Infallible;

    fn replay(&mut self, record: &Replayed<'_>) -> Result<(), Infallible> {
        self.known.insert(u64::from_be_bytes(record.value.unwrap().try_into().unwrap()));
        Ok(())
    }

    fn on_loaded(&mut self, _: i64) {}

    fn handle_topics(&mut self, _: &Rc<Topics>) {}

    fn handle_tick(&mut self, _: i64) {}

    fn handle_timeouts(&mut self, now_ms: i64) {
        for (at_ms, ticket) in std::mem::take(&mut self.held) {
            if at_ms <= now_ms {
                self.look(ticket);
            } else {
                self.held.push((at_ms, ticket));
            }
        }
    }

    fn next_deadline_ms(&self) -> Option<i64> {
        self.held.iter().map(|(at_ms, _)| *at_ms).min()
    }

    fn on_persisted(&mut self, _: i64, id: WriteId, result: Result<i64, ResponseError>) -> Verdict {
        let (Added { values, is_ahead }, pending) = self.effects.finish(id).map(|then| (then, ()));
        self.effects.release(pending, result.map(|_| ()));
        match result {
            Ok(offset) => {
                self.durable.borrow_mut().push((values[0], offset));
                self.known.extend(values);
                Verdict::Stands
            }
            Err(_) if is_ahead => Verdict::Rebuild,
            Err(_) => Verdict::Stands,
        }
    }

    fn close(&mut self, _: i64, error: ResponseError) {
        self.effects.fail_pending(error);
        for (_, ticket) in std::mem::take(&mut self.held) {
            self.effects.reply(ticket, Told::Failed(error));
        }
    }

    fn take_replies(&mut self) -> Vec<Reply> {
        self.effects.take_replies()
    }

    fn has_writes(&self) -> bool {
        self.effects.has_writes()
    }

    fn take_writes(&mut self) -> Vec<Write<Value>> {
        self.effects.take_writes()
    }

    fn take_errands(&mut self) -> Vec<Infallible> {
        Vec::new()
    }
}

#[derive(Debug, Clone, Copy)]
enum What {
    AddAhead,
    AddTwo,
    AddLate,
    Look,
    Hold,
}

/// What becomes of a batch.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Durable,
    Lost,
    /// It is in the log, but that is not known.
    Doubtful,
}

#[derive(Debug, Clone)]
enum Step {
    Ask(i32, What),
    Flush,
    Decide(usize, Fate),
    Report(usize),
    BeginRead(usize),
    EndRead(usize, bool),
    NewEpoch(i32),
    Lead(i32, bool),
    MakeTopicAgain,
    Reconcile,
    Advance(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let what =
        prop_oneof![Just(What::AddAhead), Just(What::AddTwo), Just(What::AddLate), Just(What::Look), Just(What::Hold)];
    let fate = prop_oneof![4 => Just(Fate::Durable), 1 => Just(Fate::Lost), 1 => Just(Fate::Doubtful)];
    prop_oneof![
        8 => (0..PARTITIONS, what).prop_map(|(partition, what)| Step::Ask(partition, what)),
        6 => Just(Step::Flush),
        6 => (0usize..3, fate).prop_map(|(which, fate)| Step::Decide(which, fate)),
        6 => (0usize..4).prop_map(Step::Report),
        6 => (0usize..3).prop_map(Step::BeginRead),
        6 => (0usize..3, proptest::bool::weighted(0.9)).prop_map(|(which, is_read)| Step::EndRead(which, is_read)),
        1 => (0..PARTITIONS).prop_map(Step::NewEpoch),
        1 => (0..PARTITIONS, any::<bool>()).prop_map(|(partition, leads)| Step::Lead(partition, leads)),
        1 => Just(Step::MakeTopicAgain),
        2 => Just(Step::Reconcile),
        2 => (0i64..150).prop_map(Step::Advance),
    ]
}

struct Asked {
    number: usize,
    partition: TopicPartition,
    what: What,
}

struct World {
    slots: Slots<Toy>,
    now_ms: i64,
    life: u128,
    epochs: Vec<(i32, bool)>,
    logs: BTreeMap<TopicPartition, Vec<u64>>,
    /// Batches in the order in which they were given to the log.
    undecided: Vec<Append>,
    decided: Vec<(TopicPartition, u64, Appended)>,
    to_read: Vec<Load>,
    reading: Vec<(Load, Box<Toy>)>,
    at_gates: Vec<(Rc<LoadGate>, Asked)>,
    answers: Inbox<(usize, Told)>,
    /// Where each asked, and whether it was answered.
    asked: Vec<(TopicPartition, Option<Told>)>,
    next_value: u64,
    durable: Rc<RefCell<Vec<(u64, i64)>>>,
}

/// The partition of a number that may be too large.
fn take<T>(from: &mut Vec<T>, which: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(which % from.len()))
}

impl World {
    fn new() -> Self {
        Self {
            slots: Slots::new(Rc::default()),
            now_ms: 0,
            life: 1,
            epochs: vec![(0, true); PARTITIONS as usize],
            logs: BTreeMap::new(),
            undecided: Vec::new(),
            decided: Vec::new(),
            to_read: Vec::new(),
            reading: Vec::new(),
            at_gates: Vec::new(),
            answers: Inbox::new(),
            asked: Vec::new(),
            next_value: 0,
            durable: Rc::default(),
        }
    }

    fn partition(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: Uuid::from_u128(self.life), partition }
    }

    fn leader_epoch(&self, partition: TopicPartition) -> Option<i32> {
        let (epoch, leads) = self.epochs[partition.partition as usize];
        (partition == self.partition(partition.partition) && leads).then_some(epoch)
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Ask(partition, what) => {
                let asked = Asked { number: self.asked.len(), partition: self.partition(partition), what };
                self.asked.push((asked.partition, None));
                self.enter(asked);
            }
            Step::Flush => {
                let all = (0..PARTITIONS).map(|partition| self.partition(partition));
                let led: BTreeMap<_, _> = all.map(|partition| (partition, self.leader_epoch(partition))).collect();
                self.slots.forget_unled(self.now_ms, |partition| led.get(&partition).copied().flatten());
                self.undecided.extend(self.slots.take_appends(self.now_ms));
            }
            Step::Decide(which, fate) => self.decide(which, fate),
            Step::Report(which) => {
                if let Some((partition, number, result)) = take(&mut self.decided, which) {
                    self.slots.on_appended(self.now_ms, partition, number, result);
                }
            }
            Step::BeginRead(which) => {
                if let Some(load) = take(&mut self.to_read, which) {
                    self.read(load);
                }
            }
            Step::EndRead(which, is_read) => {
                if let Some((load, toy)) = take(&mut self.reading, which) {
                    self.slots.on_loaded(self.now_ms, load, if is_read { Ok(toy) } else { Err(()) });
                }
            }
            Step::NewEpoch(partition) => self.epochs[partition as usize].0 += 1,
            Step::Lead(partition, leads) => {
                let (epoch, led) = &mut self.epochs[partition as usize];
                *epoch += i32::from(leads && !*led);
                *led = leads;
            }
            Step::MakeTopicAgain => {
                self.life += 1;
                self.epochs.fill((0, true));
            }
            Step::Reconcile => {
                let all = (0..PARTITIONS).map(|partition| self.partition(partition));
                let led = all.filter_map(|partition| Some((partition, self.leader_epoch(partition)?))).collect();
                self.slots.reconcile(self.now_ms, &led);
            }
            Step::Advance(by) => {
                self.now_ms += by;
                self.slots.handle_timeouts(self.now_ms);
            }
        }
        self.settle();
    }

    fn enter(&mut self, asked: Asked) {
        match self.slots.enter(self.now_ms, asked.partition, self.leader_epoch(asked.partition)) {
            Entrance::Open => self.ask(&asked),
            Entrance::Closed(gate) => self.at_gates.push((gate, asked)),
            Entrance::Refused => self.told(asked.number, Told::Failed(ResponseError::NotCoordinator)),
        }
    }

    fn ask(&mut self, asked: &Asked) {
        let number = asked.number;
        let ticket = self.answers.ticket(move |answer| Some((number, answer.expect("every ticket is answered"))));
        let (first, hold_ms) = (self.next_value, self.now_ms + HOLD_MS);
        self.next_value += 2;
        let asked = self.slots.with(asked.partition, |toy| match asked.what {
            What::AddAhead => toy.add(vec![first], true, ticket),
            What::AddTwo => toy.add(vec![first, first + 1], true, ticket),
            What::AddLate => toy.add(vec![first], false, ticket),
            What::Look => toy.look(ticket),
            What::Hold => toy.held.push((hold_ms, ticket)),
        });
        assert!(asked.is_some(), "an open partition serves");
    }

    /// The log decides about the oldest batch of a partition that it was given.
    fn decide(&mut self, which: usize, fate: Fate) {
        let Some(partition) = self.undecided.get(which % self.undecided.len().max(1)).map(|append| append.partition)
        else {
            return;
        };
        let at = self.undecided.iter().position(|append| append.partition == partition).unwrap();
        let Append { batch, number, .. } = self.undecided.remove(at);
        let is_there = partition == self.partition(partition.partition);
        let log = self.logs.entry(partition).or_default();
        let base_offset = log.len() as i64;
        if is_there && !matches!(fate, Fate::Lost) {
            let records = batch::records(&batch.expect("no toy has markers")).unwrap();
            let value = |record: batch::Record| u64::from_be_bytes(record.value.unwrap()[..].try_into().unwrap());
            log.extend(records.into_iter().map(value));
        }
        let is_durable = is_there && matches!(fate, Fate::Durable);
        let failure =
            AppendFailure { error: ResponseError::NotCoordinator, is_doubtful: matches!(fate, Fate::Doubtful) };
        let result = if is_durable { Ok(base_offset) } else { Err(failure) };
        self.decided.push((partition, number, result));
    }

    fn read(&mut self, load: Load) {
        let mut toy = Toy {
            known: BTreeSet::new(),
            effects: Effects::default(),
            held: Vec::new(),
            durable: Rc::clone(&self.durable),
        };
        for value in self.logs.get(&load.partition).into_iter().flatten() {
            let value = value.to_be_bytes();
            let record = Replayed { offset: 0, producer: None, key: b"v", value: Some(&value) };
            toy.replay(&record).unwrap();
        }
        self.reading.push((load, Box::new(toy)));
    }

    fn settle(&mut self) {
        self.to_read.extend(self.slots.take_actions().loads);
        for (gate, asked) in std::mem::take(&mut self.at_gates) {
            match gate.result() {
                None => self.at_gates.push((gate, asked)),
                Some(Ok(())) => self.enter(asked),
                Some(Err(error)) => self.told(asked.number, Told::Failed(error)),
            }
        }
        self.to_read.extend(self.slots.take_actions().loads);
        for (number, told) in self.answers.take() {
            self.told(number, told);
        }
        for (value, offset) in self.durable.take() {
            let is_there = |log: &Vec<u64>| log.get(offset as usize) == Some(&value);
            assert!(self.logs.values().any(is_there), "{value} is not at {offset}");
        }
    }

    fn told(&mut self, number: usize, told: Told) {
        let (partition, answer) = &mut self.asked[number];
        let log: BTreeSet<u64> = self.logs.get(partition).into_iter().flatten().copied().collect();
        match &told {
            Told::Added(values) => {
                assert!(values.iter().all(|value| log.contains(value)), "{values:?} are not in the log")
            }
            Told::Known(known) => assert!(known.is_subset(&log), "{known:?} are not all in {log:?}"),
            Told::Failed(_) => {}
        }
        assert_eq!(answer.replace(told), None, "it is answered once");
    }

    /// Everything goes well from now on, until nothing is left to do.
    fn come_to_rest(&mut self) {
        for partition in 0..PARTITIONS {
            self.run(&Step::Lead(partition, true));
        }
        loop {
            let before = (self.undecided.len(), self.decided.len(), self.to_read.len(), self.reading.len());
            for step in [
                Step::Reconcile,
                Step::Flush,
                Step::Decide(0, Fate::Durable),
                Step::Report(0),
                Step::BeginRead(0),
                Step::EndRead(0, true),
                Step::Advance(HOLD_MS),
            ] {
                self.run(&step);
            }
            let after = (self.undecided.len(), self.decided.len(), self.to_read.len(), self.reading.len());
            if (before, after) == ((0, 0, 0, 0), (0, 0, 0, 0)) {
                return;
            }
        }
    }
}

fn told(world: &World, number: usize) -> Option<Told> {
    world.asked[number].1.clone()
}

/// A world in which everything is loaded.
fn loaded() -> World {
    let mut world = World::new();
    world.come_to_rest();
    world
}

#[test]
fn a_new_leader_epoch_waits_for_the_writes_of_the_old_one_and_reads_again() {
    let sent_away = Some(Told::Failed(ResponseError::NotCoordinator));
    let mut world = loaded();
    for step in [Step::Ask(0, What::AddAhead), Step::Flush, Step::Ask(0, What::Hold), Step::NewEpoch(0)] {
        world.run(&step);
    }
    world.run(&Step::Ask(0, What::Look));
    assert_eq!((told(&world, 0), told(&world, 1), told(&world, 2)), (sent_away.clone(), sent_away, None));
    assert_eq!(world.to_read, [], "a write of the old epoch is under way");
    world.run(&Step::Decide(0, Fate::Durable));
    world.run(&Step::Report(0));
    assert_eq!(world.to_read.len(), 1);
    world.run(&Step::BeginRead(0));
    world.run(&Step::EndRead(0, true));
    assert_eq!(told(&world, 2), Some(Told::Known(BTreeSet::from([0]))));
}

#[test]
fn what_was_decided_in_an_epoch_that_is_over_is_not_written_in_the_next() {
    let mut world = loaded();
    for step in [Step::Ask(0, What::AddAhead), Step::NewEpoch(0), Step::Flush] {
        world.run(&step);
    }
    assert!(world.undecided.is_empty());
    assert_eq!(told(&world, 0), Some(Told::Failed(ResponseError::NotCoordinator)));
}

#[test]
fn who_waits_for_a_partition_that_goes_away_is_sent_away() {
    let mut world = World::new();
    for step in [Step::Ask(0, What::Look), Step::MakeTopicAgain, Step::Reconcile] {
        world.run(&step);
    }
    assert_eq!(told(&world, 0), Some(Told::Failed(ResponseError::NotCoordinator)));
}

#[test]
fn a_machine_that_fails_as_soon_as_it_is_loaded_is_not_loaded_at_once() {
    let mut world = loaded();
    for step in [Step::Ask(0, What::AddAhead), Step::Flush, Step::Decide(0, Fate::Lost), Step::Report(0)] {
        world.run(&step);
    }
    assert_eq!(told(&world, 0), Some(Told::Failed(ResponseError::NotCoordinator)));
    assert_eq!(world.to_read, []);
    world.run(&Step::Reconcile);
    assert_eq!(world.to_read.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn whoever_asks_hears_once_of_what_is_in_the_log(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.run(step));
        world.come_to_rest();
        let unanswered = |world: &World| world.asked.iter().filter(|(_, told)| told.is_none()).count();
        prop_assert_eq!(unanswered(&world), 0);
        for partition in 0..PARTITIONS {
            let number = world.asked.len();
            world.run(&Step::Ask(partition, What::Look));
            let log = world.logs.get(&world.partition(partition)).into_iter().flatten().copied().collect();
            prop_assert_eq!(&world.asked[number].1, &Some(Told::Known(log)), "what is in the log is known");
            world.run(&Step::Ask(partition, What::Hold));
            world.run(&Step::Ask(partition, What::AddAhead));
        }
        world.slots.begin_end();
        prop_assert!(!world.slots.is_at_end(), "there is something to be written");
        world.come_to_rest();
        prop_assert!(world.slots.is_at_end());
        world.slots.end(world.now_ms);
        world.settle();
        prop_assert_eq!(unanswered(&world), 0);
    }
}

#[test]
fn only_a_log_that_fails_stops_or_loses_its_leadership_leaves_a_batch_doubtful() {
    let doubtful = [LogError::Storage("torn".into()), LogError::ShuttingDown, LogError::NotLeader];
    for error in doubtful {
        let failure = AppendFailure { error: ResponseError::NotCoordinator, is_doubtful: true };
        assert_eq!(AppendFailure::from(&error), failure, "{error}");
    }
    for error in [LogError::StorageFull, LogError::UnknownPartition, LogError::FencedLeaderEpoch] {
        let failure = AppendFailure { error: ResponseError::CoordinatorNotAvailable, is_doubtful: false };
        assert_eq!(AppendFailure::from(&error), failure, "{error}");
    }
}
