//! What goes wrong, and how a world comes to rest afterwards.

use millrace_engine::{api::TopicPartition, config::Durability};

use super::{
    control::Line,
    log::Acting,
    transactions::Step,
    world::{Event, World},
};
use crate::cluster::{
    change,
    model::{Member, NodeId},
};

/// How long faults go on, in ms of the world.
const FAULTS_MS: u64 = 12_000;
/// Within that much everything has to be well again.
const HEALING_MS: u64 = 60_000;

impl World {
    /// Runs through faults, then through healing, and says what was violated.
    pub(super) fn run(&mut self) {
        self.run_until(1_000);
        self.faults_until_ms = self.now_ms + FAULTS_MS;
        self.at(0, Event::Produce);
        self.at(0, Event::Transact { node: 0, process: 0, step: Step::Clients });
        self.at(100, Event::Fault);
        self.run_until(self.faults_until_ms);
        self.heal();
        self.come_to_rest();
    }

    pub(super) fn fault(&mut self) {
        if self.now_ms >= self.faults_until_ms {
            return;
        }
        let again = self.random.between(20, 700);
        self.at(again, Event::Fault);
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let (one, other) = (self.random.pick(&ids), self.random.pick(&ids));
        let partition = self.random.pick(&self.partitions);
        let length = self.random.between(20, 400) * self.random.between(1, 12);
        match self.random.below(21) {
            0..=2 => self.crash_for(one, length, false),
            3 if self.may_lose_power(one) => self.crash_for(one, length, true),
            4 => self.pause(one, length),
            5 => {
                let connections: Vec<u64> = self.network.connections.keys().copied().collect();
                if !connections.is_empty() {
                    let connection = self.random.pick(&connections);
                    self.break_off(connection);
                }
            }
            6 | 7 if one != other => {
                self.network.cut(one, other);
                self.at(length, Event::Heal(one, other));
            }
            8 => {
                for other in ids.into_iter().filter(|other| *other != one) {
                    self.network.cut(one, other);
                    self.network.cut(other, one);
                    self.at(length, Event::Heal(one, other));
                    self.at(length, Event::Heal(other, one));
                }
            }
            9 | 10 => {
                let line = self.random.pick(&[Line::Cut, Line::Late, Line::Deaf]);
                self.nodes.get_mut(&one).expect("a node").line = line;
                self.at(length, Event::OpenLine(one));
            }
            11 => self.nodes.get_mut(&one).expect("a node").clock_ahead_ms += length,
            12 => {
                let partition = self.pick_data();
                self.delete_records(one, partition);
            }
            13 => self.ask(one, partition),
            14 => self.memory.renew_all_leases(),
            15 => self.nodes.get_mut(&one).expect("a node").full_until_ms = self.now_ms + length.min(300),
            16 => self.limit(one, partition),
            17 => {
                let partition = self.pick_data();
                let leader = self.state(partition).leader;
                self.delete_records(leader.map_or(one, |leader| leader.node), partition);
            }
            18 => self.change_min_isr(),
            19 => self.change_durability(),
            _ => {}
        }
    }

    /// Somebody alters the topic; nodes hear of it one after the other.
    fn change_min_isr(&mut self) {
        self.min_isr = 1 + self.random.below(2);
        self.alter_topic();
    }

    fn change_durability(&mut self) {
        self.durability = match self.durability {
            Durability::Device => Durability::Written,
            Durability::Written => Durability::Device,
        };
        self.alter_topic();
    }

    fn alter_topic(&mut self) {
        self.tell(|| format!("the topic asks for {:?} and {} in sync", self.durability, self.min_isr));
        let transaction = self.stored_topic();
        self.memory.transact(&transaction).expect("the store answers");
    }

    /// Whether a machine may lose its power and nothing that was acknowledged: what is acknowledged before its flush is safe
    /// as long as another member in sync keeps its power, and leads or may. So it is not if that one is fenced while the store
    /// takes the first for alive: see `crash_for`.
    fn may_lose_power(&mut self, id: NodeId) -> bool {
        let states: Vec<_> = self.partitions.clone().into_iter().map(|partition| self.state(partition)).collect();
        let keeps = |member: &Member| {
            let node = &self.nodes[&member.node];
            member.node != id && node.is_up && node.control.member == Some(*member)
        };
        states.iter().all(|state| !state.written || state.isr.iter().any(keeps))
    }

