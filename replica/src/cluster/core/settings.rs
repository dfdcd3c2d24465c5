//! What a core is made with, and what it asks of the store.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use super::Ids;
use crate::cluster::{
    keys::{self, StoredAdopted, ValueError},
    model::{Continued, Endpoint, NodeId},
    restored::{Ahead, Mark, Remembered},
    store::{KeyValue, LeaseId, Transaction},
};

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its id.
    pub id: NodeId,
    /// Of the data directory.
    pub directory: Uuid,
    /// Of the machine, and of the directory on it: two processes with the same value here and the same directory's id cannot
    /// both hold the directory's lock.
    pub machine: String,
    /// broker.rack
    pub rack: Option<String>,
    /// Where clients find it.
    pub endpoints: Vec<Endpoint>,
    /// Where other nodes find it.
    pub peer: String,
    /// Shards of its layout.
    pub shards: u32,
    /// Its software.
    pub version: String,
    /// The life before, if nothing was lost since.
    pub continues: Option<Continued>,
}

/// Which cluster a node may be a member of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterIdentity {
    /// That one alone: its data is that cluster's. It founds it, if nobody did.
    Fixed(Uuid),
    /// Any; one with that id is founded if there is none.
    Any(Uuid),
}

/// Whose the store's history is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// The controller compacts it.
    Ours,
    /// Somebody else looks after it.
    Others,
}

/// How leaders go back to where they belong by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebalance {
    /// How often it is looked for some: leader.imbalance.check.interval.seconds. None: auto.leader.rebalance.enable is false.
    pub every: Option<Duration>,
    /// Of the partitions that belong to a node, so many in a hundred may be led by others: leader.imbalance.per.broker.percentage.
    pub percent_max: u32,
}

impl Default for Rebalance {
    /// Kafka's, whose controllers have known no such share since ZooKeeper left.
    fn default() -> Self {
        Self { every: Some(Duration::from_secs(300)), percent_max: 0 }
    }
}

/// What a core is made with.
pub struct Options {
    /// Who this node is.
    pub node: NodeIdentity,
    /// Which cluster.
    pub cluster: ClusterIdentity,
    /// What was seen of the store before.
    pub remembered: Option<Remembered>,
    /// Of how many adoptions of the cluster the node's last life knew; none of one that had no life in it.
    pub adoptions_known: Option<u64>,
    /// Defaults of topics that this node was started with, by topic setting name.
    pub topic_defaults: BTreeMap<String, String>,
    /// How long a life lasts without being kept alive.
    pub lease: Duration,
    /// How long the store may be away before the node is told.
    pub away_after: Duration,
    /// Whose the store's history is.
    pub history: History,
    /// What a controller does about leaders that are not where they belong.
    pub rebalance: Rebalance,
    /// Topics that coordinators keep their state in, and how many replicas a controller gives each of their partitions, once
    /// there are as many nodes; `offsets.topic.replication.factor` and the like.
    pub wanted_replicas: BTreeMap<String, usize>,
    /// Ids that were never used: topics', and one for each life.
    pub ids: Ids,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Options").field("node", &self.node).field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// All keys at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which store.
    pub identity: u64,
    /// The revision.
    pub revision: i64,
    /// How far that is ahead of its Raft log, if it tells.
    pub ahead: Option<Ahead>,
    /// The keys.
    pub entries: Vec<KeyValue>,
}

impl Snapshot {
    /// What was written down for the next restore to be known by.
    pub(super) fn mark(&self) -> Result<Mark, ValueError> {
        let Some(entry) = self.entry(keys::ADOPTED) else { return Ok(Mark::default()) };
        let StoredAdopted { ahead, .. } = keys::read(&entry.key, &entry.value)?;
        Ok(Mark { ahead, since: entry.modified })
    }

    /// Whether nodes say what they have, as the store was restored.
    pub(super) fn is_being_adopted(&self) -> bool {
        self.entry(keys::ADOPTING).is_some()
    }

    fn entry(&self, key: &str) -> Option<&KeyValue> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// What the store is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// All keys, in pages at the revision of the first page, and the store's identity.
    ReadAll,
    /// A watch from that revision on, in place of the one before. What it brings is told with this number.
    Watch(u64, i64),
    /// A lease.
    Grant(Duration),
    /// A lease to go on.
    KeepAlive(LeaseId),
    /// A lease to end.
    Revoke(LeaseId),
    /// A transaction, answered with this number.
    Transact(u64, Transaction, Order),
    /// History to be forgotten before that revision.
    Compact(i64),
}

/// When a transaction is done, as far as others are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// After those that were handed out before.
    Kept,
    /// Beside others, several at once: it compares all that it rests on, and is decided anew if that has changed. So nobody waits
    /// for a fence or an election because of topics that somebody creates.
    Free,
}

/// What is done in order, beside the others; but for [`Lane::Aside`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Leases: nothing may hold them up.
    Leases,
    /// Transactions.
    Transactions,
    /// Transactions that wait for no others.
    Aside,
    /// Reading all, and beginning to watch.
    Reading,
}

impl Work {
    /// Where it is done.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Grant(_) | Self::KeepAlive(_) | Self::Revoke(_) => Lane::Leases,
            Self::Transact(_, _, Order::Kept) | Self::Compact(_) => Lane::Transactions,
            Self::Transact(_, _, Order::Free) => Lane::Aside,
            Self::ReadAll | Self::Watch(..) => Lane::Reading,
        }
    }
}
