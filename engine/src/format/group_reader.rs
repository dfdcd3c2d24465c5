//! Takes a commit group apart as its bytes come in, so that none has to be in memory as a whole. Pure.
//!
//! Batches only pass the checksum; of the entries those are kept that somebody needs. What a group is, and what makes
//! bytes none, is `wal`'s.

use zerocopy::FromBytes;

use super::wal::{
    CHECKED_FROM, ENTRY_HEADER_BYTES, Entry, EntryHeader, EntryKind, GROUP_HEADER_BYTES, Group, GroupHeader,
    POINTER_BYTES, Stamp, entry_of, header_of, modern, stamp_of,
};

/// What became of the bytes that were fed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The group goes on behind them.
    More,
    /// The header was read, and begins a group of that many bytes. Feed what is behind it, were it nothing.
    Header(Stamp, usize),
    /// The group ended, and is whole.
    Group(Group),
    /// It is whole, and says something that this version does not understand.
    Unknown(Stamp),
    /// This is no group.
    NoGroup,
}

/// What comes next in the group.
enum Next {
    Header,
    Entry,
    Pointer(EntryHeader),
    /// That many bytes of batches.
    Batches(usize),
}

/// One group. See the module.
pub(crate) struct GroupReader {
    next: Next,
    /// Header or entry, as far as it was fed.
    piece: [u8; PIECE_BYTES_MAX],
    piece_len: usize,
    header: Option<GroupHeader>,
    checksum: u32,
    taken: usize,
    entries_left: u32,
    entries: Vec<Entry>,
    is_unknown: bool,
}

const PIECE_BYTES_MAX: usize = GROUP_HEADER_BYTES;
const _: () = assert!(ENTRY_HEADER_BYTES <= PIECE_BYTES_MAX && POINTER_BYTES <= PIECE_BYTES_MAX);

impl GroupReader {
    /// At a group's first byte.
    pub(crate) fn new() -> Self {
        Self {
            next: Next::Header,
            piece: [0; PIECE_BYTES_MAX],
            piece_len: 0,
            header: None,
            checksum: 0,
            taken: 0,
            entries_left: 0,
            entries: Vec::new(),
            is_unknown: false,
        }
    }

    /// Bytes of the group that were taken so far: feed those behind them.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Takes bytes, as many as tell something; `needs` says which entries to keep.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], needs: impl Fn(&Entry) -> bool) -> Progress {
        loop {
            if let Some(ended) = self.ended() {
                return ended;
            }
            let wanted = match &self.next {
                Next::Header => GROUP_HEADER_BYTES,
                Next::Entry => ENTRY_HEADER_BYTES,
                Next::Pointer(_) => POINTER_BYTES,
                Next::Batches(left) => *left,
            };
            let now = (wanted - self.piece_len).min(bytes.len());
            let (own, rest) = bytes.split_at(now);
            bytes = rest;
            self.taken += now;
            if matches!(self.next, Next::Batches(_)) {
                self.checksum = crc32c::crc32c_append(self.checksum, own);
                self.next = if now == wanted { Next::Entry } else { Next::Batches(wanted - now) };
                if now < wanted {
                    return Progress::More;
                }
                continue;
            }
            self.piece[self.piece_len..self.piece_len + now].copy_from_slice(own);
            self.piece_len += now;
            if self.piece_len < wanted {
                return Progress::More;
            }
            self.piece_len = 0;
            match self.end_piece(wanted, &needs) {
                None => return Progress::NoGroup,
                Some(Next::Header) => {
                    let header = self.header.expect("it was just read");
                    return Progress::Header(stamp_of(&header), self.length());
                }
                Some(_) => {}
            }
        }
    }

    /// Header, entry or pointer is complete: answers which it was, or `None` if there is no such thing.
    fn end_piece(&mut self, len: usize, needs: &impl Fn(&Entry) -> bool) -> Option<Next> {
        let piece = self.piece;
        let piece = &piece[..len];
        let was = std::mem::replace(&mut self.next, Next::Entry);
        match &was {
            Next::Header => {
                let header = header_of(piece)?;
                self.checksum = crc32c::crc32c(&piece[CHECKED_FROM..]);
                self.entries_left = header.entries.get();
                self.is_unknown = (header.reserved.get(), header.reserved_2.get()) != (0, 0);
                self.header = Some(header);
            }
            Next::Entry => {
                self.checksum = crc32c::crc32c_append(self.checksum, piece);
                let header = self.entry_header(piece)?;
                if header.kind == EntryKind::Pointer as u8 {
                    self.next = Next::Pointer(header);
                } else {
                    self.take_entry(&header, &[], needs);
                    self.next = Next::Batches(header.payload());
                }
            }
            Next::Pointer(header) => {
                self.checksum = crc32c::crc32c_append(self.checksum, piece);
                self.take_entry(header, piece, needs);
            }
            Next::Batches(_) => {}
        }
        Some(was)
    }

    /// One that this version does not understand counts once the whole group has turned out to be there.
    fn take_entry(&mut self, header: &EntryHeader, pointer: &[u8], needs: &impl Fn(&Entry) -> bool) {
        match entry_of(header, self.taken, pointer) {
            Ok(entry) => self.entries.extend(entry.filter(needs)),
            Err(_) => self.is_unknown = true,
        }
    }

    /// The next entry's header, if there is to be one and it fits the group.
    fn entry_header(&mut self, piece: &[u8]) -> Option<EntryHeader> {
        self.entries_left = self.entries_left.checked_sub(1)?;
        let (header, _) = EntryHeader::read_from_prefix(piece).ok()?;
        let header = modern(self.header.as_ref()?, header)?;
        let fits = header.payload() <= self.length().saturating_sub(self.taken);
        fits.then_some(header)
    }

    fn length(&self) -> usize {
        self.header.as_ref().map_or(0, |header| header.length.get() as usize)
    }

    /// The verdict, once no further entry fits the group.
    fn ended(&mut self) -> Option<Progress> {
        let header = self.header.filter(|_| matches!(self.next, Next::Entry) && self.piece_len == 0)?;
        let length = self.length();
        if self.taken + ENTRY_HEADER_BYTES <= length {
            return None;
        }
        let whole = self.taken == length && self.entries_left == 0 && self.checksum == header.checksum.get();
        if !whole {
            return Some(Progress::NoGroup);
        }
        if self.is_unknown {
            return Some(Progress::Unknown(stamp_of(&header)));
        }
        let entries = std::mem::take(&mut self.entries);
        let sealed_at_ms = header.sealed_at_ms.get();
        Some(Progress::Group(Group { stamp: stamp_of(&header), sealed_at_ms, length, entries }))
    }
}

/// Decodes at once the group at the start of `bytes`; `None` if there is no whole one.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn decode(bytes: &[u8]) -> Option<Group> {
    let mut reader = GroupReader::new();
    loop {
        match reader.feed(bytes.get(reader.taken()..)?, |_| true) {
            Progress::Header(..) => {}
            Progress::Group(group) => return Some(group),
            Progress::More | Progress::Unknown(_) | Progress::NoGroup => return None,
        }
    }
}
