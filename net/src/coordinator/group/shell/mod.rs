//! The coordinators of one shard: carries requests to them, writes their records, wakes them in time.
//!
//! One [`Groups`] per shard, attached to the engine. It owns a [`Coordinator`] for every partition of
//! `__consumer_offsets` that this shard owns. All that coordinators want written in one turn travels as one produce
//! request with one batch per partition; what depends on it is released when that is durable. Work that was begun goes
//! on in tasks of the shard, whatever becomes of the request's connection.

pub(crate) mod load;
mod route;
mod topic;
mod write;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::TopicPartition,
    engine::{Engine, Topics},
};
pub(crate) use route::{ask, coordinator_shard, on_every_shard, on_groups, read};
pub(crate) use topic::{OFFSETS_TOPIC, ensure_offsets_topic, index_of, new_offsets_topic, offsets_topic, partition_of};
use write::InFlight;

use super::{
    coordinator::{Coordinator, GroupFilter},
    error::GroupError,
    settings::Settings,
};
use crate::coordinator::runtime::{
    Clock, Reply, Ticket,
    promise::{Bell, Gate, Promise},
};

/// How often topics are looked at for deleted ones, and the longest sleep of the timer.
const TICK: Duration = Duration::from_secs(1);
/// How long a stopping node waits for records under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Topics that are matched against regular expressions in one turn.
const TOPICS_PER_TURN: usize = 200;

/// Where a partition's coordinator is in its life.
enum Stage {
    /// Its records are being read; who needs it waits at the gate.
    Loading(Rc<Gate<Result<(), GroupError>>>),
    /// It serves.
    Ready(Box<Coordinator>),
    /// It ran ahead of records that could not be written: it is loaded anew once the writes under way are done.
    Stale,
}

/// One partition of `__consumer_offsets` on its owner.
struct Slot {
    partition: TopicPartition,
    stage: Stage,
    /// The topics that the coordinator was last told of.
    topics: Rc<Topics>,
    /// Batches under way, oldest first.
    in_flight: VecDeque<InFlight>,
    next_batch: u64,
}

/// See the module.
pub(crate) struct Groups {
    engine: Engine,
    settings: Rc<Settings>,
    clock: Clock,
    slots: RefCell<BTreeMap<i32, Slot>>,
    /// Partitions whose coordinators have something to write.
    dirty: RefCell<BTreeSet<i32>>,
    is_flush_due: Cell<bool>,
    /// Rung when a deadline came up that is nearer than the one the timer sleeps for.
    bell: Bell,
    sleeps_until_ms: Cell<i64>,
    /// Topics at the last tick, to notice deleted ones.
    seen_topics: RefCell<Rc<Topics>>,
    next_retention_ms: Cell<i64>,
    /// Nothing is begun any more.
    is_stopping: Cell<bool>,
}

impl Groups {
    /// Attaches this shard's coordinators to its engine.
    pub(crate) fn attach(engine: &Engine, settings: Rc<Settings>) -> Rc<Self> {
        let clock = Clock::start();
        let next_retention_ms = clock.now_ms().saturating_add(settings.retention_check_interval_ms);
        let groups = Rc::new(Self {
            engine: engine.clone(),
            settings,
            clock,
            slots: RefCell::default(),
            dirty: RefCell::default(),
            is_flush_due: Cell::new(false),
            bell: Bell::default(),
            sleeps_until_ms: Cell::new(i64::MAX),
            seen_topics: RefCell::new(engine.topics()),
            next_retention_ms: Cell::new(next_retention_ms),
            is_stopping: Cell::new(false),
        });
        engine.attach(Rc::clone(&groups));
        groups
    }

