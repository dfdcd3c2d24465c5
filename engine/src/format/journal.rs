//! An append-only file of checksummed pages: the base of the manifest and of the catalog.
//!
//! One owner appends; an append is one or more pages, written and flushed before it returns. A journal that has grown
//! is replaced by a new file that holds the state it led to, by an atomic rename. Pages never share a block, so no
//! append rewrites a durable byte.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    chunk::Memory,
    io::{BLOCK, Buffer, File, IO_BYTES_MAX, Io, Open, align_up},
};

/// First bytes of a page: `MRP1`.
const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"MRP1");

/// The header of a page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PageHeader {
    magic: U32,
    /// CRC32C from the sequence to the end of the payload.
    checksum: U32,
    /// Place of the page in the file, from 1.
    sequence: U64,
    /// Bytes of payload.
    length: U32,
    reserved: U32,
}

const PAGE_HEADER_BYTES: usize = size_of::<PageHeader>();
const PAYLOAD_BYTES_MAX: usize = IO_BYTES_MAX - PAGE_HEADER_BYTES;
const CHECKED_FROM: usize = 8;

/// Why a journal cannot be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("page {sequence} at byte {position} {fault}")]
pub struct DamagedJournal {
    /// Which page.
    pub sequence: u64,
    /// Where.
    pub position: usize,
    /// What is wrong with it.
    pub fault: PageFault,
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageFault {
    /// Appends are one at a time: a whole page behind the gap proves that the gap was durable once.
    #[error("is damaged, but pages after it are whole")]
    Gap,
    /// It is whole, and says something that this version does not understand.
    #[error("is whole, but of a format that this version does not know")]
    Unknown,
}

/// The payloads of a journal's pages, in order. A torn last page is left out: nothing was promised of it.
pub fn pages(file: &[u8]) -> Result<Vec<&[u8]>, DamagedJournal> {
    let mut pages = Vec::new();
    let (mut sequence, mut position) = (1, 0);
    while let Some((header, payload)) = checked_page(file, position)
        && header.sequence.get() == sequence
    {
        header.check(position)?;
        pages.push(payload);
        sequence += 1;
        position += padded(payload.len());
    }
    let behind = (position + BLOCK..file.len()).step_by(BLOCK);
    match behind.into_iter().any(|at| later_page(file, at, sequence)) {
        true => Err(DamagedJournal { sequence, position, fault: PageFault::Gap }),
        false => Ok(pages),
    }
}

impl PageHeader {
    fn check(&self, position: usize) -> Result<(), DamagedJournal> {
        let (sequence, fault) = (self.sequence.get(), PageFault::Unknown);
        if self.reserved.get() == 0 { Ok(()) } else { Err(DamagedJournal { sequence, position, fault }) }
    }
}

/// Why a journal was not read to its end.
#[derive(Debug)]
pub(crate) enum ReadError<E> {
    Io(io::Error),
    Damaged(DamagedJournal),
    /// Of whom the payloads are for.
    Refused(E),
}

/// Where the pages of a journal end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Of the last page, 0 for none.
    sequence: u64,
    position: u64,
}

/// Hands out the payloads of a journal's pages as [`pages`] does, one page in memory at a time.
pub(crate) async fn read<I: Io, E>(
    io: &I,
    path: &Path,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<End, ReadError<E>> {
    let file = io.open(path, Open::Read).await.map_err(ReadError::Io)?;
    let size = file.size().await.map_err(ReadError::Io)?;
    let mut at_hand = AtHand { file: &file, begin: 0, memory: None };
    let (mut sequence, mut position) = (1, 0);
    while let Some((header, payload)) = at_hand.page(position).await.map_err(ReadError::Io)?
        && header.sequence.get() == sequence
    {
        header.check(usize::try_from(position).unwrap_or(usize::MAX)).map_err(ReadError::Damaged)?;
        take(payload).map_err(ReadError::Refused)?;
        sequence += 1;
        position += padded(payload.len()) as u64;
    }
    for at in (position + BLOCK as u64..size).step_by(BLOCK) {
        let later = at_hand.page(at).await.map_err(ReadError::Io)?;
        if later.is_some_and(|(header, _)| header.sequence.get() > sequence) {
            let position = usize::try_from(position).unwrap_or(usize::MAX);
            return Err(ReadError::Damaged(DamagedJournal { sequence, position, fault: PageFault::Gap }));
        }
    }
    file.close().await.map_err(ReadError::Io)?;
    Ok(End { sequence: sequence - 1, position })
}

/// The part of a journal that was read last.
struct AtHand<'a, F> {
    file: &'a F,
    begin: u64,
    memory: Option<Rc<dyn Memory>>,
}

