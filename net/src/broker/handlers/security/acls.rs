//! DescribeAcls, CreateAcls, DeleteAcls: nobody authorizes, and that is what clients are told.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse, DescribeAclsRequest,
        DescribeAclsResponse, create_acls_response::AclCreationResult, delete_acls_response::DeleteAclsFilterResult,
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    wire::api::{
        Call, call,
        shape::{INT8, STRING, Shape, array},
    },
};

const FILTER: Shape = &[INT8, STRING, INT8.since(1), STRING, STRING, INT8, INT8];
const CREATION: Shape = FILTER;

/// DescribeAcls.
pub(crate) static DESCRIBE: Api = Api {
    key: ApiKey::DescribeAcls,
    version_min: 1,
    version_max: 3,
    advertised_min: 1,
    shape: FILTER,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, describe),
};

/// CreateAcls.
pub(crate) static CREATE: Api = Api {
    key: ApiKey::CreateAcls,
    version_min: 1,
    version_max: 3,
    advertised_min: 1,
    shape: &[array(CREATION)],
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Alter)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, create),
};

/// DeleteAcls.
pub(crate) static DELETE: Api = Api {
    key: ApiKey::DeleteAcls,
    version_min: 1,
    version_max: 3,
    advertised_min: 1,
    shape: &[array(FILTER)],
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Alter)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, delete),
};

/// What is said to somebody who may do that with ACLs, and to somebody who may not.
fn refusal(context: &Context, operation: Operation) -> (i16, Option<StrBytes>) {
    match context.cluster(operation) {
        Ok(_) => {
            let message = StrBytes::from_static_str("No Authorizer is configured on the broker");
            (ResponseError::SecurityDisabled.code(), Some(message))
        }
        Err(error) => (error.code(), None),
    }
}

async fn describe(context: Context, _call: Call<DescribeAclsRequest>) -> DescribeAclsResponse {
    let (code, message) = refusal(&context, Operation::Describe);
    DescribeAclsResponse::default().with_error_code(code).with_error_message(message)
}

async fn create(context: Context, call: Call<CreateAclsRequest>) -> CreateAclsResponse {
    let (code, message) = refusal(&context, Operation::Alter);
    let results = call.body.creations.iter();
    let results =
        results.map(|_| AclCreationResult::default().with_error_code(code).with_error_message(message.clone()));
    CreateAclsResponse::default().with_results(results.collect())
}

async fn delete(context: Context, call: Call<DeleteAclsRequest>) -> DeleteAclsResponse {
    let (code, message) = refusal(&context, Operation::Alter);
    let results = call.body.filters.iter();
    let results =
        results.map(|_| DeleteAclsFilterResult::default().with_error_code(code).with_error_message(message.clone()));
    DeleteAclsResponse::default().with_filter_results(results.collect())
}
