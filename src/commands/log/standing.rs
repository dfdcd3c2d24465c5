//! Whose a segment file is: a partition's, the shared log's that points into it, or nobody's any more.
//!
//! A crash leaves files that no segment has, and a node's next start does with them what is said here (FORMAT.md, 8
//! and 9). Nothing in them was promised to anybody, so nothing in them is damage.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use millrace_engine::{
    api::TopicPartition,
    segment::{Segment, SegmentName},
    wal::format::{Entry, Place, Stamp},
};

use super::{known::Known, wal};

/// What a file is to the node.
#[derive(Debug)]
pub(super) enum Standing<'a> {
    /// A segment that the manifest knows.
    Owned(TopicPartition, &'a Segment),
    /// The manifest does not know it yet, but groups of the shared log have records there: the next start takes it over.
    Pointed(TopicPartition, Pointed),
    /// No segment has it, for this reason, and this becomes of it.
    LeftBehind(TopicPartition, &'static str),
    /// Nothing can be said: it is not in a data folder, or not in one whose catalog and manifests are whole.
    Unknown,
}

/// Offsets before which files hold records that groups point to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pointed {
    /// Where the file begins.
    pub(super) base_offset: i64,
    /// Of all groups that can be read.
    pub(super) end_offset: i64,
    /// Of groups that were durable.
    pub(super) durable_end_offset: i64,
}

impl Pointed {
    /// Of a file that begins with an offset and is followed by one that begins with another.
    fn of_file(self, base_offset: i64, next: i64) -> Self {
        let (end_offset, durable) = (self.end_offset.min(next), self.durable_end_offset.min(next));
        Self { base_offset, end_offset, durable_end_offset: durable }
    }
}

const DELETED: &str = "its topic was deleted; the next start removes it";
const REPLACED: &str = "no segment has it: dropped, compacted, or a copy that was never finished; the node removes it \
    soon after its next start";
const BEGUN: &str = "no segment has it yet, and the write-ahead log does not need it: whatever is in it was never \
    acknowledged; it is written over when the partition gets there, or removed";

/// Tells whose the file of a partition is.
pub(super) fn of<'a>(known: &'a Known, path: &Path) -> Standing<'a> {
    let Some((id, name)) = known.place(path) else { return Standing::Unknown };
    let state = known.partition(id);
    if let Some(segment) = state.and_then(|state| state.segments.iter().find(|segment| segment.name() == name)) {
        return Standing::Owned(id, segment);
    }
    if !known.is_whole() {
        return Standing::Unknown;
    }
    if !known.has_topic(id) {
        return Standing::LeftBehind(id, DELETED);
    }
    if name.base_offset < state.map_or(0, |state| state.end_offset()) {
        return Standing::LeftBehind(id, REPLACED);
    }
    let Some(pointed) = known.pointed() else { return Standing::Unknown };
    match pointed.get(&id).filter(|pointed| name.base_offset < pointed.end_offset) {
        Some(pointed) => Standing::Pointed(id, pointed.of_file(name.base_offset, next_base(path, name.base_offset))),
        None => Standing::LeftBehind(id, BEGUN),
    }
}

/// Where the next file of the folder begins.
fn next_base(path: &Path, base: i64) -> i64 {
    let files = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let names = files.filter_map(|file| SegmentName::of_file(file.file_name().to_str()?));
    names.map(|name| name.base_offset).filter(|other| *other > base).min().unwrap_or(i64::MAX)
}

/// Where the groups of the shared logs end that have records in segments which the manifests do not know of yet. `None`
/// when a log is damaged: what is behind the damage may point anywhere.
pub(super) fn pointed(data_dir: &Path, shards: u32, known: &Known) -> Option<HashMap<TopicPartition, Pointed>> {
    let mut ends = Vec::new();
    let mut durable: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    for shard in 0..shards {
        let files = fs::read_dir(data_dir.join(format!("wal-{shard}"))).into_iter().flatten().flatten();
        for path in files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "wal")) {
            let (chain, _) = wal::scan(&path, known).ok()?;
            if wal::lost(&chain, known).is_some() || chain.damaged.is_some() {
                return None;
            }
            for (_, group) in chain.begun.into_iter().flat_map(|span| span.kept) {
                let stamp = group.stamp;
                let seen = durable.entry((stamp.shard, stamp.run)).or_default();
                *seen = (*seen).max(stamp.durable_sequence);
                let counts = stamp.sequence <= known.run_limit(stamp.shard, stamp.run);
                let fat = group.entries.iter().filter(|entry| counts && points(entry, known));
                ends.extend(fat.map(|entry| (entry.partition, entry.end_offset, stamp)));
            }
        }
    }
    let was_durable = |stamp: Stamp| durable.get(&(stamp.shard, stamp.run)).is_some_and(|seen| stamp.sequence <= *seen);
    let mut pointed: HashMap<TopicPartition, Pointed> = HashMap::new();
    for (partition, end_offset, stamp) in ends {
        let of = pointed.entry(partition).or_default();
        of.end_offset = of.end_offset.max(end_offset);
        if was_durable(stamp) {
            of.durable_end_offset = of.durable_end_offset.max(end_offset);
        }
    }
    Some(pointed)
}

fn points(entry: &Entry, known: &Known) -> bool {
    matches!(entry.place, Place::Segment(_)) && known.needs(entry.partition, entry.end_offset)
}
