//! What one node does for all: it lets partitions follow their nodes. And what any node does so that there is one that does.
//!
//! Level-triggered: whatever happened, a partition's next state is decided from the image as it is, and written only if it
//! differs. A refused transaction is forgotten; what it was about is decided anew from the next image.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_engine::api::{TopicId, TopicPartition};

use super::{
    Registration,
    settings::{History, Options, Rebalance},
};
use crate::cluster::{
    admin::{PARTITIONS_PER_TRANSACTION, absorb, change_partition},
    change::{Event, change},
    image::{Changed, Image},
    keys,
    model::{Member, NodeId, NodeState, PartitionState, TopicState},
    store::{Compare, LeaseId, Operation, Outcome, StoreError, Transaction},
};

/// Transactions of one round at most, whatever partitions they have; what is left waits for the next, which begins when the image
/// shows this one.
pub(super) const ROUND_MAX: usize = 100;
/// How long after a refusal, if no other image came.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// How long an image may take to show what was written.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked whether topics of coordinators can have more replicas.
const GROW_EVERY: Duration = Duration::from_secs(30);
/// How often history is forgotten, up to where it was at the time before.
const COMPACT_EVERY: Duration = Duration::from_secs(300);
/// How long a topic may be forming: whoever creates it is dead by then.
const FORMING_MAX: Duration = Duration::from_secs(60);

/// The duties.
pub(super) struct Controller {
    history: History,
    rebalance: Rebalance,
    /// See [`Options::wanted_replicas`](super::Options::wanted_replicas).
    wanted_replicas: BTreeMap<String, usize>,
    dirty: BTreeSet<TopicPartition>,
    /// All partitions are to be looked at.
    all: bool,
    in_flight: BTreeMap<u64, Vec<TopicPartition>>,
    /// What is not about partitions: at most one.
    single: Option<u64>,
    single_at: Instant,
    /// The last revision that was written: rounds wait until the image shows it, but not longer than that.
    written: i64,
    shown_at: Instant,
    round_at: Instant,
    /// Partitions of one transaction: halved with every refusal, so that one that is refused holds up no others.
    together: usize,
    /// As which controller it acts.
    acting: Option<i64>,
    /// When it is looked for leaders that are not where they belong; none for never.
    preferred_at: Option<Instant>,
    grow_at: Instant,
    compact_at: Instant,
    /// Where the store was at the time before, which is where history begins next time.
    compact_to: Option<i64>,
    compacted: i64,
    forming: BTreeMap<TopicId, (i64, Instant)>,
}

/// Says that a node's process refuses connections.
pub(super) fn report(whom: Member, by: Member, lease: LeaseId) -> Transaction {
    let mut transaction = Transaction::new()
        .when(Compare::Created(keys::node(whom.node), whom.epoch))
        .when(Compare::Created(keys::node(by.node), by.epoch));
    let (key, value) = (keys::report(whom.node, by.node), keys::encode_integer(whom.epoch));
    transaction.operations.push(Operation::Put { key, value, lease });
    transaction
}

/// Takes that back: whoever could not be reached lives all the same.
pub(super) fn withdrawal(whom: Member, by: Member) -> Transaction {
    Transaction::new()
        .when(Compare::Created(keys::node(by.node), by.epoch))
        .when(Compare::Exists(keys::report(whom.node, by.node)))
        .delete(keys::report(whom.node, by.node))
}

impl Controller {
    pub(super) fn new(options: &Options, now: Instant) -> Self {
        let Options { history, rebalance, .. } = *options;
        Self {
            history,
            rebalance,
            wanted_replicas: options.wanted_replicas.clone(),
            dirty: BTreeSet::new(),
            all: false,
            in_flight: BTreeMap::new(),
            single: None,
            single_at: now,
            written: 0,
            shown_at: now,
            round_at: now,
            together: PARTITIONS_PER_TRANSACTION,
            acting: None,
            preferred_at: rebalance.every.map(|every| now + every),
            grow_at: now + GROW_EVERY,
            compact_at: now + COMPACT_EVERY,
            compact_to: None,
            compacted: 0,
            forming: BTreeMap::new(),
        }
    }

    /// Whether something is under way or to be done.
    pub(super) fn is_busy(&self) -> bool {
        self.single.is_some() || !self.in_flight.is_empty() || (self.acting.is_some() && self.has_more())
    }

    fn has_more(&self) -> bool {
        self.all || !self.dirty.is_empty()
    }

    /// Another life of this node began.
    pub(super) fn begin_life(&mut self) {
        self.acting = None;
    }

