//! A cluster whose store was restored from a backup: what was decided since then is forgotten, and must not be decided again.
//!
//! Nothing in such a store says who is in sync, as nodes in sync then may lack what was acknowledged since; and epochs would
//! be given out twice. So all nodes are stopped, and each writes down which logs it has and how far they are: its claim. Once
//! all have, one transaction after the other makes every partition's newest log the one in sync, in an epoch above all that
//! were ever heard of. Until the last of them, which takes the claims away, no node registers. Pure; cut short, it is begun
//! anew.
//!
//! Why the newest is right: a record that was acknowledged by all in sync is in the log of each of them. The log with the
//! newest epoch, or the longest one of that, has it too: who was elected in that epoch had all that was acknowledged before,
//! wrote the epoch into its log first, and what is acknowledged in it is in its log. That goes for all logs together: where
//! one is missing, it may be that of the last leader, and nobody else need have heard of its epoch.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_engine::api::TopicId;
use serde::{Deserialize, Serialize};

use super::{
    image::Image,
    kept::file::Contents,
    keys::{self, StoredTopic, ValueError},
    model::{Member, NodeId, PartitionState, TopicState},
    store::{Compare, Operation, Transaction},
};

/// What all claims begin with.
const CLAIMS: &str = "adopting/";
/// How often the cluster was adopted.
const ADOPTED: &str = "adopted";
/// Leader epochs that are passed over: a node that makes no claim may have heard of as many since the backup.
const EPOCHS_SKIPPED: i32 = 10_000;
/// Producer ids that are passed over: as many may have been given out since the backup.
const PRODUCER_IDS_SKIPPED: i64 = 1_000_000_000;
/// Partitions of one key of a claim.
const PARTITIONS_OF_KEY: usize = 5_000;
/// Writes of one transaction: the compares of all nodes fit beside those of each write.
const WRITES_MAX: usize = 60;

/// How far a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// The newest leader epoch of the log; -1 for none.
    pub last_epoch: i32,
    /// One past its last offset.
    pub end: i64,
}

/// What a node knows of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedPartition {
    /// The newest epoch that it heard of.
    pub leader_epoch: i32,
    /// Where it was said to be then.
    pub replicas: Vec<NodeId>,
    /// The log, if the node has it.
    pub log: Option<Extent>,
}

/// What a node knows of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedTopic {
    /// Its name.
    pub name: String,
    /// Settings that differ from the defaults.
    pub configs: BTreeMap<String, String>,
    /// All of them, in order.
    pub partitions: Vec<ClaimedPartition>,
}

/// What a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose it is, and the life that the next one continues.
    pub member: Member,
    /// How often the cluster will have been adopted with this.
    pub term: u64,
    /// How far the former store was when the node heard of it last.
    pub seen: i64,
    /// All topics that it knows.
    pub topics: BTreeMap<TopicId, ClaimedTopic>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    epoch: i64,
    term: u64,
    seen: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    name: String,
    configs: BTreeMap<String, String>,
    partitions: Vec<ClaimedPartition>,
}

impl Claim {
    /// Writes it down, in place of an earlier one. The last transaction makes it count.
    pub fn transactions(&self) -> Vec<Transaction> {
        let node = self.member.node;
        let mut away = Transaction::new();
        away.operations.push(Operation::DeletePrefix(keys::adopting(node)));
        let mut transactions = vec![away];
        for (id, topic) in &self.topics {
            for (number, partitions) in topic.partitions.chunks(PARTITIONS_OF_KEY).enumerate() {
                let part =
                    Part { name: topic.name.clone(), configs: topic.configs.clone(), partitions: partitions.to_vec() };
                let key = format!("{CLAIMS}{node}/{id}/{:05}", number * PARTITIONS_OF_KEY);
                transactions.push(Transaction::new().put(key, keys::write(&part)));
            }
        }
        let head = Head { epoch: self.member.epoch, term: self.term, seen: self.seen };
        transactions.push(Transaction::new().put(keys::adopting(node), keys::write(&head)));
        transactions
    }
}

