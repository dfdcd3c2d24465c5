//! Transactions from outside: which there are, what they hold up, and how to end one whose producer is gone.

use std::collections::BTreeMap;

use kafka_protocol::{
    messages::{
        DescribeProducersRequest, DescribeTransactionsRequest, InitProducerIdRequest, ListTransactionsRequest,
        ProducerId as WireProducerId, TransactionalId, WriteTxnMarkersRequest,
        describe_producers_request::TopicRequest,
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
    protocol::StrBytes,
};

use crate::{
    cluster::Cluster,
    error::{ClientError, partition_named},
    error_code::UNKNOWN_SERVER_ERROR,
    produce::ProducerId,
    requests::topic_name,
};

/// A transactional id in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransactionListing {
    /// The id.
    pub id: String,
    /// The broker that coordinates it.
    pub coordinator: i32,
    /// Id of its producer.
    pub producer_id: i64,
    /// State of its last transaction, as Kafka calls it.
    pub state: String,
}

/// A transactional id in detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionDescription {
    /// The broker that coordinates it.
    pub coordinator: i32,
    /// State of its last transaction, as Kafka calls it.
    pub state: String,
    /// Its producer.
    pub producer: ProducerId,
    /// After how many ms the coordinator aborts a transaction.
    pub timeout_ms: i32,
    /// When the transaction that is under way began, ms since 1970.
    pub started_ms: Option<i64>,
    /// Partitions in the transaction that is under way.
    pub partitions: Vec<(String, i32)>,
}

/// A producer that a partition remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveProducer {
    /// Its id and epoch.
    pub producer: ProducerId,
    /// The coordinator's epoch in its last marker, or -1.
    pub coordinator_epoch: i32,
    /// When it wrote last, ms since 1970.
    pub last_timestamp_ms: i64,
    /// Offset at which its open transaction begins here.
    pub open_since_offset: Option<i64>,
}

fn transactional_id(id: &str) -> TransactionalId {
    TransactionalId(StrBytes::from_string(id.to_owned()))
}

/// How an id is called in errors.
fn named(id: &str) -> String {
    format!("transactional id '{id}'")
}

impl Cluster {
    /// The transactional ids of all brokers, sorted: those in one of these states, or all if none is given.
    pub fn transactions(&mut self, states: &[String]) -> Result<Vec<TransactionListing>, ClientError> {
        let states: Vec<StrBytes> = states.iter().map(|state| StrBytes::from_string(state.clone())).collect();
        let mut all = Vec::new();
        for broker in self.broker_ids()? {
            let response = self.retry(|cluster| {
                let request = ListTransactionsRequest::default().with_state_filters(states.clone());
                let response = cluster.broker(broker, |_| request)?;
                ClientError::check("list transactions", response.error_code, None)?;
                if let Some(state) = response.unknown_state_filters.first() {
                    let message = format!("there is no state '{}'", state.as_str());
                    let what = "list transactions".to_owned();
                    return Err(ClientError::Refused { what, code: INVALID_REQUEST, message: Some(message) });
                }
                Ok(response)
            })?;
            all.extend(response.transaction_states.into_iter().map(|listed| TransactionListing {
                id: listed.transactional_id.to_string(),
                coordinator: broker,
                producer_id: listed.producer_id.0,
                state: listed.transaction_state.to_string(),
            }));
        }
        all.sort();
        // brokers that are shards of one node may all tell everything
        all.dedup_by(|a, b| a.id == b.id);
        Ok(all)
    }

    /// What the coordinator of an id knows of it.
    pub fn describe_transaction(&mut self, id: &str) -> Result<TransactionDescription, ClientError> {
        self.retry(|cluster| {
            let coordinator = cluster.transaction_coordinator(id)?;
            let request = DescribeTransactionsRequest::default().with_transactional_ids(vec![transactional_id(id)]);
            let response = cluster.broker(coordinator, |_| request)?;
            let Some(found) = response.transaction_states.into_iter().next() else { return Err(unanswered(named(id))) };
            ClientError::check(named(id), found.error_code, None)?;
            let topics = found.topics.iter();
            let partitions = topics.flat_map(|t| t.partitions.iter().map(|p| (t.topic.to_string(), *p)));
            Ok(TransactionDescription {
                coordinator,
                state: found.transaction_state.to_string(),
                producer: ProducerId { id: found.producer_id.0, epoch: found.producer_epoch },
                timeout_ms: found.transaction_timeout_ms,
                started_ms: Some(found.transaction_start_time_ms).filter(|ms| *ms >= 0),
                partitions: partitions.collect(),
            })
        })
    }