    /// Takes note of what changed.
    pub(super) fn note(&mut self, changed: &[Changed]) {
        if self.acting.is_none() {
            return; // who takes over looks at all
        }
        for one in changed {
            match one {
                Changed::Node(_) | Changed::Settings | Changed::Topic(_) => self.all = true,
                Changed::Partition(partition) => drop(self.dirty.insert(*partition)),
                Changed::TopicGone(..) | Changed::Cluster | Changed::Controller | Changed::ProducerIds => {}
                Changed::Report(_) => {}
            }
        }
    }

    pub(super) fn on_transacted(&mut self, ticket: u64, result: &Result<Outcome, StoreError>, now: Instant) {
        if self.single == Some(ticket) {
            self.single = None;
            if let Ok(Outcome::Done(revision)) = result {
                self.wrote(*revision, now);
            }
            self.single_at = now + RETRY_AFTER;
            return;
        }
        let Some(partitions) = self.in_flight.remove(&ticket) else { return };
        match result {
            Ok(Outcome::Done(revision)) => {
                self.wrote(*revision, now);
                if self.in_flight.is_empty() {
                    self.together = PARTITIONS_PER_TRANSACTION.min(self.together * 2);
                }
            }
            Ok(Outcome::Refused(_)) | Err(_) => {
                // a store that is away or full refuses none for what is in it, one that has limits of its own does
                if matches!(result, Ok(_) | Err(StoreError::Refused(_))) {
                    self.together = (partitions.len() / 2).max(1);
                }
                self.dirty.extend(partitions);
                self.round_at = now + RETRY_AFTER;
            }
        }
    }

    fn wrote(&mut self, revision: i64, now: Instant) {
        self.written = self.written.max(revision);
        self.shown_at = now + SHOWN_WITHIN;
    }

    /// What is to be written now, each with its ticket.
    pub(super) fn advance(
        &mut self,
        image: &Image,
        me: Member,
        registration: &Registration,
        now: Instant,
        tickets: &mut u64,
    ) -> Vec<(u64, Transaction)> {
        let mut transactions = Vec::new();
        let mut ticket = || {
            *tickets += 1;
            *tickets
        };
        self.take_over(image, me, now);
        let is_shown = image.revision >= self.written || self.shown_at <= now;
        if self.single.is_none() && self.single_at <= now && is_shown {
            let single = fence(image, me)
                .or_else(|| campaign(image, me, registration.held()?.1))
                .or_else(|| self.take_away_forming(image, now));
            if let Some(transaction) = single {
                let ticket = ticket();
                self.single = Some(ticket);
                transactions.push((ticket, transaction));
            }
        }
        let Some(epoch) = self.acting else { return transactions };
        if !self.in_flight.is_empty() || !is_shown || self.round_at > now {
            return transactions;
        }
        for (partitions, transaction) in self.round(image, epoch, now) {
            let ticket = ticket();
            self.in_flight.insert(ticket, partitions);
            transactions.push((ticket, transaction));
        }
        transactions
    }

    /// The revision up to which history is to be forgotten now.
    pub(super) fn compaction(&mut self, image: &Image, me: Member, now: Instant) -> Option<i64> {
        let is_ours = self.history == History::Ours && self.acting.is_some() && image.is_alive(me);
        if !is_ours || self.compact_at > now {
            return None;
        }
        self.compact_at = now + COMPACT_EVERY;
        let former = self.compact_to.replace(image.revision)?;
        (former > std::mem::replace(&mut self.compacted, former)).then_some(former)
    }

    fn take_over(&mut self, image: &Image, me: Member, now: Instant) {
        let ours = image.controller.filter(|controller| controller.node == me.node && controller.epoch > me.epoch);
        let acting = ours.map(|controller| controller.epoch);
        if acting != self.acting {
            self.acting = acting;
            self.all = true;
            self.in_flight.clear();
            self.preferred_at = self.rebalance.every.map(|every| now + every);
            self.grow_at = now + GROW_EVERY;
        }
    }

