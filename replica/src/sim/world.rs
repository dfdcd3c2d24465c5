//! Several nodes with their real cores, a store, a network, disks and clients, all in one thread and in virtual time. The same seed
//! gives the same events, in the same order.

use std::{collections::BTreeMap, time::Duration};

use millrace_engine::{api::TopicPartition, config::Durability};
use uuid::Uuid;

use super::{
    control::{self, Control, Line},
    deleting::Deletions,
    ghost::{Ghost, Violation, match_logs},
    limiting::{self, Limiting},
    log::{Acting, Kind, ModelLog, Record},
    network::Network,
    random::Random,
    transactions::{Await, Coordinating, Step, Transactions},
    waiting::Waits,
};
use crate::{
    channel::{
        event::{Assignment, Done, IsrOutcome, LinkId, LogPosition, Logs},
        guard::{Guard, Guards},
        intent::EngineWork,
        shard::{ChannelConfig, LAG_MS_MAX, ShardChannel},
    },
    cluster::{
        keys::{self, StoredTopic},
        memory::Memory,
        model::{Continued, Kept, Member, NodeId, NodeState, PartitionState},
        store::Transaction,
    },
};

/// A guard outside the channel's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// The controller's transactions compare what it decided on.
    ControllerCompare,
    /// Becoming leader notes where the epoch begins, before anything is appended.
    EmptyEpochNote,
    /// Members are lives of nodes: one that lost records is not the one that was in sync.
    MemberPairs,
    /// A coordinator sends markers once all replicas in sync have its decision.
    DecisionOnAll,
    /// A coordinator sends the markers of what former ones decided.
    MarkersAnew,
    /// A marker is answered once all replicas in sync have it.
    MarkerOnAll,
    /// A leader asks the coordinator before it takes a transaction's first record.
    LetIn,
    /// Whoever was let in is taken only if the transaction has not ended meanwhile.
    LetInStill,
    /// Who waits for a leader hears when it leads no more.
    WaitsEndWithLeader,
    /// Who waits hears when too few replicas are in sync.
    WaitsEndWithTooFew,
    /// A life goes on by what was promised to the one before, not by what the topic asks for since.
    PromiseInKey,
}

impl Rule {
    pub(super) const ALL: [Self; 11] = [
        Self::ControllerCompare,
        Self::EmptyEpochNote,
        Self::MemberPairs,
        Self::DecisionOnAll,
        Self::MarkersAnew,
        Self::MarkerOnAll,
        Self::LetIn,
        Self::LetInStill,
        Self::WaitsEndWithLeader,
        Self::WaitsEndWithTooFew,
        Self::PromiseInKey,
    ];
}

/// What one run is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// A guard that is switched off.
    pub(super) without: Option<Guard>,
    /// A rule that is broken.
    pub(super) breaks: Option<Rule>,
}

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, without: None, breaks: None }
    }
}

/// Partitions of the topic.
const TOPIC: Uuid = Uuid::from_u128(1);
const PARTITIONS: i32 = 3;

pub(super) const CLUSTER: Uuid = Uuid::from_u128(7);

/// What is to happen.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Tick(NodeId, u64),
    Control(NodeId, u64),
    Dialed {
        node: NodeId,
        process: u64,
        link: LinkId,
        to: NodeId,
    },
    Deliver(u64, usize),
    /// A transition of the engine, or a read, ends.
    Work {
        node: NodeId,
        process: u64,
        partition: TopicPartition,
        work: EngineWork,
    },
    Seal(NodeId, u64),
    Written {
        node: NodeId,
        process: u64,
        ends: Vec<(TopicPartition, i64, u64)>,
        is_flush: bool,
    },
    /// A leader's transaction reaches the store.
    Alter {
        node: NodeId,
        process: u64,
        partition: TopicPartition,
        revision: i64,
        transaction: Transaction,
        is_heard: bool,
    },
    Altered {
        node: NodeId,
        process: u64,
        partition: TopicPartition,
        revision: i64,
        outcome: IsrOutcome,
    },
    /// A log loses its beginning.
    Trim {
        node: NodeId,
        process: u64,
        partition: TopicPartition,
        log_start: i64,
    },
    /// Something of a transaction happens; at a node's process, or among clients.
    Transact {
        node: NodeId,
        process: u64,
        step: Step,
    },
    /// A request has waited as long as its client said.
    TimeOut {
        node: NodeId,
        process: u64,
        partition: TopicPartition,
        number: u64,
    },
    Produce,
    Fault,
    Restart(NodeId),
    Crash(NodeId),
    Heal(NodeId, NodeId),
    OpenLine(NodeId),
}

