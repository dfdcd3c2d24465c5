//! What a request does in which state: the table of Kafka's `TransactionCoordinator`, top to bottom, for an id whose last
//! transaction is not ending at the moment (those are held before they come here).
//!
//! Where we differ: who expects an epoch that is not the id's own does not abort its successor's transaction before it hears
//! so (PRODUCER_FENCED); a commit that came after the coordinator had aborted for its time was fenced, not in an invalid
//! state (KAFKA-20785).

use std::{collections::BTreeSet, rc::Rc};

use kafka_protocol::error::ResponseError;
use millrace_engine::transactions::Outcome;

use super::{
    coordinator::{Coordinator, Step, Then},
    metadata::{EPOCH_BUMP_VERSION, Ending, LAST_EPOCH, Metadata, PartitionName, Producer, is_exhausted},
    request::{AddPartitions, DoneTicket, EndTransaction, InitProducerId, ProducerTicket, Progress, Request},
    rule::Rule,
    settings::TIMEOUT_MAX_MS,
    state::State,
};
use crate::coordinator::runtime::Ticket;

/// What an end does to a transaction that is not ending yet.
enum Verdict {
    /// It ends.
    Begin,
    /// It has ended like that before: the answer is that of then.
    Repeated,
    /// It may not end like that.
    Refused(ResponseError),
}

impl Coordinator {
    /// A producer begins, or begins again: what it had open is aborted, and its former self fenced.
    pub(crate) fn handle_init_producer_id(
        &mut self,
        now_ms: i64,
        id: &str,
        init: InitProducerId,
        ticket: ProducerTicket,
    ) {
        let longest_ms = self.settings.get(TIMEOUT_MAX_MS);
        if !(1..=longest_ms).contains(&i64::from(init.timeout_ms)) {
            return self.effects.reply(ticket, Err(ResponseError::InvalidTransactionTimeout));
        }
        // whoever asked hears, at once or later
        let _progress = self.handle(now_ms, &Rc::from(id), Request::Init(init, ticket));
    }

    /// Partitions come into the transaction that is ongoing, or begin one.
    pub(crate) fn handle_add_partitions(
        &mut self,
        now_ms: i64,
        id: &str,
        add: AddPartitions,
        ticket: DoneTicket,
    ) -> Progress {
        self.handle(now_ms, &Rc::from(id), Request::Add(add, ticket))
    }

    /// A transaction ends; answered when all its partitions know, on stable storage.
    pub(crate) fn handle_end(&mut self, now_ms: i64, id: &str, end: EndTransaction, ticket: ProducerTicket) {
        let _progress = self.handle(now_ms, &Rc::from(id), Request::End(end, ticket));
    }

    /// Whether partitions are in a producer's ongoing transaction: one answer for each.
    pub(crate) fn handle_verify(
        &mut self,
        id: &str,
        producer: Producer,
        partitions: &[PartitionName],
        ticket: Ticket<Result<Vec<bool>, ResponseError>>,
    ) {
        let Some(entry) = self.entries.get(id) else {
            return self.effects.reply(ticket, Err(ResponseError::InvalidProducerIdMapping));
        };
        let metadata = &entry.metadata;
        let answer = match check_producer(metadata, producer) {
            Err(error) => Err(error),
            Ok(()) if metadata.state.is_prepared() => Err(ResponseError::ConcurrentTransactions),
            Ok(()) => {
                let is_ongoing = metadata.state == State::Ongoing;
                Ok(partitions.iter().map(|name| is_ongoing && metadata.partitions.contains(name)).collect())
            }
        };
        let after = entry.last_write;
        self.effects.reply_after(after, ticket, answer);
    }

