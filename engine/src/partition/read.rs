//! Where a partition's records are, for who reads them.

use std::{ops::Range, rc::Rc};

use super::Partition;
use crate::{
    api::LogError,
    batch::batches,
    chunk::{Chunk, Memory},
    format::segment::Segment,
};

/// Where to read.
pub(crate) enum ReadPlan {
    /// Nothing there yet.
    Empty,
    /// In memory: send these.
    Memory(Vec<Chunk>),
    /// In this segment.
    Segment(Segment),
}

/// What holds a batch.
pub(crate) enum Holder {
    /// A run of batches in memory.
    Memory(Rc<dyn Memory>, Range<usize>),
    Segment(Segment),
}

impl Partition {
    /// Checks an offset to read from.
    pub(crate) fn check_offset(&self, offset: i64) -> Result<(), LogError> {
        let (log_start_offset, high_watermark) = (self.marks.log_start(), self.marks.high_watermark());
        match (log_start_offset..=high_watermark).contains(&offset) {
            true => Ok(()),
            false => Err(LogError::OffsetOutOfRange { log_start_offset, high_watermark }),
        }
    }

    /// Finds `offset`. `min_one` asks for the first batch even if it is larger than `max_bytes`.
    pub(crate) fn plan_read(&self, offset: i64, max_bytes: usize, min_one: bool) -> Result<ReadPlan, LogError> {
        self.check_offset(offset)?;
        let end = self.marks.high_watermark();
        if offset == end {
            return Ok(ReadPlan::Empty);
        }
        if self.tail.has(offset) {
            return Ok(ReadPlan::Memory(self.tail.read(offset, end, max_bytes, min_one)));
        }
        let segment = self.segments.from(offset).first();
        let segment = segment.expect("an offset below the high watermark is in memory or in a segment");
        Ok(ReadPlan::Segment(segment.clone()))
    }

    /// The largest timestamp of what consumers can see, and what holds the first record with it. As with Kafka, that
    /// may be one below the log start which is still there.
    pub(crate) fn newest_timestamp(&self) -> Option<(i64, Holder)> {
        let mut newest = None;
        for segment in self.segments.all().iter().filter(|segment| segment.max_timestamp >= 0) {
            if newest.as_ref().is_none_or(|(known, _)| segment.max_timestamp > *known) {
                newest = Some((segment.max_timestamp, Holder::Segment(segment.clone())));
            }
        }
        let live = self.tail.from(self.marks.materialised());
        for extent in live.take_while(|e| e.end_offset <= self.marks.high_watermark()) {
            let (memory, run) = (extent.live_memory(), extent.range());
            let timestamps = batches(&memory.bytes()[run.clone()]).flatten().map(|(info, _)| info.max_timestamp);
            let largest = timestamps.max().filter(|largest| *largest >= 0);
            if let Some(largest) = largest.filter(|largest| newest.as_ref().is_none_or(|(known, _)| largest > known)) {
                newest = Some((largest, Holder::Memory(memory, run)));
            }
        }
        newest
    }
}