/// A node's process and its disk.
#[derive(Debug)]
pub(super) struct Node {
    /// Counts its processes.
    pub(super) process: u64,
    pub(super) is_up: bool,
    pub(super) paused_until_ms: u64,
    pub(super) clock_ahead_ms: u64,
    pub(super) line: Line,
    pub(super) core: ShardChannel,
    pub(super) control: Control,
    pub(super) logs: BTreeMap<TopicPartition, ModelLog>,
    pub(super) disk_free_ms: u64,
    /// Until when the disk is full: nothing that a leader sends is taken.
    pub(super) full_until_ms: u64,
    pub(super) is_sealing: bool,
    pub(super) wake_ms: Option<u64>,
    /// Nodes that live, as its channel was told last.
    pub(super) known: Vec<NodeId>,
    pub(super) limiting: Limiting,
    pub(super) coordinating: Coordinating,
}

/// What the store holds.
#[derive(Debug, Default)]
struct Held {
    revision: i64,
    states: Vec<PartitionState>,
    nodes: Vec<NodeState>,
}

/// The logs of a node, as the channel looks at them.
pub(super) struct View<'a>(pub(crate) &'a BTreeMap<TopicPartition, ModelLog>);

impl Logs for View<'_> {
    fn position(&self, partition: TopicPartition) -> Option<LogPosition> {
        self.0.get(&partition).map(ModelLog::position)
    }

    fn end_of_epoch(&self, partition: TopicPartition, epoch: i32) -> Option<(i32, i64)> {
        self.0.get(&partition)?.end_of_epoch(epoch)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) now_ms: u64,
    pub(super) random: Random,
    pub(super) memory: Memory,
    pub(super) network: Network,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    /// Those that clients write to, and the coordinators' last.
    pub(super) partitions: Vec<TopicPartition>,
    /// What the topic asks for, as the store has it.
    pub(super) durability: Durability,
    pub(super) min_isr: usize,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    pub(super) ghost: Ghost,
    pub(super) deletions: Deletions,
    pub(super) holding: limiting::Held,
    pub(super) transactions: Transactions,
    /// What the store holds, as of its revision.
    held: Held,
    checked_ms: u64,
    pub(super) last_record: u64,
    pub(super) waits: Waits,
    pub(super) faults_until_ms: u64,
    /// Everything that happened, as one number.
    pub(super) trace: u64,
    pub(super) is_telling: bool,
    pub(super) violation: Option<Violation>,
}

