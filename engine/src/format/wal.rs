//! A commit group's bytes, as `FORMAT.md` draws them. Pure: encodes into a given buffer, says what header and entries
//! mean; `group_reader` takes a whole group apart.
//!
//! A group is a header, then one entry per partition, then zeroes up to a whole block. All numbers are little-endian.
//! What makes a group valid is its place in a chain: the run and shard of its predecessor, the next sequence, and a
//! checksum over everything after the checksum field.

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I32, I64, U32, U64},
};

use super::{Refused, unknown_kind};
use crate::{
    api::TopicPartition,
    io::{BLOCK, align_up},
};

/// First bytes of a group: `MRG2`.
pub const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"MRG2");
/// The same of version 1, whose entries have the length of their payload where there is a leader epoch now.
const GROUP_MAGIC_1: u32 = u32::from_le_bytes(*b"MRG1");

/// Size of [`GroupHeader`].
pub const GROUP_HEADER_BYTES: usize = 64;
/// Size of [`EntryHeader`].
pub const ENTRY_HEADER_BYTES: usize = 48;
/// Size of a [`SegmentPointer`].
pub const POINTER_BYTES: usize = 32;
/// The checksum covers the group from here to its length.
pub(crate) const CHECKED_FROM: usize = 8;

const _: () = assert!(size_of::<GroupHeader>() == GROUP_HEADER_BYTES);
const _: () = assert!(size_of::<EntryHeader>() == ENTRY_HEADER_BYTES);
const _: () = assert!(size_of::<SegmentPointer>() == POINTER_BYTES);

/// Largest group that is written or believed: bounds what recovery allocates for a length it reads.
pub const GROUP_BYTES_MAX: usize = 24 << 20;

/// The header of a group.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupHeader {
    /// [`GROUP_MAGIC`].
    pub magic: U32,
    /// CRC32C of the group's bytes from the run to its length.
    pub checksum: U32,
    /// The start of the node that wrote it, counted from 1: the generation stamp that tells a recycled file's old
    /// groups from its new ones.
    pub run: U64,
    /// The shard that wrote it.
    pub shard: U32,
    /// Number of entries.
    pub entries: U32,
    /// Place among the shard's groups of this run, from 1 and without gaps.
    pub sequence: U64,
    /// Every group up to this sequence was durable when this one was sealed. Lets recovery tell a torn tail (fine)
    /// from a damaged durable group (not fine).
    pub durable_sequence: U64,
    /// Bytes of header and entries, without the padding.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
    /// Wall clock at the seal, ms since the epoch; for people.
    pub sealed_at_ms: I64,
    /// Zero.
    pub reserved_2: U64,
}

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// The batches themselves follow, back to back.
    Inline = 0,
    /// A [`SegmentPointer`] follows: the batches are in the partition's segment file.
    Pointer = 1,
    /// The partition's end was cut off.
    Cut = 2,
    /// A leader epoch began, with or without batches.
    EpochStart = 3,
}

impl EntryKind {
    fn of(kind: u8) -> Option<Self> {
        [Self::Inline, Self::Pointer, Self::Cut, Self::EpochStart].into_iter().find(|known| *known as u8 == kind)
    }
}

/// The header of an entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EntryHeader {
    /// Topic id.
    pub topic: [u8; 16],
    /// Partition index.
    pub partition: I32,
    /// An [`EntryKind`].
    pub kind: u8,
    /// Cuts that the partition has had, little-endian; with this one, if it is one.
    pub cuts: [u8; 3],
    /// First offset. Of a cut and of an epoch: where the log ends now.
    pub base_offset: I64,
    /// One past the last offset. Of a cut: where the log ended before.
    pub end_offset: I64,
    /// Size of the batches in bytes, wherever they are.
    pub length: U32,
    /// Of the batches; the one in which the end was cut off; the one that began.
    pub leader_epoch: I32,
}

impl EntryHeader {
    /// Bytes that follow it.
    pub(crate) fn payload(&self) -> usize {
        match EntryKind::of(self.kind) {
            Some(EntryKind::Pointer) => POINTER_BYTES,
            Some(EntryKind::Cut | EntryKind::EpochStart) => 0,
            Some(EntryKind::Inline) | None => self.length.get() as usize,
        }
    }
}

/// Where the batches of a fat run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentPointer {
    /// Base offset of the segment, which names its file.
    pub segment: I64,
    /// First byte in that file.
    pub position: U64,
    /// What was written to segments with the run begins at this offset: small runs before it go along.
    pub from_offset: I64,
    /// CRC32C of all batches from there to the entry's end: they arrived, and are not what an earlier life left there.
    pub checksum: U32,
    /// Zero.
    pub reserved: U32,
}

