//! The engine as one shard's caller sees it: every partition of the node, wherever it lives. A partition of this shard
//! is a direct call; one of another shard is a letter.

use std::{
    any::{Any, TypeId},
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    future::{Future, poll_fn},
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use futures_util::{
    FutureExt,
    future::{Either, join_all, select},
};
use uuid::Uuid;

use crate::{
    api::{
        AcksWithin, ActiveProducer, Fetched, FoundOffset, LogError, OffsetSpec, ProducePartition, Produced, ReadBound,
        TopicId, TopicPartition,
    },
    batch::AppendOrigin,
    format::placement::Placement,
    io::{self, direct::DirectIo},
    mail::Mail,
    metadata::CatalogFile,
    partition::waiters::Waiter,
    signal::Outcome,
    stats::ShardStats,
    store::{Store, Taken},
};

pub use crate::metadata::{Topic, Topics};

/// Somebody who waits for another shard's answer.
pub(crate) trait Reply {
    /// The answer.
    fn hear(&self, value: Box<dyn Any + Send>);
}

/// An answer to come, and the one task that waits for it.
struct Awaited<R> {
    value: Cell<Option<R>>,
    waker: Cell<Option<Waker>>,
}

impl<R: 'static> Reply for Awaited<R> {
    fn hear(&self, value: Box<dyn Any + Send>) {
        let value = value.downcast::<R>().expect("a reply has the type of its call");
        self.value.set(Some(*value));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What a shard's handles share.
pub(crate) struct EngineState {
    pub(crate) mail: Rc<Mail>,
    pub(crate) index: usize,
    pub(crate) store: Rc<Store<DirectIo>>,
    pub(crate) io: DirectIo,
    pub(crate) topics: RefCell<Rc<Topics>>,
    /// Where partitions of topics are that are not on this node alone.
    pub(crate) placements: RefCell<HashMap<TopicId, Rc<Placement>>>,
    /// Defaults of topic settings that the node was started with.
    pub(crate) started_defaults: BTreeMap<String, String>,
    /// Those under the dynamic settings: what topics follow.
    pub(crate) defaults: RefCell<Rc<BTreeMap<String, String>>>,
    pub(crate) settings: RefCell<Rc<BTreeMap<String, String>>>,
    pub(crate) cluster_id: Uuid,
    pub(crate) node_id: i32,
    pub(crate) data_dir: PathBuf,
    /// On shard 0 only.
    pub(crate) catalog: Option<CatalogFile>,
    pub(crate) attached: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
    /// Who waits for something to be attached.
    pub(crate) attaching: RefCell<Vec<Waker>>,
    pub(crate) stopping: Rc<Outcome<()>>,
    pub(crate) replies: RefCell<HashMap<u64, Rc<dyn Reply>>>,
    pub(crate) next_id: Cell<u64>,
    /// Partitions whose files are being removed, by ticket.
    pub(crate) removals: RefCell<HashMap<u64, Vec<Rc<Outcome<()>>>>>,
    /// Fetches of other shards that wait for partitions of this one: by shard and number.
    pub(crate) watched: RefCell<HashMap<(usize, u64), Rc<Waiter>>>,
    /// Requests of this shard stand still, says who serves them.
    pub(crate) requests_stalled: Cell<bool>,
}

/// Handle to the whole node's engine on one shard; clones share it. Not `Send`.
#[derive(Clone)]
pub struct Engine(pub(crate) Rc<EngineState>);

impl Engine {
    /// This shard's index.
    pub fn shard(&self) -> usize {
        self.0.index
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.0.mail.shards()
    }

    /// The shard that owns a partition: where its requests are served without a hop.
    pub fn owner(&self, partition: TopicPartition) -> usize {
        owner(partition, self.shards())
    }

    /// The epoch in which this node leads a partition of this shard; `None`: it does not, or the partition is not here.
    pub fn leader_epoch(&self, partition: TopicPartition) -> Option<i32> {
        self.0.store.leads(partition)
    }

    /// The cluster's id, kept in the data directory.
    pub fn cluster_id(&self) -> Uuid {
        self.0.cluster_id
    }

    /// This node's id.
    pub fn node_id(&self) -> i32 {
        self.0.node_id
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.0.data_dir
    }

    /// Broker-wide defaults that topics inherit now, by *topic* setting name.
    pub fn topic_defaults(&self) -> Rc<BTreeMap<String, String>> {
        self.0.defaults.borrow().clone()
    }

    /// Those of them that the node was started with.
    pub fn started_topic_defaults(&self) -> &BTreeMap<String, String> {
        &self.0.started_defaults
    }

    /// Dynamic broker settings as [`crate::config::dynamic_value`] reads them; durable, the same on every shard.
    pub fn broker_settings(&self) -> Rc<BTreeMap<String, String>> {
        self.0.settings.borrow().clone()
    }

    /// All topics now.
    pub fn topics(&self) -> Rc<Topics> {
        self.0.topics.borrow().clone()
    }

    /// Appends batches. The order among calls is fixed when this returns; the future resolves once every batch is
    /// durable as its topic says and has the `acks` asked for (or is refused). One answer per part, in order. Dropping the future undoes nothing.
    pub fn produce(
        &self,
        origin: AppendOrigin,
        acks: impl Into<AcksWithin>,
        parts: Vec<ProducePartition>,
    ) -> impl Future<Output = Vec<Result<Produced, LogError>>> + 'static {
        let AcksWithin { acks, patience } = acks.into();
        self.produce_with(parts, patience, move |engine: &Engine, part| engine.0.store.append(part, origin, acks))
    }

    /// Answers a question for an offset.
    pub async fn list_offset(
        &self,
        partition: TopicPartition,
        spec: OffsetSpec,
        bound: ReadBound,
        leader_epoch: i32,
    ) -> Result<FoundOffset, LogError> {
        self.call(self.owner(partition), move |engine: Engine| async move {
            engine.0.store.check_leads(partition, leader_epoch)?;
            engine.0.store.list_offset(partition, spec, bound).await
        })
        .await
    }

    /// End offset of a leader epoch: the largest epoch not above the one asked, and its end; (-1, -1) for none.
    pub async fn epoch_end_offset(
        &self,
        partition: TopicPartition,
        current_leader_epoch: i32,
        leader_epoch: i32,
    ) -> Result<(i32, i64), LogError> {
        let owner = self.owner(partition);
        let look_up = move |engine: Engine| {
            std::future::ready(engine.0.store.end_of_epoch_for(partition, current_leader_epoch, leader_epoch))
        };
        let found = self.call(owner, look_up).await?;
        Ok((found.epoch, found.end_offset))
    }

    /// Moves the log start up to `before` (-1: to the high watermark); answers the new log start, durable.
    pub async fn delete_records(&self, partition: TopicPartition, before: i64) -> Result<i64, LogError> {
        let owner = self.owner(partition);
        self.call(owner, move |engine: Engine| async move {
            engine.0.store.check_leads(partition, -1)?;
            let (log_start_offset, high_watermark) = engine.0.store.bounds(partition)?;
            let before = if before == -1 { high_watermark } else { before };
            if before < 0 || before > high_watermark {
                return Err(LogError::OffsetOutOfRange { log_start_offset, high_watermark });
            }
            engine.0.store.trim(partition, before).await
        })
        .await
    }

    /// Bytes on disk of every partition of these topics (`None`: of all), for DescribeLogDirs.
    pub async fn partition_sizes(&self, topics: Option<Vec<TopicId>>) -> Vec<(TopicPartition, u64)> {
        let of_shards = self.on_all(move |engine: Engine| {
            let store = &engine.0.store;
            let mut ids = store.partition_ids();
            ids.retain(|id| topics.as_ref().is_none_or(|topics| topics.contains(&id.topic)));
            let sizes: Vec<_> = ids.into_iter().filter_map(|id| Some((id, store.partition_bytes(id)?))).collect();
            std::future::ready(sizes)
        });
        of_shards.await.into_iter().flatten().collect()
    }

    /// What this shard counted, and how full it is.
    pub async fn stats(&self) -> ShardStats {
        /// Partitions looked at in one go.
        const PARTITIONS_MAX: usize = 1024;
        let store = &self.0.store;
        let mut stats = store.stats();
        for ids in store.partition_ids().chunks(PARTITIONS_MAX) {
            stats.log_bytes += ids.iter().filter_map(|id| store.partition_bytes(*id)).sum::<u64>();
            glommio::yield_if_needed().await;
        }
        stats
    }

    /// Total and usable bytes of the data directory's file system; zeroes when it cannot be asked.
    pub fn volume_bytes(&self) -> (u64, u64) {
        io::direct::volume_bytes(&self.0.data_dir).unwrap_or_default()
    }

    /// Idempotent producers that a partition remembers.
    pub async fn active_producers(&self, partition: TopicPartition) -> Result<Vec<ActiveProducer>, LogError> {
        let owner = self.owner(partition);
        self.call(owner, move |engine: Engine| async move { engine.0.store.active_producers(partition) }).await
    }

    /// Has a function called on this shard before each commit group is sealed: what it appends goes into that group. Not for
    /// what has to be in the order of other calls.
    pub fn on_seal(&self, call: Rc<dyn Fn()>) {
        self.0.store.on_seal(call);
    }

    /// Runs `work` on another shard (or this one) with that shard's handle and brings its result back. Calls to one
    /// shard made in the same turn travel together.
    pub async fn on_shard<F, R>(&self, shard: usize, work: impl FnOnce(Engine) -> F + Send + 'static) -> R
    where
        F: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        self.call(shard, work).await
    }

    /// As [`Engine::on_shard`], but the letter is posted before this returns.
    pub(crate) fn call<F, R>(
        &self,
        shard: usize,
        work: impl FnOnce(Engine) -> F + Send + 'static,
    ) -> impl Future<Output = R> + 'static
    where
        F: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        if shard == self.shard() {
            return Either::Left(work(self.clone()));
        }
        let origin = self.shard();
        let (id, answer) = self.await_reply();
        self.0.mail.post(
            shard,
            Box::new(move |engine: &Engine| {
                let running = work(engine.clone());
                engine.reply_later(origin, id, running);
            }),
        );
        Either::Right(answer)
    }

    /// As [`Engine::on_shard`] for work that says at once how it has begun and later how it has ended. The letter is posted
    /// before this returns, and the first answer is on its way before the other shard opens another letter: what that posts
    /// to this one afterwards cannot pass it.
    pub fn begin_on_shard<A, F, R, W>(
        &self,
        shard: usize,
        work: W,
    ) -> (impl Future<Output = A> + use<A, F, R, W>, impl Future<Output = R> + use<A, F, R, W>)
    where
        W: FnOnce(&Engine) -> (A, F) + Send + 'static,
        A: Send + 'static,
        F: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        if shard == self.shard() {
            let (begun, running) = work(self);
            return (Either::Left(std::future::ready(begun)), Either::Left(running));
        }
        let origin = self.shard();
        let (begun_id, begun) = self.await_reply();
        let (id, answer) = self.await_reply();
        self.0.mail.post(
            shard,
            Box::new(move |engine: &Engine| {
                let (begun, running) = work(engine);
                let begun: Box<dyn Any + Send> = Box::new(begun);
                engine.0.mail.post(origin, Box::new(move |home: &Engine| home.reply(begun_id, begun)));
                engine.reply_later(origin, id, running);
            }),
        );
        (Either::Right(begun), Either::Right(answer))
    }

    /// A number by which another shard answers, and the answer to come.
    fn await_reply<R: Send + 'static>(&self) -> (u64, impl Future<Output = R> + use<R>) {
        let awaited = Rc::new(Awaited::<R> { value: Cell::new(None), waker: Cell::new(None) });
        let id = self.next_id();
        self.0.replies.borrow_mut().insert(id, awaited.clone());
        let answer = poll_fn(move |context| match awaited.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                awaited.waker.set(Some(context.waker().clone()));
                Poll::Pending
            }
        });
        (id, answer)
    }

    /// Answers another shard when the work is done.
    fn reply_later<R: Send + 'static>(&self, origin: usize, id: u64, running: impl Future<Output = R> + 'static) {
        let engine = self.clone();
        glommio::spawn_local(async move {
            let result: Box<dyn Any + Send> = Box::new(running.await);
            engine.0.mail.post(origin, Box::new(move |home: &Engine| home.reply(id, result)));
        })
        .detach();
    }

    /// A number that this shard has not used yet.
    pub(crate) fn next_id(&self) -> u64 {
        self.0.next_id.replace(self.0.next_id.get() + 1)
    }

    fn reply(&self, id: u64, value: Box<dyn Any + Send>) {
        let reply = self.0.replies.borrow_mut().remove(&id);
        reply.expect("every call is answered once").hear(value);
    }

    /// Runs `work` on every shard, side by side; answers in the order of shards.
    pub async fn on_all<F, R, W>(&self, work: W) -> Vec<R>
    where
        W: FnOnce(Engine) -> F + Clone + Send + 'static,
        F: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let calls: Vec<_> = (0..self.shards()).map(|shard| self.call(shard, work.clone())).collect();
        join_all(calls).await
    }

    /// Keeps a value for this shard's life, e.g. the wire's own state, so that work sent by [`Engine::on_shard`] finds
    /// it. One value per type.
    pub fn attach<T: 'static>(&self, value: Rc<T>) {
        self.0.attached.borrow_mut().insert(TypeId::of::<T>(), value);
        self.0.attaching.take().into_iter().for_each(Waker::wake);
    }

    /// The value attached by [`Engine::attach`], which may still be to come: shards start side by side.
    pub async fn attachment<T: 'static>(&self) -> Rc<T> {
        poll_fn(|context| match self.attached() {
            Some(value) => Poll::Ready(value),
            None => {
                self.0.attaching.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// The value attached by [`Engine::attach`].
    pub fn attached<T: 'static>(&self) -> Option<Rc<T>> {
        let value = self.0.attached.borrow().get(&TypeId::of::<T>()).cloned()?;
        value.downcast().ok()
    }

    /// Resolves when the node was asked to stop.
    pub async fn stopping(&self) {
        self.0.stopping.clone().wait().await;
    }

    /// Whether the node was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.get().is_some()
    }

    /// The mailbox saw that the node was asked to stop.
    pub(crate) fn notice_stop(&self) {
        if !self.is_stopping() {
            self.0.stopping.set(());
        }
    }

    /// Whether produce is refused on this shard because the disk is full.
    pub fn is_full(&self) -> bool {
        self.0.store.is_full()
    }

    /// Whether fetches on this shard wait for memory that is held by answers being sent.
    pub fn is_fetch_memory_contended(&self) -> bool {
        self.0.store.fetch_memory.is_contended()
    }

    /// Says whether requests stand still: the node is not well then, see [`crate::node::Stopper::vitals`].
    pub fn note_stalled_requests(&self, are_stalled: bool) {
        self.0.requests_stalled.set(are_stalled);
    }

    /// Tells the watchdog that this shard has work: it then looks more often. For callers that serve connections.
    pub fn note_activity(&self) {
        self.0.mail.note_activity();
    }
}

