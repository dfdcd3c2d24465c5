//! The fake disk: names, files, and of everything what is durable and what a power cut may still change. No clock, no
//! tasks: the world says when an operation begins and ends.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::random::Random;
use crate::{
    chunk::Memory,
    io::{BLOCK, Buffer, Open, align_down, align_up},
};

/// What a device writes whole or not at all.
const SECTOR: usize = 512;
const _: () = assert!(BLOCK.is_multiple_of(SECTOR));

/// Memory that a simulated file writes from.
pub(crate) struct SimBuffer(Vec<u8>);

impl SimBuffer {
    /// Dirty memory, so that nobody relies on zeroes.
    pub(super) fn dirty(len: usize) -> Self {
        Self(vec![0xA5; len])
    }
}

impl Memory for SimBuffer {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Buffer for SimBuffer {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct InodeId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WriteId(u64);

pub(super) struct Disk {
    names: BTreeMap<PathBuf, Node>,
    inodes: BTreeMap<InodeId, Inode>,
    /// Changes of names that a power cut may undo, oldest first, and the number of the last change.
    undoable: Vec<(u64, NameChange)>,
    name_changes: u64,
    next_id: u64,
    /// Free bytes when nothing is stored; `None` never fills.
    capacity: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(InodeId),
}

#[derive(Clone, Debug)]
enum NameChange {
    Create { path: PathBuf },
    Remove { path: PathBuf, node: Node },
    Rename { from: PathBuf, to: PathBuf, node: Node, replaced: Option<Node> },
}

#[derive(Default)]
struct Inode {
    /// As the process reads it.
    now: Content,
    /// Durable, as of the oldest write in `writes`.
    base: Content,
    /// Completed writes in the order of their completion, then those in flight. Applied to `base` in that order, those
    /// that are durable whole and the others as chance has it, they give what a power cut leaves.
    writes: Vec<Write>,
    handles: usize,
    /// Bytes that it has on the disk though it may be shorter.
    taken: u64,
}

struct Write {
    id: WriteId,
    position: u64,
    bytes: Rc<SimBuffer>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    InFlight,
    Completed,
    /// A flush that should have covered it failed: nothing makes it durable any more.
    Doomed,
    Durable,
}

/// What a power cut does to writes that are not durable.
#[derive(Clone, Copy, Debug)]
enum Mood {
    KeepAll,
    LoseAll,
    /// Each whole or not at all.
    Whole,
    /// Each whole, not at all, or torn.
    Torn,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            names: BTreeMap::from([(PathBuf::from("/"), Node::Directory)]),
            inodes: BTreeMap::new(),
            undoable: Vec::new(),
            name_changes: 0,
            next_id: 1,
            capacity: None,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // Space.

    fn used(&self) -> u64 {
        let named = |id: &InodeId| self.names.values().any(|node| *node == Node::File(*id));
        let held = self.inodes.iter().filter(|(id, inode)| inode.handles > 0 || named(id));
        held.map(|(_, inode)| align_up(inode.now.len).max(inode.taken)).sum()
    }

    pub(super) fn set_free_bytes(&mut self, bytes: u64) {
        self.capacity = Some(self.used() + bytes);
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.capacity.map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(self.used()))
    }

    // Names.

    pub(super) fn open(&mut self, path: &Path, how: Open) -> io::Result<InodeId> {
        let id = match self.names.get(path) {
            Some(Node::Directory) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(id)) => *id,
            None if how == Open::Write => self.create(path)?,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        self.inodes.get_mut(&id).expect("names lead to files").handles += 1;
        Ok(id)
    }

    fn create(&mut self, path: &Path) -> io::Result<InodeId> {
        self.expect_directory(path.parent())?;
        let id = InodeId(self.id());
        self.inodes.insert(id, Inode::default());
        self.names.insert(path.to_owned(), Node::File(id));
        self.changed(NameChange::Create { path: path.to_owned() });
        Ok(id)
    }

    fn expect_directory(&self, path: Option<&Path>) -> io::Result<()> {
        match path.and_then(|path| self.names.get(path)) {
            Some(Node::Directory) => Ok(()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn changed(&mut self, change: NameChange) {
        self.name_changes += 1;
        self.undoable.push((self.name_changes, change));
    }

    pub(super) fn close(&mut self, id: InodeId) {
        let inode = self.inodes.get_mut(&id).expect("a handle keeps its file");
        inode.handles -= 1;
    }

    /// Renames, not yet durably.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.expect_directory(to.parent())?;
        let node = *self.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        let replaced = self.names.get(to).copied();
        if node == Node::Directory || replaced == Some(Node::Directory) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.names.remove(from);
        self.names.insert(to.to_owned(), node);
        self.changed(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), node, replaced });
        Ok(())
    }

