//! The segments of a partition, in the order of their offsets. Pure.
//!
//! What always holds: they are consecutive but for what compaction took away, and only the last one may be active.

use crate::format::{
    manifest::{self, Replace},
    segment::{Segment, SegmentName},
};

/// See the module.
pub(crate) struct Segments {
    all: Vec<Segment>,
    /// Whether one of them may have markers of aborted transactions.
    may_have_aborted: bool,
}

impl Segments {
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        let may_have_aborted = segments.iter().any(|segment| segment.has_aborted);
        Self { all: segments, may_have_aborted }
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Segment] {
        &self.all
    }

    /// Bytes of batches.
    pub(crate) fn bytes(&self) -> u64 {
        self.all.iter().map(|segment| segment.size).sum()
    }

    /// Those that end above an offset.
    pub(crate) fn from(&self, offset: i64) -> &[Segment] {
        &self.all[self.all.partition_point(|segment| segment.end_offset <= offset)..]
    }

    /// The active one, if there is one.
    pub(crate) fn active(&self) -> Option<&Segment> {
        self.all.last().filter(|segment| !segment.sealed)
    }

    /// Those that have ended, below an offset.
    pub(crate) fn sealed_before(&self, offset: i64) -> &[Segment] {
        let sealed = self.all.iter().take_while(|segment| segment.sealed && segment.base_offset < offset).count();
        &self.all[..sealed]
    }

    /// Those that begin at an offset or above.
    pub(crate) fn begun_from(&self, base_offset: i64) -> &[Segment] {
        &self.all[self.all.partition_point(|segment| segment.base_offset < base_offset)..]
    }

    /// Whether these are all still there, as they were, one behind the other.
    pub(crate) fn holds(&self, names: &[SegmentName]) -> bool {
        let Some(first) = names.first() else {
            return true;
        };
        let here = self.begun_from(first.base_offset).iter().map(Segment::name);
        here.take(names.len()).eq(names.iter().copied())
    }

    /// The one that goes beyond an offset and has something below it.
    pub(crate) fn cut_by(&self, offset: i64) -> Option<&Segment> {
        self.from(offset).first().filter(|segment| segment.base_offset < offset)
    }

    /// Those that have nothing at or above an offset.
    pub(crate) fn ended_below(&self, offset: i64) -> &[Segment] {
        &self.all[..self.all.partition_point(|segment| segment.end_offset <= offset)]
    }

    /// Those with markers of aborted transactions among those that end above an offset.
    pub(crate) fn with_aborted(&self, offset: i64) -> impl Iterator<Item = &Segment> {
        let from: &[Segment] = if self.may_have_aborted { self.from(offset) } else { &[] };
        from.iter().filter(|segment| segment.has_aborted)
    }

    /// The lowest first offset of a segment's aborted transactions is known now.
    pub(crate) fn note_aborted_from(&mut self, name: SegmentName, first_offset: i64) {
        if let Some(known) = self.all.iter_mut().find(|segment| segment.name() == name) {
            known.aborted_from = Some(first_offset);
        }
    }

    /// Puts a segment in the place of an earlier state of it, or at the end.
    pub(super) fn put(&mut self, segment: Segment) {
        self.may_have_aborted |= segment.has_aborted;
        match self.all.iter_mut().rfind(|known| known.base_offset == segment.base_offset) {
            Some(known) => *known = segment,
            None => self.all.push(segment),
        }
    }

    /// Keeps no indexes and aborted transactions of those that have ended: they are in the footers.
    pub(super) fn drop_indexes(&mut self) {
        for sealed in self.all.iter_mut().filter(|segment| segment.sealed) {
            (sealed.index, sealed.aborted) = (None, None);
        }
    }

    /// Forgets what begins below an offset.
    pub(super) fn trim(&mut self, first_segment: i64) {
        self.all.retain(|segment| segment.base_offset >= first_segment);
    }

    /// Puts what compaction left in the place of what it read. Answers where that ends, if there was some.
    pub(super) fn replace(&mut self, replace: &Replace) -> Option<i64> {
        let is_removed = |segment: &&Segment| replace.removed.iter().any(|base| base.get() == segment.base_offset);
        let end = self.all.iter().filter(is_removed).map(|segment| segment.end_offset).max();
        let added = replace.added.iter().map(Segment::from_meta);
        self.all = manifest::replaced(&self.all, &replace.removed, added);
        end
    }
}
