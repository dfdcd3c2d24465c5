//! What a partition knows of transactions beside those that are open: which producers may begin one, which have ended
//! without their end being safe, and which were aborted. Pure.
//!
//! What always holds: aborted ones are in the order of their markers; all whose marker is in no segment are among them, and
//! all whose marker lies at or behind the first batch that is in memory. So who reads from memory finds here all that he
//! needs. A transaction that has ended keeps what it wrote unstable until its marker is on stable storage and consumers may
//! see it: so what was said to be stable stays so.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    rc::Rc,
};

use crate::{
    api::LogError,
    format::transactions::{AbortedEntry, overlapping},
    signal::Outcome,
};

/// Producers that may begin a transaction in one partition at most.
pub(crate) const ADMITTED_MAX: usize = crate::format::transactions::OPEN_MAX;

/// Set once a coordinator has a transaction on stable storage, or has failed to.
pub(crate) type Confirming = Rc<Outcome<Result<(), LogError>>>;

/// A producer that may write for its transaction.
#[derive(Clone)]
pub(crate) struct Admitted {
    pub(crate) producer_epoch: i16,
    /// What its batches wait for beside the log; none if that is done.
    pub(crate) confirming: Option<Confirming>,
}

/// See the module. Without transactions it has no memory of its own.
#[derive(Default)]
pub(crate) struct Transactions {
    /// By producer id. Cleared by its marker.
    admitted: HashMap<i64, Admitted>,
    /// Offsets of markers that are not safe yet, and where their transactions began.
    ended: VecDeque<(i64, i64)>,
    /// The latter once more, in order.
    ended_first: BTreeSet<i64>,
    aborted: Aborted,
}

/// Transactions that were aborted, by their markers.
#[derive(Default)]
pub(crate) struct Aborted(VecDeque<AbortedEntry>);

impl Transactions {
    /// What a producer was admitted to, if it was.
    pub(crate) fn admitted(&self, producer_id: i64) -> Option<&Admitted> {
        if self.admitted.is_empty() { None } else { self.admitted.get(&producer_id) }
    }

    /// A producer may write for its transaction.
    pub(crate) fn admit(&mut self, producer_id: i64, admitted: Admitted) -> Result<(), LogError> {
        if self.admitted.len() >= ADMITTED_MAX && !self.admitted.contains_key(&producer_id) {
            return Err(LogError::ConcurrentTransactions("too many producers may begin one in this partition"));
        }
        self.admitted.insert(producer_id, admitted);
        Ok(())
    }

    /// A producer's admission is confirmed, or was not.
    pub(crate) fn settle(&mut self, producer_id: i64, result: &Result<(), LogError>) {
        match (result, self.admitted.get_mut(&producer_id)) {
            (Ok(()), Some(admitted)) => admitted.confirming = None,
            (Ok(()), None) => {}
            (Err(_), _) => self.withdraw(producer_id),
        }
    }

    /// A producer's transaction ends, or cannot be confirmed.
    pub(crate) fn withdraw(&mut self, producer_id: i64) {
        if self.admitted.is_empty() {
            return;
        }
        self.admitted.remove(&producer_id);
        if self.admitted.is_empty() {
            self.admitted = HashMap::new();
        }
    }

    /// A transaction has ended by a marker that is not safe yet.
    pub(crate) fn ended(&mut self, first_offset: i64, marker_offset: i64) {
        self.ended.push_back((marker_offset, first_offset));
        self.ended_first.insert(first_offset);
    }

    /// One was aborted.
    pub(crate) fn aborted(&mut self, entry: AbortedEntry) {
        self.aborted.0.push_back(entry);
    }

    /// Markers below are safe.
    pub(crate) fn safe_below(&mut self, offset: i64) {
        while let Some((_, first_offset)) = self.ended.pop_front_if(|(marker, _)| *marker < offset) {
            self.ended_first.remove(&first_offset);
        }
    }

    /// The log was cut off at an offset: markers from there on are gone. Who was let in has to be so anew, by whoever
    /// coordinates then.
    pub(crate) fn cut(&mut self, end: i64) {
        self.admitted = HashMap::new();
        self.ended.retain(|(marker, _)| *marker < end);
        self.ended_first = self.ended.iter().map(|(_, first_offset)| *first_offset).collect();
        self.aborted.0.retain(|entry| entry.last_offset.get() < end);
    }

    /// Where the first transaction begins whose marker is not safe.
    pub(crate) fn first_unsafe(&self) -> Option<i64> {
        self.ended_first.first().copied()
    }

    /// Those that were aborted, as far as they are here.
    pub(crate) fn all_aborted(&self) -> &Aborted {
        &self.aborted
    }

    /// Aborted ones whose marker lies below are not needed here.
    pub(crate) fn forget_below(&mut self, offset: i64) {
        let aborted = &mut self.aborted.0;
        while aborted.pop_front_if(|entry| entry.last_offset.get() < offset).is_some() {}
        if aborted.is_empty() {
            *aborted = VecDeque::new();
        }
    }
}

impl Aborted {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one whose marker is there.
    pub(crate) fn ended_at(&self, marker_offset: i64) -> Option<AbortedEntry> {
        let at = self.0.binary_search_by_key(&marker_offset, |entry| entry.last_offset.get()).ok()?;
        self.0.get(at).copied()
    }

    /// Those with records from `from` up to `end`, by their markers.
    pub(crate) fn between(&self, from: i64, end: i64) -> Vec<AbortedEntry> {
        let (front, back) = self.0.as_slices();
        let (mut found, goes_on) = overlapping(front, from, end);
        if goes_on {
            found.extend(overlapping(back, from, end).0);
        }
        found
    }
}
