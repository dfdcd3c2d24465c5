//! ShareGroupDescribe: share groups with their members and assignments.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ShareGroupDescribeRequest, ShareGroupDescribeResponse, share_group_describe_response::DescribedGroup,
    },
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        handlers::group::{MayBeEmpty, check_assigned, describe_each, operations},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{coordinator::Coordinator, strings::wire},
    wire::api::{
        Call, call,
        shape::{BOOL, STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRINGS, BOOL];

/// ShareGroupDescribe.
pub(crate) static API: Api = Api {
    key: ApiKey::ShareGroupDescribe,
    version_min: 1,
    version_max: 1,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Describe),
        (ResourceType::Topic, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ShareGroupDescribeRequest>) -> ShareGroupDescribeResponse {
    let is_asked = call.body.include_authorized_operations;
    let groups = call.body.group_ids.iter().map(|group| group.to_string()).collect();
    let described = describe_each(&context, groups, MayBeEmpty::No, Coordinator::describe_share, refuse);
    let with_operations = |group: DescribedGroup| {
        let assigned = group.members.iter().flat_map(|member| &member.assignment.topic_partitions);
        let assigned = assigned.map(|topic| &topic.topic_name);
        if let Err(error) = check_assigned(&context, assigned) {
            return refuse(&group.group_id, error);
        }
        let operations = operations(&context, is_asked, &group.group_id, group.error_code);
        group.with_authorized_operations(operations)
    };
    ShareGroupDescribeResponse::default().with_groups(described.await.into_iter().map(with_operations).collect())
}

fn refuse(group: &str, error: ResponseError) -> DescribedGroup {
    DescribedGroup::default().with_group_id(wire(group).into()).with_error_code(error.code())
}
