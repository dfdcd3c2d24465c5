//! The files of a shard's shared log: zero-filled once, written in turn, recycled when nothing in them is needed.
//!
//! Owned by the store. A file is free, current, or used; a used file becomes free when its last live extent is
//! materialised. Overwriting blocks that were written before is what makes a flush cheap: no journal commit.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    io::{Buffer, File, IO_BYTES_MAX, Io, Open},
    partition::{PartitionCell, WalFileId},
};

/// An open file of the shared log.
pub(crate) struct WalFile<I: Io> {
    pub(crate) id: WalFileId,
    /// A completed write is written; reads too.
    pub(crate) plain: I::File,
    /// A completed write is durable.
    pub(crate) durable: I::File,
    pub(crate) bytes: u64,
}

struct Used<I: Io> {
    file: Rc<WalFile<I>>,
    /// Extents and pointers in it that no manifest covers yet.
    live: usize,
    /// Other shards that still need it, after a change of the number of shards.
    foreign: usize,
    /// Whether this shard may recycle it.
    home: bool,
    /// Partitions with extents in it.
    pins: Vec<Rc<PartitionCell>>,
}

/// See the module.
pub(crate) struct WalFiles<I: Io> {
    io: I,
    dir: PathBuf,
    file_bytes: u64,
    count_max: usize,
    free: VecDeque<Rc<WalFile<I>>>,
    used: HashMap<WalFileId, Used<I>>,
    /// Ids of used files, oldest first; the last one is current if `writing`.
    order: VecDeque<WalFileId>,
    current: Option<WalFileId>,
    next_id: u64,
    id_step: u64,
}

/// What became of a release.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// Others still need the file.
    Kept,
    /// The file is free again.
    Free,
    /// Its home shard must hear that this shard is done with it.
    TellHome,
}

impl<I: Io> WalFiles<I> {
    /// No files yet. New ones get ids `next_id`, `next_id + id_step`...
    pub(crate) fn new(io: I, dir: PathBuf, file_bytes: u64, count_max: usize, next_id: u64, id_step: u64) -> Self {
        Self {
            io,
            dir,
            file_bytes,
            count_max: count_max.max(2),
            free: VecDeque::new(),
            used: HashMap::new(),
            order: VecDeque::new(),
            current: None,
            next_id,
            id_step,
        }
    }

    /// A former run's file: `live` extents of this shard are in it.
    pub(crate) fn adopt(&mut self, file: WalFile<I>, live: usize, foreign: usize, home: bool) {
        let id = file.id;
        self.used.insert(id, Used { file: Rc::new(file), live, foreign, home, pins: Vec::new() });
        self.order.push_back(id);
        self.settle(id);
    }

    /// An open used or current file.
    pub(crate) fn file(&self, id: WalFileId) -> Option<Rc<WalFile<I>>> {
        self.used.get(&id).map(|used| used.file.clone())
    }

    /// The file that groups go to.
    pub(crate) fn current(&self) -> Option<Rc<WalFile<I>>> {
        self.current.and_then(|id| self.file(id))
    }

    /// Goes on to the next free file; `false` if there is none.
    pub(crate) fn advance(&mut self) -> bool {
        let Some(file) = self.free.pop_front() else { return false };
        let former = self.current.replace(file.id);
        self.order.push_back(file.id);
        self.used.insert(file.id, Used { file, live: 0, foreign: 0, home: true, pins: Vec::new() });
        if let Some(former) = former {
            self.settle(former);
        }
        true
    }

    /// Counts extents that were put into a file, of a partition.
    pub(crate) fn pin(&mut self, id: WalFileId, partition: &Rc<PartitionCell>) {
        let used = self.used.get_mut(&id).expect("pins are for files in use");
        used.live += 1;
        let mut inner = partition.borrow_mut();
        if inner.pinned != Some(id) {
            inner.pinned = Some(id);
            used.pins.push(partition.clone());
        }
    }

    /// One extent of that file is not needed any more.
    pub(crate) fn release(&mut self, id: WalFileId) -> Released {
        let used = self.used.get_mut(&id).expect("releases are for files in use");
        used.live = used.live.checked_sub(1).expect("every release has its pin");
        self.settle(id)
    }

