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

mod node;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_engine::api::TopicId;
use serde::{Deserialize, Serialize};

pub use self::node::{Adopter, Ending, Kept, Problem, Shell, Standing, Told, Wait};
use super::{
    image::Image,
    kept::file::Contents,
    keys::{self, Entry, StoredAdopted, StoredTopic, ValueError},
    model::{KnownNode, Member, NodeId, PartitionState},
    restored::{Ahead, Mark, Remembered, Shown},
    store::{Compare, Operation, Transaction},
};

/// What all claims begin with.
const CLAIMS: &str = "adopting/";
/// Leader epochs that are passed over: a node that makes no claim may have heard of as many since the backup.
const EPOCHS_SKIPPED: i32 = 10_000;
/// Producer ids that are passed over: as many may have been given out since the backup.
const PRODUCER_IDS_SKIPPED: i64 = 1_000_000_000;
/// Partitions of one key of a claim.
const PARTITIONS_OF_KEY: usize = 5_000;
/// Writes of one transaction: their compares fit beside the guards.
const WRITES_MAX: usize = 60;
/// Nodes that a claim's first transaction looks at.
const KNOWN_COMPARED_MAX: usize = 100;

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

/// Of when a node's knowledge is. In order: what is greater knows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Heard {
    /// The node's last life began before the store was restored: one that began after it knows only what the backup says.
    pub before: bool,
    /// How often the store of that life had been adopted. Revisions of different stores do not compare.
    pub adoptions: u64,
    /// How far that was when the node heard of it last.
    pub revision: i64,
}

/// What goes with a claim, also in the directory that it is of, until that begins a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Claimed {
    /// Which adoption this is, at least. All that the node took part in count, also those that a backup knows nothing of: what
    /// they gave out is not given out again.
    pub times: u64,
    /// Before the first claim.
    pub heard: Heard,
}

/// What a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose it is, and the life that the next one continues: 0 if it was promised nothing, and has no logs.
    pub member: Member,
    /// What it is based on, and for which adoption.
    pub claimed: Claimed,
    /// All topics that it knows.
    pub topics: BTreeMap<TopicId, ClaimedTopic>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// Which store it was written to: one that came with a backup says nothing of today.
    store: u64,
    /// How far that was ahead of its log at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ahead: Option<i64>,
    epoch: i64,
    claimed: Claimed,
    /// How many parts it has.
    parts: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    /// Of the claim that it is a part of.
    epoch: i64,
    name: String,
    configs: BTreeMap<String, String>,
    partitions: Vec<ClaimedPartition>,
}

impl Claim {
    /// How much it knows of the former store: what gave records up knows least, whatever store it has heard of since.
    fn knows(&self) -> (bool, Heard) {
        (self.member.epoch > 0, self.claimed.heard)
    }

    /// Writes it down. The last transaction makes it count; none is done once the cluster was adopted since `adoption` was read.
    pub fn transactions(&self, adoption: &Adoption) -> Vec<Transaction> {
        let Member { node, epoch } = self.member;
        let undecided = || Transaction::new().when(adoption.undecided());
        let mut transactions = vec![undecided().delete(keys::adopting(node))];
        transactions[0].operations.push(Operation::DeletePrefix(parts_of(node)));
        for (id, topic) in &self.topics {
            for (number, partitions) in topic.partitions.chunks(PARTITIONS_OF_KEY).enumerate() {
                let (name, configs) = (topic.name.clone(), topic.configs.clone());
                let part = Part { epoch, name, configs, partitions: partitions.to_vec() };
                let key = format!("{}{id}/{:05}", parts_of(node), number * PARTITIONS_OF_KEY);
                transactions.push(undecided().put(key, keys::write(&part)));
            }
        }
        let ahead = adoption.ahead.map(|ahead| ahead.mark());
        let parts = transactions.len() - 1;
        let head = Head { store: adoption.identity, ahead, epoch, claimed: self.claimed, parts };
        transactions.push(touched(undecided()).put(keys::adopting(node), keys::write(&head)));
        transactions
    }
}

