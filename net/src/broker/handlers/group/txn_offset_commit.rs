//! TxnOffsetCommit: how far a group has come, if a producer's transaction is committed. Answered when it is durable that
//! it says so.

use bytes::Bytes;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, GroupId, OffsetCommitRequest, OffsetCommitResponse, ProducerId, TransactionalId,
        TxnOffsetCommitRequest, TxnOffsetCommitResponse,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        txn_offset_commit_request::TxnOffsetCommitRequestTopic,
        txn_offset_commit_response::{TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic},
    },
    protocol::Decodable,
};
use millrace_engine::transactions::Adds;

use super::{
    caller,
    offset_commit::{merge, read_topics, split},
};
use crate::{
    broker::{
        context::{Allowed, Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::{
        group::{
            coordinator::commit_error,
            record::{Reader, RecordError},
            strings::wire,
        },
        transaction::{
            Producer,
            shell::{OffsetsOfTransaction, commit_offsets},
        },
    },
    wire::{
        api::{
            Handling, Reply, Request, RequestHeader, encode,
            shape::{INT16, INT32, INT64, STRING, Shape, UUID, array},
        },
        frame::Malformed,
    },
};

const PARTITION: Shape = &[INT32, INT64, INT32.since(2), STRING];
const TOPIC: Shape = &[STRING.until(5), UUID.since(6), array(PARTITION)];
const SHAPE: Shape = &[STRING, STRING, INT64, INT16, INT32.since(3), STRING.since(3), STRING.since(3), array(TOPIC)];

/// TxnOffsetCommit. A commit that was begun is finished, whatever becomes of the connection.
pub(crate) static API: Api = Api {
    key: ApiKey::TxnOffsetCommit,
    version_min: 0,
    version_max: 6,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::TransactionalId, Operation::Write),
        (ResourceType::Group, Operation::Read),
        (ResourceType::Topic, Operation::Read),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: begin,
};

/// First version that names topics by their ids, which the message library does not read.
const TOPIC_IDS_VERSION: i16 = 6;
/// First version that adds the group's offsets to the transaction (KIP-890).
const ADDING_VERSION: i16 = 5;
/// First version whose clients know that a transaction can only be aborted (KIP-890).
const ABORTABLE_VERSION: i16 = 4;
/// First version whose clients know that a coordinator may be loading.
const LOADING_VERSION: i16 = 2;

/// A request, with what it says beyond an OffsetCommit.
struct TxnCommit {
    transactional_id: TransactionalId,
    producer: Producer,
    offsets: OffsetCommitRequest,
}

fn begin(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, body } = request;
    let commit = decode(body, header.version).map_err(Malformed::Body)?;
    let context = context.clone();
    Ok(Handling::Later(Box::pin(async move {
        let answer = handle(&context, &header, commit).await;
        reply(&header, answer)
    })))
}

fn decode(mut body: Bytes, version: i16) -> Result<TxnCommit, String> {
    if version >= TOPIC_IDS_VERSION {
        return decode_with_ids(&body).map_err(|error| error.to_string());
    }
    let request = TxnOffsetCommitRequest::decode(&mut body, version).map_err(|error| error.to_string())?;
    let topic = |topic: TxnOffsetCommitRequestTopic| {
        let partitions = topic.partitions.into_iter().map(|partition| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(partition.partition_index)
                .with_committed_offset(partition.committed_offset)
                .with_committed_leader_epoch(partition.committed_leader_epoch)
                .with_committed_metadata(partition.committed_metadata)
        });
        OffsetCommitRequestTopic::default().with_name(topic.name).with_partitions(partitions.collect())
    };
    Ok(TxnCommit {
        transactional_id: request.transactional_id,
        producer: Producer { id: request.producer_id.0, epoch: request.producer_epoch },
        offsets: OffsetCommitRequest::default()
            .with_group_id(request.group_id)
            .with_generation_id_or_member_epoch(request.generation_id)
            .with_member_id(request.member_id)
            .with_group_instance_id(request.group_instance_id)
            .with_topics(request.topics.into_iter().map(topic).collect()),
    })
}

fn decode_with_ids(body: &Bytes) -> Result<TxnCommit, RecordError> {
    let mut reader = Reader::new(body, true);
    let transactional_id = TransactionalId(wire(&reader.string("TransactionalId")?));
    let group_id = GroupId(wire(&reader.string("GroupId")?));
    let producer_id = ProducerId(reader.i64("ProducerId")?);
    let producer = Producer { id: producer_id.0, epoch: reader.i16("ProducerEpoch")? };
    let offsets = OffsetCommitRequest::default()
        .with_group_id(group_id)
        .with_generation_id_or_member_epoch(reader.i32("GenerationIdOrMemberEpoch")?)
        .with_member_id(wire(&reader.string("MemberId")?))
        .with_group_instance_id(reader.nullable_string("GroupInstanceId")?.map(|id| wire(&id)))
        .with_topics(read_topics(&mut reader)?);
    reader.no_tags()?;
    Ok(TxnCommit { transactional_id, producer, offsets })
}

