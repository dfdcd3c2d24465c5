//! Shards without an executor, on a disk that loses power: for models of what is built on the engine. The stores are those
//! of production; calls go straight to the owner of a partition, and whoever wants letters to take time waits before. Who
//! has a model of a log has the part of production that says who waits for what.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    api::{Acks, FetchPartition, LogError, ProducePartition, Produced, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchInfo, batches},
    config::TopicConfig,
    engine::owner,
    io::{
        Io, Share,
        sim::{Sim, SimIo},
    },
    partition::replication,
    replica::Leadership,
    signal::Outcome,
    store::{Known, Owed, Store, StoreOptions, Taken, all_ended, each_ended},
    transactions::{
        AbortedTransaction, AtomicAppended, AtomicPart, Marker, OpenTransaction, TransactionGate, TransactionalProducer,
    },
};

const WAL_BYTES: u64 = 8 << 20;
const DATA_DIR: &str = "/d";

/// A machine whose power can fail.
pub struct Machine(Sim);

impl Machine {
    /// With an empty disk.
    pub fn new(seed: u64) -> Self {
        let sim = Sim::new(seed);
        sim.run_until(sim.io().create_dir(Path::new(DATA_DIR))).expect("power is on").expect("an empty disk");
        Self(sim)
    }

    /// The power fails while the `n`-th operation from now that changes the disk is under way.
    pub fn lose_power_after(&self, n: u64) {
        self.0.crash_after(n);
    }

    /// The power fails now, and is there again.
    pub fn restart(&self) {
        self.0.restart();
    }

    /// Runs a life to its end; `None`: the power failed first.
    pub fn run<T>(&self, life: impl Future<Output = T>) -> Option<T> {
        self.0.run_until(life)
    }
}

/// Whether a partition is led or followed, and who waits for its high watermark: production's own, for models of a log.
#[derive(Debug)]
pub struct Replication(replication::Replication);

impl Replication {
    /// Neither, and nothing is known of it.
    pub fn undecided() -> Self {
        Self(replication::Replication::undecided(0, -1))
    }

    /// The epoch in which it is led.
    pub fn leads(&self) -> Option<i32> {
        self.0.leads()
    }

    /// It is about to be led or followed.
    pub fn enter(&mut self, epoch: i32) -> Result<(), LogError> {
        self.0.enter(epoch)
    }

    /// It is led, in the epoch that it entered.
    pub fn lead(&mut self, leadership: Leadership) {
        self.0.lead(leadership);
    }

    /// So many replicas are in sync. `min_in_sync`: `min.insync.replicas`.
    pub fn set_in_sync(&mut self, count: u32, min_in_sync: i32) -> Result<(), LogError> {
        self.0.set_in_sync(count, min_in_sync)
    }

    /// It has other replicas, and is led in that epoch.
    pub fn set_replicas(&mut self, epoch: i32, leadership: Leadership, min_in_sync: i32) -> Result<(), LogError> {
        self.0.set_replicas(epoch, leadership, min_in_sync)
    }

    /// Whether somebody may append who wants all replicas in sync to have it.
    pub fn check_produce(&self, min_in_sync: i32) -> Result<(), LogError> {
        self.0.check_produce(Acks::All, min_in_sync)
    }

    /// Somebody waits for the high watermark to reach an offset.
    ///
    /// # Panics
    /// If it has no other replicas.
    pub fn expect(&mut self, end: i64) -> Rc<Outcome<Result<(), LogError>>> {
        self.0.expect(end).expect("it has other replicas")
    }

    /// The high watermark is there.
    pub fn confirm(&mut self, high_watermark: i64) {
        self.0.confirm(high_watermark);
    }
}

/// The shards of one life.
pub struct Shards {
    io: SimIo,
    stores: Vec<Rc<Store<SimIo>>>,
}

/// What a fetch of committed records finds.
pub struct Stable {
    /// Whole batches.
    pub batches: Vec<(BatchInfo, Bytes)>,
    /// Transactions that were aborted and may have a batch among them.
    pub aborted: Vec<AbortedTransaction>,
    /// Up to where it is decided what is committed.
    pub end: i64,
}

