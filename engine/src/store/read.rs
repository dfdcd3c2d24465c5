//! Reading: the tail from the cache as it lies, segments the sendfile way where their pages are in memory, and by
//! direct reads otherwise. Who reads sees to it that there is memory for that: `fetch_memory`.

use std::{io, rc::Rc};

use super::{Store, aborted, footer, segment_files::OpenSegment};
use crate::{
    api::{FetchPartition, Fetched, LogError, ReadBound, Records, TopicPartition},
    chunk::{Chunk, FileRange, Memory},
    format::{
        segment::{self, INDEX_INTERVAL_BYTES, IndexEntry, Segment},
        transactions::AbortedEntry,
    },
    io::{File, Io, align_down, align_up, residency},
    partition::{
        Partition, PartitionCell,
        available::{SEGMENTS_READ_MAX, position_behind},
        read::{ReadPlan, Wanted, Way},
        run::{batch_head, select},
        waiters::Waiter,
    },
};

/// Behind a read, so many times as much is asked to be brought to memory for the next ones: a client goes on where it
/// stopped, and finds that while it was busy with an answer the device was busy with the next. No more than
/// [`READ_AHEAD_BYTES_MAX`], because the shared log's writes queue behind it at the device.
const READ_AHEAD: u64 = 2;
const READ_AHEAD_BYTES_MAX: u64 = 4 << 20;

/// A read may find much more than was wanted, when it has to look for its start: of memory more than that many times
/// larger than what is to be sent, a copy is made.
const PINNED_MAX: usize = 2;

/// Looks for a segment that is gone when its file is to be opened.
pub(super) const ATTEMPTS_MAX: u32 = 5;

/// An answer, the aborted transactions with records in it, and where the log goes on if there is more than this way of
/// reading could give.
type ReadOn = (Fetched, Vec<AbortedEntry>, Option<i64>);

/// What was read of a segment.
struct OfSegment {
    chunks: Vec<Chunk>,
    /// The offset behind them; none if there is nothing.
    next: Option<i64>,
    /// Whether more is to be read from there on, by another way or from what is behind the segment.
    goes_on: bool,
}

impl<I: Io> Store<I> {
    /// Reads one partition: whole batches of `max_bytes` at most, or one larger batch if `min_one`. Goes on behind a
    /// segment's end and what the kernel can send of it, so that an answer holds what a fetch waited for.
    pub(crate) async fn read(
        &self,
        part: &FetchPartition,
        max_bytes: usize,
        min_one: bool,
    ) -> Result<Fetched, LogError> {
        let cell = self.partition(part.partition)?;
        let end = cell.borrow().end_for(part.bound);
        self.read_below(&cell, part, end, max_bytes, min_one).await
    }

    /// The same up to an end that is known: it stays the same for all of an answer, which ends where the log is cut meanwhile.
    pub(super) async fn read_below(
        &self,
        cell: &Rc<PartitionCell>,
        part: &FetchPartition,
        end: i64,
        max_bytes: usize,
        min_one: bool,
    ) -> Result<Fetched, LogError> {
        cell.borrow().check_reader(part.leader_epoch)?;
        self.check_lease(&cell.borrow())?;
        let max_bytes = max_bytes.min(part.max_bytes);
        let (offset, cuts, by) = (part.offset, cell.borrow().era().cuts, Way::AsItLies);
        let wanted = Wanted { offset, end, cuts, max_bytes, min_one, by };
        self.read_all(cell, wanted, part.bound).await
    }

    /// Reads what a follower lacks, all of it to memory.
    pub(super) async fn read_to_memory(
        &self,
        cell: &Rc<PartitionCell>,
        part: &FetchPartition,
        end: i64,
    ) -> Result<Fetched, LogError> {
        let FetchPartition { offset, max_bytes, .. } = *part;
        let (cuts, by) = (cell.borrow().era().cuts, Way::ToMemory);
        let wanted = Wanted { offset, end, cuts, max_bytes, min_one: true, by };
        self.read_all(cell, wanted, ReadBound::HighWatermark).await
    }

