//! Record batches (magic 2) as the load tool sends and reads them, written here a second time on purpose: a mistake in
//! the broker's own codec must not hide in its test client.
//!
//! A [`BatchTemplate`] is encoded once; sending copies it and patches times, producer and the values' headers in place.

use bytes::Bytes;

use crate::payload::{self, Stamp};

const HEADER_BYTES: usize = 61;
const LENGTH_AT: usize = 8;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const LAST_DELTA_AT: usize = 23;
const BASE_TIMESTAMP_AT: usize = 27;
const MAX_TIMESTAMP_AT: usize = 35;
const PRODUCER_ID_AT: usize = 43;
const PRODUCER_EPOCH_AT: usize = 51;
const BASE_SEQUENCE_AT: usize = 53;
const COUNT_AT: usize = 57;
/// Base offset and batch length, which the length field does not count.
const LOG_OVERHEAD: usize = 12;

/// Shape of a batch's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShape {
    /// Records per batch, at least 1.
    pub records: usize,
    /// Bytes of each value, at least [`payload::HEADER_BYTES`].
    pub value_bytes: usize,
    /// Bytes of each key; 0 is a null key.
    pub key_bytes: usize,
}

/// The identity of an idempotent producer, and where its next batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotence {
    /// From InitProducerId.
    pub producer_id: i64,
    /// From InitProducerId.
    pub producer_epoch: i16,
    /// Sequence of the batch's first record within its partition.
    pub base_sequence: i32,
}

/// A batch with everything in place but what changes from one to the next.
#[derive(Debug)]
pub struct BatchTemplate {
    shape: BatchShape,
    bytes: Vec<u8>,
    /// Where each value starts, and its filler's checksum.
    values: Vec<(usize, u32)>,
    /// Where each key starts.
    keys: Vec<usize>,
}

impl BatchTemplate {
    /// Encodes the template. Panics when the shape makes no sense: callers check what users wrote.
    pub fn new(shape: BatchShape) -> BatchTemplate {
        assert!(shape.records > 0 && shape.value_bytes >= payload::HEADER_BYTES, "{shape:?}");
        let mut bytes = vec![0u8; HEADER_BYTES];
        let (mut values, mut keys) = (Vec::new(), Vec::new());
        let mut value = vec![0u8; shape.value_bytes];
        for index in 0..shape.records {
            payload::fill(index as u64 + 1, &mut value);
            let body = record_body(index, &shape);
            put_varint(&mut bytes, (body.len() + shape.value_bytes + 1) as i64);
            if shape.key_bytes > 0 {
                keys.push(bytes.len() + body.len() - varint_len(shape.value_bytes as i64) - shape.key_bytes);
            }
            bytes.extend_from_slice(&body);
            values.push((bytes.len(), payload::filler_crc(&value)));
            bytes.extend_from_slice(&value);
            put_varint(&mut bytes, 0); // no headers
        }
        let length = (bytes.len() - LOG_OVERHEAD) as i32;
        put(&mut bytes, LENGTH_AT, &length.to_be_bytes());
        put(&mut bytes, 12, &(-1i32).to_be_bytes()); // partition leader epoch
        bytes[MAGIC_AT] = 2;
        put(&mut bytes, LAST_DELTA_AT, &(shape.records as i32 - 1).to_be_bytes());
        put(&mut bytes, COUNT_AT, &(shape.records as i32).to_be_bytes());
        BatchTemplate { shape, bytes, values, keys }
    }

    /// Size of every batch of this template, in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a batch has at least one record.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Shape of its records.
    pub fn shape(&self) -> BatchShape {
        self.shape
    }

