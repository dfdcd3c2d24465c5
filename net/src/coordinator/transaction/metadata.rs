//! What is known of a transactional id, and the steps that it can take: Kafka's `TransactionMetadata`, without I/O.
//!
//! A step makes the next state out of this one; whether it may be taken was asked before. Epochs go up and never down; one
//! that is exhausted goes on with another producer id from epoch 0 (KIP-360, KIP-890).

use std::{collections::BTreeSet, rc::Rc};

use kafka_protocol::error::ResponseError;
use millrace_engine::transactions::Outcome;

use super::state::State;

/// No producer id.
pub(crate) const NO_PRODUCER_ID: i64 = -1;
/// No epoch.
pub(crate) const NO_EPOCH: i16 = -1;
/// The last epoch that a client sees; the one after it only fences.
pub(crate) const LAST_EPOCH: i16 = i16::MAX - 1;
/// From this `transaction.version` on every transaction has an epoch of its own (KIP-890).
pub(crate) const EPOCH_BUMP_VERSION: i16 = 2;
/// When no transaction was ever begun.
pub(crate) const NO_TIME: i64 = -1;

/// A partition as the records name it.
pub(crate) type PartitionName = (Rc<str>, i32);

/// A producer as a client knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Producer {
    /// Its id.
    pub(crate) id: i64,
    /// Its epoch.
    pub(crate) epoch: i16,
}

/// No producer, as answers say it.
pub(crate) const NO_PRODUCER: Producer = Producer { id: NO_PRODUCER_ID, epoch: NO_EPOCH };

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// The id that the producer has.
    pub(crate) producer_id: i64,
    /// The id that it had when this state was written, or -1: after an exhausted epoch its owner may still know only that.
    pub(crate) previous_producer_id: i64,
    /// The id that it gets when the transaction is complete, or -1.
    pub(crate) next_producer_id: i64,
    /// Its epoch; that of the markers once the end is decided.
    pub(crate) epoch: i16,
    /// The epoch before the last bump that the client asked for, or -1: who still has it repeats a request.
    pub(crate) last_epoch: i16,
    /// How long a transaction may take, in ms.
    pub(crate) timeout_ms: i32,
    /// Where the transaction is.
    pub(crate) state: State,
    /// Its partitions. Once the end is decided: those whose markers are not known to be durable.
    pub(crate) partitions: BTreeSet<PartitionName>,
    /// When it began, ms since the epoch, or -1.
    pub(crate) start_ms: i64,
    /// When this was written.
    pub(crate) last_update_ms: i64,
    /// The `transaction.version` by which the client speaks: 0 or 2.
    pub(crate) client_version: i16,
}

/// How a transaction is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As its client asks, which speaks by that `transaction.version`.
    Client(Outcome, i16),
    /// It is aborted over its client's head, who is fenced; the server is at that `transaction.version`.
    Fence(i16),
}

impl Ending {
    /// What becomes of the transaction.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Client(outcome, _) => outcome,
            Self::Fence(_) => Outcome::Abort,
        }
    }

    /// The version by whose rules it ends.
    pub(crate) fn version(self) -> i16 {
        match self {
            Self::Client(_, version) | Self::Fence(version) => version,
        }
    }
}

/// Whether an epoch is the last one that a client may have.
pub(crate) fn is_exhausted(epoch: i16) -> bool {
    epoch >= LAST_EPOCH
}

impl Metadata {
    /// Of a transactional id that was just made up: its first step takes it to epoch 0.
    pub(crate) fn new(producer_id: i64, timeout_ms: i32, now_ms: i64) -> Self {
        Self {
            producer_id,
            previous_producer_id: NO_PRODUCER_ID,
            next_producer_id: NO_PRODUCER_ID,
            epoch: NO_EPOCH,
            last_epoch: NO_EPOCH,
            timeout_ms,
            state: State::Empty,
            partitions: BTreeSet::new(),
            start_ms: NO_TIME,
            last_update_ms: now_ms,
            client_version: 0,
        }
    }

    /// The producer as its client knows it.
    pub(crate) fn producer(&self) -> Producer {
        Producer { id: self.producer_id, epoch: self.epoch }
    }

