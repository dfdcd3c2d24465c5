//! One shard's part of the log: its partitions, its shared log, its segments. The shell that runs the pure parts on a
//! disk; generic over the disk, so that the code that runs in production is the code that is tested against crashes.
//!
//! Owned by one shard, never shared. Tasks: the pump seals and writes groups (`writer`), the keeper alone changes
//! segments and the manifest (`keeper`), a recompressor gives batches another codec (`recompressor`), a maker zero-fills
//! files of the log. No `RefCell` is borrowed across an await.

mod aborted;
mod append;
mod atomic;
#[cfg(test)]
mod bound_tests;
mod cache;
mod clearing;
#[cfg(test)]
mod compact_tests;
mod compactor;
#[cfg(test)]
mod crash_tests;
mod cut;
#[cfg(test)]
mod cut_tests;
mod extend;
mod fat;
mod fetch_memory;
mod footer;
#[cfg(test)]
mod full_disk_tests;
mod headers;
mod held;
mod keeper;
mod load;
mod offsets;
mod open;
#[cfg(test)]
mod progress_tests;
mod read;
mod recompressor;
#[cfg(test)]
mod recompressor_tests;
#[cfg(test)]
mod recovery_tests;
mod removal;
mod reopen;
mod replace;
#[cfg(test)]
mod replica_tests;
mod replicate;
#[cfg(test)]
mod replicated_transaction_tests;
mod rewrite;
mod salvage;
mod segment_files;
mod space;
mod standing;
#[cfg(test)]
mod transaction_crash_tests;
#[cfg(test)]
mod transaction_tests;
mod truncate;
mod turns;
#[cfg(test)]
mod upgrade_tests;
pub(crate) mod wal_files;
mod watch;
#[cfg(test)]
mod watch_tests;
mod writer;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    rc::Rc,
};

pub(crate) use append::Taken;
pub(crate) use atomic::{all_ended, each_ended};
pub(crate) use open::{Known, OpenError};
pub use replicate::FollowerAppend;
pub(crate) use space::Owed;
pub(crate) use watch::Left;

use self::{
    cache::Cache, clearing::Clearings, compactor::Compactor, fetch_memory::FetchMemory, held::Held, keeper::Keeper,
    recompressor::Recompressor, segment_files::SegmentFiles, wal_files::WalFiles, watch::Watch, writer::Flight,
};
use crate::{
    api::{ActiveProducer, LogError, TopicPartition},
    config::TopicConfig,
    format::segment::SegmentName,
    io::Io,
    partition::{Leavings, Partition, PartitionCell, replication::Replication},
    replica_api::{LeaderLease, LogTap},
    signal::{Outcome, Signal},
    stats::{Budget, Counters, ShardStats},
    wal::{WalFileId, group::Groups},
};

/// What a store is opened with.
#[derive(Clone, Debug)]
pub(crate) struct StoreOptions {
    /// The node's data directory.
    pub(crate) data_dir: PathBuf,
    /// This shard.
    pub(crate) shard: u32,
    /// Which layout of partitions over shards this is; names the manifest.
    pub(crate) generation: u64,
    /// This start of the node, counted from 1.
    pub(crate) run: u64,
    /// Budget of the tail cache.
    pub(crate) cache_bytes: usize,
    /// Budget of records on their way to clients.
    pub(crate) fetch_bytes: usize,
    /// Budget of the map of keys while a partition is compacted.
    pub(crate) compact_bytes: usize,
    /// Size of the shared log.
    pub(crate) wal_bytes: u64,
    /// Free space below which nothing is appended.
    pub(crate) reserve_bytes: u64,
    /// What all shards of the node will take of it.
    pub(crate) owed: Owed,
    /// Partitions that are on other nodes too: who leads them is not known at a start.
    pub(crate) replicated: Rc<HashSet<TopicPartition>>,
    /// Partitions that are on other nodes only, and may have been here: what is left of them goes.
    pub(crate) elsewhere: Rc<Known>,
}

