//! Builds batches: for compaction, which keeps a batch's identity and drops records, and for what we write ourselves.

use zerocopy::{FromBytes, IntoBytes};

use super::{
    BATCH_HEADER_BYTES, BatchError, BatchInfo, Codec, Record, RecordRef, TimestampType,
    codec::Encoder,
    header::{CODEC_MASK, CONTROL, DELETE_HORIZON, Header, LENGTH_END, LOG_APPEND_TIME, TRANSACTIONAL, checksum},
};

/// Collects records into one batch. Records are pushed in ascending order of offset; gaps are kept. They are compressed
/// as they come.
pub struct BatchBuilder {
    codec: Codec,
    flags: i16,
    base_offset: i64,
    leader_epoch: i32,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    /// Set when the batch keeps offsets behind its last record.
    last_offset_delta: Option<i32>,
    /// What timestamp deltas count from; the first record's timestamp unless it was set before.
    base_timestamp: Option<i64>,
    /// The time of the append, or what an emptied batch had.
    kept_max_timestamp: Option<i64>,
    max_timestamp: i64,
    /// Encoded records that are not compressed yet.
    staged: Vec<u8>,
    /// The record that is being encoded: its length stands before it.
    body: Vec<u8>,
    /// Made for the first record: an empty batch is not compressed.
    encoder: Option<Encoder>,
    /// Bytes of all records before compression.
    record_bytes: usize,
    count: i32,
    last_delta: i32,
}

/// What a record without headers has beside its key and its value, at most.
const RECORD_HEAD_BYTES: usize = 32;
/// A record's length takes no more.
const LENGTH_BYTES_MAX: usize = 5;
/// Staged bytes that are worth a call of the encoder.
const STAGE_BYTES: usize = 8 << 10;

impl std::fmt::Debug for BatchBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (offset, count, codec) = (self.base_offset, self.count, self.codec);
        write!(f, "BatchBuilder({count} records from offset {offset}, {codec:?})")
    }
}

impl BatchBuilder {
    /// An empty batch whose first offset is `base_offset`, of CreateTime, without a producer.
    pub fn new(codec: Codec, base_offset: i64) -> Self {
        Self {
            codec,
            flags: 0,
            base_offset,
            leader_epoch: -1,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            last_offset_delta: None,
            base_timestamp: None,
            kept_max_timestamp: None,
            max_timestamp: -1,
            staged: Vec::new(),
            body: Vec::new(),
            encoder: None,
            record_bytes: 0,
            count: 0,
            last_delta: -1,
        }
    }

    /// A batch to hold some of the records of another: same offsets, codec, producer, sequence, flags and time of
    /// append, whatever records are pushed.
    pub fn like(info: &BatchInfo) -> Result<Self, BatchError> {
        Ok(Self {
            flags: info.attributes & !CODEC_MASK,
            leader_epoch: info.leader_epoch,
            producer_id: info.producer_id,
            producer_epoch: info.producer_epoch,
            base_sequence: info.base_sequence,
            last_offset_delta: Some(info.last_offset_delta),
            base_timestamp: info.delete_horizon_ms(),
            kept_max_timestamp: Some(info.max_timestamp),
            ..Self::new(info.codec()?, info.base_offset)
        })
    }

    /// Records are of LogAppendTime, appended then.
    pub fn append_time(mut self, append_time_ms: i64) -> Self {
        self.flags |= LOG_APPEND_TIME;
        self.kept_max_timestamp = Some(append_time_ms);
        self
    }

    /// The batch comes from an idempotent producer.
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    /// The epoch of the leader.
    pub fn leader_epoch(mut self, leader_epoch: i32) -> Self {
        self.leader_epoch = leader_epoch;
        self
    }

    /// The batch belongs to a transaction.
    pub fn transactional(mut self) -> Self {
        self.flags |= TRANSACTIONAL;
        self
    }

    /// The batch ends a transaction.
    pub fn control(mut self) -> Self {
        self.flags |= CONTROL;
        self
    }

    /// Compaction may drop the batch's tombstones from then on. To be set before the first record.
    pub fn delete_horizon(mut self, horizon_ms: i64) -> Self {
        assert_eq!(self.count, 0, "timestamp deltas count from the horizon");
        self.flags |= DELETE_HORIZON;
        self.base_timestamp = Some(horizon_ms);
        self
    }

    /// Whether no record was pushed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of records.
    pub fn record_count(&self) -> i32 {
        self.count
    }

    /// Bytes of the batch so far, before compression.
    pub fn size(&self) -> usize {
        BATCH_HEADER_BYTES + self.record_bytes
    }

    /// Adds a record.
    ///
    /// # Panics
    /// If its offset does not follow the last record's, or lies outside the batch.
    pub fn push(&mut self, record: &Record) {
        let mut body = self.begin(record.offset, record.timestamp, record.key.as_deref(), record.value.as_deref());
        put_length(&mut body, record.headers.len());
        for (name, value) in &record.headers {
            put_nullable(&mut body, Some(name));
            put_nullable(&mut body, value.as_deref());
        }
        self.put(&[&body]);
        self.body = body;
    }

    /// Adds a record without headers whose key and value somebody else holds.
    ///
    /// # Panics
    /// If its offset does not follow the last record's, or lies outside the batch.
    pub fn push_pair(&mut self, offset: i64, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        let mut body = self.begin(offset, timestamp, key, value);
        put_length(&mut body, 0);
        self.put(&[&body]);
        self.body = body;
    }

