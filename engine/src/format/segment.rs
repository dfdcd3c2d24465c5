//! A segment: batches back to back in one file, with a sparse index by offset and time. Pure bookkeeping and the
//! footer's bytes; the store does the reading and writing.
//!
//! The last segment of a partition is active and grows; its batches are consecutive. A sealed one ends in a footer that
//! holds its index, and never changes again: compaction replaces it by one of a higher generation, in another file.
//! There offsets may be missing between batches, before the first and inside them, but never behind the last: a segment
//! ends where its last batch does.

use std::rc::Rc;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I64, U32, U64},
};

use super::transactions::{ABORTED_OF_SEGMENT_MAX, AbortedEntry};
use crate::{
    batch::{BatchInfo, MARKER_BYTES},
    io::align_up,
};

/// A batch gets an index entry when the last indexed one lies that many bytes before it. A lookup reads at most this
/// and one batch too much; an index of 1 GiB has 16,384 entries.
pub const INDEX_INTERVAL_BYTES: u64 = 64 << 10;

/// First bytes of a footer: `MRF1`.
pub const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"MRF1");

/// One entry of the index, in memory, in the manifest and in the footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IndexEntry {
    /// Where a batch is the first to read: the end offset of the batch before it, of the first one the segment's base.
    /// The batch's own base offset, unless compaction left a gap before it.
    pub offset: I64,
    /// Its first byte in the file.
    pub position: U64,
    /// Largest timestamp of all batches *before* this one in the segment, or -1.
    pub max_timestamp_before: I64,
}

/// What is known of a segment without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentMeta {
    /// Offset of the first record, or what that was before compaction; names the file, with the generation.
    pub base_offset: I64,
    /// One past the last offset.
    pub end_offset: I64,
    /// Bytes of batches.
    pub size: U64,
    /// Largest timestamp of the first batch, or -1.
    pub first_timestamp: I64,
    /// Largest timestamp of its batches, or -1.
    pub max_timestamp: I64,
    /// Base offset of the first batch that holds it, or -1.
    pub max_timestamp_offset: I64,
    /// When it was begun, ms since the epoch: rolls by `segment.ms`.
    pub created_ms: I64,
    /// 1 when sealed: the footer is in place.
    pub sealed: u8,
    /// [`HAS_ABORTED`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// How often compaction has rewritten it; 0 as it was appended.
    pub generation: U32,
}

/// Flag of a segment: there are markers of aborted transactions in it.
pub const HAS_ABORTED: u8 = 1;

/// Names a segment of a partition. No two segments that ever were have the same name: a base offset is begun once, unless
/// the log was cut there, and whoever replaces segments takes a higher generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentName {
    /// Its base offset.
    pub base_offset: i64,
    /// Its generation.
    pub generation: u32,
}

impl SegmentMeta {
    /// Whether no bytes are set that this version knows no meaning of.
    pub(super) fn is_plain(&self) -> bool {
        self.sealed <= 1 && self.flags <= HAS_ABORTED && self.reserved == [0; 2]
    }
}

impl SegmentName {
    /// Name of the file: the base offset in 20 digits, as Kafka names its own; then the generation unless it is 0.
    pub fn file_name(self) -> String {
        match self.generation {
            0 => format!("{:020}.log", self.base_offset),
            generation => format!("{:020}-{generation}.log", self.base_offset),
        }
    }

    /// The segment whose file has that name.
    pub fn of_file(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".log")?;
        let (base_offset, generation) = stem.split_once('-').unwrap_or((stem, "0"));
        let parsed = Self { base_offset: base_offset.parse().ok()?, generation: generation.parse().ok()? };
        (parsed.file_name() == name).then_some(parsed)
    }
}

