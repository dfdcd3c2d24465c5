//! Produce: batches to partitions. Their order is fixed when the request is read.

mod transaction;

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures_util::future::Either;
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ProduceResponse, TopicName,
        produce_response::{
            BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
        },
    },
    protocol::StrBytes,
};
use millrace_engine::{
    api::{Acks, AcksWithin, LogError, OffsetSpec, ProducePartition, Produced, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchError, BatchInfo, Codec, RefusedRecord},
    engine::Engine,
    transactions::TransactionalProducer,
};

use crate::{
    broker::{
        cluster::{self, Broker, ClusterView, NamedLeaders},
        context::{Authorization, Context, Found, Operation, ResourceType, TopicRef, TopicsSeen},
        table::{Api, OnDisconnect},
    },
    errors::{ApiError, log_error, tells_log_start},
    wire::{
        api::{
            Handling, Reply, Request, encode,
            shape::{BYTES, INT16, INT32, STRING, Shape, UUID, array},
        },
        frame::Malformed,
        hot::produce_request::{PartitionData, ProduceRequest, TopicData},
    },
};

const SHAPE: Shape = &[STRING, INT16, INT32, array(&[STRING.until(12), UUID.since(13), array(&[INT32, BYTES])])];

/// Produce. Clients are told that versions 0 to 2 are served, which they are not: old librdkafka decides by the lowest
/// version whether compression exists (KAFKA-18659).
pub(crate) static API: Api = Api {
    key: ApiKey::Produce,
    version_min: 3,
    version_max: 13,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Topic, Operation::Write),
        (ResourceType::TransactionalId, Operation::Write),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle,
};

/// A topic's part of the answer while it is being made.
struct TopicAnswer {
    name: StrBytes,
    id: uuid::Uuid,
    partitions: Vec<(i32, PartitionAnswer)>,
}

enum PartitionAnswer {
    Refused(ApiError),
    /// Passed to the engine for that partition; the engine's answers come in the same order.
    Appended(TopicPartition),
}

fn handle(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, body } = request;
    let request = ProduceRequest::decode(body, header.version).map_err(|reason| Malformed::Body(reason.to_string()))?;
    let acks = Acks::of_wire(request.acks);
    let waits_for_others = acks == Some(Acks::All) && context.service.membership.is_clustered();
    let patience = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or_default());
    // alone, this node's disk is waited for however long it takes; with other replicas, all of it for as long as the client says
    let patience = waits_for_others.then_some(patience);
    let producer = transaction::transactional_producer(&request, header.version).and_then(|producer| {
        let allowed = producer.as_ref().map(|p| context.transactional_id(&p.transactional_id, Operation::Write));
        allowed.transpose().map(|_| producer)
    });
    let mut parts = Vec::new();
    let names = Names { topics: context.topics(), are_ids: header.version >= 13 };
    let rules = Rules {
        refusal: producer.as_ref().err().copied().or(acks.is_none().then_some(ResponseError::InvalidRequiredAcks)),
        is_admin: header.client_id.as_deref() == Some(cluster::ADMIN_CLIENT_ID),
        takes_zstd: header.version >= ZSTD_VERSION,
    };
    let answers: Vec<TopicAnswer> =
        request.topics.into_iter().map(|topic| begin_topic(&names, topic, &rules, &mut parts)).collect();
    let owners = parts.iter().map(|part| context.engine().owner(part.partition));
    context.session_mut().affinity.on_request(owners);
    // with acks that are not legal nothing is appended
    let wanted = AcksWithin { acks: acks.unwrap_or(Acks::All), patience };
    let appended = append(context.engine(), producer.ok().flatten(), wanted, parts);
    let context = context.clone();
    Ok(Handling::Later(Box::pin(async move {
        let appended = appended.await;
        if acks == Some(Acks::None) {
            return silence(&answers, &appended);
        }
        let log_starts = log_starts(context.engine(), &answers, &appended).await;
        let response = finish(header.version, answers, appended, &log_starts, context.view());
        encode(&header, header.version, &response)
    })))
}