    /// A record up to its headers, in the memory of the last one.
    fn begin(&mut self, offset: i64, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Vec<u8> {
        let (delta, base_timestamp) = self.place(offset, timestamp);
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        let field_bytes = |field: Option<&[u8]>| field.map_or(0, <[u8]>::len);
        body.reserve(RECORD_HEAD_BYTES + field_bytes(key) + field_bytes(value));
        body.push(0);
        put_varlong(&mut body, timestamp.wrapping_sub(base_timestamp));
        put_varlong(&mut body, delta.into());
        put_nullable(&mut body, key);
        put_nullable(&mut body, value);
        body
    }

    /// Adds a record of the batch that this one is [`like`](Self::like), as it was.
    ///
    /// # Panics
    /// If its offset does not follow the last record's, or lies outside the batch.
    pub fn push_ref(&mut self, record: &RecordRef<'_>) {
        let (_, base_timestamp) = self.place(record.offset, record.timestamp);
        let mut head = vec![record.attributes];
        put_varlong(&mut head, record.timestamp.wrapping_sub(base_timestamp));
        self.put(&[&head, record.from_offset]);
    }

    /// Counts a record. Answers its offset delta and what its timestamp delta counts from.
    fn place(&mut self, offset: i64, timestamp: i64) -> (i32, i64) {
        let delta = i32::try_from(offset - self.base_offset).expect("an offset of the batch");
        assert!(delta > self.last_delta, "offsets of a batch ascend");
        assert!(self.last_offset_delta.is_none_or(|last| delta <= last), "the batch keeps its last offset");
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.last_delta = delta;
        self.count += 1;
        (delta, *self.base_timestamp.get_or_insert(timestamp))
    }

    /// Stages a record's bytes, in parts, with its length before them.
    fn put(&mut self, parts: &[&[u8]]) {
        let before = self.staged.len();
        let length = parts.iter().map(|part| part.len()).sum();
        self.staged.reserve(LENGTH_BYTES_MAX + length);
        put_length(&mut self.staged, length);
        for part in parts {
            self.staged.extend_from_slice(part);
        }
        self.record_bytes += self.staged.len() - before;
        if self.staged.len() >= STAGE_BYTES {
            self.compress_staged();
        }
    }

    fn compress_staged(&mut self) {
        let codec = self.codec;
        self.encoder.get_or_insert_with(|| Encoder::new(codec.into(), Vec::new())).write(&self.staged);
        self.staged.clear();
    }

    /// The finished batch. One that was made without any record has no valid offset unless it keeps another's.
    ///
    /// # Panics
    /// If the batch is larger than 2 GiB.
    pub fn finish(mut self) -> Vec<u8> {
        let body = self.finish_body();
        let codec = if self.is_empty() { Codec::None } else { self.codec };
        let keeps = self.flags & LOG_APPEND_TIME != 0 || self.is_empty();
        let max_timestamp = self.kept_max_timestamp.filter(|_| keeps).unwrap_or(self.max_timestamp);
        let length = BATCH_HEADER_BYTES - LENGTH_END + body.len();
        let header = Header {
            base_offset: self.base_offset.into(),
            length: i32::try_from(length).expect("a batch is smaller than 2 GiB").into(),
            leader_epoch: self.leader_epoch.into(),
            magic: 2,
            crc: 0.into(),
            attributes: (self.flags | i16::from(codec as u8)).into(),
            last_offset_delta: self.last_offset_delta.unwrap_or(self.last_delta.max(0)).into(),
            base_timestamp: self.base_timestamp.unwrap_or(-1).into(),
            max_timestamp: max_timestamp.into(),
            producer_id: self.producer_id.into(),
            producer_epoch: self.producer_epoch.into(),
            base_sequence: self.base_sequence.into(),
            record_count: self.count.into(),
        };
        let mut batch = Vec::with_capacity(BATCH_HEADER_BYTES + body.len());
        batch.extend_from_slice(header.as_bytes());
        batch.extend_from_slice(&body);
        let crc = checksum(&batch);
        Header::mut_from_prefix(&mut batch).expect("begins with a header").0.crc = crc.into();
        batch
    }

    fn finish_body(&mut self) -> Vec<u8> {
        if self.codec == Codec::None && self.encoder.is_none() {
            return std::mem::take(&mut self.staged); // small batches need no second copy
        }
        if !self.staged.is_empty() {
            self.compress_staged();
        }
        self.encoder.take().map(Encoder::finish).unwrap_or_default()
    }

    /// Whose clock the batch's timestamps come from.
    pub fn timestamp_type(&self) -> TimestampType {
        if self.flags & LOG_APPEND_TIME == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }
}

fn put_varlong(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push(0x80 | u8::try_from(rest & 0x7f).expect("seven bits"));
        rest >>= 7;
    }
    out.push(u8::try_from(rest).expect("seven bits"));
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    put_varlong(out, i32::try_from(length).expect("a record is smaller than 2 GiB").into());
}

fn put_nullable(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => put_varlong(out, -1),
        Some(field) => {
            put_length(out, field.len());
            out.extend_from_slice(field);
        }
    }
}