/// A segment of a partition.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Offset of the first record.
    pub base_offset: i64,
    /// One past the last offset.
    pub end_offset: i64,
    /// Bytes of batches that are durable.
    pub size: u64,
    /// Largest timestamp of the first batch, or -1.
    pub first_timestamp: i64,
    /// Largest timestamp, or -1.
    pub max_timestamp: i64,
    /// Base offset of the first batch that holds it, or -1.
    pub max_timestamp_offset: i64,
    /// When it was begun.
    pub created_ms: i64,
    /// Whether the footer is in place.
    pub sealed: bool,
    /// How often compaction has rewritten it.
    pub generation: u32,
    /// The index; of a sealed segment only while somebody reads it.
    pub index: Option<Rc<Vec<IndexEntry>>>,
    /// Whether markers of aborted transactions are in it.
    pub has_aborted: bool,
    /// Those transactions; of a sealed segment only while its footer is to be written. None is as good as no entries.
    pub aborted: Option<Rc<Vec<AbortedEntry>>>,
    /// The lowest of their first offsets; none if that is not known, as after a start.
    pub aborted_from: Option<i64>,
}

impl Segment {
    /// An empty active segment.
    pub fn begin(base_offset: i64, now_ms: i64) -> Self {
        Self {
            base_offset,
            end_offset: base_offset,
            size: 0,
            first_timestamp: -1,
            max_timestamp: -1,
            max_timestamp_offset: -1,
            created_ms: now_ms,
            sealed: false,
            generation: 0,
            index: Some(Rc::default()),
            has_aborted: false,
            aborted: None,
            aborted_from: None,
        }
    }

    /// Names it.
    pub fn name(&self) -> SegmentName {
        SegmentName { base_offset: self.base_offset, generation: self.generation }
    }

    /// Takes note of a batch that lies at the segment's end. Returns the index entry that it got, if any.
    pub fn push(&mut self, info: &BatchInfo) -> Option<IndexEntry> {
        assert_eq!(info.base_offset, self.end_offset, "batches of a segment are consecutive");
        self.push_behind_gap(info)
    }

    /// The same for what compaction leaves: offsets may be missing before the batch. One without records has no say in
    /// what timestamps there are.
    pub(crate) fn push_behind_gap(&mut self, info: &BatchInfo) -> Option<IndexEntry> {
        assert!(info.base_offset >= self.end_offset, "batches of a segment are in order");
        let index = Rc::make_mut(self.index.get_or_insert_default());
        let due = index.last().is_none_or(|last| self.size - last.position.get() >= INDEX_INTERVAL_BYTES);
        let entry = due.then(|| IndexEntry {
            offset: self.end_offset.into(),
            position: self.size.into(),
            max_timestamp_before: self.max_timestamp.into(),
        });
        index.extend(entry);
        if self.size == 0 {
            self.first_timestamp = info.max_timestamp;
        }
        if info.record_count > 0 && info.max_timestamp > self.max_timestamp {
            self.max_timestamp = info.max_timestamp;
            self.max_timestamp_offset = info.base_offset;
        }
        self.size += info.size as u64;
        self.end_offset = info.last_offset() + 1;
        entry
    }

    /// Takes note of an aborted transaction whose marker was pushed last.
    pub(crate) fn push_aborted(&mut self, entry: AbortedEntry) {
        let first_offset = entry.first_offset.get();
        // Of one that has entries without that being known, it stays unknown.
        if !self.has_aborted || self.aborted_from.is_some() {
            self.aborted_from = Some(self.aborted_from.map_or(first_offset, |known| known.min(first_offset)));
        }
        self.has_aborted = true;
        Rc::make_mut(self.aborted.get_or_insert_default()).push(entry);
    }

    /// Whether it must end before another transaction's marker.
    pub(crate) fn is_full_of_aborted(&self) -> bool {
        self.aborted.as_ref().is_some_and(|aborted| aborted.len() >= ABORTED_OF_SEGMENT_MAX)
    }

    /// Bytes of its file: the footer included once sealed.
    pub fn meta(&self) -> SegmentMeta {
        SegmentMeta {
            base_offset: self.base_offset.into(),
            end_offset: self.end_offset.into(),
            size: self.size.into(),
            first_timestamp: self.first_timestamp.into(),
            max_timestamp: self.max_timestamp.into(),
            max_timestamp_offset: self.max_timestamp_offset.into(),
            created_ms: self.created_ms.into(),
            sealed: self.sealed.into(),
            flags: if self.has_aborted { HAS_ABORTED } else { 0 },
            reserved: [0; 2],
            generation: self.generation.into(),
        }
    }

