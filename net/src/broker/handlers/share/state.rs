//! Making and deleting the state of share partitions on behalf of a group.

use std::collections::BTreeSet;

use kafka_protocol::ResponseError;
use millrace_engine::{api::TopicPartition, engine::Engine};
use uuid::Uuid;

use super::ask;
use crate::coordinator::{
    group::{error::Refusal, share::StateWork},
    share::{
        shell::{drop_on, states},
        state::{Delete, Initialize, ShareKey},
    },
};

/// State under way at once.
const CONCURRENT_MAX: usize = 64;

/// Makes state and tells the group's coordinator. Answers which share partitions failed, and with what.
pub(super) async fn make(
    engine: &Engine,
    group: &str,
    work: StateWork,
) -> Result<Vec<((Uuid, i32), ResponseError)>, Refusal> {
    let mut failed = Vec::new();
    for some in work.partitions.chunks(CONCURRENT_MAX) {
        let making = some.iter().map(|(topic, index, start_offset)| async move {
            let key = ShareKey::new(group, *topic, *index);
            let anew = Initialize { state_epoch: work.state_epoch, start_offset: *start_offset };
            let made = states::ask(engine, &key, anew).await;
            drop_on(engine, group.to_owned(), TopicPartition { topic: *topic, partition: *index }).await;
            made.err().map(|error| ((*topic, *index), error))
        });
        failed.extend(futures_util::future::join_all(making).await.into_iter().flatten());
    }
    let (first, is_made) = (failed.first().map(|(_, error)| *error), failed.is_empty());
    let partitions = work.partitions;
    let id = group.to_owned();
    let noted = ask(engine, group, move |coordinator, _, ticket| {
        coordinator.handle_share_state_made(&id, &partitions, is_made, ticket);
    });
    noted.await?;
    match first {
        Some(error) if failed.len() == 1 || is_made => Err(error.into()),
        Some(_) | None => Ok(failed),
    }
}

/// Deletes state. Answers the topics of which something is left, and why.
pub(super) async fn delete(engine: &Engine, group: &str, work: &StateWork) -> Vec<(Uuid, ResponseError)> {
    let mut failed = Vec::new();
    for some in work.partitions.chunks(CONCURRENT_MAX) {
        let deleting = some.iter().map(|(topic, index, _)| async move {
            let deleted = states::ask(engine, &ShareKey::new(group, *topic, *index), Delete).await;
            drop_on(engine, group.to_owned(), TopicPartition { topic: *topic, partition: *index }).await;
            deleted.err().map(|error| (*topic, error))
        });
        failed.extend(futures_util::future::join_all(deleting).await.into_iter().flatten());
    }
    failed
}

/// Tells the coordinator that the state of topics is gone.
pub(super) async fn note_deleted(engine: &Engine, group: &str, gone: Vec<Uuid>) -> Result<(), Refusal> {
    let id = group.to_owned();
    let noted = ask(engine, group, move |coordinator, _, ticket| {
        coordinator.handle_share_state_deleted(&id, &gone, ticket);
    });
    noted.await
}

/// Before a group is deleted: deletes its state if it is a share group.
pub(crate) async fn delete_group_state(engine: &Engine, group: &str) -> Result<(), ResponseError> {
    let id = group.to_owned();
    let reply = ask(engine, group, move |coordinator, _, ticket| coordinator.handle_share_delete(&id, ticket));
    let work = match reply.await {
        Ok(Some(work)) => work,
        Ok(None) => return Ok(()),
        Err(refusal) => return Err(refusal.error),
    };
    let failed = delete(engine, group, &work).await;
    if let Some((_, error)) = failed.first() {
        return Err(*error);
    }
    let gone: BTreeSet<Uuid> = work.partitions.iter().map(|(topic, ..)| *topic).collect();
    note_deleted(engine, group, gone.into_iter().collect()).await.map_err(|refusal| refusal.error)
}
