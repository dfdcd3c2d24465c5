//! Opening a store: the manifest says what segments hold, the shared log what came after; together they are the
//! partitions as they were.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashSet},
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{
    Store, StoreOptions,
    cache::Cache,
    clearing::Clearings,
    compactor::Compactor,
    extend,
    fetch_memory::FetchMemory,
    held::Held,
    keeper::Keeper,
    partition_dir,
    recompressor::Recompressor,
    segment_files::SegmentFiles,
    wal_files::{self, Making, WalFile, WalFiles},
    watch::Watch,
    writer::Flight,
};
use crate::{
    api::TopicPartition,
    config::TopicConfig,
    doubt::Doubts,
    format::{
        journal::{self, End, Journal, ReadError},
        manifest::{self, Manifest},
        segment::SegmentName,
    },
    io::{BLOCK, Buffer, File, Io, Open, Share, window::Window},
    partition::{Partition, PartitionCell, replication::Replication},
    signal::Signal,
    stats::Counters,
    wal::{
        WalFileId,
        group::Groups,
        history::History,
        replay::{self, Losses, Replay, Unknown},
        scan::{Chain, Depth, Judge, Scan},
    },
};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{}: {_0}", _0.folder.display())]
    Lost(Box<Doubts>),
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
        let (store, _) = Self::recover(io, options, known, Losses::Refused).await?;
        store.check_space();
        store.start_tasks();
        store.clear_elsewhere();
        Ok(store)
    }

    /// A store without tasks, and the files of its log in the order of what they hold.
    pub(super) async fn recover(
        io: I,
        options: StoreOptions,
        known: &Known,
        losses: Losses,
    ) -> Result<(Rc<Self>, Vec<WalFileId>), OpenError> {
        refuse_to_miss_manifest(&io, &options, known).await?;
        let manifest = read_manifest(&io, &options.manifest_path()).await?;
        // What is left of partitions that were here counts too: its end says what may be appended if they come back.
        let all: Known = options.elsewhere.iter().chain(known).map(|(id, config)| (*id, config.clone())).collect();
        let known = if options.elsewhere.is_empty() { known } else { &all };
        let wal_dir = options.wal_dir();
        io.create_dir(&wal_dir).await.map_err(OpenError::io(&wal_dir))?;
        remove_half_made(&io, &wal_dir).await?;
        let Replayed { found, manifest, replay, .. } = replay_log(&io, &options, manifest, known, losses).await?;
        let files = replay.order.iter().map(|at| found[*at].id).collect();
        let mut run_ends = replay.run_ends.clone();
        if options.run > 1 {
            // Every run before this one has ended, also if nothing of it is left now.
            run_ends.entry(options.run - 1).or_insert(0);
        }
        let partitions = build(&options, known, manifest, &replay);
        let journal = begin_manifest(&io, &options, losses, &run_ends, &partitions).await?;
        let next_id = found.iter().map(|file| file.id.0 + 1).max().unwrap_or(1);
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
            recompressor: Recompressor::default(),
            held: Held::default(),
            clearings: Clearings::default(),
            segment_removals: RefCell::default(),
            transactions_in_use: Cell::new(false),
            fetch_memory: FetchMemory::new(options.fetch_bytes),
            pump: Signal::default(),
            before_seal: RefCell::default(),
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
            watch: Watch::default(),
            tap: RefCell::default(),
            lease: RefCell::default(),
            io,
            options,
        });
        store.load_live(&found, replay).await?;
        Ok((store, files))
    }

    fn start_tasks(self: &Rc<Self>) {
        let store = self.clone();
        self.io.spawn(Share::Serving, self.clone().run_pump());
        self.io.spawn(Share::Serving, self.clone().run_recompressor());
        self.io.spawn(Share::Background, self.clone().run_keeper());
        self.io.spawn(Share::Background, async move {
            store.clone().run_maker().await;
            store.maker_ended.set(());
        });
        self.maker.notify();
        self.keeper.notify();
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
                self.watch.log_step();
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
pub(super) async fn refuse_to_miss_manifest<I: Io>(
    io: &I,
    options: &StoreOptions,
    known: &Known,
) -> Result<(), OpenError> {
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

/// Files of the shared log that a former run did not complete.
async fn remove_half_made<I: Io>(io: &I, wal_dir: &Path) -> Result<(), OpenError> {
    for name in io.list(wal_dir).await.map_err(OpenError::io(wal_dir))? {
        if wal_files::id_of(&name).is_none() {
            let path = wal_dir.join(&name);
            io.remove(&path).await.map_err(OpenError::io(&path))?;
        }
    }
    Ok(())
}

/// What was found in the shared log.
pub(super) struct Replayed {
    pub(super) found: Vec<FoundFile>,
    pub(super) chains: Vec<Chain>,
    /// The manifest with the fat runs that are in segments.
    pub(super) manifest: Manifest,
    pub(super) replay: Replay,
}

/// Replays the shared log.
pub(super) async fn replay_log<I: Io>(
    io: &I,
    options: &StoreOptions,
    manifest: Manifest,
    known: &Known,
    losses: Losses,
) -> Result<Replayed, OpenError> {
    let unknown = Unknown { manifest: &manifest, known: |id| known.contains_key(&id) };
    let depth = match losses {
        Losses::Refused => Depth::Chain,
        Losses::Suffered => Depth::Everything,
    };
    let (found, chains) = read_chains(io, &options.wal_dir(), depth, &unknown).await?;
    let mut torn = HashSet::new();
    loop {
        let Ok(replay) = replay::replay(&unknown, &chains, &torn, losses) else {
            // Who is refused shall know all of it.
            let all = Box::pin(replay_log(io, options, manifest, known, Losses::Suffered)).await?;
            return Err(OpenError::Lost(Box::new(all.doubts(options))));
        };
        if replay.steps.is_empty() {
            return Ok(Replayed { found, chains, manifest, replay });
        }
        // A group whose fat runs are not whole ends its run.
        let mut extended = manifest.clone();
        match extend::extend(io, &options.data_dir, &mut extended, &replay.steps).await? {
            Some(group) => drop(torn.insert(group)),
            None => return Ok(Replayed { found, chains, manifest: extended, replay }),
        }
    }
}

fn build(
    options: &StoreOptions,
    known: &Known,
    mut manifest: Manifest,
    replay: &Replay,
) -> BTreeMap<TopicPartition, Rc<PartitionCell>> {
    let mut restore = |(id, config): (&TopicPartition, &Rc<TopicConfig>)| {
        let is_elsewhere = options.elsewhere.contains_key(id);
        if is_elsewhere && !manifest.partitions.contains_key(id) && replay.history(*id).is_none() {
            return None;
        }
        let state = manifest.partitions.remove(id).unwrap_or_default();
        let mut history = replay.history(*id).cloned().unwrap_or_else(|| History::restore(&state));
        history.end_at(replay.end_of_tail(*id).unwrap_or(state.end_offset()));
        let replication = match is_elsewhere || options.replicated.contains(id) {
            true => Replication::undecided(
                history.shown(),
                history.epochs().newest().map_or(-1, |newest| newest.epoch.get()),
            ),
            false => Replication::alone(),
        };
        let partition = Partition::restore(*id, config.clone(), state, history, replication);
        Some((*id, Rc::new(RefCell::new(partition))))
    };
    known.iter().filter_map(&mut restore).collect()
}

/// Makes this start's manifest: a new one in place of the old one, or the old one with what it did not know, if the disk
/// has no space for a new one. What was given up cannot be said by adding.
async fn begin_manifest<I: Io>(
    io: &I,
    options: &StoreOptions,
    losses: Losses,
    run_ends: &BTreeMap<u64, u64>,
    partitions: &BTreeMap<TopicPartition, Rc<PartitionCell>>,
) -> Result<Journal<I>, OpenError> {
    let path = options.manifest_path();
    let states = || partitions.iter().map(|(id, cell)| (*id, cell.borrow().state()));
    let made = Journal::create(io.clone(), path.clone(), &manifest::encode_all(run_ends, states())).await;
    let full = match made {
        Err(full) if full.kind() == io::ErrorKind::StorageFull && losses == Losses::Refused => full,
        made => return made.map_err(OpenError::io(&path)),
    };
    let (known, end) = match read_manifest_to_its_end(io, &path).await {
        Ok((known, Some(end))) => (known, end),
        Ok((_, None)) => return Err(OpenError::io(&path)(full)),
        Err(error) => return Err(error),
    };
    let is_cut = |(id, cell): (&TopicPartition, &Rc<PartitionCell>)| {
        known.partitions.get(id).is_some_and(|before| before.cuts != cell.borrow().cuts())
    };
    if partitions.iter().any(is_cut) {
        return Err(OpenError::io(&path)(full)); // what was cut off cannot be told by what has grown
    }
    tracing::warn!(shard = options.shard, "no space for a new manifest: the old one goes on");
    let payloads = manifest::encode_since(&known, run_ends, states());
    Journal::go_on(io.clone(), path.clone(), end, &payloads).await.map_err(OpenError::io(&path))
}

/// Reads a manifest; a missing one is empty.
pub(crate) async fn read_manifest<I: Io>(io: &I, path: &Path) -> Result<Manifest, OpenError> {
    read_manifest_to_its_end(io, path).await.map(|(manifest, _)| manifest)
}

/// Reads a manifest, and says where it ends if there is one.
async fn read_manifest_to_its_end<I: Io>(io: &I, path: &Path) -> Result<(Manifest, Option<End>), OpenError> {
    let mut manifest = Manifest::default();
    let read = journal::read(io, path, |page| {
        for record in journal::records(page).ok_or("a page of nonsense")? {
            if let Some((id, record)) = manifest::decode(record).map_err(|refused| refused.to_string())? {
                manifest.apply(id, record);
            }
        }
        Ok::<(), String>(())
    });
    match read.await {
        Ok(end) => Ok((manifest, Some(end))),
        Err(ReadError::Io(missing)) if missing.kind() == io::ErrorKind::NotFound => Ok((manifest, None)),
        Err(ReadError::Io(error)) => Err(OpenError::io(path)(error)),
        Err(ReadError::Damaged(error)) => Err(OpenError::damaged(path, error)),
        Err(ReadError::Refused(reason)) => Err(OpenError::damaged(path, reason)),
    }
}

/// A file of the shared log as it was found.
pub(super) struct FoundFile {
    pub(super) id: WalFileId,
    pub(super) bytes: u64,
}

/// Reads all files of the shared log, one at a time, and keeps what counts of their groups.
async fn read_chains<I: Io, J: Judge + Copy>(
    io: &I,
    wal_dir: &Path,
    depth: Depth,
    judge: J,
) -> Result<(Vec<FoundFile>, Vec<Chain>), OpenError> {
    let names = io.list(wal_dir).await.map_err(OpenError::io(wal_dir))?;
    let (mut files, mut chains) = (Vec::new(), Vec::new());
    for id in names.iter().filter_map(|name| wal_files::id_of(name)) {
        let path = wal_files::path_of(wal_dir, id);
        let (bytes, chain) = read_chain(io, &path, depth, judge).await.map_err(OpenError::io(&path))?;
        if let Some((sequence, position)) = chain.unknown {
            let reason = format!("group {sequence} at byte {position} is whole, but of a format that is not known");
            return Err(OpenError::damaged(&path, reason));
        }
        files.push(FoundFile { id, bytes });
        chains.push(chain);
    }
    Ok((files, chains))
}

async fn read_chain<I: Io, J: Judge>(io: &I, path: &Path, depth: Depth, judge: J) -> io::Result<(u64, Chain)> {
    let file = io.open(path, Open::Existing).await?;
    let bytes = file.size().await?;
    let mut scan = Scan::new(bytes, depth, judge);
    let mut window = Window::new(&file);
    while let Some(position) = scan.wants() {
        scan.feed(position, window.at(position).await?);
    }
    let chain = scan.finish();
    if chain.begun.is_some() {
        // What a killed process wrote may still be lost to a power cut. It must not, once it counts as part of the log:
        // what comes after it will be acknowledged.
        file.flush().await?;
    }
    file.close().await?;
    Ok((bytes, chain))
}
