//! Starts and stops a node: one executor thread per shard, and a watchdog beside them.
//!
//! Shard 0 reads the catalog and, when the number of shards changed, lays partitions out anew; then every shard opens
//! its store; when all have, all serve. At the end all stop serving before the first one closes its store.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    future::Future,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};

pub use crate::{
    lock::lock_holder,
    start::{LockHolder, NodeOptions, StartError},
};

use crate::{
    boot::{self, Booted},
    config::{self, TopicConfig},
    engine::{Engine, EngineState, owner},
    format::catalog::REPLICATION,
    io::{Io, Share},
    lock::DataLock,
    mail::{Mail, PostOffice},
    metadata::{CatalogFile, Topic, Topics},
    store::{Known, Left, Owed, Store, StoreOptions},
    vigil::keep_vigil,
    vitals::ShardVitals,
};

/// Most shards of a node.
pub const SHARDS_MAX: usize = 1024;

/// Least memory of a shard: a large group and what is read beside it.
pub const SHARD_MEMORY_BYTES_MIN: usize = 8 << 20;

/// Asks a node to stop, from any thread. Clones share it.
#[derive(Clone, Default)]
pub struct Stopper(Arc<StopState>);

#[derive(Default)]
struct StopState {
    asked: AtomicBool,
    office: Mutex<Option<PostOffice>>,
}

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stopper(asked: {})", self.0.asked.load(Ordering::Acquire))
    }
}

impl Stopper {
    /// Asks.
    pub fn stop(&self) {
        self.0.asked.store(true, Ordering::Release);
        if let Some(office) = &*self.0.office.lock().expect("no panic while locked") {
            office.stop();
        }
    }

    /// What the shards said of themselves last, in their order; none before all are open. Does not depend on any of
    /// them.
    pub fn vitals(&self) -> Vec<ShardVitals> {
        let office = self.0.office.lock().expect("no panic while locked");
        office.as_ref().map(PostOffice::vitals).unwrap_or_default()
    }

    fn connect(&self, office: &PostOffice) {
        self.0.office.lock().expect("no panic while locked").replace(office.clone());
        if self.0.asked.load(Ordering::Acquire) {
            office.stop();
        }
    }
}

/// What the threads of a node share while they start and stop.
#[derive(Clone)]
struct Together {
    office: PostOffice,
    lock: Arc<DataLock>,
    options: Arc<NodeOptions>,
    /// Shards that have stopped serving.
    rested: Arc<AtomicUsize>,
    owed: Owed,
}

/// What a shard's thread reports: it booted (shard 0), it opened its store, or why not.
enum Report {
    Booted(Box<Booted>),
    Opened,
    Failed(StartError),
}

/// Runs a node until it was stopped: recovers the data, starts `shards` threads, runs `serve` on each, and once all
/// have returned brings everything to rest and closes it. Blocks the calling thread.
pub fn run<F, Fut>(options: NodeOptions, stopper: Stopper, serve: F) -> Result<(), StartError>
where
    F: Fn(Engine) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    check(&options)?;
    let lock = Arc::new(DataLock::take(&options.data_dir, || stopper.0.asked.load(Ordering::Acquire))?);
    boot::check_direct_io(&lock)?;
    let office = PostOffice::new(options.shards);
    let together = Together {
        office: office.clone(),
        lock: lock.clone(),
        owed: Owed::new(options.shards, options.wal_bytes),
        options: Arc::new(options),
        rested: Arc::default(),
    };
    let ended = Arc::new(AtomicBool::new(false));
    let watchdog = {
        let (office, ended) = (office.clone(), ended.clone());
        spawn_named("watchdog", move || office.watch(&ended))?
    };
    let result = run_shards(&together, &stopper, &serve);
    ended.store(true, Ordering::Release);
    watchdog.join().map_err(|_| StartError::Options("the watchdog thread panicked".into()))?;
    if result.is_ok() {
        lock.at_rest();
    }
    result
}

