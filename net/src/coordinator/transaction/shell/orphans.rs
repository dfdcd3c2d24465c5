//! Which of the transactions that are open in this node's partitions no coordinator will end.
//!
//! This node's own coordinators say which they will end. In a cluster every other node that coordinates is asked for the ids of
//! these producers, and what their transactions include. What nobody claims is nobody's only if all coordinators were heard, each of them while
//! it was the coordinator: the leaders of the topic of transactions are the same before and after, here and at the node that
//! is asked, and that node says that it has loaded what it leads. A transaction was let into its partition by a coordinator
//! of then or before, whose records a later one has. Whenever something is not known, nothing is aborted.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        DescribeTransactionsRequest, DescribeTransactionsResponse, ListTransactionsRequest, ListTransactionsResponse,
        MetadataRequest, MetadataResponse, ProducerId, TransactionalId, metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
};
use millrace_engine::{api::TopicPartition, engine::Engine, transactions::OpenTransaction};

use super::{TRANSACTION_TOPIC, Transactions, named, read_led, unknown::Unknown};
use crate::{
    client::{AskError, Leader, Led, OtherBrokers, Purpose},
    coordinator::transaction::{
        Producer, State,
        claim::{Claim, claimed},
    },
};

/// States in which a coordinator will end a transaction.
const CLAIMING: [State; 3] = [State::Ongoing, State::PrepareCommit, State::PrepareAbort];

/// Ids that a node is asked to describe at once: an id has up to 32 KiB, a request 8 MiB and an answer 16.
const DESCRIBED_AT_ONCE: usize = 100;

/// Coordinators by partition of their topic.
type Coordinators = BTreeMap<i32, Led>;

/// See the module.
pub(super) async fn orphans(engine: &Engine, mut open: Vec<OpenTransaction>) -> Result<Vec<OpenTransaction>, Unknown> {
    let others = engine.attached::<OtherBrokers>();
    // those of replicas are their leaders' business
    open.retain(|open| others.as_ref().is_none_or(|others| others.leader(open.partition) == Leader::Here));
    // a question about no producer would be one about all
    if open.is_empty() {
        return Ok(open);
    }
    let coordinators = others.as_ref().map(|others| coordinators(engine, others)).transpose()?;
    let mut claimed = claimed_here(engine, &open).await?;
    if let (Some(others), Some(coordinators)) = (others, coordinators) {
        let producers: BTreeSet<i64> = open.iter().map(|open| open.producer_id).collect();
        let nodes: BTreeSet<i32> = coordinators.values().map(|led| led.node).collect();
        for node in nodes.into_iter().filter(|node| *node != engine.node_id()) {
            let claims = claims_of(engine, &others, node, (&coordinators, &producers)).await?;
            claimed.extend(self::claimed(&claims, &open));
        }
        if self::coordinators(engine, &others)? != coordinators {
            return Err(Unknown(ResponseError::NotCoordinator));
        }
    }
    let orphans = open.into_iter().enumerate().filter(|(place, _)| !claimed.contains(place));
    Ok(orphans.map(|(_, open)| open).collect())
}

/// All of them; an error if there is one that nobody leads.
fn coordinators(engine: &Engine, others: &OtherBrokers) -> Result<Coordinators, Unknown> {
    let topic = Transactions::topic(engine).ok_or(Unknown(ResponseError::CoordinatorNotAvailable))?;
    let led = (0..topic.partitions).map(|partition| {
        let led = others.led(TopicPartition { topic: topic.id, partition });
        Ok((partition, led.ok_or(Unknown(ResponseError::CoordinatorNotAvailable))?))
    });
    led.collect()
}

