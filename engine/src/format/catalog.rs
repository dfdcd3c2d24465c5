//! What the node knows of itself: its ids, topics and their settings, dynamic broker settings, how far producer ids
//! were given out, how partitions are laid out over shards. Pure: records and the state that they lead to.
//!
//! The catalog is a journal that shard 0 appends to; every record is durable before its effect is seen.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use uuid::Uuid;

use super::{
    Refused,
    placement::{PlacedRun, Placement},
    unknown_kind,
};
pub(crate) use crate::format::journal::RECORD_BYTES_MAX;
use crate::{
    api::{TopicId, TopicPartition},
    format::journal::{self, Payloads},
};

/// The format of the data directory. A node reads older ones too, and refuses newer ones.
pub const FORMAT_VERSION: u32 = 2;

/// Features that this version knows: names that a catalog may have (FORMAT.md, section 11).
pub const FEATURES: &[&str] = &[REPLICATION, super::transactions::FEATURE];

/// The feature of a catalog with partitions on several nodes, or led in an epoch above 0.
pub const REPLICATION: &str = "replication";

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
    /// Something that older binaries do not know is in use from here on.
    Feature(String),
    /// Where partitions of a topic are.
    Placement {
        /// Whose.
        topic: TopicId,
        /// The first of them.
        first: u32,
        /// Those from there on.
        runs: Vec<PlacedRun>,
    },
}

/// The state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The format that it was read in; it is written in [`FORMAT_VERSION`].
    pub format: u32,
    /// Features in use.
    pub features: BTreeSet<String>,
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
    /// Where their partitions are.
    pub placements: BTreeMap<TopicId, Placement>,
    /// The first producer id that was surely never given out.
    pub next_producer_id: i64,
    /// Dynamic broker settings.
    pub settings: BTreeMap<String, String>,
}

/// The records that say where a topic's partitions are, each of bounded size.
fn placement_records(topic: TopicId, placement: &Placement) -> impl Iterator<Item = Record> {
    /// With more replicas than anybody has, they fit a page.
    const RUNS_MAX: usize = 4_096;
    let mut first = 0u32;
    placement.runs().chunks(RUNS_MAX).map(move |runs| {
        let record = Record::Placement { topic, first, runs: runs.to_vec() };
        first = runs.iter().map(|run| run.partitions).fold(first, u32::saturating_add);
        record
    })
}

