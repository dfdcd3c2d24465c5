//! Transactions, as far as replication carries them: a coordinator whose log is a partition like others, leaders that let in whom it
//! lets in, markers that follow a decision, and clients that are told.
//!
//! What decides in `net` is modelled in small: a transaction has a producer of its own, and the coordinator's state is what its
//! log says. The logs, their leaders and their high watermarks are the real protocol's.

use std::collections::{BTreeMap, BTreeSet};

use millrace_engine::api::TopicPartition;

use super::{
    ghost::Violation,
    log::{Acting, Kind, Record},
    world::{Event, Rule, World},
};
use crate::cluster::model::NodeId;

/// A coordinator aborts what is open for so long, in ms.
const TIMEOUT_MS: u64 = 2_000;
/// A client gives up what is not acknowledged by then.
const PATIENCE_MS: u64 = 1_200;
/// A marker that is not answered is sent again.
const AGAIN_MS: u64 = 300;
/// Transactions that clients have open at once.
const OPEN_MAX: usize = 3;

/// Who is answered once a record is on all replicas in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Await {
    /// A client without transactions.
    Produced,
    /// The client of a transaction.
    Client(u64),
    /// A coordinator that sent a marker.
    Marked { txn: u64, node: NodeId, process: u64 },
    /// A leader that asked for a transaction to be let in.
    LetIn(Asked),
}

/// A leader's question. A record waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) txn: u64,
    pub(super) partition: TopicPartition,
    /// The leader, its process and its epoch.
    pub(super) node: NodeId,
    pub(super) process: u64,
    pub(super) epoch: i32,
}

/// What happens between clients, coordinators and leaders.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Clients go on.
    Clients,
    /// A coordinator goes on.
    Coordinate,
    /// A client's record arrives at a leader.
    Send { txn: u64, partition: TopicPartition },
    /// A leader's question arrives at a coordinator.
    Ask(Asked),
    /// It is let in.
    LetIn(Asked),
    /// A marker arrives at a leader.
    Mark { txn: u64, is_commit: bool, partition: TopicPartition, by: NodeId, process: u64 },
    /// A coordinator hears that a marker is where it belongs.
    Marked { txn: u64, partition: TopicPartition },
}

/// A transaction, as its client knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Client {
    began_ms: u64,
    sent: u64,
    acknowledged: u64,
}

/// What is known to all, for ever.
#[derive(Debug, Default)]
pub(super) struct Known {
    begun: BTreeSet<u64>,
    decided: BTreeMap<u64, bool>,
    /// Data that no marker ended.
    open: BTreeSet<(TopicPartition, u64)>,
    ended: BTreeSet<(TopicPartition, u64)>,
}

impl Known {
    /// A record is committed, in the log of coordinators or elsewhere.
    pub(super) fn note(&mut self, partition: TopicPartition, record: Record) -> Result<(), Violation> {
        let violate = |text: String| Err(Violation(format!("transaction: {text} in {partition:?}")));
        match record.kind {
            Kind::Begun(txn) => drop(self.begun.insert(txn)),
            Kind::Decided(txn, is_commit) if *self.decided.entry(txn).or_insert(is_commit) != is_commit => {
                return violate(format!("{txn} is decided again, and otherwise"));
            }
            Kind::Of(txn) if self.ended.contains(&(partition, txn)) => {
                return violate(format!("{txn} goes on after its end"));
            }
            Kind::Of(txn) => drop(self.open.insert((partition, txn))),
            Kind::Marker(txn, is_commit) => {
                if self.decided.get(&txn) != Some(&is_commit) {
                    return violate(format!("{txn} ends as nobody decided, or not so"));
                }
                self.open.remove(&(partition, txn));
                self.ended.insert((partition, txn));
            }
            Kind::Plain | Kind::Added(..) | Kind::Decided(..) | Kind::Complete(_) => {}
        }
        Ok(())
    }
}