fn run_shards<F, Fut>(together: &Together, stopper: &Stopper, serve: &F) -> Result<(), StartError>
where
    F: Fn(Engine) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let (reports, reported) = mpsc::channel();
    let mut threads = Vec::new();
    let mut gates = Vec::new();
    let mut start = |index: usize, booted: Option<Box<Booted>>| {
        let (gate, opened) = mpsc::channel::<()>();
        gates.push(gate);
        let (together, serve, reports) = (together.clone(), serve.clone(), reports.clone());
        threads.push(spawn_named(&format!("shard-{index}"), move || {
            run_shard(index, &together, booted, &reports, opened, serve);
        })?);
        Ok::<(), StartError>(())
    };
    start(0, None)?;
    let mut failed = None;
    let mut awaited = 1;
    while awaited > 0 {
        match reported.recv() {
            Ok(Report::Booted(booted)) => {
                for index in 1..together.options.shards {
                    start(index, Some(booted.clone()))?;
                    awaited += 1;
                }
            }
            Ok(Report::Opened) => awaited -= 1,
            Ok(Report::Failed(error)) => {
                failed.get_or_insert(error);
                awaited -= 1;
            }
            Err(_) => break,
        }
    }
    if failed.is_none() {
        stopper.connect(&together.office);
        for gate in &gates {
            let _a_thread_that_panicked_is_seen_below = gate.send(());
        }
    }
    drop(gates); // without a go, the threads end
    for thread in threads {
        if thread.join().is_err() {
            failed.get_or_insert(StartError::Options("a shard's thread panicked".into()));
        }
    }
    failed.map_or(Ok(()), Err)
}

fn spawn_named(name: &str, body: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, StartError> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(body).map_err(|error| StartError::io("starting a thread", error))
}

fn check(options: &NodeOptions) -> Result<(), StartError> {
    if !(1..=SHARDS_MAX).contains(&options.shards) {
        return Err(StartError::Options(format!("shards must be in 1..={SHARDS_MAX}, not {}", options.shards)));
    }
    let least = options.shards * SHARD_MEMORY_BYTES_MIN;
    if options.memory_bytes < least {
        let text = format!("{} shards need {} MiB of memory at least", options.shards, least >> 20);
        return Err(StartError::Options(text));
    }
    TopicConfig::parse(&options.topic_defaults, &BTreeMap::new()).map_err(StartError::Options)?;
    Ok(())
}

/// A shard's thread.
fn run_shard<F, Fut>(
    index: usize,
    together: &Together,
    booted: Option<Box<Booted>>,
    reports: &mpsc::Sender<Report>,
    opened: mpsc::Receiver<()>,
    serve: F,
) where
    F: Fn(Engine) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let cpu = boot::cpus().get(index).copied().filter(|_| together.options.pin);
    let executor = match executor(&together.lock, &format!("shard-{index}"), cpu) {
        Ok(executor) => executor,
        Err(error) => {
            return drop(reports.send(Report::Failed(error)));
        }
    };
    executor.run(async move {
        match open(index, together, booted, reports).await {
            Ok(engine) => {
                // The receiver is asked on this thread: until all shards are open nobody needs this executor.
                drop(reports.send(Report::Opened));
                if opened.recv().is_ok() {
                    live(engine, together, serve).await;
                }
            }
            Err(error) => drop(reports.send(Report::Failed(error))),
        }
    });
}

/// The executor of a shard's thread, whose rings keep the lock of the data directory.
pub(crate) fn executor(lock: &DataLock, name: &str, cpu: Option<usize>) -> Result<LocalExecutor, StartError> {
    let make = || {
        LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
            .name(name)
            .io_memory(IO_MEMORY_BYTES)
            .ring_depth(RING_DEPTH)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(BLOCKING_THREADS))
            .make()
            .map_err(|error| StartError::NoUring(error.to_string()))
    };
    lock.keep_with_rings_of(make)
}

/// Registered buffers of glommio, per executor; small because large buffers come from the allocator. Three times this
/// is locked per shard.
pub const IO_MEMORY_BYTES: usize = 512 << 10;
const RING_DEPTH: usize = 256;

/// Threads beside a shard, on any CPU: one for calls that block, and one for long work (`Io::beside`), of which there is
/// one piece at a time.
const BLOCKING_THREADS: usize = 2;