/// Appends batches, in the order of calls.
fn append(
    engine: &Engine,
    producer: Option<TransactionalProducer>,
    acks: AcksWithin,
    parts: Vec<ProducePartition>,
) -> impl Future<Output = Vec<Result<Produced, LogError>>> + 'static {
    match producer {
        Some(producer) => Either::Left(engine.produce_in_transaction(producer, acks, parts)),
        None => Either::Right(engine.produce(AppendOrigin::Client, acks, parts)),
    }
}

/// How a request names its topics.
struct Names<'a> {
    topics: TopicsSeen<'a>,
    are_ids: bool,
}

impl Names<'_> {
    fn find(&self, data: &TopicData) -> Found<'_> {
        let topic = if self.are_ids { TopicRef::Id(data.id) } else { TopicRef::Name(&data.name) };
        self.topics.get(topic, Operation::Write)
    }
}

/// What holds for a whole request.
struct Rules {
    /// Why none of it is taken.
    refusal: Option<ResponseError>,
    /// Whether it may write to topics in which the node keeps its own state, as in Kafka by the client's id.
    is_admin: bool,
    takes_zstd: bool,
}

/// First version whose producers may use zstd (KIP-110).
const ZSTD_VERSION: i16 = 7;

/// Checks a topic's partitions and collects what the engine shall append.
fn begin_topic(names: &Names<'_>, data: TopicData, rules: &Rules, parts: &mut Vec<ProducePartition>) -> TopicAnswer {
    let topic = names.find(&data);
    let partitions = data
        .partitions
        .into_iter()
        .map(|partition| {
            let index = partition.index;
            let checked = match rules.refusal {
                None => check(topic, partition, rules),
                Some(refusal) => Err(refusal.into()),
            };
            match checked {
                Ok(part) => {
                    let answer = PartitionAnswer::Appended(part.partition);
                    parts.push(part);
                    (index, answer)
                }
                Err(error) => (index, PartitionAnswer::Refused(error)),
            }
        })
        .collect();
    TopicAnswer { name: data.name, id: data.id, partitions }
}

fn check(topic: Found<'_>, data: PartitionData, rules: &Rules) -> Result<ProducePartition, ApiError> {
    let topic = topic?;
    if !rules.is_admin && cluster::is_internal(&topic.name) {
        let reason = format!("Cannot append to internal topic {}", topic.name);
        return Err(ApiError::new(ResponseError::InvalidTopicException, reason));
    }
    if !(0..topic.partitions).contains(&data.index) {
        return Err(ResponseError::UnknownTopicOrPartition.into());
    }
    let batch = check_batch(data.records, rules.takes_zstd)?;
    Ok(ProducePartition { partition: TopicPartition { topic: topic.id, partition: data.index }, batch })
}

/// What a producer sends is exactly one batch, which the engine checks. Bytes behind it that are no whole batch are left
/// out, as Kafka does.
fn check_batch(records: Option<Bytes>, takes_zstd: bool) -> Result<Bytes, ApiError> {
    let invalid = |reason: &str| ApiError::new(ResponseError::InvalidRecord, reason);
    let mut records = records
        .filter(|records| !records.is_empty())
        .ok_or_else(|| invalid("A partition's part of a produce request holds no record batch."))?;
    let Ok(info) = BatchInfo::parse(&records) else {
        return Ok(records);
    };
    if !takes_zstd && info.codec() == Ok(Codec::Zstd) {
        let reason = format!("Producers may use zstd from version {ZSTD_VERSION} on.");
        return Err(ApiError::new(ResponseError::UnsupportedCompressionType, reason));
    }
    if BatchInfo::parse(&records[info.size..]).is_ok() {
        return Err(invalid("A partition's part of a produce request holds more than one record batch."));
    }
    records.truncate(info.size);
    Ok(records)
}

