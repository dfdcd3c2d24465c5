//! What compaction knows of transactions. A round goes through the log from its start, so it sees each whole, in order: what
//! it wrote, then its marker.
//!
//! Rules of Kafka 4.4's `CleanedTransactionMetadata`: what was aborted goes at once; a marker stays for as long as something
//! of its transaction was seen before it in the round, if only an empty batch. When nothing was, it gets a delete horizon,
//! and goes once that is past. So records go in one round, their marker gets its horizon in a later one, and goes in a third.

use std::collections::{HashMap, HashSet};

use crate::{
    batch::{BatchError, BatchInfo, Outcome, end_marker},
    format::transactions::AbortedEntry,
};

/// Aborted transactions with records in what is looked at.
#[derive(Default)]
pub(crate) struct AbortedThere(HashMap<i64, Vec<AbortedEntry>>);

/// What was seen of transactions in a round so far.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// Producers with batches since their last marker, of transactions that were not aborted.
    committed: HashSet<i64>,
    /// The same of those that were.
    aborted: HashSet<i64>,
}

/// What part a batch has in transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its records count.
    Counts,
    /// It was aborted.
    Aborted,
    /// It is a marker with something before it; that of an aborted transaction with its entry.
    Ends(Option<AbortedEntry>),
    /// It is a marker with nothing left before it.
    EndsNothing,
}

impl AbortedThere {
    /// From entries in any order.
    pub(crate) fn of(entries: Vec<AbortedEntry>) -> Self {
        let mut by_producer: HashMap<i64, Vec<AbortedEntry>> = HashMap::new();
        for entry in entries {
            by_producer.entry(entry.producer_id.get()).or_default().push(entry);
        }
        for own in by_producer.values_mut() {
            own.sort_unstable_by_key(|entry| entry.last_offset.get());
        }
        Self(by_producer)
    }

    /// The one that a batch is of, or ends.
    fn of_batch(&self, info: &BatchInfo) -> Option<&AbortedEntry> {
        let own = self.0.get(&info.producer_id)?;
        let at = own.partition_point(|entry| entry.last_offset.get() < info.base_offset);
        own.get(at).filter(|entry| entry.first_offset.get() <= info.base_offset)
    }

    /// Whether a batch that is no marker was aborted.
    pub(crate) fn has(&self, info: &BatchInfo) -> bool {
        info.is_transactional() && self.of_batch(info).is_some()
    }
}

impl Seen {
    /// Looks at the next batch of the round.
    pub(crate) fn look(&mut self, there: &AbortedThere, info: &BatchInfo, batch: &[u8]) -> Result<Part, BatchError> {
        if !info.is_transactional() {
            return Ok(Part::Counts);
        }
        let id = info.producer_id;
        if !info.is_control() {
            let is_aborted = there.has(info);
            let seen = if is_aborted { &mut self.aborted } else { &mut self.committed };
            seen.insert(id);
            return Ok(if is_aborted { Part::Aborted } else { Part::Counts });
        }
        if info.record_count == 0 {
            return Ok(Part::EndsNothing);
        }
        Ok(match end_marker(batch)?.map(|end| end.outcome) {
            Some(Outcome::Abort) if self.aborted.remove(&id) => Part::Ends(there.of_batch(info).copied()),
            Some(Outcome::Commit) if self.committed.remove(&id) => Part::Ends(None),
            Some(_) => Part::EndsNothing,
            None => Part::Ends(None), // of another type: not ours to judge
        })
    }
}
