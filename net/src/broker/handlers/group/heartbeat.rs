//! Heartbeat: a member is alive, and hears of rebalances.

use kafka_protocol::{
    error::ResponseError,
    messages::{ApiKey, HeartbeatRequest, HeartbeatResponse},
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::Groups,
    wire::api::{
        Call, call,
        shape::{INT32, STRING, Shape},
    },
};

const SHAPE: Shape = &[STRING, INT32, STRING, STRING.since(3)];

/// Heartbeat.
pub(crate) static API: Api = Api {
    key: ApiKey::Heartbeat,
    version_min: 0,
    version_max: 4,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Group, Operation::Read)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<HeartbeatRequest>) -> HeartbeatResponse {
    let request = call.body;
    let group = match context.group(&request.group_id, Operation::Read) {
        Ok(group) => group,
        Err(error) => return HeartbeatResponse::default().with_error_code(error.code()),
    };
    let reply = Groups::ask_for(context.engine(), &group, move |coordinator, now_ms, ticket| {
        coordinator.handle_heartbeat(now_ms, &request, ticket);
    });
    match reply.await {
        Ok(response) => response,
        // while groups are loaded their sessions do not run
        Err(ResponseError::CoordinatorLoadInProgress) => HeartbeatResponse::default(),
        Err(error) => HeartbeatResponse::default().with_error_code(error.code()),
    }
}
