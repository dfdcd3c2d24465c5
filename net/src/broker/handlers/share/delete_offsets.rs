//! DeleteShareGroupOffsets: forgets what a share group without members has read of topics.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DeleteShareGroupOffsetsRequest, DeleteShareGroupOffsetsResponse,
        delete_share_group_offsets_response::DeleteShareGroupOffsetsResponseTopic,
    },
};
use uuid::Uuid;

use super::{ask, state};
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{error::Refusal, strings::wire},
    wire::api::{
        Call, call,
        shape::{STRING, Shape, array},
    },
};

const SHAPE: Shape = &[STRING, array(&[STRING])];

/// DeleteShareGroupOffsets.
pub(crate) static API: Api = Api {
    key: ApiKey::DeleteShareGroupOffsets,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Delete),
        (ResourceType::Topic, Operation::Read),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DeleteShareGroupOffsetsRequest>) -> DeleteShareGroupOffsetsResponse {
    let (engine, mut request) = (context.engine(), call.body);
    let group = match context.group(&request.group_id, Operation::Delete) {
        Ok(group) => group,
        Err(error) => return refused(&error.into()),
    };
    let hidden = take_hidden(&context, &mut request);
    if group.is_empty() {
        return refused(&ResponseError::InvalidGroupId.into());
    }
    let reply = ask(engine, &group, move |coordinator, _, ticket| {
        coordinator.handle_share_delete_offsets(&request, ticket);
    });
    let deleted = match reply.await {
        Ok(deleted) => deleted,
        Err(refusal) => return refused(&refusal),
    };
    let failed = state::delete(engine, &group, &deleted.work).await;
    let error_of = |id: Uuid| failed.iter().find(|(failed, _)| *failed == id).map(|(_, error)| *error);
    let gone: Vec<Uuid> = deleted.topics.iter().map(|(id, _)| *id).filter(|id| error_of(*id).is_none()).collect();
    if !gone.is_empty()
        && let Err(refusal) = state::note_deleted(engine, &group, gone).await
    {
        return refused(&refusal);
    }
    let mut responses = deleted.refused;
    responses.extend(hidden);
    responses.extend(deleted.topics.iter().map(|(id, name)| {
        let error = error_of(*id);
        DeleteShareGroupOffsetsResponseTopic::default()
            .with_topic_name(wire(name).into())
            .with_topic_id(*id)
            .with_error_code(error.map_or(0, |error| error.code()))
            .with_error_message(None)
    }));
    DeleteShareGroupOffsetsResponse::default().with_error_message(None).with_responses(responses)
}

/// Takes out the topics that may not be read, with the answer to that.
fn take_hidden(
    context: &Context,
    request: &mut DeleteShareGroupOffsetsRequest,
) -> Vec<DeleteShareGroupOffsetsResponseTopic> {
    let mut hidden = Vec::new();
    request.topics.retain(|topic| {
        let Err(error) = context.topic_name(&topic.topic_name, Operation::Read) else { return true };
        let answer = DeleteShareGroupOffsetsResponseTopic::default().with_topic_name(topic.topic_name.clone());
        hidden.push(answer.with_error_code(error.code()));
        false
    });
    hidden
}

fn refused(refusal: &Refusal) -> DeleteShareGroupOffsetsResponse {
    DeleteShareGroupOffsetsResponse::default()
        .with_error_code(refusal.error.code())
        .with_error_message(refusal.text().map(wire))
}