    pub(super) fn init(&mut self, now_ms: i64, id: &Rc<str>, init: InitProducerId, ticket: ProducerTicket) -> Step {
        let InitProducerId { timeout_ms, expected } = init;
        let again = |ticket| Request::Init(init, ticket);
        let Some(entry) = self.entries.get(id) else {
            if !self.budget.has_room(id) {
                self.effects.reply(ticket, Err(ResponseError::CoordinatorNotAvailable));
                return Step::Done;
            }
            let Some(producer_id) = self.spare_producer_ids.pop() else { return Step::NeedsProducerId(again(ticket)) };
            let made_up = Metadata::new(producer_id, timeout_ms, now_ms);
            return self.begin_producer(now_ms, id, made_up.bump(None, timeout_ms, now_ms), ticket);
        };
        let metadata = entry.metadata.clone();
        if let Some(expected) = expected
            && !is_expected(&metadata, expected)
        {
            self.effects.reply_after(entry.last_write, ticket, Err(ResponseError::ProducerFenced));
            return Step::Done;
        }
        if metadata.state == State::Ongoing {
            // it begins when that is aborted everywhere
            let ending = Ending::Fence(self.surroundings.transaction_version());
            return match self.begin_end(now_ms, id, ending, None) {
                Ok(()) => Step::Held(again(ticket)),
                Err(_) => Step::NeedsProducerId(again(ticket)),
            };
        }
        let is_current = expected.is_none_or(|expected| expected.epoch == metadata.epoch);
        if is_exhausted(metadata.epoch) && is_current {
            let Some(producer_id) = self.spare_producer_ids.pop() else { return Step::NeedsProducerId(again(ticket)) };
            let next = metadata.rotate(producer_id, expected.is_some(), timeout_ms, now_ms);
            return self.begin_producer(now_ms, id, Ok(Some(next)), ticket);
        }
        let next = metadata.bump(expected.map(|expected| expected.epoch), timeout_ms, now_ms);
        self.begin_producer(now_ms, id, next, ticket)
    }

    /// Answers with the producer of the next state, or of this one if there is no other.
    fn begin_producer(
        &mut self,
        _now_ms: i64,
        id: &Rc<str>,
        next: Result<Option<Metadata>, ResponseError>,
        ticket: ProducerTicket,
    ) -> Step {
        let entry = self.entries.get(id);
        let last_write = entry.and_then(|entry| entry.last_write);
        match next {
            Ok(Some(next)) => {
                let producer = next.producer();
                let write = self.step(id, next, Vec::new(), Then::Stands);
                self.effects.reply_after(Some(write), ticket, Ok(producer));
            }
            Ok(None) => {
                let producer = entry.map(|entry| entry.metadata.producer());
                let answer = producer.ok_or(ResponseError::InvalidProducerIdMapping);
                self.effects.reply_after(last_write, ticket, answer);
            }
            Err(error) => self.effects.reply_after(last_write, ticket, Err(error)),
        }
        Step::Done
    }

    pub(super) fn add(&mut self, now_ms: i64, id: &Rc<str>, add: AddPartitions, ticket: DoneTicket) -> Step {
        let AddPartitions { producer, partitions, client_version } = add;
        let Some(entry) = self.entries.get(id) else {
            self.effects.reply(ticket, Err(ResponseError::InvalidProducerIdMapping));
            return Step::Refused;
        };
        let metadata = &entry.metadata;
        let last_write = entry.last_write;
        if let Err(error) = check_producer(metadata, producer) {
            self.effects.reply_after(last_write, ticket, Err(error));
            return Step::Refused;
        }
        let is_ongoing = metadata.state == State::Ongoing;
        let new: BTreeSet<_> = match is_ongoing {
            true => partitions.difference(&metadata.partitions).cloned().collect(),
            false => partitions,
        };
        if is_ongoing && new.is_empty() {
            self.effects.reply_after(last_write, ticket, Ok(()));
            return Step::Done;
        }
        // by version 2 the owner of a partition asks, and knows; those of one request ask one after the other
        let told = (client_version < EPOCH_BUMP_VERSION).then(|| new.clone());
        let next = metadata.add(new, client_version, now_ms);
        let deadline_ms = next.deadline_ms();
        let write = match told {
            None => {
                let further = is_ongoing.then(|| self.step_further(id, &next)).flatten();
                further.unwrap_or_else(|| self.step(id, next, Vec::new(), Then::Stands))
            }
            Some(told) => self.step(id, next, Vec::new(), Then::Admit(told, producer)),
        };
        self.effects.reply_after(Some(write), ticket, Ok(()));
        if let Some(deadline_ms) = deadline_ms {
            self.look_at(id, self.abort_ms(deadline_ms));
        }
        Step::Done
    }

