//! OffsetCommit: how far a group has come. Answered when it is durable.

use bytes::Bytes;
use futures_util::FutureExt;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, GroupId, OffsetCommitRequest, OffsetCommitResponse,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    },
    protocol::Decodable,
};

use super::caller;
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType, TopicRef, TopicsSeen},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{
        Groups,
        coordinator::commit_error,
        record::{Reader, RecordError},
        strings::wire,
    },
    wire::{
        api::{
            Call, Handling, Request, encode,
            shape::{INT32, INT64, STRING, Shape, UUID, array},
        },
        frame::Malformed,
    },
};

const PARTITION: Shape = &[INT32, INT64, INT32.since(6), STRING];
const TOPIC: Shape = &[STRING.until(9), UUID.since(10), array(PARTITION)];
const SHAPE: Shape = &[STRING, INT32, STRING, STRING.since(7), INT64.until(4), array(TOPIC)];

/// OffsetCommit. A commit that was begun is finished, whatever becomes of the connection.
pub(crate) static API: Api = Api {
    key: ApiKey::OffsetCommit,
    version_min: 2,
    version_max: 10,
    advertised_min: 2,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Read),
        (ResourceType::Topic, Operation::Read),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: begin,
};

/// First version that names topics by their ids, which the message library does not read.
const TOPIC_IDS_VERSION: i16 = 10;

fn begin(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, mut body } = request;
    let decoded = if header.version >= TOPIC_IDS_VERSION {
        decode_with_ids(&body).map_err(|error| error.to_string())
    } else {
        OffsetCommitRequest::decode(&mut body, header.version).map_err(|error| error.to_string())
    };
    let body = decoded.map_err(Malformed::Body)?;
    let answer = handle(context.clone(), Call { header: header.clone(), body });
    let reply = answer.map(move |answer| encode(&header, header.version, &answer));
    Ok(Handling::Later(Box::pin(reply)))
}

fn decode_with_ids(body: &Bytes) -> Result<OffsetCommitRequest, RecordError> {
    let mut reader = Reader::new(body, true);
    let text = |text: Option<std::rc::Rc<str>>| text.map(|text| wire(&text));
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(wire(&reader.string("GroupId")?)))
        .with_generation_id_or_member_epoch(reader.i32("GenerationIdOrMemberEpoch")?)
        .with_member_id(wire(&reader.string("MemberId")?))
        .with_group_instance_id(text(reader.nullable_string("GroupInstanceId")?))
        .with_topics(read_topics(&mut reader)?);
    reader.no_tags()?;
    Ok(request)
}

/// The topics of a request that names them by their ids.
pub(super) fn read_topics(reader: &mut Reader<'_>) -> Result<Vec<OffsetCommitRequestTopic>, RecordError> {
    reader.vec("Topics", |reader| {
        let topic = OffsetCommitRequestTopic::default().with_topic_id(reader.uuid("TopicId")?).with_partitions(
            reader.vec("Partitions", |reader| {
                let partition = OffsetCommitRequestPartition::default()
                    .with_partition_index(reader.i32("PartitionIndex")?)
                    .with_committed_offset(reader.i64("CommittedOffset")?)
                    .with_committed_leader_epoch(reader.i32("CommittedLeaderEpoch")?)
                    .with_committed_metadata(reader.nullable_string("CommittedMetadata")?.map(|text| wire(&text)));
                reader.no_tags()?;
                Ok(partition)
            })?,
        );
        reader.no_tags()?;
        Ok(topic)
    })
}

async fn handle(context: Context, call: Call<OffsetCommitRequest>) -> OffsetCommitResponse {
    let caller = caller(&context, &call.header);
    let mut request = call.body;
    let by_id = caller.version >= TOPIC_IDS_VERSION;
    let group = match context.group(&request.group_id, Operation::Read) {
        Ok(group) => group,
        Err(error) => return commit_error(&request, error),
    };
    let refused = split(&context.topics(), &mut request, by_id);
    let mut response = if request.topics.is_empty() {
        OffsetCommitResponse::default()
    } else {
        let unanswered = request.clone();
        let reply = Groups::ask_for(context.engine(), &group, move |coordinator, now_ms, ticket| {
            coordinator.handle_offset_commit(now_ms, &caller, &request, ticket);
        });
        match reply.await {
            Ok(response) => response,
            Err(error) => commit_error(&unanswered, error),
        }
    };
    merge(&mut response.topics, refused);
    response
}

/// Gives the topics their names or ids and takes out what does not exist, with the answer to that.
pub(super) fn split(
    topics: &TopicsSeen<'_>,
    request: &mut OffsetCommitRequest,
    by_id: bool,
) -> Vec<OffsetCommitResponseTopic> {
    let mut refused = Vec::new();
    request.topics.retain_mut(|topic| {
        let name = if by_id { TopicRef::Id(topic.topic_id) } else { TopicRef::Name(&topic.name) };
        let found = match topics.get(name, Operation::Read) {
            Ok(found) => found,
            Err(error) => {
                let partitions = std::mem::take(&mut topic.partitions);
                refused.push(refuse(topic, partitions, error));
                return false;
            }
        };
        if by_id {
            topic.name = wire(&found.name).into();
        } else {
            topic.topic_id = found.id;
        }
        let exists =
            |partition: &OffsetCommitRequestPartition| (0..found.partitions).contains(&partition.partition_index);
        let (known, unknown) = std::mem::take(&mut topic.partitions).into_iter().partition(exists);
        topic.partitions = known;
        if !unknown.is_empty() {
            refused.push(refuse(topic, unknown, ResponseError::UnknownTopicOrPartition));
        }
        !topic.partitions.is_empty()
    });
    refused
}

fn refuse(
    topic: &OffsetCommitRequestTopic,
    partitions: Vec<OffsetCommitRequestPartition>,
    error: ResponseError,
) -> OffsetCommitResponseTopic {
    let partition = |partition: OffsetCommitRequestPartition| {
        OffsetCommitResponsePartition::default()
            .with_partition_index(partition.partition_index)
            .with_error_code(error.code())
    };
    OffsetCommitResponseTopic::default()
        .with_name(topic.name.clone())
        .with_topic_id(topic.topic_id)
        .with_partitions(partitions.into_iter().map(partition).collect())
}

/// Adds what was refused to the answers of the same topics.
pub(super) fn merge(topics: &mut Vec<OffsetCommitResponseTopic>, refused: Vec<OffsetCommitResponseTopic>) {
    for topic in refused {
        match topics.iter_mut().find(|known| known.name == topic.name && known.topic_id == topic.topic_id) {
            Some(known) => known.partitions.extend(topic.partitions),
            None => topics.push(topic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_by_topic_id_are_read() {
        let mut body = vec![2, b'g', 0, 0, 0, 7, 2, b'm', 0, 2];
        body.extend([9; 16]);
        body.extend([2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0]);
        let request = decode_with_ids(&body.into()).unwrap();
        assert_eq!((request.group_id.as_str(), request.member_id.as_str()), ("g", "m"));
        assert_eq!(request.generation_id_or_member_epoch, 7);
        assert!(request.group_instance_id.is_none());
        let topic = &request.topics[0];
        assert_eq!(topic.topic_id.as_bytes(), &[9; 16]);
        let partition = &topic.partitions[0];
        assert_eq!((partition.partition_index, partition.committed_offset), (3, 5));
        assert_eq!((partition.committed_leader_epoch, &partition.committed_metadata), (1, &None));
    }
}
