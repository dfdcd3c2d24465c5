//! Fetch: records from partitions, with or without a session.

mod elsewhere;

use std::time::Duration;

use futures_util::future::{Either, select};
use kafka_protocol::{
    ResponseError,
    messages::{ApiKey, FetchRequest, TopicName},
    protocol::{Decodable, StrBytes},
};
use millrace_engine::{
    api::{Fetch, FetchPartition, Fetched, LogError, ReadBound, Records, TopicPartition},
    batch::Codec,
};
use uuid::Uuid;

use crate::{
    broker::{
        cluster::NamedLeaders,
        context::{Authorization, Context, Operation, ResourceType, TopicRef, TopicsSeen},
        fetch_session::{BegunFetch, Outcome, PartitionKey, SessionRequest, TopicKey, Wanted},
        table::{Api, OnDisconnect},
    },
    wire::{
        api::{
            Handling, Reply, Request,
            shape::{INT8, INT32, INT32S, INT64, STRING, Shape, UUID, array, fields},
        },
        frame::Malformed,
        hot::fetch_response::{FetchResponse, Hints, PartitionResponse, TopicResponse},
    },
};

const PARTITION: Shape = &[
    INT32,
    INT32.since(9),
    INT64,
    INT32.since(12),
    INT64.since(5),
    INT32,
    UUID.since(17).tag(0),
    INT64.since(18).tag(1),
];
const TOPIC: Shape = &[STRING.until(12), UUID.since(13), array(PARTITION)];
const FORGOTTEN: Shape = &[STRING.until(12), UUID.since(13), INT32S];
const SHAPE: Shape = &[
    INT32.until(14),
    INT32,
    INT32,
    INT32,
    INT8,
    INT32.since(7),
    INT32.since(7),
    array(TOPIC),
    array(FORGOTTEN).since(7),
    STRING.since(11),
    STRING.since(12).tag(0),
    fields(&[INT32, INT64]).since(15).tag(1),
];

/// Fetch.
pub(crate) static API: Api = Api {
    key: ApiKey::Fetch,
    version_min: 4,
    version_max: 18,
    advertised_min: 4,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Topic, Operation::Read)]),
    on_disconnect: OnDisconnect::Drop,
    handle,
};

fn handle(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, mut body } = request;
    let version = header.version;
    let request = FetchRequest::decode(&mut body, version).map_err(|error| Malformed::Body(error.to_string()))?;
    let limits = Limits::new(&request, version, context.config().fetch_max_bytes);
    let begun = context.service.fetch_sessions.borrow_mut().begin(session_request(request, version));
    let begun = match begun {
        Ok(begun) => {
            context.session_mut().fetch_session = begun.session_id;
            begun
        }
        Err(error) => {
            let response = FetchResponse { error_code: error.code(), ..FetchResponse::default() };
            return Ok(Handling::Done(encode(response, header.correlation_id, version)));
        }
    };
    let context = context.clone();
    Ok(Handling::InTurn(Box::pin(async move {
        let Some(answers) = unless_stopping(&context, fetch(&context, &limits, &begun)).await else {
            return Reply::Stopping;
        };
        let response = respond(&context, &limits, begun, answers);
        context.service.fetched_bytes.add(response.record_bytes());
        encode(response, header.correlation_id, version)
    })))
}

/// A fetch may wait for long; the node does not wait for it.
async fn unless_stopping<T>(context: &Context, work: impl Future<Output = T>) -> Option<T> {
    let work = std::pin::pin!(work);
    let stopping = std::pin::pin!(context.engine().stopping());
    match select(work, stopping).await {
        Either::Left((answer, _)) => Some(answer),
        Either::Right(_) => None,
    }
}

/// What a request says beyond its partitions.
struct Limits {
    max_bytes: usize,
    min_bytes: usize,
    max_wait: Duration,
    /// Up to where the client reads.
    bound: ReadBound,
    /// The client says that it is a replica.
    is_replica: bool,
    /// The client may know zstd (KIP-110).
    may_know_zstd: bool,
    /// The client reads from followers too (KIP-392).
    reads_from_followers: bool,
    /// Where the client stands; empty if it does not say.
    rack: StrBytes,
}