impl World {
    pub(super) fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let nodes = 3 + random.below(2) as NodeId;
        let durability = if random.one_in(3) { Durability::Written } else { Durability::Device };
        let min_isr = 1 + random.below(2);
        let partitions = (0..PARTITIONS).map(|partition| TopicPartition { topic: TOPIC, partition }).collect();
        let mut world = Self {
            plan,
            now_ms: 0,
            random,
            memory: Memory::new(1),
            network: Network::default(),
            nodes: BTreeMap::new(),
            partitions,
            durability,
            min_isr,
            queue: BTreeMap::new(),
            queued: 0,
            ghost: Ghost::default(),
            deletions: Deletions::default(),
            holding: limiting::Held::default(),
            transactions: Transactions::default(),
            held: Held::default(),
            checked_ms: 0,
            last_record: 0,
            waits: Waits::default(),
            faults_until_ms: 0,
            trace: plan.seed,
            is_telling: false,
            violation: None,
        };
        for id in 1..=nodes {
            let node = world.new_node(id, 0);
            world.nodes.insert(id, node);
            world.start(id);
        }
        world.run_until(300);
        world.create_topic();
        world
    }

    fn new_node(&self, id: NodeId, process: u64) -> Node {
        Node {
            process,
            is_up: false,
            paused_until_ms: 0,
            clock_ahead_ms: 0,
            line: Line::Open,
            core: self.new_core(id),
            control: Control::new(id, None, self.plan.breaks),
            logs: BTreeMap::new(),
            disk_free_ms: 0,
            full_until_ms: 0,
            is_sealing: false,
            wake_ms: None,
            known: Vec::new(),
            limiting: Limiting::default(),
            coordinating: Coordinating::default(),
        }
    }

    fn new_core(&self, id: NodeId) -> ShardChannel {
        let guards = self.plan.without.map_or_else(Guards::default, Guards::without);
        ShardChannel::guarded(ChannelConfig { cluster: CLUSTER, node: id, shard: 0, lag_ms_max: LAG_MS_MAX }, guards)
    }

    /// What the store is to hold of the topic.
    pub(super) fn stored_topic(&self) -> Transaction {
        let flush = if self.durability == Durability::Device { "1" } else { "9223372036854775807" };
        let configs = [
            ("min.insync.replicas".to_owned(), self.min_isr.to_string()),
            ("flush.messages".to_owned(), flush.to_owned()),
        ];
        let stored =
            StoredTopic { name: "t".to_owned(), partitions: PARTITIONS, configs: configs.into(), forming: false };
        Transaction::new().put(keys::topic(TOPIC), keys::encode_topic(&stored))
    }

    fn create_topic(&mut self) {
        let mut transaction = self.stored_topic();
        for partition in 0..PARTITIONS {
            let members: Vec<Member> =
                (0..3).filter_map(|at| self.nodes[&(1 + (partition + at) % 3)].control.member).collect();
            let written = self.durability == Durability::Written;
            let state = PartitionState { written, ..PartitionState::new(&members) };
            transaction = transaction.put(keys::partition(TOPIC, partition), keys::encode_partition(&state));
        }
        self.memory.transact(&transaction).expect("the store answers");
    }

    pub(super) fn start(&mut self, id: NodeId) {
        let core = self.new_core(id);
        let breaks = self.plan.breaks;
        let node = self.nodes.get_mut(&id).expect("a node");
        node.process += 1;
        (node.is_up, node.is_sealing, node.wake_ms, node.paused_until_ms) = (true, false, None, 0);
        node.core = core;
        node.control = Control::new(id, node.control.former, breaks);
        let process = node.process;
        self.at(1, Event::Control(id, process));
        self.at(20, Event::Transact { node: id, process, step: Step::Coordinate });
    }

    /// Has something happen after so many ms.
    pub(super) fn at(&mut self, after_ms: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now_ms + after_ms, self.queued), event);
    }

    /// Lets time go by. Stops at a violation.
    pub(super) fn run_until(&mut self, until_ms: u64) {
        while let Some(entry) = self.queue.first_entry() {
            let (at, _) = *entry.key();
            if at > until_ms || self.violation.is_some() {
                break;
            }
            let event = entry.remove();
            if at > self.now_ms {
                self.memory.advance(Duration::from_millis(at - self.now_ms));
                self.now_ms = at;
            }
            self.happen(event);
        }
        if self.violation.is_none() && until_ms > self.now_ms {
            self.memory.advance(Duration::from_millis(until_ms - self.now_ms));
            self.now_ms = until_ms;
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some(until_ms) = self.paused(&event) {
            let after = until_ms - self.now_ms;
            return self.at(after, event);
        }
        self.note(&event);
        match event {
            Event::Tick(node, process) => self.tick(node, process),
            Event::Control(node, process) => self.control(node, process),
            Event::Dialed { node, process, link, to } => self.dialed(node, process, link, to),
            Event::Deliver(connection, end) => self.deliver(connection, end),
            Event::Work { node, process, partition, work } => self.worked(node, process, partition, work),
            Event::Seal(node, process) => self.seal(node, process),
            Event::Written { node, process, ends, is_flush } => self.written(node, process, &ends, is_flush),
            Event::Alter { node, process, partition, revision, transaction, is_heard } => {
                let key = keys::partition(partition.topic, partition.partition);
                let outcome = control::carry_out(&mut self.memory, &transaction, &key, revision);
                if is_heard {
                    self.at(1, Event::Altered { node, process, partition, revision, outcome });
                }
            }
            Event::Altered { node, process, partition, revision, outcome } => {
                if self.is_running(node, process) {
                    self.call(node, |now, core, logs| core.on_isr_changed(now, partition, revision, outcome, logs));
                }
            }
            Event::Trim { node, process, partition, log_start } => self.trim(node, process, partition, log_start),
            Event::Transact { node, process, step } => self.transact(node, process, step),
            Event::TimeOut { node, process, partition, number } => self.time_out(node, process, partition, number),
            Event::Produce => self.produce(),
            Event::Fault => self.fault(),
            Event::Restart(node) if !self.nodes[&node].is_up => self.start(node),
            Event::Restart(_) => {}
            Event::Crash(node) => self.crash(node, false),
            Event::Heal(from, to) => self.network.heal(from, to),
            Event::OpenLine(node) => self.nodes.get_mut(&node).expect("a node").line = Line::Open,
        }
        self.check();
    }

    /// Until when the process is stopped that an event would run in.
    fn paused(&self, event: &Event) -> Option<u64> {
        let node = match event {
            Event::Tick(node, _) | Event::Control(node, _) | Event::Seal(node, _) => *node,
            Event::Dialed { node, .. } | Event::Work { node, .. } | Event::Trim { node, .. } => *node,
            Event::Written { node, .. } | Event::Altered { node, .. } | Event::Transact { node, .. } => *node,
            Event::TimeOut { node, .. } => *node,
            Event::Deliver(connection, end) => self.network.connections.get(connection)?.ends[*end].node,
            _ => return None,
        };
        let until_ms = self.nodes.get(&node)?.paused_until_ms;
        (until_ms > self.now_ms).then_some(until_ms)
    }

    /// Adds to the trace.
    fn note(&mut self, event: &Event) {
        let (kind, a, b) = match event {
            Event::Tick(node, process) => (1, u64::from(node.unsigned_abs()), *process),
            Event::Control(node, process) => (2, u64::from(node.unsigned_abs()), *process),
            Event::Dialed { node, link, .. } => (3, u64::from(node.unsigned_abs()), link.0),
            Event::Deliver(connection, end) => (4, *connection, *end as u64),
            Event::Work { node, partition, .. } => (5, u64::from(node.unsigned_abs()), partition.partition as u64),
            Event::Seal(node, process) => (6, u64::from(node.unsigned_abs()), *process),
            Event::Written { node, ends, .. } => (7, u64::from(node.unsigned_abs()), ends.len() as u64),
            Event::Alter { node, revision, .. } => (8, u64::from(node.unsigned_abs()), *revision as u64),
            Event::Altered { node, revision, .. } => (9, u64::from(node.unsigned_abs()), *revision as u64),
            Event::Produce => (10, 0, self.last_record),
            Event::Fault => (11, 0, 0),
            Event::Restart(node) => (12, u64::from(node.unsigned_abs()), 0),
            Event::Heal(from, to) => (13, u64::from(from.unsigned_abs()), u64::from(to.unsigned_abs())),
            Event::Crash(node) => (15, u64::from(node.unsigned_abs()), 0),
            Event::OpenLine(node) => (14, u64::from(node.unsigned_abs()), 0),
            Event::TimeOut { node, number, .. } => (18, u64::from(node.unsigned_abs()), *number),
            Event::Transact { node, process, .. } => (17, u64::from(node.unsigned_abs()), *process),
            Event::Trim { node, log_start, .. } => (16, u64::from(node.unsigned_abs()), *log_start as u64),
        };
        for part in [self.now_ms, kind, a, b] {
            self.trace = (self.trace ^ part).wrapping_mul(0x0000_0100_0000_01B3);
        }
        self.tell(|| format!("{event:?}"));
    }

    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        if self.is_telling {
            let mut text = what();
            text.truncate(400);
            eprintln!("{:>6} {text}", self.now_ms);
        }
    }

    pub(super) fn is_running(&self, node: NodeId, process: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.is_up && node.process == process)
    }

    /// Calls a node's core, and does what it wants.
    pub(super) fn call(&mut self, id: NodeId, call: impl FnOnce(u64, &mut ShardChannel, &View<'_>)) {
        let now = self.now_ms;
        let node = self.nodes.get_mut(&id).expect("a node");
        call(now + node.clock_ahead_ms, &mut node.core, &View(&node.logs));
        self.obey(id);
    }

    fn tick(&mut self, id: NodeId, process: u64) {
        if !self.is_running(id, process) {
            return;
        }
        let now = self.now_ms;
        let node = self.nodes.get_mut(&id).expect("a node");
        if node.wake_ms.is_none_or(|planned| planned > now) {
            return;
        }
        node.wake_ms = None;
        self.call(id, |now, core, logs| core.handle_tick(now, logs));
    }

    fn control(&mut self, id: NodeId, process: u64) {
        if !self.is_running(id, process) {
            return;
        }
        let again = self.random.between(15, 60);
        self.at(again, Event::Control(id, process));
        let node = self.nodes.get_mut(&id).expect("a node");
        if node.control.step(&mut self.memory, node.line) {
            self.take_image(id);
        }
    }

    /// Gives a node's channel what its image says.
    fn take_image(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(me) = node.control.member else { return };
        let (nodes, partitions) = (node.control.nodes(), node.control.partitions());
        let assignments: Vec<_> = partitions
            .iter()
            .map(|(partition, state, topic)| (*partition, Assignment::of(state, &topic.rules, me, &nodes, |_| 0)))
            .collect();
        node.known = node.control.image.nodes.keys().copied().collect();
        let (mut gone, now_ms) = (Vec::new(), self.now_ms);
        for ((partition, assignment), (.., topic)) in assignments.iter().zip(&partitions) {
            let durability = topic.rules.durability;
            match assignment {
                Some(_) => {
                    node.logs.entry(*partition).or_insert_with(|| ModelLog::new(durability, now_ms)).durability =
                        durability;
                }
                None if node.logs.remove(partition).is_some() => gone.push(*partition),
                None => {}
            }
        }
        for partition in gone {
            self.leave(id, partition);
            self.forget_deletions(id, partition);
        }
        self.call(id, |now, core, logs| {
            core.handle_registered(now, me);
            core.handle_nodes(now, nodes, logs);
        });
        self.tell_limits(id);
        for (partition, assignment) in assignments {
            self.set_replicas(id, partition);
            self.call(id, |now, core, logs| core.handle_assigned(now, partition, assignment, logs));
        }
        self.look_at_deletions(id);
    }

    /// One of the partitions that clients write to.
    pub(super) fn pick_data(&mut self) -> TopicPartition {
        self.partitions[self.random.below(self.partitions.len() - 1)]
    }

    /// A client sends a record to whom it takes for the leader.
    fn produce(&mut self) {
        if self.now_ms < self.faults_until_ms {
            let again = self.random.between(5, 40);
            self.at(again, Event::Produce);
        }
        let partition = self.pick_data();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let id = match self.random.one_in(4) {
            true => self.random.pick(&ids),
            false => self.state(partition).leader.map_or(1, |leader| leader.node),
        };
        let waits = !self.random.one_in(4);
        let takes = self.takes(id, partition);
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(log) = node.logs.get_mut(&partition) else { return };
        let Acting::Leads(epoch) = log.acting else { return };
        if !node.is_up || node.paused_until_ms > self.now_ms || (waits && takes != Some(epoch)) {
            return;
        }
        self.last_record += 1;
        let offset = log.append(Record { epoch, id: self.last_record, kind: Kind::Plain });
        if waits {
            self.wait_for(id, partition, offset, Await::Produced);
        }
        self.plan_seal(id);
    }

    pub(super) fn plan_seal(&mut self, id: NodeId) {
        let after = self.random.between(0, 3);
        let node = self.nodes.get_mut(&id).expect("a node");
        if !std::mem::replace(&mut node.is_sealing, true) {
            let process = node.process;
            self.at(after, Event::Seal(id, process));
        }
    }

    /// The state of a partition in the store.
    pub(super) fn state(&mut self, partition: TopicPartition) -> PartitionState {
        self.look();
        self.held.states[partition.partition as usize].clone()
    }

    /// Looks at the store again if it changed.
    fn look(&mut self) {
        if self.held.revision == self.memory.revision() {
            return;
        }
        let memory = &self.memory;
        let held = Held {
            revision: memory.revision(),
            states: self.partitions.iter().filter_map(|partition| control::stored(memory, *partition)).collect(),
            nodes: self.nodes.keys().filter_map(|id| control::stored_node(memory, *id)).collect(),
        };
        let before = std::mem::replace(&mut self.held, held);
        for (at, state) in self.held.states.iter().enumerate() {
            if before.states.get(at) != Some(state) {
                self.tell(|| format!("partition {at} is {state:?}"));
            }
        }
    }

    pub(super) fn violate(&mut self, what: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation(what));
        }
    }

    /// Invariants that hold after every event. What can only break when something moved is looked at where it moves.
    fn check(&mut self) {
        if self.now_ms >= self.checked_ms + 80 {
            self.checked_ms = self.now_ms;
            self.check_logs();
        }
    }

    /// Log matching, and whether everybody who may be elected has all that is committed.
    pub(super) fn check_logs(&mut self) {
        for partition in self.partitions.clone() {
            let logs: Vec<&ModelLog> = self.nodes.values().filter_map(|node| node.logs.get(&partition)).collect();
            for (at, one) in logs.iter().enumerate() {
                for other in &logs[at + 1..] {
                    if let Err(violation) = match_logs(one, other) {
                        self.violation = Some(violation);
                        return;
                    }
                }
            }
            self.check_candidates(partition, 0);
        }
        self.check_deletions();
        self.check_waits();
    }

    /// Leader candidate completeness (KIP-966): members of the ISR and of the ELR have what is committed.
    pub(super) fn check_candidates(&mut self, partition: TopicPartition, from: i64) {
        self.look();
        if self.held.states.is_empty() {
            return;
        }
        let state = self.state(partition);
        for member in state.isr.iter().chain(&state.elr) {
            let node = &self.nodes[&member.node];
            let Some(log) = node.logs.get(&partition) else { continue };
            if self.is_over(*member, state.written) {
                continue;
            }
            let safe = if state.written { log.written } else { log.durable };
            if let Err(reason) = self.ghost.holds(partition, log, safe, from) {
                let text = format!("candidate completeness: {partition:?} {member:?} of {state:?}: {reason}");
                return self.violate(text);
            }
        }
    }

    /// Whether a membership is void: its node registered anew, and does not continue it.
    fn is_over(&self, member: Member, written: bool) -> bool {
        let keeps = |kept: Kept| kept == Kept::Written || !written;
        let former = self.nodes[&member.node].control.former;
        // of a machine that lost its power nobody knows that yet, but it does not come back as more than it is
        let goes_on = |epoch: i64| former.is_none_or(|before| before.epoch != epoch || keeps(before.kept));
        let continues = |before: Continued| before.epoch == member.epoch && keeps(before.kept);
        match self.held.nodes.iter().find(|node| node.id == member.node) {
            Some(node) if node.epoch == member.epoch => !goes_on(node.epoch),
            Some(node) => !(node.continues.is_some_and(continues) && goes_on(node.epoch)),
            // it may come back and say so
            None => !former.is_some_and(continues),
        }
    }

    /// What the engine reports at once.
    pub(super) fn done(&mut self, id: NodeId, partition: TopicPartition, done: Done) {
        self.call(id, |now, core, logs| core.on_done(now, partition, done, logs));
    }
}
