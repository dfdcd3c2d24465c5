//! What the data folder around a dumped path knows of it: names of topics, and how much of each segment was promised to
//! be durable.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use millrace_engine::{
    api::TopicPartition,
    format::{
        catalog::{self, Catalog},
        journal,
        manifest::{self, Manifest, PartitionState},
        segment::SegmentName,
    },
    node::{LockHolder, lock_holder},
};

use super::{
    report::Report,
    standing::{self, FatRun},
};
use crate::failure::Outcome;

/// Everything that could be read; what could not is missing, and is reported when its file is dumped.
#[derive(Debug, Default)]
pub(super) struct Known {
    data_dir: Option<PathBuf>,
    catalog: Catalog,
    partitions: BTreeMap<TopicPartition, PartitionState>,
    is_whole: bool,
    pointed: OnceCell<Option<HashMap<TopicPartition, Vec<FatRun>>>>,
    /// The ends of runs, by shard.
    run_ends: HashMap<u32, BTreeMap<u64, u64>>,
}

impl Known {
    /// Looks for the data folder that a path lies in, the path itself included.
    pub(super) fn around(path: &Path) -> Self {
        let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let found = absolute.ancestors().find(|folder| folder.join("catalog").is_file());
        found.map(Self::of).unwrap_or_default()
    }

    fn of(data_dir: &Path) -> Self {
        let (catalog, is_whole) = read_catalog(&data_dir.join("catalog"));
        let mut known = Self { data_dir: Some(data_dir.to_owned()), catalog, is_whole, ..Self::default() };
        for shard in 0..known.catalog.shards {
            let path = data_dir.join(format!("manifest-{}-{shard}", known.catalog.generation));
            let (manifest, is_whole) = read_manifest(&path);
            known.is_whole &= is_whole;
            known.run_ends.insert(shard, manifest.run_ends);
            known.partitions.extend(manifest.partitions);
        }
        known
    }

    /// Who holds the folder, if anybody does.
    pub(super) fn held_by(&self) -> Option<LockHolder> {
        lock_holder(self.data_dir.as_ref()?)
    }

    /// A partition as people know it: by the topic's name, or its id when it was deleted.
    pub(super) fn name(&self, id: TopicPartition) -> String {
        match self.catalog.topics.get(&id.topic) {
            Some(topic) => format!("{}/{}", topic.name, id.partition),
            None => format!("{}/{}", id.topic, id.partition),
        }
    }

    /// The name of a partition's topic, if it was not deleted.
    pub(super) fn topic(&self, id: TopicPartition) -> Option<&str> {
        self.catalog.topics.get(&id.topic).map(|topic| &*topic.name)
    }

    /// The partition that a segment file is of by its folders, and the file's name.
    pub(super) fn place(&self, path: &Path) -> Option<(TopicPartition, SegmentName)> {
        let path = fs::canonicalize(path).ok()?;
        let inside = path.strip_prefix(self.data_dir.as_ref()?.join("topics")).ok()?;
        let mut parts = inside.iter().map(|part| part.to_str());
        let topic = parts.next()??.parse().ok()?;
        let partition = parts.next()??.parse().ok()?;
        let name = SegmentName::of_file(parts.next()??)?;
        Some((TopicPartition { topic, partition }, name))
    }

    /// What the manifests say of a partition.
    pub(super) fn partition(&self, id: TopicPartition) -> Option<&PartitionState> {
        self.partitions.get(&id)
    }

    /// Whether the catalog has a partition's topic.
    pub(super) fn has_topic(&self, id: TopicPartition) -> bool {
        self.catalog.topics.contains_key(&id.topic)
    }

    /// Whether catalog and manifests could be read to their ends: what they do not say is so then.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Where the shared logs have records in files that no manifest knows; looked for when first asked. `None`: one is damaged.
    pub(super) fn pointed(&self) -> Option<&HashMap<TopicPartition, Vec<FatRun>>> {
        let look = || standing::pointed(self.data_dir.as_ref()?, self.catalog.shards, self);
        self.pointed.get_or_init(look).as_ref()
    }

    /// The last group that counts in a run of a shard.
    pub(super) fn run_limit(&self, shard: u32, run: u64) -> u64 {
        self.run_ends.get(&shard).map_or(u64::MAX, |run_ends| manifest::run_limit(run_ends, run))
    }

    /// Whether the shared log holds something of a partition that is in no segment yet.
    pub(super) fn needs(&self, id: TopicPartition, end_offset: i64) -> bool {
        self.catalog.topics.contains_key(&id.topic)
            && self.partitions.get(&id).is_none_or(|state| state.end_offset() < end_offset)
    }

    /// Reports what should be below `folder` and is not: catalog, manifests, and segments that a manifest knows.
    pub(super) fn check_files_exist(&self, folder: &Path, report: &mut Report) -> Outcome {
        let Ok(folder) = fs::canonicalize(folder) else { return Ok(()) };
        let Some(data_dir) = &self.data_dir else {
            if folder.join("wal-0").is_dir() {
                report.begin(&folder.join("catalog"))?;
                report.damage("it is missing: nothing else has a meaning without it")?;
            }
            return Ok(());
        };
        for shard in 0..self.catalog.shards {
            let path = data_dir.join(format!("manifest-{}-{shard}", self.catalog.generation));
            if path.starts_with(&folder) && !path.exists() {
                report.begin(&path)?;
                report.damage("it is missing: nobody knows what is in the segments of this shard")?;
            }
        }
        for (id, state) in &self.partitions {
            let own = data_dir.join("topics").join(id.topic.to_string()).join(id.partition.to_string());
            for segment in state.segments.iter().filter(|segment| segment.size > 0) {
                let path = own.join(segment.name().file_name());
                if path.starts_with(&folder) && self.catalog.topics.contains_key(&id.topic) && !path.exists() {
                    report.begin(&path)?;
                    let (name, end) = (self.name(*id), segment.end_offset);
                    report.damage(format!("{name}: offsets {}..{end} are missing", segment.base_offset))?;
                }
            }
        }
        Ok(())
    }
}

/// A catalog, and whether all of it could be read.
fn read_catalog(path: &Path) -> (Catalog, bool) {
    let mut catalog = Catalog::default();
    let (records, mut is_whole) = journal_records(path);
    for record in records {
        match catalog::decode(&record) {
            Ok(Some(record)) => catalog.apply(record),
            Ok(None) => {}
            Err(_) => is_whole = false,
        }
    }
    (catalog, is_whole)
}

/// A manifest, and whether all of it could be read.
fn read_manifest(path: &Path) -> (Manifest, bool) {
    let mut manifest = Manifest::default();
    let (records, mut is_whole) = journal_records(path);
    for record in records {
        match manifest::decode(&record) {
            Ok(Some((partition, record))) => manifest.apply(partition, record),
            Ok(None) => {}
            Err(_) => is_whole = false,
        }
    }
    (manifest, is_whole)
}

/// The records of a journal that can be read, and whether these are all.
fn journal_records(path: &Path) -> (Vec<Vec<u8>>, bool) {
    let Ok(bytes) = fs::read(path) else { return (Vec::new(), false) };
    let Ok(pages) = journal::pages(&bytes) else { return (Vec::new(), false) };
    // A last page may be torn, which nobody was promised; a first one was there before anything else.
    let has_begun = !pages.is_empty() || bytes.iter().all(|byte| *byte == 0);
    let found: Vec<_> = pages.into_iter().map(journal::records).collect();
    let is_whole = has_begun && found.iter().all(Option::is_some);
    (found.into_iter().flatten().flatten().map(<[u8]>::to_vec).collect(), is_whole)
}
