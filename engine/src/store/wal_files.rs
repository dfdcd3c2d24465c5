//! The files of a shard's shared log: zero-filled once, written in turn, recycled when nothing in them is needed.
//!
//! Owned by the store. A file is free, used (the last one is current), or spent: no extent in it is live any more. A used
//! file counts the live extents of each partition: who stands in the way of its recycling is known, not guessed. Files
//! are spent, and then wiped, in the order in which they were written: the sequences on disk have no hole but at their
//! start, and recovery can tell a torn tail from a missing piece. Wiping is one zeroed block, durable before the file
//! is written again: without it, a torn first write would leave pieces of the former contents that look like a log with
//! a hole. Overwriting blocks that were written before is what makes a flush cheap: the
//! file system has nothing to journal.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    api::TopicPartition,
    io::{Buffer, File, IO_BYTES_MAX, Io, Open},
    partition::PartitionCell,
    wal::WalFileId,
};

/// An open file of the shared log.
pub(crate) struct WalFile<I: Io> {
    pub(crate) id: WalFileId,
    /// A completed write is written.
    pub(crate) plain: I::File,
    /// A completed write is durable.
    pub(crate) durable: I::File,
    pub(crate) bytes: u64,
}

struct Used<I: Io> {
    file: Rc<WalFile<I>>,
    /// Partitions with extents in it that no manifest covers yet: nobody else stands in the way of recycling it.
    holders: BTreeMap<TopicPartition, Holder>,
}

impl<I: Io> Used<I> {
    fn pin(&mut self, cell: &Rc<PartitionCell>) {
        let id = cell.borrow().id();
        self.holders.entry(id).or_insert_with(|| Holder { cell: cell.clone(), extents: 0 }).extents += 1;
    }

    /// Live extents in it.
    fn extents(&self) -> usize {
        self.holders.values().map(|holder| holder.extents).sum()
    }
}

struct Holder {
    cell: Rc<PartitionCell>,
    /// At least one.
    extents: usize,
}

/// See the module.
pub(crate) struct WalFiles<I: Io> {
    io: I,
    dir: PathBuf,
    file_bytes: u64,
    count_max: usize,
    free: VecDeque<Rc<WalFile<I>>>,
    /// Nothing in them is needed, but it is still there. Oldest contents first.
    spent: VecDeque<Rc<WalFile<I>>>,
    /// Oldest first; the last one is current if there is a current one.
    used: VecDeque<Used<I>>,
    has_current: bool,
    /// Files being wiped, which are in none of the lists.
    wiping: usize,
    making: bool,
    /// What the file that is being made has no space for yet.
    unmade_bytes: Rc<Cell<u64>>,
    /// Counts what was done for files in the making.
    making_steps: Rc<Cell<u64>>,
    /// Whether the last try to make a file failed, and nobody has looked at the free space since.
    cramped: bool,
    next_id: u64,
    /// Files of a size that is not wanted any more, to be closed and removed.
    retired: Vec<Rc<WalFile<I>>>,
}

/// Free files kept at hand, so that the log never waits for one to be made.
const SPARE_FILES: usize = 2;

/// Files with which the log can go on without a new one, each being recycled while the other is written.
pub(super) const GOES_ROUND: usize = 2;

impl<I: Io> WalFiles<I> {
    /// No files yet; new ones get ids from `next_id` on.
    pub(crate) fn new(io: I, dir: PathBuf, file_bytes: u64, count_max: usize, next_id: u64) -> Self {
        Self {
            io,
            dir,
            file_bytes,
            count_max: count_max.max(SPARE_FILES + 1),
            free: VecDeque::new(),
            spent: VecDeque::new(),
            used: VecDeque::new(),
            has_current: false,
            wiping: 0,
            making: false,
            unmade_bytes: Rc::default(),
            making_steps: Rc::default(),
            cramped: false,
            next_id,
            retired: Vec::new(),
        }
    }

    /// A former run's file, in the order of their groups, with the partition of each of its live extents.
    pub(crate) fn adopt(&mut self, file: WalFile<I>, live: impl IntoIterator<Item = Rc<PartitionCell>>) {
        let mut used = Used { file: Rc::new(file), holders: BTreeMap::new() };
        live.into_iter().for_each(|cell| used.pin(&cell));
        self.used.push_back(used);
        self.settle();
    }

