//! One node's part of the control plane, without I/O: it keeps an image of the store, is a member, answers questions, and
//! decides for all while it is controller.
//!
//! Whoever runs it calls, in any order, `handle_asked`, `handle_done`, `handle_watched` and `handle_tick`, and after each of
//! them takes all of `next_work` (what the store is to be asked; each is answered by one `handle_done`) and `next_event`
//! (what the node is to hear). `wake_in` says when `handle_tick` is due. Work on one [`Lane`] is done in order.
//!
//! What always holds: nothing is decided from an image that is older than the node's registration; everything that is written
//! compares what it was decided from.

mod controller;
mod health;
mod jobs;
mod mirror;
mod questions;
mod registration;
mod settings;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

pub use self::registration::KEEP_ALIVE_EVERY;
pub use self::settings::{ClusterIdentity, History, Lane, NodeIdentity, Options, Order, Rebalance, Snapshot, Work};
use self::{
    controller::Controller,
    health::Health,
    jobs::AnyJob,
    mirror::{Mirror, Seen},
    registration::Registration,
};
use super::{
    admin::partitions,
    image::{Changed, Image},
    keys::{self, StoredAdopted},
    model::Member,
    plane::{Asked, ControlError, Question, Reply},
    restored::{Remembered, Shown},
    store::{Change, Compare, Outcome, StoreError, Transaction},
};

/// How often `handle_tick` is called while something waits, and while nothing does.
const TICK_BUSY: Duration = Duration::from_millis(20);
const TICK_IDLE: Duration = Duration::from_millis(200);

/// Transactions under way, from which on no more are begun for questions. [`WORK_MAX`] has room for those of one turn.
const OUTSTANDING_MAX: usize = 512;

/// How long it counts that this node could not reach another.
const REPORT_LASTS: Duration = Duration::from_secs(10);

/// Pieces of work on one lane at most.
pub const WORK_MAX: usize = 1024;

// or the core would wait for a lane whose answers wait for the core
const _: () = assert!(OUTSTANDING_MAX + controller::ROUND_MAX < WORK_MAX);

/// Reads of the store in sequence that must be behind what was seen before, until that is believed: old versions of etcd
/// answer some reads from the past.
const REGRESSIONS_MAX: u32 = 3;

/// What the store answered to [`Work`].
#[derive(Clone, Debug)]
pub enum Done {
    /// To [`Work::ReadAll`].
    ReadAll(Result<Snapshot, StoreError>),
    /// To [`Work::Watch`]: whether it was begun.
    Watch(u64, Result<(), StoreError>),
    /// To [`Work::Grant`].
    Granted(Result<i64, StoreError>),
    /// To [`Work::KeepAlive`]: of which lease, when it was sent, and the store's revision.
    KeptAlive(i64, Instant, Result<i64, StoreError>),
    /// To [`Work::Revoke`].
    Revoked(Result<(), StoreError>),
    /// To [`Work::Transact`].
    Transacted(u64, Result<Outcome, StoreError>),
    /// To [`Work::Compact`].
    Compacted(Result<(), StoreError>),
}

/// What the node hears.
#[derive(Clone, Debug)]
pub enum Event {
    /// The cluster as it is now, and what changed since the last one. None comes while the cluster is being adopted: a restored
    /// store has forgotten topics whose records are here, and they come back with the decision.
    Image(Image, Vec<Changed>),
    /// This node lives, as that member. Images from here on, the first of which comes with this, may be acted on.
    Registered(Member, Image),
    /// The life that was registered is over: nothing that rests on it may be done any more. Another one follows.
    Lost,
    /// This node's life may be trusted to last until then: it was kept alive, or etcd does not answer and the node was awake all
    /// the while. Who wakes up later than that does not lead before it has heard more.
    Lease(Instant),
    /// etcd does not answer, since when and why. Everything but elections and changes of topics goes on.
    Away(Instant, String),
    /// etcd answers and takes no writes, as its space is used up. Nothing changes by itself.
    Full(String),
    /// etcd answers again, or takes writes again.
    Back,
    /// To be kept durably: another etcd, or one that went back behind this, is refused at the next start.
    Remember(Remembered),
    /// The node waits to become a member, and for what.
    Waiting(String),
    /// This node cannot be a member. The core does nothing any more.
    Fatal(String),
}

/// The core.
pub struct ControlCore {
    options: Options,
    mirror: Mirror,
    registration: Registration,
    controller: Controller,
    jobs: BTreeMap<u64, Box<dyn AnyJob>>,
    next_job: u64,
    /// Which job a transaction belongs to.
    tickets: BTreeMap<u64, Owner>,
    next_ticket: u64,
    /// Nodes that this one said it cannot reach, and when.
    reports: BTreeMap<Member, Instant>,
    drains: Vec<(Instant, Reply<()>)>,
    leaves: Vec<(Instant, Reply<()>)>,
    health: Health,
    work: VecDeque<Work>,
    events: VecDeque<Event>,
    regressions: u32,
    /// How far the store's revisions were ahead of its log at most when all was read last.
    ahead: Option<i64>,
    /// What the node was told that it waits for.
    waiting: Option<String>,
    stopped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Registration,
    Controller,
    Report,
    Probe,
    Mark,
    Job(u64),
}

