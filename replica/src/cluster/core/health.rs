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
    told: bool,
    probe_at: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It does not answer.
    Away,
    /// It takes no writes: that it answers all else shows nothing.
    Full,
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
                let writes = matches!(done, Done::Transacted(..) | Done::Granted(_));
                let is_over = self.0.as_ref().is_some_and(|trouble| writes || trouble.kind == Kind::Away);
                return is_over && self.0.take().is_some_and(|trouble| trouble.told);
            }
        }
        false
    }

    fn begin(&mut self, kind: Kind, reason: &str, now: Instant) {
        let is_new = self.0.as_ref().is_none_or(|trouble| kind == Kind::Full && trouble.kind == Kind::Away);
        if is_new {
            let probe_at = now + PROBE_EVERY;
            self.0 = Some(Trouble { since: now, reason: reason.to_owned(), kind, told: false, probe_at });
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
        let never = Compare::Created(keys::CLUSTER.to_owned(), 0);
        Some(Transaction::new().when(never).put(keys::CLUSTER.to_owned(), Vec::new()))
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
        assert_eq!((probe.compares.len(), probe.operations.len()), (1, 1));
        assert!(health.probe(at(6)).is_none());
        assert!(health.note(&transacted(Ok(Outcome::Refused(5))), at(6)), "it would have written");
        assert!(health.reason().is_none());
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
