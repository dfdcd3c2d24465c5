//! What members say of the records that they have.

use std::cmp::Reverse;

use super::{Limits, Pending, SharePartition, State, Write, WriteId};
use crate::coordinator::share::state::{DeliveryState, StateBatch};

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcknowledgeType {
    /// There is no record at this offset.
    Gap,
    /// It was processed.
    Accept,
    /// Somebody is to have it again.
    Release,
    /// Nobody can process it.
    Reject,
    /// The member needs more time (KIP-1222).
    Renew,
}

impl AcknowledgeType {
    /// The type of a number on the wire.
    pub(crate) fn from_wire(number: i8) -> Option<Self> {
        Some(match number {
            0 => AcknowledgeType::Gap,
            1 => AcknowledgeType::Accept,
            2 => AcknowledgeType::Release,
            3 => AcknowledgeType::Reject,
            4 => AcknowledgeType::Renew,
            _ => return None,
        })
    }
}

/// A range of offsets, with one type for all of them or one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    pub(crate) first_offset: i64,
    pub(crate) last_offset: i64,
    /// One, or as many as there are offsets.
    pub(crate) types: Vec<AcknowledgeType>,
}

/// Why acknowledgements were refused, all of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AcknowledgeError {
    /// They begin or end behind what was ever acquired.
    #[error("Batch record not found. The offsets in request are past acquired records.")]
    PastAcquired,
    /// Nothing is in flight.
    #[error("Batch record not found. The request batch offsets are not found in the cache.")]
    NotInFlight,
    /// Nobody has one of the records.
    #[error("The batch cannot be acknowledged. The batch is not in the acquired state.")]
    NotAcquired,
    /// Another member has one of the records.
    #[error("Member is not the owner of batch record")]
    NotOwner,
    /// One of the records was acknowledged just now.
    #[error("The record state is invalid. The acknowledgement of delivery could not be completed.")]
    UnderWay,
    /// The group's settings do not allow that.
    #[error("Renewing acquisition locks is not enabled for the group.")]
    RenewDisabled,
}

impl Acknowledgement {
    fn type_at(&self, offset: i64) -> AcknowledgeType {
        let at = usize::try_from(offset - self.first_offset).unwrap_or(0);
        *self.types.get(at).or(self.types.first()).unwrap_or(&AcknowledgeType::Gap)
    }

    /// Ranges of one type each, from an offset on.
    fn ranges(&self, from: i64) -> Vec<(i64, i64, AcknowledgeType)> {
        let from = from.max(self.first_offset);
        if self.types.len() <= 1 {
            return vec![(from, self.last_offset, self.type_at(from))];
        }
        let mut ranges: Vec<(i64, i64, AcknowledgeType)> = Vec::new();
        for offset in from..=self.last_offset {
            let kind = self.type_at(offset);
            match ranges.last_mut() {
                Some((_, last, before)) if *before == kind => *last = offset,
                _ => ranges.push((offset, offset, kind)),
            }
        }
        ranges
    }
}

impl SharePartition {
    /// Takes a member's acknowledgements over, all or none; `None`: nothing is to be written. They count once the write
    /// is durable.
    pub(crate) fn acknowledge(
        &mut self,
        now_ms: i64,
        member: &str,
        acknowledgements: &[Acknowledgement],
        limits: &Limits,
    ) -> Result<Option<Write>, AcknowledgeError> {
        let current: Vec<_> = acknowledgements.iter().filter(|batch| batch.last_offset >= self.start_offset).collect();
        let mut done = self.start_offset - 1;
        for batch in &current {
            self.check(member, batch, done, limits)?;
            done = batch.last_offset;
        }
        let mut changes = Vec::new();
        for batch in current {
            for (first, last, kind) in batch.ranges(self.start_offset) {
                self.change(now_ms, (first, last), kind, limits, &mut changes);
            }
        }
        Ok(self.begin(changes))
    }

    /// Gives everything back that a member has: it is gone.
    pub(crate) fn release(&mut self, member: &str, limits: &Limits) -> Option<Write> {
        let mut changes = Vec::new();
        for (first, run) in &self.runs {
            if let State::Acquired { member: owner, pending: None, .. } = &run.state
                && **owner == *member
            {
                changes.push((*first, run.last, run.freed(limits)));
            }
        }
        self.begin(changes)
    }

    /// Whether a member may acknowledge a batch; `done` is the last offset of the one before it.
    fn check(&self, member: &str, batch: &Acknowledgement, done: i64, limits: &Limits) -> Result<(), AcknowledgeError> {
        if self.runs.is_empty() {
            return Err(AcknowledgeError::NotInFlight);
        }
        if batch.last_offset >= self.next_offset {
            return Err(AcknowledgeError::PastAcquired);
        }
        let first = batch.first_offset.max(self.start_offset);
        if first <= done {
            return Err(AcknowledgeError::UnderWay);
        }
        if batch.types.contains(&AcknowledgeType::Renew) && !limits.allows_renew {
            return Err(AcknowledgeError::RenewDisabled);
        }
        let begin = self.runs.range(..=first).next_back().map_or(first, |(first, _)| *first);
        for run in self.runs.range(begin..=batch.last_offset).map(|(_, run)| run) {
            match &run.state {
                State::Gap => {}
                State::Available | State::Done => return Err(AcknowledgeError::NotAcquired),
                State::Acquired { member: owner, .. } if **owner != *member => return Err(AcknowledgeError::NotOwner),
                State::Acquired { pending: Some(_), .. } => return Err(AcknowledgeError::UnderWay),
                State::Acquired { .. } => {}
            }
        }
        Ok(())
    }

    fn change(
        &mut self,
        now_ms: i64,
        (first, last): (i64, i64),
        kind: AcknowledgeType,
        limits: &Limits,
        changes: &mut Vec<(i64, i64, DeliveryState)>,
    ) {
        for first in self.firsts(first, last) {
            let Some(run) = self.runs.get_mut(&first) else { continue };
            let freed = run.freed(limits);
            let State::Acquired { until_ms, .. } = &mut run.state else { continue };
            let to = match kind {
                AcknowledgeType::Accept => DeliveryState::Acknowledged,
                AcknowledgeType::Release => freed,
                AcknowledgeType::Reject | AcknowledgeType::Gap => DeliveryState::Archived,
                AcknowledgeType::Renew => {
                    *until_ms = now_ms.saturating_add(limits.lock_ms);
                    self.deadlines.push(Reverse((*until_ms, first, run.last)));
                    continue;
                }
            };
            changes.push((first, run.last, to));
        }
    }

    /// Begins to change runs of a member.
    fn begin(&mut self, changes: Vec<(i64, i64, DeliveryState)>) -> Option<Write> {
        if changes.is_empty() {
            return None;
        }
        let id = WriteId(self.next_write);
        self.next_write += 1;
        let mut batches = Vec::with_capacity(changes.len());
        for (first, last, to) in &changes {
            let Some(run) = self.runs.get_mut(first) else { continue };
            if let State::Acquired { pending, .. } = &mut run.state {
                *pending = Some(Pending { write: id, to: *to });
            }
            let delivery_count = run.delivery_count;
            batches.push(StateBatch { first_offset: *first, last_offset: *last, state: *to, delivery_count });
        }
        self.writes.insert(id, changes.into_iter().map(|(first, last, _)| (first, last)).collect());
        self.write(Some(id), batches)
    }
}