    /// Appends a batch to `out`: `first` stamps its first record, the others count on from there.
    pub fn append_to(&self, out: &mut Vec<u8>, timestamp_ms: i64, idempotence: Option<Idempotence>, first: Stamp) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let batch = &mut out[start..];
        put(batch, BASE_TIMESTAMP_AT, &timestamp_ms.to_be_bytes());
        put(batch, MAX_TIMESTAMP_AT, &timestamp_ms.to_be_bytes());
        let id = idempotence.unwrap_or(Idempotence { producer_id: -1, producer_epoch: -1, base_sequence: -1 });
        put(batch, PRODUCER_ID_AT, &id.producer_id.to_be_bytes());
        put(batch, PRODUCER_EPOCH_AT, &id.producer_epoch.to_be_bytes());
        put(batch, BASE_SEQUENCE_AT, &id.base_sequence.to_be_bytes());
        for (index, &(at, filler_crc)) in self.values.iter().enumerate() {
            let stamp = Stamp { sequence: first.sequence + index as u64, ..first };
            stamp.write(&mut batch[at..at + self.shape.value_bytes], filler_crc);
        }
        for (index, &at) in self.keys.iter().enumerate() {
            let mut state = first.sequence + index as u64 + ((first.producer as u64) << 40);
            let key = payload::splitmix64(&mut state).to_be_bytes();
            let n = self.shape.key_bytes.min(8);
            batch[at..at + n].copy_from_slice(&key[..n]);
        }
        let crc = crc32c::crc32c(&batch[ATTRIBUTES_AT..]);
        put(batch, CRC_AT, &crc.to_be_bytes());
    }
}

/// A record up to its value: attributes, deltas, key, length of the value.
fn record_body(index: usize, shape: &BatchShape) -> Vec<u8> {
    let mut body = vec![0u8];
    put_varint(&mut body, 0);
    put_varint(&mut body, index as i64);
    if shape.key_bytes == 0 {
        put_varint(&mut body, -1);
    } else {
        put_varint(&mut body, shape.key_bytes as i64);
        body.resize(body.len() + shape.key_bytes, b'k');
    }
    put_varint(&mut body, shape.value_bytes as i64);
    body
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    while zigzag >= 0x80 {
        out.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}

fn varint_len(value: i64) -> usize {
    let mut out = Vec::new();
    put_varint(&mut out, value);
    out.len()
}

/// Why fetched bytes are no record batches that we can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The batch's own checksum does not fit.
    #[error("batch at offset {0} fails its checksum")]
    Checksum(i64),
    /// A field points outside its parent, or makes no sense.
    #[error("batch at offset {base_offset}: {reason}")]
    Structure {
        /// Base offset of the batch.
        base_offset: i64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// One record of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchedRecord<'a> {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in ms.
    pub timestamp_ms: i64,
    /// Its value; empty when null.
    pub value: &'a [u8],
}

/// Visits the records of a fetch in order and answers the offset after the last whole batch, or `None` without any.
/// A batch cut off at the end is left alone, as the protocol allows it.
pub fn for_each_record<'a>(
    records: &'a Bytes,
    mut visit: impl FnMut(FetchedRecord<'a>),
) -> Result<Option<i64>, ReadError> {
    let mut rest: &[u8] = records;
    let mut next = None;
    while rest.len() >= HEADER_BYTES {
        let base_offset = i64::from_be_bytes(array(rest, 0));
        let bad = |reason| ReadError::Structure { base_offset, reason };
        let length = i32::from_be_bytes(array(rest, LENGTH_AT));
        let length = usize::try_from(length).map_err(|_| bad("negative length"))?;
        if length + LOG_OVERHEAD < HEADER_BYTES {
            return Err(bad("shorter than its header"));
        }
        if rest.len() < length + LOG_OVERHEAD {
            break;
        }
        let (batch, tail) = rest.split_at(length + LOG_OVERHEAD);
        rest = tail;
        next = Some(read_batch(batch, base_offset, &mut visit)?);
    }
    Ok(next)
}

fn read_batch<'a>(
    batch: &'a [u8],
    base_offset: i64,
    visit: &mut impl FnMut(FetchedRecord<'a>),
) -> Result<i64, ReadError> {
    let bad = |reason| ReadError::Structure { base_offset, reason };
    if batch[MAGIC_AT] != 2 {
        return Err(bad("magic is not 2"));
    }
    if u32::from_be_bytes(array(batch, CRC_AT)) != crc32c::crc32c(&batch[ATTRIBUTES_AT..]) {
        return Err(ReadError::Checksum(base_offset));
    }
    if i16::from_be_bytes(array(batch, ATTRIBUTES_AT)) & 0x7 != 0 {
        return Err(bad("compressed, which this tool never sends"));
    }
    let base_timestamp = i64::from_be_bytes(array(batch, BASE_TIMESTAMP_AT));
    let mut body = &batch[HEADER_BYTES..];
    for _ in 0..i32::from_be_bytes(array(batch, COUNT_AT)) {
        let length = take_varint(&mut body).ok_or(bad("record length"))?;
        let mut record = take(&mut body, length).ok_or(bad("record outside its batch"))?;
        let mut parse = || {
            take(&mut record, 1)?;
            let (time, offset) = (take_varint(&mut record)?, take_varint(&mut record)?);
            let key = take_varint(&mut record)?;
            take(&mut record, key.max(0))?;
            let value = take_varint(&mut record)?;
            Some((time, offset, take(&mut record, value.max(0))?))
        };
        let (time, offset, value) = parse().ok_or(bad("field outside its record"))?;
        visit(FetchedRecord { offset: base_offset + offset, timestamp_ms: base_timestamp + time, value });
    }
    Ok(base_offset + i64::from(i32::from_be_bytes(array(batch, LAST_DELTA_AT))) + 1)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

fn take<'a>(from: &mut &'a [u8], n: i64) -> Option<&'a [u8]> {
    let (head, tail) = from.split_at_checked(usize::try_from(n).ok()?)?;
    *from = tail;
    Some(head)
}

