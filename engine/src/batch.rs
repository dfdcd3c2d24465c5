//! Record batches (magic 2).

/// Why a batch was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Checksum, length or structure is wrong: CORRUPT_MESSAGE.
    #[error("corrupt batch: {0}")]
    Corrupt(String),
    /// Well-formed, but cannot be valid: INVALID_RECORD.
    #[error("invalid record: {0}")]
    Invalid(String),
    /// Magic 0 or 1: UNSUPPORTED_FOR_MESSAGE_FORMAT.
    #[error("message format {0} is not supported: only magic 2 is")]
    UnsupportedMagic(i8),
    /// Larger than the topic's max.message.bytes: MESSAGE_TOO_LARGE.
    #[error("batch of {size} bytes is larger than max.message.bytes {max}")]
    TooLarge {
        /// Size of the batch.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// A timestamp too far from now: INVALID_TIMESTAMP.
    #[error("timestamp {timestamp_ms} is out of range: {reason}")]
    InvalidTimestamp {
        /// The offending timestamp.
        timestamp_ms: i64,
        /// Which bound it breaks.
        reason: String,
    },
    /// Codec that is not served: UNSUPPORTED_COMPRESSION_TYPE.
    #[error("unsupported compression type {0}")]
    UnsupportedCodec(u8),
}
