//! Keys of the store and the bytes of their values: JSON objects whose `v` is the version of their shape.
//!
//! A value of a later version is refused, never guessed at. Keys that nobody here knows are left alone.

use std::collections::BTreeMap;

use millrace_engine::api::TopicId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    change::Requirement,
    model::{Continued, Endpoint, Kept, KnownNode, Member, NodeId, NodeState, PartitionState, SettingKey},
    store::{Compare, KeyValue},
};

/// Version of all values that are written.
const VALUE_VERSION: u32 = 1;

/// The cluster's own key.
pub const CLUSTER: &str = "cluster";
/// The controller's key.
pub const CONTROLLER: &str = "controller";
/// Which of two nodes keeps the store, where one of them does.
pub const MIRROR: &str = "mirror";
/// The key of producer ids.
pub const PRODUCER_IDS: &str = "producer-ids";
/// There while the cluster is adopted, from the first node's claim on: no node registers.
pub const ADOPTING: &str = "adopting";
/// The key of adoptions that are done.
pub const ADOPTED: &str = "adopted";

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The cluster's id.
    Cluster,
    /// Who is controller.
    Controller,
    /// How far producer ids were given out.
    ProducerIds,
    /// Which of two nodes keeps the store.
    Mirror,
    /// A node that lives.
    Node(NodeId),
    /// A node that was ever there.
    Known(NodeId),
    /// A node that wants to leave.
    Draining(NodeId),
    /// A topic.
    Topic(TopicId),
    /// A topic's name.
    Name(String),
    /// A partition.
    Partition(TopicId, i32),
    /// A dynamic setting.
    Setting(SettingKey),
    /// A node that another one cannot reach: whom, and who says so.
    Report(NodeId, NodeId),
    /// Nodes say what they have, as the store was restored from a backup.
    AdoptingBegun,
    /// A node said what it has.
    Adopting(NodeId),
    /// Adoptions that are done.
    Adopted,
}

impl Key {
    /// What a key is about; `None` if nobody here knows.
    pub fn parse(key: &str) -> Option<Self> {
        let (kind, rest) = key.split_once('/').unwrap_or((key, ""));
        Some(match (kind, rest) {
            (CLUSTER, "") => Self::Cluster,
            (CONTROLLER, "") => Self::Controller,
            (PRODUCER_IDS, "") => Self::ProducerIds,
            (MIRROR, "") => Self::Mirror,
            (ADOPTING, "") => Self::AdoptingBegun,
            (ADOPTED, "") => Self::Adopted,
            ("nodes", id) => Self::Node(id.parse().ok()?),
            ("known", id) => Self::Known(id.parse().ok()?),
            ("draining", id) => Self::Draining(id.parse().ok()?),
            (ADOPTING, id) => Self::Adopting(id.parse().ok()?),
            ("topics", id) => Self::Topic(id.parse().ok()?),
            ("names", name) => Self::Name(name.to_owned()),
            ("partitions", rest) => {
                let (topic, partition) = rest.split_once('/')?;
                Self::Partition(topic.parse().ok()?, partition.parse().ok()?)
            }
            ("reports", rest) => {
                let (whom, by) = rest.split_once('/')?;
                Self::Report(whom.parse().ok()?, by.parse().ok()?)
            }
            ("settings", rest) => {
                let (whose, name) = rest.split_once('/')?;
                let node = if whose == "all" { None } else { Some(whose.parse().ok()?) };
                Self::Setting(SettingKey { node, name: name.to_owned() })
            }
            _ => return None,
        })
    }
}

/// `nodes/<id>`: there while the node lives, under its lease.
pub fn node(id: NodeId) -> String {
    format!("nodes/{id}")
}

/// `known/<id>`
pub fn known(id: NodeId) -> String {
    format!("known/{id}")
}

/// `draining/<id>`: under the node's lease.
pub fn draining(id: NodeId) -> String {
    format!("draining/{id}")
}

