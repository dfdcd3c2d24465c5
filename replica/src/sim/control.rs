//! One node's part in the control plane: its lease, its image, and, while it is controller, elections. Every decision is the real
//! `change`, every write a transaction of the store in memory with the compares that the decision asks for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use millrace_engine::api::TopicPartition;
use uuid::Uuid;

use super::world::Rule;
use crate::{
    channel::event::{IsrOutcome, LiveNode, Nodes},
    cluster::{
        change::{Event, IsrProposal, change, requirements},
        image::Image,
        keys,
        memory::Memory,
        model::{Continued, Kept, KnownNode, Member, NodeId, NodeState, Partition, PartitionState, TopicState},
        store::{Compare, LeaseId, Operation, Outcome, Transaction},
    },
};

/// Shorter than the real one, so that more happens.
pub(super) const LEASE: Duration = Duration::from_millis(700);

/// What a node can make of its store at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Open,
    /// Nothing gets through.
    Cut,
    /// Leases are renewed, and nothing is heard of changes.
    Late,
    /// Requests arrive, answers do not.
    Deaf,
}

#[derive(Debug)]
pub(super) struct Control {
    id: NodeId,
    pub(super) image: Image,
    lease: Option<LeaseId>,
    pub(super) member: Option<Member>,
    /// The life that the disk remembers, and what of it is left.
    pub(super) former: Option<Continued>,
    controller: Option<i64>,
    /// What it decided as controller, to be written with the next step: the cluster goes on meanwhile.
    decided: Vec<Transaction>,
    /// What a test broke.
    breaks: Option<Rule>,
}

impl Control {
    pub(super) fn new(id: NodeId, former: Option<Continued>, breaks: Option<Rule>) -> Self {
        let image = Image::new(Arc::new(BTreeMap::new()));
        Self { id, image, lease: None, member: None, former, controller: None, decided: Vec::new(), breaks }
    }

    /// Does what is due. True if the image is another now, or the node is.
    pub(super) fn step(&mut self, memory: &mut Memory, line: Line) -> bool {
        if line == Line::Cut {
            return false;
        }
        if let Some(lease) = self.lease
            && memory.keep_alive(lease).is_err()
        {
            self.lease = None;
        }
        if line != Line::Late {
            for transaction in std::mem::take(&mut self.decided) {
                memory.transact(&transaction).expect("the store answers");
            }
        }
        if line != Line::Open {
            return false;
        }
        let mut is_news = self.pull(memory);
        let lives = self.member.is_some_and(|member| self.image.is_alive(member));
        if let Some(member) = self.member.filter(|_| !lives) {
            self.former = Some(Continued { epoch: member.epoch, kept: Kept::Written });
            (self.member, self.controller) = (None, None);
        }
        if self.member.is_none() {
            self.register(memory);
            is_news = true;
            self.pull(memory);
        }
        self.campaign(memory);
        self.settle();
        is_news
    }

    /// Reads what changed.
    pub(super) fn pull(&mut self, memory: &Memory) -> bool {
        let changes = memory.changes(self.image.revision + 1).expect("nothing is compacted");
        self.image.apply(&changes).expect("values are our own");
        !changes.is_empty()
    }

    fn register(&mut self, memory: &mut Memory) {
        let key = keys::node(self.id);
        if let Some(node) = self.image.nodes.get(&self.id) {
            // of the same directory: the process that held it is dead
            let gone = Transaction::new().when(Compare::Created(key.clone(), node.epoch)).delete(key.clone());
            memory.transact(&gone).expect("the store answers");
        }
        let lease = memory.grant(LEASE);
        let state = NodeState {
            id: self.id,
            epoch: 0,
            incarnation: Uuid::nil(),
            directory: directory(self.id),
            machine: String::new(),
            rack: None,
            endpoints: Vec::new(),
            peer: String::new(),
            shards: 1,
            version: String::new(),
            continues: self.former,
            defaults: None,
        };
        let mut transaction = Transaction::new().when(Compare::Created(key.clone(), 0)).delete(keys::draining(self.id));
        transaction.operations.push(Operation::Put { key, value: keys::encode_node(&state), lease });
        if !self.image.known.contains_key(&self.id) {
            let known = KnownNode { directory: directory(self.id), rack: None, since: 0 };
            transaction = transaction.put(keys::known(self.id), keys::encode_known(&known));
        }
        if let Outcome::Done(epoch) = memory.transact(&transaction).expect("the store answers") {
            self.lease = Some(lease);
            self.member = Some(Member { node: self.id, epoch });
            self.former = Some(Continued { epoch, kept: Kept::Written });
        }
    }

    /// The store hears at once that the node is gone.
    pub(super) fn end_lease(&mut self, memory: &mut Memory) {
        if let Some(lease) = self.lease.take() {
            drop(memory.revoke(lease));
        }
    }

    fn campaign(&mut self, memory: &mut Memory) {
        let (Some(lease), None) = (self.lease, self.image.controller) else { return };
        let key = keys::CONTROLLER.to_owned();
        let mut transaction = Transaction::new().when(Compare::Created(key.clone(), 0));
        transaction.operations.push(Operation::Put { key, value: keys::encode_integer(self.id.into()), lease });
        if let Ok(Outcome::Done(epoch)) = memory.transact(&transaction) {
            self.controller = Some(epoch);
        }
    }