impl Limits {
    fn new(request: &FetchRequest, version: i16, fetch_max_bytes: usize) -> Limits {
        let size = |value: i32| usize::try_from(value).unwrap_or(0);
        let max_bytes = size(request.max_bytes).min(fetch_max_bytes);
        Limits {
            max_bytes,
            min_bytes: size(request.min_bytes).min(max_bytes),
            max_wait: Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)),
            bound: ReadBound::of_isolation_level(request.isolation_level),
            is_replica: request.replica_id.0 >= 0 || request.replica_state.replica_id.0 >= 0,
            may_know_zstd: version >= 10,
            reads_from_followers: version >= 11,
            rack: request.rack_id.clone(),
        }
    }
}

fn session_request(request: FetchRequest, version: i16) -> SessionRequest {
    let uses_ids = version >= 13;
    let topic_key = |name: TopicName, id| {
        if uses_ids { TopicKey::Id(id) } else { TopicKey::Name(name.0) }
    };
    let mut wanted = Vec::new();
    for topic in request.topics {
        let key = topic_key(topic.topic, topic.topic_id);
        wanted.extend(topic.partitions.into_iter().map(|partition| Wanted {
            key: PartitionKey { topic: key.clone(), index: partition.partition },
            offset: partition.fetch_offset,
            max_bytes: partition.partition_max_bytes,
            leader_epoch: partition.current_leader_epoch,
            last_fetched_epoch: partition.last_fetched_epoch,
        }));
    }
    let mut forgotten = Vec::new();
    for topic in request.forgotten_topics_data {
        let key = topic_key(topic.topic, topic.topic_id);
        forgotten.extend(topic.partitions.into_iter().map(|index| PartitionKey { topic: key.clone(), index }));
    }
    SessionRequest { id: request.session_id, epoch: request.session_epoch, uses_ids, wanted, forgotten }
}

/// What is said of one wanted partition.
struct Answer {
    /// The partition, if there is such a one.
    partition: Option<TopicPartition>,
    fetched: Result<Fetched, ResponseError>,
    hints: Hints,
}

impl From<ResponseError> for Answer {
    fn from(error: ResponseError) -> Answer {
        Answer { partition: None, fetched: Err(error), hints: Hints::default() }
    }
}

/// Asks the engine for every partition that exists; one answer per wanted partition, in order.
async fn fetch(context: &Context, limits: &Limits, begun: &BegunFetch) -> Vec<Answer> {
    let topics = context.topics();
    let mut settled = Vec::with_capacity(begun.wanted.len());
    for wanted in &begun.wanted {
        settled.push(match resolve(&topics, limits, &wanted.key) {
            Ok(partition) => elsewhere::settle(context, limits, wanted, partition).await.map_or(Ok(partition), Err),
            Err(error) => Err(error.into()),
        });
    }
    let partitions = begun.wanted.iter().zip(&settled).filter_map(|(wanted, settled)| {
        Some(FetchPartition {
            partition: *settled.as_ref().ok()?,
            offset: wanted.offset,
            max_bytes: usize::try_from(wanted.max_bytes).unwrap_or(0),
            leader_epoch: wanted.leader_epoch,
            bound: limits.bound,
        })
    });
    let owners = settled.iter().flatten().map(|partition| context.engine().owner(*partition));
    context.session_mut().affinity.on_request(owners);
    // An error is told at once, and so is that there is nothing to wait for.
    let is_answerable = settled.is_empty() || settled.iter().any(Result::is_err);
    let max_wait = if is_answerable { Duration::ZERO } else { limits.max_wait };
    let fetch =
        Fetch { partitions: partitions.collect(), max_bytes: limits.max_bytes, min_bytes: limits.min_bytes, max_wait };
    let mut answers = context.engine().fetch(fetch).await.into_iter();
    let mut answer = |settled: Result<TopicPartition, Answer>, wanted: &Wanted| {
        let partition = match settled {
            Ok(partition) => partition,
            Err(answer) => return answer,
        };
        let fetched = answers.next().unwrap_or(Err(LogError::ShuttingDown));
        let fetched = fetched.map_err(|error| match (&error, &wanted.key.topic) {
            (LogError::UnknownPartition, TopicKey::Id(_)) if !context.view().has_epochs() => {
                ResponseError::UnknownTopicId
            }
            _ => context.view().log_error(partition, &error),
        });
        Answer { partition: Some(partition), fetched, hints: Hints::default() }
    };
    settled.into_iter().zip(&begun.wanted).map(|(settled, wanted)| answer(settled, wanted)).collect()
}

