//! OffsetDelete: forgets committed offsets of topics that a group does not read.

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, OffsetDeleteRequest, OffsetDeleteResponse,
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
        offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic},
    },
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType, TopicsSeen},
        table::{Api, OnDisconnect},
    },
    coordinator::group::Groups,
    wire::api::{
        Call, call,
        shape::{INT32, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[STRING, array(&[STRING, array(&[INT32])])];

/// OffsetDelete.
pub(crate) static API: Api = Api {
    key: ApiKey::OffsetDelete,
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

async fn handle(context: Context, call: Call<OffsetDeleteRequest>) -> OffsetDeleteResponse {
    let mut request = call.body;
    let group = match context.group(&request.group_id, Operation::Delete) {
        Ok(group) => group,
        Err(error) => return OffsetDeleteResponse::default().with_error_code(error.code()),
    };
    let refused = split(&context.topics(), &mut request);
    let reply = Groups::ask_for(context.engine(), &group, move |coordinator, _, ticket| {
        coordinator.handle_offset_delete(&request, ticket);
    });
    let mut response = match reply.await {
        Ok(response) => response,
        Err(error) => OffsetDeleteResponse::default().with_error_code(error.code()),
    };
    if response.error_code == 0 {
        for topic in refused {
            match response.topics.iter_mut().find(|known| known.name == topic.name) {
                Some(known) => known.partitions.extend(topic.partitions),
                None => response.topics.push(topic),
            }
        }
    }
    response
}

/// Takes out what does not exist, with the answer to that.
fn split(topics: &TopicsSeen<'_>, request: &mut OffsetDeleteRequest) -> Vec<OffsetDeleteResponseTopic> {
    let mut refused = Vec::new();
    request.topics.retain_mut(|topic: &mut OffsetDeleteRequestTopic| {
        let found = topics.get(&topic.name, Operation::Read);
        let (count, error) = match found {
            Ok(found) => (found.partitions, ResponseError::UnknownTopicOrPartition),
            Err(error) => (0, error),
        };
        let exists = |partition: &OffsetDeleteRequestPartition| (0..count).contains(&partition.partition_index);
        let (known, unknown): (Vec<_>, Vec<_>) = std::mem::take(&mut topic.partitions).into_iter().partition(exists);
        topic.partitions = known;
        if !unknown.is_empty() {
            let refuse = |partition: OffsetDeleteRequestPartition| {
                OffsetDeleteResponsePartition::default()
                    .with_partition_index(partition.partition_index)
                    .with_error_code(error.code())
            };
            let partitions = unknown.into_iter().map(refuse).collect();
            let name = topic.name.clone();
            refused.push(OffsetDeleteResponseTopic::default().with_name(name).with_partitions(partitions));
        }
        !topic.partitions.is_empty()
    });
    refused
}
