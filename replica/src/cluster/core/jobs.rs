//! Questions under way: planned from an image, written, planned anew if a compare failed, answered once the image shows it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::cluster::{
    admin::{FIRST_STEP, PARTITIONS_PER_TRANSACTION, Plan, Setting, absorb},
    image::Image,
    model::Member,
    plane::{AdminError, ControlError, Reply, Visible},
    store::{Compare, Outcome, StoreError, Transaction},
};

/// How long after a failure it is planned anew, if no other image came.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Transactions of one question that are begun in one turn at most.
const LEAVING_MAX: usize = 64;

type Planner<T> = Box<dyn FnMut(&mut Setting<'_>) -> Plan<T> + Send>;

/// One part of a question, planned by itself.
pub(super) struct Item<T> {
    plan: Planner<T>,
    state: State<T>,
    attempts: u32,
    /// It goes alone: together with others it was refused.
    alone: bool,
}

enum State<T> {
    /// To be planned, from an image behind that revision, or when it is time.
    Waiting(i64, Instant),
    /// Its transactions are under way.
    Writing(Writing<T>),
    Finished(T),
    /// Between two of the others.
    Turning,
}

struct Writing<T> {
    /// Those that are still to be done, the next one last.
    steps: Vec<Transaction>,
    /// Revision of the first that was done.
    first: Option<i64>,
    answer: Box<dyn FnOnce(i64) -> T + Send>,
    /// Revision of the image that it was planned from.
    planned: i64,
}

/// An item from its planner.
pub(super) fn item<T>(plan: impl FnMut(&mut Setting<'_>) -> Plan<T> + Send + 'static) -> Item<T> {
    let state = State::Turning;
    Item { plan: Box::new(plan), state, attempts: 0, alone: false }
}

/// A question under way, whatever its answer is.
pub(super) trait AnyJob: Send {
    /// What is to be written now; each is answered by `sent` with its ticket before the next.
    fn advance(
        &mut self,
        image: &Image,
        me: Member,
        now: Instant,
        ids: &mut (dyn FnMut() -> Uuid + Send),
    ) -> Vec<Transaction>;
    /// The next one of what `advance` gave has this ticket.
    fn sent(&mut self, ticket: u64);
    /// What came of a transaction.
    fn on_transacted(&mut self, ticket: u64, result: &Result<Outcome, StoreError>, now: Instant);
    /// Answers, if all is done and the image shows it.
    fn finish(&mut self, revision: i64) -> bool;
    /// Answers, if its time is over.
    fn expire(&mut self, now: Instant, reason: &str) -> bool;
    /// Answers that there is no answer.
    fn fail(&mut self, error: &ControlError);
}

type Answer<T> = Box<dyn FnOnce(Result<Vec<T>, ControlError>, i64) + Send>;

/// A question of several items.
pub(super) struct Job<T> {
    items: Vec<Item<T>>,
    deadline: Instant,
    answer: Option<Answer<T>>,
    /// Items may share transactions.
    merges: bool,
    /// The answer waits until the image shows it.
    shows: bool,
    /// What an item is answered whose time is over.
    expired: Option<fn() -> T>,
    /// Items of the transactions that `advance` gave, in order.
    leaving: Vec<Vec<usize>>,
    in_flight: BTreeMap<u64, Vec<usize>>,
    written: i64,
}

impl<T: Send + 'static> Job<T> {
    pub(super) fn new(
        items: Vec<Item<T>>,
        deadline: Instant,
        answer: impl FnOnce(Result<Vec<T>, ControlError>, i64) + Send + 'static,
    ) -> Self {
        Self {
            items,
            deadline,
            answer: Some(Box::new(answer)),
            merges: false,
            shows: true,
            expired: None,
            leaving: Vec::new(),
            in_flight: BTreeMap::new(),
            written: 0,
        }
    }

    /// One whose items share transactions, and that is answered as soon as they are done.
    pub(super) fn merged(
        items: Vec<Item<T>>,
        deadline: Instant,
        answer: impl FnOnce(Result<Vec<T>, ControlError>, i64) + Send + 'static,
    ) -> Self {
        Self { merges: true, shows: false, ..Self::new(items, deadline, answer) }
    }

    /// One whose items are answered with that when their time is over.
    pub(super) fn expiring(self, expired: fn() -> T) -> Self {
        Self { expired: Some(expired), ..self }
    }

    /// One of a single item.
    pub(super) fn one(
        item: Item<T>,
        deadline: Instant,
        answer: impl FnOnce(Result<T, ControlError>, i64) + Send + 'static,
    ) -> Self {
        Self::new(vec![item], deadline, move |outcomes, revision| {
            let outcome = outcomes.and_then(|mut outcomes| outcomes.pop().ok_or(ControlError::Stopping));
            answer(outcome, revision);
        })
    }

    fn give(&mut self, outcomes: Result<Vec<T>, ControlError>) {
        if let Some(answer) = self.answer.take() {
            answer(outcomes, self.written);
        }
    }

    fn wait(item: &mut Item<T>, planned: i64, at: Instant) {
        item.attempts += 1;
        item.state = State::Waiting(planned, at);
    }

    fn outcomes(&mut self) -> Vec<T> {
        let finished = self.items.drain(..).filter_map(|item| match item.state {
            State::Finished(outcome) => Some(outcome),
            State::Waiting(..) | State::Writing(_) | State::Turning => None,
        });
        finished.collect()
    }

    /// Puts an item's next transaction to the last one, or behind it.
    fn add(&mut self, at: usize, transactions: &mut Vec<Transaction>) {
        let item = &mut self.items[at];
        let State::Writing(writing) = &mut item.state else { return };
        let Some(step) = writing.steps.pop() else { return };
        let joins = self.merges && !item.alone && writing.steps.is_empty();
        if joins
            && let (Some(last), Some(others)) = (transactions.last_mut(), self.leaving.last_mut())
            && others.len() < PARTITIONS_PER_TRANSACTION
            && others.iter().all(|other| !self.items[*other].alone)
            && absorb(last, &step)
        {
            others.push(at);
            return;
        }
        transactions.push(step);
        self.leaving.push(vec![at]);
    }
}

impl<T: Send + 'static> Job<Result<T, AdminError>> {
    /// One that is answered once the image shows it, with the revision that does.
    pub(super) fn visible(
        items: Vec<Item<Result<T, AdminError>>>,
        deadline: Instant,
        reply: Reply<Visible<Vec<Result<T, AdminError>>>>,
    ) -> Self {
        Self::new(items, deadline, move |outcomes, revision| {
            reply.give(outcomes.map(|outcome| Visible { revision, outcome }));
        })
    }

    /// The same, with items that share transactions.
    pub(super) fn visible_merged(
        items: Vec<Item<Result<T, AdminError>>>,
        deadline: Instant,
        reply: Reply<Visible<Vec<Result<T, AdminError>>>>,
    ) -> Self {
        Self { merges: true, ..Self::visible(items, deadline, reply) }
    }

    /// The same, of a single item.
    pub(super) fn visible_one(
        item: Item<Result<T, AdminError>>,
        deadline: Instant,
        reply: Reply<Visible<Result<T, AdminError>>>,
    ) -> Self {
        Self::one(item, deadline, move |outcome, revision| {
            reply.give(outcome.map(|outcome| Visible { revision, outcome }));
        })
    }
}

