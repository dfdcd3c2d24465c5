//! What a restart makes of the shared log: which runs of batches are in it that no segment holds yet. Pure.
//!
//! Groups count in the order of their run and sequence. Within a run they count up to the first hole: what lies behind
//! it was never acknowledged, unless a later group says that the missing one was durable, which is damage. Where a
//! former recovery found a run's end, it stays there (`RunEnd`), so nothing unacknowledged comes back once the groups
//! before it are recycled. A later run's entry wins over an earlier run's with the same offsets: its writer knew that
//! those were never acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{
    format::{Entry, Group, Place, SegmentPointer},
    scan::Chain,
};
use crate::{
    api::TopicPartition,
    manifest::{self, Manifest},
};

/// A run of batches that lives in the shared log only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LiveRun {
    pub(crate) base_offset: i64,
    /// One past the last offset.
    pub(crate) end_offset: i64,
    /// Which of the files.
    pub(crate) file: usize,
    /// Position of its group in the file.
    pub(crate) group: u64,
    /// First byte of the batches in the group.
    pub(crate) at: usize,
    /// Bytes.
    pub(crate) len: usize,
    run: u64,
}

/// A run that went to its segment directly. Whether it arrived there is for the caller to find out: if not, its group
/// is torn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) run: u64,
    pub(crate) sequence: u64,
    pub(crate) partition: TopicPartition,
    pub(crate) place: SegmentPointer,
    /// One past its last offset.
    pub(crate) end_offset: i64,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Replay {
    /// By partition, consecutive and in order.
    pub(crate) live: HashMap<TopicPartition, Vec<LiveRun>>,
    /// Runs that went to segments directly and that the manifest does not know, in order.
    pub(crate) pointers: Vec<Pointer>,
    /// Where those end, by partition.
    fat_ends: HashMap<TopicPartition, i64>,
    /// The last good group of every run that has groups on disk.
    pub(crate) run_ends: BTreeMap<u64, u64>,
    /// The files in the order of what they hold; those with nothing of use first.
    pub(crate) order: Vec<usize>,
}

/// The log contradicts itself: something durable was damaged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error("group {sequence} of run {run} was durable and cannot be read any more")]
    LostGroup { run: u64, sequence: u64 },
    #[error("partition {} of topic {}: the log goes on at offset {found}, but {expected} is next", partition.partition, partition.topic)]
    Hole { partition: TopicPartition, expected: i64, found: i64 },
}

/// Follows the chains of all files. `torn` are groups, by run and sequence, whose fat runs did not arrive.
pub(crate) fn replay(
    manifest: &Manifest,
    known: impl Fn(TopicPartition) -> bool,
    files: &[Chain],
    torn: &HashSet<(u64, u64)>,
) -> Result<Replay, ReplayError> {
    let mut groups: BTreeMap<(u64, u64), (usize, u64, &Group)> = BTreeMap::new();
    for (file, chain) in files.iter().enumerate() {
        for (position, group) in &chain.groups {
            groups.insert((group.stamp.run, group.stamp.sequence), (file, *position, group));
        }
    }
    let mut replay = Replay::default();
    for chain in files {
        let Some((_, first)) = chain.behind.first() else { continue };
        let run = first.stamp.run;
        let limit = manifest::run_limit(&manifest.run_ends, run);
        let seen_durable = groups.range((run, 0)..=(run, limit)).map(|(_, (.., g))| g.stamp.durable_sequence).max();
        let needs = |entry: &Entry| known(entry.partition) && entry.end_offset > noted_end(manifest, entry.partition);
        if let Some((run, sequence)) = chain.lost(limit, seen_durable.unwrap_or(0), needs) {
            return Err(ReplayError::LostGroup { run, sequence });
        }
    }
    let runs: BTreeSet<u64> = groups.keys().map(|(run, _)| *run).collect();
    let mut newest = vec![(0, 0); files.len()];
    for run in runs {
        let limit = manifest::run_limit(&manifest.run_ends, run);
        let mut expected = None;
        for ((_, sequence), (file, position, group)) in groups.range((run, 0)..=(run, limit)) {
            if expected.is_some_and(|next| next != *sequence) || torn.contains(&(run, *sequence)) {
                break;
            }
            for entry in group.entries.iter().filter(|entry| known(entry.partition)) {
                let place = (run, *sequence, *file, *position);
                take(&mut replay, manifest, entry, place)?;
            }
            newest[*file] = newest[*file].max((run, *sequence));
            replay.run_ends.insert(run, *sequence);
            expected = Some(sequence + 1);
        }
        // Without any, all that was before the first group on disk was recycled.
        let first = groups.range((run, 0)..=(run, limit)).next().map(|((_, sequence), _)| *sequence);
        let missing = replay.run_ends.get(&run).map_or(first.unwrap_or(1), |last| last.saturating_add(1));
        let seen_durable = groups.range((run, 0)..=(run, limit)).map(|(_, (.., g))| g.stamp.durable_sequence).max();
        let in_chain = files.iter().filter(|c| c.first().is_some_and(|s| s.run == run)).filter_map(|c| c.damaged);
        let damaged = in_chain.map(|(sequence, _)| sequence).filter(|s| *s <= limit).min();
        if let Some(sequence) = damaged.or(seen_durable.filter(|s| *s >= missing).map(|_| missing)) {
            return Err(ReplayError::LostGroup { run, sequence });
        }
        replay.run_ends.entry(run).or_insert(0);
    }
    replay.order = (0..files.len()).collect();
    replay.order.sort_by_key(|file| newest[*file]);
    Ok(replay)
}

/// Where a partition's segments end, as the manifest knows them.
fn noted_end(manifest: &Manifest, id: TopicPartition) -> i64 {
    manifest.partitions.get(&id).map_or(0, |state| state.end_offset())
}

fn take(
    replay: &mut Replay,
    manifest: &Manifest,
    entry: &Entry,
    (run, sequence, file, group): (u64, u64, usize, u64),
) -> Result<(), ReplayError> {
    let id = entry.partition;
    let held = replay.fat_ends.get(&id).copied().unwrap_or_else(|| noted_end(manifest, id));
    if entry.end_offset <= held {
        return Ok(());
    }
    let live = replay.live.entry(id).or_default();
    while live.last().is_some_and(|last| last.end_offset > entry.base_offset && last.run < run) {
        live.pop();
    }
    let at = match entry.place {
        Place::Segment(pointer) => {
            // What was before it went along: the segment holds everything up to its end.
            live.clear();
            replay.fat_ends.insert(id, entry.end_offset);
            let end_offset = entry.end_offset;
            replay.pointers.push(Pointer { run, sequence, partition: id, place: pointer, end_offset });
            return Ok(());
        }
        Place::Group(at) => at as usize,
    };
    let expected = live.last().map_or(held, |last| last.end_offset);
    if entry.base_offset != expected {
        return Err(ReplayError::Hole { partition: id, expected, found: entry.base_offset });
    }
    let (base_offset, end_offset, len) = (entry.base_offset, entry.end_offset, entry.length as usize);
    live.push(LiveRun { base_offset, end_offset, file, group, at, len, run });
    Ok(())
}