    /// The file that groups go to.
    pub(crate) fn current(&self) -> Option<Rc<WalFile<I>>> {
        self.used.back().filter(|_| self.has_current).map(|used| used.file.clone())
    }

    /// Goes on to the next free file; `false` if there is none. What is to be removed holds older groups than what is
    /// free: it must be gone before those are overwritten, or a run's groups on disk would have a hole.
    pub(crate) fn advance(&mut self) -> bool {
        let Some(file) = self.free.pop_front() else { return false };
        self.used.push_back(Used { file, holders: BTreeMap::new() });
        self.has_current = true;
        self.settle();
        true
    }

    /// Counts an extent of a partition that was put into a file.
    pub(crate) fn pin(&mut self, id: WalFileId, partition: &Rc<PartitionCell>) {
        let used = self.used.iter_mut().rfind(|used| used.file.id == id).expect("pins are for files in use");
        used.pin(partition);
    }

    /// So many extents of a partition in that file are not needed any more. Whether files are to be wiped now.
    #[must_use]
    pub(crate) fn release(&mut self, id: WalFileId, partition: TopicPartition, extents: usize) -> bool {
        let used = self.used.iter_mut().find(|used| used.file.id == id).expect("releases are for files in use");
        let holder = used.holders.get_mut(&partition).expect("releases are for extents that were pinned");
        holder.extents = holder.extents.checked_sub(extents).expect("every release has its pin");
        if holder.extents == 0 {
            used.holders.remove(&partition);
        }
        self.settle();
        !self.spent.is_empty()
    }

    fn settle(&mut self) {
        let held_back = usize::from(self.has_current);
        while self.used.len() > held_back && self.used.front().is_some_and(|used| used.holders.is_empty()) {
            let used = self.used.pop_front().expect("there is a front");
            self.spent.push_back(used.file);
        }
    }

    /// The next file to be wiped before it is written again. Answer with [`WalFiles::wiped`].
    pub(crate) fn next_to_wipe(&mut self) -> Option<Rc<WalFile<I>>> {
        let file = self.spent.pop_front()?;
        self.wiping += 1;
        Some(file)
    }

    /// A file holds nothing that recovery would look at.
    pub(crate) fn wiped(&mut self, file: Rc<WalFile<I>>) {
        self.wiping -= 1;
        match file.bytes == self.file_bytes && self.count() < self.count_max {
            true => self.free.push_back(file),
            false => self.retired.push(file),
        }
    }

    /// Who stands in the way of recycling the oldest file that anybody holds; the current one is the last.
    pub(crate) fn oldest_holders(&self) -> impl Iterator<Item = &Rc<PartitionCell>> {
        let oldest = self.used.iter().find(|used| !used.holders.is_empty());
        oldest.into_iter().flat_map(|used| used.holders.values().map(|holder| &holder.cell))
    }

    /// Whether a free file is there or on its way: somebody wipes, makes or removes one, or waits for space to make the
    /// second, without which the log cannot go round.
    pub(crate) fn has_file_coming(&self) -> bool {
        let is_changing = self.wiping > 0 || self.making || !self.spent.is_empty() || !self.retired.is_empty();
        let waits_for_space = self.cramped && self.count() < GOES_ROUND;
        !self.free.is_empty() || is_changing || self.may_make() || waits_for_space
    }

    /// Whether the log is short of files: materialise the oldest.
    pub(crate) fn under_pressure(&self) -> bool {
        let count_max = if self.cramped { self.count() } else { self.count_max };
        let at_hand = count_max.saturating_sub(self.used.len());
        at_hand < (count_max / 4).max(SPARE_FILES).min(count_max.saturating_sub(1))
    }

    /// Files that may still be made.
    fn room(&self) -> usize {
        self.count_max.saturating_sub(self.count())
    }

    /// Bytes of the disk that the log cannot do without and has not taken yet.
    pub(crate) fn owed_bytes(&self) -> u64 {
        let missing = GOES_ROUND.saturating_sub(self.count() + usize::from(self.making));
        missing as u64 * self.file_bytes + self.unmade_bytes.get()
    }