/// Files that make up the shared log.
const WAL_FILES: u64 = 8;
/// Smallest file of the shared log: the largest group and then some. Crash tests make many of them and no such groups.
const WAL_FILE_BYTES_MIN: u64 = if cfg!(test) { 2 << 20 } else { 32 << 20 };
const _: () = assert!(cfg!(test) || WAL_FILE_BYTES_MIN > crate::format::wal::GROUP_BYTES_MAX as u64);

impl StoreOptions {
    fn wal_dir(&self) -> PathBuf {
        self.data_dir.join(format!("wal-{}", self.shard))
    }

    pub(crate) fn manifest_path(&self) -> PathBuf {
        manifest_path(&self.data_dir, self.generation, self.shard)
    }

    fn wal_file_bytes(&self) -> u64 {
        wal_file_bytes(self.wal_bytes)
    }

    /// Bytes of the files without which a shared log of that size cannot go on.
    pub(crate) fn bytes_to_go_round(wal_bytes: u64) -> u64 {
        wal_file_bytes(wal_bytes) * wal_files::GOES_ROUND as u64
    }

    fn wal_file_count(&self) -> usize {
        usize::try_from(self.wal_bytes / self.wal_file_bytes()).expect("a count of files").max(3)
    }
}

fn wal_file_bytes(wal_bytes: u64) -> u64 {
    (wal_bytes / WAL_FILES).max(WAL_FILE_BYTES_MIN).next_multiple_of(crate::io::IO_BYTES_MAX as u64)
}

/// Path of a shard's manifest.
pub(crate) fn manifest_path(data_dir: &std::path::Path, generation: u64, shard: u32) -> PathBuf {
    data_dir.join(format!("manifest-{generation}-{shard}"))
}

/// Directory of the segments of all topics.
pub(crate) fn topics_dir(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("topics")
}

/// Directory of a partition's segments.
pub(crate) fn partition_dir(data_dir: &std::path::Path, id: TopicPartition) -> PathBuf {
    topics_dir(data_dir).join(id.topic.to_string()).join(id.partition.to_string())
}

/// See the module.
pub(crate) struct Store<I: Io> {
    io: I,
    options: StoreOptions,
    partitions: RefCell<BTreeMap<TopicPartition, Rc<PartitionCell>>>,
    groups: RefCell<Groups>,
    flight: RefCell<Flight<I>>,
    wal: RefCell<WalFiles<I>>,
    cache: RefCell<Cache>,
    segments: SegmentFiles<I>,
    keeper: Keeper<I>,
    compactor: Compactor,
    recompressor: Recompressor,
    /// Batches whose transactions are asked for.
    held: Held,
    clearings: Clearings,
    /// Set when segments that were given up are removed, while that is under way.
    segment_removals: RefCell<HashMap<TopicPartition, Vec<Rc<Outcome<()>>>>>,
    /// Whether the catalog says that there may be transactions.
    transactions_in_use: Cell<bool>,
    pub(crate) fetch_memory: Rc<FetchMemory>,
    pump: Signal,
    /// Called before a group is sealed: who has something for it that may still come.
    before_seal: RefCell<Vec<Rc<dyn Fn()>>>,
    maker: Signal,
    /// Set once the maker touches no file any more.
    maker_ended: Rc<Outcome<()>>,
    counters: Counters,
    /// Why the log takes no appends until a restart.
    failed: RefCell<Option<String>>,
    /// Segments that could not be read.
    unreadable: RefCell<HashSet<(TopicPartition, SegmentName)>>,
    /// Whether there is no free space above the reserve and what is owed.
    full: Cell<bool>,
    /// Bytes appended since the free space was looked at.
    unlooked_bytes: Cell<u64>,
    /// Bytes of all extents that are not materialised.
    live_bytes: Cell<usize>,
    /// Whether the pump waits for memory or for a file of the log.
    starved: Cell<bool>,
    /// Whether the pump waits for what nobody is about to do.
    standing: Cell<bool>,
    /// Whether pump and maker are to end.
    stopped: Cell<bool>,
    watch: Watch,
    /// Who hears of groups with batches of replicated partitions.
    tap: RefCell<Option<Rc<dyn LogTap>>>,
    /// Whether replicated partitions may be led now.
    lease: RefCell<Option<Rc<dyn LeaderLease>>>,
}