fn resolve(topics: &TopicsSeen<'_>, limits: &Limits, key: &PartitionKey) -> Result<TopicPartition, ResponseError> {
    let topic = match &key.topic {
        TopicKey::Name(name) => TopicRef::Name(name),
        TopicKey::Id(id) => TopicRef::Id(*id),
    };
    let topic = topics.get(topic, Operation::Read)?;
    if !(0..topic.partitions).contains(&key.index) {
        return Err(ResponseError::UnknownTopicOrPartition);
    }
    if limits.is_replica {
        // Replicas do not fetch over this protocol.
        return Err(ResponseError::NotLeaderOrFollower);
    }
    // As in Kafka, by what the topic is set to: what producers chose to send is theirs to agree on with consumers.
    if !limits.may_know_zstd && topic.config.compression.is_some_and(|to| to.codec == Codec::Zstd) {
        return Err(ResponseError::UnsupportedCompressionType);
    }
    Ok(TopicPartition { topic: topic.id, partition: key.index })
}

/// Groups the answers that the client must be told by topic.
fn respond(context: &Context, limits: &Limits, begun: BegunFetch, answers: Vec<Answer>) -> FetchResponse {
    let outcomes: Vec<_> = answers.iter().map(outcome).collect();
    let told = context.service.fetch_sessions.borrow_mut().finish(&begun, &outcomes);
    let mut topics: Vec<TopicResponse> = Vec::new();
    let mut leaders = NamedLeaders::new(context.view());
    let session_id = begun.session_id;
    for ((wanted, mut answer), is_told) in begun.wanted.into_iter().zip(answers).zip(told) {
        if !is_told {
            continue;
        }
        let (name, id) = match wanted.key.topic {
            TopicKey::Name(name) => (name, Uuid::nil()),
            TopicKey::Id(id) => (StrBytes::new(), id),
        };
        answer.hints.current_leader = elsewhere::current_leader(&mut leaders, &answer);
        let partition = partition_response(wanted.key.index, limits.bound, answer);
        match topics.last_mut() {
            Some(last) if last.name == name && last.id == id => last.partitions.push(partition),
            _ => topics.push(TopicResponse { name, id, partitions: vec![partition] }),
        }
    }
    FetchResponse { error_code: 0, session_id, topics, node_endpoints: elsewhere::endpoints(leaders) }
}

fn outcome(answer: &Answer) -> Outcome {
    let has_hints = answer.hints != Hints::default();
    match &answer.fetched {
        Ok(fetched) => Outcome {
            is_error: false,
            has_records: !fetched.records.is_empty(),
            has_hints,
            high_watermark: fetched.high_watermark,
            log_start_offset: fetched.log_start_offset,
        },
        Err(_) => Outcome { is_error: true, has_records: false, has_hints, high_watermark: -1, log_start_offset: -1 },
    }
}

fn partition_response(index: i32, bound: ReadBound, answer: Answer) -> PartitionResponse {
    let reads_committed = bound == ReadBound::LastStable;
    let hints = answer.hints;
    match answer.fetched {
        Ok(fetched) => PartitionResponse {
            index,
            error_code: 0,
            high_watermark: fetched.high_watermark,
            last_stable_offset: fetched.last_stable_offset,
            log_start_offset: fetched.log_start_offset,
            aborted: reads_committed.then(|| fetched.aborted.unwrap_or_default()),
            hints,
            records: fetched.records,
        },
        Err(error) => PartitionResponse {
            index,
            error_code: error.code(),
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            aborted: reads_committed.then(Vec::new),
            hints,
            records: Records::default(),
        },
    }
}

fn encode(response: FetchResponse, correlation_id: i32, version: i16) -> Reply {
    match response.encode(correlation_id, version) {
        Some(response) => Reply::Response(response),
        None => Reply::Close("a fetch response is larger than the protocol allows".to_string()),
    }
}
