//! Who waits at a leader until all replicas in sync have a record, and how that ends: it is never silent. What ends a wait is
//! production's own [`Replication`]; how long a request may wait is up to whoever took it, as with `timeout.ms`.
//!
//! Always: only a leader is waited for, in the epoch in which it took the record, and only as long as enough replicas are in sync.

use std::{collections::BTreeMap, rc::Rc};

use millrace_engine::{
    api::{LogError, TopicPartition},
    replica::Leadership,
    signal::Outcome,
    simulated::Replication,
};

use super::{
    transactions::Await,
    world::{Event, Rule, World},
};
use crate::{channel::intent::EngineWork, cluster::model::NodeId};

/// Timeouts of requests are between these, in ms.
const TIMEOUT_MS_MIN: u64 = 300;
const TIMEOUT_MS_MAX: u64 = 4_300;
/// A request that waits longer than its timeout by more than that, while its process runs, is forgotten.
const LATE_MS: u64 = 10;

/// How waits ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// All replicas in sync have the record.
    pub(super) acknowledged: u64,
    /// NOT_LEADER_OR_FOLLOWER.
    pub(super) not_leader: u64,
    /// NOT_ENOUGH_REPLICAS_AFTER_APPEND.
    pub(super) not_enough: u64,
    /// REQUEST_TIMED_OUT.
    pub(super) timed_out: u64,
    /// The process ended, and the connection with it.
    pub(super) broken_off: u64,
}

impl Answers {
    /// Of two runs together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            not_leader: self.not_leader + other.not_leader,
            not_enough: self.not_enough + other.not_enough,
            timed_out: self.timed_out + other.timed_out,
            broken_off: self.broken_off + other.broken_off,
        }
    }

    /// Whether each of them was given.
    pub(super) fn has_all(self) -> bool {
        let Self { acknowledged, not_leader, not_enough, timed_out, broken_off } = self;
        [acknowledged, not_leader, not_enough, timed_out, broken_off].iter().all(|count| *count > 0)
    }
}

#[derive(Debug)]
struct Wait {
    number: u64,
    epoch: i32,
    until_ms: u64,
    awaits: Await,
    confirmation: Rc<Outcome<Result<(), LogError>>>,
}

/// A partition at a node's process.
#[derive(Debug)]
struct Waited {
    replication: Replication,
    /// The least of `min.insync.replicas` by which it went since it was last told how many are in sync.
    min: i32,
    waits: Vec<Wait>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waits {
    partitions: BTreeMap<(NodeId, TopicPartition), Waited>,
    begun: u64,
    pub(super) answers: Answers,
}

impl Waits {
    fn of(&mut self, id: NodeId, partition: TopicPartition) -> &mut Waited {
        let undecided = || Waited { replication: Replication::undecided(), min: 1, waits: Vec::new() };
        self.partitions.entry((id, partition)).or_insert_with(undecided)
    }

    fn break_off(&mut self, is_over: impl Fn(&(NodeId, TopicPartition)) -> bool) {
        let over = self.partitions.extract_if(.., |key, _| is_over(key));
        self.answers.broken_off += over.map(|(_, waited)| waited.waits.len() as u64).sum::<u64>();
    }
}

impl World {
    /// The engine is about to lead or follow in an epoch. Who leads on in the same one does so without a break.
    pub(super) fn begin_change(&mut self, id: NodeId, partition: TopicPartition, work: &EngineWork) {
        match *work {
            EngineWork::Lead { epoch } if self.waits.of(id, partition).replication.leads() == Some(epoch) => {}
            EngineWork::Follow { .. } if self.plan.breaks == Some(Rule::WaitsEndWithLeader) => {}
            EngineWork::Lead { epoch } | EngineWork::Follow { epoch } => self.enter(id, partition, epoch),
            _ => {}
        }
    }

