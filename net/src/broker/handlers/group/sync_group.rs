//! SyncGroup: brings or fetches the assignment of a generation.

use kafka_protocol::{
    ResponseError,
    messages::{ApiKey, SyncGroupRequest, SyncGroupResponse},
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::Groups,
    wire::api::{
        Call, call,
        shape::{BYTES, INT32, STRING, Shape, array},
    },
};

const SHAPE: Shape =
    &[STRING, INT32, STRING, STRING.since(3), STRING.since(5), STRING.since(5), array(&[STRING, BYTES])];

/// SyncGroup.
pub(crate) static API: Api = Api {
    key: ApiKey::SyncGroup,
    version_min: 0,
    version_max: 5,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Group, Operation::Read)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// First version in which a member must say what it believes its group's protocol to be (KIP-559).
const PROTOCOL_VERSION: i16 = 5;

async fn handle(context: Context, call: Call<SyncGroupRequest>) -> SyncGroupResponse {
    let says_protocol = call.body.protocol_type.is_some() && call.body.protocol_name.is_some();
    if call.version() >= PROTOCOL_VERSION && !says_protocol {
        return SyncGroupResponse::default().with_error_code(ResponseError::InconsistentGroupProtocol.code());
    }
    let request = call.body;
    let group = match context.group(&request.group_id, Operation::Read) {
        Ok(group) => group,
        Err(error) => return SyncGroupResponse::default().with_error_code(error.code()),
    };
    let reply = Groups::ask_for(context.engine(), &group, move |coordinator, now_ms, ticket| {
        coordinator.handle_sync(now_ms, &request, ticket);
    });
    match reply.await {
        Ok(response) => response,
        Err(error) => SyncGroupResponse::default().with_error_code(error.code()),
    }
}