    /// Creates a directory and its parents, durably.
    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = path.ancestors().take_while(|path| !self.names.contains_key(*path)).collect();
        let known = path.ancestors().nth(missing.len());
        self.expect_directory(known)?;
        for path in missing {
            self.names.insert(path.to_owned(), Node::Directory);
            self.settle(|_, change| change.touches(path));
        }
        Ok(())
    }

    /// Names in a directory.
    pub(super) fn list(&self, path: &Path) -> Vec<String> {
        let inside = self.names.keys().filter(|name| name.parent() == Some(path));
        inside.filter_map(|name| name.file_name()).map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// Removes a path and all below it; with `chance`, as far as a crash in the middle of it lets it come.
    pub(super) fn remove(&mut self, path: &Path, chance: Option<&mut Random>) {
        let mut below: Vec<PathBuf> = self.names.keys().filter(|name| name.starts_with(path)).cloned().collect();
        below.reverse(); // deepest first
        if let Some(chance) = chance {
            below.truncate(chance.below(below.len() + 1));
        }
        for path in below {
            let node = self.names.remove(&path).expect("it was listed");
            self.changed(NameChange::Remove { path, node });
        }
    }

    /// Changes of names so far: what a `sync_dir` called now covers.
    pub(super) fn name_changes(&self) -> u64 {
        self.name_changes
    }

    /// Makes the changes in a directory durable, up to the `covered`-th.
    pub(super) fn sync_dir(&mut self, path: &Path, covered: u64) -> io::Result<()> {
        self.expect_directory(Some(path))?;
        self.settle(|number, change| number <= covered && change.is_in(path));
        Ok(())
    }

    /// Makes some changes durable, and with them the earlier ones that they build on.
    fn settle(&mut self, durable: impl Fn(u64, &NameChange) -> bool) {
        let mut needed: Vec<PathBuf> = Vec::new();
        let mut left = Vec::new();
        for (number, change) in self.undoable.drain(..).rev() {
            if durable(number, &change) || needed.iter().any(|path| change.touches(path)) {
                needed.extend(change.paths().map(Path::to_owned));
            } else {
                left.push((number, change));
            }
        }
        left.reverse();
        self.undoable = left;
    }

    // Contents.

    /// Takes space for a file without making it longer.
    pub(super) fn take_space(&mut self, id: InodeId, bytes: u64) -> io::Result<()> {
        let inode = &self.inodes[&id];
        let grows = align_up(bytes).saturating_sub(align_up(inode.now.len).max(inode.taken));
        if grows > 0 && self.capacity.is_some() && grows > self.free_bytes() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = self.inodes.get_mut(&id).expect("a handle keeps its file");
        inode.taken = inode.taken.max(align_up(bytes));
        Ok(())
    }

    /// Begins a write.
    pub(super) fn begin_write(&mut self, id: InodeId, position: u64, bytes: Rc<SimBuffer>) -> io::Result<WriteId> {
        let end = position + bytes.0.len() as u64;
        let inode = &self.inodes[&id];
        let longest = inode.writes.iter().filter(|write| write.stage == Stage::InFlight);
        let longest = longest.map(|write| write.position + write.bytes.0.len() as u64).fold(inode.now.len, u64::max);
        let grows = align_up(end).saturating_sub(align_up(longest).max(inode.taken));
        if grows > 0 && self.capacity.is_some() && grows > self.free_bytes() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let write = WriteId(self.id());
        let inode = self.inodes.get_mut(&id).expect("a handle keeps its file");
        inode.writes.push(Write { id: write, position, bytes, stage: Stage::InFlight });
        Ok(write)
    }

    /// Ends a write. It may fail: then some of its sectors may be written all the same.
    pub(super) fn end_write(&mut self, id: InodeId, write: WriteId, durable: bool, fails: Option<&mut Random>) {
        let inode = self.inodes.get_mut(&id).expect("a write keeps its file");
        let at = inode.writes.iter().position(|known| known.id == write).expect("a write ends once");
        let mut ended = inode.writes.remove(at);
        match fails {
            None => {
                inode.now.write_whole(ended.position, &ended.bytes.0);
                ended.stage = if durable { Stage::Durable } else { Stage::Completed };
            }
            Some(chance) => {
                inode.now.write(ended.position, &ended.bytes.0, |_| chance.one_in(2));
                ended.stage = Stage::Doomed;
            }
        }
        let completed = inode.writes.iter().take_while(|write| write.stage != Stage::InFlight).count();
        inode.writes.insert(completed, ended);
        inode.fold();
    }

    /// Completed writes that a flush called now makes durable.
    pub(super) fn begin_flush(&self, id: InodeId) -> Vec<WriteId> {
        let writes = self.inodes[&id].writes.iter();
        writes.filter(|write| write.stage == Stage::Completed).map(|write| write.id).collect()
    }

    /// Ends a flush.
    pub(super) fn end_flush(&mut self, id: InodeId, covered: &[WriteId], failed: bool) {
        let inode = self.inodes.get_mut(&id).expect("a handle keeps its file");
        for write in inode.writes.iter_mut().filter(|write| covered.contains(&write.id)) {
            match (write.stage, failed) {
                (Stage::Completed, true) => write.stage = Stage::Doomed,
                (Stage::Completed, false) => write.stage = Stage::Durable,
                (Stage::InFlight | Stage::Doomed | Stage::Durable, _) => {}
            }
        }
        inode.fold();
    }

    pub(super) fn size(&self, id: InodeId) -> u64 {
        self.inodes.get(&id).map_or(0, |inode| inode.now.len)
    }

    pub(super) fn read(&self, id: InodeId, position: u64, len: usize) -> Vec<u8> {
        self.inodes[&id].now.read(position, len)
    }

    // Crashes.

    /// The process ended: its handles are gone, and what was in flight happens as a whole or not.
    pub(super) fn kill(&mut self, chance: &mut Random) {
        for inode in self.inodes.values_mut() {
            inode.handles = 0;
            let writes = std::mem::take(&mut inode.writes);
            for mut write in writes {
                if write.stage == Stage::InFlight {
                    if chance.one_in(2) {
                        continue;
                    }
                    inode.now.write_whole(write.position, &write.bytes.0);
                    write.stage = Stage::Completed;
                }
                inode.writes.push(write);
            }
            inode.fold();
        }
    }

    /// The power was cut.
    pub(super) fn cut_power(&mut self, chance: &mut Random) {
        self.undo_names(chance);
        let mood = match chance.below(6) {
            0 => Mood::KeepAll,
            1 => Mood::LoseAll,
            2 => Mood::Whole,
            _ => Mood::Torn,
        };
        for inode in self.inodes.values_mut() {
            inode.handles = 0;
            for write in std::mem::take(&mut inode.writes) {
                let mood = if write.stage == Stage::Durable { Mood::KeepAll } else { mood };
                inode.base.survive(&write, mood, chance);
            }
            inode.now = inode.base.clone();
        }
        let named: Vec<Node> = self.names.values().copied().collect();
        self.inodes.retain(|id, _| named.contains(&Node::File(*id)));
    }

    /// Undoes changes of names as chance has it, from the newest back; one that another builds on stays.
    fn undo_names(&mut self, chance: &mut Random) {
        let mood = match chance.below(4) {
            0 => Mood::KeepAll,
            1 => Mood::LoseAll,
            _ => Mood::Whole,
        };
        let mut kept: Vec<PathBuf> = Vec::new();
        for (_, change) in std::mem::take(&mut self.undoable).into_iter().rev() {
            let undone = match mood {
                Mood::KeepAll => false,
                Mood::LoseAll => true,
                Mood::Whole | Mood::Torn => chance.one_in(2),
            };
            if !undone || kept.iter().any(|path| change.touches(path)) {
                kept.extend(change.paths().map(Path::to_owned));
                continue;
            }
            match change {
                NameChange::Create { path } => drop(self.names.remove(&path)),
                NameChange::Remove { path, node } => drop(self.names.insert(path, node)),
                NameChange::Rename { from, to, node, replaced } => {
                    self.names.remove(&to);
                    self.names.insert(from, node);
                    self.names.extend(replaced.map(|node| (to, node)));
                }
            }
        }
    }

    // For tests.

    fn inode_of(&self, path: &Path) -> Option<InodeId> {
        match self.names.get(path)? {
            Node::File(id) => Some(*id),
            Node::Directory => None,
        }
    }

    pub(super) fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let content = &self.inodes[&self.inode_of(path)?].now;
        Some(content.read(0, usize::try_from(content.len).expect("files fit memory")))
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        let files = self.names.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn corrupt(&mut self, path: &Path, position: u64, xor: u8) {
        let id = self.inode_of(path).unwrap_or_else(|| panic!("{} is no file", path.display()));
        let inode = self.inodes.get_mut(&id).expect("names lead to files");
        assert!(position < inode.now.len, "{} has no byte {position}", path.display());
        assert!(inode.writes.is_empty(), "{} has writes that are not durable", path.display());
        let start = position / BLOCK as u64 * BLOCK as u64;
        let mut block = inode.now.read(start, BLOCK);
        block.resize(BLOCK, 0);
        block[usize::try_from(position - start).expect("within a block")] ^= xor;
        let len = inode.now.len;
        for content in [&mut inode.now, &mut inode.base] {
            content.write_whole(start, &block);
            content.len = len;
        }
    }
}

impl NameChange {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        let (one, other) = match self {
            NameChange::Create { path } | NameChange::Remove { path, .. } => (path, None),
            NameChange::Rename { from, to, .. } => (from, Some(to)),
        };
        [Some(one), other].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Whether it can only stay or go together with a change of `path`: the same path, one above or one below.
    fn touches(&self, path: &Path) -> bool {
        self.paths().any(|own| own.starts_with(path) || path.starts_with(own))
    }

