//! Answers to ListOffsets: earliest, latest, by timestamp (exact to the record), and the largest timestamp.

use std::io;

use super::{Store, read};
use crate::{
    api::{FoundOffset, LogError, OffsetSpec, TopicPartition},
    batch::{self, BatchInfo},
    format::segment::{self, IndexEntry, Segment},
    io::{File, IO_BYTES_MAX, Io, align_down, align_up},
    partition::read::Holder,
};

const NOT_FOUND: FoundOffset = FoundOffset { offset: -1, timestamp_ms: -1 };

impl<I: Io> Store<I> {
    /// Answers a question for an offset.
    pub(crate) async fn list_offset(&self, id: TopicPartition, spec: OffsetSpec) -> Result<FoundOffset, LogError> {
        let cell = self.partition(id)?;
        let at = |offset| FoundOffset { offset, timestamp_ms: -1 };
        match spec {
            OffsetSpec::Latest => Ok(at(cell.borrow().marks().high_watermark())),
            OffsetSpec::Earliest => Ok(at(cell.borrow().marks().log_start())),
            OffsetSpec::MaxTimestamp => self.max_timestamp(id).await,
            OffsetSpec::Timestamp(timestamp_ms) => self.by_timestamp(id, timestamp_ms).await,
        }
    }

    async fn by_timestamp(&self, id: TopicPartition, timestamp_ms: i64) -> Result<FoundOffset, LogError> {
        let mut attempts = 0;
        let (cell, log_start) = 'again: loop {
            let cell = self.partition(id)?;
            let (log_start, segments) = {
                let partition = cell.borrow();
                let candidates = partition.segments().all().iter().filter(|s| s.max_timestamp >= timestamp_ms);
                (partition.marks().log_start(), candidates.cloned().collect::<Vec<_>>())
            };
            for segment in segments {
                let from = |index: &[IndexEntry]| segment::position_before_timestamp(index, timestamp_ms);
                match self.search(id, &segment, from, timestamp_ms, log_start).await {
                    Ok(Some(found)) => return Ok(found),
                    Ok(None) => {}
                    // Retention took it away or compaction replaced it: look again.
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound && attempts < read::ATTEMPTS_MAX => {
                        attempts += 1;
                        continue 'again;
                    }
                    Err(error) => return Err(self.unreadable(id, &segment, &error)),
                }
            }
            break (cell, log_start);
        };
        // Materialisation may have gone on meanwhile: the cached tail still holds what it moved.
        let partition = cell.borrow();
        for extent in partition.tail().extents().filter(|e| e.end_offset <= partition.marks().high_watermark()) {
            let Some(memory) = extent.backing.memory() else {
                continue;
            };
            let run = &memory.bytes()[extent.range()];
            if let Some(found) = first_at(run, timestamp_ms, log_start)?.1 {
                return Ok(found);
            }
        }
        Ok(NOT_FOUND)
    }

    /// The first record of a segment with a timestamp of at least that, at or above `log_start`. `from` chooses where
    /// to begin.
    async fn search(
        &self,
        id: TopicPartition,
        segment: &Segment,
        from: impl FnOnce(&[IndexEntry]) -> u64,
        timestamp_ms: i64,
        log_start: i64,
    ) -> io::Result<Option<FoundOffset>> {
        let open = self.segments.get(id, segment.name(), false).await?;
        let index = self.index(&open, segment).await?;
        let mut position = from(&index);
        let mut window = IO_BYTES_MAX as u64;
        while position < segment.size {
            let base = align_down(position);
            let end = align_up(segment.size.min(position + window));
            let len = usize::try_from(end - base).map_err(|_| io::ErrorKind::InvalidInput)?;
            let memory = open.file.read(base, len).await?;
            let skip = usize::try_from(position - base).expect("less than a block");
            let limit = memory.bytes().len().min(usize::try_from(segment.size - base).unwrap_or(usize::MAX));
            let bytes = memory.bytes().get(skip..limit).ok_or(io::ErrorKind::UnexpectedEof)?;
            let (walked, found) = first_at(bytes, timestamp_ms, log_start).map_err(io::Error::other)?;
            if found.is_some() {
                return Ok(found);
            }
            match walked {
                0 if position + window >= segment.size => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                0 => window *= 2, // one batch is larger than the window
                _ => position += walked as u64,
            }
        }
        Ok(None)
    }

    async fn max_timestamp(&self, id: TopicPartition) -> Result<FoundOffset, LogError> {
        let mut attempts = 0;
        loop {
            let newest = self.partition(id)?.borrow().newest_timestamp();
            let (timestamp_ms, holder) = match newest {
                None => return Ok(NOT_FOUND),
                Some(newest) => newest,
            };
            let segment = match holder {
                Holder::Memory(memory, range) => {
                    return Ok(first_at(&memory.bytes()[range], timestamp_ms, i64::MIN)?.1.unwrap_or(NOT_FOUND));
                }
                Holder::Segment(segment) => segment,
            };
            let from = |index: &[IndexEntry]| segment::position_before(index, segment.max_timestamp_offset);
            match self.search(id, &segment, from, timestamp_ms, i64::MIN).await {
                Ok(found) => return Ok(found.unwrap_or(NOT_FOUND)),
                // Retention took it away or compaction replaced it: another may be the newest now.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound && attempts < read::ATTEMPTS_MAX => attempts += 1,
                Err(error) => return Err(self.unreadable(id, &segment, &error)),
            }
        }
    }
}

/// Walks back to back batches: how many bytes were whole batches, and the first record with a timestamp of at least
/// `timestamp_ms` at or above `log_start`.
fn first_at(bytes: &[u8], timestamp_ms: i64, log_start: i64) -> Result<(usize, Option<FoundOffset>), LogError> {
    let mut at = 0;
    while let Ok(info) = BatchInfo::parse(&bytes[at..]) {
        if info.max_timestamp >= timestamp_ms && info.last_offset() >= log_start {
            let batch = &bytes[at..at + info.size];
            if let Some((offset, timestamp_ms)) = batch::find_timestamp(batch, timestamp_ms, log_start)? {
                return Ok((at, Some(FoundOffset { offset, timestamp_ms })));
            }
        }
        at += info.size;
    }
    Ok((at, None))
}