    /// Another shard is done with a file whose home is here.
    pub(crate) fn release_foreign(&mut self, id: WalFileId) -> Released {
        let Some(used) = self.used.get_mut(&id) else { return Released::Kept };
        used.foreign = used.foreign.saturating_sub(1);
        self.settle(id)
    }

    fn settle(&mut self, id: WalFileId) -> Released {
        let used = &self.used[&id];
        if used.live > 0 || used.foreign > 0 || self.current == Some(id) {
            return Released::Kept;
        }
        let used = self.used.remove(&id).expect("looked up above");
        self.order.retain(|other| *other != id);
        if !used.home {
            return Released::TellHome;
        }
        if used.file.bytes == self.file_bytes {
            self.free.push_back(used.file);
        }
        Released::Free
    }

    /// Partitions with extents in the oldest used file that is not current, to be materialised.
    pub(crate) fn oldest_pins(&mut self) -> Option<Vec<Rc<PartitionCell>>> {
        let id = self.order.iter().find(|id| self.current != Some(**id))?;
        let used = self.used.get_mut(id)?;
        let pins = std::mem::take(&mut used.pins);
        used.pins = pins.clone();
        Some(pins)
    }

    /// Files that can be written to next.
    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Whether the log is short of files: materialise the oldest.
    pub(crate) fn under_pressure(&self) -> bool {
        self.free.len() + self.room() < (self.count_max / 4).max(1)
    }

    /// Files that may still be made.
    fn room(&self) -> usize {
        self.count_max.saturating_sub(self.free.len() + self.used.values().filter(|u| u.home).count())
    }

    /// What to make next, if a spare file is wanted and allowed.
    pub(crate) fn wants_file(&mut self) -> Option<Making<I>> {
        if self.free.len() >= 2 || self.room() == 0 {
            return None;
        }
        let id = WalFileId(self.next_id);
        self.next_id += self.id_step;
        Some(Making { io: self.io.clone(), path: path_of(&self.dir, id), id, bytes: self.file_bytes })
    }

    /// A file is made.
    pub(crate) fn made(&mut self, file: WalFile<I>) {
        self.free.push_back(Rc::new(file));
    }
}

/// Path of a file of the shared log.
pub(crate) fn path_of(dir: &Path, id: WalFileId) -> PathBuf {
    dir.join(format!("{:08}.wal", id.0))
}

/// Opens a former run's file.
pub(crate) async fn open<I: Io>(io: &I, dir: &Path, id: WalFileId, bytes: u64) -> io::Result<WalFile<I>> {
    let path = path_of(dir, id);
    let plain = io.open(&path, Open::Write).await?;
    let durable = io.open(&path, Open::WriteDurable).await?;
    Ok(WalFile { id, plain, durable, bytes })
}

/// A file about to be made.
pub(crate) struct Making<I: Io> {
    io: I,
    path: PathBuf,
    id: WalFileId,
    bytes: u64,
}

impl<I: Io> Making<I> {
    /// Writes zeroes to the whole file and flushes it. It gets its name when it is complete, so that a crash in
    /// between leaves nothing that looks like a file of the log.
    pub(crate) async fn make(self) -> io::Result<WalFile<I>> {
        let making = self.path.with_extension("making");
        let filled = self.fill(&making).await;
        if filled.is_err() {
            self.io.remove(&making).await?;
        }
        filled?;
        self.io.rename(&making, &self.path).await?;
        open(&self.io, self.path.parent().expect("the log has a folder"), self.id, self.bytes).await
    }

    async fn fill(&self, making: &Path) -> io::Result<()> {
        let file = self.io.open(making, Open::Write).await?;
        let mut zeroes = self.io.buffer(IO_BYTES_MAX);
        zeroes.bytes_mut().fill(0);
        let zeroes = Rc::new(zeroes);
        let mut position = 0;
        while position < self.bytes {
            file.write(zeroes.clone(), position).await?;
            position += IO_BYTES_MAX as u64;
            self.io.yield_now().await;
        }
        file.flush().await?;
        file.close().await
    }
}
