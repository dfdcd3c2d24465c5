//! Reads a partition of an internal topic from its start into a machine.

use std::{io, os::unix::fs::FileExt, time::Duration};

use bytes::Bytes;
use millrace_engine::{
    api::{Chunk, Fetch, FetchPartition, FileRange, LogError, OffsetSpec, ReadBound, Records, TopicPartition},
    batch,
    engine::Engine,
    transactions::Outcome,
};

use super::{
    machine::{Machine, Replayed},
    marker::ReplayedMarker,
};

/// Bytes of one read; records are taken over in turns of about that size.
const READ_BYTES: usize = 1 << 20;
/// Pause before a new leader is asked again how far the log goes.
const END_RETRY: Duration = Duration::from_millis(10);
/// Records after which others get their turn.
const RECORDS_PER_TURN: usize = 500;

impl LoadError {
    /// Whether the partition is led by somebody else by now, which is nobody's fault.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, LoadError::Log(LogError::NotLeader | LogError::UnknownPartition))
    }
}

/// Why a partition could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The log refused to be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A batch in the log is damaged.
    #[error("a batch of {partition:?} is damaged: {reason}")]
    Batch {
        /// Where.
        partition: TopicPartition,
        /// What is wrong.
        reason: String,
    },
    /// A piece of the log could not be read.
    #[error("reading: {0}")]
    Read(#[from] io::Error),
}

/// Reads a partition from its start to its end, a few records at a time. Records that the machine does not understand
/// are left out, with a warning.
pub(super) async fn replay<M: Machine>(
    engine: &Engine,
    topic: &'static str,
    partition: TopicPartition,
    machine: &mut M,
) -> Result<(), LoadError> {
    let mut offset = engine.list_offset(partition, OffsetSpec::Earliest, ReadBound::HighWatermark, -1).await?.offset;
    let end = end(engine, partition).await?;
    while offset < end {
        let fetched = engine.fetch(fetch(partition, offset)).await.pop();
        let fetched = fetched.unwrap_or(Err(LogError::UnknownPartition))?;
        let bytes = contiguous(&fetched.records).await?;
        let next = take_batches(machine, topic, partition, offset, &bytes).await?;
        if next == offset {
            // compaction can leave nothing at the end of the log
            break;
        }
        offset = next;
    }
    Ok(())
}

/// The end of the log, once it is known how far the leader before may have come: what that wrote is loaded or was cut
/// off, and nothing of it appears later.
async fn end(engine: &Engine, partition: TopicPartition) -> Result<i64, LogError> {
    loop {
        match engine.list_offset(partition, OffsetSpec::Latest, ReadBound::HighWatermark, -1).await {
            Err(LogError::OffsetNotAvailable) => glommio::timer::sleep(END_RETRY).await,
            found => return found.map(|found| found.offset),
        }
    }
}

fn fetch(partition: TopicPartition, offset: i64) -> Fetch {
    Fetch {
        partitions: vec![FetchPartition {
            partition,
            offset,
            max_bytes: READ_BYTES,
            leader_epoch: -1,
            bound: ReadBound::HighWatermark,
        }],
        max_bytes: READ_BYTES,
        min_bytes: 0,
        max_wait: Duration::ZERO,
    }
}

/// The records as one piece.
pub(crate) async fn contiguous(records: &Records) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(records.len());
    for chunk in &records.chunks {
        match (chunk.as_slice(), chunk) {
            (Some(slice), _) => bytes.extend_from_slice(slice),
            (None, Chunk::File(range)) => bytes.extend_from_slice(&read(range).await?),
            (None, _) => {}
        }
    }
    Ok(bytes.into())
}

/// Reads a range of a file in another thread: its pages were in memory a moment ago, but need not be any more.
async fn read(range: &FileRange) -> io::Result<Vec<u8>> {
    let (file, position, len) = (range.file.try_clone()?, range.position, range.len);
    let read = move || {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, position).map(|()| bytes)
    };
    glommio::executor().spawn_blocking(read).await
}

/// Takes the records from `offset` on over; answers where to go on.
async fn take_batches<M: Machine>(
    machine: &mut M,
    topic: &'static str,
    partition: TopicPartition,
    offset: i64,
    bytes: &[u8],
) -> Result<i64, LoadError> {
    let damaged = |error: batch::BatchError| LoadError::Batch { partition, reason: error.to_string() };
    let mut next = offset;
    let mut count = 0;
    for batch in batch::batches(bytes) {
        let (info, batch) = batch.map_err(damaged)?;
        if info.last_offset() < offset {
            continue;
        }
        next = info.last_offset() + 1;
        if info.is_control() {
            if let Some(outcome) = marker_outcome(batch).map_err(damaged)? {
                let (producer_id, producer_epoch) = (info.producer_id, info.producer_epoch);
                let offset = info.base_offset;
                machine.replay_marker(&ReplayedMarker { offset, producer_id, producer_epoch, outcome });
            }
            continue;
        }
        let producer = info.is_transactional().then_some((info.producer_id, info.producer_epoch));
        for record in batch::records(batch).map_err(damaged)? {
            if record.offset >= offset {
                let key = record.key.as_deref().unwrap_or_default();
                take_record(
                    machine,
                    topic,
                    partition,
                    &Replayed { offset: record.offset, producer, key, value: record.value.as_deref() },
                );
            }
            count += 1;
            if count % RECORDS_PER_TURN == 0 {
                glommio::yield_if_needed().await;
            }
        }
    }
    Ok(next)
}

/// How a control batch ends its producer's transaction, if it does: its one record's key says so (version and type, both
/// of 16 bits). A batch whose record compaction took ends nothing that is still there.
fn marker_outcome(batch: &[u8]) -> Result<Option<Outcome>, batch::BatchError> {
    let records = batch::records(batch)?;
    let key = records.first().and_then(|record| record.key.as_deref());
    Ok(match key {
        Some([_, _, 0, 0, ..]) => Some(Outcome::Abort),
        Some([_, _, 0, 1, ..]) => Some(Outcome::Commit),
        _ => None,
    })
}

fn take_record<M: Machine>(machine: &mut M, topic: &'static str, partition: TopicPartition, record: &Replayed<'_>) {
    if let Err(error) = machine.replay(record) {
        let (partition, offset, producer) = (partition.partition, record.offset, record.producer);
        tracing::warn!(topic, partition, offset, ?producer, %error, "a record is left out");
    }
}
