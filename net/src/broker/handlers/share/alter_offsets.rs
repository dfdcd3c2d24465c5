//! AlterShareGroupOffsets: sets where a share group without members begins.

use kafka_protocol::{
    ResponseError,
    messages::{AlterShareGroupOffsetsRequest, AlterShareGroupOffsetsResponse, ApiKey},
};

use super::{ask, state};
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{coordinator::ShareReply, error::Refusal, strings::wire},
    wire::api::{
        Call, call,
        shape::{INT32, INT64, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[STRING, array(&[STRING, array(&[INT32, INT64])])];

/// AlterShareGroupOffsets.
pub(crate) static API: Api = Api {
    key: ApiKey::AlterShareGroupOffsets,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Read),
        (ResourceType::Topic, Operation::Read),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<AlterShareGroupOffsetsRequest>) -> AlterShareGroupOffsetsResponse {
    let (engine, request) = (context.engine(), call.body);
    let group = request.group_id.to_string();
    if group.is_empty() {
        return refused(&ResponseError::InvalidGroupId.into());
    }
    let reply = ask(engine, &group, move |coordinator, now_ms, ticket| {
        coordinator.handle_share_alter(now_ms, &request, ticket);
    });
    let altered = match reply.await {
        Ok(ShareReply::Altered(altered)) => altered,
        Ok(other) => unreachable!("AlterShareGroupOffsets was answered with {other:?}"),
        Err(refusal) => return refused(&refusal),
    };
    let mut response = altered.response;
    if altered.work.partitions.is_empty() {
        return response;
    }
    let failed = match state::make(engine, &group, altered.work).await {
        Ok(failed) => failed,
        Err(refusal) => return refused(&refusal),
    };
    for topic in &mut response.responses {
        for partition in &mut topic.partitions {
            let key = (topic.topic_id, partition.partition_index);
            if let Some((_, error)) = failed.iter().find(|(failed, _)| *failed == key) {
                partition.error_code = error.code();
            }
        }
    }
    response
}

fn refused(refusal: &Refusal) -> AlterShareGroupOffsetsResponse {
    AlterShareGroupOffsetsResponse::default()
        .with_error_code(refusal.error.code())
        .with_error_message(refusal.text().map(wire))
}
