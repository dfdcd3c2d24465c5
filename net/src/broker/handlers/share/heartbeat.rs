//! ShareGroupHeartbeat: a member of a share group joins, stays, leaves. State of share partitions that the group is to
//! read for the first time is made before the answer.

use kafka_protocol::{
    ResponseError,
    messages::{ApiKey, ShareGroupHeartbeatRequest, ShareGroupHeartbeatResponse},
};

use super::{ask, state};
use crate::{
    broker::{
        context::{Allowed, Authorization, Context, Operation, ResourceType},
        handlers::group::caller,
        table::{Api, OnDisconnect},
    },
    coordinator::{
        group::{error::Refusal, strings::optional_wire},
        share::shell::here,
    },
    wire::api::{
        Call, call,
        shape::{INT32, STRING, STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRING, STRING, INT32, STRING, STRINGS];

/// ShareGroupHeartbeat. The one with which a member leaves holds, even if its connection is closed right after.
pub(crate) static API: Api = Api {
    key: ApiKey::ShareGroupHeartbeat,
    version_min: 1,
    version_max: 1,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Read),
        (ResourceType::Topic, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ShareGroupHeartbeatRequest>) -> ShareGroupHeartbeatResponse {
    let caller = caller(&context, &call.header);
    let request = call.body;
    let group = match may_subscribe(&context, &request) {
        Ok(group) => group,
        Err(error) => return refused(&error.into()),
    };
    let engine = context.engine();
    let settings = here(engine).await.group_settings(&group);
    let reply = ask(engine, &group, move |coordinator, now_ms, ticket| {
        coordinator.handle_share_heartbeat(now_ms, &caller, &settings, &request, ticket);
    });
    match reply.await {
        Ok((response, None)) => response,
        Ok((response, Some(work))) => match state::make(engine, &group, work).await {
            Ok(_) => response,
            Err(refusal) => refused(&refusal),
        },
        Err(refusal) => refused(&refusal),
    }
}

/// The group, if it may be read and all topics that are named may be seen.
fn may_subscribe(context: &Context, request: &ShareGroupHeartbeatRequest) -> Result<Allowed<String>, ResponseError> {
    let group = context.group(&request.group_id, Operation::Read)?;
    for name in request.subscribed_topic_names.iter().flatten() {
        context.topic_name(name, Operation::Describe)?;
    }
    Ok(group)
}

fn refused(refusal: &Refusal) -> ShareGroupHeartbeatResponse {
    let message = Some(refusal.message.as_str()).filter(|message| !message.is_empty());
    ShareGroupHeartbeatResponse::default()
        .with_error_code(refusal.error.code())
        .with_error_message(optional_wire(message))
}
