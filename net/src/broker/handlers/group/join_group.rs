//! JoinGroup: becomes a member; answered when the group has a new generation.

use kafka_protocol::{
    messages::{ApiKey, JoinGroupRequest, JoinGroupResponse},
    protocol::StrBytes,
};

use super::caller;
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
    &[STRING, INT32, INT32.since(1), STRING, STRING.since(5), STRING, array(&[STRING, BYTES]), STRING.since(8)];

/// JoinGroup. A member whose connection is gone is left to its session timeout, as it may come back.
pub(crate) static API: Api = Api {
    key: ApiKey::JoinGroup,
    version_min: 0,
    version_max: 9,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Group, Operation::Read)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// First version with a rebalance timeout of its own.
const REBALANCE_TIMEOUT_VERSION: i16 = 1;
/// First version in which there may be no protocol.
const NULL_PROTOCOL_VERSION: i16 = 7;

async fn handle(context: Context, call: Call<JoinGroupRequest>) -> JoinGroupResponse {
    let version = call.version();
    let caller = caller(&context, &call.header);
    let mut request = call.body;
    if version < REBALANCE_TIMEOUT_VERSION {
        request.rebalance_timeout_ms = request.session_timeout_ms;
    }
    let member_id = request.member_id.clone();
    let group = match context.group(&request.group_id, Operation::Read) {
        Ok(group) => group,
        Err(error) => return JoinGroupResponse::default().with_member_id(member_id).with_error_code(error.code()),
    };
    let reply = Groups::ask_for(context.engine(), &group, move |coordinator, now_ms, ticket| {
        coordinator.handle_join(now_ms, &caller, &request, ticket);
    });
    let mut response = match reply.await {
        Ok(response) => response,
        Err(error) => JoinGroupResponse::default().with_member_id(member_id).with_error_code(error.code()),
    };
    if version < NULL_PROTOCOL_VERSION {
        response.protocol_name.get_or_insert_with(StrBytes::default);
    }
    response
}
