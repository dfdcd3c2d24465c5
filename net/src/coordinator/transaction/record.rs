//! The records of `__transaction_state`, in Kafka's formats (`TransactionLogKey`, `TransactionLogValue`): key version 0;
//! value version 0, or 1 from `transaction.version` 1 on, whose tags hold what version 2 needs.
//!
//! Tag 10000 of version 1 is our own: the epoch before the last bump, without which a repeated request would be fenced
//! after a restart. Kafka passes over tags that it does not know.

use std::rc::Rc;

use super::{
    metadata::{Metadata, NO_EPOCH, NO_PRODUCER_ID, PartitionName},
    state::State,
};
use crate::coordinator::{
    fields::{Reader, RecordError, Writer},
    runtime::LogRecord,
};

/// What is written of a transactional id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransactionRecord {
    /// Whose.
    pub(crate) id: Rc<str>,
    /// Its state; `None`: it is forgotten.
    pub(crate) metadata: Option<Metadata>,
    /// Version of the value: 0 or 1. What only version 1 can say is lost in version 0.
    pub(crate) version: i16,
}

const KEY_VERSION: i16 = 0;
/// The highest version of values.
const VALUE_VERSION_MAX: i16 = 1;

const PREVIOUS_PRODUCER_ID: u32 = 0;
const NEXT_PRODUCER_ID: u32 = 1;
const CLIENT_VERSION: u32 = 2;
/// Kafka's `NextProducerEpoch`, which it does not write.
const NEXT_PRODUCER_EPOCH: u32 = 3;
const LAST_EPOCH: u32 = 10_000;

impl TransactionRecord {
    /// Decodes a record. One of an unknown version is an error, which is told of, and the record left out.
    pub(crate) fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self, RecordError> {
        let mut reader = Reader::new(key, false);
        let version = reader.i16("the version of a key")?;
        if version != KEY_VERSION {
            return Err(RecordError::Version { what: "a key of __transaction_state", version });
        }
        let id = reader.string("TransactionalId")?;
        let Some(value) = value else { return Ok(Self { id, metadata: None, version: VALUE_VERSION_MAX }) };
        let (version, metadata) = decode_value(value)?;
        Ok(Self { id, metadata: Some(metadata), version })
    }
}

impl LogRecord for TransactionRecord {
    fn key(&self) -> Vec<u8> {
        let mut writer = Writer::new(KEY_VERSION, false);
        writer.string(&self.id);
        writer.out
    }

    fn value(&self) -> Option<Vec<u8>> {
        self.metadata.as_ref().map(|metadata| encode_value(metadata, self.version))
    }
}

fn encode_value(metadata: &Metadata, version: i16) -> Vec<u8> {
    let mut writer = Writer::new(version, version >= 1);
    writer.i64(metadata.producer_id);
    writer.i16(metadata.epoch);
    writer.i32(metadata.timeout_ms);
    writer.i8(metadata.state as i8);
    match metadata.state {
        State::Empty => writer.no_array(),
        _ => write_partitions(&mut writer, metadata),
    }
    writer.i64(metadata.last_update_ms);
    writer.i64(metadata.start_ms);
    write_tags(&mut writer, metadata);
    writer.out
}

/// Partitions by topic: in their set those of one topic stand together.
fn write_partitions(writer: &mut Writer, metadata: &Metadata) {
    let names: Vec<_> = metadata.partitions.iter().collect();
    let topics = || names.chunk_by(|one, next| one.0 == next.0);
    writer.count(topics().count());
    for of_topic in topics() {
        writer.string(&of_topic[0].0);
        writer.vec(of_topic, |writer, (_, partition)| writer.i32(*partition));
        writer.tags(&[]);
    }
}

/// What differs from what its absence says.
fn write_tags(writer: &mut Writer, metadata: &Metadata) {
    let Metadata { previous_producer_id, next_producer_id, client_version, last_epoch, .. } = *metadata;
    let fields: [(u32, bool, &[u8]); 4] = [
        (PREVIOUS_PRODUCER_ID, previous_producer_id != NO_PRODUCER_ID, &previous_producer_id.to_be_bytes()),
        (NEXT_PRODUCER_ID, next_producer_id != NO_PRODUCER_ID, &next_producer_id.to_be_bytes()),
        (CLIENT_VERSION, client_version != 0, &client_version.to_be_bytes()),
        (LAST_EPOCH, last_epoch != NO_EPOCH, &last_epoch.to_be_bytes()),
    ];
    let differing = || fields.iter().filter(|(_, differs, _)| *differs).map(|(tag, _, bytes)| (*tag, *bytes));
    writer.tags_of(differing().count(), differing());
}

