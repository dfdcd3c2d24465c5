//! The tail of a partition's log: what is in memory, and in the shared log for as long as no segment holds it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    iter,
    ops::Range,
    rc::Rc,
};

use super::{
    read::Wanted,
    run::{self, select},
};
use crate::{
    chunk::{Chunk, Memory},
    wal::WalFileId,
};

/// What holds extents: memory, which they are materialised from and fetched from while it is cached, and a file of the
/// shared log. That of a group which was written, or of one run of it that went to its segment beside the group.
pub(crate) struct Backing {
    /// Its bytes, until the cache evicts them: never while an extent in it is live.
    memory: RefCell<Option<Rc<dyn Memory>>>,
    /// The shared log's file that holds the group, for as long as an extent in it is live.
    wal: WalFileId,
    /// Extents in it that are not materialised.
    live: Cell<usize>,
}

impl Backing {
    /// Memory of a group in that file, with so many extents that are live.
    pub(crate) fn new(memory: Rc<dyn Memory>, wal: WalFileId, live: usize) -> Rc<Self> {
        Rc::new(Self { memory: RefCell::new(Some(memory)), wal, live: Cell::new(live) })
    }

    /// Its bytes, unless they were evicted.
    pub(crate) fn memory(&self) -> Option<Rc<dyn Memory>> {
        self.memory.borrow().clone()
    }

    /// Whether its bytes are there.
    pub(crate) fn is_cached(&self) -> bool {
        self.memory.borrow().is_some()
    }

    /// Lets its bytes go.
    pub(crate) fn evict(&self) {
        self.memory.take();
    }

    /// The file of the shared log.
    pub(crate) fn wal(&self) -> WalFileId {
        self.wal
    }

    /// Whether an extent in it is in no segment.
    pub(crate) fn is_live(&self) -> bool {
        self.live.get() > 0
    }

    /// It holds one more live extent.
    pub(crate) fn add_live(&self) {
        self.live.update(|live| live + 1);
    }

    /// One of its extents is in a segment, or is not wanted any more.
    pub(crate) fn end_live(&self) {
        self.live.set(self.live.get().checked_sub(1).expect("an extent ends once"));
    }
}

/// A run of consecutive batches that lie back to back in memory.
#[derive(Clone)]
pub(crate) struct Extent {
    pub(crate) base_offset: i64,
    /// One past the last offset.
    pub(crate) end_offset: i64,
    /// First byte in the memory.
    pub(crate) at: u32,
    /// Bytes.
    pub(crate) len: u32,
    pub(crate) backing: Rc<Backing>,
}

impl Extent {
    /// Where its batches lie in the memory.
    pub(crate) fn range(&self) -> Range<usize> {
        self.at as usize..(self.at + self.len) as usize
    }

    /// Bytes of the batches that end at or before an offset. `None` if it begins above that, or has to be read for that and
    /// is not in memory.
    fn bytes_below(&self, offset: i64) -> Option<usize> {
        if offset >= self.end_offset {
            return Some(self.len as usize);
        }
        if offset <= self.base_offset {
            return (offset == self.base_offset).then_some(0);
        }
        let memory = self.backing.memory.borrow();
        Some(run::bytes_below(&memory.as_ref()?.bytes()[self.range()], offset))
    }

    /// Its memory: it is live.
    pub(crate) fn live_memory(&self) -> Rc<dyn Memory> {
        self.backing.memory().expect("what is not materialised is in memory")
    }
}

/// The extents of a partition, in the order of their offsets. The first ones may be in segments already: they stay for as
/// long as they are cached. What always holds: they are consecutive, and what is in no segment is in memory.
#[derive(Default)]
pub(crate) struct Tail {
    extents: VecDeque<Extent>,
    /// Bytes of those that are live.
    live_bytes: usize,
}

impl Tail {
    /// Appends an extent, which is live.
    pub(super) fn push(&mut self, extent: Extent) {
        let expected = self.extents.back().map(|last| last.end_offset);
        assert!(expected.is_none_or(|end| end == extent.base_offset), "the tail is consecutive");
        self.live_bytes += extent.len as usize;
        self.extents.push_back(extent);
    }

    /// Bytes of the extents that are in no segment.
    pub(crate) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Its extents.
    pub(crate) fn extents(&self) -> impl DoubleEndedIterator<Item = &Extent> {
        self.extents.iter()
    }

    /// Extents from an offset on.
    pub(crate) fn from(&self, offset: i64) -> impl Iterator<Item = &Extent> {
        self.extents.range(self.extents.partition_point(|extent| extent.base_offset < offset)..)
    }

    /// The extent that holds an offset, and those behind it; from the first one on if that begins above it.
    pub(crate) fn holding(&self, offset: i64) -> impl Iterator<Item = &Extent> {
        self.extents.range(self.extents.partition_point(|extent| extent.end_offset <= offset)..)
    }

    /// Where the tail begins; none if it is empty.
    pub(crate) fn base_offset(&self) -> Option<i64> {
        self.extents.front().map(|first| first.base_offset)
    }

