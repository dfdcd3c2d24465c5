//! The machines of one shard, each for one partition in one leader epoch: decides what is loaded, served and forgotten
//! when, and in which order machines hear of their writes. The runtime around it reads, writes and keeps time.
//!
//! Always holds:
//! - A machine serves only after all of its log was read, and nothing of what an earlier machine of the partition wrote
//!   is under way while it is read. So what is in the log is what the machine knows.
//! - What comes back from outside is known by a number that is never used again: a load or a write of a former life of
//!   the topic, or of an earlier epoch, changes nothing in a later one.
//! - A machine that is not what the log says, because it ran ahead of a write that failed or because it is not known
//!   whether a write did, hears of nothing more, and nothing that it knows is told any longer.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{LogError, TopicPartition},
    engine::Topics,
    transactions::Marker,
};

use super::{
    effects::WriteId,
    machine::{Machine, Verdict},
    marker::ReplayedMarker,
    pack::{Packed, pack},
    promise::Gate,
    ticket::{Reply, Ticket},
};
use crate::errors::log_error;

/// Who needs a partition waits here while it is loaded.
pub(crate) type LoadGate = Gate<Result<(), ResponseError>>;

/// Whether a partition can be asked now.
pub(crate) enum Entrance {
    /// It serves.
    Open,
    /// It is being loaded, or about to be.
    Closed(Rc<LoadGate>),
    /// This shard does not coordinate it.
    Refused,
}

/// A partition that is to be read from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Which.
    pub(crate) partition: TopicPartition,
    number: u64,
}

/// A batch, or a marker of the partition itself, that is to be appended. What is of a partition is appended in the order
/// in which it was taken.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) partition: TopicPartition,
    /// `None`: the one marker is all there is.
    pub(crate) batch: Option<Bytes>,
    /// What becomes durable together with the batch.
    pub(crate) markers: Vec<Marker>,
    /// To be given back when it is done.
    pub(crate) number: u64,
}

/// Who is told that a marker is durable.
pub(crate) type MarkerTicket = Ticket<Result<(), ResponseError>>;

/// What became of a batch: the offset of its first record, once that is durable.
pub(crate) type Appended = Result<i64, AppendFailure>;

/// A batch is not known to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AppendFailure {
    /// What those hear who wait for it.
    pub(crate) error: ResponseError,
    /// Whether it may be in the log all the same.
    pub(crate) is_doubtful: bool,
}

impl From<&LogError> for AppendFailure {
    /// A log that fails, stops or is not led here any more may have written the batch; in all other cases it was refused before it had an offset.
    /// But for a batch that is wrong by itself the error is retriable, as in Kafka: the client looks for the coordinator
    /// again.
    fn from(error: &LogError) -> Self {
        let (error, is_doubtful) = match error {
            LogError::Storage(_)
            | LogError::ShuttingDown
            | LogError::NotLeader
            | LogError::NotInTime
            | LogError::NotEnoughReplicasAfterAppend => (ResponseError::NotCoordinator, true),
            LogError::Batch(_) => (ResponseError::UnknownServerError, false),
            LogError::UnknownPartition
            | LogError::OffsetOutOfRange { .. }
            | LogError::UnknownLeaderEpoch
            | LogError::FencedLeaderEpoch
            | LogError::NotEnoughReplicas
            | LogError::OffsetNotAvailable
            | LogError::UnexpectedOffset { .. }
            | LogError::OutOfOrderSequence(_)
            | LogError::UnknownProducerId
            | LogError::StorageFull => (ResponseError::CoordinatorNotAvailable, false),
            // what a producer's transaction comes to is told as it is
            LogError::InvalidProducerEpoch
            | LogError::InvalidTxnState(_)
            | LogError::TransactionCoordinatorFenced { .. }
            | LogError::ConcurrentTransactions(_)
            | LogError::TransactionAbortable(_)
            | LogError::InvalidProducerIdMapping
            | LogError::TransactionCoordinatorNotAvailable => (log_error(error), false),
        };
        Self { error, is_doubtful }
    }
}

