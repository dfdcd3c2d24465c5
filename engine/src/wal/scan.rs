//! What a restart finds in a shared log's file: the chain of groups from its first byte. Pure.
//!
//! A chain begins with any valid group at position 0 and goes on while the next block boundary holds a valid group of
//! the same run and shard with the next sequence. Whatever follows is left over from the file's former life, or was
//! torn by the crash. A damaged group that was durable is told apart by what later groups say of it; if it was the first
//! of its file, also by whether somebody still needs what lies behind it.
//!
//! A file may be larger than all memory there is for it, so a [`Scan`] is fed piece by piece, and keeps of the groups
//! only what its [`Judge`] asks for. Call [`Scan::wants`], feed the bytes from there on, as many as are at hand, and so
//! on until nothing is wanted.

use crate::{
    format::{
        group_reader::{GroupReader, Progress},
        wal::{Entry, GROUP_HEADER_BYTES, Group, Stamp},
    },
    io::BLOCK,
};

/// What counts in a file.
pub trait Judge {
    /// The last sequence that counts in a group's run.
    fn limit(&self, stamp: Stamp) -> u64;
    /// Whether an entry is to be kept.
    fn needs(&self, entry: &Entry) -> bool;
}

/// Judges that everything counts.
#[derive(Clone, Copy, Debug)]
pub struct AllCounts;

impl Judge for AllCounts {
    fn limit(&self, _stamp: Stamp) -> u64 {
        u64::MAX
    }

    fn needs(&self, _entry: &Entry) -> bool {
        true
    }
}

/// How far to look for groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// As far as they are sure to count.
    Chain,
    /// Behind damage too.
    Everything,
}

/// The groups of one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The groups from its first byte on.
    pub begun: Option<Span>,
    /// Of a file that begins neither with a group nor wiped: the first ones behind that follow each other. Looked for
    /// everything: all that follow each other, and of a file with a chain the later ones of its life.
    pub behind: Vec<Span>,
    /// A group that was durable and is not readable any more: its sequence, and its position.
    pub damaged: Option<(u64, u64)>,
    /// A group that is whole, but says what this version does not understand: its sequence, and its position. The file
    /// was not looked at any further.
    pub unknown: Option<(u64, u64)>,
}

/// Groups of a file that follow each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Span {
    /// Where the first one begins.
    pub begin: u64,
    /// One past the last one's last block.
    pub end: u64,
    /// The first one.
    pub first: Stamp,
    /// Sequence of the last one.
    pub last: u64,
    /// The newest sequence that was durable, by what those say that count.
    pub seen_durable: u64,
    /// Those with entries that are needed, and only these entries, by position.
    pub kept: Vec<(u64, Group)>,
}

impl Span {
    /// The group in front, by run and sequence, if it was durable and not everything here is done with: a file is
    /// written anew only when it is. `limit`: the last sequence that counts in that run; `seen_durable`: what other
    /// files say of it; `needs`: whether an entry is not in segments yet.
    pub fn lost(&self, limit: u64, seen_durable: u64, needs: impl Fn(&Entry) -> bool) -> Option<(u64, u64)> {
        // The first of all, 1, begins a file.
        let missing = self.first.sequence.checked_sub(1).filter(|missing| *missing > 0)?;
        let counts = self.kept.iter().map(|(_, group)| group).take_while(|group| group.stamp.sequence <= limit);
        let needed = counts.flat_map(|group| &group.entries).any(needs);
        (needed && missing <= self.seen_durable.max(seen_durable)).then_some((self.first.run, missing))
    }
}

/// What is being looked for, at the group that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next group of the chain.
    Chain,
    /// Whether the first block is wiped; that many bytes of it are.
    FirstBlock(usize),
    /// Any group behind the chain that has something to say.
    Search,
    /// The next group of the last span behind.
    Behind,
    Done,
}

/// See the module.
pub struct Scan<J> {
    judge: J,
    depth: Depth,
    file_bytes: u64,
    chain: Chain,
    phase: Phase,
    /// Where the group that is being read begins.
    begin: u64,
    reader: GroupReader,
}

impl<J> std::fmt::Debug for Scan<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scan({:?} at {} of {})", self.phase, self.begin, self.file_bytes)
    }
}

impl<J: Judge> Scan<J> {
    /// Of a file of that size.
    pub fn new(file_bytes: u64, depth: Depth, judge: J) -> Self {
        let chain = Chain::default();
        let mut scan =
            Self { judge, depth, file_bytes, chain, phase: Phase::Chain, begin: 0, reader: GroupReader::new() };
        scan.go_to(0);
        scan
    }

    /// Position of the next byte that it has to see; `None` when it has seen enough.
    pub fn wants(&self) -> Option<u64> {
        match self.phase {
            Phase::Done => None,
            Phase::FirstBlock(seen) => Some(seen as u64),
            Phase::Chain | Phase::Search | Phase::Behind => Some(self.begin + self.reader.taken() as u64),
        }
    }

    /// Takes the file's bytes from `position` on, which is not behind what it wants. None at all: the file ends there.
    pub fn feed(&mut self, position: u64, bytes: &[u8]) {
        while let Some(wanted) = self.wants() {
            let skip = wanted.checked_sub(position).and_then(|skip| usize::try_from(skip).ok());
            match skip.and_then(|skip| bytes.get(skip..)).filter(|rest| !rest.is_empty()) {
                Some(rest) => self.step(rest),
                None if bytes.is_empty() && wanted == position => {
                    self.file_bytes = position;
                    self.reject();
                }
                None => return,
            }
        }
    }

