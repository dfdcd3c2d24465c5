//! Whether a batch may be kept: everything that Kafka 4's broker looks at, and the shape of every record.
//!
//! Where we are stricter than Kafka: offset deltas must count 0, 1, 2, ... (Kafka rewrites compressed batches whose
//! deltas do not, and keeps uncompressed ones as they are), a record must fill its declared length in compressed
//! batches too, null is the length -1 only, and what records decompress to is bounded. Whether a transactional batch is
//! taken also rests with its transaction, which is not looked at here.
//!
//! Attributes that are not a producer's to set are cleared. Kafka leaves the delete horizon to whoever sets it, who so
//! makes compaction drop tombstones before their time; here only compaction sets it. And where a producer says that its
//! timestamps are those of an append elsewhere, Kafka's header keeps that time; here it says the largest timestamp of
//! the records, which is what readers are given.

use std::ops::ControlFlow;

use super::{
    AppendOrigin, BatchError, BatchInfo, TimestampType, corrupt,
    header::{DELETE_HORIZON, LOG_APPEND_TIME, PRODUCERS, verify_crc},
    invalid,
    records::{Head, walk},
    refused::{RefusedReason, RefusedRecords},
};

/// What is asked of a batch, by its topic and for who appends it.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Who appends it.
    pub origin: AppendOrigin,
    /// Largest batch: `max.message.bytes`.
    pub max_bytes: usize,
    /// Wall clock.
    pub now_ms: i64,
    /// Whose timestamps count: `message.timestamp.type`.
    pub timestamp_type: TimestampType,
    /// How far a record's CreateTime may lie before now: `message.timestamp.before.max.ms`.
    pub before_max_ms: i64,
    /// How far it may lie after now: `message.timestamp.after.max.ms`.
    pub after_max_ms: i64,
    /// Every record needs a key: the topic is compacted.
    pub key_required: bool,
}

/// Decides on `bytes`, which must be exactly one batch.
///
/// The result's attributes are those that the batch may have, and its `max_timestamp` is the true one, whatever the
/// header says, unless the topic uses LogAppendTime: hand it to [`correct_header`](super::correct_header) before the
/// batch is kept.
pub fn check(bytes: &[u8], rules: &Rules) -> Result<BatchInfo, BatchError> {
    let mut info = BatchInfo::parse(bytes)?;
    if info.size != bytes.len() {
        return Err(invalid(format!("{} bytes follow the batch: one batch is allowed", bytes.len() - info.size)));
    }
    if info.size > rules.max_bytes {
        return Err(BatchError::TooLarge { size: info.size, max: rules.max_bytes });
    }
    if !verify_crc(bytes) {
        return Err(corrupt("the checksum is wrong"));
    }
    check_header(&info, rules)?;
    info.attributes = kept_attributes(&info, rules);
    check_records(bytes, info, rules)
}

/// What becomes of the attributes. Bits without a meaning stay as long as nothing else has to be changed, as in Kafka:
/// a batch that is kept as it came needs no new checksum.
fn kept_attributes(info: &BatchInfo, rules: &Rules) -> i16 {
    let is_changed = info.attributes & (LOG_APPEND_TIME | DELETE_HORIZON) != 0
        || rules.timestamp_type == TimestampType::LogAppendTime;
    if is_changed { info.attributes & PRODUCERS } else { info.attributes }
}

fn check_header(info: &BatchInfo, rules: &Rules) -> Result<(), BatchError> {
    info.codec()?;
    if info.base_offset != 0 {
        return Err(invalid(format!("base offset of a batch to append is {}, not 0", info.base_offset)));
    }
    if info.record_count < 1 || info.last_offset_delta != info.record_count - 1 {
        let (count, delta) = (info.record_count, info.last_offset_delta);
        return Err(invalid(format!("record count {count} does not go with last offset delta {delta}")));
    }
    let has_append_time = info.attributes & LOG_APPEND_TIME != 0;
    if has_append_time && (rules.timestamp_type == TimestampType::LogAppendTime || info.max_timestamp == -1) {
        return Err(BatchError::ForeignAppendTime);
    }
    check_producer(info)?;
    check_origin(info, rules.origin)
}