async fn handle(context: &Context, header: &RequestHeader, mut commit: TxnCommit) -> OffsetCommitResponse {
    let id = context.transactional_id(&commit.transactional_id, Operation::Write);
    let group = id.and_then(|id| Ok((id, context.group(&commit.offsets.group_id, Operation::Read)?)));
    let (id, group) = match group {
        Ok(allowed) => allowed,
        Err(error) => return commit_error(&commit.offsets, error),
    };
    let by_id = header.version >= TOPIC_IDS_VERSION;
    let refused = split(&context.topics(), &mut commit.offsets, by_id);
    let mut response = match commit.offsets.topics.is_empty() {
        true => OffsetCommitResponse::default(),
        false => {
            let unanswered = commit.offsets.clone();
            let answer = ask(context, header, &id, &group, commit).await;
            answer.unwrap_or_else(|error| commit_error(&unanswered, error))
        }
    };
    merge(&mut response.topics, refused);
    response
}

async fn ask(
    context: &Context,
    header: &RequestHeader,
    id: &Allowed<String>,
    group: &Allowed<String>,
    commit: TxnCommit,
) -> Result<OffsetCommitResponse, ResponseError> {
    if group.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    let commit = OffsetsOfTransaction {
        id: id.to_string(),
        producer: commit.producer,
        adds: if header.version >= ADDING_VERSION { Adds::Add } else { Adds::Verify },
        caller: caller(context, header),
        offsets: commit.offsets,
    };
    commit_offsets(context.engine(), group, commit).await
}

/// An error as clients of a version expect it.
fn named(code: i16, version: i16) -> i16 {
    match ResponseError::try_from_code(code) {
        Some(ResponseError::ProducerFenced) => ResponseError::InvalidProducerEpoch.code(),
        Some(ResponseError::TransactionAbortable) if version < ABORTABLE_VERSION => {
            ResponseError::InvalidTxnState.code()
        }
        Some(ResponseError::ConcurrentTransactions) if version < ADDING_VERSION => {
            named(ResponseError::CoordinatorLoadInProgress.code(), version)
        }
        Some(ResponseError::CoordinatorLoadInProgress) if version < LOADING_VERSION => {
            ResponseError::CoordinatorNotAvailable.code()
        }
        _ => code,
    }
}

fn reply(header: &RequestHeader, mut answer: OffsetCommitResponse) -> Reply {
    /// The version of OffsetCommit that has the layout of ours with topic ids.
    const SAME_LAYOUT: i16 = 10;
    let partitions = answer.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
    partitions.for_each(|partition| partition.error_code = named(partition.error_code, header.version));
    if header.version >= TOPIC_IDS_VERSION {
        return encode(header, SAME_LAYOUT, &answer);
    }
    let topics = answer.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|partition| {
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(partition.error_code)
        });
        TxnOffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(partitions.collect())
    });
    encode(header, header.version, &TxnOffsetCommitResponse::default().with_topics(topics.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_by_topic_id_are_read() {
        let mut body = vec![2, b't', 2, b'g', 0, 0, 0, 0, 0, 0, 0, 9, 0, 4, 0, 0, 0, 7, 2, b'm', 0, 2];
        body.extend([9; 16]);
        body.extend([2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0]);
        let commit = decode(body.into(), 6).unwrap();
        assert_eq!((commit.transactional_id.as_str(), commit.offsets.group_id.as_str()), ("t", "g"));
        assert_eq!((commit.producer.id, commit.producer.epoch), (9, 4));
        assert_eq!(commit.offsets.generation_id_or_member_epoch, 7);
        let topic = &commit.offsets.topics[0];
        assert_eq!((topic.topic_id.as_bytes(), topic.partitions[0].committed_offset), (&[9; 16], 5));
    }

    #[test]
    fn errors_are_those_that_a_version_knows() {
        let codes = |error: ResponseError| [0, 2, 3, 4, 5].map(|version| named(error.code(), version));
        assert_eq!(codes(ResponseError::ProducerFenced), [47; 5]);
        assert_eq!(codes(ResponseError::TransactionAbortable), [48, 48, 48, 120, 120]);
        assert_eq!(codes(ResponseError::CoordinatorLoadInProgress), [15, 14, 14, 14, 14]);
        assert_eq!(codes(ResponseError::ConcurrentTransactions), [15, 14, 14, 14, 51]);
        assert_eq!([named(0, 5), named(3, 0)], [0, 3]);
    }
}