/// An entry to encode or as decoded, without its batches' bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub partition: TopicPartition,
    /// First offset.
    pub base_offset: i64,
    /// One past the last offset.
    pub end_offset: i64,
    /// Size of the batches.
    pub length: u32,
    /// When in the partition's life.
    pub era: Era,
    /// What the entry says.
    pub content: Content,
}

/// When in a partition's life something was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era {
    /// The leader epoch.
    pub leader_epoch: i32,
    /// How often the end of the log had been cut off: whatever is of fewer cuts than segments tell of is in them, as far
    /// as it is left.
    pub cuts: u32,
}

/// Cuts that a partition can count.
pub const CUTS_MAX: u32 = (1 << 24) - 1;

/// What an entry says of its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It has these batches, which are in the group, at this byte of it.
    Group(u32),
    /// It has these batches, which are in a segment.
    Segment(SegmentPointer),
    /// It ended at the end offset, and ends at the base offset now.
    Cut,
    /// A leader epoch began where it ends.
    EpochStart,
}

/// What identifies a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// See [`GroupHeader::run`].
    pub run: u64,
    /// See [`GroupHeader::shard`].
    pub shard: u32,
    /// See [`GroupHeader::sequence`].
    pub sequence: u64,
    /// See [`GroupHeader::durable_sequence`].
    pub durable_sequence: u64,
}

/// Bytes that an entry takes in a group.
pub fn entry_bytes(inline: Option<usize>) -> usize {
    ENTRY_HEADER_BYTES + inline.unwrap_or(POINTER_BYTES)
}

/// Fills a group's buffer. Entries first, [`GroupEncoder::finish`] last.
pub struct GroupEncoder<'a> {
    buffer: &'a mut [u8],
    length: usize,
    entries: u32,
}

impl<'a> GroupEncoder<'a> {
    /// Starts in `buffer`, whose size is the group's, padding included.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, length: GROUP_HEADER_BYTES, entries: 0 }
    }

    fn header(&mut self, partition: TopicPartition, offsets: (i64, i64), era: Era, kind: EntryKind, length: usize) {
        assert!(era.cuts <= CUTS_MAX, "a partition is not cut that often");
        let [cuts @ .., _] = era.cuts.to_le_bytes();
        let header = EntryHeader {
            topic: *partition.topic.as_bytes(),
            partition: partition.partition.into(),
            kind: kind as u8,
            cuts,
            base_offset: offsets.0.into(),
            end_offset: offsets.1.into(),
            length: u32::try_from(length).expect("runs are bounded by the frame limit").into(),
            leader_epoch: era.leader_epoch.into(),
        };
        self.put(header.as_bytes());
        self.entries += 1;
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// Adds an inline entry of `length` bytes and hands out its room, to be filled before the next call, and its
    /// first byte's place in the group.
    pub fn inline(
        &mut self,
        partition: TopicPartition,
        offsets: (i64, i64),
        era: Era,
        length: usize,
    ) -> (u32, &mut [u8]) {
        self.header(partition, offsets, era, EntryKind::Inline, length);
        let at = self.length;
        self.length += length;
        (u32::try_from(at).expect("groups are bounded"), &mut self.buffer[at..at + length])
    }

    /// Adds an entry that points to a segment.
    pub fn pointer(
        &mut self,
        partition: TopicPartition,
        offsets: (i64, i64),
        era: Era,
        length: usize,
        pointer: SegmentPointer,
    ) {
        self.header(partition, offsets, era, EntryKind::Pointer, length);
        self.put(pointer.as_bytes());
    }

    /// Says that a partition's log, which ended at `from`, ends at `to` now. The era counts this cut.
    pub fn cut(&mut self, partition: TopicPartition, (from, to): (i64, i64), era: Era) {
        self.header(partition, (to, from), era, EntryKind::Cut, 0);
    }

    /// Says that the era's leader epoch began at a partition's end.
    pub fn epoch_start(&mut self, partition: TopicPartition, end_offset: i64, era: Era) {
        self.header(partition, (end_offset, end_offset), era, EntryKind::EpochStart, 0);
    }

    /// Writes header, checksum and padding; returns the group's length without padding.
    pub fn finish(self, stamp: Stamp, sealed_at_ms: i64) -> usize {
        let Self { buffer, length, entries } = self;
        assert!(length <= buffer.len(), "a group fits its buffer");
        buffer[length..].fill(0);
        let mut header = GroupHeader {
            magic: GROUP_MAGIC.into(),
            checksum: 0.into(),
            run: stamp.run.into(),
            shard: stamp.shard.into(),
            entries: entries.into(),
            sequence: stamp.sequence.into(),
            durable_sequence: stamp.durable_sequence.into(),
            length: u32::try_from(length).expect("groups are bounded").into(),
            reserved: 0.into(),
            sealed_at_ms: sealed_at_ms.into(),
            reserved_2: 0.into(),
        };
        buffer[..GROUP_HEADER_BYTES].copy_from_slice(header.as_bytes());
        header.checksum = crc32c::crc32c(&buffer[CHECKED_FROM..length]).into();
        buffer[..GROUP_HEADER_BYTES].copy_from_slice(header.as_bytes());
        length
    }
}