fn check_producer(info: &BatchInfo) -> Result<(), BatchError> {
    let (id, epoch, sequence) = (info.producer_id, info.producer_epoch, info.base_sequence);
    if id < -1 || (id >= 0 && epoch < 0) || (id < 0 && info.is_transactional()) {
        let kind = if info.is_transactional() { " of a transaction" } else { "" };
        return Err(invalid(format!("producer id {id}{kind} does not go with epoch {epoch} and sequence {sequence}")));
    }
    Ok(())
}

/// What only some may write: control batches and batches without a sequence are for coordinators.
fn check_origin(info: &BatchInfo, origin: AppendOrigin) -> Result<(), BatchError> {
    let has_sequence = info.base_sequence >= 0;
    match origin {
        AppendOrigin::Client if info.is_control() => Err(invalid("clients may not write control batches")),
        AppendOrigin::Client | AppendOrigin::Coordinator if info.is_control() => {
            Err(invalid("only the end of a transaction is a control batch"))
        }
        AppendOrigin::Coordinator if info.is_transactional() && has_sequence => {
            Err(invalid("a coordinator's batch of a transaction has no sequence"))
        }
        AppendOrigin::Coordinator if info.is_transactional() => Ok(()),
        AppendOrigin::Client | AppendOrigin::Coordinator if info.has_producer_id() && !has_sequence => {
            let (id, sequence) = (info.producer_id, info.base_sequence);
            Err(invalid(format!("producer id {id} does not go with sequence {sequence}")))
        }
        AppendOrigin::Marker if !info.is_control() || !info.is_transactional() || has_sequence => {
            Err(invalid("the end of a transaction is a transactional control batch without a sequence"))
        }
        AppendOrigin::Client | AppendOrigin::Coordinator | AppendOrigin::Marker => Ok(()),
    }
}

fn check_records(bytes: &[u8], mut info: BatchInfo, rules: &Rules) -> Result<BatchInfo, BatchError> {
    let mut walked = Walked {
        expected: 0,
        max_timestamp: -1,
        misplaced: None,
        refused: RefusedRecords::default(),
        key_required: rules.key_required,
        create_time: rules.timestamp_type == TimestampType::CreateTime,
        earliest: rules.now_ms.saturating_sub(rules.before_max_ms),
        latest: rules.now_ms.saturating_add(rules.after_max_ms),
    };
    walk(&info, bytes, |record| walked.look(record))?;
    if let Some(error) = walked.misplaced.or(walked.refused.into_error()) {
        return Err(error);
    }
    if walked.create_time {
        info.max_timestamp = walked.max_timestamp;
    }
    Ok(info)
}

/// What was seen of the records so far.
struct Walked {
    expected: i32,
    max_timestamp: i64,
    /// A record that is not where its offset says, which ends the walk.
    misplaced: Option<BatchError>,
    /// Records that the topic does not take: all are looked for, as the producer is told about each.
    refused: RefusedRecords,
    key_required: bool,
    create_time: bool,
    earliest: i64,
    latest: i64,
}

impl Walked {
    #[inline]
    fn look(&mut self, record: Head) -> ControlFlow<()> {
        if record.offset_delta != self.expected {
            let reason = format!("record {} has the offset delta {}", self.expected, record.offset_delta);
            self.misplaced = Some(invalid(reason));
            return ControlFlow::Break(());
        }
        if let Some(reason) = self.refuse(&record) {
            self.refused.push(self.expected, reason);
        }
        self.expected += 1;
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        ControlFlow::Continue(())
    }

    #[inline]
    fn refuse(&self, record: &Head) -> Option<RefusedReason> {
        if self.key_required && !record.has_key {
            return Some(RefusedReason::NoKey);
        }
        if !self.create_time || record.timestamp == -1 {
            return None;
        }
        if record.overflows {
            return Some(RefusedReason::TimestampOverflow);
        }
        let (timestamp_ms, earliest_ms, latest_ms) = (record.timestamp, self.earliest, self.latest);
        let is_near = (earliest_ms..=latest_ms).contains(&timestamp_ms);
        (!is_near).then_some(RefusedReason::Timestamp { timestamp_ms, earliest_ms, latest_ms })
    }
}