impl std::fmt::Debug for ControlCore {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ControlCore").field("registration", &self.registration).finish_non_exhaustive()
    }
}

impl ControlCore {
    /// One that begins to read the store.
    pub fn new(options: Options, now: Instant) -> Self {
        let mut core = Self {
            mirror: Mirror::new(Arc::new(options.topic_defaults.clone()), now),
            registration: Registration::new(now),
            controller: Controller::new(&options, now),
            options,
            jobs: BTreeMap::new(),
            next_job: 0,
            tickets: BTreeMap::new(),
            next_ticket: 0,
            reports: BTreeMap::new(),
            drains: Vec::new(),
            leaves: Vec::new(),
            health: Health::default(),
            work: VecDeque::new(),
            events: VecDeque::new(),
            regressions: 0,
            ahead: None,
            waiting: None,
            stopped: false,
        };
        core.advance(now);
        core
    }

    /// This node's present life, if it has one.
    pub fn member(&self) -> Option<Member> {
        self.registration.member()
    }

    /// The cluster as it is known here.
    pub fn image(&self) -> &Image {
        self.mirror.image()
    }

    /// What the store is to be asked next.
    pub fn next_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    /// What the node is to hear next.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// In what time `handle_tick` is due.
    pub fn wake_in(&self) -> Duration {
        let is_busy = !self.jobs.is_empty() || self.controller.is_busy() || self.member().is_none();
        if is_busy { TICK_BUSY } else { TICK_IDLE }
    }

    /// A question.
    pub fn handle_asked(&mut self, asked: Asked, now: Instant) {
        if self.stopped {
            return asked.question.fail(ControlError::Stopping);
        }
        self.begin(asked.question, asked.deadline, now);
        self.advance(now);
    }

    /// What the store answered.
    pub fn handle_done(&mut self, done: Done, now: Instant) {
        self.note_health(&done, now);
        match done {
            Done::ReadAll(Ok(snapshot)) => self.on_read(snapshot, now),
            Done::ReadAll(Err(_)) => self.mirror.on_read_failed(now),
            Done::Watch(number, Err(error)) => self.mirror.on_watch_ended(number, &error, now),
            Done::Watch(_, Ok(())) | Done::Compacted(_) => {}
            Done::Granted(lease) => self.registration.on_granted(lease, &self.options, now),
            Done::KeptAlive(lease, sent, result) => {
                if let Ok(revision) = result {
                    self.mirror.note_revision(revision, now);
                }
                if let Some(until) = self.registration.on_kept_alive(lease, sent, &result, &self.options, now) {
                    self.events.push_back(Event::Lease(until));
                }
            }
            Done::Revoked(result) => self.on_revoked(&result),
            Done::Transacted(ticket, result) => self.on_transacted(ticket, result, now),
        }
        self.advance(now);
    }

    /// What a watch brought.
    pub fn handle_watched(&mut self, number: u64, watched: Result<Vec<Change>, StoreError>, now: Instant) {
        match watched {
            Err(error) => self.mirror.on_watch_ended(number, &error, now),
            Ok(changes) => {
                let seen = self.mirror.on_changes(number, &changes, now);
                self.take(seen);
            }
        }
        self.advance(now);
    }

    /// Time went by.
    pub fn handle_tick(&mut self, now: Instant) {
        self.events.extend(self.health.telling(self.options.away_after, now));
        if let Some(probe) = self.health.probe(now) {
            let ticket = self.ticket(Owner::Probe);
            self.health.sent(ticket);
            self.work.push_back(Work::Transact(ticket, probe, Order::Free));
        }
        self.advance(now);
    }

    fn take(&mut self, seen: Seen) {
        match seen {
            Seen::Nothing => {}
            Seen::Changed(changed) => {
                self.controller.note(&changed);
                // what is not acted on yet is shown all the same: the node may wait for it
                let image = self.mirror.image();
                if !image.being_adopted {
                    self.events.push_back(Event::Image(image.clone(), changed));
                }
            }
            Seen::Unreadable(text) => self.fail(text),
        }
    }

