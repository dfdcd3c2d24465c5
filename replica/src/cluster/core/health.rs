//! Whether the store does what it is asked: it may be away, or answer and take no writes.

use std::time::{Duration, Instant};

use super::{Done, Event};
use crate::cluster::{
    keys,
    store::{Compare, StoreError, Transaction},
};

/// How often a store that takes no writes is asked whether it does again. Nobody else may write for long.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// What is wrong, if anything.
#[derive(Default)]
pub(super) struct Health(Option<Trouble>);

struct Trouble {
    since: Instant,
    reason: String,
    kind: Kind,
    /// The node heard of it, or of another one that became this one.
    told: bool,
    was_told: bool,
    probe_at: Instant,
    /// The last probe's ticket.
    probe: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It does not answer.
    Away,
    /// It takes no writes: that it answers all else shows nothing.
    Full,
}

impl Trouble {
    /// Whether an answer without an error shows that it is over. A store without space still takes what only deletes.
    fn is_ended_by(&self, done: &Done) -> bool {
        match (self.kind, done) {
            (Kind::Away, _) | (Kind::Full, Done::Granted(_)) => true,
            (Kind::Full, Done::Transacted(ticket, _)) => self.probe == Some(*ticket),
            (Kind::Full, _) => false,
        }
    }
}

impl Health {
    /// Takes note of an answer. Whether what the node was told of is over.
    pub(super) fn note(&mut self, done: &Done, now: Instant) -> bool {
        match error_of(done) {
            Some(StoreError::Full(reason)) => self.begin(Kind::Full, reason, now),
            Some(StoreError::Away(reason) | StoreError::Refused(reason) | StoreError::Nonsense(reason)) => {
                self.begin(Kind::Away, reason, now);
            }
            Some(StoreError::Compacted(_) | StoreError::LeaseOver) | None => {
                let is_over = self.0.as_ref().is_some_and(|trouble| trouble.is_ended_by(done));
                return is_over && self.0.take().is_some_and(|trouble| trouble.told || trouble.was_told);
            }
        }
        false
    }

    fn begin(&mut self, kind: Kind, reason: &str, now: Instant) {
        let is_new = self.0.as_ref().is_none_or(|trouble| kind == Kind::Full && trouble.kind == Kind::Away);
        if is_new {
            let was_told = self.0.as_ref().is_some_and(|former| former.told || former.was_told);
            self.0 = Some(Trouble {
                since: now,
                reason: reason.to_owned(),
                kind,
                told: false,
                was_told,
                probe_at: now + PROBE_EVERY,
                probe: None,
            });
        }
    }

    /// What the node is to hear of a trouble that lasts, once.
    pub(super) fn telling(&mut self, after: Duration, now: Instant) -> Option<Event> {
        let trouble = self.0.as_mut().filter(|it| !it.told && now.duration_since(it.since) >= after)?;
        trouble.told = true;
        Some(match trouble.kind {
            Kind::Away => Event::Away(trouble.since, trouble.reason.clone()),
            Kind::Full => Event::Full(trouble.reason.clone()),
        })
    }

    /// A transaction that shows whether the store takes writes again, if that is to be asked now. It writes nothing.
    pub(super) fn probe(&mut self, now: Instant) -> Option<Transaction> {
        let trouble = self.0.as_mut().filter(|it| it.kind == Kind::Full && it.probe_at <= now)?;
        trouble.probe_at = now + PROBE_EVERY;
        // both cannot be: whoever founds a cluster meanwhile does so himself
        let (there, never) = (Compare::Exists(keys::CLUSTER.to_owned()), Compare::Created(keys::CLUSTER.to_owned(), 0));
        Some(Transaction::new().when(there).when(never).put(keys::CLUSTER.to_owned(), Vec::new()))
    }

    /// The probe is on its way.
    pub(super) fn sent(&mut self, ticket: u64) {
        if let Some(trouble) = &mut self.0 {
            trouble.probe = Some(ticket);
        }
    }

    /// Why something is not done.
    pub(super) fn reason(&self) -> Option<String> {
        self.0.as_ref().map(|trouble| match trouble.kind {
            Kind::Away => format!("etcd does not answer: {}", trouble.reason),
            Kind::Full => StoreError::Full(trouble.reason.clone()).to_string(),
        })
    }
}

fn error_of(done: &Done) -> Option<&StoreError> {
    match done {
        Done::ReadAll(result) => result.as_ref().err(),
        Done::Watch(_, result) | Done::Revoked(result) | Done::Compacted(result) => result.as_ref().err(),
        Done::Granted(result) | Done::KeptAlive(_, _, result) => result.as_ref().err(),
        Done::Transacted(_, result) => result.as_ref().err(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::store::Outcome;

    /// A store whose space was used up answered questions and kept leases alive, so that nobody was told: nobody was elected any
    /// more, and the log was silent.
    #[test]
    fn a_store_that_answers_and_takes_no_writes_is_told_of_until_it_takes_some() {
        let (mut health, now) = (Health::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let transacted = |result| Done::Transacted(1, result);
        let full = transacted(Err(StoreError::Full("no space".to_owned())));
        assert!(!health.note(&full, now));
        assert!(!health.note(&Done::KeptAlive(1, now, Ok(5)), now));
        let told = health.telling(Duration::from_secs(2), at(2));
        assert!(matches!(told, Some(Event::Full(_))), "{told:?}");
        assert!(health.telling(Duration::from_secs(2), at(3)).is_none(), "once");
        assert!(health.reason().unwrap().contains("alarm disarm"), "what to do is said");
        assert!(health.probe(at(4)).is_none());
        let probe = health.probe(at(5)).unwrap();
        assert_eq!((probe.compares.len(), probe.operations.len()), (2, 1));
        health.sent(7);
        assert!(health.probe(at(6)).is_none());
        assert!(!health.note(&transacted(Ok(Outcome::Done(5))), at(6)), "that only deleted");
        assert!(health.note(&Done::Transacted(7, Ok(Outcome::Refused(5))), at(6)), "it would have written");
        assert!(health.reason().is_none());
    }

    /// The node heard that the store was away, and never that it was back.
    #[test]
    fn what_was_told_of_is_told_to_be_over_whatever_it_became() {
        let (mut health, now) = (Health::default(), Instant::now());
        let failed = |error| Done::Transacted(1, Err(error));
        health.note(&failed(StoreError::Away("gone".to_owned())), now);
        assert!(health.telling(Duration::ZERO, now).is_some());
        health.note(&failed(StoreError::Full("no space".to_owned())), now);
        assert!(health.note(&Done::Granted(Ok(1)), now));
    }

    #[test]
    fn a_store_that_answers_again_is_not_away() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert!(!health.note(&Done::KeptAlive(1, now, Err(StoreError::Away("gone".to_owned()))), now));
        assert!(matches!(health.telling(Duration::ZERO, now), Some(Event::Away(..))));
        assert!(health.probe(now + PROBE_EVERY).is_none(), "who is away is asked by everything else");
        assert!(health.note(&Done::KeptAlive(1, now, Ok(5)), now));
    }
}