/// `adopting/<id>`: there until all nodes have one, and all is decided anew. More of it is below.
pub fn adopting(id: NodeId) -> String {
    format!("{ADOPTING}/{id}")
}

/// `topics/<uuid>`
pub fn topic(id: TopicId) -> String {
    format!("topics/{id}")
}

/// `names/<name>`, with '.' as '_': two topics may not differ in that alone, as Kafka's metrics could not tell them apart.
pub fn name(name: &str) -> String {
    format!("names/{}", name.replace('.', "_"))
}

/// What the keys of all partitions of a topic begin with.
pub fn partitions(topic: TopicId) -> String {
    format!("partitions/{topic}/")
}

/// `partitions/<uuid>/<index>`
pub fn partition(topic: TopicId, partition: i32) -> String {
    format!("partitions/{topic}/{partition}")
}

/// `settings/all/<name>` or `settings/<id>/<name>`
pub fn setting(key: &SettingKey) -> String {
    match key.node {
        None => format!("settings/all/{}", key.name),
        Some(node) => format!("settings/{node}/{}", key.name),
    }
}

/// What the keys of all reports about a node begin with.
pub fn reports(whom: NodeId) -> String {
    format!("reports/{whom}/")
}

/// `reports/<whom>/<by>`: the life of a node whose process refuses connections; under the lease of who says so.
pub fn report(whom: NodeId, by: NodeId) -> String {
    format!("reports/{whom}/{by}")
}

/// What the store compares for something that must still hold.
pub fn compares(requirement: Requirement) -> Vec<Compare> {
    match requirement {
        Requirement::Eligible(member) => vec![
            Compare::Created(node(member.node), member.epoch),
            // registering takes away what a former life left there
            Compare::Created(draining(member.node), 0),
        ],
        Requirement::Ended(member) => vec![Compare::NotCreated(node(member.node), member.epoch)],
    }
}

/// A value that this version does not understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A later version wrote it.
    #[error("{key} was written by a later version of millrace (shape {version}): start that version here too")]
    Later {
        /// Where it stands.
        key: String,
        /// Version of its shape.
        version: u32,
    },
    /// It is none of ours.
    #[error("{key} is damaged: {reason}")]
    Damaged {
        /// Where it stands.
        key: String,
        /// What the decoder said.
        reason: String,
    },
}

/// A topic as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTopic {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: i32,
    /// Settings that differ from the defaults.
    pub configs: BTreeMap<String, String>,
    /// It is not there yet: its partitions are still being written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forming: bool,
}

/// Which of two nodes keeps the store and leads, until a person says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMirror {
    /// That node.
    pub leader: NodeId,
    /// How often it was another one before.
    pub term: u64,
    /// What a person said had been done to the one before.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fenced: String,
}

/// Adoptions of restored stores that are done, and by what the next restore is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAdopted {
    /// How many.
    pub times: u64,
    /// Who took part in the last one, and the lives that their next ones continue.
    pub by: BTreeMap<NodeId, i64>,
    /// How far the store's revisions are ahead of its Raft log at most, until it is restored: see [`super::restored`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<i64>,
}

/// A key's value, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The cluster's id.
    Cluster(Uuid),
    /// The controller.
    Controller(NodeId),
    /// The first producer id that was never given out.
    ProducerIds(i64),
    /// Which of two nodes keeps the store.
    Mirror(StoredMirror),
    /// A node that lives; its epoch is the key's.
    Node(NodeState),
    /// A node that was ever there.
    Known(NodeId, KnownNode),
    /// The life of a node that wants to leave.
    Draining(NodeId, i64),
    /// A topic.
    Topic(TopicId, StoredTopic),
    /// The topic of that name.
    Name(String, TopicId),
    /// A partition.
    Partition(TopicId, i32, PartitionState),
    /// A setting's value.
    Setting(SettingKey, String),
    /// The life of a node that another one cannot reach, and who says so.
    Report(Member, NodeId),
    /// Nodes say what they have.
    AdoptingBegun,
    /// A node that said what it has.
    Adopting(NodeId),
    /// Adoptions that are done.
    Adopted(StoredAdopted),
}

