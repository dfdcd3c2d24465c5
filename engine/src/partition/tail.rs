//! The tail of a partition's log: what is in memory, and in the shared log for as long as no segment holds it.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
};

use crate::{chunk::Memory, wal::WalFileId};

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

    /// Its memory: it is live.
    pub(crate) fn live_memory(&self) -> Rc<dyn Memory> {
        self.backing.memory().expect("what is not materialised is in memory")
    }
}

#[cfg(test)]
impl Extent {
    /// Batches in a group of their own.
    pub(crate) fn of(batches: &[Vec<u8>]) -> Self {
        let bytes = batches.concat();
        let ends: Vec<_> = batches.iter().filter_map(|batch| super::run::batch_head(batch)).collect();
        let (first, last) = (ends.first().expect("a batch"), ends.last().expect("a batch"));
        let (base_offset, end_offset, len) = (first.0, last.1, u32::try_from(bytes.len()).expect("small"));
        Self { base_offset, end_offset, at: 0, len, backing: Backing::new(Rc::new(bytes), WalFileId(1), 1) }
    }
}