    /// Aborts what is open of an id, and keeps its producer from writing: as a new producer of that id would.
    pub fn fence_producer(&mut self, id: &str) -> Result<ProducerId, ClientError> {
        self.init_transactional_producer(id, FENCE_TIMEOUT_MS)
    }

    /// Gets the producer id of a transactional id: whoever has had it cannot write any more, and what he has left open
    /// is aborted.
    pub fn init_transactional_producer(&mut self, id: &str, timeout_ms: i32) -> Result<ProducerId, ClientError> {
        self.retry(|cluster| {
            let coordinator = cluster.transaction_coordinator(id)?;
            let response = cluster.broker(coordinator, |version| {
                let request = InitProducerIdRequest::default()
                    .with_transactional_id(Some(transactional_id(id)))
                    .with_transaction_timeout_ms(timeout_ms);
                match version {
                    ..=2 => request,
                    _ => request.with_producer_id(WireProducerId(-1)).with_producer_epoch(-1),
                }
            })?;
            ClientError::check(named(id), response.error_code, None)?;
            Ok(ProducerId { id: response.producer_id.0, epoch: response.producer_epoch })
        })
    }

    /// The producers that a partition remembers.
    pub fn active_producers(&mut self, topic: &str, partition: i32) -> Result<Vec<ActiveProducer>, ClientError> {
        let what = partition_named(topic, partition);
        self.retry(|cluster| {
            let leader = cluster.leader(topic, partition)?;
            let asked = TopicRequest::default().with_name(topic_name(topic)).with_partition_indexes(vec![partition]);
            let response = cluster.broker(leader, |_| DescribeProducersRequest::default().with_topics(vec![asked]))?;
            let found = response.topics.into_iter().flat_map(|topic| topic.partitions).next();
            let Some(found) = found else { return Err(unanswered(what.clone())) };
            ClientError::check(&what, found.error_code, found.error_message.as_deref())?;
            let active = found.active_producers.into_iter().map(|active| ActiveProducer {
                producer: ProducerId {
                    id: active.producer_id.0,
                    epoch: i16::try_from(active.producer_epoch).unwrap_or(-1),
                },
                coordinator_epoch: active.coordinator_epoch,
                last_timestamp_ms: active.last_timestamp,
                open_since_offset: Some(active.current_txn_start_offset).filter(|offset| *offset >= 0),
            });
            Ok(active.collect())
        })
    }

    /// Writes a marker that aborts what a producer has open in a partition, without asking the coordinator: for a
    /// transaction that this knows nothing of (KIP-664).
    pub fn abort_in_partition(
        &mut self,
        topic: &str,
        partition: i32,
        producer: &ActiveProducer,
    ) -> Result<(), ClientError> {
        let what = partition_named(topic, partition);
        let marker = WritableTxnMarker::default()
            .with_producer_id(WireProducerId(producer.producer.id))
            .with_producer_epoch(producer.producer.epoch)
            .with_transaction_result(false)
            // as Kafka's tool: who has never ended one here has no epoch yet
            .with_coordinator_epoch(producer.coordinator_epoch.max(0))
            .with_topics(vec![
                WritableTxnMarkerTopic::default().with_name(topic_name(topic)).with_partition_indexes(vec![partition]),
            ]);
        self.retry(|cluster| {
            let leader = cluster.leader(topic, partition)?;
            let request = WriteTxnMarkersRequest::default().with_markers(vec![marker.clone()]);
            let response = cluster.broker(leader, |_| request)?;
            let topics = response.markers.into_iter().flat_map(|marker| marker.topics);
            let mut codes: BTreeMap<i32, i16> = BTreeMap::new();
            for answered in topics.flat_map(|topic| topic.partitions) {
                codes.insert(answered.partition_index, answered.error_code);
            }
            ClientError::check(&what, codes.get(&partition).copied().unwrap_or(UNKNOWN_SERVER_ERROR), None)
        })
    }
}

/// Timeout that an id is left with which was fenced: its next producer sets its own.
const FENCE_TIMEOUT_MS: i32 = 60_000;
const INVALID_REQUEST: i16 = 42;

fn unanswered(what: String) -> ClientError {
    ClientError::Refused { what, code: UNKNOWN_SERVER_ERROR, message: None }
}
