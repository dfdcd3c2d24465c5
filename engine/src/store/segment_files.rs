//! Open files of segments: a bounded number of them, the least recently used is closed first. An idle partition has
//! none.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs, io,
    path::PathBuf,
    rc::Rc,
};

use super::{aborted::AbortedCache, partition_dir};
use crate::{
    api::TopicPartition,
    format::segment::{self, IndexEntry, SegmentName},
    io::{Io, Open},
};

/// Segments open at the same time, per shard.
const OPEN_MAX: usize = 256;

/// Where the last reads ended, so that the next read of the same consumer needs no search.
const HINTS_MAX: usize = 16;

/// A segment's open file.
pub(crate) struct OpenSegment<I: Io> {
    /// For direct reads and writes.
    pub(crate) file: I::File,
    /// For sendfile: opened when first wanted.
    pub(crate) buffered: RefCell<Option<Rc<fs::File>>>,
    /// The index of a sealed segment, read from its footer when first wanted.
    pub(crate) index: RefCell<Option<Rc<Vec<IndexEntry>>>>,
    /// Offsets of batches and their positions.
    hints: RefCell<Vec<(i64, u64)>>,
    used: Cell<u64>,
}

impl<I: Io> OpenSegment<I> {
    /// Whether anybody else than the holder of this reads or writes it.
    pub(crate) fn is_in_use(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) > 1 || self.buffered.borrow().as_ref().is_some_and(|file| Rc::strong_count(file) > 1)
    }

    /// The position of the batch that begins with `offset`, if a read ended there.
    pub(crate) fn hint(&self, offset: i64) -> Option<u64> {
        self.hints.borrow().iter().find(|(known, _)| *known == offset).map(|(_, position)| *position)
    }

    /// The position of the batch that is the first to read for an offset, if a read ended there or the index has it.
    pub(crate) fn start(&self, index: &[IndexEntry], offset: i64) -> Option<u64> {
        self.hint(offset).or_else(|| segment::position_at(index, offset))
    }

    /// About where the batch with an offset begins, from what readers left here.
    pub(crate) fn position_of(&self, offset: i64) -> Option<u64> {
        self.hint(offset).or_else(|| Some(segment::position_before(self.index.borrow().as_ref()?, offset)))
    }

    /// Takes note of where a read ended.
    pub(crate) fn set_hint(&self, offset: i64, position: u64) {
        let mut hints = self.hints.borrow_mut();
        hints.retain(|(known, _)| *known != offset);
        if hints.len() == HINTS_MAX {
            hints.remove(0);
        }
        hints.push((offset, position));
    }
}

type Key = (TopicPartition, SegmentName);

/// See the module.
pub(crate) struct SegmentFiles<I: Io> {
    io: I,
    data_dir: PathBuf,
    open: RefCell<HashMap<Key, Rc<OpenSegment<I>>>>,
    clock: Cell<u64>,
    /// Counts calls that forgot something.
    forgotten: Cell<u64>,
    /// Aborted transactions of those that have ended.
    pub(super) aborted: AbortedCache,
}

impl<I: Io> SegmentFiles<I> {
    pub(crate) fn new(io: I, data_dir: PathBuf) -> Self {
        Self {
            io,
            data_dir,
            open: RefCell::default(),
            clock: Cell::new(0),
            forgotten: Cell::new(0),
            aborted: AbortedCache::default(),
        }
    }

    /// Path of a segment's file.
    pub(crate) fn path(&self, id: TopicPartition, name: SegmentName) -> PathBuf {
        partition_dir(&self.data_dir, id).join(name.file_name())
    }

    /// The file of a segment, opened if it is not; created if `create`.
    pub(crate) async fn get(
        &self,
        id: TopicPartition,
        name: SegmentName,
        create: bool,
    ) -> io::Result<Rc<OpenSegment<I>>> {
        let now = self.clock.get() + 1;
        self.clock.set(now);
        if let Some(known) = self.open.borrow().get(&(id, name)) {
            known.used.set(now);
            return Ok(known.clone());
        }
        let path = self.path(id, name);
        if create {
            self.io.create_dir(path.parent().expect("a segment has a folder")).await?;
        }
        let forgotten = self.forgotten.get();
        let file = self.io.open(&path, if create { Open::Write } else { Open::Existing }).await?;
        let opened = Rc::new(OpenSegment {
            file,
            buffered: RefCell::new(None),
            index: RefCell::new(None),
            hints: RefCell::default(),
            used: Cell::new(now),
        });
        if forgotten != self.forgotten.get() {
            // It may be this one that was removed meanwhile: keeping it open would keep its bytes on the disk.
            return Ok(opened);
        }
        let mut open = self.open.borrow_mut();
        if open.len() >= OPEN_MAX {
            let oldest = open.iter().min_by_key(|(_, file)| file.used.get()).map(|(key, _)| *key);
            oldest.map(|key| open.remove(&key));
        }
        Ok(open.entry((id, name)).or_insert(opened).clone())
    }

    /// The file of a segment, if it is open.
    pub(crate) fn if_open(&self, id: TopicPartition, name: SegmentName) -> Option<Rc<OpenSegment<I>>> {
        self.open.borrow().get(&(id, name)).cloned()
    }

    /// How many are open.
    #[cfg(test)]
    pub(crate) fn open_count(&self) -> usize {
        self.open.borrow().len()
    }

    /// Takes the files of a partition out, to be closed.
    #[must_use]
    pub(crate) fn forget(&self, id: TopicPartition) -> Vec<Rc<OpenSegment<I>>> {
        self.forgotten.set(self.forgotten.get() + 1);
        self.aborted.forget(|(partition, _)| *partition == id);
        self.open.borrow_mut().extract_if(|(partition, _), _| *partition == id).map(|(_, file)| file).collect()
    }

    /// Takes a segment's file out, to be closed.
    #[must_use]
    pub(crate) fn forget_segment(&self, id: TopicPartition, name: SegmentName) -> Option<Rc<OpenSegment<I>>> {
        self.forgotten.set(self.forgotten.get() + 1);
        self.aborted.forget(|key| *key == (id, name));
        self.open.borrow_mut().remove(&(id, name))
    }
}