/// What a restored store holds, with the claims so far.
#[derive(Debug)]
pub struct Adoption {
    /// Which store it is.
    identity: u64,
    image: Image,
    /// Those that are whole.
    claims: BTreeMap<NodeId, Claim>,
    adopted: StoredAdopted,
    /// Partitions, those among them whose topic is not written down yet.
    partitions: BTreeMap<TopicId, BTreeMap<i32, PartitionState>>,
    /// How far that is ahead of its log, if it tells.
    ahead: Option<Ahead>,
    /// Of each key, its last write.
    revisions: BTreeMap<String, i64>,
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
    /// Topics, with their ids, that nodes have and that go, as one of the same name is newer.
    pub replaced: Vec<String>,
    /// Names of topics that are kept, and that a node does not know which heard of the former store last.
    pub perhaps_deleted: Vec<String>,
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
    pub fn read((contents, ahead): &(Contents, Option<Ahead>)) -> Result<Self, ValueError> {
        let image = Image::read(Arc::default(), contents.revision, &contents.entries)?;
        let mut read = Self {
            identity: contents.identity,
            image,
            claims: BTreeMap::new(),
            adopted: StoredAdopted::default(),
            partitions: BTreeMap::new(),
            ahead: *ahead,
            revisions: contents.entries.iter().map(|entry| (entry.key.clone(), entry.modified)).collect(),
        };
        let mut parts_missing: BTreeMap<NodeId, usize> = BTreeMap::new();
        for entry in &contents.entries {
            match keys::decode(entry)? {
                Some(Entry::Adopted(adopted)) => read.adopted = adopted,
                Some(Entry::Partition(topic, index, state)) => {
                    read.partitions.entry(topic).or_default().insert(index, state);
                }
                Some(Entry::Adopting(node)) => {
                    let head: Head = keys::read(&entry.key, &entry.value)?;
                    let now = Remembered { store: contents.identity, revision: contents.revision };
                    let mark = Mark { ahead: head.ahead, since: entry.modified };
                    let then = Remembered { store: head.store, revision: entry.modified };
                    if (Shown { seen: now, ahead: *ahead, mark }).check(Some(then)).is_err() {
                        continue;
                    }
                    let Head { epoch, claimed, parts, .. } = head;
                    let (member, topics) = (Member { node, epoch }, BTreeMap::new());
                    read.claims.insert(node, Claim { member, claimed, topics });
                    parts_missing.insert(node, parts);
                }
                _ => {}
            }
        }
        // keys are in order, and so are the parts of a topic
        for entry in &contents.entries {
            let Some((node, topic)) = part_of(&entry.key) else { continue };
            let Some(claim) = read.claims.get_mut(&node) else { continue };
            let Part { epoch, name, configs, partitions } = keys::read(&entry.key, &entry.value)?;
            let missing = parts_missing.entry(node).or_default();
            // one too many is as bad as one too few
            *missing = if epoch == claim.member.epoch { missing.wrapping_sub(1) } else { usize::MAX };
            let empty = || ClaimedTopic { name, configs, partitions: Vec::new() };
            claim.topics.entry(topic).or_insert_with(empty).partitions.extend(partitions);
        }
        read.claims.retain(|node, _| parts_missing.get(node) == Some(&0));
        Ok(read)
    }

    /// The cluster, as the store has it.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Whether the last decision was also by the claim of that life.
    pub fn took_part(&self, life: Member) -> bool {
        self.adopted.by.get(&life.node) == Some(&life.epoch)
    }

    /// What the store shows of itself.
    fn shown(&self) -> Shown {
        let seen = Remembered { store: self.identity, revision: self.image.revision };
        Shown { seen, ahead: self.ahead, mark: self.image.adopted.mark }
    }