/// What is to be done.
pub(crate) struct Actions<E> {
    /// Partitions to read.
    pub(crate) loads: Vec<Load>,
    /// Errands of machines.
    pub(crate) errands: Vec<(TopicPartition, E)>,
    /// Whether there is something to append.
    pub(crate) is_dirty: bool,
    /// Whether a deadline is nearer than the timer sleeps.
    pub(crate) is_early: bool,
}

enum Stage<M> {
    /// It is read.
    Loading { number: u64, gate: Rc<LoadGate> },
    /// It serves.
    Serving(Box<M>),
    /// Writes of a machine that is gone are under way. When they are done, it is read; without a gate it is forgotten.
    Draining(Option<Rc<LoadGate>>),
}

struct Slot<M> {
    leader_epoch: i32,
    stage: Stage<M>,
    /// The topics that the machine was last told of.
    topics: Rc<Topics>,
    /// Batches under way, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Ends of transactions in this partition that are to be appended behind what the machine has to write now.
    markers: Vec<(Marker, MarkerTicket)>,
}

struct InFlight {
    number: u64,
    writes: Vec<(WriteId, i64)>,
    marker: Option<(Marker, MarkerTicket)>,
    result: Option<Appended>,
}

/// Tells who waits for a marker what became of it.
fn answer(ticket: MarkerTicket, result: Result<(), ResponseError>) {
    Reply::new(ticket, result).send();
}

impl<M: Machine> Slot<M> {
    /// The machine, if it serves, told of the topics of now.
    fn machine(&mut self, topics: &Rc<Topics>) -> Option<&mut M> {
        let Stage::Serving(machine) = &mut self.stage else { return None };
        if !Rc::ptr_eq(&self.topics, topics) {
            self.topics = Rc::clone(topics);
            machine.handle_topics(topics);
        }
        Some(machine)
    }
}

/// See the module.
pub(crate) struct Slots<M: Machine> {
    slots: BTreeMap<TopicPartition, Slot<M>>,
    topics: Rc<Topics>,
    next_number: u64,
    loads: Vec<Load>,
    errands: Vec<(TopicPartition, M::Errand)>,
    /// Partitions whose machines have something to write.
    dirty: BTreeSet<TopicPartition>,
    /// Until when the timer sleeps, and whether that is too long.
    sleeps_until_ms: i64,
    is_early: bool,
    /// Nothing is begun any more.
    is_ending: bool,
}

impl<M: Machine> Slots<M> {
    /// Coordinates nothing yet.
    pub(crate) fn new(topics: Rc<Topics>) -> Self {
        Self {
            slots: BTreeMap::new(),
            topics,
            next_number: 0,
            loads: Vec::new(),
            errands: Vec::new(),
            dirty: BTreeSet::new(),
            sleeps_until_ms: i64::MAX,
            is_early: false,
            is_ending: false,
        }
    }

    /// Takes the topics of now over; machines are told before anything else.
    pub(crate) fn see_topics(&mut self, topics: Rc<Topics>) {
        self.topics = topics;
    }

    /// Whether a partition can be asked; begins to load it if need be. The epoch is that in which this node leads it now.
    pub(crate) fn enter(&mut self, now_ms: i64, partition: TopicPartition, leader_epoch: Option<i32>) -> Entrance {
        let Some(leader_epoch) = leader_epoch.filter(|_| !self.is_ending) else {
            return Entrance::Refused;
        };
        if let Some(Slot { leader_epoch: current, stage: Stage::Serving(_), .. }) = self.slots.get(&partition)
            && *current == leader_epoch
        {
            return Entrance::Open;
        }
        self.lead(now_ms, partition, leader_epoch).map_or(Entrance::Refused, Entrance::Closed)
    }

    /// Loads what is led now and was not before, or in another epoch; forgets what is not led any more.
    pub(crate) fn reconcile(&mut self, now_ms: i64, led: &BTreeMap<TopicPartition, i32>) {
        if self.is_ending {
            return;
        }
        let lost: Vec<_> = self.slots.keys().filter(|partition| !led.contains_key(partition)).copied().collect();
        for partition in lost {
            self.unload(now_ms, partition);
        }
        for (partition, leader_epoch) in led {
            self.lead(now_ms, *partition, *leader_epoch);
        }
    }

