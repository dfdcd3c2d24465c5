//! One partition's log as its owner shard sees it: marks, tail, segments, producers. Pure and synchronous.
//!
//! The log is, from its start to its end: segments (up to `materialised`), then the tail, whose extents are in memory and
//! in the shared log. An extent joins the tail when its group is sealed and becomes visible when the marks pass it; it
//! stays after it was materialised for as long as its memory is cached.
//!
//! What always holds: the order of the marks (`marks`), segments and tail are consecutive, and an offset below the high
//! watermark is in the tail or in a segment.

pub(crate) mod available;
pub(crate) mod marks;
pub(crate) mod materialise;
pub(crate) mod producers;
mod retention;
pub(crate) mod run;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
pub(crate) mod waiters;

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use self::{marks::Marks, materialise::Plan, producers::Producers, run::select, tail::Extent, waiters::Waiters};
use crate::{
    api::{LogError, TopicPartition},
    batch::batches,
    chunk::{Chunk, Memory},
    config::{Durability, TopicConfig},
    format::{
        manifest::{self, Advance, PartitionState, Replace},
        segment::{Segment, SegmentName},
    },
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
    pub(crate) runs: usize,
    /// One past the last offset.
    pub(crate) end_offset: i64,
    /// The active segment.
    pub(crate) active: Segment,
    /// What the block that the segment ends in holds.
    pub(crate) last_block: Rc<Vec<u8>>,
    /// Set when the last of the runs is written: the next one shares a block with it.
    pub(crate) written: Rc<Outcome<bool>>,
}

/// What is in segments but not in the manifest: the shared log is needed until it is.
#[derive(Default)]
pub(crate) struct Unnoted {
    /// Base offset of the first segment that changed.
    pub(crate) first_segment: i64,
    /// Entries of that segment's index that the manifest has.
    pub(crate) index_from: usize,
    pub(crate) producers: Producers,
    /// Extents per file of the shared log.
    pub(crate) pins: Vec<(WalFileId, usize)>,
    pub(crate) bytes: usize,
}

/// A partition. Shared by the shard's tasks; never borrowed across an await.
pub(crate) type PartitionCell = RefCell<Partition>;

/// See the module.
pub(crate) struct Partition {
    pub(crate) id: TopicPartition,
    config: Rc<TopicConfig>,
    marks: Marks,
    /// Compaction has cleaned everything below: the first dirty offset.
    pub(crate) clean_offset: i64,
    /// By base offset; the last one may be active.
    pub(crate) segments: Vec<Segment>,
    pub(crate) tail: VecDeque<Extent>,
    /// Bytes of the tail that are not materialised.
    pub(crate) tail_bytes: usize,
    pub(crate) producers: Producers,
    /// Producers as of `materialised`: what a rewritten manifest says.
    pub(crate) checkpointed: Producers,
    pub(crate) appending: Appending,
    /// When batches were last brought to segments. Not known after a restart: then it counts from the first question.
    appended_ms: Option<i64>,
    pub(crate) unnoted: Option<Unnoted>,
    /// The group that its open run is in, and the run's place there.
    pub(crate) open_run: Option<(u64, usize)>,
    /// How the last group with a batch of this partition ends.
    pub(crate) last_group: Option<Rc<Outcome<Result<(), LogError>>>>,
    /// Below, records would not be cached if the cache used its whole budget.
    pub(crate) old_before: i64,
    /// Queued for materialisation.
    pub(crate) queued: bool,
    pub(crate) deleted: bool,
    pub(crate) waiters: Waiters,
}

/// Where to read.
pub(crate) enum ReadPlan {
    /// Nothing there yet.
    Empty,
    /// In memory: send these.
    Memory(Vec<Chunk>),
    /// In this segment.
    Segment(usize),
}

/// What holds a batch.
pub(crate) enum Holder {
    /// A run of batches in memory.
    Memory(Rc<dyn Memory>, std::ops::Range<usize>),
    Segment(Segment),
}

impl Partition {
    pub(crate) fn new(id: TopicPartition, config: Rc<TopicConfig>) -> Self {
        Self {
            id,
            config,
            marks: Marks::of_segments(0, 0),
            clean_offset: 0,
            segments: Vec::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            producers: Producers::default(),
            checkpointed: Producers::default(),
            appending: Appending::Nobody,
            appended_ms: None,
            unnoted: None,
            open_run: None,
            last_group: None,
            old_before: 0,
            queued: false,
            deleted: false,
            waiters: Waiters::default(),
        }
    }

