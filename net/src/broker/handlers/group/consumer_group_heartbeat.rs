//! ConsumerGroupHeartbeat: the consumer protocol's one request (KIP-848).

use kafka_protocol::messages::{ApiKey, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::caller;
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::Groups,
    wire::api::{
        Call, call,
        shape::{INT32, INT32S, STRING, STRINGS, Shape, UUID, array},
    },
};

const SHAPE: Shape =
    &[STRING, STRING, INT32, STRING, STRING, INT32, STRINGS, STRING.since(1), STRING, array(&[UUID, INT32S])];

/// ConsumerGroupHeartbeat. The one with which a member leaves holds, even if its connection is closed right after.
pub(crate) static API: Api = Api {
    key: ApiKey::ConsumerGroupHeartbeat,
    version_min: 0,
    version_max: 1,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Read),
        (ResourceType::Topic, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ConsumerGroupHeartbeatRequest>) -> ConsumerGroupHeartbeatResponse {
    let caller = caller(&context, &call.header);
    let request = call.body;
    let group = match context.group(&request.group_id, Operation::Read) {
        Ok(group) => group,
        Err(error) => return ConsumerGroupHeartbeatResponse::default().with_error_code(error.code()),
    };
    for name in request.subscribed_topic_names.iter().flatten() {
        if let Err(error) = context.topic_name(name.as_str(), Operation::Describe) {
            return ConsumerGroupHeartbeatResponse::default().with_error_code(error.code());
        }
    }
    let reply = Groups::ask_for(context.engine(), &group, move |coordinator, now_ms, ticket| {
        coordinator.handle_consumer_heartbeat(now_ms, &caller, &request, ticket);
    });
    match reply.await {
        Ok(response) => response,
        Err(error) => ConsumerGroupHeartbeatResponse::default().with_error_code(error.code()),
    }
}
