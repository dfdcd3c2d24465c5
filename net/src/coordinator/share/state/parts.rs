//! What is asked of the state of one share partition, and what is answered.

use kafka_protocol::messages::ApiKey;

use super::{
    DeliveryState, Snapshot, StateBatch, StoreError, Summary,
    message::{Answer, Part},
};
use crate::{
    coordinator::fields::{Reader, RecordError, Writer},
    wire::api::shape::{INT8, INT16, INT32, INT64, STRING, Shape, UUID, array},
};

/// First version that knows how much is done of what is not all done (KIP-1226).
const COMPLETE_COUNT_VERSION: i16 = 1;
/// What older versions say of that: it is not known.
const UNKNOWN_COUNT: i32 = -1;

/// Set the state anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Initialize {
    pub(crate) state_epoch: i32,
    pub(crate) start_offset: i64,
}

impl Initialize {
    /// The shape of a request.
    pub(crate) const SHAPE: Shape = &[STRING, array(&[UUID, array(&[INT32, INT32, INT64])])];
}

/// Give the state to the leader of the partition, and let former ones write nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) leader_epoch: i32,
}

impl Read {
    /// The shape of a request.
    pub(crate) const SHAPE: Shape = &[STRING, array(&[UUID, array(&[INT32, INT32])])];
}

/// The state, as its partition's leader needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ReadState {
    pub(crate) state_epoch: i32,
    pub(crate) start_offset: i64,
    pub(crate) batches: Vec<RawBatch>,
}

/// Write changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WriteState {
    pub(crate) state_epoch: i32,
    pub(crate) leader_epoch: i32,
    pub(crate) start_offset: i64,
    pub(crate) delivery_complete_count: i32,
    pub(crate) batches: Vec<RawBatch>,
}

impl WriteState {
    /// The shape of a request.
    pub(crate) const SHAPE: Shape = &[
        STRING,
        array(&[UUID, array(&[INT32, INT32, INT32, INT64, INT32.since(COMPLETE_COUNT_VERSION), array(BATCH)])]),
    ];
}

/// Delete the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delete;

impl Delete {
    /// The shape of a request.
    pub(crate) const SHAPE: Shape = &[STRING, array(&[UUID, array(&[INT32])])];
}

/// Give the state in brief. Nobody is fenced by the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadSummary {
    pub(crate) leader_epoch: i32,
}

impl ReadSummary {
    /// The shape of a request.
    pub(crate) const SHAPE: Shape = Read::SHAPE;
}

/// What became of neighbouring offsets, as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawBatch {
    first_offset: i64,
    last_offset: i64,
    state: i8,
    delivery_count: i16,
}

const BATCH: Shape = &[INT64, INT64, INT8, INT16];

impl RawBatch {
    /// All of them, if they make sense.
    pub(crate) fn checked(batches: Vec<RawBatch>) -> Result<Vec<StateBatch>, StoreError> {
        let checked = batches.into_iter().map(|raw| {
            let RawBatch { first_offset, last_offset, state, delivery_count } = raw;
            let state = DeliveryState::from_number(state).filter(|_| (0..=last_offset).contains(&first_offset))?;
            Some(StateBatch { first_offset, last_offset, state, delivery_count })
        });
        checked.collect::<Option<_>>().ok_or(StoreError::Senseless)
    }

    fn write(batches: &[RawBatch], writer: &mut Writer) {
        writer.vec(batches, |writer, batch| {
            writer.i64(batch.first_offset);
            writer.i64(batch.last_offset);
            writer.i8(batch.state);
            writer.i16(batch.delivery_count);
            writer.tags(&[]);
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Vec<RawBatch>, RecordError> {
        reader.vec("StateBatches", |reader| {
            let batch = RawBatch {
                first_offset: reader.i64("FirstOffset")?,
                last_offset: reader.i64("LastOffset")?,
                state: reader.i8("DeliveryState")?,
                delivery_count: reader.i16("DeliveryCount")?,
            };
            reader.no_tags()?;
            Ok(batch)
        })
    }
}

impl From<&StateBatch> for RawBatch {
    fn from(batch: &StateBatch) -> Self {
        let StateBatch { first_offset, last_offset, state, delivery_count } = *batch;
        Self { first_offset, last_offset, state: state.number(), delivery_count }
    }
}

impl From<Snapshot> for ReadState {
    fn from(state: Snapshot) -> Self {
        let batches = state.batches.iter().map(RawBatch::from).collect();
        Self { state_epoch: state.state_epoch, start_offset: state.start_offset, batches }
    }
}

impl Part for Initialize {
    const KEY: ApiKey = ApiKey::InitializeShareGroupState;
    const VERSION_MAX: i16 = 0;
    type Answer = ();

    fn write(&self, _: i16, writer: &mut Writer) {
        writer.i32(self.state_epoch);
        writer.i64(self.start_offset);
    }

    fn read(_: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self { state_epoch: reader.i32("StateEpoch")?, start_offset: reader.i64("StartOffset")? })
    }
}

impl Part for Read {
    const KEY: ApiKey = ApiKey::ReadShareGroupState;
    const VERSION_MAX: i16 = 0;
    type Answer = ReadState;

    fn write(&self, _: i16, writer: &mut Writer) {
        writer.i32(self.leader_epoch);
    }

    fn read(_: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self { leader_epoch: reader.i32("LeaderEpoch")? })
    }
}

impl Part for WriteState {
    const KEY: ApiKey = ApiKey::WriteShareGroupState;
    const VERSION_MAX: i16 = COMPLETE_COUNT_VERSION;
    type Answer = ();