/// What a restored store holds, with the claims so far.
#[derive(Debug)]
pub struct Adoption {
    image: Image,
    /// And the revision that made each count.
    claims: BTreeMap<NodeId, (Claim, i64)>,
    adopted: u64,
    adopted_at: i64,
}

/// What is done, and what a person has to know of it.
#[derive(Debug, Default)]
pub struct Decision {
    /// In this order.
    pub transactions: Vec<Transaction>,
    /// Names of topics that the store had forgotten.
    pub brought_back: Vec<String>,
    /// Names of topics that are in the store, and were deleted since the backup.
    pub taken_out: Vec<String>,
    /// Partitions of which nobody who was asked has a log: nobody leads them.
    pub without_log: Vec<String>,
    /// Partitions that a node had which was not asked: acknowledged records of them may be lost.
    pub doubtful: Vec<String>,
}

impl Adoption {
    /// Reads all that a store holds.
    ///
    /// # Errors
    /// If a value is damaged or of a later version.
    pub fn read(contents: &Contents) -> Result<Self, ValueError> {
        let image = Image::read(Arc::default(), contents.revision, &contents.entries)?;
        let (mut claims, mut adopted, mut adopted_at) = (BTreeMap::new(), 0, 0);
        for entry in
            contents.entries.iter().filter(|entry| image.adopting.iter().any(|id| entry.key == keys::adopting(*id)))
        {
            let Head { epoch, term, seen } = keys::read(&entry.key, &entry.value)?;
            let node = entry.key[CLAIMS.len()..].parse().unwrap_or(-1);
            let claim = Claim { member: Member { node, epoch }, term, seen, topics: BTreeMap::new() };
            claims.insert(node, (claim, entry.modified));
        }
        // keys are in order, and so are the parts of a topic
        for entry in &contents.entries {
            if entry.key == ADOPTED {
                (adopted, adopted_at) = (keys::read(&entry.key, &entry.value)?, entry.modified);
            }
            let Some((node, topic)) = part_of(&entry.key) else { continue };
            let Some((claim, _)) = claims.get_mut(&node) else { continue };
            let Part { name, configs, partitions } = keys::read(&entry.key, &entry.value)?;
            let empty = || ClaimedTopic { name, configs, partitions: Vec::new() };
            claim.topics.entry(topic).or_insert_with(empty).partitions.extend(partitions);
        }
        Ok(Self { image, claims, adopted, adopted_at })
    }

    /// The cluster, as the store has it.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// How often the cluster was adopted.
    pub fn adopted(&self) -> u64 {
        self.adopted
    }

    /// The claim that a node made.
    pub fn claim(&self, node: NodeId) -> Option<&Claim> {
        self.claims.get(&node).map(|(claim, _)| claim)
    }

    /// Nodes that have not said yet what they have, but for those that are gone for good.
    pub fn awaited(&self, without: &[NodeId]) -> BTreeSet<NodeId> {
        let known = self.image.known.keys().copied();
        let states = self.image.topics.values().flat_map(|topic| &topic.partitions);
        let stored = states.flat_map(|state| state.value.replicas.iter().copied());
        let topics = self.claims.values().flat_map(|(claim, _)| claim.topics.values());
        let heard = topics.flat_map(|topic| topic.partitions.iter().flat_map(|it| it.replicas.iter().copied()));
        let all: BTreeSet<NodeId> = known.chain(stored).chain(heard).collect();
        all.into_iter().filter(|node| !without.contains(node) && !self.claims.contains_key(node)).collect()
    }

