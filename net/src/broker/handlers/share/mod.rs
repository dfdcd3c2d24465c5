//! The APIs of share groups, one file per API.

pub(crate) mod alter_offsets;
pub(crate) mod delete_offsets;
pub(crate) mod describe;
pub(crate) mod describe_offsets;
mod encode;
pub(crate) mod heartbeat;
mod request;
mod session;
pub(crate) mod share_acknowledge;
pub(crate) mod share_fetch;
mod state;
pub(crate) mod state_apis;

pub(crate) use session::end_sessions;
pub(crate) use state::delete_group_state;

use kafka_protocol::ResponseError;
use millrace_engine::{api::TopicPartition, engine::Engine};

use crate::{
    coordinator::{
        group::{Groups, coordinator::Coordinator, error::Refusal},
        runtime::Ticket,
        share::shell::States,
    },
    wire::api::{self, Response},
};

/// Lets the coordinator of a share group do something; a refusal is an error.
async fn ask<T: Send + 'static>(
    engine: &Engine,
    group: &str,
    work: impl FnOnce(&mut Coordinator, i64, Ticket<Result<T, Refusal>>) + Send + 'static,
) -> Result<T, Refusal> {
    Groups::ask_for(engine, group, work).await.map_err(Refusal::from)?
}

/// A response that may have been too large to be written.
fn reply(response: Option<Response>) -> api::Reply {
    match response {
        Some(response) => api::Reply::Response(response),
        None => api::Reply::Close("the response is larger than the protocol allows".to_string()),
    }
}

/// The partition that keeps the state of a share partition, by `group:topic-id:partition` (FindCoordinator, key type
/// SHARE).
pub(crate) async fn coordinator_partition(engine: &Engine, key: &str) -> Result<TopicPartition, ResponseError> {
    let mut parts = key.rsplitn(3, ':');
    let is_legal = parts.next().is_some_and(|index| index.parse::<i32>().is_ok_and(|index| index >= 0))
        && parts.next().is_some_and(|topic| topic.len() == KAFKA_UUID_LEN)
        && parts.next().is_some_and(|group| !group.is_empty());
    if !is_legal {
        return Err(ResponseError::InvalidRequest);
    }
    States::locate(engine, key).await
}

/// Characters of a UUID as Kafka writes it.
const KAFKA_UUID_LEN: usize = 22;