/// With acks = 0 nobody waits for an answer: an error can only be told by closing the connection.
fn silence(answers: &[TopicAnswer], appended: &[Result<Produced, LogError>]) -> Reply {
    let refused = answers.iter().flat_map(|topic| &topic.partitions).find_map(|(_, answer)| match answer {
        PartitionAnswer::Refused(error) => Some(error.error),
        PartitionAnswer::Appended(_) => None,
    });
    let failed = appended.iter().find_map(|answer| answer.as_ref().err()).map(log_error);
    match refused.or(failed) {
        Some(error) => Reply::Close(format!("a produce request with acks = 0 failed: {error}")),
        None => Reply::Silence,
    }
}

/// The first offsets of the logs in which a producer's records were refused.
async fn log_starts(
    engine: &Engine,
    answers: &[TopicAnswer],
    appended: &[Result<Produced, LogError>],
) -> HashMap<TopicPartition, i64> {
    let partitions = answers.iter().flat_map(|topic| &topic.partitions).filter_map(|(_, answer)| match answer {
        PartitionAnswer::Appended(partition) => Some(*partition),
        PartitionAnswer::Refused(_) => None,
    });
    let mut log_starts = HashMap::new();
    for (partition, outcome) in partitions.zip(appended) {
        if outcome.as_ref().is_err_and(tells_log_start)
            && let Ok(earliest) =
                engine.list_offset(partition, OffsetSpec::Earliest, ReadBound::HighWatermark, -1).await
        {
            log_starts.insert(partition, earliest.offset);
        }
    }
    log_starts
}

fn finish(
    version: i16,
    answers: Vec<TopicAnswer>,
    appended: Vec<Result<Produced, LogError>>,
    log_starts: &HashMap<TopicPartition, i64>,
    view: ClusterView<'_>,
) -> ProduceResponse {
    let mut appended = appended.into_iter();
    let mut leaders = NamedLeaders::new(view.clone());
    let mut partition = |(index, answer): (i32, PartitionAnswer)| {
        let mut response = PartitionProduceResponse::default().with_index(index);
        let outcome = match answer {
            PartitionAnswer::Refused(error) => Err(error),
            PartitionAnswer::Appended(partition) => match appended.next() {
                Some(Ok(produced)) => Ok(produced),
                Some(Err(error)) => {
                    response.log_start_offset = log_starts.get(&partition).copied().unwrap_or(-1);
                    response.record_errors = record_errors(&error);
                    let told = transaction::named(view.log_error(partition, &error), version);
                    if let Some(leader) = leaders.name(partition, told) {
                        response.current_leader =
                            LeaderIdAndEpoch::default().with_leader_id(leader.id).with_leader_epoch(leader.epoch);
                    }
                    Err(ApiError::new(told, error.to_string()))
                }
                None => Err(ResponseError::UnknownServerError.into()),
            },
        };
        match outcome {
            Ok(produced) => response
                .with_base_offset(produced.base_offset)
                .with_log_append_time_ms(produced.append_time_ms)
                .with_log_start_offset(produced.log_start_offset),
            Err(error) => response.with_error_code(error.code()).with_base_offset(-1).with_error_message(error.message),
        }
    };
    let responses = answers.into_iter().map(|topic| {
        TopicProduceResponse::default()
            .with_name(TopicName(topic.name))
            .with_topic_id(topic.id)
            .with_partition_responses(topic.partitions.into_iter().map(&mut partition).collect())
    });
    let response = ProduceResponse::default().with_responses(responses.collect());
    let endpoint = |broker: Broker| {
        NodeEndpoint::default()
            .with_node_id(broker.id)
            .with_host(broker.host)
            .with_port(broker.port)
            .with_rack(broker.rack)
    };
    response.with_node_endpoints(leaders.into_brokers().map(endpoint).collect())
}

/// The records that made their batch fail (KIP-467), so that a client does not blame the others. Left out before
/// version 8.
fn record_errors(error: &LogError) -> Vec<BatchIndexAndErrorMessage> {
    let LogError::Batch(BatchError::Records(refused)) = error else { return Vec::new() };
    let tell = |record: &RefusedRecord| {
        BatchIndexAndErrorMessage::default()
            .with_batch_index(record.index)
            .with_batch_index_error_message(Some(StrBytes::from_string(record.reason.to_string())))
    };
    refused.first.iter().map(tell).collect()
}