    /// Whether a life that has seen that may have begun in this store since it was restored.
    fn may_have_begun(&self, epoch: i64, seen: Remembered) -> bool {
        let is_this = seen.store == self.identity && seen.revision <= self.image.revision;
        is_this && self.ahead.is_none_or(|ahead| epoch > ahead.restored_at())
    }

    /// Whether no node runs, as far as the store knows. None can begin to while the store is being adopted.
    pub fn is_silent(&self) -> bool {
        self.image.nodes.is_empty() && self.image.controller.is_none()
    }

    /// Nobody has adopted the cluster since this was read.
    pub fn undecided(&self) -> Compare {
        self.same(keys::ADOPTED.to_owned())
    }

    /// Takes back what a node said, and writes down which directory it has. The revision of this is the life for its claim.
    /// None is done once a node lives: from here on none can begin to.
    pub fn begin_claim(&self, node: NodeId, known: &KnownNode) -> Transaction {
        let mut begun = Transaction::new().when(self.undecided()).when(self.same(keys::known(node)));
        begun.require(Compare::Created(keys::CONTROLLER.to_owned(), 0));
        for other in self.image.known.keys().take(KNOWN_COMPARED_MAX) {
            begun.require(Compare::Created(keys::node(*other), 0));
        }
        touched(begun).delete(keys::adopting(node)).put(keys::known(node), keys::encode_known(known))
    }

    /// The key is as it was read.
    fn same(&self, key: String) -> Compare {
        let revision = self.revisions.get(&key).copied().unwrap_or(0);
        Compare::Modified(key, revision)
    }

    /// The claim that a node made.
    pub fn claim(&self, node: NodeId) -> Option<&Claim> {
        self.claims.get(&node)
    }

    /// Nodes that have not said yet what they have, but for those that are gone for good.
    pub fn awaited(&self, without: &[NodeId]) -> BTreeSet<NodeId> {
        let known = self.image.known.keys().copied();
        let states = self.image.topics.values().flat_map(|topic| &topic.partitions);
        let stored = states.flat_map(|state| state.value.replicas.iter().copied());
        let topics = self.claims.values().flat_map(|claim| claim.topics.values());
        let heard = topics.flat_map(|topic| topic.partitions.iter().flat_map(|it| it.replicas.iter().copied()));
        let all: BTreeSet<NodeId> = known.chain(stored).chain(heard).collect();
        all.into_iter().filter(|node| !without.contains(node) && !self.claims.contains_key(node)).collect()
    }

    /// Decides for all partitions, by the claims there are.
    pub fn decide(&self, without: &[NodeId]) -> Decision {
        let mut decision = Decision::default();
        let chosen = self.chosen(without);
        decision.perhaps_deleted = self.perhaps_deleted(&chosen);
        decision.replaced = self.replaced(&chosen);
        // also above those that the backup knows nothing of
        let claimed = self.claims.values().map(|claim| claim.claimed.times).max().unwrap_or(0);
        let times = claimed.max(self.adopted.times + 1);
        let since_backup = i64::try_from(times - self.adopted.times).unwrap_or(i64::MAX);
        let mut batches = Batches { guards: self.guards(), transactions: Vec::new(), open: Transaction::new() };
        for topic in self.image.topics.values().filter(|topic| !chosen.values().any(|id| *id == topic.id)) {
            decision.taken_out.push(topic.name.clone());
            batches.add(self.same(keys::topic(topic.id)), Operation::DeletePrefix(keys::partitions(topic.id)));
            batches.add_also(Operation::Delete(keys::topic(topic.id)));
            batches.add_also(Operation::Delete(keys::name(&topic.name)));
        }
        batches.close();
        for id in chosen.values() {
            self.decide_topic(*id, (without, since_backup), &mut batches, &mut decision);
        }
        let skipped = PRODUCER_IDS_SKIPPED.saturating_mul(since_backup);
        let next = keys::encode_integer(self.image.producer_ids.value.saturating_add(skipped));
        batches.add(self.same(keys::PRODUCER_IDS.to_owned()), put(keys::PRODUCER_IDS.to_owned(), next));
        batches.close();
        let by = self.claims.iter().map(|(node, claim)| (*node, claim.member.epoch)).collect();
        // what it is known by when it is restored once more
        let ahead = self.ahead.map(|ahead| ahead.mark());
        let adopted = StoredAdopted { times, by, ahead };
        batches.add(self.undecided(), put(keys::ADOPTED.to_owned(), keys::write(&adopted)));
        batches.add_also(Operation::Delete(keys::ADOPTING.to_owned()));
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
        newest_first.sort_by_key(|claim| Reverse(claim.knows()));
        for (id, topic) in newest_first.iter().flat_map(|claim| &claim.topics) {
            chosen.entry(keys::name(&topic.name)).or_insert(*id);
        }
        if !without.is_empty() {
            for topic in self.image.topics.values() {
                chosen.entry(keys::name(&topic.name)).or_insert(topic.id);
            }
        }
        chosen
    }