    /// How many groups there are of each type and state, of the coordinators that are loaded.
    pub(crate) fn count_by_state(&self) -> BTreeMap<(String, String), u64> {
        let mut counts = BTreeMap::new();
        for slot in self.slots.borrow().values() {
            let Stage::Ready(coordinator) = &slot.stage else { continue };
            for group in coordinator.list(&GroupFilter::default()) {
                let key = (group.group_type.to_string(), group.group_state.to_string());
                *counts.entry(key).or_insert(0) += 1;
            }
        }
        counts
    }

    /// Settings.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Loads what this shard owns and keeps time, until the node stops; then waits for records under way.
    pub(crate) async fn run(self: Rc<Self>) {
        let timer = std::pin::pin!(self.keep_time());
        let stopping = std::pin::pin!(self.engine.stopping());
        futures_util::future::select(timer, stopping).await;
        self.is_stopping.set(true);
        let waited_until = self.clock.now_ms() + i64::try_from(STOP_TIMEOUT.as_millis()).unwrap_or(0);
        while self.has_writes() && self.clock.now_ms() < waited_until {
            glommio::timer::sleep(Duration::from_millis(5)).await;
        }
        self.close_all(ResponseError::NotCoordinator);
    }

    fn has_writes(&self) -> bool {
        let under_way = self.slots.borrow().values().any(|slot| !slot.in_flight.is_empty());
        under_way || !self.dirty.borrow().is_empty()
    }

    async fn keep_time(self: &Rc<Self>) {
        loop {
            self.load_owned();
            self.on_tick();
            let tick_ms = self.clock.now_ms() + i64::try_from(TICK.as_millis()).unwrap_or(0);
            loop {
                self.handle_timeouts();
                let now_ms = self.clock.now_ms();
                let until_ms = self.next_deadline_ms().map_or(tick_ms, |deadline_ms| deadline_ms.min(tick_ms));
                if now_ms >= tick_ms {
                    break;
                }
                self.sleeps_until_ms.set(until_ms);
                let pause = Duration::from_millis(until_ms.saturating_sub(now_ms).max(1).unsigned_abs());
                let sleep = std::pin::pin!(glommio::timer::sleep(pause));
                let rung = std::pin::pin!(self.bell.rung());
                futures_util::future::select(sleep, rung).await;
            }
        }
    }

    fn next_deadline_ms(&self) -> Option<i64> {
        let slots = self.slots.borrow();
        slots.values().filter_map(Slot::next_deadline_ms).min()
    }

    fn handle_timeouts(self: &Rc<Self>) {
        let now_ms = self.clock.now_ms();
        let mut due = Vec::new();
        for (index, slot) in self.slots.borrow_mut().iter_mut() {
            if slot.next_deadline_ms().is_some_and(|deadline_ms| deadline_ms <= now_ms) {
                slot.see_topics(&self.engine);
                if let Stage::Ready(coordinator) = &mut slot.stage {
                    coordinator.handle_timeouts(now_ms);
                    due.push(*index);
                }
            }
        }
        due.into_iter().for_each(|index| self.drain(index));
    }

