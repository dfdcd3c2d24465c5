//! Reading a sealed segment batch by batch, and writing a new one: the two ends of compaction. One read or write of
//! bounded size is in flight at a time, and no more is in memory than that and one batch.

use std::{io, rc::Rc};

use super::{footer, segment_files::OpenSegment};
use crate::{
    batch::{BATCH_HEADER_BYTES, BatchInfo},
    format::{segment::Segment, transactions::AbortedEntry},
    io::{Buffer, File, IO_BYTES_MAX, Io, align_down, align_up},
};

/// Bytes of a read or write: what serves producers waits behind one of them at most.
pub(super) const REWRITE_IO_BYTES: usize = 256 << 10;
const _: () = assert!(REWRITE_IO_BYTES <= IO_BYTES_MAX && REWRITE_IO_BYTES > BATCH_HEADER_BYTES);

/// A new segment is flushed whenever it has grown by that much, because a flush of all of it at once would stand in the
/// way of the shared log's.
const FLUSH_BYTES: u64 = 32 << 20;

/// The batches of a sealed segment, one after the other.
pub(super) struct BatchStream<I: Io> {
    open: Rc<OpenSegment<I>>,
    /// Bytes of batches in the file.
    size: u64,
    /// What is read next.
    position: u64,
    /// Read and not consumed from `at` on.
    buffer: Vec<u8>,
    at: usize,
    /// The batch that [`BatchStream::next`] found: it ends here in the buffer.
    end: usize,
}

impl<I: Io> BatchStream<I> {
    /// Starts at a batch.
    pub(super) fn new(open: Rc<OpenSegment<I>>, segment: &Segment, from: u64) -> Self {
        Self { open, size: segment.size, position: from, buffer: Vec::new(), at: 0, end: 0 }
    }

    /// Goes on to the next batch, of which [`BatchStream::batch`] are the bytes. Its checksum is not looked at.
    pub(super) async fn next(&mut self) -> io::Result<Option<BatchInfo>> {
        self.at = self.end;
        if self.left() == 0 {
            return Ok(None);
        }
        self.fill(BATCH_HEADER_BYTES).await?;
        let info = BatchInfo::parse_header(&self.buffer[self.at..]).map_err(io::Error::other)?;
        self.fill(info.size).await?;
        self.end = self.at + info.size;
        Ok(Some(info))
    }

    /// The bytes of the batch that was found last.
    pub(super) fn batch(&self) -> &[u8] {
        &self.buffer[self.at..self.end]
    }

    /// Bytes of the segment that were not consumed.
    fn left(&self) -> u64 {
        (self.buffer.len() - self.at) as u64 + (self.size - self.position)
    }

    /// Reads until `bytes` lie in the buffer.
    async fn fill(&mut self, bytes: usize) -> io::Result<()> {
        if bytes as u64 > self.left() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if bytes <= self.buffer.len() - self.at {
            return Ok(());
        }
        self.buffer.drain(..self.at);
        (self.at, self.end) = (0, 0);
        while self.buffer.len() < bytes {
            let base = align_down(self.position);
            let memory = self.open.file.read(base, REWRITE_IO_BYTES).await?;
            let begin = usize::try_from(self.position - base).expect("less than a block");
            let end = usize::try_from(self.size - base).unwrap_or(usize::MAX);
            let read = memory.bytes().get(begin..end.min(REWRITE_IO_BYTES));
            let read = read.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.buffer.extend_from_slice(read);
            self.position += read.len() as u64;
        }
        Ok(())
    }
}

/// A segment that is being written.
pub(super) struct SegmentOut<I: Io> {
    io: I,
    file: I::File,
    segment: Segment,
    /// `None` while it is written.
    buffer: Option<I::Buffer>,
    filled: usize,
    /// Where the buffer goes.
    position: u64,
    flushed: u64,
}

impl<I: Io> SegmentOut<I> {
    /// Starts on an empty file.
    pub(super) fn new(io: I, file: I::File, segment: Segment) -> Self {
        Self { io, file, segment, buffer: None, filled: 0, position: 0, flushed: 0 }
    }

    /// Appends a batch.
    pub(super) async fn push(&mut self, info: &BatchInfo, batch: &[u8]) -> io::Result<()> {
        self.segment.push_behind_gap(info);
        let mut rest = batch;
        while !rest.is_empty() {
            let buffer = self.buffer.get_or_insert_with(|| self.io.buffer(REWRITE_IO_BYTES));
            let now = rest.len().min(REWRITE_IO_BYTES - self.filled);
            buffer.bytes_mut()[self.filled..self.filled + now].copy_from_slice(&rest[..now]);
            self.filled += now;
            rest = &rest[now..];
            if self.filled == REWRITE_IO_BYTES {
                self.write().await?;
            }
        }
        Ok(())
    }

    /// The batch that was pushed last ends a transaction that was aborted, of which something is left.
    pub(super) fn push_aborted(&mut self, entry: AbortedEntry) {
        self.segment.push_aborted(entry);
    }

    /// The segment so far.
    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    async fn write(&mut self) -> io::Result<()> {
        let Some(buffer) = self.buffer.take() else { return Ok(()) };
        let buffer = Rc::new(buffer);
        self.file.write(buffer.clone(), self.position).await?;
        self.buffer = Rc::into_inner(buffer);
        self.position += self.filled as u64;
        self.filled = 0;
        if self.position - self.flushed >= FLUSH_BYTES {
            self.file.flush().await?;
            self.flushed = self.position;
        }
        Ok(())
    }

    /// Writes what is left and the footer; everything is durable then but the file's name.
    pub(super) async fn seal(mut self) -> io::Result<Segment> {
        self.segment.sealed = true;
        if self.filled > 0 {
            let whole = usize::try_from(align_up(self.filled as u64)).expect("bounded");
            let mut last = self.io.buffer(whole);
            let buffer = self.buffer.take().expect("it is filled");
            last.bytes_mut()[..self.filled].copy_from_slice(&crate::chunk::Memory::bytes(&buffer)[..self.filled]);
            last.bytes_mut()[self.filled..].fill(0);
            self.file.write(Rc::new(last), self.position).await?;
        }
        footer::write(&self.io, &self.file, &self.segment).await?;
        self.file.flush().await?;
        self.file.close().await?;
        (self.segment.index, self.segment.aborted) = (None, None); // they are in the footer
        Ok(self.segment)
    }

    /// Closes the file of a segment that is not wanted.
    pub(super) async fn abandon(self) -> io::Result<()> {
        self.file.close().await
    }
}