    /// A partition as the manifest remembers it; its tail follows by [`Partition::push_extent`].
    pub(crate) fn restore(id: TopicPartition, config: Rc<TopicConfig>, state: PartitionState) -> Self {
        let mut partition = Self::new(id, config);
        let end = state.end_offset();
        partition.marks = Marks::of_segments(state.log_start_offset, end);
        partition.clean_offset = state.clean_offset;
        partition.segments = state.segments;
        for batch in &state.producers {
            partition.producers.note(*batch, batch.timestamp_ms.get());
        }
        partition.checkpointed = partition.producers.clone();
        partition.old_before = end;
        partition
    }

    /// What was found in the shared log is written and durable.
    pub(crate) fn recovered(&mut self) {
        if let Some(last) = self.tail.back() {
            self.marks.recover(last.end_offset);
        }
    }

    /// How far the log is.
    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The settings of its topic.
    pub(crate) fn config(&self) -> &Rc<TopicConfig> {
        &self.config
    }

    /// Its topic has other settings now.
    pub(crate) fn set_config(&mut self, config: Rc<TopicConfig>) {
        self.config = config;
        self.follow_log();
    }

    /// Gives offsets away, up to here.
    pub(crate) fn assign(&mut self, end: i64) {
        self.marks.assign(end);
    }

    /// The largest timestamp of what consumers can see, and what holds the first record with it. As with Kafka, that
    /// may be one below the log start which is still there.
    pub(crate) fn newest_timestamp(&self) -> Option<(i64, Holder)> {
        let mut newest = None;
        for segment in self.segments.iter().filter(|segment| segment.max_timestamp >= 0) {
            if newest.as_ref().is_none_or(|(known, _)| segment.max_timestamp > *known) {
                newest = Some((segment.max_timestamp, Holder::Segment(segment.clone())));
            }
        }
        let tail = self.tail.iter().filter(|e| e.base_offset >= self.marks.materialised());
        for extent in tail.take_while(|e| e.end_offset <= self.marks.high_watermark()) {
            let (memory, run) = (extent.live_memory(), extent.range());
            let timestamps = batches(&memory.bytes()[run.clone()]).flatten().map(|(info, _)| info.max_timestamp);
            let largest = timestamps.max().filter(|largest| *largest >= 0);
            if let Some(largest) = largest.filter(|largest| newest.as_ref().is_none_or(|(known, _)| largest > known)) {
                newest = Some((largest, Holder::Memory(memory, run)));
            }
        }
        newest
    }

    /// Everything below is written to the shared log.
    pub(crate) fn on_written(&mut self, end: i64) {
        self.marks.log_has(end, self.marks.durable());
        self.follow_log();
    }

    /// Everything below is on stable storage, in the shared log.
    pub(crate) fn on_durable(&mut self, end: i64) {
        self.marks.log_has(end, end);
        self.follow_log();
    }

    /// The rule by which the high watermark moves: with one replica, by what the log on this disk has as safely as the
    /// topic asks. What was seen once stays seen, also if its topic asks for more from then on.
    fn follow_log(&mut self) {
        let safe = match self.config.durability {
            Durability::Device => self.marks.durable(),
            Durability::Written => self.marks.written(),
        };
        self.show(safe);
    }

    /// Lets consumers see everything below, and wakes who waits for that.
    fn show(&mut self, end: i64) {
        let before = self.marks.high_watermark();
        if end > before {
            self.marks.show(end);
            let hidden = self.tail.iter().rev().take_while(|extent| extent.base_offset >= before);
            let shown = hidden.filter(|extent| extent.end_offset <= end);
            self.waiters.grow(shown.map(|extent| extent.len as usize).sum());
        }
    }

    /// Appends an extent to the tail. Offsets were assigned before.
    pub(crate) fn push_extent(&mut self, extent: Extent) {
        let expected = self.tail.back().map(|last| last.end_offset);
        assert!(expected.is_none_or(|end| end == extent.base_offset), "the tail is consecutive");
        self.tail_bytes += extent.len as usize;
        self.tail.push_back(extent);
    }

    /// Forgets leading extents that are materialised and not cached any more.
    pub(crate) fn prune_tail(&mut self) {
        while let Some(first) = self.tail.front() {
            if first.end_offset > self.marks.materialised() || first.backing.is_cached() {
                break;
            }
            self.tail.pop_front();
        }
    }

    /// Checks an offset to read from.
    pub(crate) fn check_offset(&self, offset: i64) -> Result<(), LogError> {
        let high_watermark = self.marks.high_watermark();
        if offset < self.marks.log_start() || offset > high_watermark {
            return Err(LogError::OffsetOutOfRange { log_start_offset: self.marks.log_start(), high_watermark });
        }
        Ok(())
    }

