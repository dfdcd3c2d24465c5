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
pub(crate) mod txn_offset_commit;

use kafka_protocol::{error::ResponseError, messages::TopicName};
use uuid::Uuid;

use crate::{
    broker::{
        cluster,
        context::{Context, Operation},
    },
    coordinator::group::{Groups, caller::Caller, coordinator::Coordinator, error::GroupError},
    wire::api::RequestHeader,
};

/// What may be done with a group that was found, if that is asked for.
pub(crate) fn operations(context: &Context, is_asked: bool, group: &str, error_code: i16) -> i32 {
    match is_asked && error_code == 0 {
        true => context.group_operations(group),
        false => cluster::NO_OPERATIONS,
    }
}

/// Who may not know of all topics that a group's members have is told of none: the error in place of the group.
pub(crate) fn check_assigned<'a>(
    context: &Context,
    mut names: impl Iterator<Item = &'a TopicName>,
) -> Result<(), ResponseError> {
    names.try_for_each(|name| context.topic_name(name, Operation::Describe))
}

/// Whether a group's id may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayBeEmpty {
    Yes,
    No,
}

/// Does something with this many groups, all at once: each with its own coordinator. Answers come in the order of the
/// groups.
async fn on_groups<R>(groups: Vec<String>, each: impl AsyncFn(String) -> R) -> Vec<R> {
    futures_util::future::join_all(groups.into_iter().map(|group| each(group))).await
}

/// Looks at each group where its coordinator is; `refuse` answers for one that cannot be looked at. The empty id is that
/// of a group only for DescribeGroups, as in Kafka.
pub(crate) async fn describe_each<G: Send + 'static>(
    context: &Context,
    groups: Vec<String>,
    may_be_empty: MayBeEmpty,
    look: impl Fn(&Coordinator, &str) -> G + Copy + Send + 'static,
    refuse: impl Fn(&str, GroupError) -> G,
) -> Vec<G> {
    let described = on_groups(groups, async |group| {
        if let Err(error) = context.group(&group, Operation::Describe) {
            return refuse(&group, error);
        }
        if group.is_empty() && may_be_empty == MayBeEmpty::No {
            return refuse(&group, ResponseError::InvalidGroupId);
        }
        let id = group.clone();
        let found = Groups::read_for(context.engine(), &group, move |coordinator| look(coordinator, &id));
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
