//! How a partition's segments change: who appends the tail to them, what the manifest has not heard of yet, trims, and
//! what compaction puts in their place.

use std::rc::Rc;

use super::{
    Partition,
    materialise::{self, Plan},
    producers::Producers,
    tail::Extent,
};
use crate::{
    format::{
        epochs::LeaderEpochs,
        manifest::{Advance, PartitionState, Replace, Transactions},
        segment::{Segment, SegmentName},
        wal::SegmentPointer,
    },
    io::BLOCK,
    signal::Outcome,
    wal::WalFileId,
};

/// Who is appending to a partition's segments: one at a time.
#[derive(Clone, Debug, Default)]
pub(crate) enum Appending {
    #[default]
    Nobody,
    /// The keeper, in a round.
    Keeper,
    /// Fat runs on their way, and what the log's end in segments will be when they are there.
    Fat(Ahead),
}

/// The end of a partition's segments with all fat runs that are being written.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    /// Runs being written.
    runs: usize,
    /// One past the last offset.
    end_offset: i64,
    /// The active segment.
    active: Segment,
    /// What the block that the segment ends in holds.
    last_block: Rc<Vec<u8>>,
    /// Set when the last of the runs is written: the next one shares a block with it.
    written: Rc<Outcome<bool>>,
}

/// Where a fat run goes, with what lies before it.
pub(crate) struct FatPlan {
    pub(crate) plan: Plan,
    pub(crate) pointer: SegmentPointer,
    /// What the first block holds before; `None`: read it.
    pub(crate) head: Option<Rc<Vec<u8>>>,
    /// The fat run before it, whose last block is this one's first.
    pub(crate) before: Option<Rc<Outcome<bool>>>,
    /// To be set when it is written.
    pub(crate) written: Rc<Outcome<bool>>,
}

/// What is in segments but not in the manifest, and leader epochs that it may not know: the shared log is needed until it
/// does.
#[derive(Default)]
pub(crate) struct Unnoted {
    pub(super) changed: Option<Changed>,
    /// Whether transactions began or ended.
    has_transactions: bool,
    producers: Producers,
    /// Extents per file of the shared log.
    pub(crate) pins: Vec<(WalFileId, usize)>,
    bytes: usize,
}

/// From where on segments are not as the manifest knows them.
#[derive(Clone, Copy)]
pub(super) struct Changed {
    /// Base offset of the first segment that changed.
    first_segment: i64,
    /// Entries of that segment's index that the manifest has.
    index_from: usize,
    /// The same of its aborted transactions.
    aborted_from: usize,
}

impl Partition {
    /// The extents to materialise next, oldest first: kept, and `bytes_max` at most, but at least one.
    pub(crate) fn materialisable(&self, bytes_max: usize) -> Vec<Extent> {
        let kept_end = self.marks.kept();
        let mut bytes = 0;
        let kept = self.tail.from(self.marks.materialised()).take_while(|e| e.end_offset <= kept_end);
        kept.take_while(|e| {
            let first = bytes == 0;
            bytes += e.len as usize;
            first || bytes <= bytes_max
        })
        .cloned()
        .collect()
    }

    /// Whether bringing to segments what is kept would end one of them.
    pub(crate) fn would_roll(&self, now_ms: i64) -> bool {
        materialise::would_roll(self.segments.active(), &self.materialisable(usize::MAX), &self.config, now_ms)
    }

    /// What the keeper is to append in a round: nothing else is appended until it is done.
    pub(crate) fn plan_round(&mut self, bytes_max: usize, now_ms: i64) -> Option<Plan> {
        if self.is_appended_to() {
            return None;
        }
        let extents = self.materialisable(bytes_max);
        if extents.is_empty() {
            return None;
        }
        self.appending = Appending::Keeper;
        let aborted = self.transactions.all_aborted();
        Some(materialise::plan(self.segments.active(), extents, aborted, &self.config, now_ms))
    }

    /// Whether somebody appends to its segments.
    pub(crate) fn is_appended_to(&self) -> bool {
        !matches!(self.appending, Appending::Nobody)
    }

    /// Who appends to its segments.
    pub(crate) fn appending(&self) -> &Appending {
        &self.appending
    }

    /// The keeper is about to change segments: nobody else appends, unless a fat run is on its way already.
    pub(crate) fn begin_keeping(&mut self) {
        if matches!(self.appending, Appending::Nobody) {
            self.appending = Appending::Keeper;
        }
    }

    /// The keeper is done with the segments.
    pub(crate) fn end_keeping(&mut self) {
        if matches!(self.appending, Appending::Keeper) {
            self.appending = Appending::Nobody;
        }
    }

    /// Whether a fat run may go to its segments now.
    pub(crate) fn takes_fat_runs(&self) -> bool {
        !self.deleted && !matches!(self.appending, Appending::Keeper)
    }