    /// Begins to load every partition that this shard owns, so that sessions end and groups are listed after a start.
    fn load_owned(self: &Rc<Self>) {
        let Some(topic) = offsets_topic(&self.engine) else {
            return;
        };
        for partition in (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition }) {
            if self.engine.owner(partition) == self.engine.shard()
                && !self.slots.borrow().contains_key(&partition.partition)
            {
                self.begin_load(partition);
            }
        }
    }

    /// Tells the coordinators of deleted topics, and now and then to look for expired offsets.
    fn on_tick(self: &Rc<Self>) {
        let topics = self.engine.topics();
        let before = self.seen_topics.replace(Rc::clone(&topics));
        let now_ms = self.clock.now_ms();
        let is_retention_due = now_ms >= self.next_retention_ms.get();
        if is_retention_due {
            self.next_retention_ms.set(now_ms.saturating_add(self.settings.retention_check_interval_ms));
        }
        let is_deleted = before.deletions != topics.deletions;
        let offsets_id = |topics: &Topics| topics.by_name.get(OFFSETS_TOPIC).map(|topic| topic.id);
        if offsets_id(&before).is_some_and(|id| offsets_id(&topics) != Some(id)) {
            self.close_all(ResponseError::NotCoordinator);
        }
        if !is_deleted && !is_retention_due {
            return;
        }
        let mut touched = Vec::new();
        for (index, slot) in self.slots.borrow_mut().iter_mut() {
            slot.see_topics(&self.engine);
            if let Stage::Ready(coordinator) = &mut slot.stage {
                if is_deleted {
                    coordinator.handle_topics_deleted();
                }
                if is_retention_due {
                    coordinator.handle_retention(now_ms);
                }
                touched.push(*index);
            }
        }
        touched.into_iter().for_each(|index| self.drain(index));
    }

    /// Answers everybody who waits and forgets all coordinators.
    fn close_all(self: &Rc<Self>, error: GroupError) {
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        for slot in slots.into_values() {
            if let Stage::Ready(mut coordinator) = slot.stage {
                coordinator.close(self.clock.now_ms(), error);
                coordinator.take_replies().into_iter().for_each(Reply::send);
            }
        }
        self.dirty.borrow_mut().clear();
    }

    fn begin_load(self: &Rc<Self>, partition: TopicPartition) -> Rc<Gate<Result<(), GroupError>>> {
        let gate = Gate::new();
        let slot = Slot {
            partition,
            stage: Stage::Loading(Rc::clone(&gate)),
            topics: self.engine.topics(),
            in_flight: VecDeque::new(),
            next_batch: 0,
        };
        self.slots.borrow_mut().insert(partition.partition, slot);
        let (groups, opened) = (Rc::clone(self), Rc::clone(&gate));
        glommio::spawn_local(async move {
            let loaded = load::load(&groups.engine, &groups.settings, partition).await;
            opened.open(groups.on_loaded(partition, loaded));
        })
        .detach();
        gate
    }

    fn on_loaded(
        self: &Rc<Self>,
        partition: TopicPartition,
        loaded: Result<Coordinator, load::LoadError>,
    ) -> Result<(), GroupError> {
        let index = partition.partition;
        let mut slots = self.slots.borrow_mut();
        let current = slots.get_mut(&index).filter(|slot| slot.partition == partition);
        let Some(slot) = current else {
            return Err(ResponseError::NotCoordinator);
        };
        match loaded {
            Ok(mut coordinator) => {
                slot.topics = self.engine.topics();
                coordinator.handle_topics(Rc::clone(&slot.topics) as _);
                coordinator.on_loaded(self.clock.now_ms());
                slot.stage = Stage::Ready(Box::new(coordinator));
                drop(slots);
                self.drain(index);
                Ok(())
            }
            Err(error) => {
                tracing::error!(partition = index, %error, "a partition of {OFFSETS_TOPIC} cannot be loaded");
                slots.remove(&index);
                Err(ResponseError::CoordinatorNotAvailable)
            }
        }
    }

    /// Waits until a partition that this shard owns serves.
    async fn ready(self: &Rc<Self>, partition: TopicPartition) -> Result<(), GroupError> {
        loop {
            if self.is_stopping.get() {
                return Err(ResponseError::NotCoordinator);
            }
            let stage = self.slots.borrow().get(&partition.partition).map(|slot| match &slot.stage {
                Stage::Ready(_) => Ok(()),
                Stage::Loading(gate) => Err(Some(Rc::clone(gate))),
                Stage::Stale => Err(None),
            });
            let gate = match stage {
                Some(Ok(())) => return Ok(()),
                Some(Err(Some(gate))) => gate,
                Some(Err(None)) => return Err(ResponseError::CoordinatorLoadInProgress),
                None => self.begin_load(partition),
            };
            gate.pass().await?;
        }
    }

    /// Lets a partition's coordinator handle a request and waits for its reply.
    pub(crate) async fn ask<R: 'static>(
        self: &Rc<Self>,
        partition: TopicPartition,
        work: impl FnOnce(&mut Coordinator, i64, Ticket<R>),
    ) -> Result<R, GroupError> {
        self.ready(partition).await?;
        let promise = Promise::new();
        let ticket = Ticket::of(Rc::clone(&promise));
        let served = self.with(partition.partition, |coordinator, now_ms| work(coordinator, now_ms, ticket));
        if served.is_none() {
            return Err(ResponseError::NotCoordinator);
        }
        self.drain(partition.partition);
        promise.take().await
    }

    /// Looks at a partition's coordinator.
    pub(crate) async fn read<R>(
        self: &Rc<Self>,
        partition: TopicPartition,
        look: impl FnOnce(&Coordinator) -> R,
    ) -> Result<R, GroupError> {
        self.ready(partition).await?;
        let seen = self.with(partition.partition, |coordinator, _| look(coordinator));
        seen.ok_or(ResponseError::NotCoordinator)
    }

    fn with<R>(&self, index: i32, work: impl FnOnce(&mut Coordinator, i64) -> R) -> Option<R> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(&index)?;
        slot.see_topics(&self.engine);
        match &mut slot.stage {
            Stage::Ready(coordinator) => Some(work(coordinator, self.clock.now_ms())),
            Stage::Loading(_) | Stage::Stale => None,
        }
    }

    /// Does what a coordinator wants done.
    fn drain(self: &Rc<Self>, index: i32) {
        let drained = self.with(index, |coordinator, _| {
            let regexes = coordinator.take_regexes();
            (coordinator.take_replies(), regexes, coordinator.has_work(), coordinator.next_deadline_ms())
        });
        let Some((replies, (version, regexes), has_writes, deadline_ms)) = drained else { return };
        replies.into_iter().for_each(Reply::send);
        if has_writes {
            self.dirty.borrow_mut().insert(index);
            self.schedule_flush();
        }
        if deadline_ms.is_some_and(|deadline_ms| deadline_ms < self.sleeps_until_ms.get()) {
            self.bell.ring();
        }
        for (group, regexes) in regexes {
            self.resolve_regexes(index, group, version, regexes);
        }
    }

    /// Looks through all topics for those that regular expressions stand for, a few at a time.
    fn resolve_regexes(self: &Rc<Self>, index: i32, group: Rc<str>, version: u64, regexes: Vec<Rc<str>>) {
        let groups = Rc::clone(self);
        glommio::spawn_local(async move {
            let topics = groups.engine.topics();
            let mut resolved = Vec::with_capacity(regexes.len());
            for regex in regexes {
                let mut names = Vec::new();
                // it was checked when a member brought it
                if let Ok(compiled) = super::consumer::compile(&regex) {
                    for (at, name) in topics.by_name.keys().enumerate() {
                        if compiled.is_match(name) {
                            names.push(Rc::from(name.as_str()));
                        }
                        if at % TOPICS_PER_TURN == TOPICS_PER_TURN - 1 {
                            glommio::yield_if_needed().await;
                        }
                    }
                }
                resolved.push((regex, names));
            }
            groups.with(index, |coordinator, now_ms| coordinator.handle_regexes(now_ms, &group, version, resolved));
            groups.drain(index);
        })
        .detach();
    }
}

impl Slot {
    fn next_deadline_ms(&self) -> Option<i64> {
        match &self.stage {
            Stage::Ready(coordinator) => coordinator.next_deadline_ms(),
            Stage::Loading(_) | Stage::Stale => None,
        }
    }

    /// Tells the coordinator of the topics if they changed.
    fn see_topics(&mut self, engine: &Engine) {
        let topics = engine.topics();
        if let Stage::Ready(coordinator) = &mut self.stage
            && !Rc::ptr_eq(&self.topics, &topics)
        {
            coordinator.handle_topics(Rc::clone(&topics) as _);
            self.topics = topics;
        }
    }
}