    /// Decides for all partitions, by the claims there are.
    pub fn decide(&self, without: &[NodeId]) -> Decision {
        let mut decision = Decision::default();
        let chosen = self.chosen(without);
        let mut batches = Batches { guards: self.guards(), transactions: Vec::new(), open: Transaction::new() };
        for topic in self.image.topics.values().filter(|topic| !chosen.values().any(|id| *id == topic.id)) {
            decision.taken_out.push(topic.name.clone());
            let same = Compare::Modified(keys::topic(topic.id), topic.revision);
            batches.add(same, Operation::DeletePrefix(keys::partitions(topic.id)));
            batches.add_also(Operation::Delete(keys::topic(topic.id)));
            batches.add_also(Operation::Delete(keys::name(&topic.name)));
        }
        batches.close();
        for id in chosen.values() {
            self.decide_topic(*id, without, &mut batches, &mut decision);
        }
        let ids = &self.image.producer_ids;
        let next = keys::encode_integer(ids.value + PRODUCER_IDS_SKIPPED);
        batches.add(
            Compare::Modified(keys::PRODUCER_IDS.to_owned(), ids.revision),
            put(keys::PRODUCER_IDS.to_owned(), next),
        );
        batches.close();
        let term = self.claims.values().map(|(claim, _)| claim.term).max().unwrap_or(0).max(self.adopted + 1);
        let same = Compare::Modified(ADOPTED.to_owned(), self.adopted_at);
        batches.add(same, put(ADOPTED.to_owned(), keys::write(&term)));
        batches.add_also(Operation::DeletePrefix(CLAIMS.to_owned()));
        batches.close();
        decision.transactions = batches.transactions;
        decision
    }

    /// Which topic has each name from now on: what the nodes know counts, of two of one name that of the node which heard of
    /// the former store last. What none of them knows was deleted since, if all were asked.
    fn chosen(&self, without: &[NodeId]) -> BTreeMap<String, TopicId> {
        let mut chosen = BTreeMap::new();
        let mut newest_first: Vec<_> = self.claims.values().collect();
        newest_first.sort_by_key(|(claim, _)| Reverse(claim.seen));
        for (id, topic) in newest_first.into_iter().flat_map(|(claim, _)| &claim.topics) {
            chosen.entry(keys::name(&topic.name)).or_insert(*id);
        }
        if !without.is_empty() {
            for topic in self.image.topics.values() {
                chosen.entry(keys::name(&topic.name)).or_insert(topic.id);
            }
        }
        chosen
    }

    /// Nobody lives, and nobody took a claim back.
    fn guards(&self) -> Vec<Compare> {
        let claims = self.claims.iter().flat_map(|(node, (_, revision))| {
            [Compare::Modified(keys::adopting(*node), *revision), Compare::Created(keys::node(*node), 0)]
        });
        claims.chain([Compare::Created(keys::CONTROLLER.to_owned(), 0)]).collect()
    }

    fn decide_topic(&self, id: TopicId, without: &[NodeId], batches: &mut Batches, decision: &mut Decision) {
        let stored = self.image.topics.get(&id);
        let claimed: Vec<(Member, &ClaimedTopic)> =
            self.claims.values().filter_map(|(claim, _)| Some((claim.member, claim.topics.get(&id)?))).collect();
        let name = stored.map(|topic| topic.name.clone());
        let name = name.or_else(|| claimed.first().map(|(_, topic)| topic.name.clone())).unwrap_or_default();
        let known = stored.map_or(0, |topic| topic.expected);
        let count = claimed.iter().map(|(_, topic)| topic.partitions.len()).fold(known, usize::max);
        for at in 0..count {
            let held = stored.and_then(|topic| topic.partitions.get(at));
            let claims = claimed.iter().filter_map(|(member, topic)| Some((*member, topic.partitions.get(at)?)));
            let claims: Vec<(Member, &ClaimedPartition)> = claims.collect();
            let Some(state) = decided(held.map(|held| &held.value), &claims) else { continue };
            let partition = format!("{name}-{at}");
            if state.isr.is_empty() {
                decision.without_log.push(partition.clone());
            }
            if state.replicas.iter().any(|node| without.contains(node)) {
                decision.doubtful.push(partition);
            }
            let key = keys::partition(id, i32::try_from(at).unwrap_or(i32::MAX));
            let same = Compare::Modified(key.clone(), held.map_or(0, |held| held.revision));
            batches.add(same, put(key, keys::encode_partition(&state)));
        }
        if stored.is_none() {
            decision.brought_back.push(name.clone());
        }
        if stored.is_none_or(|topic| topic.expected != count) {
            let configs = stored.map(|topic| topic.configs.clone());
            let configs = configs.or_else(|| claimed.first().map(|(_, topic)| topic.configs.clone()));
            write_topic((id, name), (count, configs.unwrap_or_default()), stored, batches);
        }
    }
}