    async fn read_all(&self, cell: &Rc<PartitionCell>, wanted: Wanted, bound: ReadBound) -> Result<Fetched, LogError> {
        let (mut fetched, mut aborted, mut next) = self.read_on(cell, &wanted, bound).await?;
        // Behind that many segments, what the last one ends with, and the tail.
        for _ in 0..=SEGMENTS_READ_MAX {
            let left = wanted.max_bytes.saturating_sub(fetched.records.len());
            let Some(offset) = next.filter(|_| left > 0) else { break };
            let behind = Wanted { offset, max_bytes: left, min_one: false, ..wanted };
            // An error there is told to who begins there.
            let Ok((more, more_aborted, then)) = self.read_on(cell, &behind, bound).await else { break };
            let mut chunks = std::mem::take(&mut fetched.records.chunks);
            chunks.extend(more.records.chunks);
            aborted.extend(more_aborted);
            (fetched, next) = (Fetched { records: Records { chunks }, ..more }, then);
        }
        if bound == ReadBound::LastStable {
            fetched.aborted = Some(aborted::told(aborted));
        }
        Ok(fetched)
    }

    /// Asks for what a read would send from a segment by way of the kernel's cache; answers how many bytes.
    pub(crate) async fn read_soon(&self, part: &FetchPartition) -> usize {
        // Whoever reads there is told of an error.
        self.try_read_soon(part).await.ok().flatten().unwrap_or(0)
    }

    async fn try_read_soon(&self, part: &FetchPartition) -> io::Result<Option<usize>> {
        let id = part.partition;
        let Ok(cell) = self.partition(id) else { return Ok(None) };
        let end = cell.borrow().end_for(part.bound);
        let FetchPartition { offset, max_bytes, .. } = *part;
        let (cuts, by) = (cell.borrow().era().cuts, Way::AsItLies);
        let wanted = Wanted { offset, end, cuts, max_bytes, min_one: false, by };
        let plan = cell.borrow().plan_read(&Wanted { max_bytes: 0, ..wanted });
        let Ok(ReadPlan::Segment(segment)) = plan else { return Ok(None) };
        let open = self.segments.get(id, segment.name(), false).await?;
        let index = self.index(&open, &segment).await?;
        let Some(start) = open.start(&index, part.offset) else { return Ok(None) };
        let Some((end, _)) = sendable(&segment, &index, start, &wanted) else { return Ok(None) };
        let Some(file) = self.buffered(id, &open, &segment)? else { return Ok(None) };
        residency::read_ahead(&file, start..end);
        Ok(usize::try_from(end - start).ok())
    }

    /// Reads the tail, or one segment: then also says where to go on, if that is not all. For who reads what is committed,
    /// with the aborted transactions that have records there.
    async fn read_on(&self, cell: &Rc<PartitionCell>, wanted: &Wanted, bound: ReadBound) -> Result<ReadOn, LogError> {
        let mut attempts = 0;
        loop {
            let (plan, missed, fetched, id, aborted) = {
                let partition = cell.borrow();
                if partition.is_deleted() {
                    return Err(LogError::UnknownPartition);
                }
                let plan = match partition.plan_read(wanted)? {
                    ReadPlan::Segment(segment) => Err(segment),
                    ReadPlan::Memory(chunks) => Ok(chunks),
                    ReadPlan::Empty => Ok(Vec::new()),
                };
                let missed = plan.is_err() && partition.could_be_cached(wanted.offset);
                let may_be_aborted = bound == ReadBound::LastStable && partition.may_have_aborted(wanted.offset);
                let aborted = may_be_aborted.then(|| match &plan {
                    Ok(chunks) => partition.aborted_in_memory(wanted.offset, end_of(chunks).unwrap_or(wanted.offset)),
                    Err(_) => Vec::new(),
                });
                (plan, missed, fetched(&partition), partition.id(), aborted)
            };
            let segment = match plan {
                Ok(chunks) => {
                    let records = Records { chunks };
                    return Ok((Fetched { records, ..fetched }, aborted.unwrap_or_default(), None));
                }
                Err(_) if wanted.max_bytes == 0 && !wanted.min_one => return Ok((fetched, Vec::new(), None)), // nothing is read for nothing
                Err(segment) => segment,
            };
            attempts += 1;
            match self.read_decided(cell, (id, &segment), wanted, aborted.is_some()).await {
                Ok((OfSegment { chunks, next, goes_on }, aborted)) => {
                    let records = Records { chunks };
                    if missed {
                        self.cache.borrow_mut().missed(records.len());
                    }
                    return Ok((Fetched { records, ..fetched }, aborted, next.filter(|_| goes_on)));
                }
                // Retention took the segment away meanwhile, or compaction replaced it: look again.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS_MAX => {}
                Err(error) => return Err(self.unreadable(id, &segment, &error)),
            }
        }
    }