    fn crash_for(&mut self, id: NodeId, length: u64, is_power_cut: bool) {
        self.tell(|| format!("node {id} crashes; its machine too: {is_power_cut}"));
        self.crash(id, is_power_cut);
        // or it is elected while it is dead, if those that have all are fenced first: that is not promised not to lose anything
        if is_power_cut && self.is_in_sync_unflushed(id) {
            self.nodes.get_mut(&id).expect("a node").control.end_lease(&mut self.memory);
        }
        self.at(length, Event::Restart(id));
    }

    /// Whether a node is in sync where records are acknowledged before they are flushed.
    fn is_in_sync_unflushed(&mut self, id: NodeId) -> bool {
        let partitions = self.partitions.clone();
        partitions
            .into_iter()
            .map(|partition| self.state(partition))
            .any(|state| state.written && state.in_sync(id).is_some())
    }

    /// A process stands still. What waits for the end of one pause must not come behind that of all.
    fn pause(&mut self, id: NodeId, length: u64) {
        let until_ms = self.now_ms + length;
        let node = self.nodes.get_mut(&id).expect("a node");
        node.paused_until_ms = node.paused_until_ms.max(until_ms);
    }

    /// Somebody wants other replicas, another leader, or a node to leave.
    fn ask(&mut self, id: NodeId, partition: TopicPartition) {
        let mut replicas: Vec<NodeId> = self.nodes.keys().copied().collect();
        while replicas.len() > 3 {
            let at = self.random.below(replicas.len());
            replicas.remove(at);
        }
        let first = self.random.below(replicas.len());
        replicas.rotate_left(first);
        match self.random.below(6) {
            0..=2 => self.administer(id, partition, &change::Event::Reassign(replicas)),
            3 => self.administer(id, partition, &change::Event::CancelReassignment),
            4 => self.administer(id, partition, &change::Event::ElectPreferred),
            _ => {
                let node = self.nodes.get_mut(&id).expect("a node");
                if node.line == Line::Open && node.is_up {
                    node.control.drain(&mut self.memory);
                    // a node that left comes back as a new process
                    self.at(900, Event::Restart(id));
                    self.at(850, Event::Crash(id));
                }
            }
        }
    }

    fn heal(&mut self) {
        self.network.heal_all();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let node = self.nodes.get_mut(&id).expect("a node");
            node.line = Line::Open;
            if !node.is_up {
                self.start(id);
            }
        }
        self.raise_limits();
    }

    /// Waits until every log is the same, every replica is in sync, and every record that waited is acknowledged.
    fn come_to_rest(&mut self) {
        let until_ms = self.now_ms + HEALING_MS;
        let mut reason = String::new();
        let mut is_asked = false;
        while self.now_ms < until_ms && self.violation.is_none() {
            self.run_until(self.now_ms + 500);
            let found = self.partitions.clone().into_iter().find_map(|partition| self.unrest(partition));
            let found =
                found.or_else(|| self.find_deletion()).or_else(|| self.find_transaction()).or_else(|| self.find_wait());
            match found {
                Some(found) => reason = found,
                None if is_asked => return self.check_logs(),
                // records that come when all is well are taken too
                None => {
                    is_asked = true;
                    for _ in 0..4 {
                        self.at(1, Event::Produce);
                    }
                }
            }
        }
        self.violate(format!("liveness: {reason}"));
    }

    /// What is not well with a partition.
    fn unrest(&mut self, partition: TopicPartition) -> Option<String> {
        let state = self.state(partition);
        let Some(leader) = state.leader else { return Some(format!("{partition:?} has no leader: {state:?}")) };
        if state.isr.len() != state.replicas.len() || state.is_reassigning() || !state.elr.is_empty() {
            return Some(format!("{partition:?} is not in sync: {state:?}"));
        }
        let led = self.nodes[&leader.node].logs.get(&partition)?;
        if state.written != (self.durability == Durability::Written) {
            return Some(format!("{partition:?} of {:?} has {state:?}", self.durability));
        }
        let waiting = self.waiting(leader.node, partition);
        if led.acting != Acting::Leads(state.leader_epoch) || waiting > 0 {
            return Some(format!("{leader:?} leads {partition:?}, {:?}, {waiting} wait", led.acting));
        }
        for node in &state.replicas {
            let Some(log) = self.nodes[node].logs.get(&partition) else { return Some(format!("{node} has no log")) };
            if (log.end(), log.high_watermark) != (led.end(), led.end()) {
                let position = log.position();
                return Some(format!("{node} has {position:?} of {partition:?}, its leader {}", led.end()));
            }
        }
        None
    }
}