impl<F: File> AtHand<'_, F> {
    /// The page at a position, if one is there.
    async fn page(&mut self, position: u64) -> io::Result<Option<(PageHeader, &[u8])>> {
        if !self.holds_page(position) {
            self.memory = None; // before there is another
            self.memory = Some(self.file.read(position, IO_BYTES_MAX).await?);
            self.begin = position;
        }
        Ok(checked_page(self.from(position), 0))
    }

    /// Whether all that a page at that position could be is in memory.
    fn holds_page(&self, position: u64) -> bool {
        let bytes = self.from(position);
        PageHeader::read_from_prefix(bytes).is_ok_and(|(header, rest)| {
            let length = header.length.get() as usize;
            header.magic.get() != PAGE_MAGIC || length > PAYLOAD_BYTES_MAX || length <= rest.len()
        })
    }

    fn from(&self, position: u64) -> &[u8] {
        let ahead = position.checked_sub(self.begin).and_then(|ahead| usize::try_from(ahead).ok());
        let memory = self.memory.as_ref().map(|memory| memory.bytes());
        memory.zip(ahead).and_then(|(bytes, ahead)| bytes.get(ahead..)).unwrap_or_default()
    }
}

fn later_page(file: &[u8], position: usize, missing: u64) -> bool {
    checked_page(file, position).is_some_and(|(header, _)| header.sequence.get() > missing)
}

fn checked_page(file: &[u8], position: usize) -> Option<(PageHeader, &[u8])> {
    let bytes = file.get(position..)?;
    let (header, rest) = PageHeader::read_from_prefix(bytes).ok()?;
    let length = header.length.get() as usize;
    if header.magic.get() != PAGE_MAGIC || length > PAYLOAD_BYTES_MAX {
        return None;
    }
    let payload = rest.get(..length)?;
    let checksum = crc32c::crc32c(&bytes[CHECKED_FROM..PAGE_HEADER_BYTES + length]);
    (checksum == header.checksum.get()).then_some((header, payload))
}

fn padded(payload: usize) -> usize {
    (PAGE_HEADER_BYTES + payload).next_multiple_of(BLOCK)
}

/// An open journal.
pub(crate) struct Journal<I: Io> {
    io: I,
    path: PathBuf,
    file: I::File,
    position: u64,
    sequence: u64,
    /// Size right after the last rewrite.
    base_bytes: u64,
    /// Space taken for it.
    taken_bytes: u64,
    /// Whether there was no space to take when some was wanted.
    short_of_space: bool,
}

/// Space taken ahead of the end, for at least half as many bytes of appends: on a full disk topics can still be deleted
/// and old records dropped, which is what makes space again.
const AHEAD_BYTES: u64 = 512 << 10;

/// A journal is rewritten when it is that many times the size it had after the last rewrite, and large (in unit tests
/// less so, that they see it happen).
const REWRITE_FACTOR: u64 = 4;
const REWRITE_BYTES_MIN: u64 = if cfg!(test) { 256 << 10 } else { 8 << 20 };

impl<I: Io> Journal<I> {
    /// Makes a journal that holds these payloads, durably, in place of any file of that path.
    pub(crate) async fn create(io: I, path: PathBuf, payloads: &[Vec<u8>]) -> io::Result<Self> {
        let making = path.with_extension("making");
        io.remove(&making).await?;
        let file = io.open(&making, Open::Write).await?;
        let mut journal = Self::at(io, path, file, End { sequence: 0, position: 0 });
        if let Err(error) = journal.fill(&making, payloads).await {
            // who goes on without it may want the space that it took
            let Self { io, file, .. } = journal;
            let _what_failed_first_is_told = (file.close().await, io.remove(&making).await);
            return Err(error);
        }
        journal.base_bytes = journal.position;
        journal.take_space_ahead().await;
        Ok(journal)
    }

