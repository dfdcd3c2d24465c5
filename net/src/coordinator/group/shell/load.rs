//! Reads a partition of `__consumer_offsets` from its start and rebuilds the coordinator's state.

use std::{os::unix::fs::FileExt, rc::Rc, time::Duration};

use bytes::Bytes;
use millrace_engine::{
    api::{Chunk, Fetch, FetchPartition, LogError, OffsetSpec, ReadBound, Records, TopicPartition},
    batch,
    engine::Engine,
};

use crate::coordinator::group::{
    coordinator::Coordinator, live_configs::LiveConfigs, record::Record, settings::Settings,
};

/// Bytes of one read; records are taken over in turns of about that size.
const READ_BYTES: usize = 1 << 20;
/// Records after which others get their turn.
const RECORDS_PER_TURN: usize = 500;

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
    Read(#[from] std::io::Error),
}

/// Loads a partition. Records of a format that is not known are left out, with a warning.
pub(super) async fn load(
    engine: &Engine,
    settings: &Rc<Settings>,
    partition: TopicPartition,
) -> Result<Coordinator, LoadError> {
    let mut coordinator = Coordinator::with_configs(
        Rc::clone(settings),
        Rc::new(LiveConfigs { engine: engine.clone(), settings: Rc::clone(settings) }),
    );
    read_records(engine, partition, |record| take_record(&mut coordinator, partition, record)).await?;
    Ok(coordinator)
}

/// Reads a partition from its start to its end, a few records at a time.
pub(crate) async fn read_records(
    engine: &Engine,
    partition: TopicPartition,
    mut each: impl FnMut(&batch::Record),
) -> Result<(), LoadError> {
    let mut offset = engine.list_offset(partition, OffsetSpec::Earliest, ReadBound::HighWatermark, -1).await?.offset;
    let end = engine.list_offset(partition, OffsetSpec::Latest, ReadBound::HighWatermark, -1).await?.offset;
    while offset < end {
        let fetched = engine.fetch(fetch(partition, offset)).await.pop();
        let fetched = fetched.unwrap_or(Err(LogError::UnknownPartition))?;
        let bytes = contiguous(&fetched.records)?;
        let next = take_batches(&mut each, partition, offset, &bytes).await?;
        if next == offset {
            // compaction can leave nothing at the end of the log
            break;
        }
        offset = next;
    }
    Ok(())
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

/// The records as one piece. Ranges of files were in memory a moment ago, so that reading them does not block.
pub(crate) fn contiguous(records: &Records) -> Result<Bytes, std::io::Error> {
    let mut bytes = Vec::with_capacity(records.len());
    for chunk in &records.chunks {
        match (chunk.as_slice(), chunk) {
            (Some(slice), _) => bytes.extend_from_slice(slice),
            (None, Chunk::File(range)) => {
                let start = bytes.len();
                bytes.resize(start + range.len, 0);
                range.file.read_exact_at(&mut bytes[start..], range.position)?;
            }
            (None, _) => {}
        }
    }
    Ok(bytes.into())
}

/// Takes the records from `offset` on over; answers where to go on.
async fn take_batches(
    each: &mut impl FnMut(&batch::Record),
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
            continue;
        }
        for record in batch::records(batch).map_err(damaged)? {
            if record.offset >= offset {
                each(&record);
            }
            count += 1;
            if count % RECORDS_PER_TURN == 0 {
                glommio::yield_if_needed().await;
            }
        }
    }
    Ok(next)
}

fn take_record(coordinator: &mut Coordinator, partition: TopicPartition, record: &batch::Record) {
    let key = record.key.as_deref().unwrap_or_default();
    match Record::decode(key, record.value.as_deref()) {
        Ok(Some(decoded)) => coordinator.load(decoded),
        // of a kind of group that is kept elsewhere
        Ok(None) => {}
        Err(error) => {
            let (partition, offset) = (partition.partition, record.offset);
            tracing::warn!(partition, offset, %error, "a record of __consumer_offsets is left out");
        }
    }
}