    /// As controller, takes every partition to what the nodes that live make of it.
    fn settle(&mut self) {
        let Some(epoch) = self.controller else { return };
        for (partition, state, topic) in self.partitions() {
            let Some(mut transaction) = self.decide(partition, &state, &topic, &Event::Settle) else { continue };
            if self.breaks == Some(Rule::ControllerCompare) {
                transaction.compares.clear();
            }
            transaction.require(Compare::Created(keys::CONTROLLER.to_owned(), epoch));
            self.decided.push(transaction);
        }
    }

    /// The transaction that an event leads to; none if there is nothing to change, or it is refused.
    fn decide(
        &self,
        partition: TopicPartition,
        state: &Partition,
        topic: &TopicState,
        event: &Event,
    ) -> Option<Transaction> {
        let surroundings = self.image.surroundings(topic);
        let mut before = state.value.clone();
        before.written &= self.breaks != Some(Rule::PromiseInKey);
        let next = change(&before, event, &surroundings).ok()?;
        if next == state.value && !matches!(event, Event::AlterIsr(_)) {
            return None;
        }
        let key = keys::partition(partition.topic, partition.partition);
        let mut transaction = Transaction::new().when(Compare::Modified(key.clone(), state.revision));
        for requirement in requirements(&before, &next, &surroundings) {
            keys::compares(requirement).into_iter().for_each(|compare| transaction.require(compare));
        }
        Some(transaction.put(key, keys::encode_partition(&next)))
    }

    /// What a person asks for. True if it was done.
    pub(super) fn administer(&mut self, memory: &mut Memory, partition: TopicPartition, event: &Event) -> bool {
        let Some((_, state, topic)) = self.partitions().into_iter().find(|(id, ..)| *id == partition) else {
            return false;
        };
        let transaction = self.decide(partition, &state, &topic, event);
        transaction.is_some_and(|transaction| matches!(memory.transact(&transaction), Ok(Outcome::Done(_))))
    }

    /// Says that the node wants to leave.
    pub(super) fn drain(&mut self, memory: &mut Memory) {
        let (Some(member), Some(lease)) = (self.member, self.lease) else { return };
        let key = keys::draining(self.id);
        let mut transaction = Transaction::new().when(Compare::Created(keys::node(self.id), member.epoch));
        transaction.operations.push(Operation::Put { key, value: keys::encode_integer(member.epoch), lease });
        drop(memory.transact(&transaction));
    }

    /// The transaction of a leader's proposal, or what it hears at once.
    pub(super) fn propose(
        &self,
        partition: TopicPartition,
        revision: i64,
        proposal: IsrProposal,
    ) -> Result<Transaction, IsrOutcome> {
        let Some((_, state, topic)) = self.partitions().into_iter().find(|(id, ..)| *id == partition) else {
            return Err(IsrOutcome::Refused);
        };
        if state.revision != revision {
            return Err(if state.revision > revision { IsrOutcome::Stale } else { IsrOutcome::Refused });
        }
        let leader = proposal.leader;
        let transaction = self.decide(partition, &state, &topic, &Event::AlterIsr(proposal));
        let transaction = transaction.ok_or(IsrOutcome::Refused)?;
        Ok(transaction.when(Compare::Created(keys::node(leader.node), leader.epoch)))
    }

    pub(super) fn partitions(&self) -> Vec<(TopicPartition, Partition, Arc<TopicState>)> {
        let mut found = Vec::new();
        for topic in self.image.topics.values() {
            for (index, state) in (0..).zip(&topic.partitions) {
                let partition = TopicPartition { topic: topic.id, partition: index };
                found.push((partition, state.clone(), topic.clone()));
            }
        }
        found.sort_by_key(|(partition, ..)| *partition);
        found
    }

    /// The nodes that live, as the channel wants to know them.
    pub(super) fn nodes(&self) -> Nodes {
        Nodes::new(self.image.nodes.values().map(|node| LiveNode {
            member: node.member(),
            continues: node.continues,
            draining: self.image.draining.get(&node.id) == Some(&node.epoch),
            shards: 1,
        }))
    }
}

/// Carries a leader's transaction out.
pub(super) fn carry_out(memory: &mut Memory, transaction: &Transaction, key: &str, revision: i64) -> IsrOutcome {
    match memory.transact(transaction) {
        Ok(Outcome::Done(revision)) => IsrOutcome::Committed { revision },
        _ if modified(memory, key) != revision => IsrOutcome::Stale,
        _ => IsrOutcome::Refused,
    }
}

fn modified(memory: &Memory, key: &str) -> i64 {
    let page = memory.range(key, None, 0, 1).expect("the store answers");
    page.entries.first().map_or(0, |entry| entry.modified)
}

/// A partition as the store has it, if there is one.
pub(super) fn stored(memory: &Memory, partition: TopicPartition) -> Option<PartitionState> {
    let key = keys::partition(partition.topic, partition.partition);
    let page = memory.range(&key, None, 0, 1).expect("the store answers");
    match keys::decode(page.entries.first()?) {
        Ok(Some(keys::Entry::Partition(_, _, state))) => Some(state),
        other => panic!("{key} holds {other:?}"),
    }
}

/// The node as the store has it, if it lives.
pub(super) fn stored_node(memory: &Memory, node: NodeId) -> Option<NodeState> {
    let page = memory.range(&keys::node(node), None, 0, 1).expect("the store answers");
    match keys::decode(page.entries.first()?) {
        Ok(Some(keys::Entry::Node(state))) => Some(state),
        other => panic!("the key of node {node} holds {other:?}"),
    }
}

fn directory(id: NodeId) -> Uuid {
    Uuid::from_u128(1_000 + u128::from(id.unsigned_abs()))
}
