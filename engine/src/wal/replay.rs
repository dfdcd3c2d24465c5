//! What a restart makes of the shared log: which runs of batches are in it that no segment holds yet. Pure.
//!
//! Groups count in the order of their run and sequence. Within a run they count up to the first hole: what lies behind
//! it was never acknowledged, unless a later group says that the missing one was durable, which is damage. Where a
//! former recovery found a run's end, it stays there (`RunEnd`), so nothing unacknowledged comes back once the groups
//! before it are recycled. A later run's entry wins over an earlier run's with the same offsets: its writer knew that
//! those were never acknowledged.
//!
//! Entries say of how many cuts their partition's log is then. What is of fewer than the manifest tells of is done with,
//! whatever its offsets: they may have been given out again since.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{
    history::History,
    scan::{Chain, Judge, Span},
};
use crate::{
    api::TopicPartition,
    format::{
        manifest::{self, Manifest, PartitionState},
        wal::{Content, Entry, SegmentPointer, Stamp},
    },
};

/// What counts in a file of the shared log is what the manifest does not know yet.
pub(crate) struct Unknown<'a, K> {
    pub(crate) manifest: &'a Manifest,
    /// Whether a partition is still there.
    pub(crate) known: K,
}

impl<K: Fn(TopicPartition) -> bool> Judge for &Unknown<'_, K> {
    fn limit(&self, stamp: Stamp) -> u64 {
        manifest::run_limit(&self.manifest.run_ends, stamp.run)
    }

    fn needs(&self, entry: &Entry) -> bool {
        (self.known)(entry.partition)
            && self.manifest.partitions.get(&entry.partition).is_none_or(|state| tells(state, entry))
    }
}

/// Whether an entry says something that the manifest does not know.
fn tells(state: &PartitionState, entry: &Entry) -> bool {
    let newest = state.epochs.starts().last().map_or(-1, |start| start.epoch.get());
    let is_new = match entry.content {
        Content::Group(_) | Content::Segment(_) => entry.end_offset > state.end_offset(),
        Content::Cut => false,
        Content::EpochStart => entry.era.leader_epoch > newest,
    };
    entry.era.cuts > state.cuts || entry.era.cuts == state.cuts && is_new
}

/// A run of batches that lives in the shared log only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LiveRun {
    pub(crate) base_offset: i64,
    /// One past the last offset. A cut may have taken batches behind it, which are among the bytes.
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

/// Segments are to be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentCut {
    pub(crate) partition: TopicPartition,
    /// Where they end then. Outside of the log, nothing is left.
    pub(crate) end_offset: i64,
    /// Which cut of the partition it is.
    pub(crate) number: u32,
}

/// Something that happened to segments, and that the manifest does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Extend(Pointer),
    Cut(SegmentCut),
}

/// How far a partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    log_start: i64,
    /// Segments hold everything below, once all steps are done.
    held: i64,
    history: History,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Replay {
    /// By partition, consecutive and in order.
    pub(crate) live: HashMap<TopicPartition, Vec<LiveRun>>,
    /// What has to be done to segments, in order.
    pub(crate) steps: Vec<Step>,
    /// Of the partitions that entries tell of.
    standings: HashMap<TopicPartition, Standing>,
    /// The last good group of every run that has groups on disk.
    pub(crate) run_ends: BTreeMap<u64, u64>,
    /// The files in the order of what they hold; those with nothing of use first.
    pub(crate) order: Vec<usize>,
    /// What was lost.
    pub(crate) losses: Vec<Loss>,
    /// What partitions go on without.
    pub(crate) gaps: BTreeMap<TopicPartition, Gap>,
    /// Run and sequence of the newest group of each file that counts.
    newest: Vec<(u64, u64)>,
}

/// Something that was durable is not there any more, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Loss {
    #[error("group {sequence} of run {run} was durable and cannot be read any more")]
    Group { run: u64, sequence: u64 },
    #[error("partition {} of topic {}: the log goes on at offset {found}, but {expected} is next", partition.partition, partition.topic)]
    Hole { partition: TopicPartition, expected: i64, found: i64 },
}