    /// Does what can be done now.
    fn advance(&mut self, now: Instant) {
        if self.stopped {
            return;
        }
        self.mirror.advance(now, &mut self.work);
        self.register(now);
        self.expire(now);
        let Some(me) = self.member() else { return };
        self.run_jobs(me, now);
        let tickets = &mut self.next_ticket;
        for (ticket, transaction) in self.controller.advance(self.mirror.image(), me, &self.registration, now, tickets)
        {
            self.tickets.insert(ticket, Owner::Controller);
            // those of one round are about different partitions, what else a node does as controller or to become it is one at a
            // time, and compares say whether any came too late
            self.work.push_back(Work::Transact(ticket, transaction, Order::Free));
        }
        self.work.extend(self.controller.compaction(self.mirror.image(), me, now).map(Work::Compact));
        self.withdraw(me, now);
        self.answer_drains(me);
    }

    fn register(&mut self, now: Instant) {
        let image = self.mirror.is_live().then(|| self.mirror.image());
        let step = self.registration.advance(image, &mut self.options, now);
        for done in step {
            match done {
                registration::Step::Work(work) => self.work.push_back(work),
                registration::Step::Transact(transaction) => {
                    let ticket = self.ticket(Owner::Registration);
                    self.work.push_back(Work::Transact(ticket, transaction, Order::Kept));
                }
                registration::Step::Registered(member, until) => {
                    let image = self.mirror.image().clone();
                    self.controller.begin_life();
                    self.options.adoptions_known = Some(image.adopted.times);
                    self.events.extend(self.options.remembered.map(Event::Remember));
                    self.events.push_back(Event::Registered(member, image));
                    self.events.push_back(Event::Lease(until));
                    self.write_mark();
                }
                registration::Step::Lost => self.events.push_back(Event::Lost),
                registration::Step::Waiting(text) => self.wait(text),
                registration::Step::Fatal(text) => return self.fail(text),
            }
        }
    }

    /// Says what is waited for, once.
    fn wait(&mut self, text: String) {
        if self.waiting.as_ref() != Some(&text) {
            self.waiting = Some(text.clone());
            self.events.push_back(Event::Waiting(text));
        }
    }

    fn on_read(&mut self, snapshot: Snapshot, now: Instant) {
        let remembered = match self.check_store(&snapshot) {
            Ok(remembered) => remembered,
            Err(text) => {
                self.regressions += 1;
                let is_other = self.options.remembered.is_some_and(|before| before.store != snapshot.identity);
                return match is_other || self.regressions >= REGRESSIONS_MAX {
                    true => self.fail(text),
                    false => self.mirror.on_read_failed(now),
                };
            }
        };
        self.regressions = 0;
        self.options.remembered = Some(remembered);
        self.ahead = snapshot.ahead.map(|ahead| ahead.mark());
        let seen = self.mirror.on_read(snapshot, now);
        self.take(seen);
        if self.member().is_some() {
            self.events.push_back(Event::Remember(remembered));
            self.write_mark();
        }
    }

    /// Writes down by what a restore of the store is known, once.
    fn write_mark(&mut self) {
        let adopted = self.mirror.image().adopted.clone();
        let Some(ahead) = self.ahead.filter(|_| adopted.mark.ahead.is_none()) else { return };
        let stored = StoredAdopted { times: adopted.times, by: adopted.by.clone(), ahead: Some(ahead) };
        let transaction = Transaction::new()
            .when(Compare::Modified(keys::ADOPTED.to_owned(), adopted.mark.since))
            .when(Compare::Created(keys::ADOPTING.to_owned(), 0))
            .put(keys::ADOPTED.to_owned(), keys::write(&stored));
        let ticket = self.ticket(Owner::Mark);
        self.work.push_back(Work::Transact(ticket, transaction, Order::Free));
    }

    /// What is to be kept in mind of the store; an error if it must not be gone on with. While nodes adopt it none registers
    /// anyway, and those that have not yet still refuse it for what they have seen.
    fn check_store(&self, snapshot: &Snapshot) -> Result<Remembered, String> {
        let seen = Remembered { store: snapshot.identity, revision: snapshot.revision };
        let mark = snapshot.mark().map_err(|error| error.to_string())?;
        let ahead = snapshot.ahead.filter(|_| !snapshot.is_being_adopted());
        Shown { seen, ahead, mark }.check(self.options.remembered)?;
        Ok(seen)
    }

    fn note_health(&mut self, done: &Done, now: Instant) {
        if self.health.note(done, now) {
            self.events.push_back(Event::Back);
        }
        if matches!(done, Done::KeptAlive(_, _, Err(error)) if *error != StoreError::LeaseOver) {
            // the watch may hang on the same member of etcd without noticing
            self.mirror.doubt_watch(now);
        }
    }

    fn fail(&mut self, text: String) {
        self.stopped = true;
        self.jobs.values_mut().for_each(|job| job.fail(&ControlError::TimedOut(text.clone())));
        self.jobs.clear();
        self.drains.clear();
        self.leaves.clear();
        self.events.push_back(Event::Fatal(text));
    }

