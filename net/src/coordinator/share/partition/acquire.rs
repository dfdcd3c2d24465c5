//! Giving records to a member.

use std::{cmp::Reverse, rc::Rc};

use super::{Limits, Run, SharePartition, State};

/// What a member asks for.
#[derive(Debug, Clone)]
pub(crate) struct Acquire {
    /// Who.
    pub(crate) member: Rc<str>,
    /// Records wanted; batches are not cut for it unless `is_strict`.
    pub(crate) records_max: i64,
    /// Records that a batch of the answer best has.
    pub(crate) batch_size: i64,
    /// Never more than `records_max` (KIP-1206).
    pub(crate) is_strict: bool,
}

/// A batch of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogBatch {
    /// Its base offset.
    pub(crate) first_offset: i64,
    /// Its last offset.
    pub(crate) last_offset: i64,
}

/// Records that were given to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acquired {
    pub(crate) first_offset: i64,
    pub(crate) last_offset: i64,
    /// How often they have been delivered, this time included.
    pub(crate) delivery_count: i16,
}

impl Acquired {
    /// How many offsets these are.
    pub(crate) fn len(&self) -> i64 {
        self.last_offset - self.first_offset + 1
    }
}

/// An acquisition under way.
struct Taking<'a> {
    request: &'a Acquire,
    limits: &'a Limits,
    until_ms: i64,
    /// No offset before or after.
    first: i64,
    last: i64,
    /// Records wanted, as far as there is room for them.
    wanted: i64,
    taken: i64,
    acquired: Vec<Acquired>,
}

impl SharePartition {
    /// Gives what was read from the log at `fetch_offset` to a member, as far as nobody has it.
    pub(crate) fn acquire(
        &mut self,
        now_ms: i64,
        request: &Acquire,
        limits: &Limits,
        fetch_offset: i64,
        batches: &[LogBatch],
    ) -> Vec<Acquired> {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else { return Vec::new() };
        if request.records_max <= 0 || last.last_offset < self.start_offset {
            return Vec::new();
        }
        self.note_missing(fetch_offset, first.first_offset);
        let Some((last_offset, wanted)) = self.room(request, limits, fetch_offset, last.last_offset) else {
            return Vec::new();
        };
        let mut taking = Taking {
            request,
            limits,
            until_ms: now_ms.saturating_add(limits.lock_ms),
            first: first.first_offset.max(self.start_offset),
            last: last_offset,
            wanted,
            taken: 0,
            acquired: Vec::new(),
        };
        let goes_on = self.acquire_again(&mut taking);
        if goes_on && taking.taken < taking.wanted {
            self.acquire_new(&mut taking, batches);
        }
        taking.acquired
    }

    /// How far and how many records may be acquired. When as many are in flight as may be, only what was given back.
    fn room(&self, request: &Acquire, limits: &Limits, fetch_offset: i64, last: i64) -> Option<(i64, i64)> {
        let wanted = request.records_max.min(limits.in_flight_max - self.in_flight());
        if wanted > 0 {
            return Some((last, wanted));
        }
        let again = self.next_offset - fetch_offset;
        (again > 0).then(|| (last.min(self.next_offset - 1), request.records_max.min(again)))
    }

    /// The log has nothing between where it was read and what was found: it was compacted, or is of a transaction.
    fn note_missing(&mut self, fetch_offset: i64, found: i64) {
        if fetch_offset >= found || fetch_offset >= self.next_offset {
            return;
        }
        for first in self.firsts(fetch_offset.max(self.start_offset), found.min(self.next_offset) - 1) {
            if let Some(run) = self.runs.get_mut(&first)
                && run.state == State::Available
            {
                run.state = State::Gap;
            }
        }
        self.advance();
    }