    pub(super) fn end(&mut self, now_ms: i64, id: &Rc<str>, end: EndTransaction, ticket: ProducerTicket) -> Step {
        let Some(entry) = self.entries.get(id) else {
            self.effects.reply(ticket, Err(ResponseError::InvalidProducerIdMapping));
            return Step::Done;
        };
        let end = match self.rules.is_off(Rule::EpochOfEnd) {
            true => EndTransaction { producer: entry.metadata.producer(), ..end },
            false => end,
        };
        let answer = match verdict(&entry.metadata, end) {
            Verdict::Begin => {
                let ending = Ending::Client(end.outcome, end.client_version);
                return match self.begin_end(now_ms, id, ending, Some(ticket)) {
                    Ok(()) => Step::Done,
                    Err(Some(ticket)) => Step::NeedsProducerId(Request::End(end, ticket)),
                    Err(None) => Step::Done,
                };
            }
            Verdict::Repeated => Ok(entry.metadata.producer()),
            Verdict::Refused(error) => Err(error),
        };
        let last_write = entry.last_write;
        self.effects.reply_after(last_write, ticket, answer);
        Step::Done
    }
}

/// Whether a producer is the one that an id has now.
fn check_producer(metadata: &Metadata, producer: Producer) -> Result<(), ResponseError> {
    match producer {
        Producer { id, .. } if id != metadata.producer_id => Err(ResponseError::InvalidProducerIdMapping),
        Producer { epoch, .. } if epoch != metadata.epoch => Err(ResponseError::ProducerFenced),
        Producer { .. } => Ok(()),
    }
}

/// Whether who begins again may be the producer that the id has: by the current id, or by the one before if its epochs were
/// used up (KIP-360). While a transaction is ongoing its epoch must be that of now, or the one before the last bump.
fn is_expected(metadata: &Metadata, expected: Producer) -> bool {
    let is_retry_of_rotation = expected.id == metadata.previous_producer_id && is_exhausted(expected.epoch);
    let is_known = expected.id == metadata.producer_id || is_retry_of_rotation;
    let is_current = expected.epoch == metadata.epoch || expected.epoch == metadata.last_epoch;
    is_known && (metadata.state != State::Ongoing || is_current)
}

/// What an end does in a state that is not ending.
fn verdict(metadata: &Metadata, end: EndTransaction) -> Verdict {
    match end.client_version >= EPOCH_BUMP_VERSION {
        true => verdict_of_version_2(metadata, end),
        false => verdict_of_version_0(metadata, end),
    }
}

/// The epoch does not tell a repetition from the next end.
fn verdict_of_version_0(metadata: &Metadata, end: EndTransaction) -> Verdict {
    match check_producer(metadata, end.producer) {
        Err(error) => Verdict::Refused(error),
        Ok(()) => match metadata.state {
            State::Ongoing => Verdict::Begin,
            State::CompleteCommit if end.outcome == Outcome::Commit => Verdict::Repeated,
            State::CompleteAbort if end.outcome == Outcome::Abort => Verdict::Repeated,
            _ => Verdict::Refused(ResponseError::InvalidTxnState),
        },
    }
}

/// The epoch before the current one, or the last one of the producer id before, is a repetition.
fn verdict_of_version_2(metadata: &Metadata, end: EndTransaction) -> Verdict {
    let Producer { id, epoch } = end.producer;
    let is_retry_of_overflow = id == metadata.previous_producer_id && epoch == LAST_EPOCH && metadata.epoch == 0;
    if id != metadata.producer_id && !is_retry_of_overflow {
        return Verdict::Refused(ResponseError::InvalidProducerIdMapping);
    }
    let is_repeated = is_retry_of_overflow || metadata.epoch.checked_sub(1) == Some(epoch);
    if is_repeated && epoch >= 0 {
        return match (metadata.state, end.outcome) {
            (State::CompleteCommit, Outcome::Commit) | (State::CompleteAbort, Outcome::Abort) => Verdict::Repeated,
            (State::CompleteCommit, Outcome::Abort) => Verdict::Refused(ResponseError::InvalidTxnState),
            // it took too long, and was fenced
            _ => Verdict::Refused(ResponseError::ProducerFenced),
        };
    }
    if epoch != metadata.epoch {
        return Verdict::Refused(ResponseError::ProducerFenced);
    }
    match (metadata.state, end.outcome) {
        (State::Ongoing, _) | (_, Outcome::Abort) => Verdict::Begin,
        (_, Outcome::Commit) => Verdict::Refused(ResponseError::InvalidTxnState),
    }
}