    fn is_in(&self, directory: &Path) -> bool {
        self.paths().any(|path| path.parent() == Some(directory))
    }
}

impl Inode {
    /// Takes leading durable writes into the base.
    fn fold(&mut self) {
        let durable = self.writes.iter().take_while(|write| write.stage == Stage::Durable).count();
        for write in self.writes.drain(..durable) {
            self.base.write_whole(write.position, &write.bytes.0);
        }
    }
}

/// A file's bytes. A block that is missing is zero.
#[derive(Clone, Default)]
struct Content {
    len: u64,
    blocks: BTreeMap<u64, Rc<[u8]>>,
}

static ZEROES: [u8; BLOCK] = [0; BLOCK];

impl Content {
    fn block(&self, index: u64) -> &[u8] {
        self.blocks.get(&index).map_or(&ZEROES, |block| block)
    }

    /// Writes all of it; position and length are whole blocks.
    fn write_whole(&mut self, position: u64, bytes: &[u8]) {
        for (index, new) in (position / BLOCK as u64..).zip(bytes.chunks(BLOCK)) {
            match new == ZEROES {
                true => self.blocks.remove(&index),
                false => self.blocks.insert(index, new.into()),
            };
        }
        self.len = self.len.max(position + bytes.len() as u64);
    }

    /// Writes the sectors that `keeps` names by their place in `bytes`; position and length are whole blocks.
    fn write(&mut self, position: u64, bytes: &[u8], mut keeps: impl FnMut(usize) -> bool) {
        for (at, new) in bytes.chunks(BLOCK).enumerate() {
            let index = position / BLOCK as u64 + at as u64;
            let mut block = self.block(index).to_vec();
            for sector in (0..BLOCK).step_by(SECTOR) {
                if keeps((at * BLOCK + sector) / SECTOR) {
                    block[sector..sector + SECTOR].copy_from_slice(&new[sector..sector + SECTOR]);
                    self.len = self.len.max((index + 1) * BLOCK as u64);
                }
            }
            match block == ZEROES {
                true => self.blocks.remove(&index),
                false => self.blocks.insert(index, block.into()),
            };
        }
    }

