//! Runs the machines of one kind on one shard: carries requests to them, writes and reads their records, wakes them.
//!
//! One [`Runtime`] per kind and shard, attached to the engine. All that machines want written in one turn travels as one
//! produce request with one batch per partition; what depends on it is released when that is durable. Work that was begun
//! goes on in tasks of the shard, whatever becomes of the request's connection.
//!
//! Every partition that this shard leads is loaded when the runtime begins to run, and whenever one comes to it. Who needs
//! one meanwhile waits for a moment, then hears that it is being loaded.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{Either, LocalBoxFuture, select},
    stream::FuturesUnordered,
};
use glommio::sync::Semaphore;
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{Acks, LogError, NewTopic, TopicPartition},
    batch::AppendOrigin,
    engine::Engine,
    transactions::Marker,
};

use super::{
    clock::Clock,
    flush::{Run, Written, append_atomically, runs},
    load,
    machine::Machine,
    promise::{Bell, Promise, next_turn},
    slots::{Actions, AppendFailure, Entrance, Load, Slots},
    ticket::Ticket,
};
use crate::log_limiter::LogLimiter;

/// How often it is looked for partitions that come and go, and the longest sleep of the timer.
const TICK: Duration = Duration::from_secs(1);
/// How long a request waits for a partition that is loaded.
const LOAD_WAIT: Duration = Duration::from_secs(1);
/// How long a stopping node waits for records under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A kind of coordinator.
pub(crate) trait Kind: Sized + 'static {
    /// What keeps the state of a partition.
    type Machine: Machine;
    /// The topic in whose partitions it is kept.
    const TOPIC: &'static str;
    /// What it writes is on stable storage when it hears of it, whatever the topic asks.
    const ALWAYS_FLUSHED: bool = false;

    /// The topic as it is made when it is first needed.
    fn new_topic(&self) -> NewTopic;
    /// A machine for a partition, in the epoch in which this node leads it, that knows nothing yet.
    fn machine(&self, engine: &Engine, partition: TopicPartition) -> Self::Machine;
    /// Runs an errand of the machine of a partition.
    fn run_errand(runtime: &Rc<Runtime<Self>>, partition: TopicPartition, errand: <Self::Machine as Machine>::Errand);
    /// A marker was left out of what a machine wrote, as it was refused with that.
    fn on_left_out(_engine: &Engine, _error: &LogError) {}
}

/// The answer of a machine, to come.
pub(crate) type Answered<R> = Rc<Promise<Result<R, ResponseError>>>;

/// See the module.
pub(crate) struct Runtime<K: Kind> {
    engine: Engine,
    kind: K,
    clock: Clock,
    slots: RefCell<Slots<K::Machine>>,
    /// Has a permit for each partition that may be read now.
    reading: Semaphore,
    is_flush_due: Cell<bool>,
    /// Failed writes: a disk that is full fails each, and the log may be on that disk.
    failures: RefCell<LogLimiter>,
    /// Rung when a deadline came up that is nearer than the one the timer sleeps for, and at the end when a write is done.
    bell: Bell,
}

impl<K: Kind> Runtime<K> {
    /// Attaches this shard's machines to its engine, and begins to load those that it leads.
    pub(crate) fn attach(engine: &Engine, kind: K) -> Rc<Self> {
        let runtime = Rc::new(Self {
            engine: engine.clone(),
            kind,
            clock: Clock::start(),
            slots: RefCell::new(Slots::new(Rc::default())),
            reading: Semaphore::new(load::READ_AT_ONCE),
            is_flush_due: Cell::new(false),
            failures: RefCell::default(),
            bell: Bell::default(),
        });
        engine.attach(Rc::clone(&runtime));
        // what is in the same group costs no write of its own
        let flushed = Rc::downgrade(&runtime);
        engine.on_seal(Rc::new(move || {
            if let Some(runtime) = flushed.upgrade().filter(|runtime| runtime.is_flush_due.get()) {
                runtime.flush();
            }
        }));
        runtime.reconcile();
        runtime
    }

