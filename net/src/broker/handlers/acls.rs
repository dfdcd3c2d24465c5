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

const CODE: i16 = ResponseError::SecurityDisabled.code();

fn message() -> Option<StrBytes> {
    Some(StrBytes::from_static_str("No Authorizer is configured on the broker"))
}

async fn describe(_context: Context, _call: Call<DescribeAclsRequest>) -> DescribeAclsResponse {
    DescribeAclsResponse::default().with_error_code(CODE).with_error_message(message())
}

async fn create(_context: Context, call: Call<CreateAclsRequest>) -> CreateAclsResponse {
    let results = call.body.creations.iter();
    let results = results.map(|_| AclCreationResult::default().with_error_code(CODE).with_error_message(message()));
    CreateAclsResponse::default().with_results(results.collect())
}

async fn delete(_context: Context, call: Call<DeleteAclsRequest>) -> DeleteAclsResponse {
    let results = call.body.filters.iter();
    let results =
        results.map(|_| DeleteAclsFilterResult::default().with_error_code(CODE).with_error_message(message()));
    DeleteAclsResponse::default().with_filter_results(results.collect())
}