    /// Batches of a segment, and the aborted transactions among them, if there may be some. Both are of one state of the
    /// log, or the segment counts as gone.
    async fn read_decided(
        &self,
        cell: &Rc<PartitionCell>,
        (id, segment): (TopicPartition, &Segment),
        wanted: &Wanted,
        may_be_aborted: bool,
    ) -> io::Result<(OfSegment, Vec<AbortedEntry>)> {
        let read = self.read_segment(id, segment, wanted).await?;
        let Some(end) = read.next.filter(|_| may_be_aborted) else { return Ok((read, Vec::new())) };
        let aborted = self.aborted_between(cell, wanted.offset, end).await?;
        match cell.borrow().segments().holds(&[segment.name()]) {
            true => Ok((read, aborted)),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Batches of a segment.
    async fn read_segment(&self, id: TopicPartition, segment: &Segment, wanted: &Wanted) -> io::Result<OfSegment> {
        let open = self.segments.get(id, segment.name(), false).await?;
        let index = self.index(&open, segment).await?;
        let hint = open.start(&index, wanted.offset);
        if let Some(start) = hint.filter(|_| wanted.by == Way::AsItLies)
            && let Some((range, next)) = self.cached_range(id, &open, segment, &index, start, wanted)?
        {
            // If what is left is small enough, then it was left because the kernel can not send it.
            let most = start + wanted.max_bytes as u64;
            let goes_on = next == segment.end_offset || position_behind(segment, wanted.end) <= most;
            return Ok(OfSegment { chunks: vec![Chunk::File(range)], next: Some(next), goes_on });
        }
        let read = |chunk, next: Option<i64>| {
            let goes_on = next == Some(segment.end_offset);
            OfSegment { chunks: vec![chunk], next, goes_on }
        };
        let nothing = OfSegment { chunks: Vec::new(), next: None, goes_on: false };
        let start = hint.unwrap_or_else(|| segment::position_before(&index, wanted.offset));
        let slack = if hint.is_some() { 0 } else { 2 * INDEX_INTERVAL_BYTES };
        let end = segment.size.min(start + wanted.max_bytes as u64 + slack);
        let (memory, base) = read_range(&open, start, end).await?;
        let skip = usize::try_from(start - base).expect("less than a block");
        let limit = memory.bytes().len().min(usize::try_from(segment.size - base).unwrap_or(usize::MAX));
        let bytes = &memory.bytes()[skip..limit];
        let range = select(bytes, wanted);
        if !range.is_empty() {
            let end = start + range.end as u64;
            let next = set_hint(&open, &bytes[range.clone()], end);
            self.read_ahead(id, &open, segment, end, range.len())?;
            let mut chunk = Chunk::Shared(memory.clone(), skip + range.start..skip + range.end);
            chunk.detach_from(PINNED_MAX);
            return Ok(read(chunk, next));
        }
        if !wanted.min_one {
            return Ok(nothing);
        }
        let (position, size, end_offset) = locate(bytes, wanted.offset).ok_or(io::ErrorKind::InvalidData)?;
        if end_offset > wanted.end {
            return Ok(nothing);
        }
        // The first batch is larger than what was read.
        let (begin, end) = (start + position as u64, start + (position + size) as u64);
        let (memory, base) = read_range(&open, begin, end).await?;
        let skip = usize::try_from(begin - base).expect("less than a block");
        let whole = memory.bytes().get(skip..skip + size).ok_or(io::ErrorKind::UnexpectedEof)?;
        let next = set_hint(&open, whole, end);
        Ok(read(Chunk::Shared(memory.clone(), skip..skip + size), next))
    }

    /// A range for sendfile and the offset behind it, if its pages are in memory; what follows is asked for.
    fn cached_range(
        &self,
        id: TopicPartition,
        open: &OpenSegment<I>,
        segment: &Segment,
        index: &[IndexEntry],
        start: u64,
        wanted: &Wanted,
    ) -> io::Result<Option<(FileRange, i64)>> {
        let Some((end, next)) = sendable(segment, index, start, wanted) else { return Ok(None) };
        let Some(file) = self.buffered(id, open, segment)? else { return Ok(None) };
        if !residency::is_resident(&file, start..end) {
            return Ok(None); // who reads this otherwise also asks for what follows
        }
        let len = usize::try_from(end - start).expect("bounded by max_bytes");
        open.set_hint(next, end);
        self.read_ahead(id, open, segment, end, len)?;
        Ok(Some((FileRange { file, position: start, len }, next)))
    }

    /// Asks for what follows a read of `len` bytes.
    fn read_ahead(
        &self,
        id: TopicPartition,
        open: &OpenSegment<I>,
        segment: &Segment,
        end: u64,
        len: usize,
    ) -> io::Result<()> {
        let until = final_bytes(segment).min(end + READ_AHEAD_BYTES_MAX.min(READ_AHEAD * len as u64));
        if end < until
            && let Some(file) = self.buffered(id, open, segment)?
        {
            residency::read_ahead(&file, end..until);
        }
        Ok(())
    }

    /// The segment's file by way of the kernel's cache, where the disk has such a way.
    fn buffered(
        &self,
        id: TopicPartition,
        open: &OpenSegment<I>,
        segment: &Segment,
    ) -> io::Result<Option<Rc<std::fs::File>>> {
        let mut known = open.buffered.borrow_mut();
        if known.is_none() {
            *known = self.io.buffered(&self.segments.path(id, segment.name()))?.map(Rc::new);
        }
        Ok(known.clone())
    }

    pub(super) async fn index(&self, open: &OpenSegment<I>, segment: &Segment) -> io::Result<Rc<Vec<IndexEntry>>> {
        if let Some(index) = segment.index.clone().or_else(|| open.index.borrow().clone()) {
            return Ok(index);
        }
        if !segment.sealed {
            return Ok(Rc::default());
        }
        let footer = footer::read(&open.file, segment).await?;
        let footer =
            footer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the segment's footer is damaged"))?;
        let index = Rc::new(footer.index);
        open.index.replace(Some(index.clone()));
        Ok(index)
    }

    /// The answer to who wanted to read a segment. The operator hears of each segment once.
    pub(super) fn unreadable(&self, id: TopicPartition, segment: &Segment, error: &io::Error) -> LogError {
        let path = self.segments.path(id, segment.name());
        let reason = format!("reading {} failed: {error}", path.display());
        if self.unreadable.borrow_mut().insert((id, segment.name())) {
            tracing::error!("{reason}");
        }
        LogError::Storage(reason)
    }

    /// Bytes that a fetch would find, without reading: see [`crate::partition::available`].
    pub(crate) fn available(&self, parts: &[FetchPartition]) -> usize {
        let of = |part: &FetchPartition| {
            let Ok(cell) = self.partition(part.partition) else { return 0 };
            let left_by_readers = |segment: &Segment| {
                self.segments.if_open(part.partition, segment.name()).and_then(|open| open.position_of(part.offset))
            };
            let partition = cell.borrow();
            partition.available(part.offset, partition.end_for(part.bound), part.max_bytes, left_by_readers)
        };
        parts.iter().map(of).fold(0, usize::saturating_add)
    }

    /// Whether a fetch would be answered with an error for one of the partitions.
    pub(crate) fn refuses(&self, parts: &[FetchPartition]) -> bool {
        parts.iter().any(|part| {
            let Ok(cell) = self.partition(part.partition) else { return true };
            let partition = cell.borrow();
            let checked = partition.check_reader(part.leader_epoch).and_then(|()| self.check_lease(&partition));
            checked.and_then(|()| partition.check_offset(part.offset)).is_err()
        })
    }

    /// Lets the waiter know when one of the partitions has so many bytes more, or has lost some or itself.
    pub(crate) fn watch(&self, parts: &[FetchPartition], waiter: &Rc<Waiter>, bytes: usize) {
        for part in parts {
            match self.partition(part.partition) {
                Ok(cell) => cell.borrow_mut().watch(waiter, bytes, part.bound),
                Err(_) => waiter.notify(),
            }
        }
    }
}

/// An answer without records.
fn fetched(partition: &Partition) -> Fetched {
    Fetched {
        high_watermark: partition.end_for(ReadBound::HighWatermark),
        last_stable_offset: partition.end_for(ReadBound::LastStable),
        log_start_offset: partition.marks().log_start(),
        records: Records::default(),
        aborted: None,
    }
}

/// The offset behind pieces of memory with whole batches; none if there is nothing.
fn end_of(chunks: &[Chunk]) -> Option<i64> {
    let (mut at, mut end) = (0, None);
    let bytes = chunks.last()?.as_slice()?;
    while let Some((_, end_offset, size)) = bytes.get(at..).and_then(batch_head) {
        (at, end) = (at + size, Some(end_offset));
    }
    end
}

/// Bytes of a segment's file that never change. What is appended to an active one begins with the block that its end lies
/// in, written anew and past the kernel's cache: nobody reads that block by way of the cache.
fn final_bytes(segment: &Segment) -> u64 {
    if segment.sealed { segment.size } else { align_down(segment.size) }
}

/// Where whole batches from `start` on end that are wanted and never change, as far as the index tells, and the offset
/// behind them.
fn sendable(segment: &Segment, index: &[IndexEntry], start: u64, wanted: &Wanted) -> Option<(u64, i64)> {
    let most = start + wanted.max_bytes as u64;
    if segment.sealed && most >= segment.size && segment.end_offset <= wanted.end {
        return Some((segment.size, segment.end_offset));
    }
    // an entry's offset is the end of what is before it
    let below = &index[..index.partition_point(|entry| entry.offset.get() <= wanted.end)];
    let last = segment::last_up_to(below, most.min(final_bytes(segment)))?;
    (last.position.get() > start).then(|| (last.position.get(), last.offset.get()))
}

/// Notes where the batches that were read end; answers the offset behind them.
fn set_hint<I: Io>(open: &OpenSegment<I>, batches: &[u8], end: u64) -> Option<i64> {
    let mut at = 0;
    let mut next = None;
    while let Some((_, end_offset, size)) = batches.get(at..).and_then(batch_head) {
        next = Some(end_offset);
        at += size;
    }
    if let Some(next) = next {
        open.set_hint(next, end);
    }
    next
}

/// Position, size and end of the batch that holds `offset`, or the next one.
fn locate(bytes: &[u8], offset: i64) -> Option<(usize, usize, i64)> {
    let mut at = 0;
    while let Some((_, end, size)) = batch_head(bytes.get(at..)?) {
        if end > offset {
            return Some((at, size, end));
        }
        at += size;
    }
    None
}

/// Reads the whole blocks around a range. Also says where the first byte read is in the file.
async fn read_range<I: Io>(open: &OpenSegment<I>, start: u64, end: u64) -> io::Result<(Rc<dyn Memory>, u64)> {
    let base = align_down(start);
    let len = usize::try_from(align_up(end) - base).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok((open.file.read(base, len).await?, base))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of ten batches of 30,000 bytes with one record each, of which every third one is indexed.
    fn segment(sealed: bool) -> (Segment, Vec<IndexEntry>) {
        let entry = |at: i64| IndexEntry {
            offset: at.into(),
            position: (at.unsigned_abs() * 30_000).into(),
            max_timestamp_before: (-1).into(),
        };
        let segment = Segment { end_offset: 10, size: 300_000, sealed, ..Segment::begin(0, 0) };
        (segment, [0, 3, 6, 9].map(entry).to_vec())
    }

    fn wanted(max_bytes: usize) -> Wanted {
        Wanted { offset: 0, end: 10, cuts: 0, max_bytes, min_one: false, by: Way::AsItLies }
    }

    #[test]
    fn what_an_active_segment_ends_with_is_not_sent_from_the_file() {
        let (sealed, index) = segment(true);
        assert_eq!(sendable(&sealed, &index, 0, &wanted(1 << 20)), Some((300_000, 10)));
        let (active, index) = segment(false);
        assert_eq!(final_bytes(&active), 299_008);
        assert_eq!(sendable(&active, &index, 0, &wanted(1 << 20)), Some((270_000, 9)));
        assert_eq!(sendable(&active, &index, 270_000, &wanted(1 << 20)), None);
        let short = Segment { size: 270_300, ..active };
        assert_eq!(
            sendable(&short, &index, 0, &wanted(1 << 20)),
            Some((180_000, 6)),
            "the last block may be written again"
        );
    }

    #[test]
    fn a_range_ends_where_the_index_knows_a_batch_to_end() {
        for sealed in [true, false] {
            let (segment, index) = segment(sealed);
            assert_eq!(sendable(&segment, &index, 0, &wanted(100_000)), Some((90_000, 3)));
            assert_eq!(sendable(&segment, &index, 90_000, &wanted(180_000)), Some((270_000, 9)));
            assert_eq!(sendable(&segment, &index, 90_000, &wanted(89_999)), None);
        }
    }

    #[test]
    fn a_range_ends_below_the_end_of_who_reads() {
        for sealed in [true, false] {
            let (segment, index) = segment(sealed);
            let sent = |start, end| sendable(&segment, &index, start, &Wanted { end, ..wanted(1 << 20) });
            assert_eq!(sent(0, 2), None, "no batch before that is known to the index");
            assert_eq!([3, 5, 6].map(|end| sent(0, end)), [(90_000, 3), (90_000, 3), (180_000, 6)].map(Some));
            assert_eq!([9, 10].map(|end| sent(180_000, end))[0], Some((270_000, 9)));
            assert_eq!(sent(180_000, 6), None);
        }
    }
}