    /// Plans where a fat run goes, unless it would end too many segments or lie in more than one. The run joins the tail
    /// then, and nobody but fat runs appends until it is there.
    pub(crate) fn plan_fat(&mut self, extent: Extent, segments_max: usize, now_ms: i64) -> Option<FatPlan> {
        let (active, from, runs, head, before) = match &self.appending {
            Appending::Keeper => return None,
            Appending::Nobody => (self.segments.active().cloned(), self.marks.materialised(), 0, None, None),
            Appending::Fat(ahead) => {
                let before = (Some(ahead.last_block.clone()), Some(ahead.written.clone()));
                (Some(ahead.active.clone()), ahead.end_offset, ahead.runs, before.0, before.1)
            }
        };
        let mut extents: Vec<_> = self.tail.from(from).cloned().collect();
        extents.push(extent.clone());
        let aborted = self.transactions.all_aborted();
        let plan = materialise::plan(active.as_ref(), extents, aborted, &self.config, now_ms);
        if plan.end_offset != extent.end_offset || plan.writes.len() > segments_max {
            return None;
        }
        let pointer = plan.last_place()?;
        let segment = &plan.writes.last().expect("it has a place").segment;
        let written = Rc::<Outcome<bool>>::default();
        let filled = usize::try_from(segment.size % BLOCK as u64).expect("less than a block");
        let range = extent.range();
        let last_block = extent.live_memory().bytes()[range.end - filled..range.end].to_vec();
        self.appending = Appending::Fat(Ahead {
            runs: runs + 1,
            end_offset: extent.end_offset,
            active: segment.clone(),
            last_block: Rc::new(last_block),
            written: written.clone(),
        });
        self.push_extent(extent);
        // A segment that begins with this run has no block in common with what is before.
        let head = head.filter(|_| plan.writes.first().is_some_and(|write| write.from > 0));
        Some(FatPlan { plan, pointer, head, before, written })
    }

    /// One fat run is not being written any more. Whether it was the last one, so that others may append.
    pub(crate) fn end_fat(&mut self) -> bool {
        let Appending::Fat(ahead) = &mut self.appending else { return false };
        ahead.runs -= 1;
        let was_last = ahead.runs == 0;
        if was_last {
            self.appending = Appending::Nobody;
        }
        was_last
    }

    /// A fat run is in its segments, with what lay before it. It was planned when its topic may have asked for less than
    /// it does now, and there it is on stable storage: so it is kept.
    pub(crate) fn fat_appended(&mut self, plan: &Plan, now_ms: i64) {
        self.keep(plan.end_offset);
        self.appended(plan, now_ms);
    }

    /// Batches are in segments, on stable storage: these are the segments now. The manifest does not know yet.
    pub(crate) fn appended(&mut self, plan: &Plan, now_ms: i64) {
        let Some(first) = plan.writes.first() else {
            return;
        };
        let unnoted = self.unnoted.get_or_insert_default();
        unnoted.changed.get_or_insert(Changed {
            first_segment: first.segment.base_offset,
            index_from: first.index_from,
            aborted_from: first.aborted_from,
        });
        for extent in &plan.extents {
            unnoted.bytes += extent.len as usize;
            unnoted.pin(extent.backing.wal());
            self.tail.end_live(extent);
        }
        unnoted.has_transactions |= plan.has_transactions;
        unnoted.producers.absorb(&plan.producers);
        self.checkpointed.absorb(&plan.producers);
        plan.writes.iter().for_each(|write| self.segments.put(write.segment.clone()));
        self.marks.materialise(plan.end_offset);
        self.history.materialised(plan.end_offset);
        self.appended_ms = Some(now_ms);
    }

    /// Takes what the manifest does not say yet of the segments, and the record that says it. What is appended from here
    /// on is noted the next time. Answer with [`Partition::put_back`] if the record could not be made durable.
    pub(crate) fn take_unnoted(&mut self) -> Option<(Unnoted, Advance, Option<Transactions>)> {
        let unnoted = self.unnoted.take()?;
        let none = Changed { first_segment: i64::MAX, index_from: 0, aborted_from: 0 };
        let Changed { first_segment, index_from, aborted_from } = unnoted.changed.unwrap_or(none);
        let changed = self.segments.begun_from(first_segment);
        let active = changed.last().filter(|s| !s.sealed);
        let new_aborted = active.and_then(|active| {
            let from = if active.base_offset == first_segment { aborted_from } else { 0 };
            active.aborted.as_ref().map(|aborted| aborted[from..].to_vec())
        });
        let transactions = unnoted
            .has_transactions
            .then(|| Transactions { aborted: new_aborted.unwrap_or_default(), open: self.checkpointed.open_entries() });
        let active = active.and_then(|s| Some((s.base_offset, s.index.clone()?)));
        let index = active.map(|(base_offset, index)| {
            let from = if base_offset == first_segment { index_from } else { 0 };
            index[from..].to_vec()
        });
        let advance = Advance {
            high_watermark: self.surely_shown(),
            cuts: self.history.cuts(),
            segments: changed.iter().map(|segment| segment.meta()).collect(),
            index: index.unwrap_or_default(),
            producers: unnoted.producers.batches(),
        };
        self.segments.drop_indexes();
        Some((unnoted, advance, transactions))
    }