    /// Sees to it that a partition is served in an epoch; answers the gate at which to wait for that. `None`: it is
    /// served, or the epoch is over.
    fn lead(&mut self, now_ms: i64, partition: TopicPartition, leader_epoch: i32) -> Option<Rc<LoadGate>> {
        let slot = self.slots.entry(partition).or_insert_with(|| Slot {
            leader_epoch,
            stage: Stage::Draining(None),
            topics: Rc::clone(&self.topics),
            in_flight: VecDeque::new(),
            markers: Vec::new(),
        });
        if slot.leader_epoch > leader_epoch {
            return None;
        }
        let gate = match &slot.stage {
            Stage::Serving(_) if slot.leader_epoch == leader_epoch => return None,
            Stage::Loading { gate, .. } if slot.leader_epoch == leader_epoch => return Some(Rc::clone(gate)),
            Stage::Loading { gate, .. } | Stage::Draining(Some(gate)) => Rc::clone(gate),
            Stage::Serving(_) | Stage::Draining(None) => Gate::new(),
        };
        slot.leader_epoch = leader_epoch;
        self.retire(now_ms, partition, Some(Rc::clone(&gate)));
        Some(gate)
    }

    /// Forgets a partition.
    fn unload(&mut self, now_ms: i64, partition: TopicPartition) {
        let stage = self.slots.get(&partition).map(|slot| &slot.stage);
        if let Some(Stage::Loading { gate, .. } | Stage::Draining(Some(gate))) = stage {
            gate.open(Err(ResponseError::NotCoordinator));
        }
        self.retire(now_ms, partition, None);
    }

    /// Ends what a partition has of a machine. When its writes are done it is loaded, if there is a gate to open then.
    fn retire(&mut self, now_ms: i64, partition: TopicPartition, gate: Option<Rc<LoadGate>>) {
        let Some(slot) = self.slots.get_mut(&partition) else { return };
        if let Stage::Serving(mut machine) = std::mem::replace(&mut slot.stage, Stage::Draining(gate)) {
            machine.close(now_ms, ResponseError::NotCoordinator);
            machine.take_replies().into_iter().for_each(Reply::send);
        }
        for (_, ticket) in std::mem::take(&mut slot.markers) {
            answer(ticket, Err(ResponseError::NotLeaderOrFollower));
        }
        self.dirty.remove(&partition);
        self.go_on_if_drained(partition);
    }

    fn go_on_if_drained(&mut self, partition: TopicPartition) {
        let Some(slot) = self.slots.get_mut(&partition).filter(|slot| slot.in_flight.is_empty()) else { return };
        match &slot.stage {
            Stage::Draining(Some(gate)) => {
                let number = self.next_number;
                self.next_number += 1;
                slot.stage = Stage::Loading { number, gate: Rc::clone(gate) };
                self.loads.push(Load { partition, number });
            }
            Stage::Draining(None) => {
                self.slots.remove(&partition);
            }
            Stage::Loading { .. } | Stage::Serving(_) => {}
        }
    }

    /// Whether somebody still waits for what is read.
    pub(crate) fn is_loading(&self, load: Load) -> bool {
        let stage = self.slots.get(&load.partition).map(|slot| &slot.stage);
        matches!(stage, Some(Stage::Loading { number, .. }) if *number == load.number)
    }

    /// A partition was read into a machine, or could not be.
    pub(crate) fn on_loaded<E>(&mut self, now_ms: i64, load: Load, loaded: Result<Box<M>, E>) {
        let Some(slot) = self.slots.get_mut(&load.partition) else { return };
        let gate = match &slot.stage {
            Stage::Loading { number, gate } if *number == load.number => Rc::clone(gate),
            Stage::Loading { .. } | Stage::Serving(_) | Stage::Draining(_) => return,
        };
        match loaded {
            Ok(mut machine) => {
                slot.topics = Rc::clone(&self.topics);
                machine.handle_topics(&slot.topics);
                machine.on_loaded(now_ms);
                slot.stage = Stage::Serving(machine);
                gate.open(Ok(()));
                self.settle(load.partition);
            }
            Err(_) => {
                self.slots.remove(&load.partition);
                gate.open(Err(ResponseError::CoordinatorNotAvailable));
            }
        }
    }

