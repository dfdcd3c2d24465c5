//! OffsetFetch: how far groups have come; many groups at once from version 8 on.

use bytes::Bytes;
use futures_util::FutureExt;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, GroupId, OffsetFetchRequest, OffsetFetchResponse,
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics},
        offset_fetch_response::{
            OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
            OffsetFetchResponseTopic, OffsetFetchResponseTopics,
        },
    },
    protocol::Decodable,
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType, TopicsSeen},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{
        Groups, Stability,
        record::{Reader, RecordError},
        strings::wire,
    },
    wire::{
        api::{
            Call, Handling, Request, encode,
            shape::{BOOL, INT32, INT32S, STRING, Shape, UUID, array},
        },
        frame::Malformed,
    },
};

const OLD_TOPIC: Shape = &[STRING, INT32S];
const TOPIC: Shape = &[STRING.until(9), UUID.since(10), INT32S];
const GROUP: Shape = &[STRING, STRING.since(9), INT32.since(9), array(TOPIC)];
const SHAPE: Shape = &[STRING.until(7), array(OLD_TOPIC).until(7), array(GROUP).since(8), BOOL.since(7)];

/// OffsetFetch.
pub(crate) static API: Api = Api {
    key: ApiKey::OffsetFetch,
    version_min: 1,
    version_max: 10,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Describe),
        (ResourceType::Topic, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: begin,
};

/// First version that asks for many groups.
const GROUPS_VERSION: i16 = 8;
/// First version that names topics by their ids, which the message library does not read.
const TOPIC_IDS_VERSION: i16 = 10;
/// First version whose answer has room for an error of the whole group.
const GROUP_ERROR_VERSION: i16 = 2;

fn begin(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, mut body } = request;
    let decoded = if header.version >= TOPIC_IDS_VERSION {
        decode_with_ids(&body).map_err(|error| error.to_string())
    } else {
        OffsetFetchRequest::decode(&mut body, header.version).map_err(|error| error.to_string())
    };
    let body = decoded.map_err(Malformed::Body)?;
    let answer = handle(context.clone(), Call { header: header.clone(), body });
    let reply = answer.map(move |answer| encode(&header, header.version, &answer));
    Ok(Handling::Later(Box::pin(reply)))
}

fn decode_with_ids(body: &Bytes) -> Result<OffsetFetchRequest, RecordError> {
    let mut reader = Reader::new(body, true);
    let groups = reader.vec("Groups", |reader| {
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(wire(&reader.string("GroupId")?)))
            .with_member_id(reader.nullable_string("MemberId")?.map(|id| wire(&id)))
            .with_member_epoch(reader.i32("MemberEpoch")?)
            .with_topics(reader.nullable_vec("Topics", |reader| {
                let topic = OffsetFetchRequestTopics::default()
                    .with_topic_id(reader.uuid("TopicId")?)
                    .with_partition_indexes(reader.vec("PartitionIndexes", |reader| reader.i32("an index"))?);
                reader.no_tags()?;
                Ok(topic)
            })?);
        reader.no_tags()?;
        Ok(group)
    })?;
    let require_stable = reader.i8("RequireStable")? != 0;
    reader.no_tags()?;
    Ok(OffsetFetchRequest::default().with_groups(groups).with_require_stable(require_stable))
}

async fn handle(context: Context, call: Call<OffsetFetchRequest>) -> OffsetFetchResponse {
    let version = call.version();
    let request = call.body;
    if version >= GROUPS_VERSION {
        let groups = request.groups.into_iter().map(|group| fetch(&context, version, group, request.require_stable));
        let groups = futures_util::future::join_all(groups).await;
        return OffsetFetchResponse::default().with_groups(groups);
    }
    let topic = |topic: OffsetFetchRequestTopic| {
        OffsetFetchRequestTopics::default().with_name(topic.name).with_partition_indexes(topic.partition_indexes)
    };
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(request.group_id)
        .with_member_epoch(-1)
        .with_topics(request.topics.map(|topics| topics.into_iter().map(topic).collect()));
    let asked = group.clone();
    let found = fetch(&context, version, group, request.require_stable).await;
    single(version, &asked, found)
}