    /// The next state with these partitions, which takes all else of this one over but what a step changes.
    fn next(&self, state: State, partitions: BTreeSet<PartitionName>, now_ms: i64) -> Self {
        Self {
            producer_id: self.producer_id,
            previous_producer_id: self.producer_id,
            next_producer_id: NO_PRODUCER_ID,
            epoch: self.epoch,
            last_epoch: self.last_epoch,
            timeout_ms: self.timeout_ms,
            state,
            partitions,
            start_ms: self.start_ms,
            last_update_ms: now_ms,
            client_version: self.client_version,
        }
    }

    fn fresh(&self, timeout_ms: i32, now_ms: i64) -> Self {
        let next = self.next(State::Empty, BTreeSet::new(), now_ms);
        Self { timeout_ms, start_ms: NO_TIME, ..next }
    }

    /// The next epoch for a producer that begins, or begins again. `expected` is the epoch that it says it has: with the
    /// one before the last bump it repeats a request whose answer it has not got, and gets that answer: `Ok(None)`.
    pub(crate) fn bump(
        &self,
        expected: Option<i16>,
        timeout_ms: i32,
        now_ms: i64,
    ) -> Result<Option<Self>, ResponseError> {
        let last_epoch = match expected {
            None => NO_EPOCH,
            Some(expected) if self.epoch == NO_EPOCH || expected == self.epoch => self.epoch,
            Some(expected) if expected == self.last_epoch => return Ok(None),
            Some(_) => return Err(ResponseError::ProducerFenced),
        };
        if self.epoch == i16::MAX || (is_exhausted(self.epoch) && expected.is_some()) {
            // only with another producer id does it go on from here
            return Err(ResponseError::ProducerFenced);
        }
        Ok(Some(Self { epoch: self.epoch + 1, last_epoch, ..self.fresh(timeout_ms, now_ms) }))
    }

    /// The same producer under another id, from epoch 0 on, as its epochs are used up.
    pub(crate) fn rotate(&self, producer_id: i64, is_expected: bool, timeout_ms: i32, now_ms: i64) -> Self {
        let last_epoch = if is_expected { self.epoch } else { NO_EPOCH };
        Self { producer_id, epoch: 0, last_epoch, ..self.fresh(timeout_ms, now_ms) }
    }

    /// With more partitions; begins a transaction if none is ongoing.
    pub(crate) fn add(&self, added: BTreeSet<PartitionName>, client_version: i16, now_ms: i64) -> Self {
        let is_ongoing = self.state == State::Ongoing;
        let mut partitions = if is_ongoing { self.partitions.clone() } else { BTreeSet::new() };
        partitions.extend(added);
        let start_ms = if is_ongoing { self.start_ms } else { now_ms };
        Self { client_version, start_ms, ..self.next(State::Ongoing, partitions, now_ms) }
    }

    /// Whether ending the transaction uses up the producer id, so that another one is needed.
    pub(crate) fn needs_producer_id(&self, ending: Ending) -> bool {
        ending.version() >= EPOCH_BUMP_VERSION && is_exhausted(self.epoch)
    }

    /// The end is decided. By version 2, and where its client is fenced, the epoch goes up, and markers carry the new one.
    pub(crate) fn prepare(&self, ending: Ending, next_producer_id: Option<i64>, now_ms: i64) -> Self {
        let state = match ending.outcome() {
            Outcome::Commit => State::PrepareCommit,
            Outcome::Abort => State::PrepareAbort,
        };
        let bumps = ending.version() >= EPOCH_BUMP_VERSION;
        let (epoch, last_epoch) = match ending {
            _ if bumps => (self.epoch.saturating_add(1), self.epoch),
            Ending::Fence(_) => (self.epoch.saturating_add(1), NO_EPOCH),
            Ending::Client(..) => (self.epoch, self.last_epoch),
        };
        let next = self.next(state, self.partitions.clone(), now_ms);
        Self {
            epoch,
            last_epoch,
            next_producer_id: next_producer_id.unwrap_or(NO_PRODUCER_ID),
            // who aborts without having begun has a transaction all the same
            start_ms: if self.state == State::Ongoing { self.start_ms } else { now_ms },
            client_version: ending.version(),
            ..next
        }
    }

