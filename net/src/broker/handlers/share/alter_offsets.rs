//! AlterShareGroupOffsets: sets where a share group without members begins.

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterShareGroupOffsetsRequest, AlterShareGroupOffsetsResponse, ApiKey,
        alter_share_group_offsets_response::{
            AlterShareGroupOffsetsResponsePartition, AlterShareGroupOffsetsResponseTopic,
        },
    },
};

use super::{ask, state};
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{error::Refusal, strings::wire},
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
    let (engine, mut request) = (context.engine(), call.body);
    let group = match context.group(&request.group_id, Operation::Read) {
        Ok(group) => group,
        Err(error) => return refused(&error.into()),
    };
    let hidden = take_hidden(&context, &mut request);
    if group.is_empty() {
        return refused(&ResponseError::InvalidGroupId.into());
    }
    let reply = ask(engine, &group, move |coordinator, now_ms, ticket| {
        coordinator.handle_share_alter(now_ms, &request, ticket);
    });
    let altered = match reply.await {
        Ok(altered) => altered,
        Err(refusal) => return refused(&refusal),
    };
    let mut response = altered.response;
    response.responses.extend(hidden);
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

/// Takes out the topics that may not be read, with the answer to that.
fn take_hidden(
    context: &Context,
    request: &mut AlterShareGroupOffsetsRequest,
) -> Vec<AlterShareGroupOffsetsResponseTopic> {
    let mut hidden = Vec::new();
    request.topics.retain(|topic| {
        let Err(error) = context.topic_name(&topic.topic_name, Operation::Read) else { return true };
        let partitions = topic.partitions.iter().map(|partition| {
            AlterShareGroupOffsetsResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(error.code())
        });
        let answer = AlterShareGroupOffsetsResponseTopic::default().with_topic_name(topic.topic_name.clone());
        hidden.push(answer.with_partitions(partitions.collect()));
        false
    });
    hidden
}

fn refused(refusal: &Refusal) -> AlterShareGroupOffsetsResponse {
    AlterShareGroupOffsetsResponse::default()
        .with_error_code(refusal.error.code())
        .with_error_message(refusal.text().map(wire))
}