    /// Finds `offset`. `min_one` asks for the first batch even if it is larger than `max_bytes`.
    pub(crate) fn plan_read(&self, offset: i64, max_bytes: usize, min_one: bool) -> Result<ReadPlan, LogError> {
        self.check_offset(offset)?;
        if offset == self.marks.high_watermark() {
            return Ok(ReadPlan::Empty);
        }
        if self.tail.front().is_some_and(|first| first.base_offset <= offset) {
            let at = self.tail.partition_point(|extent| extent.end_offset <= offset);
            let extent = &self.tail[at];
            if extent.backing.is_cached() {
                return Ok(ReadPlan::Memory(self.cached(at, offset, max_bytes, min_one)));
            }
            assert!(extent.end_offset <= self.marks.materialised(), "what is not materialised is in memory");
        }
        let at = self.segments.partition_point(|segment| segment.end_offset <= offset);
        assert!(at < self.segments.len(), "an offset below the high watermark is in the tail or in a segment");
        Ok(ReadPlan::Segment(at))
    }

    fn cached(&self, first: usize, offset: i64, max_bytes: usize, min_one: bool) -> Vec<Chunk> {
        let high_watermark = self.marks.high_watermark();
        let mut chunks = Vec::new();
        let mut left = max_bytes;
        for extent in self.tail.range(first..) {
            let Some(memory) = extent.backing.memory() else {
                break;
            };
            if extent.end_offset > high_watermark {
                break;
            }
            let whole = extent.range();
            if extent.base_offset >= offset && whole.len() <= left {
                left -= whole.len();
                chunks.push(Chunk::Shared(memory, whole));
                continue;
            }
            let inner = select(&memory.bytes()[whole.clone()], offset, left, min_one && chunks.is_empty());
            if !inner.is_empty() {
                left -= inner.len().min(left);
                let cut = inner.end < whole.len();
                chunks.push(Chunk::Shared(memory, whole.start + inner.start..whole.start + inner.end));
                if !cut {
                    continue;
                }
            }
            break;
        }
        chunks
    }

    /// The extents to materialise next, oldest first: visible to consumers, and `bytes_max` at most, but at least one.
    pub(crate) fn materialisable(&self, bytes_max: usize) -> Vec<Extent> {
        let high_watermark = self.marks.high_watermark();
        let mut bytes = 0;
        let pending = self.tail.iter().skip_while(|e| e.base_offset < self.marks.materialised());
        pending
            .take_while(|e| e.end_offset <= high_watermark)
            .take_while(|e| {
                let first = bytes == 0;
                bytes += e.len as usize;
                first || bytes <= bytes_max
            })
            .cloned()
            .collect()
    }

    /// Extents from an offset to the tail's end.
    pub(crate) fn tail_from(&self, offset: i64) -> Vec<Extent> {
        self.tail.iter().skip_while(|e| e.base_offset < offset).cloned().collect()
    }

    /// A fat run is in its segments, with what lay before it. It was planned when its topic may have asked for less than
    /// it does now, and there it is on stable storage: so it is seen.
    pub(crate) fn fat_appended(&mut self, plan: &Plan, now_ms: i64) {
        self.show(plan.end_offset);
        self.appended(plan, now_ms);
    }