fn decode_value(value: &[u8]) -> Result<(i16, Metadata), RecordError> {
    let version = Reader::new(value, false).i16("the version of a value")?;
    if !(0..=VALUE_VERSION_MAX).contains(&version) {
        return Err(RecordError::Version { what: "a value of __transaction_state", version });
    }
    let mut reader = Reader::new(value, version >= 1);
    reader.i16("the version of a value")?;
    let mut metadata = Metadata::new(reader.i64("ProducerId")?, 0, 0);
    metadata.epoch = reader.i16("ProducerEpoch")?;
    metadata.timeout_ms = reader.i32("TransactionTimeoutMs")?;
    let state = reader.i8("TransactionStatus")?;
    metadata.state = State::of_number(state).ok_or(RecordError::Malformed("TransactionStatus"))?;
    let topics = reader.nullable_vec("TransactionPartitions", |reader| {
        let topic = reader.string("Topic")?;
        let partitions = reader.vec("PartitionIds", |reader| reader.i32("a partition"))?;
        reader.no_tags()?;
        Ok((topic, partitions))
    })?;
    let names = topics.into_iter().flatten();
    metadata.partitions = names
        .flat_map(|(topic, partitions)| partitions.into_iter().map(move |partition| (Rc::clone(&topic), partition)))
        .collect::<std::collections::BTreeSet<PartitionName>>();
    metadata.last_update_ms = reader.i64("TransactionLastUpdateTimestampMs")?;
    metadata.start_ms = reader.i64("TransactionStartTimestampMs")?;
    reader.tags(|tag, field| {
        match tag {
            PREVIOUS_PRODUCER_ID => metadata.previous_producer_id = field.i64("PreviousProducerId")?,
            NEXT_PRODUCER_ID => metadata.next_producer_id = field.i64("NextProducerId")?,
            CLIENT_VERSION => metadata.client_version = field.i16("ClientTransactionVersion")?,
            NEXT_PRODUCER_EPOCH => {
                field.i16("NextProducerEpoch")?;
            }
            LAST_EPOCH => metadata.last_epoch = field.i16("the last epoch")?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((version, metadata))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ongoing() -> Metadata {
        Metadata {
            producer_id: 258,
            epoch: 3,
            timeout_ms: 60_000,
            state: State::Ongoing,
            partitions: [("a".into(), 1), ("a".into(), 0), ("b".into(), 2)].into(),
            start_ms: 5,
            last_update_ms: 6,
            ..Metadata::new(258, 0, 0)
        }
    }

    fn record(metadata: Metadata, version: i16) -> TransactionRecord {
        TransactionRecord { id: "id".into(), metadata: Some(metadata), version }
    }

    #[test]
    fn keys_and_values_are_kafka_s_bytes() {
        let record = record(ongoing(), 0);
        assert_eq!(record.key(), [0, 0, 0, 2, b'i', b'd']);
        let expected: &[&[u8]] = &[
            &[0, 0],
            &[0, 0, 0, 0, 0, 0, 1, 2],
            &[0, 3],
            &[0, 0, 0xea, 0x60],
            &[1],
            &[0, 0, 0, 2],
            &[0, 1, b'a', 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 1, b'b', 0, 0, 0, 1, 0, 0, 0, 2],
            &[0, 0, 0, 0, 0, 0, 0, 6],
            &[0, 0, 0, 0, 0, 0, 0, 5],
        ];
        assert_eq!(record.value(), Some(expected.concat()));
    }

    #[test]
    fn values_of_version_1_are_compact_and_tagged() {
        let metadata = Metadata {
            partitions: [("a".into(), 1)].into(),
            previous_producer_id: 258,
            next_producer_id: 259,
            client_version: 2,
            ..ongoing()
        };
        let expected: &[&[u8]] = &[
            &[0, 1],
            &[0, 0, 0, 0, 0, 0, 1, 2],
            &[0, 3],
            &[0, 0, 0xea, 0x60],
            &[1],
            &[2, 2, b'a', 2, 0, 0, 0, 1, 0],
            &[0, 0, 0, 0, 0, 0, 0, 6],
            &[0, 0, 0, 0, 0, 0, 0, 5],
            &[3],
            &[0, 8, 0, 0, 0, 0, 0, 0, 1, 2],
            &[1, 8, 0, 0, 0, 0, 0, 0, 1, 3],
            &[2, 2, 0, 2],
        ];
        assert_eq!(record(metadata, 1).value(), Some(expected.concat()));
    }

    #[test]
    fn partitions_are_null_when_empty_and_none_when_complete() {
        let empty = Metadata { state: State::Empty, partitions: Default::default(), ..ongoing() };
        let value = record(empty.clone(), 0).value().unwrap();
        assert_eq!(value[17..21], [0xff; 4]);
        let complete = Metadata { state: State::CompleteCommit, ..empty };
        assert_eq!(record(complete, 0).value().unwrap()[17..21], [0; 4]);
    }

    #[test]
    fn what_is_of_an_unknown_version_is_left_out() {
        let unknown = |found: Result<_, RecordError>| matches!(found, Err(RecordError::Version { .. }));
        assert!(unknown(TransactionRecord::decode(&[0, 1, 0, 2, b'i', b'd'], None)));
        assert!(unknown(TransactionRecord::decode(&record(ongoing(), 0).key(), Some(&[0, 2, 0]))));
        // Dead is never written
        let mut value = record(ongoing(), 0).value().unwrap();
        value[16] = 6;
        let found = TransactionRecord::decode(&record(ongoing(), 0).key(), Some(&value));
        assert_eq!(found, Err(RecordError::Malformed("TransactionStatus")));
    }

    fn metadata() -> impl Strategy<Value = Metadata> {
        let partitions = proptest::collection::btree_set(("[a-z]{1,9}", 0..9), 0..9);
        let ids = (any::<i64>(), any::<i64>(), any::<i64>(), any::<i16>(), any::<i16>(), any::<i16>());
        (ids, any::<i32>(), 0i8..6, partitions, any::<i64>(), any::<i64>()).prop_map(
            |(ids, timeout_ms, state, partitions, start_ms, last_update_ms)| Metadata {
                producer_id: ids.0,
                previous_producer_id: ids.1,
                next_producer_id: ids.2,
                epoch: ids.3,
                last_epoch: ids.4,
                timeout_ms,
                state: State::of_number(state).unwrap(),
                partitions: match state {
                    0 => Default::default(),
                    _ => partitions.into_iter().map(|(topic, partition)| (topic.into(), partition)).collect(),
                },
                start_ms,
                last_update_ms,
                client_version: ids.5,
            },
        )
    }

    proptest! {
        #[test]
        fn records_round_trip(metadata in metadata()) {
            let record = record(metadata, 1);
            let (key, value) = (record.key(), record.value().unwrap());
            prop_assert_eq!(TransactionRecord::decode(&key, Some(&value)), Ok(record.clone()));
            for cut in 0..value.len() {
                prop_assert!(TransactionRecord::decode(&key, Some(&value[..cut])).is_err());
            }
            // version 0 keeps what it can say
            let old = TransactionRecord { version: 0, ..record.clone() };
            let decoded = TransactionRecord::decode(&key, old.value().as_deref()).unwrap();
            let decoded = decoded.metadata.unwrap();
            let metadata = record.metadata.unwrap();
            prop_assert_eq!((decoded.producer(), decoded.state), (metadata.producer(), metadata.state));
            prop_assert_eq!(decoded.partitions, metadata.partitions);
        }

        #[test]
        fn foreign_bytes_never_panic(key in proptest::collection::vec(any::<u8>(), 0..64), value in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _decoded = TransactionRecord::decode(&key, Some(&value));
        }
    }

    #[test]
    fn a_tombstone_forgets() {
        let record = TransactionRecord { id: "id".into(), metadata: None, version: 1 };
        assert_eq!(TransactionRecord::decode(&record.key(), None), Ok(record));
    }
}