/// Which of them this node's own coordinators claim, by their places.
async fn claimed_here(engine: &Engine, open: &[OpenTransaction]) -> Result<BTreeSet<usize>, Unknown> {
    let asked = open.to_vec();
    let shards = (0..engine.shards()).collect();
    match read_led(engine, shards, move |coordinator| coordinator.claimed(&asked)).await {
        (claimed, None) => Ok(claimed.into_iter().collect()),
        (_, Some(error)) => Err(Unknown(error)),
    }
}

/// What another node claims, if it is as sure as we are that it coordinates what it does.
async fn claims_of(
    engine: &Engine,
    others: &OtherBrokers,
    node: i32,
    (coordinators, producers): (&Coordinators, &BTreeSet<i64>),
) -> Result<Vec<Claim>, Unknown> {
    let before = metadata(others, node).await?;
    let mut claims = Vec::new();
    for ids in list(others, node, producers).await?.chunks(DESCRIBED_AT_ONCE) {
        let asked = others.ask(node, Purpose::Inspection, |_| {
            DescribeTransactionsRequest::default().with_transactional_ids(ids.to_vec())
        });
        let told = asked.await.map_err(unreached)?;
        claims.extend(told_claims(ids, &told, |name, index| named(engine, name, index))?);
    }
    let after = metadata(others, node).await?;
    let own = |told: &Coordinators| -> Coordinators {
        told.iter().filter(|(_, led)| led.node == node).map(|(partition, led)| (*partition, *led)).collect()
    };
    let ours = own(coordinators);
    match own(&before) == ours && own(&after) == ours {
        true => Ok(claims),
        false => Err(Unknown(ResponseError::NotCoordinator)),
    }
}

/// The ids under which a node will end something of producers.
async fn list(others: &OtherBrokers, node: i32, producers: &BTreeSet<i64>) -> Result<Vec<TransactionalId>, Unknown> {
    let asked = others.ask(node, Purpose::Inspection, |_| {
        let states = CLAIMING.map(|state| StrBytes::from_static_str(state.name()));
        ListTransactionsRequest::default()
            .with_state_filters(states.to_vec())
            .with_producer_id_filters(producers.iter().copied().map(ProducerId).collect())
            .with_duration_filter(-1)
    });
    let ListTransactionsResponse { error_code, transaction_states, .. } = asked.await.map_err(unreached)?;
    match error_code {
        0 => Ok(transaction_states.into_iter().map(|state| state.transactional_id).collect()),
        code => Err(refused(code)),
    }
}

/// What is claimed by ids that a node was asked to describe. One that is not there any more, or has ended, claims nothing; but
/// if one is not told of, nothing is known.
fn told_claims(
    ids: &[TransactionalId],
    told: &DescribeTransactionsResponse,
    place: impl Fn(&str, i32) -> Option<TopicPartition>,
) -> Result<Vec<Claim>, Unknown> {
    if !told.transaction_states.iter().map(|told| &told.transactional_id).eq(ids) {
        return Err(Unknown(ResponseError::UnknownServerError));
    }
    let mut claims = Vec::new();
    for told in &told.transaction_states {
        match ResponseError::try_from_code(told.error_code) {
            None => {}
            Some(ResponseError::TransactionalIdNotFound) => continue,
            Some(error) => return Err(Unknown(error)),
        }
        let state = State::of_name(&told.transaction_state).ok_or(Unknown(ResponseError::UnknownServerError))?;
        let producer = Producer { id: told.producer_id.0, epoch: told.producer_epoch };
        let names = told.topics.iter().flat_map(|topic| topic.partitions.iter().map(|index| (&*topic.topic, *index)));
        claims.extend(Claim::of(state, producer, None, names.filter_map(|(name, index)| place(name, index))));
    }
    Ok(claims)
}

fn refused(code: i16) -> Unknown {
    Unknown(ResponseError::try_from_code(code).unwrap_or(ResponseError::UnknownServerError))
}

