//! The header of a batch: its layout, what it says, its checksum.
//!
//! What always holds of a [`BatchInfo`]: magic is 2, the size covers a header, no offset of the batch overflows.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{I16, I32, I64, U32},
};

use super::{BatchError, Codec, TimestampType, corrupt, invalid};

/// The header as it lies on the wire and on disk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) base_offset: I64,
    /// Bytes behind this field.
    pub(super) length: I32,
    pub(super) leader_epoch: I32,
    pub(super) magic: i8,
    /// CRC32C of everything behind this field.
    pub(super) crc: U32,
    pub(super) attributes: I16,
    pub(super) last_offset_delta: I32,
    pub(super) base_timestamp: I64,
    pub(super) max_timestamp: I64,
    pub(super) producer_id: I64,
    pub(super) producer_epoch: I16,
    pub(super) base_sequence: I32,
    pub(super) record_count: I32,
}

/// Size of a batch's header: the smallest batch.
pub const BATCH_HEADER_BYTES: usize = 61;
/// Bytes before the part that `length` counts.
pub(super) const LENGTH_END: usize = 12;
const MAGIC_AT: usize = 16;
/// The checksum covers the batch from here to its end.
pub(super) const CHECKED_FROM: usize = 21;

const _: () = assert!(size_of::<Header>() == BATCH_HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(Header, leader_epoch) == LENGTH_END);
const _: () = assert!(std::mem::offset_of!(Header, magic) == MAGIC_AT);
const _: () = assert!(std::mem::offset_of!(Header, attributes) == CHECKED_FROM);

/// Bits 0-2 of the attributes.
pub(super) const CODEC_MASK: i16 = 0x07;
pub(super) const LOG_APPEND_TIME: i16 = 0x08;
pub(super) const TRANSACTIONAL: i16 = 0x10;
pub(super) const CONTROL: i16 = 0x20;
/// The base timestamp is the time from which compaction may drop the batch's tombstones (KIP-534).
pub(super) const DELETE_HORIZON: i16 = 0x40;

/// What a batch whose attributes are written anew keeps of those that its producer gave it.
pub(super) const PRODUCERS: i16 = CODEC_MASK | TRANSACTIONAL | CONTROL;

/// Header facts of a batch whose header was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchInfo {
    /// Offset of the first record; 0 or meaningless before it was assigned.
    pub base_offset: i64,
    /// Bytes of the whole batch, base offset and length included.
    pub size: usize,
    /// Epoch of the leader that took it.
    pub leader_epoch: i32,
    /// Codec, timestamp type and flags.
    pub attributes: i16,
    /// Last offset less the base offset, never negative.
    pub last_offset_delta: i32,
    /// What the records' timestamp deltas count from.
    pub base_timestamp: i64,
    /// Largest timestamp of the records, or the time of the append; -1 for none.
    pub max_timestamp: i64,
    /// Idempotent producer, or -1.
    pub producer_id: i64,
    /// Its epoch, or -1.
    pub producer_epoch: i16,
    /// Sequence of the first record, or -1.
    pub base_sequence: i32,
    /// Number of records, never negative. Compaction may leave fewer records than offsets, even none.
    pub record_count: i32,
}

impl BatchInfo {
    /// Reads the header at the start of `bytes` and checks that the whole batch is there. The checksum is not looked
    /// at.
    pub fn parse(bytes: &[u8]) -> Result<BatchInfo, BatchError> {
        let info = Self::parse_header(bytes)?;
        if info.size > bytes.len() {
            return Err(corrupt(format!("{} of {} bytes are there", bytes.len(), info.size)));
        }
        Ok(info)
    }

    /// Reads the header at the start of `bytes`, which may hold less than the whole batch.
    pub fn parse_header(bytes: &[u8]) -> Result<BatchInfo, BatchError> {
        match bytes.get(MAGIC_AT).map(|magic| magic.cast_signed()) {
            Some(2) => {}
            Some(old @ (0 | 1)) => return Err(BatchError::UnsupportedMagic(old)),
            Some(other) => return Err(corrupt(format!("magic is {other}"))),
            None => return Err(corrupt("cut off inside its header")),
        }
        let Ok((header, _)) = Header::ref_from_prefix(bytes) else {
            return Err(corrupt("cut off inside its header"));
        };
        let size = usize::try_from(header.length.get()).ok().map(|length| length + LENGTH_END);
        let Some(size) = size.filter(|&size| size >= BATCH_HEADER_BYTES) else {
            return Err(corrupt(format!("length {} is shorter than a header", header.length)));
        };
        let (base_offset, last_offset_delta) = (header.base_offset.get(), header.last_offset_delta.get());
        if last_offset_delta < 0 || base_offset.checked_add(i64::from(last_offset_delta) + 1).is_none() {
            return Err(invalid(format!("offsets {base_offset} and {last_offset_delta} more are no range")));
        }
        if header.record_count.get() < 0 {
            return Err(invalid(format!("record count is {}", header.record_count)));
        }
        Ok(BatchInfo {
            base_offset,
            size,
            leader_epoch: header.leader_epoch.get(),
            attributes: header.attributes.get(),
            last_offset_delta,
            base_timestamp: header.base_timestamp.get(),
            max_timestamp: header.max_timestamp.get(),
            producer_id: header.producer_id.get(),
            producer_epoch: header.producer_epoch.get(),
            base_sequence: header.base_sequence.get(),
            record_count: header.record_count.get(),
        })
    }

