//! ConsumerGroupDescribe: groups of the consumer protocol with their members and assignments.

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse,
        consumer_group_describe_response::DescribedGroup,
    },
};

use super::{MayBeEmpty, NO_OPERATIONS, describe_each, operations};
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{coordinator::Coordinator, strings::wire},
    wire::api::{
        Call, call,
        shape::{BOOL, STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRINGS, BOOL];

/// ConsumerGroupDescribe.
pub(crate) static API: Api = Api {
    key: ApiKey::ConsumerGroupDescribe,
    version_min: 0,
    version_max: 1,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Describe),
        (ResourceType::Topic, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ConsumerGroupDescribeRequest>) -> ConsumerGroupDescribeResponse {
    let asked = operations(call.body.include_authorized_operations);
    let groups = call.body.group_ids.iter().map(|group| group.to_string()).collect();
    let described = describe_each(context.engine(), groups, MayBeEmpty::No, Coordinator::describe_consumer, refuse);
    let with_operations = |group: DescribedGroup| {
        let operations = if group.error_code == 0 { asked } else { NO_OPERATIONS };
        group.with_authorized_operations(operations)
    };
    ConsumerGroupDescribeResponse::default().with_groups(described.await.into_iter().map(with_operations).collect())
}

fn refuse(group: &str, error: ResponseError) -> DescribedGroup {
    DescribedGroup::default().with_group_id(wire(group).into()).with_error_code(error.code())
}
