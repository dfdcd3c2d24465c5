//! From the tail to segments: what to write where, when to roll, what the manifest will say. Pure; the keeper does it.

use std::{ops::Range, rc::Rc};

use crate::{
    batch::BatchInfo, chunk::Memory, config::TopicConfig, manifest::ProducerBatch, partition::Extent,
    producer::Producers, segment::Segment, store::producer_batch, wal::format::SegmentPointer,
};

/// A slice of a group.
pub(crate) struct Piece {
    pub(crate) memory: Rc<dyn Memory>,
    pub(crate) range: Range<usize>,
}

/// What one segment's file gets.
pub(crate) struct SegmentWrite {
    /// The segment when this is done.
    pub(crate) segment: Segment,
    /// Its size before; 0 for a new one.
    pub(crate) from: u64,
    /// Batches to append.
    pub(crate) pieces: Vec<Piece>,
    /// Entries of its index before.
    pub(crate) index_from: usize,
}

/// What is to be done for one partition.
pub(crate) struct Plan {
    pub(crate) writes: Vec<SegmentWrite>,
    /// Everything below is in segments then.
    pub(crate) end_offset: i64,
    pub(crate) producers: Vec<ProducerBatch>,
    pub(crate) extents: Vec<Extent>,
}

impl Plan {
    /// Where the last extent's batches go, if they all go to one place.
    pub(crate) fn last_place(&self) -> Option<SegmentPointer> {
        let (write, extent) = (self.writes.last()?, self.extents.last()?);
        let last = write.pieces.last()?;
        let position = write.segment.size.checked_sub(u64::from(extent.len))?;
        let whole = !write.segment.sealed && last.range.len() >= extent.len as usize && position >= write.from;
        let pieces = self.writes.iter().flat_map(|write| &write.pieces);
        let checksum =
            || pieces.fold(0, |sum, piece| crc32c::crc32c_append(sum, &piece.memory.bytes()[piece.range.clone()]));
        whole.then(|| SegmentPointer {
            segment: write.segment.base_offset.into(),
            position: position.into(),
            from_offset: self.extents[0].base_offset.into(),
            checksum: checksum().into(),
            reserved: 0.into(),
        })
    }
}

/// Plans the appending of extents behind the active segment, or to a new one.
pub(crate) fn plan(active: Option<&Segment>, extents: Vec<Extent>, config: &TopicConfig, now_ms: i64) -> Plan {
    let mut writes = Vec::new();
    let mut open = active.cloned().map(SegmentWrite::append_to);
    let mut remembered = Producers::default();
    for extent in &extents {
        let memory = extent.slot.bytes.borrow().clone().expect("what is not materialised is in memory");
        let (mut at, end) = (extent.at as usize, (extent.at + extent.len) as usize);
        while at < end {
            let info =
                BatchInfo::parse(&memory.bytes()[at..end]).expect("batches were checked before they were logged");
            if open.as_ref().is_some_and(|write| rolls(&write.segment, info.size, config, now_ms)) {
                writes.extend(open.take().map(SegmentWrite::sealed));
            }
            let begin = || SegmentWrite::append_to(Segment::begin(info.base_offset, now_ms));
            open.get_or_insert_with(begin).push(&memory, at, &info);
            if info.producer_id >= 0 {
                remembered.note(producer_batch(&info, info.base_offset, info.max_timestamp), now_ms);
            }
            at += info.size;
        }
    }
    writes.extend(open.filter(|write| !write.pieces.is_empty()));
    let end_offset = extents.last().map_or(0, |extent| extent.end_offset);
    Plan { writes, end_offset, producers: remembered.batches(), extents }
}

/// Whether the segment is too full for that many bytes, or old, so that they go to a new one.
fn rolls(segment: &Segment, bytes: usize, config: &TopicConfig, now_ms: i64) -> bool {
    segment.size > 0
        && (segment.size + bytes as u64 > config.segment_bytes
            || now_ms - segment.created_ms >= roll_ms(segment, config))
}

/// Whether appending a partition's tail would end its active segment; without one, whether it should begin soon, because
/// segments are to be short.
pub(crate) fn would_roll(active: Option<&Segment>, tail_bytes: usize, config: &TopicConfig, now_ms: i64) -> bool {
    /// Longer ones may begin a little later: when tails are brought to segments anyway.
    const SHORT_MS: i64 = 5 * 60 * 1000;
    match active.filter(|segment| segment.size > 0) {
        Some(active) => rolls(active, tail_bytes, config, now_ms),
        None => config.segment_roll_ms() < SHORT_MS || tail_bytes as u64 > config.segment_bytes,
    }
}

/// Age at which a segment rolls: `segment.jitter.ms` spreads those that were begun together.
fn roll_ms(segment: &Segment, config: &TopicConfig) -> i64 {
    let spread = crc32c::crc32c(&segment.created_ms.wrapping_add(segment.base_offset).to_le_bytes());
    let jitter = i64::from(spread).checked_rem(config.segment_jitter_ms).unwrap_or(0);
    config.segment_roll_ms() - jitter
}

impl SegmentWrite {
    fn append_to(segment: Segment) -> Self {
        let index_from = segment.index.as_ref().map_or(0, |index| index.len());
        Self { from: segment.size, index_from, pieces: Vec::new(), segment }
    }

    /// The segment ends here: its footer is written behind its batches.
    pub(crate) fn sealed(mut self) -> Self {
        self.segment.sealed = true;
        self
    }

    fn push(&mut self, memory: &Rc<dyn Memory>, at: usize, info: &BatchInfo) {
        self.segment.push(info);
        match self.pieces.last_mut() {
            Some(last) if Rc::ptr_eq(&last.memory, memory) && last.range.end == at => last.range.end += info.size,
            _ => self.pieces.push(Piece { memory: memory.clone(), range: at..at + info.size }),
        }
    }
}
