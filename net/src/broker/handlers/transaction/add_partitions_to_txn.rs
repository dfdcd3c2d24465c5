//! AddPartitionsToTxn: partitions come into a transaction. From version 4 on brokers ask for several producers at once, also
//! only whether partitions are in.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::{Either, join_all, select};
use kafka_protocol::{
    ResponseError,
    messages::{
        AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, ApiKey,
        add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
        add_partitions_to_txn_response::{
            AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
        },
    },
};

use super::known_error;
use crate::{
    broker::{
        cluster,
        context::{AllTopics, Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::transaction::{Producer, shell},
    wire::api::{
        Call, call,
        shape::{BOOL, INT16, INT32S, INT64, STRING, Shape, array},
    },
};

const TOPICS: Shape = &[STRING, INT32S];
const TRANSACTION: Shape = &[STRING, INT64, INT16, BOOL, array(TOPICS)];
const SHAPE: Shape =
    &[array(TRANSACTION).since(4), STRING.until(3), INT64.until(3), INT16.until(3), array(TOPICS).until(3)];

/// AddPartitionsToTxn.
pub(crate) static API: Api = Api {
    key: ApiKey::AddPartitionsToTxn,
    version_min: 0,
    version_max: 5,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::TransactionalId, Operation::Write),
        (ResourceType::Topic, Operation::Write),
        (ResourceType::Cluster, Operation::ClusterAction),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// First version of brokers.
const BROKERS_VERSION: i16 = 4;
/// First version that says PRODUCER_FENCED.
const FENCED_VERSION: i16 = 2;
/// The `transaction.version` by which clients speak that leave adding partitions to brokers.
const BROKERS_TRANSACTION_VERSION: i16 = 2;

/// Partitions and the code that each is answered with, by topic.
type Answers = Vec<AddPartitionsToTxnTopicResult>;

async fn handle(context: Context, call: Call<AddPartitionsToTxnRequest>) -> AddPartitionsToTxnResponse {
    let response = AddPartitionsToTxnResponse::default();
    if call.version() >= BROKERS_VERSION {
        let all_topics = match context.cluster(Operation::ClusterAction) {
            Ok(all_topics) => all_topics,
            Err(error) => return response.with_error_code(error.code()),
        };
        let asked = call.body.transactions.into_iter();
        let results = asked.map(|transaction| of_broker(&context, &all_topics, transaction));
        return response.with_results_by_transaction(join_all(results).await);
    }
    let knows_fenced = call.version() >= FENCED_VERSION;
    let topics = of_client(&context, call.body, knows_fenced).await;
    response.with_results_by_topic_v3_and_below(topics)
}

async fn of_client(context: &Context, request: AddPartitionsToTxnRequest, knows_fenced: bool) -> Answers {
    let topics = request.v3_and_below_topics;
    let id = match context.transactional_id(&request.v3_and_below_transactional_id, Operation::Write) {
        Ok(id) if id.is_empty() => return all(&topics, ResponseError::InvalidRequest.code()),
        Ok(id) => id,
        Err(error) => return all(&topics, error.code()),
    };
    let refusals: BTreeMap<_, _> =
        topics.iter().filter_map(|topic| Some((topic.name.clone(), refusal(context, topic)?))).collect();
    if !refusals.is_empty() {
        return each(&topics, |topic, partition| match refusals.get(&topic.name) {
            Some((error, known)) if !known.contains(&partition) => error.code(),
            _ => ResponseError::OperationNotAttempted.code(),
        });
    }
    let producer = Producer { id: request.v3_and_below_producer_id.0, epoch: request.v3_and_below_producer_epoch };
    let added = shell::add_partitions(context.engine(), &id, producer, names(&topics), 0).await;
    all(&topics, added.err().map_or(0, |error| known_error(error, knows_fenced).code()))
}

/// Why partitions of a topic cannot be added, and those of which that is not true.
fn refusal(context: &Context, topic: &AddPartitionsToTxnTopic) -> Option<(ResponseError, std::ops::Range<i32>)> {
    if cluster::is_internal(&topic.name) {
        return Some((ResponseError::TopicAuthorizationFailed, 0..0));
    }
    match context.topics().get(&topic.name, Operation::Write) {
        Err(error) => Some((error, 0..0)),
        Ok(found) => {
            let known = 0..found.partitions;
            let is_known = topic.partitions.iter().all(|partition| known.contains(partition));
            (!is_known).then_some((ResponseError::UnknownTopicOrPartition, known))
        }
    }
}

async fn of_broker(
    context: &Context,
    all_topics: &AllTopics,
    transaction: AddPartitionsToTxnTransaction,
) -> AddPartitionsToTxnResult {
    let result = AddPartitionsToTxnResult::default().with_transactional_id(transaction.transactional_id.clone());
    let topics = &transaction.topics;
    let topic_results = match transaction.transactional_id.is_empty() {
        true => all(topics, ResponseError::InvalidRequest.code()),
        false => ask(context, all_topics, &transaction).await,
    };
    result.with_topic_results(topic_results)
}

/// How long a broker's question waits for the end of the transaction before: others of that broker wait behind it. It asks
/// again.
const HOLD_MAX: Duration = Duration::from_millis(200);

/// What is answered in time; nothing that was begun is taken back.
async fn in_time<T>(answer: impl Future<Output = Result<T, ResponseError>>) -> Result<T, ResponseError> {
    match select(std::pin::pin!(answer), std::pin::pin!(glommio::timer::sleep(HOLD_MAX))).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(ResponseError::ConcurrentTransactions),
    }
}

async fn ask(context: &Context, all_topics: &AllTopics, transaction: &AddPartitionsToTxnTransaction) -> Answers {
    let topics = &transaction.topics;
    let id = transaction.transactional_id.as_str();
    let producer = Producer { id: transaction.producer_id.0, epoch: transaction.producer_epoch };
    let is_there = |topic: &AddPartitionsToTxnTopic, partition: i32| {
        all_topics.get(&topic.name).is_ok_and(|topic| (0..topic.partitions).contains(&partition))
    };
    let all_there = topics.iter().all(|topic| topic.partitions.iter().all(|partition| is_there(topic, *partition)));
    if !all_there {
        return each(topics, |topic, partition| match is_there(topic, partition) {
            true => ResponseError::OperationNotAttempted.code(),
            false => ResponseError::UnknownTopicOrPartition.code(),
        });
    }
    if !transaction.verify_only {
        let added = shell::add_partitions(context.engine(), id, producer, names(topics), BROKERS_TRANSACTION_VERSION);
        let added = in_time(added).await;
        return all(topics, added.err().map_or(0, |error| error.code()));
    }
    match in_time(shell::verify(context.engine(), id, producer, names(topics))).await {
        Err(error) => all(topics, error.code()),
        Ok(verified) => {
            let mut verified = verified.into_iter();
            each(topics, |_, _| match verified.next() {
                Some(true) => 0,
                _ => ResponseError::TransactionAbortable.code(),
            })
        }
    }
}

fn names(topics: &[AddPartitionsToTxnTopic]) -> Vec<(String, i32)> {
    let of_topic = |topic: &AddPartitionsToTxnTopic| {
        let name = topic.name.to_string();
        topic.partitions.clone().into_iter().map(move |partition| (name.clone(), partition))
    };
    topics.iter().flat_map(of_topic).collect()
}

fn all(topics: &[AddPartitionsToTxnTopic], code: i16) -> Answers {
    each(topics, |_, _| code)
}

fn each(topics: &[AddPartitionsToTxnTopic], mut code: impl FnMut(&AddPartitionsToTxnTopic, i32) -> i16) -> Answers {
    let answered = topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|&partition| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(partition)
                .with_partition_error_code(code(topic, partition))
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(partitions.collect())
    });
    answered.collect()
}
