//! Which open transactions a coordinator will end, as far as DescribeTransactions tells, of ids here and of those of other nodes. It
//! does not tell by which version a transaction ends: of what ends elsewhere, the epochs of both are claimed. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use millrace_engine::{api::TopicPartition, transactions::OpenTransaction};

use super::{
    metadata::{EPOCH_BUMP_VERSION, Producer},
    state::State,
};

/// What one id's coordinator will end where it is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    producer_id: i64,
    epochs: RangeInclusive<i16>,
    partitions: BTreeSet<TopicPartition>,
}

impl Claim {
    /// Of an id in a state, with its producer, the `transaction.version` of its end if that is known, and the partitions that it
    /// tells of: all that an ongoing transaction includes, and of one that is ending those that are not known to have their
    /// markers. `None`: nothing is to be ended.
    pub(crate) fn of(
        state: State,
        producer: Producer,
        version: Option<i16>,
        partitions: impl Iterator<Item = TopicPartition>,
    ) -> Option<Self> {
        let before = producer.epoch.saturating_sub(1);
        let epochs = match state {
            State::Ongoing => producer.epoch..=producer.epoch,
            // that of the markers is the next transaction's, of which a batch may be there whose record was lost
            State::PrepareCommit | State::PrepareAbort if version >= Some(EPOCH_BUMP_VERSION) => before..=before,
            State::PrepareCommit | State::PrepareAbort => before..=producer.epoch,
            State::Empty | State::CompleteCommit | State::CompleteAbort => return None,
        };
        Some(Self { producer_id: producer.id, epochs, partitions: partitions.collect() })
    }

    fn covers(&self, open: &OpenTransaction) -> bool {
        self.epochs.contains(&open.producer_epoch) && self.partitions.contains(&open.partition)
    }
}

/// Which open transactions are claimed, by their places.
pub(crate) fn claimed(claims: &[Claim], open: &[OpenTransaction]) -> Vec<usize> {
    let mut by_producer: BTreeMap<i64, Vec<&Claim>> = BTreeMap::new();
    for claim in claims {
        by_producer.entry(claim.producer_id).or_default().push(claim);
    }
    let is_claimed = |open: &OpenTransaction| {
        by_producer.get(&open.producer_id).is_some_and(|claims| claims.iter().any(|claim| claim.covers(open)))
    };
    open.iter().enumerate().filter(|(_, open)| is_claimed(open)).map(|(place, _)| place).collect()
}