impl Catalog {
    /// Applies a record.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Node { format, cluster_id, node_id } => {
                (self.format, self.cluster_id, self.node_id) = (format, cluster_id, node_id);
            }
            Record::Run(run) => self.run = run,
            Record::Layout { generation, shards } => (self.generation, self.shards) = (generation, shards),
            Record::Topic(id, topic) => {
                let partitions = u32::try_from(topic.partitions).unwrap_or(0);
                self.placements.entry(id).or_default().extend_alone(self.node_id, partitions);
                self.topics.insert(id, topic);
            }
            Record::Deleted(id) => {
                self.topics.remove(&id);
                self.placements.remove(&id);
            }
            Record::ProducerIds(next) => self.next_producer_id = next,
            Record::Setting(key, Some(value)) => drop(self.settings.insert(key, value)),
            Record::Setting(key, None) => drop(self.settings.remove(&key)),
            Record::Feature(name) => drop(self.features.insert(name)),
            Record::Placement { topic, first, runs } => {
                self.placements.entry(topic).or_default().place(first, &runs, self.node_id);
            }
        }
    }

    /// The partitions of a topic that are on this node.
    pub(crate) fn partitions_here(&self, topic: TopicId) -> impl Iterator<Item = TopicPartition> {
        self.placed_here(topic).map(|(partition, _)| partition)
    }

    /// The partitions of a topic that are on other nodes only.
    pub(crate) fn partitions_elsewhere(&self, topic: TopicId) -> impl Iterator<Item = TopicPartition> {
        let here: HashSet<TopicPartition> = self.partitions_here(topic).collect();
        let count = self.topics.get(&topic).map_or(0, |stored| stored.partitions);
        let all = (0..count).map(move |partition| TopicPartition { topic, partition });
        all.filter(move |partition| !here.contains(partition))
    }

    /// Those of all topics that are on other nodes too, or that others led: who leads them is for the cluster to say.
    pub(crate) fn replicated_here(&self) -> HashSet<TopicPartition> {
        let all = self.placements.keys().flat_map(|topic| self.placed_here(*topic));
        all.filter_map(|(partition, is_replicated)| is_replicated.then_some(partition)).collect()
    }

    fn placed_here(&self, topic: TopicId) -> impl Iterator<Item = (TopicPartition, bool)> {
        let placement = self.placements.get(&topic);
        placement.into_iter().flat_map(|placement| placement.on(self.node_id)).filter_map(move |(at, is_replicated)| {
            let partition = i32::try_from(at).ok()?;
            Some((TopicPartition { topic, partition }, is_replicated))
        })
    }

    /// Whether partitions of a topic are not on this node alone, in the first epoch.
    pub fn placed_elsewhere(&self, topic: TopicId) -> bool {
        self.placements.get(&topic).is_some_and(|placement| !placement.is_alone(self.node_id))
    }

    /// The records that create or change a topic. Partitions that it did not have before are on this node alone.
    pub(crate) fn topic_records(&self, id: TopicId, topic: &StoredTopic) -> Vec<Record> {
        let mut records = vec![Record::Topic(id, topic.clone())];
        let known = self.placements.get(&id).map_or(0, Placement::partitions);
        let all = u32::try_from(topic.partitions).unwrap_or(0);
        let new = all.checked_sub(known).filter(|new| *new > 0);
        records.extend(new.map(|new| {
            let runs = Placement::alone(self.node_id, new).runs().to_vec();
            Record::Placement { topic: id, first: known, runs }
        }));
        records
    }

    /// The records that say where a topic's partitions are, each of bounded size.
    fn placement_records(&self, topic: TopicId) -> impl Iterator<Item = Record> {
        self.placements.get(&topic).into_iter().flat_map(move |placement| placement_records(topic, placement))
    }

    /// The records that bring a topic to what a cluster says of it: none if it is that already. Where its partitions are
    /// comes first: cut short before the topic, the records mean nothing.
    pub(crate) fn reconciling_records(&self, id: TopicId, topic: &StoredTopic, placement: &Placement) -> Vec<Record> {
        let mut records = Vec::new();
        if self.placements.get(&id) != Some(placement) {
            records.extend(placement_records(id, placement));
        }
        if self.topics.get(&id) != Some(topic) {
            records.push(Record::Topic(id, topic.clone()));
        }
        records
    }

    /// The payloads of a journal that leads to this state.
    pub fn payloads(&self) -> Vec<Vec<u8>> {
        let mut out = Payloads::default();
        let mut push = |record: &Record| out.push(&encode(record));
        push(&Record::Node { format: FORMAT_VERSION, cluster_id: self.cluster_id, node_id: self.node_id });
        self.features.iter().for_each(|name| push(&Record::Feature(name.clone())));
        push(&Record::Run(self.run));
        push(&Record::Layout { generation: self.generation, shards: self.shards });
        push(&Record::ProducerIds(self.next_producer_id));
        for (id, topic) in &self.topics {
            push(&Record::Topic(*id, topic.clone()));
            self.placement_records(*id).for_each(|record| push(&record));
        }
        for (key, value) in &self.settings {
            push(&Record::Setting(key.clone(), Some(value.clone())));
        }
        out.finish()
    }
}

/// Why a catalog is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not what was written.
    Damaged(String),
    /// A version that knows more has written it.
    Newer(String),
}

/// A catalog that is being read. Give [`Reading::take`] its pages in order, then [`Reading::finish`].
#[derive(Default)]
pub(crate) struct Reading {
    catalog: Catalog,
    has_begun: bool,
    unknown_features: Vec<String>,
}

impl Reading {
    /// Takes a page's records.
    pub(crate) fn take(&mut self, page: &[u8]) -> Result<(), Fault> {
        let records = journal::records(page).ok_or_else(|| Fault::Damaged("a page of nonsense".to_owned()))?;
        records.into_iter().try_for_each(|record| self.take_record(record))
    }