/// What a coordinator remembers besides its log.
#[derive(Debug, Default)]
pub(super) struct Coordinating {
    /// Which leadership that is of: process, epoch.
    of: (u64, i32),
    marked: BTreeSet<(u64, TopicPartition)>,
    sent_ms: BTreeMap<(u64, TopicPartition), u64>,
}

/// A transaction, as a log of coordinators has it.
#[derive(Debug, Default)]
struct Entry {
    added: Vec<i32>,
    /// Outcome, offset, epoch of the record.
    decided: Option<(bool, i64, i32)>,
    is_complete: bool,
}

#[derive(Debug, Default)]
pub(super) struct Transactions {
    clients: BTreeMap<u64, Client>,
    last: u64,
}

impl World {
    /// The partition whose leader is the coordinator.
    fn coordinators(&self) -> TopicPartition {
        *self.partitions.last().expect("there are partitions")
    }

    /// A node's process that runs and leads a partition, as it takes appends; with its epoch.
    fn leads(&mut self, id: NodeId, partition: TopicPartition) -> Option<i32> {
        let node = self.nodes.get(&id).filter(|node| node.is_up && node.paused_until_ms <= self.now_ms)?;
        let log = node.logs.get(&partition)?;
        let Acting::Leads(epoch) = log.acting else { return None };
        self.takes(id, partition).filter(|taken| *taken == epoch)
    }

    fn append(&mut self, id: NodeId, partition: TopicPartition, kind: Kind, awaits: Option<Await>) {
        let Some(epoch) = self.leads(id, partition) else { return };
        self.last_record += 1;
        let record = Record { epoch, id: self.last_record, kind };
        let log = self.nodes.get_mut(&id).and_then(|node| node.logs.get_mut(&partition)).expect("it leads");
        let offset = log.append(record);
        if let Some(awaits) = awaits {
            self.wait_for(id, partition, offset, awaits);
        }
        self.plan_seal(id);
    }

    /// Whom a client or a node takes for the leader.
    fn believed_leader(&mut self, partition: TopicPartition) -> Option<NodeId> {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        match self.random.one_in(6) {
            true => Some(self.random.pick(&ids)),
            false => self.state(partition).leader.map(|leader| leader.node),
        }
    }

    fn send_step(&mut self, partition: TopicPartition, step: Step) {
        let after = if self.random.one_in(8) { self.random.between(1, 1_500) } else { self.random.between(1, 6) };
        if let Some(node) = self.believed_leader(partition) {
            let process = self.nodes[&node].process;
            self.at(after, Event::Transact { node, process, step });
        }
    }

    pub(super) fn transact(&mut self, id: NodeId, process: u64, step: Step) {
        match step {
            Step::Clients => self.go_on(),
            _ if !self.is_running(id, process) => {}
            Step::Coordinate => self.coordinate(id, process),
            Step::Send { txn, partition } => self.take_record(id, process, txn, partition),
            Step::Ask(asked) => self.answer_question(id, asked),
            Step::LetIn(asked) => self.let_in(id, asked),
            Step::Mark { txn, is_commit, partition, by, process } => {
                let awaits = Await::Marked { txn, node: by, process };
                self.append(id, partition, Kind::Marker(txn, is_commit), Some(awaits));
                if self.plan.breaks == Some(Rule::MarkerOnAll) && self.leads(id, partition).is_some() {
                    self.answered(partition, awaits);
                }
            }
            Step::Marked { txn, partition } => {
                let node = self.nodes.get_mut(&id).expect("a node");
                node.coordinating.marked.insert((txn, partition));
            }
        }
    }

    /// What a record waited for has happened, or a leader says so.
    pub(super) fn answered(&mut self, partition: TopicPartition, awaits: Await) {
        let after = self.random.between(1, 6);
        match awaits {
            Await::Produced => {}
            Await::Client(txn) => {
                if let Some(client) = self.transactions.clients.get_mut(&txn) {
                    client.acknowledged += 1;
                }
            }
            Await::Marked { txn, node, process } => {
                self.at(after, Event::Transact { node, process, step: Step::Marked { txn, partition } });
            }
            Await::LetIn(asked) => {
                // an answer may be late
                let after = if self.random.one_in(4) { self.random.between(1, 900) } else { after };
                let Asked { node, process, .. } = asked;
                self.at(after, Event::Transact { node, process, step: Step::LetIn(asked) });
            }
        }
    }

