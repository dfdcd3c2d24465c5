//! DescribeGroups: classic groups with their members.

use kafka_protocol::messages::{
    ApiKey, DescribeGroupsRequest, DescribeGroupsResponse, describe_groups_response::DescribedGroup,
};

use super::{MayBeEmpty, describe_each, operations};
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{coordinator::Coordinator, error::GroupError, strings::wire},
    wire::api::{
        Call, call,
        shape::{BOOL, STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRINGS, BOOL.since(3)];

/// DescribeGroups.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeGroups,
    version_min: 0,
    version_max: 6,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Group, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DescribeGroupsRequest>) -> DescribeGroupsResponse {
    let version = call.version();
    let is_asked = call.body.include_authorized_operations;
    let groups = call.body.groups.iter().map(|group| group.to_string()).collect();
    let refuse = |group: &str, error: GroupError| {
        DescribedGroup::default().with_group_id(wire(group).into()).with_error_code(error.code())
    };
    let look = move |coordinator: &Coordinator, group: &str| coordinator.describe(group, version);
    let described = describe_each(&context, groups, MayBeEmpty::Yes, look, refuse);
    let with_operations = |group: DescribedGroup| {
        let operations = operations(&context, is_asked, &group.group_id, group.error_code);
        group.with_authorized_operations(operations)
    };
    DescribeGroupsResponse::default().with_groups(described.await.into_iter().map(with_operations).collect())
}