    /// Records that were delivered before and given back. Answers whether new ones may follow.
    fn acquire_again(&mut self, taking: &mut Taking<'_>) -> bool {
        let last = taking.last.min(self.next_offset - 1);
        if taking.first > last {
            return true;
        }
        let firsts = self.firsts(taking.first, last);
        for first in firsts {
            if taking.taken >= taking.wanted {
                return false;
            }
            let Some(run) = self.runs.get(&first).filter(|run| run.state == State::Available) else { continue };
            let share = run.throttled(taking.limits);
            if share.is_some() && taking.taken > 0 {
                return false;
            }
            let mut last = run.last;
            if let Some(share) = share {
                last = last.min(first + share - 1);
            }
            if taking.request.is_strict {
                last = last.min(first + taking.wanted - taking.taken - 1);
            }
            self.split(last + 1);
            self.take(first, taking);
            if share.is_some() {
                return false;
            }
        }
        true
    }

    /// Gives an available run to the member.
    fn take(&mut self, first: i64, taking: &mut Taking<'_>) {
        let Some(run) = self.runs.get_mut(&first) else { return };
        let until_ms = taking.until_ms;
        run.state = State::Acquired { member: Rc::clone(&taking.request.member), until_ms, pending: None };
        run.delivery_count += 1;
        let acquired = Acquired { first_offset: first, last_offset: run.last, delivery_count: run.delivery_count };
        self.deadlines.push(Reverse((until_ms, first, acquired.last_offset)));
        taking.taken += acquired.len();
        match taking.acquired.last_mut() {
            Some(before)
                if before.last_offset + 1 == first
                    && before.delivery_count == acquired.delivery_count
                    && before.len() + acquired.len() <= taking.request.batch_size =>
            {
                before.last_offset = acquired.last_offset;
            }
            _ => taking.acquired.push(acquired),
        }
    }

    /// Records that nobody had before.
    fn acquire_new(&mut self, taking: &mut Taking<'_>, batches: &[LogBatch]) {
        let first = self.next_offset.max(taking.first);
        if first > taking.last {
            return;
        }
        if first > self.next_offset {
            self.append(first - 1, State::Gap, 0);
            self.advance();
        }
        let mut last = taking.last;
        let wanted = taking.wanted - taking.taken;
        if wanted < last - first + 1 {
            last = first + wanted - 1;
            let whole = batches.iter().find(|batch| (batch.first_offset..=batch.last_offset).contains(&last));
            if let Some(batch) = whole.filter(|_| !taking.request.is_strict) {
                last = batch.last_offset;
            }
        }
        let mut begins = vec![first];
        if !taking.request.is_strict {
            let mut begin = first;
            for batch in batches.iter().filter(|batch| batch.first_offset <= last) {
                if batch.first_offset - begin >= taking.request.batch_size {
                    begin = batch.first_offset;
                    begins.push(begin);
                }
            }
        }
        let ends: Vec<_> = begins.iter().skip(1).map(|begin| begin - 1).chain([last]).collect();
        for (begin, end) in begins.into_iter().zip(ends) {
            self.append(end, State::Available, 0);
            let Some(run) = self.runs.get_mut(&begin) else { continue };
            let until_ms = taking.until_ms;
            run.state = State::Acquired { member: Rc::clone(&taking.request.member), until_ms, pending: None };
            run.delivery_count = 1;
            self.deadlines.push(Reverse((until_ms, begin, end)));
            taking.acquired.push(Acquired { first_offset: begin, last_offset: end, delivery_count: 1 });
        }
    }
}

impl Run {
    /// How many of its records may be delivered together when they were delivered often already, so that one that kills
    /// its consumers does not take others along: half of the batch, a quarter, and so on; alone before the last time.
    fn throttled(&self, limits: &Limits) -> Option<i64> {
        let max = limits.delivery_count_max;
        let limit = ((max + 1) / 2).max(2);
        if max > 2 && self.delivery_count == max - 1 {
            return Some(1);
        }
        let beyond = u32::try_from(self.delivery_count - limit).ok()?;
        Some((self.batch_len >> (beyond + 1).min(62)).max(1))
    }
}