/// Understands a key and its value; `None` for keys that nobody here knows.
pub fn decode(entry: &KeyValue) -> Result<Option<Entry>, ValueError> {
    let Some(key) = Key::parse(&entry.key) else { return Ok(None) };
    let (at, value) = (entry.key.as_str(), entry.value.as_slice());
    Ok(Some(match key {
        Key::Cluster => Entry::Cluster(read_uuid(at, value)?),
        Key::Controller => Entry::Controller(read(at, value)?),
        Key::ProducerIds => Entry::ProducerIds(read(at, value)?),
        Key::Mirror => Entry::Mirror(read(at, value)?),
        Key::Node(id) => Entry::Node(read::<StoredNode>(at, value)?.into_state(id, entry.created)),
        Key::Known(id) => {
            let StoredKnown { directory, rack } = read(at, value)?;
            Entry::Known(id, KnownNode { directory, rack, since: entry.modified })
        }
        Key::Draining(id) => Entry::Draining(id, read(at, value)?),
        Key::Topic(id) => Entry::Topic(id, read(at, value)?),
        Key::Name(name) => Entry::Name(name, read_uuid(at, value)?),
        Key::Partition(topic, index) => {
            Entry::Partition(topic, index, read::<StoredPartition>(at, value)?.into_state())
        }
        Key::Setting(setting) => Entry::Setting(setting, read(at, value)?),
        Key::Report(node, by) => Entry::Report(Member { node, epoch: read(at, value)? }, by),
        Key::Adopted => Entry::Adopted(read(at, value)?),
        Key::AdoptingBegun => Entry::AdoptingBegun,
        // what it has is for who decides: see [`super::adoption`]
        Key::Adopting(id) => Entry::Adopting(id),
    }))
}

/// The bytes of a node id, an epoch, or how far producer ids were given out.
pub fn encode_integer(value: i64) -> Vec<u8> {
    write(&value)
}

/// The bytes of an id: the cluster's, a topic's under its name, a known node's directory.
pub fn encode_uuid(id: Uuid) -> Vec<u8> {
    write(&id.to_string())
}

/// The bytes of what is remembered of a node. The revision is not among them.
pub fn encode_known(known: &KnownNode) -> Vec<u8> {
    write(&StoredKnown { directory: known.directory, rack: known.rack.clone() })
}

/// The bytes of who keeps the store.
pub fn encode_mirror(mirror: &StoredMirror) -> Vec<u8> {
    write(mirror)
}

/// The bytes of a setting.
pub fn encode_setting(value: &str) -> Vec<u8> {
    write(value)
}

/// The bytes of a topic.
pub fn encode_topic(topic: &StoredTopic) -> Vec<u8> {
    write(topic)
}

/// The bytes of a node. Its epoch is not among them.
pub fn encode_node(node: &NodeState) -> Vec<u8> {
    write(&StoredNode::of(node))
}

/// The bytes of a partition's state.
pub fn encode_partition(state: &PartitionState) -> Vec<u8> {
    write(&StoredPartition::of(state))
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    d: T,
}

pub(super) fn write<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let envelope = Envelope { v: VALUE_VERSION, d: value };
    serde_json::to_vec(&envelope).expect("maps with text as keys and numbers can always be written")
}

pub(super) fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, ValueError> {
    let damaged = |error: serde_json::Error| ValueError::Damaged { key: key.to_owned(), reason: error.to_string() };
    let version = serde_json::from_slice::<Version>(value).map_err(damaged)?.v;
    if version > VALUE_VERSION {
        return Err(ValueError::Later { key: key.to_owned(), version });
    }
    Ok(serde_json::from_slice::<Envelope<T>>(value).map_err(damaged)?.d)
}