fn write_topic(
    (id, name): (TopicId, String),
    (count, configs): (usize, BTreeMap<String, String>),
    before: Option<&Arc<TopicState>>,
    batches: &mut Batches,
) {
    // whoever reads it finds its partitions
    batches.close();
    let partitions = i32::try_from(count).unwrap_or(i32::MAX);
    let value = StoredTopic { name: name.clone(), partitions, configs, forming: false };
    let same = Compare::Modified(keys::topic(id), before.map_or(0, |topic| topic.revision));
    batches.add(same, put(keys::topic(id), keys::encode_topic(&value)));
    batches.add_also(put(keys::name(&name), keys::encode_uuid(id)));
}

/// What becomes of a partition: the newest log is in sync, in an epoch that nobody heard of, and nobody leads yet. `None` if
/// nobody knows where it is.
fn decided(before: Option<&PartitionState>, claims: &[(Member, &ClaimedPartition)]) -> Option<PartitionState> {
    let newest = claims.iter().max_by_key(|(_, claimed)| claimed.leader_epoch);
    let mut replicas = before.map(|before| before.replicas.clone());
    replicas = replicas.or_else(|| newest.map(|(_, claimed)| claimed.replicas.clone()));
    let mut replicas = replicas.filter(|replicas| !replicas.is_empty())?;
    let logs: Vec<(Member, Extent)> = claims.iter().filter_map(|(member, it)| Some((*member, it.log?))).collect();
    for (member, _) in &logs {
        if !replicas.contains(&member.node) {
            replicas.push(member.node);
        }
    }
    let best = logs.iter().map(|(_, extent)| *extent).max();
    let mut isr: Vec<Member> =
        logs.iter().filter(|(_, extent)| Some(*extent) == best).map(|(member, _)| *member).collect();
    isr.sort_by_key(|member| replicas.iter().position(|node| *node == member.node));
    let heard = claims.iter().map(|(_, claimed)| claimed.leader_epoch).max().unwrap_or(0);
    let logged = best.map_or(0, |best| best.last_epoch);
    let leader_epoch = before.map_or(0, |before| before.leader_epoch).max(heard).max(logged) + EPOCHS_SKIPPED;
    Some(PartitionState {
        replicas,
        leader_epoch,
        isr,
        adding: Vec::new(),
        removing: Vec::new(),
        leader: None,
        elr: Vec::new(),
        last_known_leader: None,
        recovering: false,
        ..before.cloned().unwrap_or_default()
    })
}

/// `adopting/<node>/<topic>/<first partition>`
fn part_of(key: &str) -> Option<(NodeId, TopicId)> {
    let mut parts = key.strip_prefix(CLAIMS)?.split('/');
    let (node, topic, _first) = (parts.next()?, parts.next()?, parts.next()?);
    Some((node.parse().ok()?, topic.parse().ok()?))
}

fn put(key: String, value: Vec<u8>) -> Operation {
    Operation::Put { key, value, lease: 0 }
}

/// Writes, as many in a transaction as etcd takes.
struct Batches {
    /// Compares of each.
    guards: Vec<Compare>,
    transactions: Vec<Transaction>,
    open: Transaction,
}

impl Batches {
    fn add(&mut self, compare: Compare, operation: Operation) {
        if self.open.operations.len() >= WRITES_MAX || self.open.bytes() > super::store::TRANSACTION_BYTES_MAX / 2 {
            self.close();
        }
        self.open.require(compare);
        self.open.operations.push(operation);
    }

    /// Together with the one before.
    fn add_also(&mut self, operation: Operation) {
        self.open.operations.push(operation);
    }

    fn close(&mut self) {
        let mut transaction = std::mem::take(&mut self.open);
        if !transaction.operations.is_empty() {
            self.guards.iter().for_each(|guard| transaction.require(guard.clone()));
            self.transactions.push(transaction);
        }
    }
}

#[cfg(test)]
mod tests;