    /// This shard's, which may still be starting.
    pub(crate) async fn here(engine: &Engine) -> Rc<Self> {
        engine.attachment().await
    }

    /// What is common to all machines.
    pub(crate) fn kind(&self) -> &K {
        &self.kind
    }

    /// The shard's engine.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The slots, with the topics of now: for every call in which a machine decides something.
    fn slots(&self) -> RefMut<'_, Slots<K::Machine>> {
        let mut slots = self.slots.borrow_mut();
        slots.see_topics(self.engine.topics());
        slots
    }

    /// Waits until everything is loaded, or failed to be, that is being loaded now.
    pub(crate) async fn loaded(&self) {
        let gates = self.slots.borrow().closed_gates();
        for gate in gates {
            // who needs it hears why it could not be loaded
            let _: Result<(), ResponseError> = gate.pass().await;
        }
    }

    /// Keeps time until the node is asked to stop.
    pub(crate) async fn run(self: Rc<Self>) {
        let timer = std::pin::pin!(self.keep_time());
        let stopping = std::pin::pin!(self.engine.stopping());
        select(timer, stopping).await;
    }

    /// Waits for records under way, but begins nothing any more; then sends everybody away.
    pub(crate) async fn stop(&self) {
        self.slots.borrow_mut().begin_end();
        let written = async {
            while !self.slots.borrow().is_at_end() {
                self.bell.rung().await;
            }
        };
        let (written, timeout) = (std::pin::pin!(written), std::pin::pin!(glommio::timer::sleep(STOP_TIMEOUT)));
        select(written, timeout).await;
        self.slots.borrow_mut().end(self.clock.now_ms());
    }

    async fn keep_time(self: &Rc<Self>) {
        loop {
            self.reconcile();
            let tick_ms = self.clock.now_ms() + i64::try_from(TICK.as_millis()).unwrap_or(0);
            loop {
                let now_ms = self.clock.now_ms();
                self.slots().handle_timeouts(now_ms);
                self.act();
                let now_ms = self.clock.now_ms();
                if now_ms >= tick_ms {
                    break;
                }
                let until_ms = self.slots.borrow_mut().sleep(tick_ms);
                let pause = Duration::from_millis(until_ms.saturating_sub(now_ms).max(1).unsigned_abs());
                let (sleep, rung) = (std::pin::pin!(glommio::timer::sleep(pause)), std::pin::pin!(self.bell.rung()));
                select(sleep, rung).await;
            }
            let mut slots = self.slots();
            slots.handle_tick(self.clock.now_ms());
            drop(slots);
            self.act();
        }
    }

    /// The partitions that this shard leads, with the epochs.
    pub(super) fn led(&self) -> BTreeMap<TopicPartition, i32> {
        let Some(topic) = Self::topic(&self.engine) else { return BTreeMap::new() };
        let all = (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition });
        let owned = all.filter(|partition| self.engine.owner(*partition) == self.engine.shard());
        owned.filter_map(|partition| Some((partition, self.engine.leader_epoch(partition)?))).collect()
    }

    /// Loads and forgets partitions, as they come to this shard and go.
    pub(crate) fn reconcile(self: &Rc<Self>) {
        let led = self.led();
        let mut slots = self.slots();
        slots.reconcile(self.clock.now_ms(), &led);
        drop(slots);
        self.act();
    }

    /// Forgets machines that have something to write in an epoch that is over: the log is another's, or has become another
    /// one. Nothing comes between this and what is appended after it.
    fn forget_unled(&self) {
        let led = |partition| self.engine.leader_epoch(partition);
        self.slots.borrow_mut().forget_unled(self.clock.now_ms(), led);
    }

    /// Waits until a partition that this shard owns serves.
    async fn ready(self: &Rc<Self>, partition: TopicPartition) -> Result<(), ResponseError> {
        loop {
            let leader_epoch = self.engine.leader_epoch(partition);
            let entrance = self.slots.borrow_mut().enter(self.clock.now_ms(), partition, leader_epoch);
            let gate = match entrance {
                Entrance::Open => return Ok(()),
                Entrance::Refused => return Err(ResponseError::NotCoordinator),
                Entrance::Closed(gate) => gate,
            };
            self.act();
            let (passed, timeout) = (std::pin::pin!(gate.pass()), std::pin::pin!(glommio::timer::sleep(LOAD_WAIT)));
            match select(passed, timeout).await {
                Either::Left((passed, _)) => passed?,
                Either::Right(_) => return Err(ResponseError::CoordinatorLoadInProgress),
            }
        }
    }

    /// Lets the machine of a partition do something now.
    pub(crate) fn with<R>(
        self: &Rc<Self>,
        partition: TopicPartition,
        work: impl FnOnce(&mut K::Machine, i64) -> R,
    ) -> Option<R> {
        let mut slots = self.slots();
        let result = slots.with(partition, |machine| work(machine, self.clock.now_ms()));
        drop(slots);
        self.act();
        result
    }

    /// Lets the machine of a partition handle a request, if it serves. Gives what the machine said, and a promise of the
    /// answer. What it writes goes into the next group that this shard seals.
    pub(crate) fn begin<R: 'static, P>(
        self: &Rc<Self>,
        partition: TopicPartition,
        work: impl FnOnce(&mut K::Machine, i64, Ticket<R>) -> P,
    ) -> Option<(P, Answered<R>)> {
        let promise = Promise::new();
        let ticket = Ticket::of(Rc::clone(&promise));
        let begun = self.with(partition, |machine, now_ms| work(machine, now_ms, ticket))?;
        Some((begun, promise))
    }

    /// Lets the machine of a partition handle a request and waits for its answer.
    pub(crate) async fn ask<R: 'static>(
        self: &Rc<Self>,
        partition: TopicPartition,
        work: impl FnOnce(&mut K::Machine, i64, Ticket<R>),
    ) -> Result<R, ResponseError> {
        self.ready(partition).await?;
        let promise = Promise::new();
        let ticket = Ticket::of(Rc::clone(&promise));
        // a ticket that is not taken tells so
        self.with(partition, |machine, now_ms| work(machine, now_ms, ticket));
        promise.take().await
    }

    /// Looks at the machine of a partition.
    pub(crate) async fn read<R>(
        self: &Rc<Self>,
        partition: TopicPartition,
        look: impl FnOnce(&K::Machine) -> R,
    ) -> Result<R, ResponseError> {
        self.ready(partition).await?;
        self.with(partition, |machine, _| look(machine)).ok_or(ResponseError::NotCoordinator)
    }

    /// Looks at all machines that serve.
    pub(crate) fn look(&self, look: impl FnMut(&K::Machine)) {
        self.slots.borrow().machines().for_each(look);
    }

    /// Does what came of the last call.
    fn act(self: &Rc<Self>) {
        let Actions { loads, errands, is_dirty, is_early } = self.slots.borrow_mut().take_actions();
        if is_dirty {
            self.schedule_flush();
        }
        if is_early {
            self.bell.ring();
        }
        loads.into_iter().for_each(|load| self.begin_load(load));
        for (partition, errand) in errands {
            K::run_errand(self, partition, errand);
        }
    }

    fn begin_load(self: &Rc<Self>, load: Load) {
        let runtime = Rc::clone(self);
        glommio::spawn_local(async move {
            let mut machine = Box::new(runtime.kind.machine(&runtime.engine, load.partition));
            let is_wanted = || runtime.slots.borrow().is_loading(load);
            let of = (K::TOPIC, load.partition);
            let loaded = load::replay(&runtime.engine, &runtime.reading, of, &mut *machine, is_wanted).await;
            if let Err(error) = &loaded {
                let (topic, partition) = (K::TOPIC, load.partition.partition);
                match error.is_elsewhere() {
                    true => tracing::debug!(topic, partition, %error, "a partition is not loaded"),
                    false => tracing::error!(topic, partition, %error, "a partition cannot be loaded"),
                }
            }
            let mut slots = runtime.slots();
            slots.on_loaded(runtime.clock.now_ms(), load, loaded.map(|()| machine));
            drop(slots);
            runtime.act();
        })
        .detach();
    }

    /// Writes at the end of this turn.
    fn schedule_flush(self: &Rc<Self>) {
        if !self.is_flush_due.replace(true) {
            let runtime = Rc::clone(self);
            glommio::spawn_local(async move {
                // what others that are runnable now want written goes with it
                next_turn().await;
                runtime.flush();
            })
            .detach();
        }
    }

    fn flush(self: &Rc<Self>) {
        self.is_flush_due.set(false);
        self.forget_unled();
        let appends = self.slots.borrow_mut().take_appends(self.clock.now_ms());
        if appends.is_empty() {
            return;
        }
        let under_way: Vec<_> = runs(appends, K::ALWAYS_FLUSHED).into_iter().map(|run| self.begin_run(run)).collect();
        let runtime = Rc::clone(self);
        glommio::spawn_local(async move {
            let mut under_way: FuturesUnordered<_> = under_way.into_iter().collect();
            while let Some(written) = under_way.next().await {
                runtime.take_written(written);
            }
        })
        .detach();
    }

    /// Gives a run of appends to the log: their places are taken when this returns.
    fn begin_run(&self, run: Run) -> LocalBoxFuture<'static, Vec<Written>> {
        match run {
            Run::Plain { keys, parts } => {
                let produced = self.engine.produce(AppendOrigin::Coordinator, Acks::All, parts);
                let written = async move {
                    let answers = produced.await.into_iter();
                    let answers = answers.map(|answer| answer.map(|produced| produced.base_offset));
                    keys.into_iter().zip(answers).collect()
                };
                written.boxed_local()
            }
            Run::Atomic { key, parts } => {
                let left_out = |error: &LogError| K::on_left_out(&self.engine, error);
                let appended = append_atomically(|parts| self.engine.append_atomically(parts), parts, left_out);
                async move { vec![(key, appended.await)] }.boxed_local()
            }
        }
    }

    fn take_written(self: &Rc<Self>, written: Vec<Written>) {
        let mut slots = self.slots();
        for ((partition, number), answer) in written {
            let result = answer.map_err(|error| {
                self.log_failure(partition, &error);
                AppendFailure::from(&error)
            });
            slots.on_appended(self.clock.now_ms(), partition, number, result);
        }
        let is_at_end = slots.is_at_end();
        drop(slots);
        self.act();
        if is_at_end {
            self.bell.ring();
        }
    }

    /// Appends the end of a transaction to a partition that this shard coordinates; its machine hears of it when it is
    /// durable, before this resolves. Refused with NOT_LEADER_OR_FOLLOWER, which is tried again, unless the machine
    /// serves.
    pub(crate) async fn write_marker(self: Rc<Self>, marker: Marker) -> Result<(), ResponseError> {
        let promise = Promise::new();
        self.slots.borrow_mut().append_marker(marker, Ticket::of(Rc::clone(&promise)));
        self.act();
        promise.take().await?
    }

    /// Once a second at most.
    fn log_failure(&self, partition: TopicPartition, error: &LogError) {
        let second = u64::try_from(self.clock.now_ms() / 1000).unwrap_or_default();
        if let Some(suppressed) = self.failures.borrow_mut().on_event(second) {
            let partition = partition.partition;
            tracing::warn!(topic = K::TOPIC, partition, %error, suppressed, "records could not be written");
        }
    }
}
