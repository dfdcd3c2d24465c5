//! One partition of a topic as one share group sees it (KIP-932): which records are in flight, with whom, how often they
//! were delivered.
//!
//! Plain code without I/O or clock; it lives on the shard that owns the topic's partition. Calling order: fetch the log
//! from [`SharePartition::next_fetch_offset`], give what was found to `acquire`, what of that is of no use to consumers to
//! `archive`, and answer the consumer. `acknowledge`
//! and `release` give a [`Write`] that is to be made durable; its end is told with [`SharePartition::on_persisted`], and
//! only then are the consumers answered. `handle_timeouts` is called at [`SharePartition::next_deadline_ms`].
//!
//! Always holds: the runs cover `start_offset..next_offset` without a hole and do not overlap; the first of them is not
//! done. A record that is done is never acquired again. A record is acquired `delivery_count_max` times at most.

mod acknowledge;
mod acquire;
mod archive;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    rc::Rc,
};

pub(crate) use acknowledge::{AcknowledgeError, AcknowledgeType, Acknowledgement};
pub(crate) use acquire::{Acquire, Acquired, LogBatch};

use super::state::{DeliveryState, StateBatch};

/// What the settings of the group allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Records in flight at most; batches are not cut for it.
    pub(crate) in_flight_max: i64,
    /// Deliveries of one record at most.
    pub(crate) delivery_count_max: i16,
    /// How long an acquired record is locked, in ms.
    pub(crate) lock_ms: i64,
    /// Whether a consumer may renew its locks.
    pub(crate) allows_renew: bool,
}

/// A write that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WriteId(u64);

/// State to be made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// To be given back to `on_persisted`; `None`: nothing waits for it.
    pub(crate) id: Option<WriteId>,
    /// First offset that is not done yet, before this write counts.
    pub(crate) start_offset: i64,
    /// Records from there on that are done once this write counts.
    pub(crate) delivery_complete_count: i32,
    /// The offsets that changed, rising.
    pub(crate) batches: Vec<StateBatch>,
}

/// A change that is being made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pending {
    write: WriteId,
    to: DeliveryState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Can be acquired.
    Available,
    /// Locked by a member until that time, in ms.
    Acquired { member: Rc<str>, until_ms: i64, pending: Option<Pending> },
    /// Accepted, rejected or delivered too often.
    Done,
    /// The log has nothing here.
    Gap,
}

/// Neighbouring offsets in one state. Its first offset is its key.
#[derive(Debug, Clone)]
struct Run {
    last: i64,
    state: State,
    delivery_count: i16,
    /// Offsets that were acquired together for the first time, of which these are a part.
    batch_len: i64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SharePartition {
    start_offset: i64,
    /// First offset that was never acquired.
    next_offset: i64,
    runs: BTreeMap<i64, Run>,
    /// No available run begins before it.
    available_from: i64,
    /// Ranges of the writes under way.
    writes: BTreeMap<WriteId, Vec<(i64, i64)>>,
    next_write: u64,
    /// When locks end, with their ranges; may name locks that are gone.
    deadlines: BinaryHeap<Reverse<(i64, i64, i64)>>,
}

impl SharePartition {
    /// A partition as it was kept. Offsets between and before `batches` were in flight when nothing of them was kept:
    /// they are available.
    ///
    /// # Errors
    /// When batches overlap or end before they begin.
    pub(crate) fn restore(start_offset: i64, batches: &[StateBatch]) -> Result<Self, String> {
        let mut partition = Self {
            start_offset,
            next_offset: start_offset,
            runs: BTreeMap::new(),
            available_from: start_offset,
            writes: BTreeMap::new(),
            next_write: 0,
            deadlines: BinaryHeap::new(),
        };
        for batch in batches {
            if batch.last_offset < batch.first_offset {
                return Err(format!("a batch ends before it begins: {batch:?}"));
            }
            if batch.last_offset < start_offset {
                continue;
            }
            let first = batch.first_offset.max(start_offset);
            if first < partition.next_offset {
                return Err(format!("a batch overlaps the one before it: {batch:?}"));
            }
            partition.append(first - 1, State::Available, 0);
            let state = match batch.state {
                DeliveryState::Available => State::Available,
                DeliveryState::Acknowledged | DeliveryState::Archived => State::Done,
            };
            partition.append(batch.last_offset, state, batch.delivery_count);
        }
        partition.advance();
        Ok(partition)
    }

