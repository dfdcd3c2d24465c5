//! Offsets that are committed with a transaction: TxnOffsetCommit, and what becomes of them when the transaction ends.
//!
//! A producer's id alone says which transaction an offset belongs to: a marker that ends one of the id ends all of it.
//!
//! Always holds: a group is listed for a producer if, and only if, it has offsets that this producer's transaction is
//! about to commit.

use std::{collections::BTreeSet, rc::Rc};

use kafka_protocol::{
    error::ResponseError,
    messages::{OffsetCommitRequest, OffsetCommitResponse},
};

use super::{Coordinator, Group, offsets::commit_error};
use crate::coordinator::{
    group::{
        caller::Caller, effects::Then, error::GroupError, pending_offsets::Recorded, record::Record,
        transaction_guards::TransactionGuard,
    },
    runtime::Ticket,
};

/// First version of TxnOffsetCommit that tells an unknown group and a stale epoch by their own names.
const NAMED_ERRORS_VERSION: i16 = 6;

impl Coordinator {
    /// Gives a guard to a request that is about to ask whether its transaction is open. `unique` is of that request only.
    pub(crate) fn handle_guard(
        &mut self,
        producer_id: i64,
        unique: String,
        ticket: Ticket<Result<TransactionGuard, ResponseError>>,
    ) {
        let guard = self.guards.give(producer_id, unique);
        self.effects.reply(ticket, Ok(guard));
    }

    /// Takes a guard back: the transaction is not open, so nothing will be written in it.
    pub(crate) fn handle_guard_given_back(
        &mut self,
        guard: &TransactionGuard,
        ticket: Ticket<Result<(), ResponseError>>,
    ) {
        // whether it has ended meanwhile does not matter
        let _: bool = self.guards.take(guard);
        self.effects.reply(ticket, Ok(()));
    }

    /// A guard for tests, which ask nobody else.
    #[cfg(test)]
    pub(crate) fn guard(&mut self, producer_id: i64, unique: String) -> TransactionGuard {
        self.guards.give(producer_id, unique)
    }

    /// Handles a TxnOffsetCommit whose topics were found to exist and whose transaction to be open, told as an
    /// OffsetCommit. It is answered when the offsets are durable; they count when the producer's transaction is committed.
    /// If that has ended meanwhile, the client finds so out when it asks again.
    pub(crate) fn handle_txn_offset_commit(
        &mut self,
        now_ms: i64,
        caller: &Caller,
        (producer, guard): ((i64, i16), &TransactionGuard),
        request: &OffsetCommitRequest,
        ticket: Ticket<OffsetCommitResponse>,
    ) {
        let is_open = self.guards.take(guard);
        let checked = match is_open {
            true => self.validate_txn_commit(caller, request),
            false => Err(ResponseError::NotCoordinator),
        };
        if let Err(error) = checked {
            let reply = commit_error(request, error);
            return self.effects.reply(ticket, reply);
        }
        let (records, reply) = self.commit_records(now_ms, request);
        if records.is_empty() {
            return self.effects.reply(ticket, reply);
        }
        let then = Then::ApplyPending(producer.0, records.clone());
        self.effects.write_in_transaction(records, producer, then, ticket, reply);
    }

    fn validate_txn_commit(&self, caller: &Caller, request: &OffsetCommitRequest) -> Result<(), GroupError> {
        let generation = request.generation_id_or_member_epoch;
        let names_errors = caller.version >= NAMED_ERRORS_VERSION;
        let Some(entry) = self.entries.get(request.group_id.as_str()) else {
            // offsets of a producer that is in no group: a simple group will keep them
            return if request.group_id.is_empty() || super::is_too_long(&request.group_id) {
                Err(ResponseError::InvalidGroupId)
            } else if generation < 0 {
                Ok(())
            } else if names_errors {
                Err(ResponseError::GroupIdNotFound)
            } else {
                Err(ResponseError::IllegalGeneration)
            };
        };
        let instance_id = request.group_instance_id.as_deref();
        match &entry.group {
            Group::Classic(group) => group.validate_txn_offset_commit(&request.member_id, instance_id, generation),
            Group::Share(_) => Err(ResponseError::GroupIdNotFound),
            // only those are checked who say who they are (KAFKA-18060)
            Group::Consumer(_) if generation == -1 && request.member_id.is_empty() && instance_id.is_none() => Ok(()),
            Group::Consumer(group) => {
                let topics = request.topics.iter();
                let partitions = topics.flat_map(|topic| {
                    topic.partitions.iter().map(|partition| (topic.topic_id, partition.partition_index))
                });
                let checked = group.validate_txn_offset_commit(&request.member_id, generation, partitions);
                checked.map_err(|error| match error {
                    ResponseError::StaleMemberEpoch if !names_errors => ResponseError::IllegalGeneration,
                    error => error,
                })
            }
        }
    }

    /// Takes over an offset that a producer's transaction is about to commit.
    pub(super) fn apply_pending(&mut self, record_offset: i64, producer_id: i64, record: Record) {
        // producers write nothing else
        if let Record::OffsetCommit { group, topic, partition, value: Some(value) } = record {
            let recorded = Recorded { record_offset, value };
            self.entry(&group).offsets.set_pending(producer_id, &topic, partition, recorded);
            self.transactions.entry(producer_id).or_default().insert(group);
        }
    }

    /// A producer's transaction is committed, and its marker durable: its offsets count from now on.
    pub(crate) fn commit_transaction(&mut self, producer_id: i64) {
        for group in self.end_transaction(producer_id) {
            self.entry(&group).offsets.commit_transaction(producer_id);
        }
    }

    /// A producer's transaction is aborted, and its marker durable: its offsets never were.
    pub(crate) fn abort_transaction(&mut self, producer_id: i64) {
        for group in self.end_transaction(producer_id) {
            self.entry(&group).offsets.abort_transaction(producer_id);
        }
    }

    fn end_transaction(&mut self, producer_id: i64) -> BTreeSet<Rc<str>> {
        self.transactions.remove(&producer_id).unwrap_or_default()
    }

    /// The offset of a partition is deleted, and with it those that transactions are about to commit.
    pub(super) fn remove_offset(&mut self, group: &Rc<str>, topic: &Rc<str>, partition: i32) {
        let Some(entry) = self.entries.get_mut(group) else { return };
        let removed = entry.offsets.remove(topic, partition);
        for producer_id in removed {
            if let Some(groups) = self.transactions.get_mut(&producer_id) {
                groups.remove(group);
                if groups.is_empty() {
                    self.transactions.remove(&producer_id);
                }
            }
        }
    }

    /// Checks what the module promises.
    #[cfg(test)]
    pub(super) fn check_transactions(&self) {
        let mut pending: std::collections::BTreeMap<i64, BTreeSet<Rc<str>>> = std::collections::BTreeMap::new();
        for (id, entry) in &self.entries {
            for producer_id in entry.offsets.pending_producers() {
                pending.entry(producer_id).or_default().insert(Rc::clone(id));
            }
        }
        assert_eq!(pending, self.transactions, "groups are listed for the producers whose offsets they wait for");
    }
}

#[cfg(test)]
mod model;