    fn take_record(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let record = match decode(bytes) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            // What an unknown feature writes is unknown too; the other features shall be named as well.
            Err(_) if !self.unknown_features.is_empty() => return Ok(()),
            Err(refused) => return Err(Fault::Damaged(refused.to_string())),
        };
        match &record {
            Record::Node { format, .. } if !(1..=FORMAT_VERSION).contains(format) => {
                return Err(Fault::Newer(format!(
                    "written in format {format}, but this version reads formats 1 to {FORMAT_VERSION}"
                )));
            }
            Record::Node { .. } => self.has_begun = true,
            _ if !self.has_begun => {
                return Err(Fault::Damaged("it does not begin with the node's record".to_owned()));
            }
            Record::Feature(name) if !FEATURES.contains(&name.as_str()) => self.unknown_features.push(name.clone()),
            _ => {}
        }
        self.catalog.apply(record);
        Ok(())
    }

    /// The catalog, if this version understands all of it.
    pub(crate) fn finish(self) -> Result<Catalog, Fault> {
        let Self { catalog, has_begun, unknown_features } = self;
        if !has_begun {
            return Err(Fault::Damaged("it is empty".to_owned()));
        }
        if !unknown_features.is_empty() {
            let (names, word) = (unknown_features.join("', '"), if unknown_features.len() > 1 { "s" } else { "" });
            return Err(Fault::Newer(format!(
                "this folder uses the feature{word} '{names}', which this version does not know"
            )));
        }
        let is_in_use = catalog.features.contains(REPLICATION);
        match catalog.placements.keys().find(|topic| !is_in_use && catalog.placed_elsewhere(**topic)) {
            Some(topic) => Err(Fault::Damaged(format!(
                "topic {topic} is placed on other nodes or in another leader epoch, without the feature 'replication'"
            ))),
            None => Ok(catalog),
        }
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
        Record::Feature(name) => {
            out.push(8);
            put_string(&mut out, name);
        }
        Record::Placement { topic, first, runs } => {
            out.push(9);
            out.extend(topic.as_bytes());
            out.extend(first.to_le_bytes());
            out.extend(count(runs.len()).to_le_bytes());
            for run in runs {
                out.extend(run.partitions.to_le_bytes());
                out.extend(run.leader_epoch.to_le_bytes());
                out.extend(count(run.replicas.len()).to_le_bytes());
                run.replicas.iter().for_each(|node| out.extend(node.to_le_bytes()));
            }
        }
    }
    out
}

fn count(items: usize) -> u32 {
    u32::try_from(items).expect("records are bounded by their page")
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend(u32::try_from(string.len()).expect("strings are bounded by their page").to_le_bytes());
    out.extend(string.as_bytes());
}

/// Decodes a record; `None` is one that may be skipped.
///
/// # Errors
/// For bytes that this version does not understand, or that nobody writes.
pub fn decode(bytes: &[u8]) -> Result<Option<Record>, Refused> {
    match bytes.split_first() {
        Some((0..=9, _)) => decode_known(bytes).map(Some).ok_or(Refused::Nonsense),
        Some((other, _)) => unknown_kind(*other),
        None => Err(Refused::Nonsense),
    }
}