impl Shards {
    /// Opens the data directory; lives are numbered.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub async fn open(machine: &Machine, life: u64, count: usize, partitions: &[TopicPartition]) -> Rc<Self> {
        let io = machine.0.io();
        let owed = Owed::new(count, WAL_BYTES);
        let mut stores = Vec::new();
        for shard in 0..count {
            let config = Rc::new(TopicConfig::parse(&BTreeMap::new(), &BTreeMap::new()).expect("defaults are legal"));
            let own = partitions.iter().filter(|partition| owner(**partition, count) == shard);
            let known: Known = own.map(|partition| (*partition, Rc::clone(&config))).collect();
            let options = StoreOptions {
                data_dir: PathBuf::from(DATA_DIR),
                shard: u32::try_from(shard).expect("a few shards"),
                generation: 1,
                run: life,
                cache_bytes: 6 << 20,
                fetch_bytes: 4 << 20,
                compact_bytes: 1 << 20,
                wal_bytes: WAL_BYTES,
                reserve_bytes: 0,
                owed: owed.clone(),
                replicated: Rc::default(),
                elsewhere: Rc::default(),
            };
            let store = Store::open(io.clone(), options, &known).await.unwrap_or_else(|error| panic!("{error}"));
            store.use_transactions();
            stores.push(store);
        }
        Rc::new(Self { io, stores })
    }

    /// The shard that owns a partition.
    pub fn owner(&self, partition: TopicPartition) -> usize {
        owner(partition, self.stores.len())
    }

    fn store(&self, partition: TopicPartition) -> &Rc<Store<SimIo>> {
        &self.stores[self.owner(partition)]
    }

    /// Runs a task beside others, until the power fails.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.io.spawn(Share::Serving, task);
    }

    /// Waits.
    pub async fn sleep(&self, time: Duration) {
        self.io.sleep(time).await;
    }

    /// Lets others run.
    pub async fn yield_now(&self) {
        self.io.yield_now().await;
    }

    /// The clock, in ms since the epoch.
    pub fn now_ms(&self) -> i64 {
        self.io.now_ms()
    }

    /// As [`Engine::set_transaction_gate`](crate::engine::Engine::set_transaction_gate), of one shard.
    pub fn set_transaction_gate(&self, shard: usize, gate: Rc<dyn TransactionGate>) {
        self.stores[shard].set_transaction_gate(gate);
    }

    /// As [`Engine::on_seal`](crate::engine::Engine::on_seal), of one shard.
    pub fn on_seal(&self, shard: usize, call: Rc<dyn Fn()>) {
        self.stores[shard].on_seal(call);
    }

    /// As [`Engine::produce_in_transaction`](crate::engine::Engine::produce_in_transaction), for one batch.
    ///
    /// # Errors
    /// As there.
    pub async fn produce(
        &self,
        part: ProducePartition,
        producer: &TransactionalProducer,
    ) -> Result<Produced, LogError> {
        safe(self.store(part.partition).append_in_transaction(part, producer, Acks::All)).await
    }

    /// As [`Engine::append_atomically`](crate::engine::Engine::append_atomically), on the shard of the first part: places
    /// are taken when this returns.
    pub fn append_atomically(&self, parts: Vec<AtomicPart>) -> impl Future<Output = AtomicAppended> + 'static {
        let taken = parts.first().map(|part| self.store(part.partition()).append_atomically(parts.clone()));
        all_ended(taken.unwrap_or_else(|| Ok(Vec::new())))
    }

    /// A coordinator of this shard's partitions appends one batch; its place is taken when this returns.
    pub fn append(&self, part: ProducePartition) -> impl Future<Output = Result<Produced, LogError>> + 'static {
        let taken = self.store(part.partition).append(part, AppendOrigin::Coordinator, Acks::All);
        async move { safe(taken).await }
    }

    /// Writes the markers of one shard; places are taken when this returns. One answer each.
    pub fn write_markers(
        &self,
        shard: usize,
        markers: Vec<Marker>,
    ) -> impl Future<Output = Vec<Result<Produced, LogError>>> + 'static {
        each_ended(self.stores[shard].append_markers(markers))
    }

    /// A coordinator lets a producer write, as [`Engine::admit`](crate::engine::Engine::admit).
    ///
    /// # Errors
    /// As there.
    pub fn admit(&self, partition: TopicPartition, producer_id: i64, producer_epoch: i16) -> Result<(), LogError> {
        self.store(partition).let_in(partition, producer_id, producer_epoch)
    }

    /// Whether a marker is the last one of its producer in its partition.
    pub fn has_marker(&self, marker: &Marker) -> bool {
        self.store(marker.partition).has_marker(marker)
    }

    /// Transactions that are open.
    pub fn open_transactions(&self) -> Vec<OpenTransaction> {
        self.stores.iter().flat_map(|store| store.open_transactions()).collect()
    }

    /// All batches of a partition, up to the high watermark.
    pub async fn all_batches(&self, partition: TopicPartition) -> Vec<(BatchInfo, Bytes)> {
        self.read(partition, ReadBound::HighWatermark).await.batches
    }

    /// What readers of committed records are given of a partition.
    pub async fn stable(&self, partition: TopicPartition) -> Stable {
        self.read(partition, ReadBound::LastStable).await
    }

    async fn read(&self, partition: TopicPartition, bound: ReadBound) -> Stable {
        /// More than a model writes to one partition.
        const BYTES_MAX: usize = 16 << 20;
        let mut stable = Stable { batches: Vec::new(), aborted: Vec::new(), end: 0 };
        loop {
            let offset = stable.batches.last().map_or(0, |(info, _): &(BatchInfo, Bytes)| info.last_offset() + 1);
            let part = FetchPartition { partition, offset, max_bytes: BYTES_MAX, leader_epoch: -1, bound };
            let read = self.store(partition).read(&part, BYTES_MAX, true).await.expect("the log is there");
            stable.end = read.last_stable_offset;
            let before = stable.batches.len();
            for chunk in read.records.chunks {
                for batch in batches(chunk.as_slice().expect("in memory")) {
                    let (info, bytes) = batch.expect("the log is whole");
                    stable.batches.push((info, Bytes::copy_from_slice(bytes)));
                }
            }
            for aborted in read.aborted.into_iter().flatten() {
                if !stable.aborted.contains(&aborted) {
                    stable.aborted.push(aborted);
                }
            }
            if stable.batches.len() == before {
                return stable;
            }
        }
    }
}

/// Resolves when a batch is as safe as it has to be.
async fn safe(taken: Taken) -> Result<Produced, LogError> {
    let (produced, wait) = taken.appended().await?;
    match wait {
        Some(wait) => wait.wait().await.map(|()| produced),
        None => Ok(produced),
    }
}