/// The coordinators as another node sees them.
async fn metadata(others: &OtherBrokers, node: i32) -> Result<Coordinators, Unknown> {
    let told = others.ask(node, Purpose::Inspection, |_| {
        let name = StrBytes::from_static_str(TRANSACTION_TOPIC);
        let topic = MetadataRequestTopic::default().with_name(Some(name.into()));
        MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false)
    });
    Ok(told_coordinators(&told.await.map_err(unreached)?))
}

fn told_coordinators(told: &MetadataResponse) -> Coordinators {
    let partitions = told.topics.iter().flat_map(|topic| &topic.partitions);
    let led = partitions.map(|it| (it.partition_index, Led { node: it.leader_id.0, epoch: it.leader_epoch }));
    led.collect()
}

fn unreached(error: AskError) -> Unknown {
    tracing::debug!(%error, "a coordinator is not heard");
    Unknown(ResponseError::CoordinatorNotAvailable)
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{
        TopicName,
        describe_transactions_response::{TopicData, TransactionState},
    };
    use uuid::Uuid;

    use super::*;

    fn at(name: &str, partition: i32) -> TopicPartition {
        TopicPartition { topic: Uuid::from_u128(u128::from(name.as_bytes()[0])), partition }
    }

    fn open(partition: TopicPartition, producer_id: i64, producer_epoch: i16) -> OpenTransaction {
        OpenTransaction {
            partition,
            producer_id,
            producer_epoch,
            coordinator_epoch: -1,
            first_offset: 0,
            last_batch_at: 0,
            started_ms: 0,
            confirmed: true,
        }
    }

    fn told(state: &'static str, (id, epoch): (i64, i16), error_code: i16) -> TransactionState {
        let topic = TopicName(StrBytes::from_static_str("topic"));
        TransactionState::default()
            .with_error_code(error_code)
            .with_transaction_state(StrBytes::from_static_str(state))
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(epoch)
            .with_topics(vec![TopicData::default().with_topic(topic).with_partitions(vec![0, 1])])
    }

    fn claims(states: Vec<TransactionState>) -> Result<Vec<Claim>, Unknown> {
        let ids: Vec<_> = states.iter().map(|state| state.transactional_id.clone()).collect();
        let told = DescribeTransactionsResponse::default().with_transaction_states(states);
        told_claims(&ids, &told, place)
    }

    fn place(name: &str, index: i32) -> Option<TopicPartition> {
        (index < 2).then(|| at(name, index))
    }

    /// A busy producer, whose coordinator was on another node, claimed all that was open of its id, and what was nobody's stood
    /// in readers' way.
    #[test]
    fn another_node_claims_what_its_transactions_include() {
        let claims = claims(vec![told("Ongoing", (7, 3), 0), told("PrepareCommit", (8, 5), 0)]).unwrap();
        let asked = [
            open(at("topic", 1), 7, 3),
            open(at("other", 1), 7, 3),
            open(at("topic", 1), 7, 2),
            open(at("topic", 0), 8, 4),
            open(at("topic", 0), 8, 5), // by version 1, markers have the transaction's epoch
            open(at("topic", 0), 8, 3),
            open(at("topic", 2), 8, 4),
            open(at("topic", 0), 9, 0),
        ];
        assert_eq!(claimed(&claims, &asked), [0, 3, 4]);
    }

    #[test]
    fn an_id_that_is_not_told_of_may_claim_anything() {
        let gone = ResponseError::TransactionalIdNotFound.code();
        let over = claims(vec![told("CompleteAbort", (7, 3), 0), told("", (-1, 0), gone)]).unwrap();
        assert_eq!(over, []);
        for unknown in [told("Ongoing", (7, 3), ResponseError::NotCoordinator.code()), told("Dead", (7, 3), 0)] {
            assert!(claims(vec![told("Ongoing", (8, 0), 0), unknown]).is_err());
        }
        let asked = [TransactionalId::default()];
        assert!(told_claims(&asked, &DescribeTransactionsResponse::default(), place).is_err(), "nothing is told of it");
    }
}
