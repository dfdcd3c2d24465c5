//! Cutting off the end of a partition's log: where a cut can land, and what is left.

use super::{Partition, marks::Marks, producers::Producers, run, segments::Segments, tail::Extent};
use crate::{
    batch::batches,
    format::{
        manifest::{self, Cut, Transactions, logged_producer_batch},
        segment::{Segment, SegmentName},
    },
};

/// Where the end of a log can be cut off at or below an offset.
pub(crate) enum Landing {
    /// There.
    At(i64),
    /// Between two batches of this segment, or at its begin: it has to be read for that.
    In(Segment),
}

/// What a cut took off.
pub(crate) struct CutOff {
    /// Extents that were in no segment, and are not wanted any more.
    pub(crate) live: Vec<Extent>,
    /// Bytes of the one that was cut in two.
    pub(crate) bytes: usize,
    /// Segments that are no more.
    pub(crate) gone: Vec<SegmentName>,
    /// The segment that is shorter now, and active again.
    pub(crate) shortened: Option<SegmentName>,
}

impl Partition {
    /// Where a cut at an offset lands. Outside of the log it lands where it is wanted, and leaves nothing.
    pub(crate) fn landing(&self, mut offset: i64) -> Landing {
        if !(self.marks.log_start()..=self.marks.end()).contains(&offset) {
            return Landing::At(offset);
        }
        if offset > self.marks.materialised() {
            return Landing::At(self.tail_landing(offset));
        }
        loop {
            match self.segments.cut_by(offset) {
                None => {
                    let before = self.segments.ended_below(offset).last();
                    // The log may start inside a segment, or in a gap before the first one.
                    let start = self.marks.log_start().min(offset);
                    return Landing::At(before.map_or(start, |segment| segment.end_offset));
                }
                // Which offsets a rewritten segment once had is not known any more.
                Some(rewritten) if rewritten.generation > 0 => offset = rewritten.base_offset,
                Some(segment) => return Landing::In(segment.clone()),
            }
        }
    }

    /// The end of the last batch of the tail that ends at or below an offset.
    fn tail_landing(&self, offset: i64) -> i64 {
        let materialised = self.marks.materialised();
        let below = self.tail.from(materialised).take_while(|extent| extent.base_offset < offset);
        let Some(last) = below.last() else { return materialised };
        if last.end_offset <= offset {
            return last.end_offset;
        }
        let memory = last.live_memory();
        let batches = &memory.bytes()[last.range()];
        let end = run::end_below(batches, offset);
        end.unwrap_or(last.base_offset)
    }

    /// Whether nothing of the log, and no leader epoch, is at or behind an offset.
    pub(crate) fn ends_at(&self, offset: i64) -> bool {
        let newest = self.history.epochs().newest();
        self.marks.end() == offset && newest.is_none_or(|newest| newest.start_offset.get() < offset)
    }

    /// Cuts the tail, above what segments hold. The shared log says so durably.
    pub(crate) fn cut_tail(&mut self, end: i64) -> CutOff {
        let materialised = self.marks.materialised();
        let (live, bytes) = self.tail.cut(end);
        self.history.cut(end, materialised);
        let high_watermark = self.marks.high_watermark().min(end);
        self.marks = Marks::cut(self.marks.log_start(), materialised, high_watermark, end);
        self.producers = self.checkpointed.clone();
        self.transactions.cut(materialised);
        let mut left = Vec::new();
        for extent in self.tail.from(materialised) {
            let memory = extent.live_memory();
            let batches = batches(&memory.bytes()[extent.range()]).flatten();
            left.extend(batches.filter_map(|(info, bytes)| logged_producer_batch(&info, bytes)));
        }
        for batch in left {
            self.note_batch(batch, batch.timestamp_ms.get());
        }
        self.after_cut(end);
        CutOff { live, bytes, gone: Vec::new(), shortened: None }
    }

    /// Cuts what segments hold. The manifest says so durably, and lacked nothing before.
    pub(crate) fn cut_segments(&mut self, cut: Cut, transactions: Transactions) -> CutOff {
        assert!(
            self.unnoted.as_ref().is_none_or(|unnoted| unnoted.changed.is_none()),
            "the manifest knows the segments"
        );
        let before: Vec<SegmentName> = self.segments.all().iter().map(Segment::name).collect();
        let shortened = cut.segments.last().map(|meta| Segment::from_meta(meta).name());
        let mut state = self.state();
        let is_outside = !(state.log_start_offset..=state.end_offset()).contains(&cut.end_offset);
        match is_outside {
            true => self.history.begin_anew(cut.end_offset),
            false => self.history.cut(cut.end_offset, cut.end_offset),
        }
        manifest::apply_cut(&mut state, cut);
        manifest::apply_transactions(&mut state, transactions);
        let (start, end) = (state.log_start_offset, state.end_offset());
        let live = self.tail.take_live(self.marks.materialised());
        let high_watermark = self.marks.high_watermark().min(end).max(start);
        self.marks = Marks::cut(start, end, high_watermark, end);
        self.segments = Segments::new(state.segments);
        self.clean_offset = state.clean_offset;
        self.checkpointed = Producers::restore(&state.producers, &state.open);
        self.producers = self.checkpointed.clone();
        self.transactions.cut(end);
        self.after_cut(end);
        let gone = before.into_iter().filter(|name| !self.segments.holds(&[*name])).collect();
        CutOff { live, bytes: 0, gone, shortened }
    }

    fn after_cut(&mut self, end: i64) {
        self.replication.cut(end);
        // What a marker ended that is gone is undecided again.
        self.last_stable = self.marks.log_start();
        self.follow_marks();
        (self.open_run, self.last_group) = (None, None);
        self.old_before = self.old_before.min(end);
        self.waiters.wake(); // what they wait for may be gone
        self.stable_waiters.wake();
    }
}