fn decode_known(bytes: &[u8]) -> Option<Record> {
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
        8 => Record::Feature(reader.string()?),
        9 => Record::Placement {
            topic: Uuid::from_bytes(reader.take()?),
            first: u32::from_le_bytes(reader.take()?),
            runs: reader.items(Reader::run)?,
        },
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

    fn run(&mut self) -> Option<PlacedRun> {
        Some(PlacedRun {
            partitions: u32::from_le_bytes(self.take()?),
            leader_epoch: i32::from_le_bytes(self.take()?),
            replicas: self.items(|reader| reader.take().map(i32::from_le_bytes))?,
        })
    }

    /// A count, and that many items.
    fn items<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = u32::from_le_bytes(self.take()?);
        (0..count).map(|_| item(self)).collect()
    }

    fn string(&mut self) -> Option<String> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(taken.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: TopicId = Uuid::from_u128(7);

    fn node(format: u32) -> Record {
        Record::Node { format, cluster_id: Uuid::from_u128(1), node_id: 4 }
    }

    /// What a start makes of a catalog of these records.
    fn read(records: &[Vec<u8>]) -> Result<Catalog, Fault> {
        let mut payloads = Payloads::default();
        records.iter().for_each(|record| payloads.push(record));
        let mut reading = Reading::default();
        payloads.finish().iter().try_for_each(|page| reading.take(page))?;
        reading.finish()
    }

    fn topic(partitions: i32) -> Record {
        Record::Topic(TOPIC, StoredTopic { name: "orders".to_owned(), partitions, overrides: BTreeMap::new() })
    }

    fn placed(first: u32, leader_epoch: i32, replicas: &[i32]) -> Record {
        let runs = vec![PlacedRun { partitions: 2, leader_epoch, replicas: replicas.to_vec() }];
        Record::Placement { topic: TOPIC, first, runs }
    }

    #[test]
    fn versions_that_are_not_known_are_refused() {
        for format in [0, FORMAT_VERSION + 1, u32::MAX] {
            let reason = format!("written in format {format}, but this version reads formats 1 to 2");
            // Whatever comes behind it.
            assert_eq!(read(&[encode(&node(format)), vec![99]]), Err(Fault::Newer(reason)));
        }
        for format in 1..=FORMAT_VERSION {
            assert_eq!(read(&[encode(&node(format))]).unwrap().format, format);
        }
    }

    #[test]
    fn unknown_features_are_refused_by_all_their_names() {
        let feature = |name: &str| encode(&Record::Feature(name.to_owned()));
        let records = [encode(&node(2)), feature("acl"), vec![16, 1, 2], encode(&Record::Run(3)), feature("tokens")];
        let reason = "this folder uses the features 'acl', 'tokens', which this version does not know";
        assert_eq!(read(&records), Err(Fault::Newer(reason.to_owned())));
        let reason = "this folder uses the feature 'acl', which this version does not know";
        assert_eq!(read(&records[..4]), Err(Fault::Newer(reason.to_owned())));
    }

    #[test]
    fn unknown_records_are_damage_unless_they_are_hints() {
        let with = |record: &[u8]| read(&[encode(&node(2)), record.to_vec(), encode(&Record::Run(3))]);
        assert_eq!(with(&[127, 1]), Err(Fault::Damaged("a record of an unknown kind, 127".to_owned())));
        assert_eq!(with(&[128, 1]).unwrap().run, 3);
        assert_eq!(with(&[]), Err(Fault::Damaged("a record of nonsense".to_owned())));
        assert_eq!(with(&[1, 0]), Err(Fault::Damaged("a record of nonsense".to_owned())));
    }

    #[test]
    fn every_partition_has_a_place() {
        let found = read(&[encode(&node(1)), encode(&topic(3))]).unwrap();
        assert_eq!(found.placements[&TOPIC], Placement::alone(4, 3), "version 1 knows one node");
        let mut grown = found.clone();
        grown.apply(topic(8));
        assert_eq!(grown.placements[&TOPIC].partitions(), 8);
        let pages = grown.payloads();
        let written = pages.iter().flat_map(|page| journal::records(page).unwrap()).map(<[u8]>::to_vec);
        let written: Vec<_> = written.collect();
        let again = read(&written).unwrap();
        assert_eq!(again, Catalog { format: FORMAT_VERSION, ..grown.clone() });
        grown.apply(Record::Deleted(TOPIC));
        assert!(grown.placements.is_empty());
    }

    #[test]
    fn partitions_of_other_nodes_and_epochs_are_refused() {
        for (place, is_served) in [
            (placed(1, 0, &[4]), true),
            (placed(1, 1, &[4]), false),
            (placed(1, 0, &[5]), false),
            (placed(1, 0, &[4, 5]), false),
            (placed(1, 0, &[]), false),
        ] {
            let found = read(&[encode(&node(2)), encode(&topic(3)), encode(&place)]);
            assert_eq!(found.is_ok(), is_served, "{place:?}: {found:?}");
        }
    }
}
