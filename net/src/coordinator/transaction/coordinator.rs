//! The transactions of all ids that belong to one partition of `__transaction_state`: which request does what in which
//! state, Kafka's `TransactionCoordinator` as one synchronous machine.
//!
//! It runs ahead of the log: a step changes the state at once, its record is written in the order of the steps, and what it
//! tells leaves when the record is durable. Should a record not be written, the machine is to be dropped and loaded anew.
//!
//! Always holds:
//! - From the moment at which the end of a transaction is decided until every partition has it on stable storage, the id
//!   takes no other step: no record of its next transaction can become durable before the last marker of this one.
//! - Who asks meanwhile is held, in the order of asking, for [`HOLD_MAX_MS`]; then it is told CONCURRENT_TRANSACTIONS, which
//!   clients try again. Kafka says so at once.
//! - Where all partitions are on this shard, decision, markers and completion are one write: all of it or nothing.
//! - Elsewhere, markers follow the decision; but where a commit can be told by them (see [`Surroundings::may_ask_for_markers`])
//!   they are written beside it, and any one of them on stable storage means that it is decided. So a coordinator that finds
//!   an ongoing transaction when it is loaded asks its partitions for them before it does anything with it.
//! - That a transaction is over everywhere is written when nothing else was for [`COMPLETION_DELAY_MS`]: the record of the
//!   id's next transaction says it too, and without either a restart finds the decision and nothing open.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    rc::Rc,
};

use kafka_protocol::error::ResponseError;
use millrace_engine::transactions::{Marker, Outcome};

use super::{
    budget::Budget,
    metadata::{Ending, Metadata, PartitionName, Producer},
    record::TransactionRecord,
    request::{Errand, ProducerTicket, Progress, Questioner, Request, Surroundings},
    rule::{Rule, Rules},
    settings::{ABORT_INTERVAL_MS, Settings},
};
use crate::coordinator::runtime::{self, Effects, WriteId};

/// How long a request waits for the end of the transaction before it.
pub(crate) const HOLD_MAX_MS: i64 = 10_000;
/// Requests that wait for one id at most.
pub(super) const WAITING_MAX: usize = 256;
/// Pause before markers are sent again to partitions that did not take them.
pub(super) const MARKER_RETRY_MS: i64 = 100;
/// How long the record that a transaction is over everywhere waits for another one of the id to say so.
pub(super) const COMPLETION_DELAY_MS: i64 = 100;
/// Pause before a transaction whose time is up is looked at again, when no producer id was at hand.
const PRODUCER_ID_RETRY_MS: i64 = 100;

/// What happens once a write is durable.
#[derive(Debug)]
pub(super) enum Then {
    /// Nothing.
    Stands,
    /// Owners of partitions are told that the producer may write there.
    Admit(BTreeSet<PartitionName>, Producer),
    /// The transaction is over everywhere.
    Ended(Rc<str>),
    /// The end is decided: other shards get their markers.
    Prepared(Rc<str>),
}

impl runtime::Then for Then {
    fn runs_ahead(&self) -> bool {
        true
    }
}

/// A request and since when it waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) since_ms: i64,
    pub(super) request: Request,
}

/// How far the end of a transaction has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// All of it is one write, which is under way; with the state that the id was in before it was over.
    Group(Rc<Metadata>),
    /// The decision is under way, with the markers of these partitions.
    Prepare(Vec<PartitionName>),
    /// The decision is under way, with the markers of these partitions, and those of all others beside it.
    Together {
        /// Those whose markers go with the decision.
        here: Vec<PartitionName>,
        /// The others are not answered yet.
        are_sent: bool,
    },
    /// Markers are under way.
    Markers,
    /// Partitions are asked whether a former life has committed it.
    Asking,
    /// Markers are to be sent again.
    Retry,
}

/// The end of a transaction that is under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) stage: Stage,
    /// Whether partitions may have their markers already: these get none again.
    pub(super) only_where_open: bool,
    /// Who asked for it, what it hears, and since when it waits.
    pub(super) client: Option<(ProducerTicket, Producer, i64)>,
}