    /// A segment as the manifest remembers it, without its index.
    pub fn from_meta(meta: &SegmentMeta) -> Self {
        Self {
            base_offset: meta.base_offset.get(),
            end_offset: meta.end_offset.get(),
            size: meta.size.get(),
            first_timestamp: meta.first_timestamp.get(),
            max_timestamp: meta.max_timestamp.get(),
            max_timestamp_offset: meta.max_timestamp_offset.get(),
            created_ms: meta.created_ms.get(),
            sealed: meta.sealed != 0,
            generation: meta.generation.get(),
            index: None,
            has_aborted: meta.flags & HAS_ABORTED != 0,
            aborted: None,
            aborted_from: None,
        }
    }

    /// About where the batch with an offset begins: by the index, which is an interval too early at most, or, without
    /// one, as if all batches were alike.
    pub(crate) fn position_of(&self, offset: i64) -> u64 {
        if let Some(index) = &self.index {
            return position_before(index, offset);
        }
        let offsets = |from: i64, to: i64| u128::from(to.saturating_sub(from).max(0).cast_unsigned());
        let all = offsets(self.base_offset, self.end_offset).max(1);
        let position = u128::from(self.size) * offsets(self.base_offset, offset).min(all) / all;
        u64::try_from(position).expect("no more than the size")
    }

    /// Where the footer of a sealed segment begins.
    pub fn footer_position(&self) -> u64 {
        align_up(self.size)
    }
}

/// Position of the last indexed batch at or before `offset`; 0 when the index is empty.
pub fn position_before(index: &[IndexEntry], offset: i64) -> u64 {
    let after = index.partition_point(|entry| entry.offset.get() <= offset);
    after.checked_sub(1).map_or(0, |at| index[at].position.get())
}

/// Position from which to look for the first batch whose largest timestamp is at least `timestamp_ms`.
pub fn position_before_timestamp(index: &[IndexEntry], timestamp_ms: i64) -> u64 {
    let after = index.partition_point(|entry| entry.max_timestamp_before.get() < timestamp_ms);
    after.checked_sub(1).map_or(0, |at| index[at].position.get())
}

/// Where the batch that is the first to read for an offset begins, if the index knows that one.
pub fn position_at(index: &[IndexEntry], offset: i64) -> Option<u64> {
    let at = index.binary_search_by_key(&offset, |entry| entry.offset.get()).ok()?;
    Some(index[at].position.get())
}

/// The last indexed batch that begins at or before `position`, for reads that end on a batch's border.
pub fn last_up_to(index: &[IndexEntry], position: u64) -> Option<&IndexEntry> {
    let after = index.partition_point(|entry| entry.position.get() <= position);
    after.checked_sub(1).map(|at| &index[at])
}

/// The footer's fixed part; the index entries and the aborted transactions follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FooterHeader {
    magic: U32,
    /// CRC32C of everything behind this field.
    checksum: U32,
    entries: U32,
    /// Aborted transactions, which follow the index.
    aborted: U32,
    meta: SegmentMeta,
}

/// The footer of a sealed segment, padded with zeroes to whole blocks.
pub fn encode_footer(segment: &Segment) -> Vec<u8> {
    let index = segment.index.clone().unwrap_or_default();
    let aborted = segment.aborted.clone().unwrap_or_default();
    let mut header = FooterHeader {
        magic: FOOTER_MAGIC.into(),
        checksum: 0.into(),
        entries: u32::try_from(index.len()).expect("an index is small").into(),
        aborted: u32::try_from(aborted.len()).expect("they are bounded").into(),
        meta: segment.meta(),
    };
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(index.as_bytes());
    out.extend_from_slice(aborted.as_bytes());
    header.checksum = crc32c::crc32c(&out[8..]).into();
    out[..size_of::<FooterHeader>()].copy_from_slice(header.as_bytes());
    out.resize(usize::try_from(align_up(out.len() as u64)).expect("an index is small"), 0);
    out
}

/// Bytes to read for a footer of a segment of `size` bytes, enough for one index entry per interval: all of it, unless it
/// has aborted transactions too ([`footer_bytes`]).
pub fn footer_bytes_max(size: u64) -> usize {
    let entries = size / INDEX_INTERVAL_BYTES + 2;
    let bytes = size_of::<FooterHeader>() as u64 + entries * size_of::<IndexEntry>() as u64;
    usize::try_from(align_up(bytes)).expect("an index is small")
}