    /// Clients begin, send and end transactions.
    fn go_on(&mut self) {
        let again = self.random.between(5, 40);
        self.at(again, Event::Transact { node: 0, process: 0, step: Step::Clients });
        let coordinators = self.coordinators();
        let known = &self.ghost.transactions;
        self.transactions.clients.retain(|txn, _| !known.decided.contains_key(txn));
        if self.now_ms < self.faults_until_ms && self.transactions.clients.len() < OPEN_MAX {
            self.transactions.last += 1;
            let (txn, client) = (self.transactions.last, Client { began_ms: self.now_ms, ..Client::default() });
            self.transactions.clients.insert(txn, client);
            if let Some(node) = self.believed_leader(coordinators) {
                self.append(node, coordinators, Kind::Begun(txn), None);
            }
        }
        for (txn, client) in self.transactions.clients.clone() {
            let is_late = self.now_ms - client.began_ms > PATIENCE_MS;
            match self.ghost.transactions.begun.contains(&txn) {
                // whether it was begun is not known to its client, who has another
                false if is_late => drop(self.transactions.clients.remove(&txn)),
                false => {}
                true if client.sent > 3 || is_late => {
                    let is_commit = client.acknowledged == client.sent;
                    if is_commit || is_late {
                        self.ask_for_end(txn, is_commit);
                    }
                }
                true if self.random.one_in(3) => {
                    let partition = self.pick_data();
                    self.transactions.clients.entry(txn).or_default().sent += 1;
                    self.send_step(partition, Step::Send { txn, partition });
                }
                true => {}
            }
        }
    }

    /// A client asks a coordinator for the end of its transaction, which decides if nobody did.
    fn ask_for_end(&mut self, txn: u64, is_commit: bool) {
        let coordinators = self.coordinators();
        let Some(id) = self.believed_leader(coordinators) else { return };
        if self.leads(id, coordinators).is_some()
            && self.entries(id).get(&txn).is_some_and(|entry| entry.decided.is_none())
        {
            self.append(id, coordinators, Kind::Decided(txn, is_commit), None);
        }
    }

    /// All transactions that a coordinator's log has.
    fn entries(&self, id: NodeId) -> BTreeMap<u64, Entry> {
        let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
        let Some(log) = self.nodes[&id].logs.get(&self.coordinators()) else { return entries };
        for offset in log.log_start..log.end() {
            let record = log.record(offset).expect("within the log");
            match record.kind {
                Kind::Begun(txn) => drop(entries.entry(txn).or_default()),
                Kind::Added(txn, partition) => entries.entry(txn).or_default().added.push(partition),
                Kind::Decided(txn, is_commit) => {
                    entries.entry(txn).or_default().decided = Some((is_commit, offset, record.epoch));
                }
                Kind::Complete(txn) => entries.entry(txn).or_default().is_complete = true,
                Kind::Plain | Kind::Of(_) | Kind::Marker(..) => {}
            }
        }
        entries
    }