impl<I: Io> Store<I> {
    /// A partition of this shard.
    fn partition(&self, id: TopicPartition) -> Result<Rc<PartitionCell>, LogError> {
        self.partitions.borrow().get(&id).cloned().ok_or(LogError::UnknownPartition)
    }

    /// Adds an empty partition, or gives a known one new settings.
    pub(crate) fn put_partition(&self, id: TopicPartition, config: Rc<TopicConfig>) {
        self.put(id, config, Replication::alone);
    }

    /// The same for one that is on other nodes too: a new one is neither led nor followed before somebody says so.
    pub(crate) fn put_replicated_partition(&self, id: TopicPartition, config: Rc<TopicConfig>) {
        self.put(id, config, || Replication::undecided(0, -1));
    }

    fn put(&self, id: TopicPartition, config: Rc<TopicConfig>, replication: impl FnOnce() -> Replication) {
        let mut partitions = self.partitions.borrow_mut();
        match partitions.get(&id) {
            Some(known) => known.borrow_mut().set_config(config),
            None => {
                let new = Partition::new(id, config, replication());
                partitions.insert(id, Rc::new(RefCell::new(new)));
            }
        }
    }

    /// Forgets a partition. Its files are removed soon after: then the answer resolves.
    pub(crate) fn remove_partition(&self, id: TopicPartition) -> Option<Rc<Outcome<()>>> {
        let cell = self.partitions.borrow_mut().remove(&id)?;
        let Leavings { live, pins } = cell.borrow_mut().delete();
        self.release(id, live.iter());
        pins.into_iter().for_each(|(file, extents)| self.unpin(file, id, extents));
        self.pump.notify();
        Some(self.keeper.removed(id))
    }