    fn write(&self, version: i16, writer: &mut Writer) {
        writer.i32(self.state_epoch);
        writer.i32(self.leader_epoch);
        writer.i64(self.start_offset);
        if version >= COMPLETE_COUNT_VERSION {
            writer.i32(self.delivery_complete_count);
        }
        RawBatch::write(&self.batches, writer);
    }

    fn read(version: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            state_epoch: reader.i32("StateEpoch")?,
            leader_epoch: reader.i32("LeaderEpoch")?,
            start_offset: reader.i64("StartOffset")?,
            delivery_complete_count: read_count(version, reader)?,
            batches: RawBatch::read(reader)?,
        })
    }
}

impl Part for Delete {
    const KEY: ApiKey = ApiKey::DeleteShareGroupState;
    const VERSION_MAX: i16 = 0;
    type Answer = ();

    fn write(&self, _: i16, _: &mut Writer) {}

    fn read(_: i16, _: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self)
    }
}

impl Part for ReadSummary {
    const KEY: ApiKey = ApiKey::ReadShareGroupStateSummary;
    const VERSION_MAX: i16 = COMPLETE_COUNT_VERSION;
    type Answer = Summary;

    fn write(&self, _: i16, writer: &mut Writer) {
        writer.i32(self.leader_epoch);
    }

    fn read(_: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self { leader_epoch: reader.i32("LeaderEpoch")? })
    }
}

/// That it is done.
impl Answer for () {
    const SHAPE: Shape = &[array(&[UUID, array(&[INT32, INT16, STRING])])];

    fn write(&self, _: i16, _: &mut Writer) {}

    fn read(_: i16, _: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(())
    }
}

impl Answer for ReadState {
    const SHAPE: Shape = &[array(&[UUID, array(&[INT32, INT16, STRING, INT32, INT64, array(BATCH)])])];

    fn write(&self, _: i16, writer: &mut Writer) {
        writer.i32(self.state_epoch);
        writer.i64(self.start_offset);
        RawBatch::write(&self.batches, writer);
    }

    fn read(_: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            state_epoch: reader.i32("StateEpoch")?,
            start_offset: reader.i64("StartOffset")?,
            batches: RawBatch::read(reader)?,
        })
    }
}

impl Answer for Summary {
    const SHAPE: Shape =
        &[array(&[UUID, array(&[INT32, INT16, STRING, INT32, INT32, INT64, INT32.since(COMPLETE_COUNT_VERSION)])])];

    fn write(&self, version: i16, writer: &mut Writer) {
        writer.i32(self.state_epoch);
        writer.i32(self.leader_epoch);
        writer.i64(self.start_offset);
        if version >= COMPLETE_COUNT_VERSION {
            writer.i32(self.delivery_complete_count);
        }
    }

    fn read(version: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            state_epoch: reader.i32("StateEpoch")?,
            leader_epoch: reader.i32("LeaderEpoch")?,
            start_offset: reader.i64("StartOffset")?,
            delivery_complete_count: read_count(version, reader)?,
        })
    }
}

fn read_count(version: i16, reader: &mut Reader<'_>) -> Result<i32, RecordError> {
    match version {
        COMPLETE_COUNT_VERSION.. => reader.i32("DeliveryCompleteCount"),
        _ => Ok(UNKNOWN_COUNT),
    }
}

#[cfg(test)]
mod tests;
