//! Which records of a batch a topic does not take, so that a producer can tell them from their neighbours.

use std::fmt;

use super::BatchError;

/// The most records that are named for one batch: a batch may decompress to millions of records without a key.
pub const REFUSED_RECORDS_MAX: usize = 10_000;

/// A record that its topic does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRecord {
    /// Its place in the batch, from 0.
    pub index: i32,
    /// Why.
    pub reason: RefusedReason,
}

/// Why a record is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedReason {
    /// The topic is compacted.
    #[error("a compacted topic takes no record without a key")]
    NoKey,
    /// Outside what `message.timestamp.before.max.ms` and `message.timestamp.after.max.ms` allow now.
    #[error("timestamp {timestamp_ms} is not within {earliest_ms} and {latest_ms}")]
    Timestamp {
        /// The record's timestamp.
        timestamp_ms: i64,
        /// First that is allowed.
        earliest_ms: i64,
        /// Last that is allowed.
        latest_ms: i64,
    },
    /// The batch's base timestamp and the record's delta do not add up to a timestamp.
    #[error("base and delta of the timestamp overflow")]
    TimestampOverflow,
}

impl RefusedReason {
    fn is_timestamp(&self) -> bool {
        !matches!(self, RefusedReason::NoKey)
    }
}

/// What is wrong with the records of one batch; the batch is kept whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusedRecords {
    /// In the order of the batch, the first [`REFUSED_RECORDS_MAX`].
    pub first: Vec<RefusedRecord>,
    /// How many there are.
    pub count: usize,
    /// Whether a timestamp is among the reasons, which makes it INVALID_TIMESTAMP (Kafka's `LogValidator`).
    pub has_timestamp: bool,
}

impl RefusedRecords {
    #[cold]
    pub(super) fn push(&mut self, index: i32, reason: RefusedReason) {
        self.count += 1;
        self.has_timestamp |= reason.is_timestamp();
        if self.first.len() < REFUSED_RECORDS_MAX {
            self.first.push(RefusedRecord { index, reason });
        }
    }

    /// The error of the batch, if a record was refused.
    pub(super) fn into_error(self) -> Option<BatchError> {
        (self.count > 0).then_some(BatchError::Records(self))
    }
}

impl fmt::Display for RefusedRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the batch's records may not be kept", self.count)?;
        self.first.first().map_or(Ok(()), |record| write!(f, "; first, record {}: {}", record.index, record.reason))
    }
}
