//! Where a partition's records are, for who reads them.

use std::{ops::Range, rc::Rc};

use super::Partition;
use crate::{
    api::LogError,
    batch::batches,
    chunk::{Chunk, Memory},
    format::segment::Segment,
};

/// What a reader wants of a log: whole batches from the one that holds an offset on, none of which goes beyond an end. That
/// may lie anywhere: readers of what is committed stop short of what they could see otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// First offset.
    pub(crate) offset: i64,
    /// Where a batch ends, one past the last offset that may be read.
    pub(crate) end: i64,
    /// How often the log's end had been cut off as `end` was taken: it may be no end any more after another cut.
    pub(crate) cuts: u32,
    /// Bytes at most,
    pub(crate) max_bytes: usize,
    /// but of the first batch all, also if it is larger.
    pub(crate) min_one: bool,
    pub(crate) by: Way,
}

/// How a reader takes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As they lie: also as a range of a file, to be sent by the kernel.
    AsItLies,
    /// In memory.
    ToMemory,
}

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
    /// Checks an offset that a consumer wants to read from.
    pub(crate) fn check_offset(&self, offset: i64) -> Result<(), LogError> {
        self.check_offset_below(offset, self.consumers_end())
    }

    /// Up to where consumers may stand. Of a replicated partition beyond what they may read here: before its leader
    /// changed, or from another replica, they may have read more, and wait until this one knows that they could.
    fn consumers_end(&self) -> i64 {
        match self.replication.is_replicated() {
            true => self.marks.end(),
            false => self.marks.high_watermark(),
        }
    }

    fn check_offset_below(&self, offset: i64, end: i64) -> Result<(), LogError> {
        let (log_start_offset, high_watermark) = (self.marks.log_start(), self.marks.high_watermark());
        match (log_start_offset..=end).contains(&offset) {
            true => Ok(()),
            false => Err(LogError::OffsetOutOfRange { log_start_offset, high_watermark }),
        }
    }

    /// Finds what a reader wants.
    pub(crate) fn plan_read(&self, wanted: &Wanted) -> Result<ReadPlan, LogError> {
        if wanted.cuts != self.era().cuts {
            return Err(LogError::NotLeader); // what was read before it may be of another log
        }
        // Followers read beyond what consumers see.
        self.check_offset_below(wanted.offset, wanted.end.max(self.consumers_end()))?;
        if wanted.offset >= wanted.end {
            return Ok(ReadPlan::Empty);
        }
        if let Some(chunks) = self.tail.read(wanted) {
            return Ok(ReadPlan::Memory(chunks));
        }
        let segment = self.segments.from(wanted.offset).first();
        let segment = segment.expect("an offset below the end of the tail is in memory or in a segment");
        Ok(match segment.base_offset < wanted.end {
            true => ReadPlan::Segment(segment.clone()),
            false => ReadPlan::Empty, // compaction left nothing in between
        })
    }

    /// The largest timestamp below an end, and what holds the first record with it. As with Kafka, that may be one below the
    /// log start which is still there. A segment that goes beyond the end is left out: it has to be read for that.
    pub(crate) fn newest_timestamp(&self, end: i64) -> Option<(i64, Holder)> {
        let mut newest = None;
        for segment in self.segments.ended_below(end).iter().filter(|segment| segment.max_timestamp >= 0) {
            if newest.as_ref().is_none_or(|(known, _)| segment.max_timestamp > *known) {
                newest = Some((segment.max_timestamp, Holder::Segment(segment.clone())));
            }
        }
        for extent in self.tail.from(self.marks.materialised()).take_while(|extent| extent.base_offset < end) {
            let (memory, run) = (extent.live_memory(), extent.range());
            let below =
                batches(&memory.bytes()[run.clone()]).flatten().take_while(|(info, _)| info.last_offset() < end);
            let largest = below.map(|(info, _)| info.max_timestamp).max().filter(|largest| *largest >= 0);
            if let Some(largest) = largest.filter(|largest| newest.as_ref().is_none_or(|(known, _)| largest > known)) {
                newest = Some((largest, Holder::Memory(memory, run)));
            }
        }
        newest
    }
}
