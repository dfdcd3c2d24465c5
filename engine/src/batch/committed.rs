//! Which batches count for whoever reads committed records only.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
};

use super::{AbortedTransaction, BatchInfo};

/// Finds out which batches of one answer count, given the aborted transactions that came with it: from the first offset
/// of one on, nothing of its producer does, up to that producer's next marker.
#[derive(Debug)]
pub struct CommittedBatches {
    /// Transactions that no batch was of yet, by first offset.
    ahead: BinaryHeap<Reverse<(i64, i64)>>,
    /// Producers whose aborted transaction is under way.
    aborting: HashSet<i64>,
}

impl CommittedBatches {
    /// For the batches of one partition in one answer.
    pub fn new(aborted: &[AbortedTransaction]) -> Self {
        let ahead = aborted.iter().map(|aborted| Reverse((aborted.first_offset, aborted.producer_id)));
        Self { ahead: ahead.collect(), aborting: HashSet::new() }
    }

    /// Whether records of the next batch count. Those of control batches never do.
    pub fn counts(&mut self, info: &BatchInfo) -> bool {
        while let Some(Reverse((first_offset, producer_id))) = self.ahead.peek().copied()
            && first_offset <= info.last_offset()
        {
            self.ahead.pop();
            self.aborting.insert(producer_id);
        }
        if info.is_control() {
            self.aborting.remove(&info.producer_id);
            return false;
        }
        !(info.is_transactional() && self.aborting.contains(&info.producer_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, Codec, Record};

    fn batch(offset: i64, producer_id: i64, kind: &str) -> BatchInfo {
        let builder = BatchBuilder::new(Codec::None, offset);
        let mut builder = match kind {
            "plain" => builder.producer(producer_id, 0, 0),
            "data" => builder.producer(producer_id, 0, 0).transactional(),
            _ => builder.producer(producer_id, 0, -1).transactional().control(),
        };
        builder.push(&Record { offset, timestamp: 0, key: None, value: None, headers: Vec::new() });
        BatchInfo::parse(&builder.finish()).unwrap()
    }

    #[test]
    fn what_is_aborted_ends_with_the_producer_s_marker() {
        let aborted = |producer_id, first_offset| AbortedTransaction { producer_id, first_offset };
        let mut committed = CommittedBatches::new(&[aborted(1, 2), aborted(1, 7)]);
        let batches = [
            (0, 1, "data", true),
            (1, 1, "marker", false),
            (2, 1, "data", false),
            (3, 2, "data", true),
            (4, 1, "plain", true),
            (5, 2, "marker", false),
            (6, 1, "marker", false),
            (7, 1, "data", false),
            (8, 1, "marker", false),
            (9, 1, "data", true),
        ];
        for (offset, producer_id, kind, counts) in batches {
            assert_eq!(committed.counts(&batch(offset, producer_id, kind)), counts, "at {offset}");
        }
    }

    #[test]
    fn an_answer_may_begin_within_an_aborted_transaction() {
        let mut committed = CommittedBatches::new(&[AbortedTransaction { producer_id: 1, first_offset: 2 }]);
        assert!(!committed.counts(&batch(9, 1, "data")));
    }
}