    /// A coordinator decides what took too long, sends markers of what is decided, and notes what is over.
    fn coordinate(&mut self, id: NodeId, process: u64) {
        let again = self.random.between(10, 50);
        self.at(again, Event::Transact { node: id, process, step: Step::Coordinate });
        let coordinators = self.coordinators();
        let Some(epoch) = self.leads(id, coordinators) else { return };
        let (now, entries) = (self.now_ms, self.entries(id));
        let node = self.nodes.get_mut(&id).expect("a node");
        let high_watermark = node.logs[&coordinators].high_watermark;
        if node.coordinating.of != (process, epoch) {
            node.coordinating = Coordinating { of: (process, epoch), ..Coordinating::default() };
        }
        for (txn, entry) in entries.into_iter().filter(|(_, entry)| !entry.is_complete) {
            let Some((is_commit, offset, of_epoch)) = entry.decided else {
                let began_ms = self.transactions.clients.get(&txn).map_or(0, |client| client.began_ms);
                if now - began_ms > TIMEOUT_MS {
                    self.append(id, coordinators, Kind::Decided(txn, false), None);
                }
                continue;
            };
            let is_safe = offset < high_watermark || self.plan.breaks == Some(Rule::DecisionOnAll);
            let is_own = of_epoch == epoch || self.plan.breaks != Some(Rule::MarkersAnew);
            if is_safe && is_own {
                self.end(id, process, txn, is_commit, &entry.added);
            }
        }
    }

    fn end(&mut self, id: NodeId, process: u64, txn: u64, is_commit: bool, added: &[i32]) {
        let (now, coordinators) = (self.now_ms, self.coordinators());
        let mut is_complete = true;
        for partition in added.iter().map(|index| TopicPartition { partition: *index, ..coordinators }) {
            let coordinating = &mut self.nodes.get_mut(&id).expect("a node").coordinating;
            if coordinating.marked.contains(&(txn, partition)) {
                continue;
            }
            is_complete = false;
            let sent_ms = coordinating.sent_ms.entry((txn, partition)).or_default();
            if *sent_ms + AGAIN_MS <= now {
                *sent_ms = now;
                self.send_step(partition, Step::Mark { txn, is_commit, partition, by: id, process });
            }
        }
        if is_complete {
            self.append(id, coordinators, Kind::Complete(txn), None);
        }
    }

    /// A leader takes a record of a transaction that is open there, or asks whether it may be.
    fn take_record(&mut self, id: NodeId, process: u64, txn: u64, partition: TopicPartition) {
        let Some(epoch) = self.leads(id, partition) else { return };
        let (is_open, has_ended) = self.nodes[&id].logs[&partition].has(txn);
        if has_ended {
            return;
        }
        if is_open || self.plan.breaks == Some(Rule::LetIn) {
            return self.append(id, partition, Kind::Of(txn), Some(Await::Client(txn)));
        }
        let asked = Asked { txn, partition, node: id, process, epoch };
        self.send_step(self.coordinators(), Step::Ask(asked));
    }

    /// A coordinator lets in what is not decided, once it has noted durably where it has to send a marker.
    fn answer_question(&mut self, id: NodeId, asked: Asked) {
        let coordinators = self.coordinators();
        let is_open = |entry: &Entry| entry.decided.is_none();
        if self.leads(id, coordinators).is_some() && self.entries(id).get(&asked.txn).is_some_and(is_open) {
            let added = Kind::Added(asked.txn, asked.partition.partition);
            self.append(id, coordinators, added, Some(Await::LetIn(asked)));
        }
    }

    /// A leader hears that a transaction is let in. It may have ended since.
    fn let_in(&mut self, id: NodeId, asked: Asked) {
        let Asked { txn, partition, epoch, .. } = asked;
        if self.leads(id, partition) != Some(epoch) {
            return;
        }
        let (_, has_ended) = self.nodes[&id].logs[&partition].has(txn);
        if !has_ended || self.plan.breaks == Some(Rule::LetInStill) {
            self.append(id, partition, Kind::Of(txn), Some(Await::Client(txn)));
        }
    }

    /// What is not over, of transactions.
    pub(super) fn find_transaction(&self) -> Option<String> {
        let known = &self.ghost.transactions;
        if let Some(open) = known.open.first() {
            return Some(format!("a transaction is open: {open:?}, decided: {:?}", known.decided.get(&open.1)));
        }
        let undecided = known.begun.iter().find(|txn| !known.decided.contains_key(txn));
        undecided.map(|txn| format!("transaction {txn} is not decided"))
    }
}