    /// Whoever waits for a former leader hears that.
    fn enter(&mut self, id: NodeId, partition: TopicPartition, epoch: i32) {
        let _older_ones_change_nothing = self.waits.of(id, partition).replication.enter(epoch);
        self.collect_answers(id, partition);
    }

    /// It leads, in the epoch that it entered.
    pub(super) fn lead(&mut self, id: NodeId, partition: TopicPartition) {
        let leadership = self.leadership(id, partition);
        self.waits.of(id, partition).replication.lead(leadership);
    }

    fn leadership(&self, id: NodeId, partition: TopicPartition) -> Leadership {
        let state = self.nodes[&id].control.image.partition(partition);
        let count = |count: usize| u32::try_from(count).expect("a few nodes").max(1);
        Leadership::Replicated {
            replicas: state.map_or(1, |state| count(state.value.replicas.len())),
            in_sync: state.map_or(1, |state| count(state.value.isr.len())),
        }
    }

    /// `min.insync.replicas`, as a node has heard.
    fn min_in_sync(&self, id: NodeId, partition: TopicPartition) -> i32 {
        let topic = self.nodes[&id].control.image.topics.get(&partition.topic);
        topic.map_or(1, |topic| i32::try_from(topic.rules.min_isr).expect("a few nodes"))
    }

    /// The engine hears how many are in sync.
    pub(super) fn set_in_sync(&mut self, id: NodeId, partition: TopicPartition, count: usize) {
        let (count, min) = (u32::try_from(count).expect("a few nodes"), self.min_in_sync(id, partition));
        let waited = self.waits.of(id, partition);
        waited.min = min;
        if self.plan.breaks == Some(Rule::WaitsEndWithTooFew) {
            return;
        }
        let _who_does_not_lead_is_told_in_vain = waited.replication.set_in_sync(count, min);
        self.collect_answers(id, partition);
    }

    /// The engine hears how many replicas a partition has, if it leads in the epoch of the image.
    pub(super) fn set_replicas(&mut self, id: NodeId, partition: TopicPartition) {
        let (leadership, min) = (self.leadership(id, partition), self.min_in_sync(id, partition));
        let state = self.nodes[&id].control.image.partition(partition);
        let Some(epoch) = state.map(|state| state.value.leader_epoch) else { return };
        let _others_are_not_asked = self.waits.of(id, partition).replication.set_replicas(epoch, leadership, min);
        self.collect_answers(id, partition);
    }

    /// In which epoch a node takes a record that enough replicas shall have.
    pub(super) fn takes(&mut self, id: NodeId, partition: TopicPartition) -> Option<i32> {
        let min = self.min_in_sync(id, partition);
        let waited = self.waits.of(id, partition);
        waited.min = waited.min.min(min);
        waited.replication.check_produce(min).ok()?;
        waited.replication.leads()
    }

    /// Somebody waits for a record.
    pub(super) fn wait_for(&mut self, id: NodeId, partition: TopicPartition, offset: i64, awaits: Await) {
        self.waits.begun += 1;
        let number = self.waits.begun;
        // not by chance, so that what else happens does not depend on it
        let timeout_ms = TIMEOUT_MS_MIN + number * 7_919 % (TIMEOUT_MS_MAX - TIMEOUT_MS_MIN);
        let (until_ms, process) = (self.now_ms + timeout_ms, self.nodes[&id].process);
        let Waited { replication, waits, .. } = self.waits.of(id, partition);
        let epoch = replication.leads().expect("it took the record");
        let confirmation = replication.expect(offset + 1);
        waits.push(Wait { number, epoch, until_ms, awaits, confirmation });
        self.at(timeout_ms, Event::TimeOut { node: id, process, partition, number });
    }

    /// The high watermark rose.
    pub(super) fn confirm(&mut self, id: NodeId, partition: TopicPartition, high_watermark: i64) {
        self.waits.of(id, partition).replication.confirm(high_watermark);
        self.collect_answers(id, partition);
    }

