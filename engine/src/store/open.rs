//! Opening a store: the manifest says what segments hold, the shared log what came after; together they are the
//! partitions as they were.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashSet},
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use futures_util::future::try_join_all;

use super::{
    Store, StoreOptions,
    append::producer_batch,
    cache::Cache,
    compactor::Compactor,
    extend,
    fetch_memory::FetchMemory,
    keeper::Keeper,
    partition_dir,
    segment_files::SegmentFiles,
    wal_files::{self, Making, WalFile, WalFileId, WalFiles},
    writer::Flight,
};
use crate::{
    api::TopicPartition,
    batch::batches,
    chunk::Memory,
    config::TopicConfig,
    io::{BLOCK, Buffer, File, IO_BYTES_MAX, Io, Open, Share},
    journal::{self, Journal},
    manifest::{self, Manifest, PartitionState},
    partition::{Extent, Partition, PartitionCell, Slot},
    segment::SegmentName,
    signal::Signal,
    stats::Counters,
    wal::{
        group::Groups,
        replay::{self, LiveRun, Replay},
        scan::{self, Chain},
    },
};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
}

impl OpenError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl std::fmt::Display) -> OpenError {
        OpenError::Damaged { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// The partitions that a shard owns, with their settings.
pub(crate) type Known = BTreeMap<TopicPartition, Rc<TopicConfig>>;

impl<I: Io> Store<I> {
    /// Opens a shard's part of the data directory and starts its tasks.
    pub(crate) async fn open(io: I, options: StoreOptions, known: &Known) -> Result<Rc<Self>, OpenError> {
        refuse_to_miss_manifest(&io, &options, known).await?;
        let manifest = read_manifest(&io, &options.manifest_path()).await?;
        let wal_dir = options.wal_dir();
        io.create_dir(&wal_dir).await.map_err(OpenError::io(&wal_dir))?;
        let (ids, chains) = read_chains(&io, &wal_dir).await?;
        let (manifest, replay) = follow(&io, &options, manifest, known, &chains).await?;
        let mut run_ends = replay.run_ends.clone();
        if options.run > 1 {
            // Every run before this one has ended, also if nothing of it is left now.
            run_ends.entry(options.run - 1).or_insert(0);
        }
        let partitions = build(&io, known, &manifest);
        let states = partitions.iter().map(|(id, cell)| (*id, cell.borrow().state()));
        let payloads = manifest::encode_all(&run_ends, states);
        let path = options.manifest_path();
        let journal = Journal::create(io.clone(), path.clone(), &payloads).await.map_err(OpenError::io(&path))?;
        let next_id = ids.iter().map(|file| file.id.0 + 1).max().unwrap_or(1);
        let wal = WalFiles::new(io.clone(), wal_dir, options.wal_file_bytes(), options.wal_file_count(), next_id);
        let store = Rc::new(Self {
            segments: SegmentFiles::new(io.clone(), options.data_dir.clone()),
            partitions: RefCell::new(partitions),
            groups: RefCell::new(Groups::new()),
            flight: RefCell::new(Flight::new()),
            wal: RefCell::new(wal),
            cache: RefCell::new(Cache::new(options.cache_bytes)),
            keeper: Keeper::new(journal, run_ends),
            compactor: Compactor::default(),
            fetch_memory: FetchMemory::new(options.fetch_bytes),
            pump: Signal::default(),
            maker: Signal::default(),
            maker_ended: Rc::default(),
            counters: Counters::default(),
            failed: RefCell::new(None),
            unreadable: RefCell::default(),
            full: Cell::new(false),
            unlooked_bytes: Cell::new(0),
            live_bytes: Cell::new(0),
            starved: Cell::new(false),
            standing: Cell::new(false),
            stopped: Cell::new(false),
            io,
            options,
        });
        store.load_live(&ids, &replay).await?;
        store.check_space();
        store.start_tasks();
        Ok(store)
    }

    fn start_tasks(self: &Rc<Self>) {
        let store = self.clone();
        self.io.spawn(Share::Serving, self.clone().run_pump());
        self.io.spawn(Share::Background, self.clone().run_keeper());
        self.io.spawn(Share::Background, async move {
            store.clone().run_maker().await;
            store.maker_ended.set(());
        });
        self.maker.notify();
        self.keeper.notify();
    }

    /// Brings the runs that live in the shared log only back to memory, and their files back to use.
    async fn load_live(&self, ids: &[FoundFile], replay: &Replay) -> Result<(), OpenError> {
        // Runs by the position of their group, by file.
        type Runs<'a> = BTreeMap<u64, Vec<(TopicPartition, &'a LiveRun)>>;
        let mut by_file: BTreeMap<usize, Runs<'_>> = BTreeMap::new();
        for (id, runs) in &replay.live {
            for run in runs {
                by_file.entry(run.file).or_default().entry(run.group).or_default().push((*id, run));
            }
        }
        for at in &replay.order {
            let found = &ids[*at];
            let path = wal_files::path_of(&self.options.wal_dir(), found.id);
            let groups = by_file.remove(at).unwrap_or_default();
            let file = wal_files::open(&self.io, &self.options.wal_dir(), found.id, found.bytes).await;
            let file = file.map_err(OpenError::io(&path))?;
            let mut live = Vec::new();
            let bytes = match groups.is_empty() {
                true => Vec::new(),
                false => read_all(&self.io, &path).await.map_err(OpenError::io(&path))?,
            };
            for (group, runs) in groups {
                self.load_group(found.id, &bytes, group, &runs);
                live.extend(runs.iter().filter_map(|(id, _)| self.partition(*id).ok()));
            }
            self.wal.borrow_mut().adopt(file, live);
        }
        for cell in self.partitions.borrow().values() {
            cell.borrow_mut().recovered();
            self.keeper.grown(cell);
        }
        Ok(())
    }

    fn load_group(&self, wal: WalFileId, file: &[u8], group: u64, runs: &[(TopicPartition, &LiveRun)]) {
        let begin = usize::try_from(group).expect("a position in a file that was read");
        let memory: Vec<u8> =
            runs.iter().flat_map(|(_, run)| &file[begin + run.at..begin + run.at + run.len]).copied().collect();
        let size = memory.len();
        let memory: Rc<dyn Memory> = Rc::new(memory);
        let slot = Rc::new(Slot { bytes: RefCell::new(Some(memory.clone())), wal, live: Cell::new(runs.len()) });
        let mut at = 0;
        let mut cells = Vec::new();
        for (id, run) in runs {
            let cell = self.partition(*id).expect("only known partitions are replayed");
            let mut partition = cell.borrow_mut();
            for (info, _) in batches(&memory.bytes()[at..at + run.len]).flatten() {
                if info.producer_id >= 0 {
                    let batch = producer_batch(&info, info.base_offset, info.max_timestamp);
                    partition.producers.note(batch, info.max_timestamp);
                }
            }
            partition.push_extent(Extent {
                base_offset: run.base_offset,
                end_offset: run.end_offset,
                at: u32::try_from(at).expect("groups are bounded"),
                len: u32::try_from(run.len).expect("groups are bounded"),
                slot: slot.clone(),
            });
            drop(partition);
            at += run.len;
            self.live_bytes.set(self.live_bytes.get() + run.len);
            cells.push((cell, run.end_offset));
        }
        self.cache.borrow_mut().insert(slot, size, cells);
    }

    async fn wipe(&self, file: &WalFile<I>) -> io::Result<()> {
        let mut zeroes = self.io.buffer(BLOCK);
        zeroes.bytes_mut().fill(0);
        file.durable.write(Rc::new(zeroes), 0).await
    }

    async fn make(&self, making: Making<I>) -> Option<WalFile<I>> {
        let made = making.make().await;
        if let Err(error) = &made {
            tracing::warn!(shard = self.options.shard, "cannot make a file for the shared log: {error}");
            self.full.set(true);
        }
        made.ok()
    }

    /// Wipes spent files of the shared log and zero-fills new ones, so that the pump always finds one.
    async fn run_maker(self: Rc<Self>) {
        loop {
            self.maker.wait().await;
            if self.stopped.get() {
                return;
            }
            loop {
                let spent = self.wal.borrow_mut().next_to_wipe();
                let Some(file) = spent else { break };
                if let Err(error) = self.wipe(&file).await {
                    return self.fail("wiping a file of the shared log failed", &error);
                }
                self.wal.borrow_mut().wiped(file);
                self.pump.notify();
                self.keeper.notify(); // it may have to be removed
            }
            loop {
                if self.stopped.get() {
                    return;
                }
                let Some(making) = self.wal.borrow_mut().wants_file() else {
                    break;
                };
                // It is owed from here on, so that shards that look at the same time see each other.
                let made = match self.full.get() || self.room().is_none() {
                    true => None,
                    false => self.make(making).await,
                };
                let is_made = made.is_some();
                self.wal.borrow_mut().made(made);
                if !is_made {
                    self.judge_space();
                    break; // no try before check_space, which notifies: what fails now would fail again at once
                }
                self.pump.notify();
            }
        }
    }
}

/// A manifest is made before the first file of the shared log and the first segment: if there are some but no manifest,
/// it is lost, and they would be written over.
async fn refuse_to_miss_manifest<I: Io>(io: &I, options: &StoreOptions, known: &Known) -> Result<(), OpenError> {
    let path = options.manifest_path();
    let names = io.list(&options.data_dir).await.map_err(OpenError::io(&options.data_dir))?;
    if path.file_name().is_some_and(|own| names.iter().any(|name| own == name.as_str())) {
        return Ok(());
    }
    let wal_dir = options.wal_dir();
    let missing =
        |dir: &Path| OpenError::damaged(&path, format!("it is missing, but there are files in {}", dir.display()));
    let names = io.list(&wal_dir).await.map_err(OpenError::io(&wal_dir))?;
    if names.iter().any(|name| wal_files::id_of(name).is_some()) {
        return Err(missing(&wal_dir));
    }
    for id in known.keys() {
        let dir = partition_dir(&options.data_dir, *id);
        let names = io.list(&dir).await.map_err(OpenError::io(&dir))?;
        if names.iter().any(|name| SegmentName::of_file(name).is_some()) {
            return Err(missing(&dir));
        }
    }
    Ok(())
}

/// Replays the shared log; a group whose fat runs are not whole ends its run.
async fn follow<I: Io>(
    io: &I,
    options: &StoreOptions,
    manifest: Manifest,
    known: &Known,
    chains: &[Chain],
) -> Result<(Manifest, Replay), OpenError> {
    let mut torn = HashSet::new();
    loop {
        let replayed = replay::replay(&manifest, |id| known.contains_key(&id), chains, &torn);
        let replay = replayed.map_err(|error| OpenError::damaged(&options.wal_dir(), error))?;
        let mut extended = manifest.clone();
        match extend::extend(io, &options.data_dir, &mut extended, &replay.pointers).await? {
            Some(group) => drop(torn.insert(group)),
            None => return Ok((extended, replay)),
        }
    }
}

fn build<I: Io>(_io: &I, known: &Known, manifest: &Manifest) -> BTreeMap<TopicPartition, Rc<PartitionCell>> {
    let empty = PartitionState::default();
    let restore = |(id, config): (&TopicPartition, &Rc<TopicConfig>)| {
        let state = manifest.partitions.get(id).unwrap_or(&empty);
        let partition = Partition::restore(*id, config.clone(), state);
        (*id, Rc::new(RefCell::new(partition)))
    };
    known.iter().map(restore).collect()
}

/// Reads a manifest; a missing one is empty.
pub(crate) async fn read_manifest<I: Io>(io: &I, path: &Path) -> Result<Manifest, OpenError> {
    let mut manifest = Manifest::default();
    let bytes = match read_all(io, path).await {
        Ok(bytes) => bytes,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(manifest),
        Err(error) => return Err(OpenError::io(path)(error)),
    };
    for page in journal::pages(&bytes).map_err(|error| OpenError::damaged(path, error))? {
        let records = journal::records(page).ok_or_else(|| OpenError::damaged(path, "a page of nonsense"))?;
        for record in records {
            let decoded = manifest::decode(record);
            let (id, record) = decoded.ok_or_else(|| OpenError::damaged(path, "a record of an unknown kind"))?;
            manifest.apply(id, record);
        }
    }
    Ok(manifest)
}

/// A file of the shared log as it was found.
pub(crate) struct FoundFile {
    id: WalFileId,
    bytes: u64,
}

/// Reads all files of the shared log, one at a time, and keeps what is known of their groups.
async fn read_chains<I: Io>(io: &I, wal_dir: &Path) -> Result<(Vec<FoundFile>, Vec<Chain>), OpenError> {
    let names = io.list(wal_dir).await.map_err(OpenError::io(wal_dir))?;
    let (mut files, mut chains) = (Vec::new(), Vec::new());
    for name in names {
        let path = wal_dir.join(&name);
        let Some(id) = wal_files::id_of(&name) else {
            io.remove(&path).await.map_err(OpenError::io(&path))?; // half made by a former run
            continue;
        };
        let bytes = read_all(io, &path).await.map_err(OpenError::io(&path))?;
        let chain = scan::chain(&bytes);
        if !chain.groups.is_empty() {
            flush(io, &path).await.map_err(OpenError::io(&path))?;
        }
        chains.push(chain);
        files.push(FoundFile { id, bytes: bytes.len() as u64 });
    }
    Ok((files, chains))
}

/// What a killed process wrote may still be lost to a power cut. It must not, once it counts as part of the log: what
/// comes after it will be acknowledged.
async fn flush<I: Io>(io: &I, path: &Path) -> io::Result<()> {
    let file = io.open(path, Open::Existing).await?;
    file.flush().await?;
    file.close().await
}

/// Reads a whole file, some pieces side by side.
pub(crate) async fn read_all<I: Io>(io: &I, path: &Path) -> io::Result<Vec<u8>> {
    const SIDE_BY_SIDE: u64 = 4;
    let file = io.open(path, Open::Read).await?;
    let mut bytes = Vec::new();
    loop {
        let begin = bytes.len() as u64;
        let pieces = (0..SIDE_BY_SIDE).map(|at| file.read(begin + at * IO_BYTES_MAX as u64, IO_BYTES_MAX));
        for piece in try_join_all(pieces).await? {
            bytes.extend_from_slice(piece.bytes());
        }
        if bytes.len() as u64 != begin + SIDE_BY_SIDE * IO_BYTES_MAX as u64 {
            break;
        }
    }
    file.close().await?;
    Ok(bytes)
}