/// A group's header, if these bytes can begin one. The checksum is not looked at.
pub fn peek(bytes: &[u8]) -> Option<(Stamp, usize)> {
    let header = header_of(bytes)?;
    Some((stamp_of(&header), header.length.get() as usize))
}

pub(crate) fn header_of(bytes: &[u8]) -> Option<GroupHeader> {
    let (header, _) = GroupHeader::read_from_prefix(bytes).ok()?;
    let length = header.length.get() as usize;
    let is_known = [GROUP_MAGIC, GROUP_MAGIC_1].contains(&header.magic.get());
    (is_known && (GROUP_HEADER_BYTES..=GROUP_BYTES_MAX).contains(&length)).then_some(header)
}

pub(crate) fn stamp_of(header: &GroupHeader) -> Stamp {
    Stamp {
        run: header.run.get(),
        shard: header.shard.get(),
        sequence: header.sequence.get(),
        durable_sequence: header.durable_sequence.get(),
    }
}

/// A decoded group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Who wrote it and when.
    pub stamp: Stamp,
    /// Wall clock at the seal.
    pub sealed_at_ms: i64,
    /// Bytes without padding.
    pub length: usize,
    /// What it holds.
    pub entries: Vec<Entry>,
}

impl Group {
    /// Bytes with padding: the next group begins there.
    pub fn padded(&self) -> usize {
        usize::try_from(align_up(self.length as u64)).expect("groups are bounded")
    }
}

/// An entry's header as this version writes it, in a group that may be of an older one. `None`: that one never wrote it.
pub(crate) fn modern(group: &GroupHeader, mut header: EntryHeader) -> Option<EntryHeader> {
    if group.magic.get() == GROUP_MAGIC_1 {
        let payload = usize::try_from(header.leader_epoch.get()).ok()?;
        header.leader_epoch = 0.into();
        let is_right = header.kind <= EntryKind::Pointer as u8 && header.cuts == [0; 3] && payload == header.payload();
        return is_right.then_some(header);
    }
    Some(header)
}

/// The entry whose payload begins at `from`; a pointer's payload is needed. `Ok(None)` is one that may be skipped.
pub(crate) fn entry_of(header: &EntryHeader, from: usize, pointer: &[u8]) -> Result<Option<Entry>, Refused> {
    let Some(kind) = EntryKind::of(header.kind) else {
        return unknown_kind(header.kind);
    };
    let (base_offset, end_offset) = (header.base_offset.get(), header.end_offset.get());
    let (content, is_right) = match kind {
        EntryKind::Inline => {
            (Content::Group(u32::try_from(from).expect("groups are bounded")), base_offset < end_offset)
        }
        EntryKind::Pointer => {
            let pointer = SegmentPointer::read_from_bytes(pointer).map_err(|_| Refused::Nonsense)?;
            if pointer.reserved.get() != 0 {
                return Err(Refused::Reserved);
            }
            (Content::Segment(pointer), base_offset < end_offset)
        }
        EntryKind::Cut => (Content::Cut, end_offset >= 0 && header.cuts != [0; 3] && header.length.get() == 0),
        EntryKind::EpochStart => (Content::EpochStart, base_offset == end_offset && header.length.get() == 0),
    };
    let [first, second, third] = header.cuts;
    let era = Era { leader_epoch: header.leader_epoch.get(), cuts: u32::from_le_bytes([first, second, third, 0]) };
    if !is_right || base_offset < 0 || header.partition.get() < 0 || era.leader_epoch < 0 {
        return Err(Refused::Nonsense);
    }
    let partition = TopicPartition { topic: Uuid::from_bytes(header.topic), partition: header.partition.get() };
    Ok(Some(Entry { partition, base_offset, end_offset, length: header.length.get(), era, content }))
}

const _: () = assert!(GROUP_HEADER_BYTES < BLOCK);
