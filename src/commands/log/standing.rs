//! Whose a segment file is: a partition's, the shared log's that points into it, or nobody's any more.
//!
//! A crash leaves files that no segment has, and a node's next start does with them what is said here (FORMAT.md, 8
//! and 9). Nothing in them was promised to anybody, so nothing in them is damage.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use millrace_engine::{
    api::TopicPartition,
    format::{
        segment::{Segment, SegmentName},
        wal::{Content, Entry, Stamp},
    },
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pointed {
    /// Where the file begins.
    pub(super) base_offset: i64,
    /// Of all groups that can be read.
    pub(super) end_offset: i64,
    /// Of groups that were durable.
    pub(super) durable_end_offset: i64,
}

/// A fat run that no manifest knows yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FatRun {
    /// Base offset of the segment that it is in.
    segment: i64,
    /// One past its last offset.
    end_offset: i64,
    was_durable: bool,
}

impl Pointed {
    /// Of a file that begins with an offset and is followed by one that begins with another, if there is anything in it
    /// that these runs need. Records up to the end of a run in an older file are in older files: a file that begins
    /// before that end was begun by a roll that a crash undid.
    fn of_file(runs: &[FatRun], base_offset: i64, next: i64) -> Option<Self> {
        let end = |runs: &mut dyn Iterator<Item = &FatRun>| runs.map(|run| run.end_offset).max().unwrap_or(0).min(next);
        let end_offset = end(&mut runs.iter());
        let is_older = runs.iter().any(|run| run.segment < base_offset && base_offset < run.end_offset);
        let durable_end_offset = end(&mut runs.iter().filter(|run| run.was_durable));
        (base_offset < end_offset && !is_older).then_some(Self { base_offset, end_offset, durable_end_offset })
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
    let runs = pointed.get(&id).map_or(&[][..], Vec::as_slice);
    match Pointed::of_file(runs, name.base_offset, next_base(path, name.base_offset)) {
        Some(pointed) => Standing::Pointed(id, pointed),
        None => Standing::LeftBehind(id, BEGUN),
    }
}

/// Where the next file of the folder begins.
fn next_base(path: &Path, base: i64) -> i64 {
    names_beside(path).map(|name| name.base_offset).filter(|other| *other > base).min().unwrap_or(i64::MAX)
}

/// The file of the folder that begins before that.
pub(super) fn previous_file(path: &Path, base: i64) -> Option<PathBuf> {
    let newest = names_beside(path).filter(|name| name.base_offset < base);
    let newest = newest.max_by_key(|name| (name.base_offset, name.generation))?;
    Some(path.with_file_name(newest.file_name()))
}

fn names_beside(path: &Path) -> impl Iterator<Item = SegmentName> {
    let files = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    files.filter_map(|file| SegmentName::of_file(file.file_name().to_str()?))
}

/// What groups of the shared logs have in segments and the manifests do not know of yet. `None` when a log is damaged:
/// what is behind the damage may point anywhere.
pub(super) fn pointed(data_dir: &Path, shards: u32, known: &Known) -> Option<HashMap<TopicPartition, Vec<FatRun>>> {
    let mut found = Vec::new();
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
                let fat =
                    group.entries.iter().filter(|_| counts).filter_map(|entry| Some((entry, segment(entry, known)?)));
                found.extend(fat.map(|(entry, segment)| (entry.partition, segment, entry.end_offset, stamp)));
            }
        }
    }
    let was_durable = |stamp: Stamp| durable.get(&(stamp.shard, stamp.run)).is_some_and(|seen| stamp.sequence <= *seen);
    let mut pointed: HashMap<TopicPartition, Vec<FatRun>> = HashMap::new();
    for (partition, segment, end_offset, stamp) in found {
        pointed.entry(partition).or_default().push(FatRun { segment, end_offset, was_durable: was_durable(stamp) });
    }
    Some(pointed)
}

/// The segment that a run is in, if no manifest knows of the run yet.
fn segment(entry: &Entry, known: &Known) -> Option<i64> {
    match entry.content {
        Content::Segment(pointer) if known.needs(entry.partition, entry.end_offset) => Some(pointer.segment.get()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(segment: i64, end_offset: i64) -> FatRun {
        FatRun { segment, end_offset, was_durable: true }
    }

    /// A roll left an empty file that begins with offset 1, and the power was cut before the manifest knew; the records
    /// from 1 on went to the segment before it. The dump called the empty file damaged.
    #[test]
    fn a_file_that_begins_within_another_ones_records_has_nothing_to_show() {
        let runs = [run(0, 3), run(3, 11)];
        assert_eq!(Pointed::of_file(&runs, 1, 3), None);
        let rest = Pointed { base_offset: 3, end_offset: 11, durable_end_offset: 11 };
        assert_eq!(Pointed::of_file(&runs, 3, i64::MAX), Some(rest));
    }

    #[test]
    fn a_file_is_needed_up_to_the_next_one_and_durable_as_far_as_its_groups_were() {
        let runs = [run(3, 8), FatRun { was_durable: false, ..run(3, 11) }];
        let of = |base, next| Pointed::of_file(&runs, base, next).map(|of| (of.end_offset, of.durable_end_offset));
        assert_eq!(of(3, i64::MAX), Some((11, 8)));
        assert_eq!(of(3, 7), Some((7, 7)));
        assert_eq!(of(11, i64::MAX), None);
        assert_eq!(Pointed::of_file(&[], 0, i64::MAX), None);
    }
}
