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

/// See the module. Without transactions it has no memory of its own, and is small.
#[derive(Default)]
pub(crate) struct Transactions(Option<Box<Known>>);

#[derive(Default)]
struct Known {
    /// By producer id. Cleared by its marker.
    admitted: HashMap<i64, Admitted>,
    /// Offsets of markers that are not safe yet, and where their transactions began.
    ended: VecDeque<(i64, i64)>,
    /// The latter once more, in order.
    ended_first: BTreeSet<i64>,
    /// A start found markers below this in segments that may not be safe: where their transactions began is not known. 0 for none.
    unsure_below: i64,
    /// By their markers.
    aborted: VecDeque<AbortedEntry>,
}

/// Transactions that were aborted, by their markers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Aborted<'t>(Option<&'t VecDeque<AbortedEntry>>);

impl Transactions {
    /// What a producer was admitted to, if it was.
    pub(crate) fn admitted(&self, producer_id: i64) -> Option<&Admitted> {
        self.0.as_ref()?.admitted.get(&producer_id)
    }

    /// A producer may write for its transaction.
    pub(crate) fn admit(&mut self, producer_id: i64, admitted: Admitted) -> Result<(), LogError> {
        let known = self.0.get_or_insert_default();
        if known.admitted.len() >= ADMITTED_MAX && !known.admitted.contains_key(&producer_id) {
            return Err(LogError::ConcurrentTransactions("too many producers may begin one in this partition"));
        }
        known.admitted.insert(producer_id, admitted);
        Ok(())
    }

    /// A producer's admission is confirmed, or was not.
    pub(crate) fn settle(&mut self, producer_id: i64, result: &Result<(), LogError>) {
        let Some(known) = &mut self.0 else { return };
        match (result, known.admitted.get_mut(&producer_id)) {
            (Ok(()), Some(admitted)) => admitted.confirming = None,
            (Ok(()), None) => {}
            (Err(_), _) => self.withdraw(producer_id),
        }
    }

    /// A producer's transaction ends, or cannot be confirmed.
    pub(crate) fn withdraw(&mut self, producer_id: i64) {
        if let Some(known) = &mut self.0 {
            known.admitted.remove(&producer_id);
            self.drop_if_idle();
        }
    }

    /// Nobody is let in any more.
    pub(crate) fn withdraw_all(&mut self) {
        if let Some(known) = &mut self.0 {
            known.admitted = HashMap::new();
            self.drop_if_idle();
        }
    }

    /// A transaction has ended by a marker that is not safe yet.
    pub(crate) fn ended(&mut self, first_offset: i64, marker_offset: i64) {
        let known = self.0.get_or_insert_default();
        known.ended.push_back((marker_offset, first_offset));
        known.ended_first.insert(first_offset);
    }

    /// Some have ended by markers below an offset, and where they began is not known.
    pub(crate) fn unsure_below(&mut self, offset: i64) {
        self.0.get_or_insert_default().unsure_below = offset;
    }

    /// Whether there are such.
    pub(crate) fn is_unsure(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.unsure_below > 0)
    }

    /// One was aborted.
    pub(crate) fn aborted(&mut self, entry: AbortedEntry) {
        self.0.get_or_insert_default().aborted.push_back(entry);
    }

    /// Markers below are safe.
    pub(crate) fn safe_below(&mut self, offset: i64) {
        let Some(known) = &mut self.0 else { return };
        if known.unsure_below <= offset {
            known.unsure_below = 0;
        }
        while let Some((_, first_offset)) = known.ended.pop_front_if(|(marker, _)| *marker < offset) {
            known.ended_first.remove(&first_offset);
        }
        self.drop_if_idle();
    }

    /// The log was cut off at an offset: markers from there on are gone. Who was let in has to be so anew, by whoever
    /// coordinates then.
    pub(crate) fn cut(&mut self, end: i64) {
        let Some(known) = &mut self.0 else { return };
        known.admitted = HashMap::new();
        known.unsure_below = known.unsure_below.min(end);
        known.ended.retain(|(marker, _)| *marker < end);
        known.ended_first = known.ended.iter().map(|(_, first_offset)| *first_offset).collect();
        known.aborted.retain(|entry| entry.last_offset.get() < end);
        self.drop_if_idle();
    }

    /// Where the first transaction begins whose marker is not safe; anywhere if that is not known.
    pub(crate) fn first_unsafe(&self) -> Option<i64> {
        let known = self.0.as_ref()?;
        if known.unsure_below > 0 { Some(0) } else { known.ended_first.first().copied() }
    }

    /// Those that were aborted, as far as they are here.
    pub(crate) fn all_aborted(&self) -> Aborted<'_> {
        Aborted(self.0.as_ref().map(|known| &known.aborted))
    }

    /// Aborted ones whose marker lies below are not needed here.
    pub(crate) fn forget_below(&mut self, offset: i64) {
        let Some(known) = &mut self.0 else { return };
        while known.aborted.pop_front_if(|entry| entry.last_offset.get() < offset).is_some() {}
        self.drop_if_idle();
    }

    fn drop_if_idle(&mut self) {
        let is_idle = |known: &Known| {
            let has_none = known.admitted.is_empty() && known.ended.is_empty() && known.aborted.is_empty();
            has_none && known.unsure_below == 0
        };
        if self.0.as_deref().is_some_and(is_idle) {
            self.0 = None;
        }
    }
}

impl Aborted<'_> {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none_or(VecDeque::is_empty)
    }

    /// The one whose marker is there.
    pub(crate) fn ended_at(&self, marker_offset: i64) -> Option<AbortedEntry> {
        let all = self.0?;
        let at = all.binary_search_by_key(&marker_offset, |entry| entry.last_offset.get()).ok()?;
        all.get(at).copied()
    }

    /// Those with records from `from` up to `end`, by their markers.
    pub(crate) fn between(&self, from: i64, end: i64) -> Vec<AbortedEntry> {
        let Some((front, back)) = self.0.map(VecDeque::as_slices) else { return Vec::new() };
        let (mut found, goes_on) = overlapping(front, from, end);
        if goes_on {
            found.extend(overlapping(back, from, end).0);
        }
        found
    }
}