    /// An extent is in a segment.
    pub(super) fn end_live(&mut self, extent: &Extent) {
        extent.backing.end_live();
        self.live_bytes -= extent.len as usize;
    }

    /// Forgets leading extents that are materialised and not cached any more.
    pub(super) fn prune(&mut self, materialised: i64) {
        while let Some(first) = self.extents.front() {
            if first.end_offset > materialised || first.backing.is_cached() {
                break;
            }
            self.extents.pop_front();
        }
    }

    /// Forgets what begins below an offset, as far as it is materialised.
    pub(super) fn forget_below(&mut self, offset: i64, materialised: i64) {
        while self.extents.front().is_some_and(|e| e.base_offset < offset && e.end_offset <= materialised) {
            self.extents.pop_front();
        }
    }

    /// Forgets everything; answers what was live.
    pub(super) fn take_live(&mut self, materialised: i64) -> Vec<Extent> {
        self.live_bytes = 0;
        std::mem::take(&mut self.extents).into_iter().filter(|extent| extent.end_offset > materialised).collect()
    }

    /// Takes off what lies at and behind an offset, which is where a batch ends. Answers the extents that are gone, all of
    /// them live, and the bytes of the one that was cut in two.
    pub(super) fn cut(&mut self, end: i64) -> (Vec<Extent>, usize) {
        let mut gone = Vec::new();
        while let Some(last) = self.extents.pop_back_if(|last| last.base_offset >= end) {
            self.live_bytes -= last.len as usize;
            gone.push(last);
        }
        let Some(last) = self.extents.back_mut().filter(|last| last.end_offset > end) else { return (gone, 0) };
        let left = last.bytes_below(end).expect("what is live is in memory");
        let bytes = last.len as usize - left;
        last.end_offset = end;
        last.len = u32::try_from(left).expect("less than before");
        self.live_bytes -= bytes;
        (gone, bytes)
    }

    /// What a reader wants, as far as it is in memory. `None` if the batch that it begins with is not.
    pub(super) fn read(&self, wanted: &Wanted) -> Option<Vec<Chunk>> {
        self.base_offset().filter(|base_offset| *base_offset <= wanted.offset)?;
        let mut extents = self.holding(wanted.offset);
        let first = extents.next().filter(|first| first.backing.is_cached())?;
        let mut chunks = Vec::new();
        let mut left = wanted.max_bytes;
        for extent in iter::once(first).chain(extents).take_while(|extent| extent.base_offset < wanted.end) {
            let Some(memory) = extent.backing.memory() else {
                break;
            };
            let whole = extent.range();
            let is_wanted = wanted.offset <= extent.base_offset && extent.end_offset <= wanted.end;
            if is_wanted && whole.len() <= left {
                left -= whole.len();
                chunks.push(Chunk::Shared(memory, whole));
                continue;
            }
            let rest = Wanted { max_bytes: left, min_one: wanted.min_one && chunks.is_empty(), ..*wanted };
            let inner = select(&memory.bytes()[whole.clone()], &rest);
            if !inner.is_empty() {
                left -= inner.len().min(left);
                let cut = inner.end < whole.len();
                chunks.push(Chunk::Shared(memory, whole.start + inner.start..whole.start + inner.end));
                if !cut {
                    continue;
                }
            }
            break;
        }
        Some(chunks)
    }

    /// Bytes of the batches from the one that holds an offset on, and below an end: to the byte if they are not more than
    /// `max_bytes`. `None` if the tail does not hold the offset, or has to be read for that and is not in memory.
    pub(super) fn bytes_between(&self, offset: i64, end: i64, max_bytes: usize) -> Option<usize> {
        let mut extents = self.holding(offset).peekable();
        let before = extents.peek()?.bytes_below(offset)?;
        let mut bytes = 0;
        for extent in extents.take_while(|extent| extent.base_offset < end) {
            if bytes >= max_bytes.saturating_add(before) {
                break;
            }
            bytes += extent.bytes_below(end)?;
        }
        Some(bytes.saturating_sub(before))
    }
}

#[cfg(test)]
impl Tail {
    /// Whether the batch that holds an offset, or the first one behind it, is in memory.
    pub(crate) fn has(&self, offset: i64) -> bool {
        self.base_offset().is_some_and(|base_offset| base_offset <= offset)
            && self.holding(offset).next().is_some_and(|extent| extent.backing.is_cached())
    }
}

#[cfg(test)]
impl Extent {
    /// Batches in a group of their own.
    pub(crate) fn of(batches: &[Vec<u8>]) -> Self {
        let bytes = batches.concat();
        let ends: Vec<_> = batches.iter().filter_map(|batch| run::batch_head(batch)).collect();
        let (first, last) = (ends.first().expect("a batch"), ends.last().expect("a batch"));
        let (base_offset, end_offset, len) = (first.0, last.1, u32::try_from(bytes.len()).expect("small"));
        Self { base_offset, end_offset, at: 0, len, backing: Backing::new(Rc::new(bytes), WalFileId(1), 1) }
    }
}