fn read_uuid(key: &str, value: &[u8]) -> Result<Uuid, ValueError> {
    let text = read::<String>(key, value)?;
    text.parse().map_err(|error: uuid::Error| ValueError::Damaged { key: key.to_owned(), reason: error.to_string() })
}

/// Ids inside values are text, as they are in keys.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(id: &Uuid, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
        String::deserialize(from)?.parse().map_err(Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
struct StoredKnown {
    #[serde(with = "text")]
    directory: Uuid,
    rack: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredNode {
    #[serde(with = "text")]
    incarnation: Uuid,
    #[serde(with = "text")]
    directory: Uuid,
    machine: String,
    rack: Option<String>,
    endpoints: Vec<(String, String, u16)>,
    peer: String,
    shards: u32,
    version: String,
    /// Epoch of the life before, and whether only the process ended since.
    continues: Option<(i64, bool)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    defaults: Option<BTreeMap<String, String>>,
}

impl StoredNode {
    fn of(node: &NodeState) -> Self {
        let endpoints = node.endpoints.iter();
        Self {
            incarnation: node.incarnation,
            directory: node.directory,
            machine: node.machine.clone(),
            rack: node.rack.clone(),
            endpoints: endpoints.map(|one| (one.listener.clone(), one.host.clone(), one.port)).collect(),
            peer: node.peer.clone(),
            shards: node.shards,
            version: node.version.clone(),
            continues: node.continues.map(|before| (before.epoch, before.kept == Kept::Written)),
            defaults: node.defaults.clone(),
        }
    }

    fn into_state(self, id: NodeId, epoch: i64) -> NodeState {
        let endpoints = self.endpoints.into_iter();
        NodeState {
            id,
            epoch,
            incarnation: self.incarnation,
            directory: self.directory,
            machine: self.machine,
            rack: self.rack,
            endpoints: endpoints.map(|(listener, host, port)| Endpoint { listener, host, port }).collect(),
            peer: self.peer,
            shards: self.shards,
            version: self.version,
            continues: self.continues.map(|(epoch, written)| {
                let kept = if written { Kept::Written } else { Kept::Flushed };
                Continued { epoch, kept }
            }),
            defaults: self.defaults,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredPartition {
    replicas: Vec<NodeId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    adding: Vec<NodeId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    removing: Vec<NodeId>,
    leader: Option<(NodeId, i64)>,
    epoch: i32,
    isr: Vec<(NodeId, i64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    elr: Vec<(NodeId, i64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<(NodeId, i64)>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    recovering: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    few: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    written: bool,
}

fn pair(member: Member) -> (NodeId, i64) {
    (member.node, member.epoch)
}

fn member((node, epoch): (NodeId, i64)) -> Member {
    Member { node, epoch }
}

impl StoredPartition {
    fn of(state: &PartitionState) -> Self {
        Self {
            replicas: state.replicas.clone(),
            adding: state.adding.clone(),
            removing: state.removing.clone(),
            leader: state.leader.map(pair),
            epoch: state.leader_epoch,
            isr: state.isr.iter().copied().map(pair).collect(),
            elr: state.elr.iter().copied().map(pair).collect(),
            last: state.last_known_leader.map(pair),
            recovering: state.recovering,
            few: state.kept_few,
            written: state.written,
        }
    }

    fn into_state(self) -> PartitionState {
        PartitionState {
            replicas: self.replicas,
            adding: self.adding,
            removing: self.removing,
            leader: self.leader.map(member),
            leader_epoch: self.epoch,
            isr: self.isr.into_iter().map(member).collect(),
            elr: self.elr.into_iter().map(member).collect(),
            last_known_leader: self.last.map(member),
            recovering: self.recovering,
            kept_few: self.few,
            written: self.written,
        }
    }
}

#[cfg(test)]
mod tests;