fn take_varint(from: &mut &[u8]) -> Option<i64> {
    let mut zigzag = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, tail) = from.split_first()?;
        *from = tail;
        zigzag |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(sequence: u64) -> Stamp {
        Stamp { run: 1, producer: 2, partition: 3, sequence, intended_ns: 4 }
    }

    #[test]
    fn records_come_back_in_order_with_their_stamps() {
        let template = BatchTemplate::new(BatchShape { records: 16, value_bytes: 1024, key_bytes: 0 });
        let mut out = Vec::new();
        template.append_to(&mut out, 1000, None, stamp(0));
        template.append_to(&mut out, 2000, None, stamp(16));
        assert_eq!(out.len(), 2 * template.len());
        let mut seen = Vec::new();
        let next = for_each_record(&Bytes::from(out), |record| {
            let stamp = Stamp::read(record.value).expect("untouched");
            seen.push((record.offset, record.timestamp_ms, stamp.sequence));
        });
        assert_eq!(next, Ok(Some(16)), "both batches say base offset 0");
        let expected: Vec<_> = (0..32).map(|i| (i % 16, if i < 16 { 1000 } else { 2000 }, i as u64)).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn truncated_last_batch_is_left_alone() {
        let template = BatchTemplate::new(BatchShape { records: 2, value_bytes: 64, key_bytes: 9 });
        let mut out = Vec::new();
        template.append_to(&mut out, 1, None, stamp(0));
        template.append_to(&mut out, 1, None, stamp(2));
        out.truncate(out.len() - 1);
        let mut count = 0;
        assert_eq!(for_each_record(&Bytes::from(out), |_| count += 1), Ok(Some(2)));
        assert_eq!(count, 2);
    }

    #[test]
    fn flipped_bits_behind_the_checksum_are_noticed() {
        let template = BatchTemplate::new(BatchShape { records: 1, value_bytes: 40, key_bytes: 0 });
        let mut good = Vec::new();
        let id = Idempotence { producer_id: 5, producer_epoch: 1, base_sequence: 0 };
        template.append_to(&mut good, 1, Some(id), stamp(0));
        for bit in ATTRIBUTES_AT * 8..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(for_each_record(&Bytes::from(bad), |_| ()), Err(ReadError::Checksum(0)));
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), fix in any::<bool>()) {
            if fix && bytes.len() > HEADER_BYTES {
                let length = (bytes.len() - LOG_OVERHEAD) as i32;
                put(&mut bytes, LENGTH_AT, &length.to_be_bytes());
                bytes[MAGIC_AT] = 2;
                bytes[22] &= !7;
                let crc = crc32c::crc32c(&bytes[ATTRIBUTES_AT..]);
                put(&mut bytes, CRC_AT, &crc.to_be_bytes());
            }
            let _ = for_each_record(&Bytes::from(bytes), |_| ());
        }

        #[test]
        fn every_shape_reads_back(records in 1usize..50, value_bytes in 36usize..300, key_bytes in 0usize..20) {
            let template = BatchTemplate::new(BatchShape { records, value_bytes, key_bytes });
            let mut out = Vec::new();
            template.append_to(&mut out, 7, None, stamp(0));
            let mut sequences = Vec::new();
            let next = for_each_record(&Bytes::from(out), |r| sequences.push(Stamp::read(r.value).map(|s| s.sequence)));
            prop_assert_eq!(next, Ok(Some(records as i64)));
            prop_assert_eq!(sequences, (0..records as u64).map(Ok).collect::<Vec<_>>());
        }
    }
}
