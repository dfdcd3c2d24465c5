//! Offsets of a group that are committed with a transaction: its coordinator lets the partition in that the group's state is
//! in, and the group's coordinator writes them there.

use futures_util::future::join;
use kafka_protocol::{
    error::ResponseError,
    messages::{OffsetCommitRequest, OffsetCommitResponse},
};
use millrace_engine::{api::TopicPartition, engine::Engine, transactions::Adds};

use super::gate::let_in;
use crate::coordinator::{
    group::{Groups, OFFSETS_TOPIC, caller::Caller},
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

/// Asks the transaction's coordinator, then the group's. What the first says is of use only as long as the transaction has
/// not ended.
async fn commit_here(
    engine: &Engine,
    partition: TopicPartition,
    commit: OffsetsOfTransaction,
) -> Result<OffsetCommitResponse, ResponseError> {
    let OffsetsOfTransaction { id, producer, adds, caller, offsets } = commit;
    let groups = Groups::here(engine).await;
    let unique = caller.fresh_id.clone();
    let guard = groups.ask(partition, |coordinator, _, ticket| coordinator.handle_guard(producer.id, unique, ticket));
    let guard = guard.await??;
    let confirmed = match let_in(engine, &id, producer, (OFFSETS_TOPIC.to_owned(), partition.partition), adds).await {
        Ok(confirmed) => confirmed,
        Err(error) => {
            let given = groups.ask(partition, |coordinator, _, ticket| {
                coordinator.handle_guard_given_back(&guard, ticket);
            });
            // one that is left behind is forgotten with the next transaction of its producer, or with the coordinator
            let _: Result<Result<(), ResponseError>, ResponseError> = given.await;
            return Err(of_transaction(error));
        }
    };
    let written = groups.ask(partition, |coordinator, now_ms, ticket| {
        let producer = (producer.id, producer.epoch);
        coordinator.handle_txn_offset_commit(now_ms, &caller, (producer, &guard), &offsets, ticket);
    });
    let confirmed = async {
        match confirmed {
            Some(confirmed) => confirmed.await,
            None => Ok(()),
        }
    };
    let (written, confirmed) = join(written, confirmed).await;
    confirmed.map_err(of_transaction)?;
    written
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