    /// Offset of the last record (or of the last one there was before compaction).
    pub fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// How the records are compressed.
    pub fn codec(&self) -> Result<Codec, BatchError> {
        Codec::from_attributes(self.attributes)
    }

    /// Whether the broker wrote it to end a transaction.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether it belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether an idempotent or transactional producer sent it.
    pub fn has_producer_id(&self) -> bool {
        self.producer_id >= 0
    }

    /// Sequence of the last record, -1 without a sequence.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 { -1 } else { increment_sequence(self.base_sequence, self.last_offset_delta) }
    }

    /// Whose clock the records' timestamps come from.
    pub fn timestamp_type(&self) -> TimestampType {
        match self.attributes & LOG_APPEND_TIME {
            0 => TimestampType::CreateTime,
            _ => TimestampType::LogAppendTime,
        }
    }

    /// From when on compaction may drop the tombstones in it, once compaction has set that.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }

    /// The same, but with a base timestamp that is none of compaction's.
    pub(crate) fn without_delete_horizon(&self) -> BatchInfo {
        BatchInfo { attributes: self.attributes & !DELETE_HORIZON, ..*self }
    }
}

/// A sequence `by` records further on. Sequences wrap from `i32::MAX` to 0. Neither may be negative.
pub fn increment_sequence(sequence: i32, by: i32) -> i32 {
    debug_assert!(sequence >= 0 && by >= 0, "sequences of records count up from 0");
    let wrapped = (i64::from(sequence) + i64::from(by)) % (i64::from(i32::MAX) + 1);
    i32::try_from(wrapped).expect("the remainder is at most i32::MAX")
}

/// Whether the checksum of the batch at the start of `batch` is right. `false` too for bytes that are no whole batch.
pub fn verify_crc(batch: &[u8]) -> bool {
    let Ok(info) = BatchInfo::parse(batch) else {
        return false;
    };
    Header::ref_from_prefix(batch).is_ok_and(|(header, _)| header.crc.get() == checksum(&batch[..info.size]))
}

/// The checksum of exactly one batch, at least a header long.
pub(super) fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c(&batch[CHECKED_FROM..])
}

/// Batches that lie back to back. A cut-off last one ends it without an error; after an error there is nothing more.
pub fn batches(run: &[u8]) -> impl Iterator<Item = Result<(BatchInfo, &[u8]), BatchError>> {
    let mut rest = run;
    std::iter::from_fn(move || {
        if rest.len() < BATCH_HEADER_BYTES {
            return None;
        }
        let parsed = BatchInfo::parse_header(rest);
        let Ok(info) = parsed else {
            rest = &[];
            return parsed.err().map(Err);
        };
        let (batch, behind) = rest.split_at_checked(info.size)?;
        rest = behind;
        Some(Ok((info, batch)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wrap_to_zero() {
        assert_eq!(increment_sequence(5, 3), 8);
        assert_eq!(increment_sequence(i32::MAX, 1), 0);
        assert_eq!(increment_sequence(i32::MAX - 1, 3), 1);
        assert_eq!(increment_sequence(i32::MAX, i32::MAX), i32::MAX - 1);
    }

    #[test]
    fn old_magic_is_told_apart_from_damage() {
        let mut bytes = [0u8; 40];
        for old in [0, 1] {
            bytes[MAGIC_AT] = old;
            let expected = BatchError::UnsupportedMagic(old.cast_signed());
            assert_eq!(BatchInfo::parse(&bytes), Err(expected), "even when shorter than a header of today");
        }
        bytes[MAGIC_AT] = 3;
        assert!(matches!(BatchInfo::parse(&bytes), Err(BatchError::Corrupt(_))));
    }
}