    /// Lets the machine of a partition do something; `None`: it does not serve.
    pub(crate) fn with<R>(&mut self, partition: TopicPartition, work: impl FnOnce(&mut M) -> R) -> Option<R> {
        let result = work(self.slots.get_mut(&partition)?.machine(&self.topics)?);
        self.settle(partition);
        Some(result)
    }

    /// Appends the end of a transaction to a partition itself. Refused with an error that is tried again, unless the
    /// machine that is to know of it serves.
    pub(crate) fn append_marker(&mut self, marker: Marker, ticket: MarkerTicket) {
        match self.slots.get_mut(&marker.partition) {
            Some(slot) if matches!(slot.stage, Stage::Serving(_)) && !self.is_ending => {
                slot.markers.push((marker, ticket));
                self.dirty.insert(marker.partition);
            }
            Some(_) | None => answer(ticket, Err(ResponseError::NotLeaderOrFollower)),
        }
    }

    /// Takes what a machine wants done.
    fn settle(&mut self, partition: TopicPartition) {
        let stage = self.slots.get_mut(&partition).map(|slot| &mut slot.stage);
        let Some(Stage::Serving(machine)) = stage else { return };
        machine.take_replies().into_iter().for_each(Reply::send);
        let errands = machine.take_errands();
        self.errands.extend(errands.into_iter().map(|errand| (partition, errand)));
        if machine.has_writes() {
            self.dirty.insert(partition);
        }
        self.is_early |= machine.next_deadline_ms().is_some_and(|deadline_ms| deadline_ms < self.sleeps_until_ms);
    }