    fn collect_answers(&mut self, id: NodeId, partition: TopicPartition) {
        let waits = &mut self.waits.of(id, partition).waits;
        let answered: Vec<_> = waits.extract_if(.., |wait| wait.confirmation.get().is_some()).collect();
        for wait in answered {
            let answers = &mut self.waits.answers;
            match wait.confirmation.get().expect("it is answered") {
                Ok(()) => {
                    answers.acknowledged += 1;
                    self.answered(partition, wait.awaits);
                }
                Err(LogError::NotLeader) => answers.not_leader += 1,
                Err(LogError::NotEnoughReplicasAfterAppend) => answers.not_enough += 1,
                Err(other) => self.violate(format!("wait: {wait:?} at {id} of {partition:?} ends with {other:?}")),
            }
        }
    }

    /// A request's time is up: whoever took it answers, if nobody did.
    pub(super) fn time_out(&mut self, id: NodeId, process: u64, partition: TopicPartition, number: u64) {
        if self.is_running(id, process) {
            let waits = &mut self.waits.of(id, partition).waits;
            let timed_out = waits.extract_if(.., |wait| wait.number == number).count();
            self.waits.answers.timed_out += timed_out as u64;
        }
    }

    /// A node's process has ended: its clients see their connections break.
    pub(super) fn break_off_waits(&mut self, id: NodeId) {
        self.waits.break_off(|(node, _)| *node == id);
    }

    /// A partition has left a node: nobody waits for it there, as nobody may read it.
    pub(super) fn leave(&mut self, id: NodeId, partition: TopicPartition) {
        self.enter(id, partition, i32::MAX);
        self.waits.break_off(|key| *key == (id, partition));
    }

    /// How many wait for a partition at a node.
    pub(super) fn waiting(&self, id: NodeId, partition: TopicPartition) -> usize {
        self.waits.partitions.get(&(id, partition)).map_or(0, |waited| waited.waits.len())
    }

    /// Whether whoever waits is bound to be answered.
    pub(super) fn check_waits(&mut self) {
        let found = self.waits.partitions.iter().find_map(|((id, partition), waited)| {
            let wait = waited.waits.iter().find_map(|wait| Some((wait, self.lost(*id, *partition, waited.min, wait)?)));
            wait.map(|(wait, why)| format!("wait: {why}: {wait:?} at {id} of {partition:?}"))
        });
        if let Some(found) = found {
            self.violate(found);
        }
    }

    /// Why a wait should have ended.
    fn lost(&self, id: NodeId, partition: TopicPartition, min: i32, wait: &Wait) -> Option<&'static str> {
        let node = &self.nodes[&id];
        if self.now_ms > wait.until_ms.max(node.paused_until_ms) + LATE_MS {
            return Some("its time is up");
        }
        let Some((_, in_sync)) = node.core.in_sync(partition).filter(|(epoch, _)| *epoch == wait.epoch) else {
            return Some("its leader leads no more");
        };
        let replicas = node.control.image.partition(partition).map_or(0, |state| state.value.replicas.len());
        (in_sync < usize::try_from(min).expect("at least 1").min(replicas)).then_some("too few are in sync")
    }

    /// What is not answered.
    pub(super) fn find_wait(&self) -> Option<String> {
        let mut all =
            self.waits.partitions.iter().flat_map(|(key, waited)| waited.waits.iter().map(move |wait| (key, wait)));
        let waiting = all.clone().count() as u64;
        let Answers { acknowledged, not_leader, not_enough, timed_out, broken_off } = self.waits.answers;
        let answered = acknowledged + not_leader + not_enough + timed_out + broken_off;
        if answered + waiting != self.waits.begun {
            return Some(format!("{} waits were begun, {answered} are answered, {waiting} last", self.waits.begun));
        }
        all.next().map(|wait| format!("it is not answered: {wait:?}"))
    }
}
