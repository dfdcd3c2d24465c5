//! Records that were acquired and must not be delivered: those of aborted transactions (KIP-932, isolation of a group).

use super::{Acquired, LogBatch, SharePartition, State, Write};
use crate::coordinator::share::state::{DeliveryState, StateBatch};

impl SharePartition {
    /// Archives what a member just acquired of batches that no consumer of the group may see. Answers what is left to be
    /// delivered. The write need not be waited for: if it is lost, what was archived is found again where it was.
    pub(crate) fn archive(&mut self, acquired: Vec<Acquired>, hidden: &[LogBatch]) -> (Vec<Acquired>, Option<Write>) {
        let mut batches = Vec::new();
        let mut left = Vec::with_capacity(acquired.len());
        for range in acquired {
            let mut from = range.first_offset;
            for batch in hidden {
                let first = batch.first_offset.max(from);
                let last = batch.last_offset.min(range.last_offset);
                if first > last {
                    continue;
                }
                if from < first {
                    left.push(Acquired { first_offset: from, last_offset: first - 1, ..range });
                }
                from = last + 1;
                self.archive_range(first, last, &mut batches);
            }
            if from <= range.last_offset {
                left.push(Acquired { first_offset: from, ..range });
            }
        }
        let write = self.write(None, batches);
        self.advance();
        (left, write)
    }

    fn archive_range(&mut self, first: i64, last: i64, batches: &mut Vec<StateBatch>) {
        for first in self.firsts(first, last) {
            let Some(run) = self.runs.get_mut(&first) else { continue };
            let state = DeliveryState::Archived;
            run.state = State::of(state);
            batches.push(StateBatch {
                first_offset: first,
                last_offset: run.last,
                state,
                delivery_count: run.delivery_count,
            });
            self.join(first);
        }
    }
}
