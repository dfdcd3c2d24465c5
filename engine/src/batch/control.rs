//! Control batches that end transactions: markers. One record each, never more: clients do not expect others.
//!
//! Key: version i16, type i16. Value: version i16, coordinator epoch i32 (KIP-98). Newer versions are read as version 0.

use bytes::Bytes;

use super::{BatchBuilder, BatchError, Codec, records};

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// What it wrote does not count.
    Abort,
    /// What it wrote counts.
    Commit,
}

/// What a marker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndMarker {
    /// How the transaction ends.
    pub outcome: Outcome,
    /// Epoch of the coordinator that decided.
    pub coordinator_epoch: i32,
}

/// A transaction that was aborted: records of the producer from the offset on, up to its next marker, are not for who reads
/// what is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Whose.
    pub producer_id: i64,
    /// Offset of its first batch.
    pub first_offset: i64,
}

/// Size of a marker.
pub const MARKER_BYTES: usize = 78;

/// Version and type.
const KEY_BYTES: usize = 4;
/// Version and coordinator epoch.
const VALUE_BYTES: usize = 6;

const VERSION: i16 = 0;
const ABORT: i16 = 0;
const COMMIT: i16 = 1;

/// A marker with base offset 0.
pub fn marker(producer_id: i64, producer_epoch: i16, end: EndMarker, timestamp_ms: i64) -> Vec<u8> {
    let kind = match end.outcome {
        Outcome::Abort => ABORT,
        Outcome::Commit => COMMIT,
    };
    let (mut key, mut value) = ([0; KEY_BYTES], [0; VALUE_BYTES]);
    let (key_version, key_kind) = key.split_at_mut(2);
    key_version.copy_from_slice(&VERSION.to_be_bytes());
    key_kind.copy_from_slice(&kind.to_be_bytes());
    let (value_version, epoch) = value.split_at_mut(2);
    value_version.copy_from_slice(&VERSION.to_be_bytes());
    epoch.copy_from_slice(&end.coordinator_epoch.to_be_bytes());
    let mut builder =
        BatchBuilder::new(Codec::None, 0).producer(producer_id, producer_epoch, -1).transactional().control();
    builder.push_pair(0, timestamp_ms, Some(&key), Some(&value));
    builder.finish()
}

/// What the control batch at the start of `batch` says of a transaction; none if it ends none: it is of another type, or
/// compaction has emptied it.
///
/// # Errors
/// If its record cannot be read.
pub fn end_marker(batch: &[u8]) -> Result<Option<EndMarker>, BatchError> {
    let of_key = |key: &Bytes| Some(i16::from_be_bytes(key.get(2..4)?.try_into().ok()?));
    let of_value = |value: &Bytes| Some(i32::from_be_bytes(value.get(2..6)?.try_into().ok()?));
    let first = records(batch)?.into_iter().next();
    let Some((Some(key), value)) = first.map(|record| (record.key, record.value)) else { return Ok(None) };
    let outcome = match of_key(&key) {
        Some(ABORT) => Outcome::Abort,
        Some(COMMIT) => Outcome::Commit,
        _ => return Ok(None),
    };
    let coordinator_epoch = value.as_ref().and_then(of_value).unwrap_or(-1);
    Ok(Some(EndMarker { outcome, coordinator_epoch }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchInfo, Record};

    #[test]
    fn a_marker_is_one_record_of_78_bytes() {
        for outcome in [Outcome::Abort, Outcome::Commit] {
            let end = EndMarker { outcome, coordinator_epoch: 7 };
            let batch = marker(5, 3, end, 1_000);
            assert_eq!(batch.len(), MARKER_BYTES);
            let info = BatchInfo::parse(&batch).unwrap();
            assert!(info.is_control() && info.is_transactional());
            assert_eq!((info.producer_id, info.producer_epoch, info.base_sequence), (5, 3, -1));
            assert_eq!((info.record_count, info.last_offset_delta, info.max_timestamp), (1, 0, 1_000));
            assert_eq!(end_marker(&batch), Ok(Some(end)));
        }
    }

    #[test]
    fn newer_versions_are_read_and_other_types_end_nothing() {
        let control = |key: &[u8], value: &[u8]| {
            let mut builder = BatchBuilder::new(Codec::None, 0).producer(5, 3, -1).transactional().control();
            let (key, value) = (Some(Bytes::copy_from_slice(key)), Some(Bytes::copy_from_slice(value)));
            builder.push(&Record { offset: 0, timestamp: 1, key, value, headers: Vec::new() });
            end_marker(&builder.finish()).unwrap()
        };
        let committed = EndMarker { outcome: Outcome::Commit, coordinator_epoch: 9 };
        assert_eq!(control(&[0, 1, 0, 1, 77], &[0, 1, 0, 0, 0, 9, 1, 2]), Some(committed));
        assert_eq!(control(&[0, 0, 0, 2], &[0, 0, 0, 0, 0, 9]), None, "a change of leader");
        assert_eq!(control(&[0], &[]), None);
        let emptied = BatchBuilder::new(Codec::None, 0).producer(5, 3, -1).transactional().control().finish();
        assert_eq!(end_marker(&emptied), Ok(None));
    }
}
