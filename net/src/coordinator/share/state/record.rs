//! The records of `__share_group_state` (Kafka 4.3: `share-coordinator/src/main/resources/common/message`): a snapshot of
//! a share partition's state (type 0), an update to the snapshot before it (type 1). A snapshot without value deletes.

use std::rc::Rc;

use uuid::Uuid;

use super::{DeliveryState, StateBatch};
use crate::coordinator::fields::{Reader, RecordError, Writer};

/// A share partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ShareKey {
    /// The group.
    pub(crate) group: Rc<str>,
    /// The topic.
    pub(crate) topic: Uuid,
    /// Index of the partition.
    pub(crate) partition: i32,
}

/// All state of a share partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Rises with every snapshot.
    pub(crate) snapshot_epoch: i32,
    /// Rises when the state is set anew: the group's epoch then.
    pub(crate) state_epoch: i32,
    /// Epoch of the partition's leader.
    pub(crate) leader_epoch: i32,
    /// First offset that is not done; -1: nobody has decided yet.
    pub(crate) start_offset: i64,
    /// Offsets from there on that are done; -1: not known.
    pub(crate) delivery_complete_count: i32,
    /// When the state was set, ms since the epoch.
    pub(crate) create_timestamp_ms: i64,
    /// When this was written.
    pub(crate) write_timestamp_ms: i64,
    /// What became of the offsets from the start on.
    pub(crate) batches: Vec<StateBatch>,
}

/// What changed since the last snapshot or update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    /// Epoch of the snapshot before.
    pub(crate) snapshot_epoch: i32,
    /// Epoch of the partition's leader.
    pub(crate) leader_epoch: i32,
    /// The new start, or -1 for the same.
    pub(crate) start_offset: i64,
    /// Offsets from the start on that are done; -1: not known.
    pub(crate) delivery_complete_count: i32,
    /// Only what changed.
    pub(crate) batches: Vec<StateBatch>,
}

/// A record of `__share_group_state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StateRecord {
    /// `None` deletes.
    Snapshot(ShareKey, Option<Snapshot>),
    Update(ShareKey, Update),
}

const SNAPSHOT: i16 = 0;
const UPDATE: i16 = 1;

impl StateRecord {
    /// Its key's bytes.
    pub(crate) fn key(&self) -> Vec<u8> {
        let (kind, key) = match self {
            StateRecord::Snapshot(key, _) => (SNAPSHOT, key),
            StateRecord::Update(key, _) => (UPDATE, key),
        };
        let mut writer = Writer::new(kind, false);
        writer.string(&key.group);
        writer.uuid(key.topic);
        writer.i32(key.partition);
        writer.out
    }

    /// Its value's bytes; `None` for a tombstone.
    pub(crate) fn value(&self) -> Option<Vec<u8>> {
        match self {
            StateRecord::Snapshot(_, None) => None,
            StateRecord::Snapshot(_, Some(snapshot)) => Some(snapshot.encode()),
            StateRecord::Update(_, update) => Some(update.encode()),
        }
    }

    /// Decodes a record; `Ok(None)`: of a type that is not known.
    pub(crate) fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Option<Self>, RecordError> {
        let mut reader = Reader::new(key, false);
        let kind = reader.i16("the type of a key")?;
        if !matches!(kind, SNAPSHOT | UPDATE) {
            return Ok(None);
        }
        let key = ShareKey {
            group: reader.string("GroupId")?,
            topic: reader.uuid("TopicId")?,
            partition: reader.i32("Partition")?,
        };
        Ok(match (kind, value) {
            (SNAPSHOT, value) => Some(StateRecord::Snapshot(key, value.map(Snapshot::decode).transpose()?)),
            (_, Some(value)) => Some(StateRecord::Update(key, Update::decode(value)?)),
            (_, None) => None,
        })
    }
}

impl Snapshot {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.i32(self.snapshot_epoch);
        writer.i32(self.state_epoch);
        writer.i32(self.leader_epoch);
        writer.i64(self.start_offset);
        writer.i64(self.create_timestamp_ms);
        writer.i64(self.write_timestamp_ms);
        encode_rest(&mut writer, &self.batches, self.delivery_complete_count);
        writer.out
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes)?;
        let mut snapshot = Snapshot {
            snapshot_epoch: reader.i32("SnapshotEpoch")?,
            state_epoch: reader.i32("StateEpoch")?,
            leader_epoch: reader.i32("LeaderEpoch")?,
            start_offset: reader.i64("StartOffset")?,
            delivery_complete_count: -1,
            create_timestamp_ms: reader.i64("CreateTimestamp")?,
            write_timestamp_ms: reader.i64("WriteTimestamp")?,
            batches: Vec::new(),
        };
        (snapshot.batches, snapshot.delivery_complete_count) = decode_rest(&mut reader)?;
        Ok(snapshot)
    }
}