async fn open(
    index: usize,
    together: &Together,
    booted: Option<Box<Booted>>,
    reports: &mpsc::Sender<Report>,
) -> Result<Engine, StartError> {
    let options = &together.options;
    let io = together.lock.disk().await?;
    let (booted, catalog) = match booted {
        Some(booted) => (booted, None),
        None => {
            let (booted, journal) = boot::boot(&io, options).await?;
            let booted = Box::new(booted);
            drop(reports.send(Report::Booted(booted.clone())));
            let catalog = CatalogFile::new(journal, booted.catalog.clone());
            (booted, Some(catalog))
        }
    };
    let defaults = topic_defaults(options, &booted);
    let mut topics = Topics::default();
    let (mut known, mut elsewhere, mut placements) = (Known::new(), Known::new(), HashMap::new());
    for (id, stored) in &booted.catalog.topics {
        // A default that became stricter must not keep a node from starting.
        let topic = Topic::tolerant(*id, stored.clone(), &defaults);
        let topic = Rc::new(topic.map_err(StartError::Options)?);
        let own = booted.catalog.partitions_here(*id).filter(|id| owner(*id, options.shards) == index);
        known.extend(own.map(|id| (id, topic.config.clone())));
        let others = booted.catalog.partitions_elsewhere(*id).filter(|id| owner(*id, options.shards) == index);
        elsewhere.extend(others.map(|id| (id, topic.config.clone())));
        let has_cluster = booted.catalog.features.contains(REPLICATION);
        if let Some(placement) = booted.catalog.placements.get(id).filter(|_| has_cluster) {
            placements.insert(*id, Rc::new(placement.clone()));
        }
        topics.put(topic);
    }
    let store_options =
        StoreOptions { elsewhere: Rc::new(elsewhere), ..store_options(options, index, &booted, together.owed.clone()) };
    let opened = Store::open(io.clone(), store_options, &known).await;
    let store = opened.map_err(|error| StartError::of_open(error, &booted.catalog))?;
    if booted.catalog.features.contains(crate::format::transactions::FEATURE) {
        store.use_transactions();
    }
    let shard = EngineState {
        mail: Mail::new(together.office.clone(), index),
        index,
        store,
        io,
        topics: Rc::new(topics).into(),
        placements: placements.into(),
        started_defaults: options.topic_defaults.clone(),
        defaults: Rc::new(defaults).into(),
        settings: Rc::new(booted.catalog.settings.clone()).into(),
        cluster_id: booted.catalog.cluster_id,
        node_id: booted.catalog.node_id,
        data_dir: options.data_dir.clone(),
        catalog,
        attached: HashMap::new().into(),
        attaching: RefCell::default(),
        stopping: Rc::default(),
        replies: HashMap::new().into(),
        next_id: 0.into(),
        removals: HashMap::new().into(),
        watched: HashMap::new().into(),
        requests_stalled: Cell::new(false),
    };
    Ok(Engine(Rc::new(shard)))
}

/// What topics follow: the dynamic settings over what the node was started with, unless they no longer go together.
fn topic_defaults(options: &NodeOptions, booted: &Booted) -> BTreeMap<String, String> {
    let defaults = config::topic_defaults(&options.topic_defaults, &booted.catalog.settings);
    match TopicConfig::parse(&defaults, &BTreeMap::new()) {
        Ok(_) => defaults,
        Err(reason) => {
            tracing::warn!("dynamic settings: {reason}; topics follow those that the node was started with");
            options.topic_defaults.clone()
        }
    }
}

/// A shard's part of the node's memory: most of it caches the tail, a quarter holds records on their way to clients, a small
/// part the keys of a partition that is being compacted.
fn store_options(options: &NodeOptions, index: usize, booted: &Booted, owed: Owed) -> StoreOptions {
    let memory = options.memory_bytes / options.shards;
    let compact_bytes = (memory / 8).min(COMPACT_BYTES_MAX);
    StoreOptions {
        data_dir: options.data_dir.clone(),
        shard: u32::try_from(index).expect("shards are bounded"),
        generation: booted.catalog.generation,
        run: booted.catalog.run,
        cache_bytes: memory / 4 * 3 - compact_bytes,
        fetch_bytes: memory / 4,
        compact_bytes,
        wal_bytes: options.wal_bytes,
        reserve_bytes: options.reserve_bytes,
        owed,
        replicated: booted.catalog.replicated_here().into(),
        elsewhere: Rc::default(),
    }
}