    /// First offset that is not done.
    #[cfg(test)]
    pub(crate) fn start_offset(&self) -> i64 {
        self.start_offset
    }

    /// Where to read next: at the first record that can be acquired.
    pub(crate) fn next_fetch_offset(&mut self) -> i64 {
        let available = self.runs.range(self.available_from..).find(|(_, run)| run.state == State::Available);
        self.available_from = available.map_or(self.next_offset, |(first, _)| *first);
        self.available_from
    }

    /// Whether anything may be acquired now: something was given back, or there is room for more.
    pub(crate) fn can_acquire(&mut self, limits: &Limits) -> bool {
        self.next_fetch_offset() < self.next_offset || self.in_flight() < limits.in_flight_max
    }

    /// Whether nothing is with any member and no write is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.writes.is_empty() && !self.runs.values().any(|run| matches!(run.state, State::Acquired { .. }))
    }

    fn in_flight(&self) -> i64 {
        self.next_offset - self.start_offset
    }

    /// When to call [`SharePartition::handle_timeouts`]; may be too early, never too late.
    pub(crate) fn next_deadline_ms(&self) -> Option<i64> {
        self.deadlines.peek().map(|Reverse((at_ms, ..))| *at_ms)
    }

    /// The log begins later now: what lay before is gone.
    pub(crate) fn handle_log_start(&mut self, log_start_offset: i64) {
        if log_start_offset <= self.start_offset {
            return;
        }
        self.split(log_start_offset);
        self.runs = self.runs.split_off(&log_start_offset);
        self.start_offset = log_start_offset;
        self.next_offset = self.next_offset.max(log_start_offset);
        self.available_from = self.available_from.max(log_start_offset);
        self.advance();
    }

    /// Frees the records whose locks are over. They are free at once, whatever becomes of the write.
    pub(crate) fn handle_timeouts(&mut self, now_ms: i64, limits: &Limits) -> Option<Write> {
        let mut batches = Vec::new();
        while let Some(Reverse((at_ms, first, last))) = self.deadlines.peek().copied() {
            if at_ms > now_ms {
                break;
            }
            self.deadlines.pop();
            for first in self.firsts(first, last) {
                let Some(run) = self.runs.get_mut(&first) else { continue };
                if let State::Acquired { until_ms, pending: None, .. } = &run.state
                    && *until_ms <= now_ms
                {
                    let to = run.freed(limits);
                    run.state = State::of(to);
                    self.available_from = self.available_from.min(first);
                    let last_offset = run.last;
                    let delivery_count = run.delivery_count;
                    batches.push(StateBatch { first_offset: first, last_offset, state: to, delivery_count });
                    self.join(first);
                }
            }
        }
        let write = self.write(None, batches);
        self.advance();
        write
    }

    /// A write is durable, or failed: then its records are with their member again, if there is time left.
    pub(crate) fn on_persisted(&mut self, now_ms: i64, id: WriteId, is_durable: bool, limits: &Limits) {
        for (first, last) in self.writes.remove(&id).unwrap_or_default() {
            for first in self.firsts(first, last) {
                let Some(run) = self.runs.get_mut(&first) else { continue };
                let freed = run.freed(limits);
                let State::Acquired { until_ms, pending, .. } = &mut run.state else { continue };
                let Some(change) = pending.filter(|pending| pending.write == id) else { continue };
                if is_durable {
                    run.state = State::of(change.to);
                } else if *until_ms <= now_ms {
                    run.state = State::of(freed);
                } else {
                    *pending = None;
                }
                self.available_from = self.available_from.min(first);
                self.join(first);
            }
        }
        self.advance();
    }

