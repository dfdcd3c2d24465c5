//! From the tail to segments: what to write where, when to roll, what the manifest will say. Pure; the keeper does it.

use std::{ops::Range, rc::Rc};

use crate::{
    batch::BatchInfo,
    chunk::Memory,
    config::TopicConfig,
    format::{manifest::logged_producer_batch, segment::Segment, wal::SegmentPointer},
    partition::{producers::Producers, tail::Extent, transactions::Aborted},
};

/// Segments that a plan ends before it leaves further extents to the next one: each is a file to be open and flushed.
const SEGMENTS_MAX: usize = 64;
/// Segments that a plan ends at all: an extent is not divided, so what is behind in its last one stays together. The
/// manifest's note of a plan, and of the fat runs before it, fits one page, and so is whole or not there.
const SEGMENTS_OF_RUN_MAX: usize = 256;

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
    /// Aborted transactions in it before.
    pub(crate) aborted_from: usize,
}

/// What is to be done for one partition.
pub(crate) struct Plan {
    pub(crate) writes: Vec<SegmentWrite>,
    /// Everything below is in segments then.
    pub(crate) end_offset: i64,
    /// Of the batches that are written.
    pub(crate) producers: Producers,
    /// Whether some of these are of transactions.
    pub(crate) has_transactions: bool,
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

/// Plans the appending of extents behind the active segment, or to a new one; of the first ones, if all would make too
/// many segments. `aborted`: the transactions that were aborted by markers in them.
pub(crate) fn plan(
    active: Option<&Segment>,
    mut extents: Vec<Extent>,
    aborted: Aborted<'_>,
    config: &TopicConfig,
    now_ms: i64,
) -> Plan {
    let mut writes = Vec::new();
    let mut open = active.cloned().map(SegmentWrite::append_to);
    let mut remembered = Producers::default();
    let mut has_transactions = false;
    let mut planned = 0;
    let mut end_offset = extents.first().map_or(0, |first| first.base_offset);
    while planned < extents.len() && writes.len() < SEGMENTS_MAX {
        for (memory, at, info) in batches(&extents[planned]) {
            let may_roll = writes.len() < SEGMENTS_OF_RUN_MAX;
            if may_roll && open.as_ref().is_some_and(|write| rolls(&write.segment, &info, config, now_ms)) {
                writes.extend(open.take().map(SegmentWrite::sealed));
            }
            // What a follower was given may have gaps: a segment begins where the one before ended all the same.
            let begin = || SegmentWrite::append_to(Segment::begin(end_offset, now_ms));
            open.get_or_insert_with(begin).push(&memory, at, &info);
            end_offset = info.last_offset() + 1;
            if let Some(batch) = logged_producer_batch(&info, &memory.bytes()[at..at + info.size]) {
                has_transactions |= info.is_transactional();
                remembered.note(batch, now_ms);
            }
            let entry = if info.is_control() { aborted.ended_at(info.base_offset) } else { None };
            if let (Some(entry), Some(open)) = (entry, &mut open) {
                open.segment.push_aborted(entry);
            }
        }
        planned += 1;
    }
    extents.truncate(planned);
    writes.extend(open.filter(|write| !write.pieces.is_empty()));
    let end_offset = extents.last().map_or(0, |extent| extent.end_offset);
    Plan { writes, end_offset, producers: remembered, has_transactions, extents }
}

/// The batches of an extent, each with the memory that holds it and where it begins there.
fn batches(extent: &Extent) -> impl Iterator<Item = (Rc<dyn Memory>, usize, BatchInfo)> + use<> {
    let (memory, Range { start: mut at, end }) = (extent.live_memory(), extent.range());
    std::iter::from_fn(move || {
        let rest = memory.bytes().get(at..end).filter(|rest| !rest.is_empty())?;
        let info = BatchInfo::parse(rest).expect("batches were checked before they were logged");
        at += info.size;
        Some((memory.clone(), at - info.size, info))
    })
}

/// Whether a batch goes to a new segment, by Kafka's rule: because the segment is too full for it, because the batch is
/// later than the segment's first one by the age at which segments roll, by the records' own time, or because its
/// offsets are too far from the first. So a log that is filled with old records rolls as it once did, and retention finds
/// what is old. Only where the first batch has no timestamp, the time since the segment was begun counts.
fn rolls(segment: &Segment, next: &BatchInfo, config: &TopicConfig, now_ms: i64) -> bool {
    let waited_ms = match segment.first_timestamp >= 0 {
        true => next.max_timestamp.saturating_sub(segment.first_timestamp),
        false => now_ms.saturating_sub(segment.created_ms),
    };
    segment.size > 0
        && ((next.is_control() && segment.is_full_of_aborted())
            || segment.size + next.size as u64 > config.segment_bytes
            || waited_ms > roll_ms(segment, config)
            || next.last_offset() - segment.base_offset > i64::from(i32::MAX))
}

/// Whether appending a partition's tail would end a segment; without an active one, also whether it should begin soon,
/// because segments are to be short.
pub(crate) fn would_roll(active: Option<&Segment>, tail: &[Extent], config: &TopicConfig, now_ms: i64) -> bool {
    /// Longer ones may begin a little later: when tails are brought to segments anyway.
    const SHORT_MS: i64 = 5 * 60 * 1000;
    if active.is_none() && config.segment_roll_ms() < SHORT_MS {
        return true;
    }
    // its index is not needed for that
    let mut open = active.map(|active| Segment { index: None, ..active.clone() });
    tail.iter().flat_map(batches).any(|(_, _, info)| {
        let open = open.get_or_insert_with(|| Segment::begin(info.base_offset, now_ms));
        let rolls = rolls(open, &info, config, now_ms);
        open.push_behind_gap(&info);
        rolls
    })
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
        let aborted_from = segment.aborted.as_ref().map_or(0, |aborted| aborted.len());
        Self { from: segment.size, index_from, aborted_from, pieces: Vec::new(), segment }
    }