/// Bytes of the footer that begins like this, in whole blocks; `None` when it is damaged.
pub fn footer_bytes(bytes: &[u8]) -> Option<usize> {
    let (header, _) = FooterHeader::read_from_prefix(bytes).ok()?;
    // A run that is not divided may bring more than that.
    let most = ABORTED_OF_SEGMENT_MAX + super::wal::GROUP_BYTES_MAX / MARKER_BYTES;
    let aborted = usize::try_from(header.aborted.get()).ok().filter(|aborted| *aborted <= most)?;
    let index = usize::try_from(header.entries.get()).ok()?.checked_mul(size_of::<IndexEntry>())?;
    let bytes = size_of::<FooterHeader>().checked_add(index)?.checked_add(aborted * size_of::<AbortedEntry>())?;
    (header.magic.get() == FOOTER_MAGIC).then_some(usize::try_from(align_up(bytes as u64)).ok()?)
}

/// What a footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The segment.
    pub meta: SegmentMeta,
    /// Its index.
    pub index: Vec<IndexEntry>,
    /// Aborted transactions whose markers are in it.
    pub aborted: Vec<AbortedEntry>,
}

/// Decodes a footer; `None` when it is damaged, or not all there.
pub fn decode_footer(bytes: &[u8]) -> Option<Footer> {
    let (header, rest) = FooterHeader::read_from_prefix(bytes).ok()?;
    let count = usize::try_from(header.entries.get()).ok()?;
    let (index_bytes, rest) = rest.split_at_checked(count.checked_mul(size_of::<IndexEntry>())?)?;
    let aborted_count = usize::try_from(header.aborted.get()).ok()?;
    let aborted_bytes = rest.get(..aborted_count.checked_mul(size_of::<AbortedEntry>())?)?;
    let checked = &bytes[8..size_of::<FooterHeader>() + index_bytes.len() + aborted_bytes.len()];
    let is_plain = header.meta.is_plain() && (aborted_count > 0) == (header.meta.flags & HAS_ABORTED != 0);
    if header.magic.get() != FOOTER_MAGIC || crc32c::crc32c(checked) != header.checksum.get() || !is_plain {
        return None;
    }
    let index = <[IndexEntry]>::ref_from_bytes(index_bytes).ok()?.to_vec();
    let aborted = <[AbortedEntry]>::ref_from_bytes(aborted_bytes).ok()?.to_vec();
    Some(Footer { meta: header.meta, index, aborted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_read_back() {
        for name in [(0, 0), (7, 1), (i64::MAX, u32::MAX)] {
            let name = SegmentName { base_offset: name.0, generation: name.1 };
            assert_eq!(SegmentName::of_file(&name.file_name()), Some(name));
        }
        for other in ["", ".log", "00000000000000000001.index", "1.log", "00000000000000000001-0.log", "manifest-0-1"] {
            assert_eq!(SegmentName::of_file(other), None, "{other}");
        }
    }

    #[test]
    fn an_offset_in_a_gap_leads_to_the_batch_behind_it() {
        let batch = |base_offset: i64, size: usize, record_count: i32| BatchInfo {
            base_offset,
            size,
            leader_epoch: 0,
            attributes: 0,
            last_offset_delta: 9,
            base_timestamp: 0,
            max_timestamp: base_offset,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count,
        };
        let mut segment = Segment::begin(100, 5);
        for (base_offset, size, records) in [(130, 70_000, 1), (200, 70_000, 1), (210, 100, 1), (400, 100, 0)] {
            segment.push_behind_gap(&batch(base_offset, size, records));
        }
        let index = segment.index.clone().unwrap_or_default();
        let found: Vec<u64> = [100, 139, 140, 199, 205, 210, 300].map(|at| position_before(&index, at)).to_vec();
        assert_eq!(found, [0, 0, 70_000, 70_000, 70_000, 140_000, 140_000]);
        let exact = [100, 139, 140, 210, 300].map(|at| position_at(&index, at));
        assert_eq!(exact, [Some(0), None, Some(70_000), Some(140_000), None]);
        assert_eq!((segment.base_offset, segment.end_offset, segment.size), (100, 410, 140_200));
        assert_eq!((segment.first_timestamp, segment.max_timestamp, segment.max_timestamp_offset), (130, 210, 210));
    }
}