    /// All partitions know. With another producer id at hand the producer goes on under that one.
    pub(crate) fn complete(&self, now_ms: i64) -> Self {
        let state = match self.state {
            State::PrepareCommit => State::CompleteCommit,
            _ => State::CompleteAbort,
        };
        let (producer_id, epoch) = match self.next_producer_id {
            NO_PRODUCER_ID => (self.producer_id, self.epoch),
            next_producer_id => (next_producer_id, 0),
        };
        Self { producer_id, epoch, ..self.next(state, BTreeSet::new(), now_ms) }
    }

    /// How the transaction ends, once that is decided.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match self.state {
            State::PrepareCommit | State::CompleteCommit => Some(Outcome::Commit),
            State::PrepareAbort | State::CompleteAbort => Some(Outcome::Abort),
            State::Empty | State::Ongoing => None,
        }
    }

    /// When an ongoing transaction has taken too long, in ms since the epoch.
    pub(crate) fn deadline_ms(&self) -> Option<i64> {
        (self.state == State::Ongoing).then(|| self.start_ms.saturating_add(self.timeout_ms.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: i16) -> Metadata {
        Metadata { epoch, ..Metadata::new(7, 1000, 0) }
    }

    #[test]
    fn epochs_begin_at_zero_and_end_before_the_largest() {
        let first = at(NO_EPOCH).bump(None, 5, 1).unwrap().unwrap();
        assert_eq!((first.epoch, first.last_epoch, first.timeout_ms), (0, NO_EPOCH, 5));
        assert!(is_exhausted(LAST_EPOCH) && !is_exhausted(LAST_EPOCH - 1));
        assert_eq!(at(LAST_EPOCH - 1).bump(None, 5, 1).unwrap().unwrap().epoch, LAST_EPOCH);
        assert_eq!(at(i16::MAX).bump(None, 5, 1), Err(ResponseError::ProducerFenced));
    }

    #[test]
    fn a_repeated_request_of_an_expected_epoch_is_answered_as_the_first() {
        let once = at(3).bump(Some(3), 5, 1).unwrap().unwrap();
        assert_eq!((once.epoch, once.last_epoch), (4, 3));
        assert_eq!(once.bump(Some(3), 5, 1), Ok(None));
        assert_eq!(once.bump(Some(2), 5, 1), Err(ResponseError::ProducerFenced));
    }

    #[test]
    fn an_exhausted_epoch_ends_with_the_id_that_was_taken_when_it_was_decided() {
        let ongoing = at(LAST_EPOCH).add([("t".into(), 0)].into(), 2, 10);
        for ending in [Ending::Client(Outcome::Commit, 2), Ending::Fence(2)] {
            assert!(ongoing.needs_producer_id(ending));
            let prepared = ongoing.prepare(ending, Some(8), 20);
            assert_eq!((prepared.producer_id, prepared.epoch, prepared.next_producer_id), (7, i16::MAX, 8));
            let complete = prepared.complete(30);
            assert_eq!((complete.producer_id, complete.epoch, complete.last_epoch), (8, 0, LAST_EPOCH));
            assert_eq!((complete.previous_producer_id, complete.next_producer_id), (7, NO_PRODUCER_ID));
        }
        assert!(!ongoing.needs_producer_id(Ending::Client(Outcome::Commit, 0)));
    }

    #[test]
    fn a_fence_bumps_once_whatever_the_version() {
        let ongoing = at(5).add([("t".into(), 0)].into(), 0, 10);
        let by_old = ongoing.prepare(Ending::Fence(0), None, 20);
        let by_new = ongoing.prepare(Ending::Fence(2), None, 20);
        assert_eq!((by_old.epoch, by_old.last_epoch, by_new.epoch, by_new.last_epoch), (6, NO_EPOCH, 6, 5));
        let by_client = ongoing.prepare(Ending::Client(Outcome::Abort, 0), None, 20);
        assert_eq!((by_client.epoch, by_client.start_ms), (5, 10));
    }
}