    /// The segment ends here: its footer is written behind its batches.
    pub(crate) fn sealed(mut self) -> Self {
        self.segment.sealed = true;
        self
    }

    fn push(&mut self, memory: &Rc<dyn Memory>, at: usize, info: &BatchInfo) {
        self.segment.push_behind_gap(info);
        match self.pieces.last_mut() {
            Some(last) if Rc::ptr_eq(&last.memory, memory) && last.range.end == at => last.range.end += info.size,
            _ => self.pieces.push(Piece { memory: memory.clone(), range: at..at + info.size }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, Codec, Record};

    const DAY_MS: i64 = 86_400_000;
    const NOW_MS: i64 = 20_000 * DAY_MS;

    /// Batches of one record each from an offset on, with these timestamps.
    fn run(base_offset: i64, timestamps: &[i64]) -> Extent {
        let batch = |(offset, timestamp): (i64, &i64)| {
            let mut builder = BatchBuilder::new(Codec::None, offset);
            builder.push(&Record { offset, timestamp: *timestamp, key: None, value: None, headers: vec![] });
            builder.finish()
        };
        Extent::of(&(base_offset..).zip(timestamps).map(batch).collect::<Vec<_>>())
    }

    fn config() -> TopicConfig {
        TopicConfig { segment_ms: 7 * DAY_MS, ..TopicConfig::default() }
    }

    /// First offsets of the segments that a plan writes, and whether they end there.
    fn planned(active: Option<&Segment>, extents: Vec<Extent>) -> Vec<(i64, bool)> {
        let plan = plan(active, extents, Aborted::default(), &config(), NOW_MS);
        plan.writes.iter().map(|write| (write.segment.base_offset, write.segment.sealed)).collect()
    }

    #[test]
    fn a_segment_ends_by_the_clock_of_its_records() {
        let month_ago = NOW_MS - 30 * DAY_MS;
        let backfill = [month_ago, month_ago + DAY_MS, month_ago + 7 * DAY_MS];
        assert_eq!(planned(None, vec![run(0, &backfill)]), [(0, false)], "no more than segment.ms behind the first");
        let (old, new) = (run(0, &backfill), run(3, &[month_ago + 7 * DAY_MS + 1, NOW_MS, NOW_MS]));
        assert_eq!(planned(None, vec![old.clone(), new.clone()]), [(0, true), (3, true), (4, false)]);
        let active = plan(None, vec![old], Aborted::default(), &config(), NOW_MS).writes.remove(0).segment;
        assert_eq!(
            planned(Some(&active), vec![new]),
            [(0, true), (3, true), (4, false)],
            "the first one was begun before"
        );
        assert_eq!(planned(None, vec![run(0, &[NOW_MS, month_ago, NOW_MS])]), [(0, false)], "older ones end nothing");
        assert_eq!(planned(None, vec![run(0, &[NOW_MS + 30 * DAY_MS, NOW_MS])]), [(0, false)]);
    }

    #[test]
    fn the_wall_clock_does_not_end_a_segment_of_records_with_timestamps() {
        let begun = |timestamp| {
            let mut segment =
                plan(None, vec![run(0, &[timestamp])], Aborted::default(), &config(), NOW_MS).writes.remove(0).segment;
            segment.created_ms = NOW_MS - 30 * DAY_MS;
            segment
        };
        let next = || vec![run(1, &[NOW_MS])];
        assert_eq!(planned(Some(&begun(NOW_MS - DAY_MS)), next()), [(0, false)]);
        assert_eq!(planned(Some(&begun(0)), next()), [(0, true), (1, false)], "1970 is a time");
        assert_eq!(planned(Some(&begun(-1)), next()), [(0, true), (1, false)], "without a time it does");
        let young = Segment { created_ms: NOW_MS - 7 * DAY_MS, ..begun(-1) };
        assert_eq!(planned(Some(&young), next()), [(0, false)]);
    }

    #[test]
    fn offsets_of_a_segment_lie_close_together() {
        let active = |base_offset| {
            let active =
                plan(None, vec![run(0, &[NOW_MS])], Aborted::default(), &config(), NOW_MS).writes.remove(0).segment;
            Segment { base_offset, ..active }
        };
        let far = -i64::from(i32::MAX);
        assert_eq!(planned(Some(&active(far + 1)), vec![run(1, &[NOW_MS])]), [(far + 1, false)]);
        assert_eq!(planned(Some(&active(far)), vec![run(1, &[NOW_MS])]), [(far, true), (1, false)]);
    }

    #[test]
    fn a_plan_ends_few_segments_and_leaves_the_rest() {
        let weeks = |from: i64, count: i64| (from..from + count).map(|week| week * 8 * DAY_MS).collect::<Vec<_>>();
        let runs = vec![run(0, &weeks(0, 60)), run(60, &weeks(60, 60)), run(120, &weeks(120, 60))];
        let first = plan(None, runs.clone(), Aborted::default(), &config(), NOW_MS);
        assert_eq!((first.end_offset, first.extents.len(), first.writes.len()), (120, 2, 120));
        let active = first.writes.last().map(|write| &write.segment);
        let rest = plan(active, runs[2..].to_vec(), Aborted::default(), &config(), NOW_MS);
        assert_eq!((rest.end_offset, rest.writes.len()), (180, 61));
        assert!(rest.writes[0].pieces.is_empty() && rest.writes[0].segment.sealed, "it ended with the first plan");
        let one_run = plan(None, vec![run(0, &weeks(0, 1_000))], Aborted::default(), &config(), NOW_MS);
        assert_eq!((one_run.end_offset, one_run.writes.len()), (1_000, SEGMENTS_OF_RUN_MAX + 1));
    }

    #[test]
    fn a_tail_in_memory_is_known_to_end_a_segment() {
        let would = |active: Option<&Segment>, tail| would_roll(active, &[tail], &config(), NOW_MS);
        let month_ago = NOW_MS - 30 * DAY_MS;
        assert!(!would(None, run(0, &[month_ago, month_ago])));
        assert!(would(None, run(0, &[month_ago, NOW_MS])));
        let active =
            plan(None, vec![run(0, &[month_ago])], Aborted::default(), &config(), NOW_MS).writes.remove(0).segment;
        assert!(!would(Some(&active), run(1, &[month_ago])));
        assert!(would(Some(&active), run(1, &[month_ago, NOW_MS])));
        let full = Segment { size: config().segment_bytes, ..active };
        assert!(would(Some(&full), run(1, &[month_ago])));
    }
}
