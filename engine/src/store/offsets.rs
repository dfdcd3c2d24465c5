//! Answers to ListOffsets: earliest, latest, by timestamp (exact to the record), and the largest timestamp.

use std::io;

use super::{Store, read, segment_files::OpenSegment};
use crate::{
    api::{FoundOffset, LogError, OffsetSpec, ReadBound, TopicPartition},
    batch::{self, BatchInfo},
    format::segment::{self, IndexEntry, Segment},
    io::{File, IO_BYTES_MAX, Io, align_down, align_up},
    partition::read::Holder,
};

const NOT_FOUND: FoundOffset = FoundOffset { offset: -1, timestamp_ms: -1, leader_epoch: -1 };

impl<I: Io> Store<I> {
    /// Answers a question for an offset.
    pub(crate) async fn list_offset(
        &self,
        id: TopicPartition,
        spec: OffsetSpec,
        bound: ReadBound,
    ) -> Result<FoundOffset, LogError> {
        let cell = self.partition(id)?;
        let is_unsure = bound == ReadBound::LastStable && cell.borrow().is_unsure_what_is_stable();
        let is_behind = cell.borrow().is_behind_its_epoch() || is_unsure;
        let (log_start, end) = (cell.borrow().marks().log_start(), cell.borrow().end_for(bound));
        let at = |offset| FoundOffset { offset, ..NOT_FOUND };
        let found = match spec {
            OffsetSpec::Latest if is_behind => Err(LogError::OffsetNotAvailable),
            OffsetSpec::Latest => Ok(at(end)),
            OffsetSpec::Earliest => Ok(at(log_start)),
            OffsetSpec::MaxTimestamp => self.max_timestamp(id, end).await,
            OffsetSpec::Timestamp(timestamp_ms) => match self.by_timestamp(id, timestamp_ms, end).await {
                Ok(NOT_FOUND) if is_behind => Err(LogError::OffsetNotAvailable),
                found => found,
            },
        }?;
        let leader_epoch = match spec {
            OffsetSpec::Latest => cell.borrow().replication().epoch(),
            _ if found == NOT_FOUND => -1,
            _ => cell.borrow().epoch_at(found.offset),
        };
        Ok(FoundOffset { leader_epoch, ..found })
    }