    /// What was found, once nothing is wanted any more.
    pub fn finish(self) -> Chain {
        self.chain
    }

    fn step(&mut self, bytes: &[u8]) {
        if let Phase::FirstBlock(seen) = self.phase {
            return self.look_at_first_block(seen, bytes);
        }
        let before = self.reader.taken();
        let judge = &self.judge;
        match self.reader.feed(bytes, |entry| judge.needs(entry)) {
            Progress::More => {}
            Progress::NoGroup => self.reject(),
            Progress::Group(group) => self.accept(group),
            Progress::Unknown(stamp) if stamp.sequence <= self.judge.limit(stamp) => {
                self.chain.unknown = Some((stamp.sequence, self.begin));
                self.phase = Phase::Done;
            }
            Progress::Unknown(_) => self.reject(),
            Progress::Header(stamp, length) => {
                let is_whole = length as u64 <= self.file_bytes - self.begin;
                match is_whole && self.is_wanted(stamp) {
                    true => self.step(&bytes[self.reader.taken() - before..]),
                    false => self.reject(),
                }
            }
        }
    }

    fn look_at_first_block(&mut self, seen: usize, bytes: &[u8]) {
        let block = BLOCK.min(usize::try_from(self.file_bytes).unwrap_or(BLOCK));
        let own = &bytes[..bytes.len().min(block - seen)];
        match own.iter().all(|byte| *byte == 0) {
            true if seen + own.len() == block => self.phase = Phase::Done, // wiped
            true => self.phase = Phase::FirstBlock(seen + own.len()),
            false => {
                self.phase = Phase::Search;
                self.go_to(BLOCK as u64);
            }
        }
    }

    /// Whether a group of that stamp would tell something here.
    fn is_wanted(&self, stamp: Stamp) -> bool {
        let span = match self.phase {
            Phase::Chain => self.chain.begun.as_ref(),
            Phase::Behind => self.chain.behind.last(),
            Phase::Search => return self.is_searched(stamp),
            Phase::FirstBlock(_) | Phase::Done => None,
        };
        span.is_none_or(|span| is_same_life(span, stamp) && span.last.checked_add(1) == Some(stamp.sequence))
    }

    fn is_searched(&self, stamp: Stamp) -> bool {
        let Some(begun) = &self.chain.begun else { return true };
        let last = self.chain.behind.last().unwrap_or(begun);
        let tells = match self.depth {
            Depth::Chain => stamp.durable_sequence > last.last,
            Depth::Everything => stamp.sequence > last.last,
        };
        is_same_life(last, stamp) && tells
    }

    /// What lies at `begin` is no group that is wanted.
    fn reject(&mut self) {
        match self.phase {
            Phase::Chain if self.chain.begun.is_none() => self.phase = Phase::FirstBlock(0),
            Phase::Behind if self.depth == Depth::Chain => self.phase = Phase::Done,
            Phase::Chain | Phase::Behind | Phase::Search => {
                self.phase = Phase::Search;
                self.go_to(self.begin + BLOCK as u64);
            }
            Phase::FirstBlock(_) | Phase::Done => self.phase = Phase::Done,
        }
    }

    fn accept(&mut self, group: Group) {
        let (begin, end) = (self.begin, self.begin + group.padded() as u64);
        if self.phase == Phase::Search
            && self.depth == Depth::Chain
            && let Some(chain) = &self.chain.begun
        {
            self.chain.damaged = Some((chain.last + 1, chain.end));
            self.phase = Phase::Done;
            return;
        }
        let Chain { begun, behind, .. } = &mut self.chain;
        let counts = group.stamp.sequence <= self.judge.limit(group.stamp);
        let span = Span { begin, end, first: group.stamp, last: 0, seen_durable: 0, kept: Vec::new() };
        let span = match self.phase {
            Phase::Chain => begun.get_or_insert(span),
            Phase::Behind if !behind.is_empty() => behind.last_mut().expect("just looked"),
            _ => {
                self.phase = Phase::Behind;
                behind.push_mut(span)
            }
        };
        (span.end, span.last) = (end, group.stamp.sequence);
        if counts {
            span.seen_durable = span.seen_durable.max(group.stamp.durable_sequence);
        }
        if !group.entries.is_empty() {
            span.kept.push((begin, group));
        }
        self.go_to(end);
    }

    /// Begins with the group at `begin`, if one fits there.
    fn go_to(&mut self, begin: u64) {
        self.reader = GroupReader::new();
        self.begin = begin;
        while self.phase != Phase::Done && !matches!(self.phase, Phase::FirstBlock(_)) && !self.has_room() {
            match self.phase {
                Phase::Chain if self.chain.begun.is_none() && self.file_bytes > 0 => self.phase = Phase::FirstBlock(0),
                _ => self.phase = Phase::Done,
            }
        }
    }

    fn has_room(&self) -> bool {
        self.begin.saturating_add(GROUP_HEADER_BYTES as u64) <= self.file_bytes
    }
}

fn is_same_life(span: &Span, stamp: Stamp) -> bool {
    (span.first.run, span.first.shard) == (stamp.run, stamp.shard)
}
