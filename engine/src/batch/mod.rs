//! Record batches of magic 2: the only message format there is here. Pure; bytes in, facts out.
//!
//! A batch is a 61-byte header, then its records, compressed together or not. Base offset, length, leader epoch,
//! magic and the checksum itself lie outside the checksum, so a broker assigns offsets without touching what a
//! producer checksummed. [`check()`] decides whether a batch from a client may be kept, [`Recompress`] gives it another
//! codec if its topic asks for one, [`assign`] gives it its place, and from then on its bytes never change. Foreign bytes
//! may be anything: every function here that takes bytes answers nonsense with a [`BatchError`] and never panics, loops
//! or allocates by a length it read.
//!
//! Layout and rules: Kafka's `DefaultRecordBatch`, `DefaultRecord`, `LogValidator`; KIP-98 (the format), KIP-32
//! (timestamps), KIP-110 (zstd).

#![warn(clippy::cast_possible_truncation)]

mod build;
mod check;
mod codec;
mod committed;
mod control;
mod header;
mod patch;
mod recompress;
#[cfg(test)]
mod recompress_tests;
mod records;
mod refused;
#[cfg(test)]
mod tests;
mod time;

pub use build::BatchBuilder;
pub use check::{Rules, check};
pub use codec::{Codec, Compression, DECOMPRESSED_BYTES_MAX, DecompressError, decompress};
pub use committed::CommittedBatches;
pub use control::{AbortedTransaction, EndMarker, MARKER_BYTES, Outcome, end_marker, marker};
pub use header::{BATCH_HEADER_BYTES, BatchInfo, batches, increment_sequence, verify_crc};
pub use patch::{assign, correct_header};
pub use recompress::{Recompress, Recompressed};
pub use records::{Record, RecordReader, RecordRef, records};
pub use refused::{REFUSED_RECORDS_MAX, RefusedReason, RefusedRecord, RefusedRecords};
pub use time::find_timestamp;

/// Largest batch that a node takes, whatever `max.message.bytes` says: it must fit a commit group of the shared log.
pub const BATCH_BYTES_MAX: usize = 16 << 20;

/// How a record's time is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// By the producer.
    CreateTime,
    /// By the broker.
    LogAppendTime,
}

/// Who appends a batch: decides what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendOrigin {
    /// A client.
    Client,
    /// A coordinator of this node, to a topic in which it keeps its state. It may write for a transaction, without a
    /// sequence.
    Coordinator,
    /// A coordinator of this node, to end a transaction: one control batch.
    Marker,
}

/// Why a batch was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Checksum, length or header is wrong: CORRUPT_MESSAGE.
    #[error("corrupt batch: {0}")]
    Corrupt(String),
    /// Arrived as it was sent, but cannot be valid: INVALID_RECORD.
    #[error("invalid record: {0}")]
    Invalid(String),
    /// Magic 0 or 1: INVALID_RECORD.
    #[error("message format {0} is not supported: only magic 2 is")]
    UnsupportedMagic(i8),
    /// Larger than the topic or the node takes: MESSAGE_TOO_LARGE.
    #[error("batch of {size} bytes is larger than {max}: {LIMIT}")]
    TooLarge {
        /// Size of the batch.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// Larger than that in the codec that its topic asks for: MESSAGE_TOO_LARGE.
    #[error("compressed as its topic asks ({codec}), the batch is larger than {max} bytes: {LIMIT}")]
    TooLargeRecompressed {
        /// Name of the codec.
        codec: &'static str,
        /// The limit.
        max: usize,
    },
    /// Well-formed, but the topic does not take these of its records: INVALID_TIMESTAMP or INVALID_RECORD.
    #[error("{0}")]
    Records(RefusedRecords),
    /// A producer said when the broker appended: INVALID_TIMESTAMP.
    #[error("producers may not set LogAppendTime")]
    ForeignAppendTime,
    /// Codec that is not served: UNSUPPORTED_COMPRESSION_TYPE.
    #[error("unsupported compression type {0}")]
    UnsupportedCodec(u8),
}

/// Where the limit on a batch comes from.
const LIMIT: &str = "the topic's max.message.bytes, or what a node takes if that is less";

#[cold]
fn corrupt(reason: impl Into<String>) -> BatchError {
    BatchError::Corrupt(reason.into())
}

#[cold]
fn invalid(reason: impl Into<String>) -> BatchError {
    BatchError::Invalid(reason.into())
}