    /// Batches are in segments, on stable storage: these are the segments now. The manifest does not know yet.
    pub(crate) fn appended(&mut self, plan: &Plan, now_ms: i64) {
        let Some(first) = plan.writes.first() else {
            return;
        };
        let unnoted = self.unnoted.get_or_insert_with(|| Unnoted {
            first_segment: first.segment.base_offset,
            index_from: first.index_from,
            ..Unnoted::default()
        });
        for extent in &plan.extents {
            unnoted.bytes += extent.len as usize;
            match unnoted.pins.iter_mut().find(|(file, _)| *file == extent.backing.wal()) {
                Some((_, count)) => *count += 1,
                None => unnoted.pins.push((extent.backing.wal(), 1)),
            }
            extent.backing.end_live();
            self.tail_bytes -= extent.len as usize;
        }
        for batch in &plan.producers {
            unnoted.producers.note(*batch, now_ms);
            self.checkpointed.note(*batch, now_ms);
        }
        for write in &plan.writes {
            let segment = write.segment.clone();
            match self.segments.iter_mut().rfind(|known| known.base_offset == segment.base_offset) {
                Some(known) => *known = segment,
                None => self.segments.push(segment),
            }
        }
        self.marks.materialise(plan.end_offset);
        self.appended_ms = Some(now_ms);
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

    /// Takes what the manifest does not say yet of the segments, and the record that says it. What is appended from here
    /// on is noted the next time. Answer with [`Partition::put_back`] if the record could not be made durable.
    pub(crate) fn take_unnoted(&mut self) -> Option<(Unnoted, Advance)> {
        let unnoted = self.unnoted.take()?;
        let changed: Vec<&Segment> = self.segments.iter().filter(|s| s.base_offset >= unnoted.first_segment).collect();
        let active = changed.last().filter(|s| !s.sealed).and_then(|s| Some((s.base_offset, s.index.clone()?)));
        let index = active.map(|(base_offset, index)| {
            let from = if base_offset == unnoted.first_segment { unnoted.index_from } else { 0 };
            index[from..].to_vec()
        });
        let advance = Advance {
            segments: changed.iter().map(|segment| segment.meta()).collect(),
            index: index.unwrap_or_default(),
            producers: unnoted.producers.batches(),
        };
        for sealed in self.segments.iter_mut().filter(|segment| segment.sealed) {
            sealed.index = None; // it is in the footer
        }
        Some((unnoted, advance))
    }

    /// The manifest does not know after all.
    pub(crate) fn put_back(&mut self, mut earlier: Unnoted) {
        if let Some(later) = self.unnoted.take() {
            for batch in later.producers.batches() {
                earlier.producers.note(batch, batch.timestamp_ms.get());
            }
            earlier.pins.extend(later.pins);
            earlier.bytes += later.bytes;
        }
        self.unnoted = Some(earlier);
    }

    /// What the manifest says of it.
    pub(crate) fn state(&self) -> PartitionState {
        PartitionState {
            log_start_offset: self.marks.log_start(),
            clean_offset: self.clean_offset,
            segments: self.segments.clone(),
            producers: self.checkpointed.batches(),
        }
    }

    /// The log lost its head, and the manifest knows.
    pub(crate) fn trim(&mut self, log_start: i64, first_segment: i64) {
        self.marks.trim(log_start);
        self.segments.retain(|segment| segment.base_offset >= first_segment);
        self.waiters.wake(); // what they wait for may be gone
    }

    /// The segments that compaction may rewrite: sealed, and the manifest knows.
    pub(crate) fn sealed(&self) -> &[Segment] {
        let noted = self.unnoted.as_ref().map_or(i64::MAX, |unnoted| unnoted.first_segment);
        let sealed = self.segments.iter().take_while(|segment| segment.sealed && segment.base_offset < noted).count();
        &self.segments[..sealed]
    }

    /// Whether these segments are all still there, as they were, one behind the other.
    pub(crate) fn holds(&self, names: &[SegmentName]) -> bool {
        let Some(first) = names.first() else {
            return true;
        };
        let at = self.segments.partition_point(|segment| segment.base_offset < first.base_offset);
        let here = self.segments[at..].iter().map(Segment::name);
        here.take(names.len()).eq(names.iter().copied())
    }

    /// Segments were compacted, and the manifest knows.
    pub(crate) fn replace(&mut self, replace: &Replace) {
        let is_removed = |segment: &&Segment| replace.removed.iter().any(|base| base.get() == segment.base_offset);
        let end = self.segments.iter().filter(is_removed).map(|segment| segment.end_offset).max();
        // Readers must find what compaction left, not what is still in memory.
        let is_old = |extent: &Extent| Some(extent.base_offset) < end && extent.end_offset <= self.marks.materialised();
        while self.tail.front().is_some_and(is_old) {
            self.tail.pop_front();
        }
        self.old_before = self.old_before.max(end.unwrap_or(0));
        let added = replace.added.iter().map(Segment::from_meta);
        self.segments = manifest::replaced(&self.segments, &replace.removed, added);
        self.clean_offset = replace.clean_offset;
    }

    /// Where the log should start, by retention.ms and retention.bytes; `None` if nothing is to go.
    pub(crate) fn expired(&mut self, now_ms: i64) -> Option<i64> {
        let appended_ms = *self.appended_ms.get_or_insert(now_ms);
        let start = retention::expired(&self.segments, self.tail_bytes as u64, appended_ms, &self.config, now_ms);
        start.filter(|start| *start > self.marks.log_start())
    }

    /// Index of the active segment, if there is one.
    pub(crate) fn active(&self) -> Option<usize> {
        self.segments.last().filter(|s| !s.sealed).map(|_| self.segments.len() - 1)
    }
}
