//! Offsets of a group that are committed with a transaction: its coordinator lets the partition in that the group's state is
//! in, and the group's coordinator writes them there.

use std::rc::Rc;

use futures_util::future::join;
use kafka_protocol::{
    error::ResponseError,
    messages::{OffsetCommitRequest, OffsetCommitResponse},
};
use millrace_engine::{api::TopicPartition, engine::Engine, transactions::Adds};

use super::let_in::{LetIn, let_in};
use crate::coordinator::{
    group::{Groups, OFFSETS_TOPIC, TransactionGuard, caller::Caller},
    transaction::Producer,
};

/// A TxnOffsetCommit whose topics were found to exist.
pub(crate) struct OffsetsOfTransaction {
    /// The transactional id.
    pub(crate) id: String,
    /// The producer that it has, says the client.
    pub(crate) producer: Producer,
    /// What becomes of a transaction that does not include the group's partition yet.
    pub(crate) adds: Adds,
    /// Who asks, with an id that was never used before.
    pub(crate) caller: Caller,
    /// What else it says.
    pub(crate) offsets: OffsetCommitRequest,
}

/// Commits offsets of a group with a transaction. Answered when they are on stable storage, and with them that the
/// transaction includes them: both are written side by side where the group's shard hears of the second in time, and what a
/// power cut leaves of the first alone is of a transaction that nobody knows, which is aborted at the next start.
pub(crate) async fn commit_offsets(
    engine: &Engine,
    group: &str,
    commit: OffsetsOfTransaction,
) -> Result<OffsetCommitResponse, ResponseError> {
    let partition = Groups::locate(engine, group).await?;
    let here = move |engine| async move { commit_here(&engine, partition, commit).await };
    engine.on_shard(engine.owner(partition), here).await
}

async fn commit_here(
    engine: &Engine,
    partition: TopicPartition,
    commit: OffsetsOfTransaction,
) -> Result<OffsetCommitResponse, ResponseError> {
    let groups = Groups::here(engine).await;
    commit_by(&Here { engine, groups, partition, commit }).await
}

/// What a commit takes, each of the group's coordinator but for one.
pub(crate) trait CommitSteps {
    /// Notes which transaction of the producer it is that it belongs to.
    async fn guard(&self) -> Result<TransactionGuard, ResponseError>;
    /// Has the transaction's coordinator let the group's partition in.
    async fn let_in(&self) -> Result<LetIn, ResponseError>;
    /// Nothing is written under a guard.
    async fn give_back(&self, guard: TransactionGuard);
    /// Writes the offsets, unless the transaction of the guard has ended.
    async fn write(&self, guard: &TransactionGuard) -> Result<OffsetCommitResponse, ResponseError>;
}

/// Asks the transaction's coordinator, then the group's. What the first says is of use only as long as the transaction has
/// not ended.
pub(crate) async fn commit_by(steps: &impl CommitSteps) -> Result<OffsetCommitResponse, ResponseError> {
    let guard = steps.guard().await?;
    let let_in = match steps.let_in().await {
        Ok(let_in) => let_in,
        Err(error) => {
            steps.give_back(guard).await;
            return Err(of_transaction(error));
        }
    };
    let confirmed = async {
        match let_in {
            LetIn::Confirmed => Ok(()),
            LetIn::Beside(confirmed) => confirmed.await,
        }
    };
    let (written, confirmed) = join(steps.write(&guard), confirmed).await;
    confirmed.map_err(of_transaction)?;
    written
}

/// A commit on the shard that the group is on.
struct Here<'a> {
    engine: &'a Engine,
    groups: Rc<Groups>,
    partition: TopicPartition,
    commit: OffsetsOfTransaction,
}

impl CommitSteps for Here<'_> {
    async fn guard(&self) -> Result<TransactionGuard, ResponseError> {
        let (producer, unique) = (self.commit.producer.id, self.commit.caller.fresh_id.clone());
        let guard = self.groups.ask(self.partition, |machine, _, ticket| {
            machine.handle_guard(producer, unique, ticket);
        });
        guard.await?
    }

    async fn let_in(&self) -> Result<LetIn, ResponseError> {
        let OffsetsOfTransaction { id, producer, adds, .. } = &self.commit;
        let_in(self.engine, id, *producer, (OFFSETS_TOPIC.to_owned(), self.partition.partition), *adds).await
    }

    async fn give_back(&self, guard: TransactionGuard) {
        let given = self.groups.ask(self.partition, |machine, _, ticket| {
            machine.handle_guard_given_back(&guard, ticket);
        });
        // one that is left behind is forgotten with the next transaction of its producer, or with the coordinator
        let _: Result<Result<(), ResponseError>, ResponseError> = given.await;
    }

    async fn write(&self, guard: &TransactionGuard) -> Result<OffsetCommitResponse, ResponseError> {
        let OffsetsOfTransaction { producer, caller, offsets, .. } = &self.commit;
        let written = self.groups.ask(self.partition, |machine, now_ms, ticket| {
            let producer = (producer.id, producer.epoch);
            machine.handle_txn_offset_commit(now_ms, caller, (producer, guard), offsets, ticket);
        });
        written.await
    }
}

/// What the client hears when the transaction's coordinator cannot be asked: it is the group's that it asked itself, so it
/// is to try again there, and not to look for another one.
fn of_transaction(error: ResponseError) -> ResponseError {
    match error {
        ResponseError::NotCoordinator | ResponseError::CoordinatorNotAvailable => {
            ResponseError::CoordinatorLoadInProgress
        }
        error => error,
    }
}
