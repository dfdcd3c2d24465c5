//! ListPartitionReassignments: none is ever under way.

use kafka_protocol::messages::{ApiKey, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    wire::api::{
        Call, call,
        shape::{INT32, INT32S, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[INT32, array(&[STRING, INT32S])];

/// ListPartitionReassignments.
pub(crate) static API: Api = Api {
    key: ApiKey::ListPartitionReassignments,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(
    context: Context,
    _call: Call<ListPartitionReassignmentsRequest>,
) -> ListPartitionReassignmentsResponse {
    let code = context.cluster_code(Operation::Describe);
    ListPartitionReassignmentsResponse::default().with_error_code(code).with_error_message(None)
}