    /// Topics that are kept though whoever heard of the former store last does not know them. Its directory may be too young
    /// for that to tell.
    fn perhaps_deleted(&self, chosen: &BTreeMap<String, TopicId>) -> Vec<String> {
        let last = self.claims.values().max_by_key(|claim| claim.knows());
        let unknown = chosen.values().filter(|id| last.is_some_and(|last| !last.topics.contains_key(*id)));
        unknown.map(|id| self.name_of(*id)).collect()
    }

    /// Topics that a node knows and that lose their name to another one: their records go.
    fn replaced(&self, chosen: &BTreeMap<String, TopicId>) -> Vec<String> {
        let claimed: BTreeSet<TopicId> = self.claims.values().flat_map(|claim| claim.topics.keys().copied()).collect();
        let lost = claimed.into_iter().filter(|id| !chosen.values().any(|kept| kept == id));
        lost.map(|id| format!("{} ({id})", self.name_of(id))).collect()
    }

    fn name_of(&self, id: TopicId) -> String {
        let claimed = || self.claims.values().find_map(|claim| Some(claim.topics.get(&id)?.name.clone()));
        let stored = self.image.topics.get(&id).map(|topic| topic.name.clone());
        stored.or_else(claimed).unwrap_or_default()
    }

    /// Nobody made a claim since or took one back, and no controller is left of before; so no node lives either, if none did.
    fn guards(&self) -> Vec<Compare> {
        vec![self.same(keys::ADOPTING.to_owned()), Compare::Created(keys::CONTROLLER.to_owned(), 0)]
    }

    fn decide_topic(
        &self,
        id: TopicId,
        (without, since_backup): (&[NodeId], i64),
        batches: &mut Batches,
        decision: &mut Decision,
    ) {
        let stored = self.image.topics.get(&id);
        // the best informed last
        let mut claims: Vec<_> = self.claims.values().collect();
        claims.sort_by_key(|claim| claim.knows());
        let claimed: Vec<(Member, &ClaimedTopic)> =
            claims.iter().filter_map(|claim| Some((claim.member, claim.topics.get(&id)?))).collect();
        let name = self.name_of(id);
        let known = stored.map_or(0, |topic| topic.expected);
        let count = claimed.iter().map(|(_, topic)| topic.partitions.len()).fold(known, usize::max);
        for at in 0..count {
            let index = i32::try_from(at).unwrap_or(i32::MAX);
            let held = self.partitions.get(&id).and_then(|partitions| partitions.get(&index));
            let claims = claimed.iter().filter_map(|(member, topic)| Some((*member, topic.partitions.get(at)?)));
            let claims: Vec<(Member, &ClaimedPartition)> = claims.collect();
            let Some(state) = decided(held, &claims, since_backup) else { continue };
            let partition = format!("{name}-{at}");
            if state.isr.is_empty() {
                decision.without_log.push(partition.clone());
            }
            let heard = claims.iter().flat_map(|(_, claimed)| &claimed.replicas);
            let is_missing = |node: &NodeId| without.contains(node) && !self.claims.contains_key(node);
            if held.iter().flat_map(|held| &held.replicas).chain(heard).any(is_missing) {
                decision.doubtful.push(partition);
            }
            let key = keys::partition(id, index);
            batches.add(self.same(key.clone()), put(key, keys::encode_partition(&state)));
        }
        if stored.is_none() {
            decision.brought_back.push(name.clone());
        }
        if stored.is_none_or(|topic| topic.expected != count) {
            let configs = stored.map(|topic| topic.configs.clone());
            let configs = configs.or_else(|| claimed.last().map(|(_, topic)| topic.configs.clone()));
            // whoever reads it finds its partitions
            batches.close();
            let (partitions, configs) = (i32::try_from(count).unwrap_or(i32::MAX), configs.unwrap_or_default());
            let value = StoredTopic { name: name.clone(), partitions, configs, forming: false };
            batches.add(self.same(keys::topic(id)), put(keys::topic(id), keys::encode_topic(&value)));
            batches.add_also(put(keys::name(&name), keys::encode_uuid(id)));
        }
    }
}

