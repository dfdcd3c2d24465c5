//! Taking a batch: checks, offsets, a place in the open group. Synchronous, so the order of calls is the order of
//! offsets.

use std::rc::Rc;

use bytes::Bytes;

use super::Store;
use crate::{
    api::{LogError, ProducePartition, Produced},
    batch::{self, BatchInfo, Rules},
    config::{Durability, TimestampType, TopicConfig},
    io::Io,
    manifest::ProducerBatch,
    partition::{Partition, PartitionCell},
    producer::Sequence,
    wal::group::{BATCH_BYTES_MAX, GroupOutcome, PlacedBatch},
};

/// What became of a batch.
pub(crate) type Appended = Result<(Produced, Option<Wait>), LogError>;

/// Resolves when the batch is as durable as its topic asks. `None` in [`Appended`]: it is so already.
pub(crate) type Wait = Rc<GroupOutcome>;

impl<I: Io> Store<I> {
    /// Takes one batch.
    pub(crate) fn append(&self, part: ProducePartition) -> Appended {
        if let Some(reason) = &*self.failed.borrow() {
            return Err(LogError::Storage(reason.clone()));
        }
        let cell = self.partition(part.partition)?;
        let config = cell.borrow().config.clone();
        let now_ms = self.io.now_ms();
        let info = batch::check(&part.batch, &rules(&config, now_ms))?;
        let sequence = cell.borrow().producers.check(&info)?;
        match sequence {
            Sequence::Duplicate { base_offset, timestamp_ms } => {
                Ok(duplicate(&cell.borrow(), base_offset, timestamp_ms))
            }
            Sequence::New if self.full.get() => Err(LogError::StorageFull),
            Sequence::New => Ok(self.place(&cell, part.batch, &info, now_ms)),
        }
    }

    fn place(&self, cell: &Rc<PartitionCell>, bytes: Bytes, info: &BatchInfo, now_ms: i64) -> (Produced, Option<Wait>) {
        let mut partition = cell.borrow_mut();
        let base_offset = partition.end;
        let end_offset = base_offset + i64::from(info.last_offset_delta) + 1;
        partition.end = end_offset;
        let append_time_ms = (partition.config.timestamp_type == TimestampType::LogAppendTime).then_some(now_ms);
        if info.producer_id >= 0 {
            let timestamp_ms = append_time_ms.unwrap_or(info.max_timestamp);
            partition.producers.note(producer_batch(info, base_offset, timestamp_ms), now_ms);
        }
        let flush = partition.config.durability == Durability::Device;
        let produced = Produced {
            base_offset,
            append_time_ms: append_time_ms.unwrap_or(-1),
            log_start_offset: partition.log_start,
        };
        drop(partition);
        self.counters.produced_batches.add(1);
        self.counters.produced_records.add(usize::try_from(info.record_count).unwrap_or(0));
        self.counters.produced_bytes.add(bytes.len());
        let placed = PlacedBatch { bytes, checked: *info, base_offset, append_time_ms };
        let wait = self.groups.borrow_mut().push(cell, placed, end_offset, flush);
        self.pump.notify();
        (produced, Some(wait))
    }
}

fn rules(config: &TopicConfig, now_ms: i64) -> Rules {
    Rules {
        max_bytes: config.max_message_bytes.min(BATCH_BYTES_MAX),
        now_ms,
        timestamp_type: config.timestamp_type,
        before_max_ms: config.timestamp_before_max_ms,
        after_max_ms: config.timestamp_after_max_ms,
        key_required: config.cleanup_policy.compact,
    }
}

/// A batch that came before is answered as it was then, but not before it is durable.
fn duplicate(partition: &Partition, base_offset: i64, timestamp_ms: i64) -> (Produced, Option<Wait>) {
    let log_append_time = partition.config.timestamp_type == TimestampType::LogAppendTime;
    let produced = Produced {
        base_offset,
        append_time_ms: if log_append_time { timestamp_ms } else { -1 },
        log_start_offset: partition.log_start,
    };
    let settled = base_offset < partition.high_watermark();
    let wait = if settled { None } else { partition.last_group.clone() };
    (produced, wait)
}

/// What is remembered of a producer's batch.
pub(crate) fn producer_batch(info: &BatchInfo, base_offset: i64, timestamp_ms: i64) -> ProducerBatch {
    ProducerBatch {
        producer_id: info.producer_id.into(),
        producer_epoch: info.producer_epoch.into(),
        reserved: 0.into(),
        base_sequence: info.base_sequence.into(),
        last_offset_delta: info.last_offset_delta.into(),
        reserved_2: 0.into(),
        base_offset: base_offset.into(),
        timestamp_ms: timestamp_ms.into(),
    }
}