/// What to do about losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losses {
    /// The log contradicts itself: the first one ends the replay.
    Refused,
    /// Go on without what is lost. Of a partition with a hole that is all behind it.
    Suffered,
}

/// The records that a partition goes on without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The first one.
    pub(crate) from: i64,
    /// From here on they could be read.
    pub(crate) found: i64,
    /// One past the last one that is known of.
    pub(crate) until: i64,
}

/// Groups that follow each other, and the file they are in.
struct Placed<'a> {
    file: usize,
    span: &'a Span,
}

/// Follows the chains of all files. `torn` are groups, by run and sequence, whose fat runs did not arrive.
pub(crate) fn replay<K: Fn(TopicPartition) -> bool>(
    unknown: &Unknown<'_, K>,
    files: &[Chain],
    torn: &HashSet<(u64, u64)>,
    losses: Losses,
) -> Result<Replay, Loss> {
    let mut replay = Replay { newest: vec![(0, 0); files.len()], ..Replay::default() };
    let begun = files.iter().enumerate().filter_map(|(file, chain)| Some(Placed { file, span: chain.begun.as_ref()? }));
    let mut spans: Vec<Placed<'_>> = begun.collect();
    for (file, chain) in files.iter().enumerate() {
        // Those behind a chain are of its life, and count because it does.
        let follow = chain.begun.is_some();
        for span in &chain.behind {
            let limit = unknown.limit(span.first);
            let seen_durable = seen_durable(&spans, span.first.run, limit);
            let lost = span.lost(limit, seen_durable, |entry| unknown.needs(entry));
            if let Some((run, sequence)) = lost {
                replay.lose(Loss::Group { run, sequence }, losses)?;
            }
            if losses == Losses::Suffered && (follow || lost.is_some()) {
                spans.push(Placed { file, span });
            }
        }
    }
    spans.sort_by_key(|placed| (placed.span.first.run, placed.span.first.sequence));
    let runs: BTreeSet<u64> = spans.iter().map(|placed| placed.span.first.run).collect();
    for run in runs {
        let limit = manifest::run_limit(&unknown.manifest.run_ends, run);
        let counted = |placed: &&Placed<'_>| placed.span.first.run == run && placed.span.first.sequence <= limit;
        let counted: Vec<&Placed<'_>> = spans.iter().filter(counted).collect();
        let durable = seen_durable(&spans, run, limit);
        replay.follow(unknown, &counted, (limit, durable), torn, losses)?;
        // Without any, all that was before the first group on disk was recycled.
        let first = counted.first().map(|placed| placed.span.first.sequence);
        let missing = replay.run_ends.get(&run).map_or(first.unwrap_or(1), |last| last.saturating_add(1));
        let in_chain = files.iter().filter(|c| c.begun.as_ref().is_some_and(|s| s.first.run == run));
        let damaged = in_chain.filter_map(|c| c.damaged).map(|(sequence, _)| sequence).filter(|s| *s <= limit).min();
        if let Some(sequence) = damaged.or((durable >= missing).then_some(missing)) {
            replay.lose(Loss::Group { run, sequence }, losses)?;
        }
        replay.run_ends.entry(run).or_insert(0);
    }
    // Only now: a segment that a later entry points to holds what was missing before it.
    let hole = replay.gaps.iter().next().filter(|_| losses == Losses::Refused);
    if let Some((partition, gap)) = hole {
        return Err(Loss::Hole { partition: *partition, expected: gap.from, found: gap.found });
    }
    replay.order = (0..files.len()).collect();
    replay.order.sort_by_key(|file| replay.newest[*file]);
    Ok(replay)
}