/// What becomes of a partition: the newest log is in sync, in an epoch that nobody heard of, and nobody leads yet. `None` if
/// nobody knows where it is. The adoption is the n-th since the backup.
fn decided(
    before: Option<&PartitionState>,
    claims: &[(Member, &ClaimedPartition)],
    since_backup: i64,
) -> Option<PartitionState> {
    let newest =
        claims.iter().map(|(_, claimed)| (claimed.leader_epoch, &claimed.replicas)).max_by_key(|(epoch, _)| *epoch);
    // of one epoch the store's counts: it is what all have heard, or decided by an adoption that was cut short
    let stored = before.map(|before| (before.leader_epoch, &before.replicas));
    let (_, replicas) = newest.into_iter().chain(stored).max_by_key(|(epoch, _)| *epoch)?;
    let mut replicas = replicas.clone();
    let logs: Vec<(Member, Extent)> = claims.iter().filter_map(|(member, it)| Some((*member, it.log?))).collect();
    for (member, _) in &logs {
        if !replicas.contains(&member.node) {
            replicas.push(member.node);
        }
    }
    if replicas.is_empty() {
        return None;
    }
    let best = logs.iter().map(|(_, extent)| *extent).max();
    let mut isr: Vec<Member> =
        logs.iter().filter(|(_, extent)| Some(*extent) == best).map(|(member, _)| *member).collect();
    isr.sort_by_key(|member| replicas.iter().position(|node| *node == member.node));
    let heard = claims.iter().map(|(_, claimed)| claimed.leader_epoch).max().unwrap_or(0);
    let logged = best.map_or(0, |best| best.last_epoch);
    let skipped = EPOCHS_SKIPPED.saturating_mul(i32::try_from(since_backup).unwrap_or(i32::MAX));
    let known = before.map_or(0, |before| before.leader_epoch).max(heard).max(logged);
    let leader_epoch = known.saturating_add(skipped);
    // if machines were restarted since the claims, nobody is in sync for sure, and who was lacks nothing that another one has
    let last_known_leader = isr.first().copied();
    Some(PartitionState {
        replicas,
        leader_epoch,
        isr,
        adding: Vec::new(),
        removing: Vec::new(),
        leader: None,
        elr: Vec::new(),
        last_known_leader,
        recovering: false,
        // what the restored store says of it is as old as the rest
        written: true,
        ..before.cloned().unwrap_or_default()
    })
}

/// It changes what is claimed: who decided by what was there before is refused, and so is who registers.
fn touched(transaction: Transaction) -> Transaction {
    transaction.put(keys::ADOPTING.to_owned(), keys::encode_integer(1))
}

fn parts_of(node: NodeId) -> String {
    format!("{CLAIMS}{node}/")
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
