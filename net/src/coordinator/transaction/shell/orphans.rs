//! Which of the transactions that are open in this node's partitions no coordinator will end.
//!
//! This node's own coordinators say which they will end. In a cluster every other node that coordinates is asked for the
//! producers of these transactions. What nobody claims is nobody's only if all coordinators were heard, each of them while
//! it was the coordinator: the leaders of the topic of transactions are the same before and after, here and at the node that
//! is asked, and that node says that it has loaded what it leads. A transaction was let into its partition by a coordinator
//! of then or before, whose records a later one has. Whenever something is not known, nothing is aborted.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ListTransactionsRequest, MetadataRequest, MetadataResponse, ProducerId, metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
};
use millrace_engine::{api::TopicPartition, engine::Engine, transactions::OpenTransaction};

use super::{TRANSACTION_TOPIC, Transactions, read_led, unknown::Unknown};
use crate::{
    client::{AskError, Leader, Led, OtherBrokers, Purpose},
    coordinator::transaction::State,
};

/// States in which a coordinator will end a transaction.
const CLAIMING: [State; 3] = [State::Ongoing, State::PrepareCommit, State::PrepareAbort];

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
            let of_node = claimed_by(&others, node, &coordinators, &producers).await?;
            claimed.extend((0..open.len()).filter(|place| of_node.contains(&open[*place].producer_id)));
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
async fn claimed_by(
    others: &OtherBrokers,
    node: i32,
    coordinators: &Coordinators,
    producers: &BTreeSet<i64>,
) -> Result<BTreeSet<i64>, Unknown> {
    let before = metadata(others, node).await?;
    let asked = others.ask(node, Purpose::Inspection, |_| {
        let states = CLAIMING.map(|state| StrBytes::from_static_str(state.name()));
        ListTransactionsRequest::default()
            .with_state_filters(states.to_vec())
            .with_producer_id_filters(producers.iter().copied().map(ProducerId).collect())
            .with_duration_filter(-1)
    });
    let listed = asked.await.map_err(unreached)?;
    let after = metadata(others, node).await?;
    if listed.error_code != 0 {
        let told = ResponseError::try_from_code(listed.error_code);
        return Err(Unknown(told.unwrap_or(ResponseError::UnknownServerError)));
    }
    let own = |told: &Coordinators| -> Coordinators {
        told.iter().filter(|(_, led)| led.node == node).map(|(partition, led)| (*partition, *led)).collect()
    };
    let ours = own(coordinators);
    match own(&before) == ours && own(&after) == ours {
        true => Ok(listed.transaction_states.into_iter().map(|state| state.producer_id.0).collect()),
        false => Err(Unknown(ResponseError::NotCoordinator)),
    }
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