    pub(super) async fn by_timestamp(
        &self,
        id: TopicPartition,
        timestamp_ms: i64,
        end: i64,
    ) -> Result<FoundOffset, LogError> {
        let mut attempts = 0;
        let (cell, look) = 'again: loop {
            let cell = self.partition(id)?;
            let (log_start, segments) = {
                let partition = cell.borrow();
                let below = partition.segments().all().iter().take_while(|segment| segment.base_offset < end);
                let candidates = below.filter(|segment| segment.max_timestamp >= timestamp_ms);
                (partition.marks().log_start(), candidates.cloned().collect::<Vec<_>>())
            };
            let look = Look { timestamp_ms, from: log_start, end };
            for segment in segments {
                let from = |index: &[IndexEntry]| segment::position_before_timestamp(index, timestamp_ms);
                match self.search(id, &segment, from, &look).await {
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
            break (cell, look);
        };
        // Materialisation may have gone on meanwhile: the cached tail still holds what it moved.
        let partition = cell.borrow();
        for extent in partition.tail().extents().take_while(|extent| extent.base_offset < end) {
            let Some(memory) = extent.backing.memory() else {
                continue;
            };
            if let Walked::Done(found) = look.first_at(&memory.bytes()[extent.range()])? {
                return Ok(found.unwrap_or(NOT_FOUND));
            }
        }
        Ok(NOT_FOUND)
    }

    /// The first record of a segment that is looked for. `from` chooses where to begin.
    async fn search(
        &self,
        id: TopicPartition,
        segment: &Segment,
        from: impl FnOnce(&[IndexEntry]) -> u64,
        look: &Look,
    ) -> io::Result<Option<FoundOffset>> {
        let open = self.segments.get(id, segment.name(), false).await?;
        let position = from(&self.index(&open, segment).await?);
        let found = self.walk(&open, segment, position, |bytes| look.first_at(bytes)).await?;
        Ok(found.flatten())
    }

    /// The largest timestamp of the batches of a segment that lie below an end, or -1.
    async fn newest_below(&self, id: TopicPartition, segment: &Segment, end: i64) -> io::Result<i64> {
        let open = self.segments.get(id, segment.name(), false).await?;
        let index = self.index(&open, segment).await?;
        let known = index[..index.partition_point(|entry| entry.offset.get() <= end)].last();
        let mut newest = known.map_or(-1, |entry| entry.max_timestamp_before.get());
        let position = known.map_or(0, |entry| entry.position.get());
        let look = |bytes: &[u8]| {
            let mut at = 0;
            while let Ok(info) = BatchInfo::parse(&bytes[at..]) {
                if info.last_offset() >= end {
                    return Ok(Walked::Done(()));
                }
                if info.record_count > 0 {
                    newest = newest.max(info.max_timestamp);
                }
                at += info.size;
            }
            Ok(Walked::On(at))
        };
        self.walk(&open, segment, position, look).await?;
        Ok(newest)
    }

    /// Goes through a segment from a position on, until `look` is done, which is given batches and perhaps a cut-off one.
    async fn walk<T>(
        &self,
        open: &OpenSegment<I>,
        segment: &Segment,
        mut position: u64,
        mut look: impl FnMut(&[u8]) -> Result<Walked<T>, LogError>,
    ) -> io::Result<Option<T>> {
        let mut window = IO_BYTES_MAX as u64;
        while position < segment.size {
            let base = align_down(position);
            let end = align_up(segment.size.min(position + window));
            let len = usize::try_from(end - base).map_err(|_| io::ErrorKind::InvalidInput)?;
            let memory = open.file.read(base, len).await?;
            let skip = usize::try_from(position - base).expect("less than a block");
            let limit = memory.bytes().len().min(usize::try_from(segment.size - base).unwrap_or(usize::MAX));
            let bytes = memory.bytes().get(skip..limit).ok_or(io::ErrorKind::UnexpectedEof)?;
            match look(bytes).map_err(io::Error::other)? {
                Walked::Done(result) => return Ok(Some(result)),
                Walked::On(0) if position + window >= segment.size => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Walked::On(0) => window *= 2, // one batch is larger than the window
                Walked::On(bytes) => position += bytes as u64,
            }
        }
        Ok(None)
    }

    pub(super) async fn max_timestamp(&self, id: TopicPartition, end: i64) -> Result<FoundOffset, LogError> {
        let mut attempts = 0;
        loop {
            let cell = self.partition(id)?;
            let (newest, cut) = (cell.borrow().newest_timestamp(end), cell.borrow().segments().cut_by(end).cloned());
            let tried = match self.or_newer_in(id, newest, cut, end).await {
                Ok(None) => return Ok(NOT_FOUND),
                Ok(Some((timestamp_ms, Holder::Memory(memory, range)))) => {
                    let look = Look { timestamp_ms, from: i64::MIN, end };
                    let Walked::Done(found) = look.first_at(&memory.bytes()[range])? else { return Ok(NOT_FOUND) };
                    return Ok(found.unwrap_or(NOT_FOUND));
                }
                Ok(Some((timestamp_ms, Holder::Segment(segment)))) => {
                    let from = |index: &[IndexEntry]| segment::position_before_timestamp(index, timestamp_ms);
                    let look = Look { timestamp_ms, from: i64::MIN, end };
                    self.search(id, &segment, from, &look).await.map_err(|error| (segment, error))
                }
                Err(failed) => Err(failed),
            };
            match tried {
                Ok(found) => return Ok(found.unwrap_or(NOT_FOUND)),
                // Retention took it away or compaction replaced it: another may be the newest now.
                Err((_, gone)) if gone.kind() == io::ErrorKind::NotFound && attempts < read::ATTEMPTS_MAX => {
                    attempts += 1
                }
                Err((segment, error)) => return Err(self.unreadable(id, &segment, &error)),
            }
        }
    }

    /// The newest timestamp that is known, or that of a segment which goes beyond the end, if it has a newer one below.
    async fn or_newer_in(
        &self,
        id: TopicPartition,
        newest: Option<(i64, Holder)>,
        cut: Option<Segment>,
        end: i64,
    ) -> Result<Option<(i64, Holder)>, (Segment, io::Error)> {
        let known = newest.as_ref().map_or(-1, |(known, _)| *known);
        let Some(cut) = cut.filter(|cut| cut.max_timestamp > known) else { return Ok(newest) };
        match self.newest_below(id, &cut, end).await {
            Ok(newer) if newer > known => Ok(Some((newer, Holder::Segment(cut)))),
            Ok(_) => Ok(newest),
            Err(error) => Err((cut, error)),
        }
    }
}

/// A look at batches one after the other.
enum Walked<T> {
    /// So many bytes were whole batches, and it goes on behind them.
    On(usize),
    /// There is nothing more to look at.
    Done(T),
}

/// A record that is looked for: the first one with a timestamp of at least that, at or above `from` and below `end`.
struct Look {
    timestamp_ms: i64,
    from: i64,
    end: i64,
}

impl Look {
    /// Walks back to back batches. Done without a record: there is none below the end.
    fn first_at(&self, bytes: &[u8]) -> Result<Walked<Option<FoundOffset>>, LogError> {
        let mut at = 0;
        while let Ok(info) = BatchInfo::parse(&bytes[at..]) {
            if info.last_offset() >= self.end {
                return Ok(Walked::Done(None));
            }
            if info.max_timestamp >= self.timestamp_ms && info.last_offset() >= self.from {
                let batch = &bytes[at..at + info.size];
                if let Some((offset, timestamp_ms)) = batch::find_timestamp(batch, self.timestamp_ms, self.from)? {
                    return Ok(Walked::Done(Some(FoundOffset { offset, timestamp_ms, ..NOT_FOUND })));
                }
            }
            at += info.size;
        }
        Ok(Walked::On(at))
    }
}