    /// The number of the next cut; none if there were too many.
    pub(crate) fn next_cut(&self) -> Option<u32> {
        self.history.next_cut()
    }

    /// How often the end of what segments hold was cut off.
    pub(crate) fn cuts(&self) -> u32 {
        self.history.cuts()
    }

    /// Takes the same without the record: the manifest is being written anew.
    pub(crate) fn take_unnoted_for_rewrite(&mut self) -> Option<Unnoted> {
        let unnoted = self.unnoted.take()?;
        self.segments.drop_indexes();
        Some(unnoted)
    }

    /// The manifest does not know after all.
    pub(crate) fn put_back(&mut self, mut earlier: Unnoted) {
        if let Some(later) = self.unnoted.take() {
            earlier.has_transactions |= later.has_transactions;
            earlier.producers.absorb(&later.producers);
            earlier.changed = earlier.changed.or(later.changed);
            earlier.pins.extend(later.pins);
            earlier.bytes += later.bytes;
        }
        self.unnoted = Some(earlier);
        self.history.put_back();
    }

    /// Bytes in segments that the manifest has not heard of; none if there is nothing to tell it.
    pub(crate) fn unnoted_bytes(&self) -> Option<usize> {
        self.unnoted.as_ref().map(|unnoted| unnoted.bytes)
    }

    /// What the manifest says of it.
    pub(crate) fn state(&self) -> PartitionState {
        PartitionState {
            log_start_offset: self.marks.log_start(),
            clean_offset: self.clean_offset,
            segments: self.segments.all().to_vec(),
            producers: self.checkpointed.batches(),
            high_watermark: self.surely_shown(),
            cuts: self.history.cuts(),
            epochs: self.history.epochs().clone(),
            open: self.checkpointed.open_entries(),
        }
    }

    /// Consumers may have seen everything below, and no crash takes any of it.
    fn surely_shown(&self) -> i64 {
        let stored = self.marks.durable().max(self.marks.materialised());
        let now = self.marks.high_watermark().min(stored);
        now.max(self.history.shown())
    }

    /// The leader epochs, if the manifest lacks some. Answer with [`Partition::put_back`] as for the rest.
    pub(crate) fn take_unnoted_epochs(&mut self) -> Option<LeaderEpochs> {
        self.history.take_unnoted()
    }

    /// The segments that a log start has no use for, and where the first one that stays begins. One that a fat run is
    /// being written to stays.
    pub(crate) fn trimmed_by(&self, log_start: i64) -> (Vec<SegmentName>, i64) {
        let all = self.segments.all();
        let mut gone = self.segments.ended_below(log_start).len();
        if matches!(self.appending, Appending::Fat(_)) {
            gone = gone.min(all.len().saturating_sub(1));
        }
        let first = all.get(gone).map_or(i64::MAX, |segment| segment.base_offset);
        (all[..gone].iter().map(Segment::name).collect(), first)
    }

    /// The log lost its head, and the manifest knows.
    pub(crate) fn trim(&mut self, log_start: i64, first_segment: i64) {
        self.marks.trim(log_start);
        self.history.trim(log_start);
        self.segments.trim(first_segment);
        self.follow_marks();
        self.waiters.wake(); // what they wait for may be gone
        self.stable_waiters.wake();
    }

    /// The segments that compaction may rewrite: sealed, the manifest knows, all in them is decided, and nothing of them can
    /// be cut off any more.
    pub(crate) fn sealed(&self) -> &[Segment] {
        let changed = self.unnoted.as_ref().and_then(|unnoted| unnoted.changed);
        let sealed = self.segments.sealed_before(changed.map_or(i64::MAX, |changed| changed.first_segment));
        &sealed[..sealed.partition_point(|segment| segment.end_offset <= self.last_stable)]
    }

    /// Segments were compacted, and the manifest knows.
    pub(crate) fn replace(&mut self, replace: &Replace) {
        let end = self.segments.replace(replace).unwrap_or(i64::MIN);
        // Readers must find what compaction left, not what is still in memory.
        self.tail.forget_below(end, self.marks.materialised());
        self.forget_aborted();
        self.old_before = self.old_before.max(end);
        self.clean_offset = replace.clean_offset;
    }
}

impl Unnoted {
    /// Something in that file of the shared log is needed until the manifest knows.
    pub(super) fn pin(&mut self, file: WalFileId) {
        match self.pins.iter_mut().find(|(known, _)| *known == file) {
            Some((_, count)) => *count += 1,
            None => self.pins.push((file, 1)),
        }
    }
}

#[cfg(test)]
impl Partition {
    /// As if a round had begun.
    pub(crate) fn set_appending(&mut self, appending: Appending) {
        self.appending = appending;
    }
}
