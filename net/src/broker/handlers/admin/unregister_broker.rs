//! UnregisterBroker: a cluster forgets a node that will not come back. Served only where there is a cluster.

use kafka_protocol::messages::{ApiKey, UnregisterBrokerRequest, UnregisterBrokerResponse};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    errors::ApiError,
    wire::api::{
        Call, call,
        shape::{INT32, Shape},
    },
};

const SHAPE: Shape = &[INT32];

/// UnregisterBroker.
pub(crate) static API: Api = Api {
    key: ApiKey::UnregisterBroker,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Alter)]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<UnregisterBrokerRequest>) -> UnregisterBrokerResponse {
    let response = UnregisterBrokerResponse::default().with_error_message(None);
    let outcome = match context.cluster(Operation::Alter) {
        Ok(_) => context.administration().unregister(call.body.broker_id).await,
        Err(error) => Err(ApiError::from(error)),
    };
    match outcome {
        Ok(()) => response,
        Err(error) => response.with_error_code(error.code()).with_error_message(error.message),
    }
}