/// Keys of a partition that is being compacted: 2.5 million. A partition with more takes several passes.
const COMPACT_BYTES_MAX: usize = 64 << 20;

/// A shard from the moment all are open to its end.
async fn live<F, Fut>(engine: Engine, together: &Together, serve: F)
where
    F: Fn(Engine) -> Fut,
    Fut: Future<Output = ()>,
{
    glommio::spawn_local(engine.0.mail.clone().receive(engine.clone())).detach();
    let io = engine.0.io.clone();
    engine.0.store.check_space_anew();
    io.spawn(Share::Serving, keep_vigil(engine.clone()));
    io.spawn(Share::Background, look_after(engine.clone()));
    io.spawn(Share::Background, clean(engine.clone(), together.options.clone()));
    serve(engine.clone()).await;
    // A shard whose serving ended takes the node with it.
    together.office.stop();
    together.rested.fetch_add(1, Ordering::AcqRel);
    while together.rested.load(Ordering::Acquire) < together.options.shards {
        io.sleep(Duration::from_millis(1)).await;
    }
    engine.0.store.close().await;
    let left = engine.0.store.left();
    if left != Left::default() {
        let Left { bytes, partitions } = left;
        tracing::warn!(
            shard = engine.shard(),
            "{bytes} bytes of {partitions} partitions stay in the write-ahead log; the next start replays them"
        );
    }
    together.rested.fetch_add(1, Ordering::AcqRel);
    while together.rested.load(Ordering::Acquire) < 2 * together.options.shards {
        io.sleep(Duration::from_millis(1)).await; // letters of slower shards may still need this one
    }
    io.rest().await;
}

const TICK: Duration = Duration::from_millis(config::WRITTEN_FLUSH_MS.unsigned_abs());

/// Looks at the disk's space and flushes what was only written, every second. Also while the shard comes to rest: what
/// was taken may wait for that.
async fn look_after(engine: Engine) {
    let store = &engine.0.store;
    loop {
        engine.0.io.sleep(TICK).await;
        if store.is_closed() {
            return;
        }
        store.check_space();
        if store.has_unflushed() && store.flush_written().await.is_err() {
            return; // the log is sealed, and said so
        }
    }
}

/// Retention and compaction, each at its own pace.
async fn clean(engine: Engine, options: Arc<NodeOptions>) {
    let store = &engine.0.store;
    let mut next_retention = engine.0.io.now_ms() + options.retention_check_ms;
    let mut last_compaction = engine.0.io.now_ms();
    while engine.0.stopping.get().is_none() {
        engine.0.io.sleep(TICK).await;
        if engine.0.io.now_ms() >= next_retention {
            store.materialise_all().await;
            let expiration_ms = dynamic_number(&engine, "producer.id.expiration.ms");
            store.retain(expiration_ms.unwrap_or(options.producer_id_expiration_ms)).await;
            next_retention = engine.0.io.now_ms() + options.retention_check_ms;
            last_compaction = i64::MIN; // segments were sealed
        }
        if engine.0.io.now_ms().saturating_sub(last_compaction) >= compaction_check_ms(&engine) {
            last_compaction = engine.0.io.now_ms();
            let store = store.clone();
            engine.0.io.spawn(Share::Background, async move { store.compact().await });
        }
    }
}

/// Pause between two looks for partitions to compact: the dynamic broker setting `log.cleaner.backoff.ms`, to the second.
fn compaction_check_ms(engine: &Engine) -> i64 {
    dynamic_number(engine, "log.cleaner.backoff.ms").unwrap_or(COMPACTION_CHECK_MS)
}

/// What that pause is unless it was changed.
pub const COMPACTION_CHECK_MS: i64 = 15_000;

fn dynamic_number(engine: &Engine, name: &str) -> Option<i64> {
    let settings = engine.0.settings.borrow();
    config::dynamic_value(&settings, name)?.trim().parse().ok()
}

/// Bytes of the files that a shared log of that size must have before a record is taken.
pub fn wal_first_bytes(wal_bytes: u64) -> u64 {
    StoreOptions::bytes_to_go_round(wal_bytes)
}