    /// Decides what is dirty; what is more than a round stays so.
    fn round(&mut self, image: &Image, epoch: i64, now: Instant) -> Vec<(Vec<TopicPartition>, Transaction)> {
        let event = if self.has_more() {
            Event::Settle
        } else if self.preferred_at.is_some_and(|at| at <= now) {
            self.preferred_at = self.rebalance.every.map(|every| now + every);
            self.all = true;
            Event::ElectPreferred
        } else if self.grow_at <= now {
            self.grow_at = now + GROW_EVERY;
            return self.growth(image, epoch);
        } else {
            return Vec::new();
        };
        let imbalanced = (event == Event::ElectPreferred).then(|| imbalanced(image, self.rebalance.percent_max));
        let is_meant = |partition: &PartitionState| {
            let belongs =
                |nodes: &BTreeSet<NodeId>| partition.replicas.first().is_some_and(|first| nodes.contains(first));
            imbalanced.as_ref().is_none_or(belongs)
        };
        let mut round = self.begin_round(image, epoch);
        if std::mem::take(&mut self.all) {
            self.dirty.clear();
            for topic in image.topics.values() {
                for (index, held) in topic.partitions.iter().enumerate() {
                    let partition = i32::try_from(index).unwrap_or(i32::MAX);
                    let tp = TopicPartition { topic: topic.id, partition };
                    if is_meant(&held.value) && !round.decide(topic, tp, &event) {
                        self.dirty.insert(tp);
                    }
                }
            }
        } else {
            while let Some(tp) = self.dirty.pop_first() {
                let decided = image.topics.get(&tp.topic).is_none_or(|topic| round.decide(topic, tp, &event));
                if !decided {
                    self.dirty.insert(tp);
                    break;
                }
            }
        }
        round.done
    }

    fn begin_round<'a>(&self, image: &'a Image, epoch: i64) -> Round<'a> {
        Round { image, epoch, together: self.together, done: Vec::new() }
    }

    /// Gives the topics of coordinators more replicas, as nodes come: a cluster that began with one node would lose its groups
    /// with it. What does not fit into the round comes with the next.
    fn growth(&self, image: &Image, epoch: i64) -> Vec<(Vec<TopicPartition>, Transaction)> {
        let mut round = self.begin_round(image, epoch);
        let wanted = self.wanted_replicas.iter().filter_map(|(name, count)| Some((image.topic(name)?, *count)));
        for (topic, wanted) in wanted {
            for (index, held) in topic.partitions.iter().enumerate() {
                let tp = TopicPartition { topic: topic.id, partition: i32::try_from(index).unwrap_or(i32::MAX) };
                if let Some(replicas) = more_replicas(image, &held.value, (index, wanted)) {
                    round.decide(topic, tp, &Event::Reassign(replicas));
                }
            }
        }
        round.done
    }

    /// A topic whose creator seems to be dead.
    fn take_away_forming(&mut self, image: &Image, now: Instant) -> Option<Transaction> {
        let epoch = self.acting?;
        self.forming.retain(|id, (began, _)| image.forming.get(id) == Some(began));
        for (id, began) in image.forming.iter() {
            let (_, since) = self.forming.entry(*id).or_insert((*began, now));
            if now.duration_since(*since) >= FORMING_MAX {
                let mut transaction = Transaction::new()
                    .when(Compare::Created(keys::CONTROLLER.to_owned(), epoch))
                    .when(Compare::Modified(keys::topic(*id), *began))
                    .delete(keys::topic(*id));
                transaction.operations.push(Operation::DeletePrefix(keys::partitions(*id)));
                return Some(transaction);
            }
        }
        None
    }
}

/// One round's transactions, filled one after the other.
struct Round<'a> {
    image: &'a Image,
    epoch: i64,
    together: usize,
    done: Vec<(Vec<TopicPartition>, Transaction)>,
}

impl Round<'_> {
    /// Decides one partition. False: the round is full.
    fn decide(&mut self, topic: &TopicState, tp: TopicPartition, event: &Event) -> bool {
        let Some(held) = self.image.partition(tp) else { return true };
        if *event == Event::ElectPreferred && held.value.leader.is_none() {
            return true;
        }
        let Ok(next) = change(&held.value, event, &self.image.surroundings(topic)) else { return true };
        if next == held.value {
            return true;
        }
        let is_last = self.done.len() >= ROUND_MAX;
        if is_last && self.done.last().is_some_and(|(partitions, _)| partitions.len() >= self.together) {
            return false;
        }
        let transaction = change_partition(self.image, topic, tp, &next)
            .when(Compare::Created(keys::CONTROLLER.to_owned(), self.epoch));
        if let Some((partitions, last)) = self.done.last_mut()
            && partitions.len() < self.together
            && absorb(last, &transaction)
        {
            partitions.push(tp);
            return true;
        }
        if !is_last {
            self.done.push((vec![tp], transaction));
        }
        !is_last
    }
}

