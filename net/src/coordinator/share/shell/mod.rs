//! Share partitions and sessions of one shard: carries requests to them and wakes them in time.
//!
//! One [`Shares`] per shard, attached to the engine. It owns the share partitions of the topic partitions that this shard
//! owns, and the sessions of members that belong here; their state is kept by [`States`]. Timers of all share partitions
//! stand in one heap. A fetch that finds nothing waits for the log or for a share partition to change; nothing polls.

mod fetch;
mod live;
mod notice;
pub(crate) mod states;
mod writes;

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    rc::Rc,
    time::Duration,
};

pub(crate) use fetch::{FetchHere, Found, PARTITION_BYTES_MAX, fetch_on, wait_on};
use live::Live;
pub(crate) use live::{AcknowledgeFailure, acknowledge_on, drop_on, release_on};
use millrace_engine::{
    config::dynamic_value,
    engine::{Engine, Topics},
};
use notice::Notice;
pub(crate) use states::{StateKind, States};

use super::{
    session::Sessions,
    settings::{GroupSettings, Settings},
    state::ShareKey,
};
use crate::coordinator::{
    group::KEPT_GROUPS,
    runtime::{Clock, promise::Bell},
};

/// Longest sleep of the timer; how often deleted topics are looked for.
const TICK: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Shares {
    engine: Engine,
    settings: Rc<Settings>,
    clock: Clock,
    pub(crate) sessions: RefCell<Sessions>,
    partitions: RefCell<HashMap<ShareKey, Rc<Live>>>,
    /// When share partitions have locks that end.
    timers: RefCell<BinaryHeap<Reverse<(i64, ShareKey)>>>,
    /// Rung when a deadline came up that is nearer than the one the timer sleeps for.
    bell: Bell,
    sleeps_until_ms: Cell<i64>,
    /// Waiting fetches of other shards, by shard and number.
    waits: RefCell<HashMap<(usize, u64), Rc<Notice>>>,
    next_wait: Cell<u64>,
    seen_topics: RefCell<Rc<Topics>>,
}

/// This shard's share groups, which may still be starting.
pub(crate) async fn here(engine: &Engine) -> Rc<Shares> {
    engine.attachment().await
}

impl Shares {
    /// Attaches this shard's share groups to its engine.
    pub(crate) fn attach(engine: &Engine, settings: Rc<Settings>) -> Rc<Self> {
        let shares = Rc::new(Self {
            engine: engine.clone(),
            clock: Clock::start(),
            sessions: RefCell::new(Sessions::new(settings.size("group.share.max.share.sessions"))),
            partitions: RefCell::default(),
            timers: RefCell::default(),
            bell: Bell::default(),
            sleeps_until_ms: Cell::new(i64::MAX),
            waits: RefCell::default(),
            next_wait: Cell::new(0),
            seen_topics: RefCell::new(engine.topics()),
            settings,
        });
        engine.attach(Rc::clone(&shares));
        shares
    }

    /// Partitions have begun or ceased to be led here: what was given out in an epoch that is over is with nobody any more.
    /// Who leads now has it, as far as it is kept.
    pub(crate) fn on_leadership(&self) {
        let is_over = |live: &&Rc<Live>| self.engine.leader_epoch(live.key.place()) != Some(live.leader_epoch);
        let over: Vec<_> = self.partitions.borrow().values().filter(is_over).map(|live| live.key.clone()).collect();
        over.iter().for_each(|key| self.forget(key));
    }

    /// Keeps time until the node stops.
    pub(crate) async fn run(self: Rc<Self>) {
        let timer = std::pin::pin!(self.keep_time());
        let stopping = std::pin::pin!(self.engine.stopping());
        futures_util::future::select(timer, stopping).await;
    }

    async fn keep_time(self: &Rc<Self>) {
        loop {
            self.on_tick();
            let tick_ms = self.clock.now_ms() + i64::try_from(TICK.as_millis()).unwrap_or(0);
            loop {
                self.handle_timeouts();
                let now_ms = self.clock.now_ms();
                if now_ms >= tick_ms {
                    break;
                }
                let next_ms = self.timers.borrow().peek().map(|Reverse((at_ms, _))| *at_ms);
                let until_ms = next_ms.map_or(tick_ms, |next_ms| next_ms.min(tick_ms));
                self.sleeps_until_ms.set(until_ms);
                let pause = Duration::from_millis(until_ms.saturating_sub(now_ms).max(1).unsigned_abs());
                let sleep = std::pin::pin!(glommio::timer::sleep(pause));
                let rung = std::pin::pin!(self.bell.rung());
                futures_util::future::select(sleep, rung).await;
            }
        }
    }

    fn handle_timeouts(self: &Rc<Self>) {
        let now_ms = self.clock.now_ms();
        loop {
            let due = {
                let mut timers = self.timers.borrow_mut();
                match timers.peek() {
                    Some(Reverse((at_ms, _))) if *at_ms <= now_ms => timers.pop(),
                    _ => None,
                }
            };
            let Some(Reverse((at_ms, key))) = due else { return };
            let live = self.partitions.borrow().get(&key).cloned();
            if let Some(live) = live {
                self.time_out(&live, at_ms);
            }
        }
    }

    /// Forgets the share partitions of topics that were deleted.
    fn on_tick(self: &Rc<Self>) {
        let topics = self.engine.topics();
        let before = self.seen_topics.replace(Rc::clone(&topics));
        let has_deleted = !Rc::ptr_eq(&before, &topics) && before.by_id.keys().any(|id| !topics.by_id.contains_key(id));
        if has_deleted {
            let gone: Vec<_> = {
                let partitions = self.partitions.borrow();
                partitions.keys().filter(|key| !topics.by_id.contains_key(&key.topic)).cloned().collect()
            };
            gone.iter().for_each(|key| self.forget(key));
        }
    }

    /// The settings of a group.
    pub(crate) fn group_settings(&self, group: &str) -> GroupSettings {
        let dynamic = self.engine.broker_settings();
        self.settings.group(&KEPT_GROUPS.of(&self.engine, group), |name| dynamic_value(&dynamic, name))
    }
}
