//! Reads a partition of an internal topic from its start into a machine.

use std::{collections::HashMap, io, os::unix::fs::FileExt, time::Duration};

use bytes::Bytes;
use glommio::sync::Semaphore;
use millrace_engine::{
    api::{Chunk, Fetch, FetchPartition, FileRange, LogError, OffsetSpec, ReadBound, Records, TopicPartition},
    batch::{self, RecordReader},
    engine::Engine,
    transactions::Outcome,
};

use super::{
    machine::{Machine, Replayed},
    marker::ReplayedMarker,
};

/// Bytes of one read; records are taken over in turns of about that size.
const READ_BYTES: usize = 1 << 20;
/// Partitions of a kind that a shard reads at the same time: one while the records of another are taken over.
pub(super) const READ_AT_ONCE: u64 = 2;
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

/// Reads a partition from its start to its end, a few records at a time, once it is one of those that are read. Records that
/// the machine does not understand are left out, with a warning.
pub(super) async fn replay<M: Machine>(
    engine: &Engine,
    reading: &Semaphore,
    (topic, partition): (&'static str, TopicPartition),
    machine: &mut M,
    is_wanted: impl Fn() -> bool,
) -> Result<(), LoadError> {
    // not one of those yet: it may take its time
    let end = end(engine, partition).await?;
    let _permit = reading.acquire_permit(1).await.expect("nobody closes it");
    let mut offset = engine.list_offset(partition, OffsetSpec::Earliest, ReadBound::HighWatermark, -1).await?.offset;
    let mut taker = Taker { topic, partition, machine, newest: Newest::default() };
    while offset < end {
        // one that was begun anew waits for its turn
        if !is_wanted() {
            return Err(LogError::NotLeader.into());
        }
        let fetched = engine.fetch(fetch(partition, offset)).await.pop();
        let fetched = fetched.unwrap_or(Err(LogError::UnknownPartition))?;
        let bytes = contiguous(&fetched.records).await?;
        let next = taker.take_batches(offset, &bytes).await?;
        if next == offset {
            // compaction can leave nothing at the end of the log
            break;
        }
        offset = next;
    }
    taker.finish().await;
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
    if let [Chunk::File(range)] = records.chunks.as_slice() {
        return Ok(read(range).await?.into());
    }
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

/// Gives records to a machine.
struct Taker<'m, M> {
    topic: &'static str,
    partition: TopicPartition,
    machine: &'m mut M,
    newest: Newest,
}

impl<M: Machine> Taker<'_, M> {
    /// Takes the records from `offset` on over; answers where to go on.
    async fn take_batches(&mut self, offset: i64, bytes: &[u8]) -> Result<i64, LoadError> {
        let partition = self.partition;
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
                    self.machine.replay_marker(&ReplayedMarker { offset, producer_id, producer_epoch, outcome });
                }
                continue;
            }
            let producer = info.is_transactional().then_some((info.producer_id, info.producer_epoch));
            let mut records = RecordReader::new(batch).map_err(damaged)?;
            while let Some(record) = records.next_record().map_err(damaged)? {
                if record.offset >= offset {
                    let key = record.key.unwrap_or_default();
                    self.take_record(&Replayed { offset: record.offset, producer, key, value: record.value });
                }
                count += 1;
                if count % RECORDS_PER_TURN == 0 {
                    glommio::yield_if_needed().await;
                }
            }
        }
        Ok(next)
    }

    fn take_record(&mut self, record: &Replayed<'_>) {
        match M::NEWEST_COUNTS {
            true => self.newest.take(record),
            false => self.replay(record),
        }
    }

    /// All of the partition was read.
    async fn finish(&mut self) {
        for (count, (key, kept)) in (1..).zip(std::mem::take(&mut self.newest).by_key) {
            let Kept { offset, producer, value } = kept;
            self.replay(&Replayed { offset, producer, key: &key, value: Some(&value) });
            if count % RECORDS_PER_TURN == 0 {
                glommio::yield_if_needed().await;
            }
        }
    }

    fn replay(&mut self, record: &Replayed<'_>) {
        if let Err(error) = self.machine.replay(record) {
            let (topic, partition) = (self.topic, self.partition.partition);
            let (offset, producer) = (record.offset, record.producer);
            tracing::warn!(topic, partition, offset, ?producer, %error, "a record is left out");
        }
    }
}

/// The newest record of each key so far, as bytes: a log that was not compacted for long has thousands of each. Of one that was
/// removed nothing is kept: a machine that has read nothing yet need not hear of it.
#[derive(Default)]
struct Newest {
    by_key: HashMap<Vec<u8>, Kept>,
}

struct Kept {
    offset: i64,
    producer: Option<(i64, i16)>,
    value: Vec<u8>,
}

impl Newest {
    fn take(&mut self, record: &Replayed<'_>) {
        let Replayed { offset, producer, key, value } = *record;
        match (self.by_key.get_mut(key), value) {
            (_, None) => drop(self.by_key.remove(key)),
            (None, Some(value)) => {
                self.by_key.insert(key.to_vec(), Kept { offset, producer, value: value.to_vec() });
            }
            (Some(kept), Some(value)) => {
                (kept.offset, kept.producer) = (offset, producer);
                kept.value.clear();
                kept.value.extend_from_slice(value);
            }
        }
    }
}

/// How a control batch ends its producer's transaction, if it does: its one record's key says so (version and type, both
/// of 16 bits). A batch whose record compaction took ends nothing that is still there.
fn marker_outcome(batch: &[u8]) -> Result<Option<Outcome>, batch::BatchError> {
    let mut records = RecordReader::new(batch)?;
    let first = records.next_record()?;
    Ok(match first.and_then(|record| record.key) {
        Some([_, _, 0, 0, ..]) => Some(Outcome::Abort),
        Some([_, _, 0, 1, ..]) => Some(Outcome::Commit),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_of_each_key_is_kept_whatever_came_before() {
        let mut newest = Newest::default();
        let taken = [
            (0, "a", Some("first")),
            (1, "b", None),
            (2, "a", Some("longer than first")),
            (3, "c", Some("gone")),
            (4, "b", Some("back")),
            (5, "c", None),
        ];
        for (offset, key, value) in taken {
            let (key, value) = (key.as_bytes(), value.map(str::as_bytes));
            newest.take(&Replayed { offset, producer: Some((offset, 0)), key, value });
        }
        let mut kept: Vec<_> = newest.by_key.into_iter().collect();
        kept.sort_by_key(|(_, kept)| kept.offset);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let told = |(key, kept): &(Vec<u8>, Kept)| {
            assert_eq!(kept.producer, Some((kept.offset, 0)));
            format!("{} {} {}", kept.offset, text(key), text(&kept.value))
        };
        let kept: Vec<_> = kept.iter().map(told).collect();
        assert_eq!(kept, ["2 a longer than first", "4 b back"], "c was removed");
    }
}