    /// Writes a new file and puts it in place.
    async fn fill(&mut self, making: &Path, payloads: &[Vec<u8>]) -> io::Result<()> {
        for payload in payloads {
            self.write(payload).await?;
        }
        self.file.flush().await?;
        self.io.rename(making, &self.path).await
    }

    /// Goes on with a journal that was read, and appends what it lacks: that makes what was found durable too.
    pub(crate) async fn go_on(io: I, path: PathBuf, end: End, payloads: &[Vec<u8>]) -> io::Result<Self> {
        let file = io.open(&path, Open::Existing).await?;
        let mut journal = Self::at(io, path, file, end);
        for payload in payloads {
            journal.append(payload).await?;
        }
        Ok(journal)
    }

    fn at(io: I, path: PathBuf, file: I::File, End { sequence, position }: End) -> Self {
        Self { io, path, file, position, sequence, base_bytes: 0, taken_bytes: 0, short_of_space: false }
    }

    /// Appends, durably.
    pub(crate) async fn append(&mut self, payload: &[u8]) -> io::Result<()> {
        let before = (self.sequence, self.position);
        self.write(payload).await?;
        let flushed = self.file.flush().await;
        if flushed.is_err() {
            (self.sequence, self.position) = before;
        }
        self.take_space_ahead().await;
        flushed
    }

    /// Whether the space that was taken ahead can be renewed. When not, it is for appends that make space.
    pub(crate) async fn has_space(&mut self) -> bool {
        self.take_space_ahead().await;
        !self.short_of_space
    }

    /// Where the file system cannot do it, or has no space, appends take what they need when they need it.
    async fn take_space_ahead(&mut self) {
        self.short_of_space = false;
        if self.taken_bytes > self.position + AHEAD_BYTES / 2 {
            return;
        }
        let mut ahead = AHEAD_BYTES;
        while let Err(error) = self.file.take_space(self.position + ahead).await {
            if error.kind() != io::ErrorKind::StorageFull || ahead <= BLOCK as u64 {
                return;
            }
            self.short_of_space = true;
            ahead /= 2; // a file that was just made has none yet: some is better than none
        }
        self.taken_bytes = self.position + ahead;
    }

    async fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "callers split their records over pages");
        let mut buffer = self.io.buffer(padded(payload.len()));
        let bytes = buffer.bytes_mut();
        let mut header = PageHeader {
            magic: PAGE_MAGIC.into(),
            checksum: 0.into(),
            sequence: (self.sequence + 1).into(),
            length: u32::try_from(payload.len()).expect("bounded above").into(),
            reserved: 0.into(),
        };
        bytes[..PAGE_HEADER_BYTES].copy_from_slice(header.as_bytes());
        bytes[PAGE_HEADER_BYTES..PAGE_HEADER_BYTES + payload.len()].copy_from_slice(payload);
        bytes[PAGE_HEADER_BYTES + payload.len()..].fill(0);
        header.checksum = crc32c::crc32c(&bytes[CHECKED_FROM..PAGE_HEADER_BYTES + payload.len()]).into();
        bytes[..PAGE_HEADER_BYTES].copy_from_slice(header.as_bytes());
        let length = bytes.len() as u64;
        // A page that failed is written over by the next one.
        self.file.write(Rc::new(buffer), self.position).await?;
        self.sequence += 1;
        self.position += align_up(length);
        Ok(())
    }

    /// Whether most of it is history that a rewrite would drop.
    pub(crate) fn wants_rewrite(&self) -> bool {
        self.position > REWRITE_BYTES_MIN.max(self.base_bytes * REWRITE_FACTOR)
    }

    /// Replaces it by a journal of these payloads.
    pub(crate) async fn rewrite(&mut self, payloads: &[Vec<u8>]) -> io::Result<()> {
        let new = Self::create(self.io.clone(), self.path.clone(), payloads).await?;
        let old = std::mem::replace(self, new);
        old.file.close().await
    }
}

/// Packs records into payloads of bounded size, each record whole.
#[derive(Default)]
pub(crate) struct Payloads {
    done: Vec<Vec<u8>>,
    open: Vec<u8>,
}