/// What is kept of a transactional id.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) metadata: Metadata,
    /// Its last record.
    pub(super) last_write: Option<WriteId>,
    /// Since when the state is known to no record.
    pub(super) unwritten_since_ms: Option<i64>,
    pub(super) under_way: Option<UnderWay>,
    /// Who waits for the end that is under way.
    pub(super) waiting: VecDeque<Waiting>,
    /// When it is looked at next.
    pub(super) timer_ms: Option<i64>,
}

/// What became of a request.
pub(super) enum Step {
    /// It is answered, or will be.
    Done,
    /// The same, with an error.
    Refused,
    /// It has to wait for the end that is under way.
    Held(Request),
    /// It has to wait for a producer id.
    NeedsProducerId(Request),
}

/// See the module.
pub(crate) struct Coordinator {
    pub(super) settings: Rc<Settings>,
    pub(super) surroundings: Rc<dyn Surroundings>,
    pub(super) budget: Rc<Budget>,
    /// Which markers carry: partitions refuse those of an older coordinator.
    pub(super) epoch: i32,
    pub(super) rules: Rules,
    /// As it is known to whom it asks.
    pub(super) questioner: Questioner,
    pub(super) entries: HashMap<Rc<str>, Entry>,
    pub(super) effects: Effects<TransactionRecord, Then>,
    pub(super) errands: Vec<Errand>,
    /// When ids are to be looked at.
    pub(super) timers: BTreeSet<(i64, Rc<str>)>,
    pub(super) spare_producer_ids: Vec<i64>,
    /// How many were asked for.
    pub(super) producer_ids_asked: usize,
    /// Requests that wait for one.
    pub(super) awaiting: VecDeque<(Rc<str>, Waiting)>,
    pub(super) loaded_ms: i64,
    pub(super) next_removal_ms: i64,
}

impl Coordinator {
    /// Knows of nothing. Markers carry the epoch.
    pub(crate) fn new(
        settings: Rc<Settings>,
        surroundings: Rc<dyn Surroundings>,
        budget: Rc<Budget>,
        epoch: i32,
    ) -> Self {
        Self {
            settings,
            surroundings,
            budget,
            epoch,
            rules: Rules::default(),
            questioner: Questioner::default(),
            entries: HashMap::new(),
            effects: Effects::default(),
            errands: Vec::new(),
            timers: BTreeSet::new(),
            spare_producer_ids: Vec::new(),
            producer_ids_asked: 0,
            awaiting: VecDeque::new(),
            loaded_ms: 0,
            next_removal_ms: 0,
        }
    }

    /// The same with a rule taken out.
    #[cfg(test)]
    pub(super) fn without(mut self, rule: Rule) -> Self {
        self.rules = Rules::without(rule);
        self
    }

    /// Takes a request, or has it wait.
    pub(super) fn handle(&mut self, now_ms: i64, id: &Rc<str>, request: Request) -> Progress {
        // who comes later does not pass who waits already
        let is_behind = self.entries.get(id).is_some_and(|entry| !entry.waiting.is_empty());
        let step = if is_behind { Step::Held(request) } else { self.try_now(now_ms, id, request) };
        match step {
            Step::Done => return Progress::Begun,
            Step::Refused => {}
            Step::Held(request) => self.hold(now_ms, id, Waiting { since_ms: now_ms, request }),
            Step::NeedsProducerId(request) => self.await_producer_id(id, Waiting { since_ms: now_ms, request }),
        }
        Progress::Waits
    }

    fn try_now(&mut self, now_ms: i64, id: &Rc<str>, request: Request) -> Step {
        if self.entries.get(id).is_some_and(|entry| entry.under_way.is_some()) {
            return Step::Held(request);
        }
        match request {
            Request::Init(init, ticket) => self.init(now_ms, id, init, ticket),
            Request::Add(add, ticket) => self.add(now_ms, id, add, ticket),
            Request::End(end, ticket) => self.end(now_ms, id, end, ticket),
        }
    }

