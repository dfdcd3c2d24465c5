//! Gives what machines want appended to the log, in the order in which it was taken.

use std::future::Future;

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{Either, ready},
};
use millrace_engine::{
    api::{LogError, ProducePartition, TopicPartition},
    transactions::{AtomicAppended, AtomicPart, AtomicRefused},
};

use super::slots::Append;

/// Whose an append is: a partition, and the number that the slots know it by.
pub(crate) type Key = (TopicPartition, u64);
/// What became of it: the offset of its first record, or of the marker of its partition.
pub(crate) type Written = (Key, Result<i64, LogError>);

/// Appends that are given to the log by one call.
pub(crate) enum Run {
    /// Each batch by itself.
    Plain { keys: Vec<Key>, parts: Vec<ProducePartition> },
    /// All or nothing.
    Atomic { key: Key, parts: Vec<AtomicPart> },
}

/// The calls that append everything in the order in which it was taken; what goes with nothing else is flushed as its topic
/// asks, or always.
pub(crate) fn runs(appends: Vec<Append>, always_flushed: bool) -> Vec<Run> {
    let mut runs = Vec::new();
    for Append { partition, batch, markers, number } in appends {
        let key = (partition, number);
        match batch {
            Some(batch) if markers.is_empty() && !always_flushed => push_plain(&mut runs, key, batch),
            batch => {
                let batch = batch.map(|batch| AtomicPart::Batch { partition, batch });
                let parts = batch.into_iter().chain(markers.into_iter().map(AtomicPart::Marker)).collect();
                runs.push(Run::Atomic { key, parts });
            }
        }
    }
    runs
}

fn push_plain(runs: &mut Vec<Run>, key: Key, batch: Bytes) {
    let part = ProducePartition { partition: key.0, batch };
    match runs.last_mut() {
        Some(Run::Plain { keys, parts }) => {
            keys.push(key);
            parts.push(part);
        }
        Some(Run::Atomic { .. }) | None => runs.push(Run::Plain { keys: vec![key], parts: vec![part] }),
    }
}

/// Appends parts of this shard all at once; the place of the first is taken when this returns. A marker that its partition
/// refuses for good is left out, as its transaction is no longer what is open there: one odd producer must not keep the
/// transactions of others from their end.
pub(crate) fn append_atomically<F>(
    append: impl Fn(Vec<AtomicPart>) -> F,
    mut parts: Vec<AtomicPart>,
    left_out: impl Fn(&LogError),
) -> impl Future<Output = Result<i64, LogError>> + 'static
where
    F: Future<Output = AtomicAppended> + 'static,
{
    loop {
        let mut appended = Box::pin(append(parts.clone()));
        // places are taken when it is first asked
        let offset = match (&mut appended).now_or_never() {
            None => return Either::Left(appended.map(first_offset)),
            Some(Err(AtomicRefused { part, error })) if part > 0 && is_refused_for_good(&error) => {
                tracing::warn!(marker = ?parts.get(part), %error, "a marker is left out");
                left_out(&error);
                parts.remove(part);
                continue;
            }
            Some(answer) => first_offset(answer),
        };
        return Either::Right(ready(offset));
    }
}

fn first_offset(answer: AtomicAppended) -> Result<i64, LogError> {
    match answer {
        Ok(produced) => produced.first().map(|produced| produced.base_offset).ok_or(LogError::UnknownPartition),
        Err(AtomicRefused { error, .. }) => Err(error),
    }
}

/// Whether a marker is of no use there: the producer has a newer epoch, the partition is gone, or what is open is an older
/// transaction, so that nothing of its own can be there. Only a node that is alone writes markers so, and it leads all that it
/// has; others are tried again.
fn is_refused_for_good(error: &LogError) -> bool {
    matches!(
        error,
        LogError::InvalidProducerEpoch
            | LogError::TransactionCoordinatorFenced { .. }
            | LogError::UnknownPartition
            | LogError::ConcurrentTransactions(_)
    )
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use millrace_engine::{
        api::Produced,
        transactions::{Decided, Marker, Outcome},
    };

    use super::*;

    fn marker(producer_id: i64) -> AtomicPart {
        AtomicPart::Marker(Marker {
            partition: TopicPartition { topic: uuid::Uuid::nil(), partition: 0 },
            producer_id,
            producer_epoch: 3,
            coordinator_epoch: 0,
            outcome: Outcome::Commit,
            transaction_version: 2,
            decided: Decided::ByCoordinator,
        })
    }

    fn appended(refused: impl Fn(i64) -> Option<LogError>) -> (Result<i64, LogError>, usize) {
        let batch = AtomicPart::Batch {
            partition: TopicPartition { topic: uuid::Uuid::nil(), partition: 1 },
            batch: Bytes::new(),
        };
        let calls = RefCell::new(Vec::new());
        let append = |parts: Vec<AtomicPart>| {
            calls.borrow_mut().push(parts.len());
            let error = parts.iter().enumerate().find_map(|(part, it)| match it {
                AtomicPart::Marker(marker) => Some(AtomicRefused { part, error: refused(marker.producer_id)? }),
                AtomicPart::Batch { .. } => None,
            });
            let produced = Produced { base_offset: 7, append_time_ms: -1, log_start_offset: 0 };
            ready(error.map_or(Ok(vec![produced; parts.len()]), Err))
        };
        let written = append_atomically(append, vec![batch, marker(1), marker(2)], |_| ()).now_or_never();
        (written.expect("it is answered at once"), calls.borrow().len())
    }

    /// One producer whose partition had an older transaction open failed what all others of that turn had decided.
    #[test]
    fn a_marker_that_is_of_no_use_leaves_the_others_alone() {
        let of_first = |error: LogError| move |id: i64| (id == 1).then(|| error.clone());
        assert_eq!(appended(|_| None), (Ok(7), 1));
        assert_eq!(appended(of_first(LogError::ConcurrentTransactions("an older one"))), (Ok(7), 2));
        assert_eq!(appended(of_first(LogError::InvalidProducerEpoch)), (Ok(7), 2));
        assert_eq!(appended(of_first(LogError::StorageFull)), (Err(LogError::StorageFull), 1));
    }
}