    /// Extents of a partition that are not wanted any more.
    fn release<'a>(&self, id: TopicPartition, extents: impl Iterator<Item = &'a crate::partition::tail::Extent>) {
        for extent in extents {
            extent.backing.end_live();
            self.live_bytes.set(self.live_bytes.get() - extent.len as usize);
            self.unpin(extent.backing.wal(), id, 1);
        }
    }

    /// The shared log is not needed for so many extents of a partition any more. Of files that this sets free the maker
    /// hears, and by it the pump.
    fn unpin(&self, file: WalFileId, id: TopicPartition, extents: usize) {
        if self.wal.borrow_mut().release(file, id, extents) {
            self.maker.notify();
        }
    }

    /// Seals the log after an I/O error: everything in flight and to come is refused, reads go on.
    fn fail(&self, what: &str, error: &std::io::Error) {
        let text = format!("{what}: {error}");
        tracing::error!(shard = self.options.shard, "{text}; no appends are taken until a restart");
        self.failed.borrow_mut().get_or_insert_with(|| text.clone());
        let refused = Err(LogError::Storage(text));
        let waiting = self.groups.borrow_mut().take_all();
        let flying = self.flight.borrow_mut().take_all();
        for group in waiting.into_iter().chain(flying) {
            group.outcome.set(refused.clone());
        }
        self.keeper.notify(); // trims may wait for fat runs that will not end
    }

    /// Bytes of a partition on disk: segments and what is in the shared log only.
    pub(crate) fn partition_bytes(&self, id: TopicPartition) -> Option<u64> {
        Some(self.partition(id).ok()?.borrow().bytes())
    }

    /// Everything that is counted here, but for the size of the logs.
    pub(crate) fn stats(&self) -> ShardStats {
        let counters = &self.counters;
        let minute = self.minute();
        let budget = |used: usize, limit: usize| Budget { used: used as u64, limit: limit as u64 };
        let cache = self.cache.borrow();
        ShardStats {
            produced_records: counters.produced_records.count(),
            produced_bytes: counters.produced_bytes.count(),
            produced_batches: counters.produced_batches.count(),
            recompressed_batches: counters.recompressed_batches.count(),
            recompressed_bytes: counters.recompressed_bytes.count(),
            wal_groups: counters.wal_groups.count(),
            wal_bytes: counters.wal_bytes.count(),
            wal_durable_writes: counters.wal_durable_writes.borrow_mut().read(minute),
            wal_writes: counters.wal_writes.borrow_mut().read(minute),
            wal_flushes: counters.wal_flushes.borrow_mut().read(minute),
            cache: budget(cache.bytes(), cache.budget()),
            reads: budget(self.fetch_memory.used(), self.fetch_memory.budget()),
            unmaterialised_bytes: self.live_bytes.get() as u64,
            partitions: self.partitions.borrow().len() as u64,
            log_bytes: 0,
            is_full: self.full.get(),
            is_failed: self.failed.borrow().is_some(),
            stalls: self.watch.stalls(),
            is_stalled: self.watch.is_stalled(),
            oldest_group_seconds: self.watch.oldest_group().as_secs(),
        }
    }

    /// Which minute it is, for [`crate::timing::Timings`].
    fn minute(&self) -> u64 {
        self.io.elapsed().as_secs() / 60
    }

    /// Idempotent producers that a partition remembers.
    pub(crate) fn active_producers(&self, id: TopicPartition) -> Result<Vec<ActiveProducer>, LogError> {
        Ok(self.partition(id)?.borrow().producers().active())
    }

    /// Log start and high watermark of a partition.
    pub(crate) fn bounds(&self, id: TopicPartition) -> Result<(i64, i64), LogError> {
        let cell = self.partition(id)?;
        let partition = cell.borrow();
        Ok((partition.marks().log_start(), partition.marks().high_watermark()))
    }

    /// What the manifest says of every partition, once the keeper has stopped.
    pub(crate) fn states(&self) -> Vec<(TopicPartition, crate::format::manifest::PartitionState)> {
        self.partitions.borrow().iter().map(|(id, cell)| (*id, cell.borrow().state())).collect()
    }

    /// Bytes that are in the shared log only.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes.get() as u64
    }

    /// Whether something is in the shared log only.
    pub(crate) fn has_live(&self) -> bool {
        self.live_bytes.get() > 0
    }

    /// Ends of former runs in the shared log.
    pub(crate) fn run_ends(&self) -> &BTreeMap<u64, u64> {
        &self.keeper.run_ends
    }

    /// Takes no more appends, writes what was taken, brings tails to segments, ends all tasks.
    pub(crate) async fn close(&self) {
        self.stop_compactor().await;
        self.refuse_held();
        self.stop_recompressor().await;
        self.drain().await;
        self.failed.borrow_mut().get_or_insert_with(|| "the node is stopping".to_owned());
        for cell in self.partitions.borrow().values() {
            cell.borrow_mut().replication_mut().refuse(&LogError::ShuttingDown);
        }
        self.stop_keeper().await;
        self.stopped.set(true);
        self.pump.notify();
        self.maker.notify();
        // another layout may remove the log's folder next: a file made there meanwhile would be in its way
        self.maker_ended.clone().wait().await;
    }

    /// Whether [`Store::close`] has written all that it will.
    pub(crate) fn is_closed(&self) -> bool {
        self.stopped.get()
    }

    /// Ids of all partitions of this shard.
    pub(crate) fn partition_ids(&self) -> Vec<TopicPartition> {
        self.partitions.borrow().keys().copied().collect()
    }
}
