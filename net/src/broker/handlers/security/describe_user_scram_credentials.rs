//! DescribeUserScramCredentials: there are none, for nobody authenticates.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
        describe_user_scram_credentials_response::DescribeUserScramCredentialsResult,
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
        shape::{STRING, Shape, array},
    },
};

const SHAPE: Shape = &[array(&[STRING])];

/// DescribeUserScramCredentials.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeUserScramCredentials,
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
    call: Call<DescribeUserScramCredentialsRequest>,
) -> DescribeUserScramCredentialsResponse {
    let code = context.cluster_code(Operation::Describe);
    if code != 0 {
        return DescribeUserScramCredentialsResponse::default().with_error_code(code);
    }
    let unknown = |user: StrBytes| {
        let reason = format!("No SCRAM credentials of {user}: this node knows no users");
        DescribeUserScramCredentialsResult::default()
            .with_user(user)
            .with_error_code(ResponseError::ResourceNotFound.code())
            .with_error_message(Some(StrBytes::from_string(reason)))
    };
    let asked = call.body.users.into_iter().flatten();
    DescribeUserScramCredentialsResponse::default()
        .with_error_message(None)
        .with_results(asked.map(|user| unknown(user.name)).collect())
}
