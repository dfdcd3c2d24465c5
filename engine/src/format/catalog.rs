//! What the node knows of itself: its ids, topics and their settings, dynamic broker settings, how far producer ids
//! were given out, how partitions are laid out over shards. Pure: records and the state that they lead to.
//!
//! The catalog is a journal that shard 0 appends to; every record is durable before its effect is seen.

use std::collections::BTreeMap;

use uuid::Uuid;

pub(crate) use crate::format::journal::RECORD_BYTES_MAX;
use crate::{api::TopicId, format::journal::Payloads};

/// The format of the data directory; a node refuses one it does not know.
pub const FORMAT_VERSION: u32 = 1;

/// A topic as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTopic {
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Settings that differ from the defaults.
    pub overrides: BTreeMap<String, String>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// First record of every catalog.
    Node {
        /// [`FORMAT_VERSION`] of the writer.
        format: u32,
        /// The cluster's id.
        cluster_id: Uuid,
        /// The node's id.
        node_id: i32,
    },
    /// The node was started that often.
    Run(u64),
    /// Partitions are laid out over that many shards; the generation names the manifests.
    Layout {
        /// Counts layouts.
        generation: u64,
        /// Number of shards.
        shards: u32,
    },
    /// A topic was created or changed.
    Topic(TopicId, StoredTopic),
    /// A topic was deleted.
    Deleted(TopicId),
    /// Producer ids below this may have been given out.
    ProducerIds(i64),
    /// A dynamic broker setting; `None` is back to the default.
    Setting(String, Option<String>),
}

/// The state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The cluster's id.
    pub cluster_id: Uuid,
    /// The node's id.
    pub node_id: i32,
    /// How often the node was started.
    pub run: u64,
    /// Counts layouts.
    pub generation: u64,
    /// Shards of the layout; 0 before the first start.
    pub shards: u32,
    /// Topics by id.
    pub topics: BTreeMap<TopicId, StoredTopic>,
    /// The first producer id that was surely never given out.
    pub next_producer_id: i64,
    /// Dynamic broker settings.
    pub settings: BTreeMap<String, String>,
}

impl Catalog {
    /// Applies a record.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Node { cluster_id, node_id, .. } => (self.cluster_id, self.node_id) = (cluster_id, node_id),
            Record::Run(run) => self.run = run,
            Record::Layout { generation, shards } => (self.generation, self.shards) = (generation, shards),
            Record::Topic(id, topic) => drop(self.topics.insert(id, topic)),
            Record::Deleted(id) => drop(self.topics.remove(&id)),
            Record::ProducerIds(next) => self.next_producer_id = next,
            Record::Setting(key, Some(value)) => drop(self.settings.insert(key, value)),
            Record::Setting(key, None) => drop(self.settings.remove(&key)),
        }
    }

    /// The payloads of a journal that leads to this state.
    pub fn payloads(&self) -> Vec<Vec<u8>> {
        let mut out = Payloads::default();
        let mut push = |record: &Record| out.push(&encode(record));
        push(&Record::Node { format: FORMAT_VERSION, cluster_id: self.cluster_id, node_id: self.node_id });
        push(&Record::Run(self.run));
        push(&Record::Layout { generation: self.generation, shards: self.shards });
        push(&Record::ProducerIds(self.next_producer_id));
        for (id, topic) in &self.topics {
            push(&Record::Topic(*id, topic.clone()));
        }
        for (key, value) in &self.settings {
            push(&Record::Setting(key.clone(), Some(value.clone())));
        }
        out.finish()
    }
}

/// Encodes a record: a kind, then little-endian numbers, ids as 16 bytes, strings with a length of four bytes.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    match record {
        Record::Node { format, cluster_id, node_id } => {
            out.push(0);
            out.extend(format.to_le_bytes());
            out.extend(cluster_id.as_bytes());
            out.extend(node_id.to_le_bytes());
        }
        Record::Run(run) => {
            out.push(1);
            out.extend(run.to_le_bytes());
        }
        Record::Layout { generation, shards } => {
            out.push(2);
            out.extend(generation.to_le_bytes());
            out.extend(shards.to_le_bytes());
        }
        Record::Topic(id, topic) => {
            out.push(3);
            out.extend(id.as_bytes());
            put_string(&mut out, &topic.name);
            out.extend(topic.partitions.to_le_bytes());
            out.extend(u32::try_from(topic.overrides.len()).expect("settings are few").to_le_bytes());
            for (key, value) in &topic.overrides {
                put_string(&mut out, key);
                put_string(&mut out, value);
            }
        }
        Record::Deleted(id) => {
            out.push(4);
            out.extend(id.as_bytes());
        }
        Record::ProducerIds(next) => {
            out.push(5);
            out.extend(next.to_le_bytes());
        }
        Record::Setting(key, value) => {
            out.push(if value.is_some() { 6 } else { 7 });
            put_string(&mut out, key);
            value.iter().for_each(|value| put_string(&mut out, value));
        }
    }
    out
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend(u32::try_from(string.len()).expect("strings are bounded by their page").to_le_bytes());
    out.extend(string.as_bytes());
}

/// Decodes a record; `None` for bytes that no version of ours wrote.
pub fn decode(bytes: &[u8]) -> Option<Record> {
    let (kind, rest) = bytes.split_first()?;
    let mut reader = Reader(rest);
    let record = match kind {
        0 => Record::Node {
            format: u32::from_le_bytes(reader.take()?),
            cluster_id: Uuid::from_bytes(reader.take()?),
            node_id: i32::from_le_bytes(reader.take()?),
        },
        1 => Record::Run(u64::from_le_bytes(reader.take()?)),
        2 => Record::Layout {
            generation: u64::from_le_bytes(reader.take()?),
            shards: u32::from_le_bytes(reader.take()?),
        },
        3 => {
            let id = Uuid::from_bytes(reader.take()?);
            let name = reader.string()?;
            let partitions = i32::from_le_bytes(reader.take()?);
            let count = u32::from_le_bytes(reader.take()?);
            let mut overrides = BTreeMap::new();
            for _ in 0..count {
                overrides.insert(reader.string()?, reader.string()?);
            }
            Record::Topic(id, StoredTopic { name, partitions, overrides })
        }
        4 => Record::Deleted(Uuid::from_bytes(reader.take()?)),
        5 => Record::ProducerIds(i64::from_le_bytes(reader.take()?)),
        6 => Record::Setting(reader.string()?, Some(reader.string()?)),
        7 => Record::Setting(reader.string()?, None),
        _ => return None,
    };
    reader.0.is_empty().then_some(record)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn string(&mut self) -> Option<String> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(taken.to_vec()).ok()
    }
}