async fn fetch(
    context: &Context,
    version: i16,
    mut request: OffsetFetchRequestGroup,
    require_stable: bool,
) -> OffsetFetchResponseGroup {
    let by_id = version >= TOPIC_IDS_VERSION;
    let group_id = request.group_id.clone();
    let group = match context.group(&group_id, Operation::Describe) {
        Ok(group) => group,
        Err(error) => {
            return OffsetFetchResponseGroup::default().with_group_id(group_id).with_error_code(error.code());
        }
    };
    let stability = if require_stable { Stability::Required } else { Stability::Any };
    let topics = context.topics();
    let asks_for_all = request.topics.is_none();
    let refused = refuse_unseen(context, &topics, &mut request, by_id);
    let reply = Groups::ask_for(context.engine(), &group, move |coordinator, _, ticket| {
        coordinator.handle_offset_fetch(request, stability, ticket);
    });
    let mut response = match reply.await {
        Ok(response) => response,
        Err(error) => OffsetFetchResponseGroup::default().with_group_id(group_id).with_error_code(fetch_code(error)),
    };
    if response.error_code == 0 {
        if asks_for_all {
            // of which the client is told only what it may see
            response.topics.retain(|topic| context.topic_name(&topic.name, Operation::Describe).is_ok());
        }
        if by_id {
            give_ids(&topics, &mut response);
        }
        response.topics.extend(refused);
    }
    response
}

/// Clients before 3.9 do not know that a coordinator may be unavailable here; they look for it again on this error.
fn fetch_code(error: ResponseError) -> i16 {
    match error {
        ResponseError::CoordinatorNotAvailable => ResponseError::NotCoordinator.code(),
        error => error.code(),
    }
}

/// Takes out topics that may not be seen, with the answer to that. Those that come by id get their names, or are taken
/// out too if they do not exist; offsets are kept of names that do not exist any more.
fn refuse_unseen(
    context: &Context,
    topics: &TopicsSeen<'_>,
    request: &mut OffsetFetchRequestGroup,
    by_id: bool,
) -> Vec<OffsetFetchResponseTopics> {
    let mut refused = Vec::new();
    for asked in request.topics.iter_mut() {
        asked.retain_mut(|topic| {
            let seen = match by_id {
                true => {
                    topics.get(topic.topic_id, Operation::Describe).map(|found| topic.name = wire(&found.name).into())
                }
                false => context.topic_name(&topic.name, Operation::Describe),
            };
            let Err(error) = seen else { return true };
            let partition = |index: &i32| {
                OffsetFetchResponsePartitions::default()
                    .with_partition_index(*index)
                    .with_committed_offset(-1)
                    .with_error_code(error.code())
            };
            let partitions = topic.partition_indexes.iter().map(partition).collect();
            let answer = OffsetFetchResponseTopics::default().with_name(topic.name.clone());
            refused.push(answer.with_topic_id(topic.topic_id).with_partitions(partitions));
            false
        });
    }
    refused
}

/// Gives the topics of a group that was asked for as a whole their ids; without one there is no telling of them.
fn give_ids(topics: &TopicsSeen<'_>, response: &mut OffsetFetchResponseGroup) {
    response.topics.retain_mut(|topic| {
        if topic.topic_id.is_nil()
            && let Ok(found) = topics.get(&topic.name, Operation::Describe)
        {
            topic.topic_id = found.id;
        }
        !topic.topic_id.is_nil()
    });
}

/// The answer for one group, as versions before 8 have it.
fn single(version: i16, asked: &OffsetFetchRequestGroup, found: OffsetFetchResponseGroup) -> OffsetFetchResponse {
    let old = |topic: OffsetFetchResponseTopics| {
        let partition = |partition: OffsetFetchResponsePartitions| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_committed_offset(partition.committed_offset)
                .with_committed_leader_epoch(partition.committed_leader_epoch)
                .with_metadata(partition.metadata)
                .with_error_code(partition.error_code)
        };
        OffsetFetchResponseTopic::default()
            .with_name(topic.name)
            .with_partitions(topic.partitions.into_iter().map(partition).collect())
    };
    let mut topics: Vec<_> = found.topics.into_iter().map(old).collect();
    if found.error_code != 0 && version < GROUP_ERROR_VERSION {
        let refused = |topic: &OffsetFetchRequestTopics| {
            let partition = |index: &i32| {
                OffsetFetchResponsePartition::default()
                    .with_partition_index(*index)
                    .with_committed_offset(-1)
                    .with_metadata(Some(Default::default()))
                    .with_error_code(found.error_code)
            };
            OffsetFetchResponseTopic::default()
                .with_name(topic.name.clone())
                .with_partitions(topic.partition_indexes.iter().map(partition).collect())
        };
        topics = asked.topics.iter().flatten().map(refused).collect();
    }
    let code = if version < GROUP_ERROR_VERSION { 0 } else { found.error_code };
    OffsetFetchResponse::default().with_topics(topics).with_error_code(code)
}