    fn read(&self, position: u64, len: usize) -> Vec<u8> {
        let end = self.len.min(position + len as u64);
        let mut out = Vec::new();
        let mut at = position;
        while at < end {
            let start = at / BLOCK as u64 * BLOCK as u64;
            let stop = end.min(start + BLOCK as u64);
            let within = |position: u64| usize::try_from(position - start).expect("within a block");
            out.extend_from_slice(&self.block(at / BLOCK as u64)[within(at)..within(stop)]);
            at = stop;
        }
        out
    }

    /// Applies a write as far as a power cut lets it come.
    fn survive(&mut self, write: &Write, mood: Mood, chance: &mut Random) {
        let (keep, torn) = match mood {
            Mood::KeepAll => (true, false),
            Mood::LoseAll => (false, false),
            Mood::Whole => (chance.one_in(2), false),
            Mood::Torn => (chance.one_in(3), chance.one_in(2)),
        };
        let before = self.len;
        if keep || torn {
            self.write(write.position, &write.bytes.0, |_| keep || chance.one_in(2));
        }
        let end = write.position + write.bytes.0.len() as u64;
        // The length is metadata of its own: it may have got there without the bytes, and these are zeroes then; or
        // not, and they are cut off.
        if !keep && end > before && matches!(mood, Mood::Torn) {
            self.set_len(align_down(chance.between(before, end + 1)));
        }
    }

    /// Cuts off or lengthens to whole blocks.
    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.blocks.split_off(&(len / BLOCK as u64));
    }
}