impl Update {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0, true);
        writer.i32(self.snapshot_epoch);
        writer.i32(self.leader_epoch);
        writer.i64(self.start_offset);
        encode_rest(&mut writer, &self.batches, self.delivery_complete_count);
        writer.out
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = open(bytes)?;
        let mut update = Update {
            snapshot_epoch: reader.i32("SnapshotEpoch")?,
            leader_epoch: reader.i32("LeaderEpoch")?,
            start_offset: reader.i64("StartOffset")?,
            delivery_complete_count: -1,
            batches: Vec::new(),
        };
        (update.batches, update.delivery_complete_count) = decode_rest(&mut reader)?;
        Ok(update)
    }
}

fn open(bytes: &[u8]) -> Result<Reader<'_>, RecordError> {
    let version = Reader::new(bytes, false).i16("the version of a value")?;
    if version != 0 {
        return Err(RecordError::Malformed("a value of a version that is not known"));
    }
    Ok(Reader::new(&bytes[2..], true))
}

fn encode_rest(writer: &mut Writer, batches: &[StateBatch], delivery_complete_count: i32) {
    writer.vec(batches, |writer, batch| {
        writer.i64(batch.first_offset);
        writer.i64(batch.last_offset);
        writer.i8(batch.state.number());
        writer.i16(batch.delivery_count);
        writer.tags(&[]);
    });
    match delivery_complete_count {
        -1 => writer.tags(&[]),
        count => writer.tags(&[(0, count.to_be_bytes().to_vec())]),
    }
}

fn decode_rest(reader: &mut Reader<'_>) -> Result<(Vec<StateBatch>, i32), RecordError> {
    let batches = reader.vec("StateBatches", |reader| {
        let batch = StateBatch {
            first_offset: reader.i64("FirstOffset")?,
            last_offset: reader.i64("LastOffset")?,
            state: DeliveryState::from_number(reader.i8("DeliveryState")?)
                .ok_or(RecordError::Malformed("DeliveryState"))?,
            delivery_count: reader.i16("DeliveryCount")?,
        };
        reader.no_tags()?;
        Ok(batch)
    })?;
    let mut count = -1;
    reader.tags(|tag, field| {
        if tag == 0 {
            count = field.i32("DeliveryCompleteCount")?;
        }
        Ok(())
    })?;
    Ok((batches, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ShareKey {
        ShareKey { group: Rc::from("g"), topic: Uuid::from_u128(7), partition: 3 }
    }

    fn batch() -> StateBatch {
        StateBatch { first_offset: 5, last_offset: 9, state: DeliveryState::Archived, delivery_count: 2 }
    }

    fn update(delivery_complete_count: i32) -> Update {
        let batches = vec![batch()];
        Update { snapshot_epoch: 2, leader_epoch: 0, start_offset: 5, delivery_complete_count, batches }
    }

    #[test]
    fn bytes_are_those_of_kafka() {
        let record = StateRecord::Update(key(), update(4));
        let topic = Uuid::from_u128(7);
        let expected_key = [&[0, 1, 0, 1, b'g'][..], topic.as_bytes(), &[0, 0, 0, 3]];
        assert_eq!(record.key(), expected_key.concat());
        let expected = [
            &[0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..],
            &[2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 4, 0, 2, 0],
            &[1, 0, 4, 0, 0, 0, 4],
        ];
        assert_eq!(record.value(), Some(expected.concat()));
    }

    #[test]
    fn records_round_trip() {
        let snapshot = Snapshot {
            snapshot_epoch: 1,
            state_epoch: 4,
            leader_epoch: 0,
            start_offset: -1,
            delivery_complete_count: 0,
            create_timestamp_ms: 11,
            write_timestamp_ms: 12,
            batches: vec![batch(), StateBatch { first_offset: 12, last_offset: 12, ..batch() }],
        };
        for record in [
            StateRecord::Snapshot(key(), Some(snapshot)),
            StateRecord::Snapshot(key(), None),
            StateRecord::Update(key(), update(-1)),
        ] {
            let (key, value) = (record.key(), record.value());
            assert_eq!(StateRecord::decode(&key, value.as_deref()), Ok(Some(record)));
            for cut in 0..value.as_ref().map_or(0, Vec::len) {
                assert!(StateRecord::decode(&key, value.as_ref().map(|value| &value[..cut])).is_err());
            }
        }
    }
}