/// Nodes of whose partitions more than so many in a hundred are led by others.
fn imbalanced(image: &Image, percent_max: u32) -> BTreeSet<NodeId> {
    let mut counts: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
    for partition in image.topics.values().flat_map(|topic| &topic.partitions) {
        let Some(preferred) = partition.value.replicas.first() else { continue };
        let (all, elsewhere) = counts.entry(*preferred).or_default();
        *all += 1;
        *elsewhere += u64::from(partition.value.leader.is_some_and(|leader| leader.node != *preferred));
    }
    let is_imbalanced = |(all, elsewhere): &(u64, u64)| elsewhere * 100 > all * u64::from(percent_max);
    counts.into_iter().filter(|(_, counts)| is_imbalanced(counts)).map(|(node, _)| node).collect()
}

/// The replicas that a coordinator's partition has, and more from nodes that stay: other racks first, other nodes for other
/// partitions. `None` if it has enough, or is moving, or somebody wants it to have fewer.
fn more_replicas(image: &Image, state: &PartitionState, (index, wanted): (usize, usize)) -> Option<Vec<NodeId>> {
    let stays = |node: &&Arc<NodeState>| image.draining.get(&node.id) != Some(&node.epoch);
    let live: Vec<_> = image.nodes.values().filter(stays).collect();
    let wanted = live.len().min(wanted);
    if state.kept_few || state.is_reassigning() || state.leader.is_none() || state.replicas.len() >= wanted {
        return None;
    }
    let mut replicas = state.replicas.clone();
    while replicas.len() < wanted {
        let racks: Vec<_> = replicas.iter().filter_map(|id| image.nodes.get(id)).map(|node| &node.rack).collect();
        let others = live.iter().enumerate().filter(|(_, node)| !replicas.contains(&node.id));
        let turn = |at: usize| (at + live.len() - index % live.len()) % live.len();
        let (_, next) = others.min_by_key(|(at, node)| (racks.contains(&&node.rack), turn(*at)))?;
        replicas.push(next.id);
    }
    Some(replicas)
}

/// Becomes controller, if there is none; puts down one whose node is dead, or that this node was in a former life.
fn campaign(image: &Image, me: Member, lease: LeaseId) -> Option<Transaction> {
    let mine = Compare::Created(keys::node(me.node), me.epoch);
    let Some(controller) = image.controller else {
        let mut transaction = Transaction::new().when(Compare::Created(keys::CONTROLLER.to_owned(), 0)).when(mine);
        let (key, value) = (keys::CONTROLLER.to_owned(), keys::encode_integer(i64::from(me.node)));
        transaction.operations.push(Operation::Put { key, value, lease });
        return Some(transaction);
    };
    let same = Compare::Created(keys::CONTROLLER.to_owned(), controller.epoch);
    let put_down = Transaction::new().when(same).delete(keys::CONTROLLER.to_owned());
    if controller.node == me.node {
        return (controller.epoch < me.epoch).then(|| put_down.when(mine));
    }
    let is_dead = !image.nodes.contains_key(&controller.node);
    is_dead.then(|| put_down.when(Compare::Created(keys::node(controller.node), 0)))
}

/// Takes the key of a node away that enough others cannot reach: it need not wait for its lease to end. Done by the controller,
/// or, if it is about that one, by the first of the others.
fn fence(image: &Image, me: Member) -> Option<Transaction> {
    let victims: BTreeSet<NodeId> = image.reports.keys().map(|(whom, _)| *whom).collect();
    victims.into_iter().find_map(|whom| {
        let node = image.nodes.get(&whom)?;
        let others = image.nodes.keys().copied().filter(|id| *id != whom);
        let says_so = |by: &NodeId| image.reports.get(&(whom, *by)) == Some(&node.epoch);
        let witnesses = others.clone().filter(says_so).count();
        let controller = image.controller.filter(|controller| image.nodes.contains_key(&controller.node));
        let acts = controller.map(|controller| controller.node).filter(|id| *id != whom).or(others.clone().min());
        if acts != Some(me.node) || witnesses < others.count().min(2) {
            return None;
        }
        let mut transaction = Transaction::new()
            .when(Compare::Created(keys::node(whom), node.epoch))
            .when(Compare::Created(keys::node(me.node), me.epoch))
            .delete(keys::node(whom))
            .delete(keys::draining(whom));
        transaction.operations.push(Operation::DeletePrefix(keys::reports(whom)));
        if let Some(controller) = image.controller.filter(|controller| controller.node == whom) {
            let same = Compare::Created(keys::CONTROLLER.to_owned(), controller.epoch);
            transaction = transaction.when(same).delete(keys::CONTROLLER.to_owned());
        }
        Some(transaction)
    })
}
