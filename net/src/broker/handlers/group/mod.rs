//! The APIs of groups: from requests to coordinators and back, one file per API.

pub(crate) mod consumer_group_describe;
pub(crate) mod consumer_group_heartbeat;
pub(crate) mod delete_groups;
pub(crate) mod describe_groups;
pub(crate) mod find_coordinator;
pub(crate) mod heartbeat;
pub(crate) mod join_group;
pub(crate) mod leave_group;
pub(crate) mod list_groups;
pub(crate) mod offset_commit;
pub(crate) mod offset_delete;
pub(crate) mod offset_fetch;
pub(crate) mod sync_group;

use kafka_protocol::error::ResponseError;
use millrace_engine::engine::Engine;
use uuid::Uuid;

use crate::{
    broker::context::Context,
    coordinator::group::{caller::Caller, coordinator::Coordinator, error::GroupError, shell},
    wire::api::RequestHeader,
};

/// What an administrator may do with a group as long as nothing is forbidden, as a set of Kafka's AclOperation codes:
/// READ, DELETE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS.
const GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;
/// What is told to who does not ask for that.
pub(crate) const NO_OPERATIONS: i32 = i32::MIN;

/// What is told of them.
pub(crate) fn operations(asked: bool) -> i32 {
    if asked { GROUP_OPERATIONS } else { NO_OPERATIONS }
}

/// Whether a group's id may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayBeEmpty {
    Yes,
    No,
}

/// Looks at each group where its coordinator is; `refuse` answers for one that cannot be looked at. The empty id is that
/// of a group only for DescribeGroups, as in Kafka.
pub(crate) async fn describe_each<G: Send + 'static>(
    engine: &Engine,
    groups: Vec<String>,
    may_be_empty: MayBeEmpty,
    look: impl Fn(&Coordinator, &str) -> G + Copy + Send + 'static,
    refuse: impl Fn(&str, GroupError) -> G,
) -> Vec<G> {
    let described = shell::on_groups(groups, async |group| {
        if group.is_empty() && may_be_empty == MayBeEmpty::No {
            return refuse(&group, ResponseError::InvalidGroupId);
        }
        let id = group.clone();
        let found = shell::read(engine, &group, move |coordinator| look(coordinator, &id));
        found.await.unwrap_or_else(|error| refuse(&group, error))
    });
    described.await
}

/// Who sent a request.
pub(crate) fn caller(context: &Context, header: &RequestHeader) -> Caller {
    Caller {
        client_id: header.client_id.as_deref().unwrap_or_default().to_owned(),
        client_host: format!("/{}", context.peer.origin.address.ip()),
        version: header.version,
        fresh_id: Uuid::new_v4().to_string(),
    }
}
