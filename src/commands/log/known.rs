//! What the data folder around a dumped path knows of it: names of topics, and how much of each segment was promised to
//! be durable.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use millrace_engine::{
    api::TopicPartition,
    catalog::{self, Catalog},
    journal,
    manifest::{self, Manifest, PartitionState},
    segment::Segment,
};

use super::report::Report;
use crate::failure::Outcome;

/// Everything that could be read; what could not is missing, and is reported when its file is dumped.
#[derive(Debug, Default)]
pub(super) struct Known {
    data_dir: Option<PathBuf>,
    catalog: Catalog,
    partitions: BTreeMap<TopicPartition, PartitionState>,
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
        let catalog = read_catalog(&data_dir.join("catalog"));
        let mut known = Self { data_dir: Some(data_dir.to_owned()), catalog, ..Self::default() };
        for shard in 0..known.catalog.shards {
            let path = data_dir.join(format!("manifest-{}-{shard}", known.catalog.generation));
            let manifest = read_manifest(&path);
            known.run_ends.insert(shard, manifest.run_ends);
            known.partitions.extend(manifest.partitions);
        }
        known
    }

    /// The running broker that holds the folder, if there is one.
    pub(super) fn held_by(&self) -> Option<String> {
        millrace_tuning::storage::lock_holder(self.data_dir.as_ref()?)
    }

    /// A partition as people know it: by the topic's name, or its id when it was deleted.
    pub(super) fn name(&self, id: TopicPartition) -> String {
        match self.catalog.topics.get(&id.topic) {
            Some(topic) => format!("{}/{}", topic.name, id.partition),
            None => format!("{}/{}", id.topic, id.partition),
        }
    }

    /// What the manifest says of a segment file: the partition by its folders, the segment by its name.
    pub(super) fn segment(&self, path: &Path) -> Option<(TopicPartition, &Segment)> {
        let path = fs::canonicalize(path).ok()?;
        let inside = path.strip_prefix(self.data_dir.as_ref()?.join("topics")).ok()?;
        let mut parts = inside.iter().map(|part| part.to_str());
        let topic = parts.next()??.parse().ok()?;
        let partition = parts.next()??.parse().ok()?;
        let name = parts.next()??;
        let id = TopicPartition { topic, partition };
        let segment = self.partitions.get(&id)?.segments.iter().find(|segment| segment.name().file_name() == name)?;
        Some((id, segment))
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

fn read_catalog(path: &Path) -> Catalog {
    let mut catalog = Catalog::default();
    for record in journal_records(path) {
        if let Some(record) = catalog::decode(&record) {
            catalog.apply(record);
        }
    }
    catalog
}

fn read_manifest(path: &Path) -> Manifest {
    let mut manifest = Manifest::default();
    for record in journal_records(path) {
        if let Some((partition, record)) = manifest::decode(&record) {
            manifest.apply(partition, record);
        }
    }
    manifest
}

fn journal_records(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_default();
    let pages = journal::pages(&bytes).unwrap_or_default();
    pages.into_iter().filter_map(journal::records).flatten().map(<[u8]>::to_vec).collect()
}