    fn count(&self) -> usize {
        self.free.len() + self.spent.len() + self.wiping + self.used.len()
    }

    /// What to make next, if a spare file is wanted and allowed. Answer with [`WalFiles::made`].
    pub(crate) fn wants_file(&mut self) -> Option<Making<I>> {
        if !self.may_make() {
            return None;
        }
        self.making = true;
        self.unmade_bytes.set(self.file_bytes);
        let id = WalFileId(self.next_id);
        self.next_id += 1;
        Some(Making {
            io: self.io.clone(),
            path: path_of(&self.dir, id),
            id,
            bytes: self.file_bytes,
            unmade_bytes: self.unmade_bytes.clone(),
            steps: self.making_steps.clone(),
        })
    }

    fn may_make(&self) -> bool {
        !self.making && !self.cramped && self.free.len() < SPARE_FILES && self.room() > 0
    }

    /// Somebody looked at the free space: making a file may be tried again.
    pub(crate) fn try_again(&mut self) {
        self.cramped = false;
    }

    /// A file was made, or not: then none is made before [`WalFiles::try_again`].
    pub(crate) fn made(&mut self, file: Option<WalFile<I>>) {
        self.making = false;
        self.cramped = file.is_none();
        self.unmade_bytes.set(0);
        self.free.extend(file.map(Rc::new));
    }

    /// Files to remove; nobody writes to them any more. Answer with [`WalFiles::removed`].
    pub(crate) fn retired(&self) -> Vec<WalFileId> {
        self.retired.iter().map(|file| file.id).collect()
    }

    /// These are removed, durably.
    pub(crate) fn removed(&mut self, files: &[WalFileId]) {
        self.retired.retain(|file| !files.contains(&file.id));
    }
}

/// The files as somebody sees them who looks from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilesStanding {
    /// Oldest first, each with its live extents.
    pub(crate) used: Vec<(WalFileId, usize)>,
    pub(crate) free: usize,
    pub(crate) spent: usize,
    pub(crate) wiping: usize,
    /// What the file in the making lacks, and its size.
    pub(crate) making: Option<(u64, u64)>,
    pub(crate) count_max: usize,
}

impl<I: Io> WalFiles<I> {
    /// Files being wiped.
    pub(crate) fn wiping(&self) -> usize {
        self.wiping
    }

    /// Counts what was done for files in the making.
    pub(crate) fn making_steps(&self) -> u64 {
        self.making_steps.get()
    }

    /// Bytes that the file in the making lacks, and its size.
    pub(crate) fn making(&self) -> Option<(u64, u64)> {
        self.making.then(|| (self.unmade_bytes.get(), self.file_bytes))
    }

    /// The oldest file that anybody holds, and who does, with how many live extents.
    pub(crate) fn oldest_held(&self) -> Option<(WalFileId, Vec<(TopicPartition, usize)>)> {
        let oldest = self.used.iter().find(|used| !used.holders.is_empty())?;
        Some((oldest.file.id, oldest.holders.iter().map(|(id, holder)| (*id, holder.extents)).collect()))
    }

    /// How the files stand.
    pub(crate) fn standing(&self) -> FilesStanding {
        FilesStanding {
            used: self.used.iter().map(|used| (used.file.id, used.extents())).collect(),
            free: self.free.len(),
            spent: self.spent.len(),
            wiping: self.wiping,
            making: self.making(),
            count_max: self.count_max,
        }
    }
}

/// Path of a file of the shared log.
pub(crate) fn path_of(dir: &Path, id: WalFileId) -> PathBuf {
    dir.join(format!("{:08}.wal", id.0))
}

/// Id of a file of the shared log by its name.
pub(crate) fn id_of(name: &str) -> Option<WalFileId> {
    name.strip_suffix(".wal")?.parse().ok().map(WalFileId)
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
    unmade_bytes: Rc<Cell<u64>>,
    steps: Rc<Cell<u64>>,
}

impl<I: Io> Making<I> {
    fn step(&self) {
        self.steps.update(|steps| steps + 1);
    }

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
        self.step();
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
            self.unmade_bytes.set(self.bytes - position);
            self.step();
            self.io.yield_now().await;
        }
        file.flush().await?;
        self.step();
        file.close().await
    }
}