/// Waits for the places and the groups of taken batches, until it is `late`. Groups end in order, so few of the waits really wait.
pub(crate) async fn settle(taken: Vec<Taken>, late: impl Future<Output = ()>) -> Vec<Result<Produced, LogError>> {
    let mut answers = Vec::with_capacity(taken.len());
    let (mut late, mut is_late) = (pin!(late), false);
    for taken in taken {
        let settled = pin!(settle_one(taken));
        // what is known when the time is over is told all the same
        let answer = match is_late {
            true => settled.now_or_never(),
            false => match select(settled, &mut late).await {
                Either::Left((answer, _)) => Some(answer),
                Either::Right(((), settled)) => {
                    is_late = true;
                    settled.now_or_never()
                }
            },
        };
        answers.push(answer.unwrap_or(Err(LogError::NotInTime)));
    }
    answers
}

async fn settle_one(taken: Taken) -> Result<Produced, LogError> {
    match taken.appended().await? {
        (produced, None) => Ok(produced),
        (produced, Some(wait)) => wait.wait().await.map(|()| produced),
    }
}

/// The shard that owns a partition: partitions of a topic take turns.
pub fn owner(partition: TopicPartition, shards: usize) -> usize {
    let first = u64::from(crc32c::crc32c(partition.topic.as_bytes()));
    let turn = u64::try_from(partition.partition).unwrap_or_default();
    usize::try_from((first + turn) % shards as u64).expect("less than the number of shards")
}

/// One partition's answer as it crosses shards.
pub(crate) type FetchAnswer = Result<Fetched, LogError>;