    fn hold(&mut self, now_ms: i64, id: &Rc<str>, waiting: Waiting) {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.waiting.len() < WAITING_MAX) else {
            return self.refuse(waiting.request, ResponseError::ConcurrentTransactions);
        };
        entry.waiting.push_back(waiting);
        self.look_at(id, now_ms.saturating_add(HOLD_MAX_MS));
    }

    fn await_producer_id(&mut self, id: &Rc<str>, waiting: Waiting) {
        self.awaiting.push_back((Rc::clone(id), waiting));
        self.ask_for_producer_ids(self.awaiting.len());
    }

    /// Sees to it that so many producer ids will be at hand.
    pub(super) fn ask_for_producer_ids(&mut self, needed: usize) {
        while self.spare_producer_ids.len() + self.producer_ids_asked < needed {
            self.producer_ids_asked += 1;
            self.errands.push(Errand::ProducerId);
        }
    }

    /// A producer id that was asked for, or why there is none.
    pub(crate) fn handle_producer_id(&mut self, now_ms: i64, id: Result<i64, ResponseError>) {
        self.producer_ids_asked = self.producer_ids_asked.saturating_sub(1);
        match id {
            Ok(id) => self.spare_producer_ids.push(id),
            Err(error) => {
                if let Some((_, waiting)) = self.awaiting.pop_front() {
                    self.refuse(waiting.request, error);
                }
                return;
            }
        }
        if let Some((id, Waiting { since_ms, request })) = self.awaiting.pop_front() {
            match self.try_now(now_ms, &id, request) {
                Step::Done | Step::Refused => {}
                Step::Held(request) => self.hold(now_ms, &id, Waiting { since_ms, request }),
                Step::NeedsProducerId(request) => self.await_producer_id(&id, Waiting { since_ms, request }),
            }
        }
    }

    /// Lets those go on who waited for an end, until one of them begins another.
    pub(super) fn go_on(&mut self, now_ms: i64, id: &Rc<str>) {
        while let Some(Waiting { since_ms, request }) =
            self.entries.get_mut(id).and_then(|entry| entry.waiting.pop_front())
        {
            match self.try_now(now_ms, id, request) {
                Step::Done | Step::Refused => {}
                Step::NeedsProducerId(request) => self.await_producer_id(id, Waiting { since_ms, request }),
                Step::Held(request) => {
                    if let Some(entry) = self.entries.get_mut(id) {
                        entry.waiting.push_front(Waiting { since_ms, request });
                    }
                    return;
                }
            }
        }
    }

    /// Tells who asked that it is not done.
    pub(super) fn refuse(&mut self, request: Request, error: ResponseError) {
        match request {
            Request::Init(_, ticket) | Request::End(_, ticket) => self.effects.reply(ticket, Err(error)),
            Request::Add(_, ticket) => self.effects.reply(ticket, Err(error)),
        }
    }

    /// Takes a step: the state is another one from now on, and its record is written, with the markers.
    pub(super) fn step(&mut self, id: &Rc<str>, next: Metadata, markers: Vec<Marker>, then: Then) -> WriteId {
        let record = self.record(id, &next);
        let write = self.effects.write_with_markers(vec![record], markers, then);
        let entry = self.put(id, next);
        (entry.last_write, entry.unwritten_since_ms) = (Some(write), None);
        write
    }

    fn record(&self, id: &Rc<str>, metadata: &Metadata) -> TransactionRecord {
        let version = i16::from(self.surroundings.transaction_version() >= 1);
        TransactionRecord { id: Rc::clone(id), metadata: Some(metadata.clone()), version }
    }

    /// Takes a step beyond one that nobody has begun to write: one record tells of both. `None`: it is being written.
    pub(super) fn step_further(&mut self, id: &Rc<str>, next: &Metadata) -> Option<WriteId> {
        let write = self.entries.get(id)?.last_write?;
        let record = self.record(id, next);
        *self.effects.untaken(write)? = vec![record];
        self.put(id, next.clone());
        Some(write)
    }

    /// Sets the state of an id.
    pub(super) fn put(&mut self, id: &Rc<str>, metadata: Metadata) -> &mut Entry {
        if let Some(before) = self.entries.get(id) {
            self.budget.give_back(id, before.metadata.partitions.len());
        }
        self.budget.take(id, metadata.partitions.len());
        let entry = self.entries.entry(Rc::clone(id)).or_insert_with(|| Entry {
            metadata: metadata.clone(),
            last_write: None,
            unwritten_since_ms: None,
            under_way: None,
            waiting: VecDeque::new(),
            timer_ms: None,
        });
        entry.metadata = metadata;
        entry
    }

    /// The id is looked at then, at the latest.
    pub(super) fn look_at(&mut self, id: &Rc<str>, at_ms: i64) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if entry.timer_ms.is_some_and(|timer_ms| timer_ms <= at_ms) {
            return;
        }
        if let Some(before_ms) = entry.timer_ms.replace(at_ms) {
            self.timers.remove(&(before_ms, Rc::clone(id)));
        }
        self.timers.insert((at_ms, Rc::clone(id)));
    }

    /// When a transaction that has taken too long is aborted: at the next look after its time was up.
    pub(super) fn abort_ms(&self, deadline_ms: i64) -> i64 {
        let interval_ms = self.settings.get(ABORT_INTERVAL_MS).max(1);
        let since_ms = deadline_ms.saturating_sub(self.loaded_ms).max(0);
        let looks = since_ms / interval_ms + 1;
        self.loaded_ms.saturating_add(looks.saturating_mul(interval_ms))
    }

    /// Does what is due for an id.
    pub(super) fn look(&mut self, now_ms: i64, id: &Rc<str>) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.timer_ms = None;
        let mut late = Vec::new();
        while entry.waiting.front().is_some_and(|waiting| now_ms - waiting.since_ms >= HOLD_MAX_MS) {
            late.extend(entry.waiting.pop_front());
        }
        let mut client = None;
        let mut is_retry = false;
        if let Some(under_way) = &mut entry.under_way {
            is_retry = under_way.stage == Stage::Retry;
            if under_way.client.as_ref().is_some_and(|(_, _, since_ms)| now_ms - since_ms >= HOLD_MAX_MS) {
                client = under_way.client.take();
            }
        }
        let is_late = entry.under_way.is_none()
            && entry.metadata.deadline_ms().is_some_and(|deadline_ms| now_ms >= self.abort_ms(deadline_ms));
        late.into_iter().for_each(|waiting| self.refuse(waiting.request, ResponseError::ConcurrentTransactions));
        if let Some((ticket, ..)) = client {
            self.effects.reply(ticket, Err(ResponseError::ConcurrentTransactions));
        }
        if is_retry {
            self.mark(now_ms, id);
        }
        if is_late {
            self.time_out(now_ms, id);
        }
        self.write_completion(now_ms, id);
        self.look_again(now_ms, id);
    }

    fn time_out(&mut self, now_ms: i64, id: &Rc<str>) {
        let ending = match self.rules.is_off(Rule::TimeoutFences) {
            true => Ending::Client(Outcome::Abort, 0),
            false => Ending::Fence(self.surroundings.transaction_version()),
        };
        if self.begin_end(now_ms, id, ending, None).is_err() {
            self.ask_for_producer_ids(self.awaiting.len() + 1);
        }
    }

    /// Sees to it that what is due next for an id is done in time.
    pub(super) fn look_again(&mut self, now_ms: i64, id: &Rc<str>) {
        let Some(entry) = self.entries.get(id) else { return };
        let waiting_ms = entry.waiting.front().map(|waiting| waiting.since_ms.saturating_add(HOLD_MAX_MS));
        let client = entry.under_way.as_ref().and_then(|under_way| under_way.client.as_ref());
        let client_ms = client.map(|(_, _, since_ms)| since_ms.saturating_add(HOLD_MAX_MS));
        let deadline_ms = entry.metadata.deadline_ms().filter(|_| entry.under_way.is_none());
        // what is due and was not done waits for a producer id
        let abort_ms = deadline_ms.map(|deadline_ms| self.abort_ms(deadline_ms));
        let abort_ms =
            abort_ms.map(|abort_ms| if abort_ms <= now_ms { now_ms + PRODUCER_ID_RETRY_MS } else { abort_ms });
        let unwritten_ms = entry.unwritten_since_ms.map(|since_ms| since_ms.saturating_add(COMPLETION_DELAY_MS));
        if let Some(next_ms) = [waiting_ms, client_ms, abort_ms, unwritten_ms].into_iter().flatten().min() {
            self.look_at(id, next_ms);
        }
    }
}
