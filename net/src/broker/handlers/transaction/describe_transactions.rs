//! DescribeTransactions: what is known of transactional ids.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DescribeTransactionsRequest, DescribeTransactionsResponse, ProducerId, TopicName, TransactionalId,
        describe_transactions_response::{TopicData, TransactionState},
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::transaction::{Description, shell},
    wire::api::{
        Call, call,
        shape::{STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRINGS];

/// DescribeTransactions.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeTransactions,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::TransactionalId, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DescribeTransactionsRequest>) -> DescribeTransactionsResponse {
    let described = call.body.transactional_ids.iter().map(|id| async {
        let state = TransactionState::default().with_transactional_id(id.clone());
        match describe(&context, id).await {
            Ok(description) => tell(state, description),
            Err(error) => state.with_error_code(error.code()),
        }
    });
    DescribeTransactionsResponse::default().with_transaction_states(join_all(described).await)
}

async fn describe(context: &Context, id: &TransactionalId) -> Result<Description, ResponseError> {
    let id = context.transactional_id(id, Operation::Describe)?;
    if id.is_empty() {
        return Err(ResponseError::InvalidRequest);
    }
    shell::describe(context.engine(), &id).await
}

fn tell(state: TransactionState, description: Description) -> TransactionState {
    let mut topics = BTreeMap::<String, Vec<i32>>::new();
    for (topic, partition) in description.partitions {
        topics.entry(topic).or_default().push(partition);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        TopicData::default().with_topic(TopicName(StrBytes::from_string(topic))).with_partitions(partitions)
    });
    state
        .with_transaction_state(StrBytes::from_static_str(description.state.name()))
        .with_transaction_timeout_ms(description.timeout_ms)
        .with_transaction_start_time_ms(description.start_ms)
        .with_producer_id(ProducerId(description.producer.id))
        .with_producer_epoch(description.producer.epoch)
        .with_topics(topics.collect())
}