impl<T: Send + 'static> AnyJob for Job<T> {
    fn advance(
        &mut self,
        image: &Image,
        me: Member,
        now: Instant,
        ids: &mut (dyn FnMut() -> Uuid + Send),
    ) -> Vec<Transaction> {
        let mut transactions = Vec::new();
        for at in 0..self.items.len() {
            if transactions.len() >= LEAVING_MAX {
                break;
            }
            let item = &mut self.items[at];
            let is_due = match &item.state {
                State::Turning => true,
                State::Waiting(revision, time) => image.revision > *revision || *time <= now,
                State::Writing(writing) => {
                    // one step of several is done, and the next one is due
                    if writing.first.is_some() && !self.in_flight.values().any(|items| items.contains(&at)) {
                        self.add(at, &mut transactions);
                    }
                    continue;
                }
                State::Finished(_) => false,
            };
            if !is_due {
                continue;
            }
            let mut setting = Setting { image, me, attempts: item.attempts, ids: &mut *ids };
            match (item.plan)(&mut setting) {
                Plan::Answer(answer) => item.state = State::Finished(answer),
                Plan::Later => item.state = State::Waiting(image.revision, now + RETRY_AFTER),
                Plan::Write(mut steps, answer) => {
                    steps.reverse();
                    item.state = State::Writing(Writing { steps, first: None, answer, planned: image.revision });
                    self.add(at, &mut transactions);
                }
            }
        }
        transactions
    }

    fn sent(&mut self, ticket: u64) {
        if !self.leaving.is_empty() {
            let items = self.leaving.remove(0);
            self.in_flight.insert(ticket, items);
        }
    }

    fn on_transacted(&mut self, ticket: u64, result: &Result<Outcome, StoreError>, now: Instant) {
        let Some(items) = self.in_flight.remove(&ticket) else { return };
        let together = items.len() > 1;
        for at in items {
            let Some(item) = self.items.get_mut(at) else { continue };
            let State::Writing(mut writing) = std::mem::replace(&mut item.state, State::Turning) else { continue };
            match result {
                Ok(Outcome::Done(revision)) => {
                    self.written = self.written.max(*revision);
                    let first = *writing.first.get_or_insert(*revision);
                    if writing.steps.is_empty() {
                        item.state = State::Finished((writing.answer)(*revision));
                    } else {
                        writing.steps.iter_mut().for_each(|step| fill_in(step, first));
                        item.state = State::Writing(writing);
                    }
                }
                Ok(Outcome::Refused(_)) => {
                    // together it may have been another's compare: alone it need not wait for an image
                    let at = if together { now } else { now + RETRY_AFTER };
                    item.alone |= together;
                    Self::wait(item, writing.planned, at);
                }
                Err(_) => Self::wait(item, i64::MAX, now + 2 * RETRY_AFTER),
            }
        }
    }

    fn finish(&mut self, revision: i64) -> bool {
        let is_done = self.items.iter().all(|item| matches!(item.state, State::Finished(_)));
        if !is_done || (self.shows && revision < self.written) {
            return false;
        }
        let outcomes = self.outcomes();
        self.give(Ok(outcomes));
        true
    }

    fn expire(&mut self, now: Instant, reason: &str) -> bool {
        if self.deadline > now {
            return false;
        }
        match self.expired {
            None => self.give(Err(ControlError::TimedOut(reason.to_owned()))),
            Some(expired) => {
                for item in self.items.iter_mut().filter(|item| !matches!(item.state, State::Finished(_))) {
                    item.state = State::Finished(expired());
                }
                let outcomes = self.outcomes();
                self.give(Ok(outcomes));
            }
        }
        true
    }

    fn fail(&mut self, error: &ControlError) {
        self.give(Err(error.clone()));
    }
}

/// Names the revision of a plan's first transaction, where one behind it compares with that.
fn fill_in(step: &mut Transaction, first: i64) {
    for compare in &mut step.compares {
        if let Compare::Modified(_, revision) = compare
            && *revision == FIRST_STEP
        {
            *revision = first;
        }
    }
}