/// The newest sequence of a run that was durable, by what the groups say that count.
fn seen_durable(spans: &[Placed<'_>], run: u64, limit: u64) -> u64 {
    let own = spans.iter().map(|placed| placed.span).filter(|span| span.first.run == run);
    own.filter(|span| span.first.sequence <= limit).map(|span| span.seen_durable).max().unwrap_or(0)
}

impl Replay {
    fn lose(&mut self, loss: Loss, losses: Losses) -> Result<(), Loss> {
        match losses {
            Losses::Refused => Err(loss),
            Losses::Suffered => {
                if !self.losses.contains(&loss) {
                    self.losses.push(loss);
                }
                Ok(())
            }
        }
    }

    /// Takes the groups of a run in the order of their sequence, up to the first gap, or to one that was never durable.
    fn follow<K: Fn(TopicPartition) -> bool>(
        &mut self,
        unknown: &Unknown<'_, K>,
        spans: &[&Placed<'_>],
        (limit, durable): (u64, u64),
        torn: &HashSet<(u64, u64)>,
        losses: Losses,
    ) -> Result<(), Loss> {
        let mut expected = None;
        for Placed { file, span } in spans {
            let (run, mut next) = (span.first.run, expected.unwrap_or(span.first.sequence));
            if next < span.first.sequence {
                if losses == Losses::Refused || durable < next {
                    return Ok(());
                }
                self.lose(Loss::Group { run, sequence: next }, losses)?;
                next = span.first.sequence;
            }
            for (position, group) in &span.kept {
                let sequence = group.stamp.sequence;
                if sequence < next || sequence > limit {
                    continue;
                }
                let is_torn = torn.contains(&(run, sequence));
                if is_torn && (losses == Losses::Refused || durable < sequence) {
                    self.take_up_to(*file, run, sequence.saturating_sub(1), span);
                    return Ok(());
                }
                if is_torn {
                    self.lose(Loss::Group { run, sequence }, losses)?;
                }
                for entry in group.entries.iter().filter(|entry| unknown.needs(entry)) {
                    match entry.content {
                        Content::Segment(_) if is_torn => self.go_without(unknown.manifest, entry, entry.end_offset),
                        _ => self.take(unknown.manifest, entry, (run, sequence, *file, *position)),
                    }
                }
            }
            let last = span.last.min(limit);
            self.take_up_to(*file, run, last, span);
            expected = Some(expected.unwrap_or(0).max(last.saturating_add(1)));
        }
        Ok(())
    }

    /// The groups of a span up to that sequence are good.
    fn take_up_to(&mut self, file: usize, run: u64, last: u64, span: &Span) {
        if last >= span.first.sequence {
            self.newest[file] = self.newest[file].max((run, last));
            let end = self.run_ends.entry(run).or_insert(0);
            *end = last.max(*end);
        }
    }

    fn take(&mut self, manifest: &Manifest, entry: &Entry, (run, sequence, file, group): (u64, u64, usize, u64)) {
        let id = entry.partition;
        if matches!(entry.content, Content::Cut) {
            return self.take_cut(manifest, entry, run);
        }
        let standing = self.standing(manifest, id);
        let (held, cuts) = (standing.held, standing.history.era().cuts);
        if entry.era.cuts != cuts {
            return self.go_without(manifest, entry, entry.base_offset); // a cut is missing
        }
        if let Content::EpochStart = entry.content {
            return self.take_epoch(manifest, entry);
        }
        if entry.end_offset <= held {
            return;
        }
        let live = self.live.entry(id).or_default();
        while live.last().is_some_and(|last| last.end_offset > entry.base_offset && last.run < run) {
            live.pop();
        }
        let at = match entry.content {
            Content::Segment(pointer) => {
                // What was before it went along: the segment holds everything up to its end.
                live.clear();
                self.gaps.remove(&id);
                let end_offset = entry.end_offset;
                let standing = self.standing(manifest, id);
                standing.held = end_offset;
                standing.history.note_epoch(entry.era.leader_epoch, entry.base_offset);
                standing.history.materialised(end_offset);
                let pointer = Pointer { run, sequence, partition: id, place: pointer, end_offset };
                return self.steps.push(Step::Extend(pointer));
            }
            Content::Group(at) => at as usize,
            Content::Cut | Content::EpochStart => return,
        };
        let expected = live.last().map_or(held, |last| last.end_offset);
        if entry.base_offset != expected {
            return self.go_without(manifest, entry, entry.base_offset);
        }
        self.gaps.remove(&id);
        let (base_offset, end_offset, len) = (entry.base_offset, entry.end_offset, entry.length as usize);
        live.push(LiveRun { base_offset, end_offset, file, group, at, len, run });
        self.standing(manifest, id).history.note_epoch(entry.era.leader_epoch, base_offset);
    }

    fn take_epoch(&mut self, manifest: &Manifest, entry: &Entry) {
        let end = self.end(manifest, entry.partition);
        let (epoch, history) = (entry.era.leader_epoch, &mut self.standing(manifest, entry.partition).history);
        let is_known = history.epochs().starts().last().is_some_and(|last| last.epoch.get() >= epoch);
        match end == entry.base_offset {
            _ if is_known => {}
            true => history.note_epoch(epoch, end),
            false => self.go_without(manifest, entry, entry.base_offset),
        }
    }

    /// The end of a partition's log was cut off. What is missing before the cut is nobody's loss if it was cut off too.
    fn take_cut(&mut self, manifest: &Manifest, entry: &Entry, run: u64) {
        let (id, to, from) = (entry.partition, entry.base_offset, entry.end_offset);
        let live = self.live.entry(id).or_default();
        while live.last().is_some_and(|last| last.end_offset > from && last.run < run) {
            live.pop();
        }
        let end = self.end(manifest, id);
        let standing = self.standing(manifest, id);
        let number = entry.era.cuts;
        let is_next = standing.history.next_cut() == Some(number);
        if !is_next || end != from && (end > from || to > end) {
            return self.go_without(manifest, entry, to);
        }
        if !(standing.log_start..=end).contains(&to) {
            (standing.log_start, standing.held) = (to, to);
            standing.history.begin_anew(to);
            self.steps.push(Step::Cut(SegmentCut { partition: id, end_offset: to, number }));
        } else {
            if to < standing.held {
                standing.held = to;
                self.steps.push(Step::Cut(SegmentCut { partition: id, end_offset: to, number }));
            }
            let standing = self.standing(manifest, id);
            standing.history.cut(to, standing.held);
        }
        let held = self.standing(manifest, id).held;
        let live = self.live.entry(id).or_default();
        live.retain(|run| run.base_offset >= held && run.base_offset < to);
        if let Some(last) = live.last_mut() {
            last.end_offset = last.end_offset.min(to);
        }
        self.gaps.remove(&id);
    }
}

impl Replay {
    fn standing(&mut self, manifest: &Manifest, id: TopicPartition) -> &mut Standing {
        self.standings.entry(id).or_insert_with(|| {
            let state = manifest.partitions.get(&id);
            let (log_start, held) = state.map_or((0, 0), |state| (state.log_start_offset, state.end_offset()));
            Standing { log_start, held, history: state.map(History::restore).unwrap_or_default() }
        })
    }

    /// Where a partition's log ends, as far as it was followed.
    fn end(&mut self, manifest: &Manifest, id: TopicPartition) -> i64 {
        let live = self.live.get(&id).and_then(|live| live.last()).map(|last| last.end_offset);
        live.unwrap_or_else(|| self.standing(manifest, id).held)
    }

    /// Where what lives in the shared log only ends.
    pub(crate) fn end_of_tail(&self, id: TopicPartition) -> Option<i64> {
        self.live.get(&id)?.last().map(|last| last.end_offset)
    }

    /// What has happened to a partition's end; `None` if the manifest knows all of it.
    pub(crate) fn history(&self, id: TopicPartition) -> Option<&History> {
        self.standings.get(&id).map(|standing| &standing.history)
    }

    /// An entry does not follow what its partition has; `found`: from where on it could be read.
    fn go_without(&mut self, manifest: &Manifest, entry: &Entry, found: i64) {
        let id = entry.partition;
        let from = self.end(manifest, id);
        let gap = self.gaps.entry(id).or_insert(Gap { from, found, until: entry.end_offset });
        gap.until = gap.until.max(entry.end_offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wal::{Era, Group};

    const ID: TopicPartition = TopicPartition { topic: uuid::Uuid::nil(), partition: 0 };

    /// What a log of one group makes of a partition of which the manifest has that.
    fn replayed(state: PartitionState, entries: Vec<Entry>) -> Result<Replay, Loss> {
        let stamp = Stamp { run: 1, shard: 0, sequence: 1, durable_sequence: 0 };
        let group = Group { stamp, sealed_at_ms: 0, length: 4096, entries };
        let span = Span { begin: 0, end: 4096, first: stamp, last: 1, seen_durable: 0, kept: vec![(0, group)] };
        let chain = Chain { begun: Some(span), ..Chain::default() };
        let manifest = Manifest { partitions: [(ID, state)].into(), ..Manifest::default() };
        let unknown = Unknown { manifest: &manifest, known: |_| true };
        replay(&unknown, &[chain], &HashSet::new(), Losses::Refused)
    }

    /// Entries that end at these offsets, one of a record each and in the group or a segment.
    fn replay_of(ends: &[(i64, bool)]) -> Result<Replay, Loss> {
        let segment = SegmentPointer {
            segment: 0.into(),
            position: 0.into(),
            from_offset: 0.into(),
            checksum: 0.into(),
            reserved: 0.into(),
        };
        let content = |in_segment| if in_segment { Content::Segment(segment) } else { Content::Group(0) };
        let entry = |(end_offset, in_segment): &(i64, bool)| Entry {
            content: content(*in_segment),
            ..entry(end_offset - 1, *end_offset, (0, 0), Content::Group(0))
        };
        replayed(PartitionState::default(), ends.iter().map(entry).collect())
    }

    fn entry(base_offset: i64, end_offset: i64, (cuts, leader_epoch): (u32, i32), content: Content) -> Entry {
        Entry { partition: ID, base_offset, end_offset, length: 70, era: Era { leader_epoch, cuts }, content }
    }

    fn run(base_offset: i64, end_offset: i64, era: (u32, i32)) -> Entry {
        entry(base_offset, end_offset, era, Content::Group(0))
    }

    fn cut(from: i64, to: i64, era: (u32, i32)) -> Entry {
        entry(to, from, era, Content::Cut)
    }

    /// Segments up to an offset, after so many cuts, all of epoch 0.
    fn held(end_offset: i64, cuts: u32) -> PartitionState {
        let mut segment = crate::format::segment::Segment::begin(0, 0);
        segment.end_offset = end_offset;
        let mut state = PartitionState { segments: vec![segment], cuts, ..PartitionState::default() };
        state.epochs.note(0, 0);
        state
    }

    /// Runs that live in the log, cuts of segments, epochs with their starts, and cuts that segments tell of and in all.
    type Found = (Vec<(i64, i64)>, Vec<i64>, Vec<(i32, i64)>, (u32, u32));

    fn found(state: PartitionState, entries: Vec<Entry>) -> Result<Found, Loss> {
        let replay = replayed(state.clone(), entries)?;
        let live = replay.live.get(&ID).into_iter().flatten().map(|run| (run.base_offset, run.end_offset)).collect();
        let of_step = |step: &Step| match step {
            Step::Cut(cut) => cut.end_offset,
            Step::Extend(pointer) => panic!("{pointer:?}"),
        };
        let history = replay.history(ID).cloned().unwrap_or_else(|| History::restore(&state));
        let epochs = history.epochs().starts().iter().map(|start| (start.epoch.get(), start.start_offset.get()));
        let cuts = (history.cuts(), history.era().cuts);
        Ok((live, replay.steps.iter().map(of_step).collect(), epochs.collect(), cuts))
    }

    #[test]
    fn a_cut_in_the_tail_is_followed_by_what_comes_there_then() {
        let entries = vec![run(10, 20, (0, 0)), run(20, 30, (0, 2)), cut(30, 15, (1, 3)), run(15, 18, (1, 1))];
        let expected = (vec![(10, 15), (15, 18)], vec![], vec![(0, 0), (1, 15)], (0, 1));
        assert_eq!(found(held(10, 0), entries), Ok(expected));
    }

    #[test]
    fn a_cut_below_what_segments_hold_cuts_them() {
        let entries = vec![run(10, 20, (0, 0)), run(20, 30, (0, 0)), cut(30, 12, (1, 1)), run(12, 18, (1, 1))];
        assert_eq!(found(held(20, 0), entries), Ok((vec![(12, 18)], vec![12], vec![(0, 0), (1, 12)], (1, 1))));
    }

    /// Offsets behind a cut are given out again: what was there before looked as if it went on.
    #[test]
    fn what_is_of_fewer_cuts_than_segments_is_done_with() {
        let entries = vec![
            run(10, 20, (0, 0)),
            run(20, 30, (0, 0)),
            cut(30, 12, (1, 1)),
            run(12, 18, (1, 1)),
            run(18, 19, (1, 1)),
        ];
        assert_eq!(found(held(18, 1), entries), Ok((vec![(18, 19)], vec![], vec![(0, 0), (1, 18)], (1, 1))));
    }

    #[test]
    fn cuts_outside_of_the_log_leave_nothing() {
        let anew = |to: i64, state: PartitionState| {
            let entries = vec![run(20, 30, (0, 0)), cut(30, to, (1, 4)), run(to, to + 2, (1, 4))];
            assert_eq!(found(state, entries), Ok((vec![(to, to + 2)], vec![to], vec![(4, to)], (1, 1))));
        };
        anew(90, held(20, 0));
        anew(3, PartitionState { log_start_offset: 5, ..held(20, 0) });
    }

    #[test]
    fn a_missing_cut_is_a_loss_and_what_a_cut_took_is_none() {
        let hole = |expected, found| Err(Loss::Hole { partition: ID, expected, found });
        assert_eq!(found(held(10, 0), vec![run(10, 20, (1, 0))]), hole(10, 10), "a cut was before it");
        assert_eq!(found(held(10, 0), vec![cut(10, 8, (2, 0))]), hole(10, 8), "another one was before it");
        assert_eq!(found(held(10, 0), vec![cut(30, 20, (1, 0))]), hole(10, 20), "something was appended before it");
        let healed = found(held(10, 0), vec![run(20, 30, (0, 0)), cut(30, 8, (1, 0)), run(8, 9, (1, 0))]);
        assert_eq!(healed, Ok((vec![(8, 9)], vec![8], vec![(0, 0)], (1, 1))), "what is missing was cut off");
    }

    #[test]
    fn epochs_begin_with_and_without_batches() {
        let start = |offset, era| entry(offset, offset, era, Content::EpochStart);
        let entries = vec![start(10, (0, 1)), start(10, (0, 2)), run(10, 20, (0, 2)), start(20, (0, 5))];
        let all = vec![(0, 0), (1, 10), (2, 10), (5, 20)];
        assert_eq!(found(held(10, 0), entries.clone()), Ok((vec![(10, 20)], vec![], all.clone(), (0, 0))));
        let noted = PartitionState {
            epochs: replayed(held(10, 0), entries.clone()).unwrap().history(ID).unwrap().epochs().clone(),
            ..held(10, 0)
        };
        assert_eq!(found(noted, entries), Ok((vec![(10, 20)], vec![], all, (0, 0))), "a second start finds the same");
        let hole = Err(Loss::Hole { partition: ID, expected: 10, found: 12 });
        assert_eq!(found(held(10, 0), vec![start(12, (0, 1))]), hole);
    }

    #[test]
    fn a_hole_counts_unless_a_segment_holds_what_is_missing() {
        let hole = Loss::Hole { partition: ID, expected: 0, found: 5 };
        assert_eq!(replay_of(&[(6, false)]), Err(hole.clone()));
        assert_eq!(
            replay_of(&[(6, false), (7, true), (9, false)]),
            Err(Loss::Hole { partition: ID, expected: 7, found: 8 })
        );
        let healed = replay_of(&[(6, false), (7, true), (8, false)]).expect("all of it is there");
        assert_eq!((healed.steps.len(), healed.live[&ID].len()), (1, 1));
    }
}