    /// Adds a run at the end.
    fn append(&mut self, last: i64, state: State, delivery_count: i16) {
        if last >= self.next_offset {
            let batch_len = last - self.next_offset + 1;
            self.runs.insert(self.next_offset, Run { last, state, delivery_count, batch_len });
            self.next_offset = last + 1;
        }
    }

    /// Makes a run begin at an offset, if one holds it.
    fn split(&mut self, offset: i64) {
        let Some((first, run)) = self.runs.range_mut(..offset).next_back() else { return };
        if run.last < offset {
            return;
        }
        debug_assert!(*first < offset);
        let tail = run.clone();
        run.last = offset - 1;
        self.runs.insert(offset, tail);
    }

    /// First offsets of the runs within a range, which begins and ends where runs do.
    fn firsts(&mut self, first: i64, last: i64) -> Vec<i64> {
        self.split(first);
        self.split(last + 1);
        self.runs.range(first..=last).map(|(first, _)| *first).collect()
    }

    /// Begins a write of batches, if there are any.
    fn write(&mut self, id: Option<WriteId>, mut batches: Vec<StateBatch>) -> Option<Write> {
        if batches.is_empty() {
            return None;
        }
        batches.sort_by_key(|batch| batch.first_offset);
        batches.dedup_by(|next, before| before.absorbs(next));
        let delivery_complete_count = i32::try_from(self.done()).unwrap_or(i32::MAX);
        Some(Write { id, start_offset: self.start_offset, delivery_complete_count, batches })
    }

    /// Offsets from the start on that are done, or will be once the writes under way are durable.
    fn done(&self) -> i64 {
        let is_done = |run: &Run| match &run.state {
            State::Done | State::Gap => true,
            State::Acquired { pending: Some(pending), .. } => pending.to != DeliveryState::Available,
            State::Acquired { .. } | State::Available => false,
        };
        self.runs.iter().filter(|(_, run)| is_done(run)).map(|(first, run)| run.last - first + 1).sum()
    }

    /// Moves the start past what is done and joins neighbours that are done.
    fn advance(&mut self) {
        while let Some(entry) = self.runs.first_entry()
            && matches!(entry.get().state, State::Done | State::Gap)
        {
            self.start_offset = entry.remove().last + 1;
        }
        if self.runs.is_empty() {
            self.start_offset = self.next_offset;
        }
        self.available_from = self.available_from.max(self.start_offset);
    }

    /// Joins a run that is done with neighbours that are, so that scattered acknowledgements do not leave many behind.
    fn join(&mut self, first: i64) {
        let is_done = |run: &Run| run.state == State::Done;
        let Some(run) = self.runs.get(&first).filter(|run| is_done(run)) else { return };
        let (mut begin, mut last) = (first, run.last);
        if let Some((before, run)) = self.runs.range(..first).next_back()
            && is_done(run)
        {
            begin = *before;
        }
        if let Some((_, after)) = self.runs.range(last + 1..).next().filter(|(_, run)| is_done(run)) {
            let after = (last + 1, after.last);
            self.runs.remove(&after.0);
            last = after.1;
        }
        if begin != first {
            self.runs.remove(&first);
        }
        if let Some(run) = self.runs.get_mut(&begin) {
            run.last = last;
        }
    }
}

impl Run {
    /// What it becomes when its lock ends: available, unless it was delivered too often.
    fn freed(&self, limits: &Limits) -> DeliveryState {
        if self.delivery_count >= limits.delivery_count_max {
            DeliveryState::Archived
        } else {
            DeliveryState::Available
        }
    }
}

impl State {
    fn of(state: DeliveryState) -> State {
        match state {
            DeliveryState::Available => State::Available,
            DeliveryState::Acknowledged | DeliveryState::Archived => State::Done,
        }
    }
}
