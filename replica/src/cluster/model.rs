//! What the cluster knows: nodes, topics, partitions. Plain data; decisions about it are in [`super::change`].

use std::{collections::BTreeMap, sync::Arc};

use millrace_engine::{api::TopicId, config::Durability};
use uuid::Uuid;

use super::restored::Mark;

/// A node's id: Kafka's broker id, not negative.
pub type NodeId = i32;

/// One life of a node in the cluster. What was promised to one life is not owed to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Whose.
    pub node: NodeId,
    /// Kafka's broker epoch: the revision that created the node's key.
    pub epoch: i64,
}

/// A value of the store and when it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versioned<T> {
    /// What was written.
    pub value: T,
    /// Revision of the last write. A change names it, and fails if there was another since.
    pub revision: i64,
    /// How often the key was written since it was created: of a partition, Kafka's partition epoch counted from 1.
    pub version: i64,
}

impl<T> Versioned<T> {
    /// Kafka's partition epoch: 0 at creation, one more with every change.
    pub fn partition_epoch(&self) -> i32 {
        i32::try_from(self.version - 1).unwrap_or(i32::MAX).max(0)
    }
}

/// Who has a partition, who leads it, and who may lead it next.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PartitionState {
    /// Nodes that have it or shall have it, the preferred leader first. Never empty, no node twice.
    pub replicas: Vec<NodeId>,
    /// Those of `replicas` that a reassignment adds.
    pub adding: Vec<NodeId>,
    /// Those of `replicas` that a reassignment takes away.
    pub removing: Vec<NodeId>,
    /// Who leads it, if anybody.
    pub leader: Option<Member>,
    /// One more with every change of the leader, and with a reassignment that takes a replica away.
    pub leader_epoch: i32,
    /// Kafka's ISR: those that have every record below the high watermark. Empty only while nobody leads.
    pub isr: Vec<Member>,
    /// Eligible leader replicas (KIP-966): left the ISR while it was too small for the high watermark to move. Disjoint
    /// from `isr`; empty whenever that has `min.insync.replicas` members.
    pub elr: Vec<Member>,
    /// Who led last, while nobody leads.
    pub last_known_leader: Option<Member>,
    /// The leader was not in sync when it was elected, and has not said yet that its log is in order (KIP-704).
    pub recovering: bool,
    /// Somebody gave it fewer replicas than it had: it is given none that nobody asks for.
    pub kept_few: bool,
    /// Records may be acknowledged, or may have been, before members that are promised to have them flushed them. Whoever does
    /// that sees it here first; a leader takes it back once nothing of the kind is left. What the topic asks for now may be
    /// another thing by then.
    pub written: bool,
}

impl PartitionState {
    /// A new partition's, with all replicas in sync. The first leads; the caller knows that they all live.
    pub fn new(members: &[Member]) -> Self {
        Self {
            replicas: members.iter().map(|member| member.node).collect(),
            leader: members.first().copied(),
            isr: members.to_vec(),
            ..Self::default()
        }
    }

    /// What a member must have kept of its life before to be that member still.
    pub fn trust(&self, rules: &TopicRules) -> Durability {
        if self.written { Durability::Written } else { rules.durability }
    }

    /// The ISR's entry of a node.
    pub fn in_sync(&self, node: NodeId) -> Option<Member> {
        self.isr.iter().copied().find(|member| member.node == node)
    }

    /// The replicas that are left once a reassignment under way is complete; all of them if there is none.
    pub fn target_replicas(&self) -> Vec<NodeId> {
        self.replicas.iter().copied().filter(|node| !self.removing.contains(node)).collect()
    }

    /// Whether a reassignment is under way.
    pub fn is_reassigning(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }
}

/// Where clients find a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name of the listener.
    pub listener: String,
    /// Host name or address, as told to clients.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// What a restarted node kept of the life before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All that it had: only the process ended.
    Written,
    /// What was flushed: the machine may have lost the rest, so topics that acknowledge before that are not continued.
    Flushed,
}

/// The life that a node's present one continues, because its log lost nothing in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continued {
    /// Epoch of the life before.
    pub epoch: i64,
    /// What is left of it.
    pub kept: Kept,
}

/// A node, as it wrote itself down when it registered. Never changed while it lives; anything new is a new life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Its id.
    pub id: NodeId,
    /// The revision that created its key. Not part of what is written.
    pub epoch: i64,
    /// One per start of the process.
    pub incarnation: Uuid,
    /// Of the data directory: another one is another log.
    pub directory: Uuid,
    /// Of the machine: what a data directory's lock was taken on.
    pub machine: String,
    /// broker.rack
    pub rack: Option<String>,
    /// Where clients find it.
    pub endpoints: Vec<Endpoint>,
    /// Where other nodes find it: host and port of the channel.
    pub peer: String,
    /// Shards that its partitions are laid out over.
    pub shards: u32,
    /// Version of its software.
    pub version: String,
    /// The life before, if nothing was lost since.
    pub continues: Option<Continued>,
    /// Defaults of topics that it was started with and that decisions look at, by topic setting name. None: its software does
    /// not say.
    pub defaults: Option<BTreeMap<String, String>>,
}

impl NodeState {
    /// Its present life.
    pub fn member(&self) -> Member {
        Member { node: self.id, epoch: self.epoch }
    }
}

/// Adoptions of the cluster, and by what the next restore of its store is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// How many there were.
    pub times: u64,
    /// Who took part in the last one, and the lives that their next ones continue.
    pub by: BTreeMap<NodeId, i64>,
    /// What the store may be told by.
    pub mark: Mark,
}

/// What is remembered of a node whether or not it lives. Written only by a life with another directory or rack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownNode {
    /// Its data directory.
    pub directory: Uuid,
    /// broker.rack
    pub rack: Option<String>,
    /// Revision since which it surely has that directory. Not part of what is written.
    pub since: i64,
}

/// Whose setting, and which.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SettingKey {
    /// One node's, or the default of all.
    pub node: Option<NodeId>,
    /// Kafka's name of it.
    pub name: String,
}

/// What a topic's own settings mean for decisions about its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicRules {
    /// min.insync.replicas, at least 1.
    pub min_isr: usize,
    /// unclean.leader.election.enable
    pub unclean: UncleanElection,
    /// What an acknowledgement waits for on each replica.
    pub durability: Durability,
}

impl Default for TopicRules {
    fn default() -> Self {
        Self { min_isr: 1, unclean: UncleanElection::Never, durability: Durability::Device }
    }
}

/// Whether a replica that may lack acknowledged records may become leader without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UncleanElection {
    /// Only if a person asks.
    Never,
    /// When there is no other way.
    WhenNeeded,
}

/// A partition as an image holds it.
pub type Partition = Arc<Versioned<PartitionState>>;

/// A topic.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicState {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Its partitions by index.
    pub partitions: Vec<Partition>,
    /// How many it has by its own key. More than `partitions` only if somebody else deleted keys in the store.
    pub expected: usize,
    /// Settings that differ from the defaults.
    pub configs: BTreeMap<String, String>,
    /// What they mean here, over the defaults of the image's reader.
    pub rules: TopicRules,
    /// Revision of the last write of the topic's own key.
    pub revision: i64,
}
