//! LeaveGroup: members go, or an administrator removes them.

use kafka_protocol::{
    error::ResponseError,
    messages::{ApiKey, LeaveGroupRequest, LeaveGroupResponse, leave_group_request::MemberIdentity},
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::Groups,
    wire::api::{
        Call, call,
        shape::{STRING, Shape, array},
    },
};

const SHAPE: Shape = &[STRING, STRING.until(2), array(&[STRING, STRING, STRING.since(5)]).since(3)];

/// LeaveGroup. It holds whatever becomes of the connection: clients close it right after.
pub(crate) static API: Api = Api {
    key: ApiKey::LeaveGroup,
    version_min: 0,
    version_max: 5,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Group, Operation::Read)]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

/// First version that names any number of members.
const MEMBERS_VERSION: i16 = 3;

async fn handle(context: Context, call: Call<LeaveGroupRequest>) -> LeaveGroupResponse {
    let version = call.version();
    let mut request = call.body;
    if version < MEMBERS_VERSION {
        request.members = vec![MemberIdentity::default().with_member_id(request.member_id.clone())];
    }
    let group = match context.group(&request.group_id, Operation::Read) {
        Ok(group) => group,
        Err(error) => return LeaveGroupResponse::default().with_error_code(error.code()),
    };
    let reply = Groups::ask_for(context.engine(), &group, move |coordinator, now_ms, ticket| {
        coordinator.handle_leave(now_ms, &request, ticket);
    });
    let mut response = match reply.await {
        Ok(response) => response,
        Err(error) => LeaveGroupResponse::default().with_error_code(error.code()),
    };
    if version < MEMBERS_VERSION {
        let member = response.members.first().map(|member| member.error_code);
        if response.error_code == 0 {
            response.error_code = member.unwrap_or(ResponseError::UnknownServerError.code());
        }
        response.members.clear();
    }
    response
}