    /// Looks at all machines that serve.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &M> {
        self.slots.values().filter_map(|slot| match &slot.stage {
            Stage::Serving(machine) => Some(&**machine),
            Stage::Loading { .. } | Stage::Draining(_) => None,
        })
    }

    /// The gates of all partitions that do not serve yet.
    pub(crate) fn closed_gates(&self) -> Vec<Rc<LoadGate>> {
        let gates = self.slots.values().filter_map(|slot| match &slot.stage {
            Stage::Loading { gate, .. } | Stage::Draining(Some(gate)) => Some(Rc::clone(gate)),
            Stage::Serving(_) | Stage::Draining(None) => None,
        });
        gates.collect()
    }

    /// Tells every machine that serves that some time has gone by.
    pub(crate) fn handle_tick(&mut self, now_ms: i64) {
        for partition in self.serving(|_| true) {
            self.with(partition, |machine| machine.handle_tick(now_ms));
        }
    }

    /// Handles the deadlines that are over.
    pub(crate) fn handle_timeouts(&mut self, now_ms: i64) {
        for partition in self.serving(|machine| machine.next_deadline_ms().is_some_and(|at_ms| at_ms <= now_ms)) {
            self.with(partition, |machine| machine.handle_timeouts(now_ms));
        }
    }

    fn serving(&self, which: impl Fn(&M) -> bool) -> Vec<TopicPartition> {
        let those = self.slots.iter().filter_map(|(partition, slot)| match &slot.stage {
            Stage::Serving(machine) => which(machine).then_some(*partition),
            Stage::Loading { .. } | Stage::Draining(_) => None,
        });
        those.collect()
    }

    /// The timer is about to sleep, at most that long; answers until when.
    pub(crate) fn sleep(&mut self, at_most_until_ms: i64) -> i64 {
        let nearest_ms = self.machines().filter_map(M::next_deadline_ms).min();
        self.sleeps_until_ms = nearest_ms.map_or(at_most_until_ms, |nearest_ms| nearest_ms.min(at_most_until_ms));
        self.is_early = false;
        self.sleeps_until_ms
    }

    /// What is to be done now.
    pub(crate) fn take_actions(&mut self) -> Actions<M::Errand> {
        Actions {
            loads: std::mem::take(&mut self.loads),
            errands: std::mem::take(&mut self.errands),
            is_dirty: !self.dirty.is_empty(),
            is_early: std::mem::take(&mut self.is_early),
        }
    }

    /// Forgets the machines among those with something to write whose epoch is over, by the epoch in which this node leads
    /// a partition now.
    pub(crate) fn forget_unled(&mut self, now_ms: i64, led: impl Fn(TopicPartition) -> Option<i32>) {
        let is_over = |partition: &&TopicPartition| {
            self.slots.get(*partition).is_some_and(|slot| led(**partition) != Some(slot.leader_epoch))
        };
        for partition in self.dirty.iter().filter(is_over).copied().collect::<Vec<_>>() {
            self.unload(now_ms, partition);
        }
    }

    /// What is to be appended now.
    pub(crate) fn take_appends(&mut self, now_ms: i64) -> Vec<Append> {
        let mut appends = Vec::with_capacity(self.dirty.len());
        for partition in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.slots.get_mut(&partition) else { continue };
            let Stage::Serving(machine) = &mut slot.stage else { continue };
            let mut number = || {
                let number = self.next_number;
                self.next_number += 1;
                number
            };
            for Packed { batch, markers, writes } in pack(machine.take_writes(), now_ms) {
                let number = number();
                slot.in_flight.push_back(InFlight { number, writes, marker: None, result: None });
                appends.push(Append { partition, batch: Some(batch), markers, number });
            }
            for (marker, ticket) in std::mem::take(&mut slot.markers) {
                machine.begin_marker(marker.producer_id);
                let number = number();
                let marked = Some((marker, ticket));
                slot.in_flight.push_back(InFlight { number, writes: Vec::new(), marker: marked, result: None });
                appends.push(Append { partition, batch: None, markers: vec![marker], number });
            }
        }
        appends
    }

    /// A batch is durable or failed. The machine hears of batches in the order of the log; one that does not know whether
    /// it is in the log is not the log's any more.
    pub(crate) fn on_appended(&mut self, now_ms: i64, partition: TopicPartition, number: u64, result: Appended) {
        let Some(slot) = self.slots.get_mut(&partition) else { return };
        if let Some(in_flight) = slot.in_flight.iter_mut().find(|in_flight| in_flight.number == number) {
            in_flight.result = Some(result);
        }
        let mut verdict = Verdict::Stands;
        while slot.in_flight.front().is_some_and(|oldest| oldest.result.is_some()) {
            let Some(InFlight { writes, marker, result: Some(result), .. }) = slot.in_flight.pop_front() else { break };
            let mut machine = slot.machine(&self.topics);
            if let Some((marker, ticket)) = marker {
                if let (Some(machine), Ok(offset)) = (&mut machine, result) {
                    machine.replay_marker(&ReplayedMarker::of(&marker, offset));
                }
                answer(ticket, result.map(|_| ()).map_err(|failure| failure.error));
            }
            let Some(machine) = machine else { continue };
            for (id, place) in writes {
                if verdict == Verdict::Stands {
                    let result = result.map(|base_offset| base_offset + place).map_err(|failure| failure.error);
                    verdict = machine.on_persisted(now_ms, id, result);
                }
            }
            if verdict == Verdict::Rebuild || result.is_err_and(|failure| failure.is_doubtful) {
                machine.close(now_ms, ResponseError::NotCoordinator);
                machine.take_replies().into_iter().for_each(Reply::send);
                // whoever asks next has it loaded, or the next look at what is led: what fails again at once, as when the
                // disk is full, does not turn in a circle
                slot.stage = Stage::Draining(None);
                for (_, ticket) in std::mem::take(&mut slot.markers) {
                    answer(ticket, Err(ResponseError::NotLeaderOrFollower));
                }
                self.dirty.remove(&partition);
            }
        }
        self.settle(partition);
        self.go_on_if_drained(partition);
    }

    /// From now on nobody is served any more who was not before.
    pub(crate) fn begin_end(&mut self) {
        self.is_ending = true;
    }

    /// Whether that was said and no record is under way, or about to be.
    pub(crate) fn is_at_end(&self) -> bool {
        self.is_ending && self.dirty.is_empty() && self.slots.values().all(|slot| slot.in_flight.is_empty())
    }

    /// Answers everybody who waits and forgets all machines.
    pub(crate) fn end(&mut self, now_ms: i64) {
        self.begin_end();
        for partition in self.slots.keys().copied().collect::<Vec<_>>() {
            self.unload(now_ms, partition);
        }
        self.loads.clear();
    }
}