    fn ticket(&mut self, owner: Owner) -> u64 {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, owner);
        self.next_ticket
    }

    fn on_transacted(&mut self, ticket: u64, result: Result<Outcome, StoreError>, now: Instant) {
        match self.tickets.remove(&ticket) {
            Some(Owner::Registration) => self.registration.on_transacted(&result, now),
            Some(Owner::Controller) => self.controller.on_transacted(ticket, &result, now),
            Some(Owner::Job(job)) => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.on_transacted(ticket, &result, now);
                }
            }
            // a report that was not written is made again by who cannot reach the node, the mark with the next read
            Some(Owner::Report | Owner::Probe | Owner::Mark) | None => {}
        }
    }

    fn run_jobs(&mut self, me: Member, now: Instant) {
        let image = self.mirror.image();
        let mut finished = Vec::new();
        for (number, job) in &mut self.jobs {
            if self.tickets.len() >= OUTSTANDING_MAX {
                break;
            }
            for transaction in job.advance(image, me, now, &mut self.options.ids) {
                self.next_ticket += 1;
                job.sent(self.next_ticket);
                self.tickets.insert(self.next_ticket, Owner::Job(*number));
                self.work.push_back(Work::Transact(self.next_ticket, transaction, Order::Kept));
            }
            if job.finish(image.revision) {
                finished.push(*number);
            }
        }
        finished.iter().for_each(|number| drop(self.jobs.remove(number)));
    }

    fn expire(&mut self, now: Instant) {
        let reason = self.reason_to_wait();
        self.jobs.retain(|_, job| !job.expire(now, &reason));
        for waiting in [&mut self.drains, &mut self.leaves] {
            while let Some(at) = waiting.iter().position(|(deadline, _)| *deadline <= now) {
                waiting.remove(at).1.give(Err(ControlError::TimedOut(reason.clone())));
            }
        }
    }

    /// Why something is not done yet.
    fn reason_to_wait(&self) -> String {
        match (self.health.reason(), self.member()) {
            (Some(reason), _) => reason,
            (None, None) => "this node is not a member of its cluster yet".to_owned(),
            (None, Some(_)) => "others changed the same all the time".to_owned(),
        }
    }

    fn answer_drains(&mut self, me: Member) {
        let image = self.mirror.image();
        let is_told = image.draining.get(&me.node) == Some(&me.epoch);
        if self.drains.is_empty() || !is_told || !partitions::leads_nothing(image, me.node) {
            return;
        }
        self.drains.drain(..).for_each(|(_, reply)| reply.give(Ok(())));
    }

    fn on_revoked(&mut self, result: &Result<(), StoreError>) {
        for (_, reply) in self.leaves.drain(..) {
            reply.give(match result {
                Ok(()) | Err(StoreError::LeaseOver) => Ok(()),
                Err(error) => Err(ControlError::TimedOut(error.to_string())),
            });
        }
    }

    fn begin(&mut self, question: Question, deadline: Instant, now: Instant) {
        let job = match question {
            Question::Drain(reply) => {
                self.registration.drain();
                return self.drains.push((deadline, reply));
            }
            Question::Leave(reply) => {
                self.work.extend(self.registration.leave().map(Work::Revoke));
                return self.leaves.push((deadline, reply));
            }
            Question::Unreachable(whom) => return self.report(whom, now),
            other => questions::job(other, self.options.node.id, deadline),
        };
        self.next_job += 1;
        self.jobs.insert(self.next_job, job);
    }

    /// Says that another node cannot be reached, once for each of its lives and for a while.
    fn report(&mut self, whom: Member, now: Instant) {
        let Some((me, lease)) = self.registration.held() else { return };
        if whom.node == me.node || !self.mirror.image().is_alive(whom) || self.reports.contains_key(&whom) {
            return;
        }
        self.reports.insert(whom, now);
        let ticket = self.ticket(Owner::Report);
        self.work.push_back(Work::Transact(ticket, controller::report(whom, me, lease), Order::Kept));
    }

    /// Takes reports back that nobody agreed with: the next one must not find an old witness.
    fn withdraw(&mut self, me: Member, now: Instant) {
        let old = self.reports.iter().filter(|(_, since)| now.duration_since(**since) >= REPORT_LASTS);
        let old: Vec<_> = old.map(|(whom, _)| *whom).collect();
        for whom in old {
            self.reports.remove(&whom);
            if self.mirror.image().reports.get(&(whom.node, me.node)) == Some(&whom.epoch) {
                let ticket = self.ticket(Owner::Report);
                self.work.push_back(Work::Transact(ticket, controller::withdrawal(whom, me), Order::Kept));
            }
        }
    }
}

/// Ids from a generator that never gives one twice.
pub type Ids = Box<dyn FnMut() -> Uuid + Send>;

#[cfg(test)]
mod tests;