impl Payloads {
    /// Adds one record: its length, then its bytes.
    pub(crate) fn push(&mut self, record: &[u8]) {
        assert!(record.len() + 4 <= PAYLOAD_BYTES_MAX, "a record fits a page");
        if self.open.len() + 4 + record.len() > PAYLOAD_BYTES_MAX {
            self.done.push(std::mem::take(&mut self.open));
        }
        let length = u32::try_from(record.len()).expect("bounded above");
        self.open.extend_from_slice(&length.to_le_bytes());
        self.open.extend_from_slice(record);
    }

    /// All payloads; none for no record.
    pub(crate) fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.open.is_empty() {
            self.done.push(self.open);
        }
        self.done
    }
}

/// Largest record that a page takes.
pub(crate) const RECORD_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 4;

/// The records of a payload. Damage inside a checked page means that we wrote nonsense: `None`.
pub fn records(payload: &[u8]) -> Option<Vec<&[u8]>> {
    let mut records = Vec::new();
    let mut rest = payload;
    while !rest.is_empty() {
        let (length, tail) = U32::read_from_prefix(rest).ok()?;
        let length = length.get() as usize;
        records.push(tail.get(..length)?);
        rest = &tail[length..];
    }
    Some(records)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::io::sim::Sim;

    /// What [`read`] and [`pages`] say of the same file.
    fn both(sim: &Sim, path: &Path) -> [Result<Vec<Vec<u8>>, DamagedJournal>; 2] {
        let mut found = Vec::new();
        let take = |payload: &[u8]| {
            found.push(payload.to_vec());
            Ok::<(), ()>(())
        };
        let ended = sim.run_until(read(&sim.io(), path, take)).unwrap();
        let ended = ended.map(|_| found).map_err(|error| match error {
            ReadError::Damaged(damage) => damage,
            other => panic!("{other:?}"),
        });
        let whole = sim.file(path).unwrap();
        [ended, pages(&whole).map(|pages| pages.into_iter().map(<[u8]>::to_vec).collect())]
    }

    #[test]
    fn page_by_page_a_journal_is_what_it_is_as_a_whole() {
        let path = Path::new("/journal");
        let sizes = [10, 5_000, PAYLOAD_BYTES_MAX, 0, 700_000, 400_000, 1, PAYLOAD_BYTES_MAX, 3];
        let make = |seed| {
            let sim = Sim::new(seed);
            let payloads = (1..).zip(sizes).map(|(fill, size)| vec![fill; size]).collect::<Vec<_>>();
            sim.run_until(Journal::create(sim.io(), path.into(), &payloads)).unwrap().unwrap();
            sim
        };
        let [ours, model] = both(&make(0), path);
        assert_eq!(ours.as_ref().unwrap().len(), sizes.len());
        assert_eq!(ours, model);
        let bytes = make(0).file(path).unwrap().len() as u64;
        for at in (0..bytes).step_by(150_001).chain([bytes - 4096 + 3]) {
            let sim = make(at);
            sim.corrupt(path, at, 1);
            let [ours, model] = both(&sim, path);
            assert_eq!(ours, model, "damaged at {at}");
        }
    }

    /// Bytes that were reserved once may say anything: a page with some is not the journal's torn end.
    #[test]
    fn a_whole_page_with_reserved_bytes_is_refused() {
        let path = Path::new("/journal");
        let sim = Sim::new(0);
        sim.run_until(Journal::create(sim.io(), path.into(), &[vec![7; 10], vec![8; 10]])).unwrap().unwrap();
        let mut page = sim.file(path).unwrap()[4096..].to_vec();
        page[20] = 1;
        let checksum = crc32c::crc32c(&page[8..34]).to_le_bytes();
        for (at, byte) in [(20, page[20])].into_iter().chain((4..).zip(checksum)) {
            let before = sim.file(path).unwrap()[4096 + at];
            sim.corrupt(path, 4096 + at as u64, before ^ byte);
        }
        let refused = DamagedJournal { sequence: 2, position: 4096, fault: PageFault::Unknown };
        for found in both(&sim, path) {
            assert_eq!(found, Err(refused.clone()));
        }
    }
}
