//! A transactional producer that adds partitions by producing to them, and asks again as clients do.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kafka_protocol::{
    messages::{EndTxnRequest, InitProducerIdRequest, ProducerId, TransactionalId},
    protocol::StrBytes,
};
use millrace_client::{ClientError, Cluster, requests};
use millrace_engine::batch::{BatchBuilder, Codec, Record};

use crate::{node::PATIENCE, rig::Rig};

/// Kafka's codes of what a producer tries again though its coordinator or leader is where it was.
const CONCURRENT_TRANSACTIONS: i16 = 51;
const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;
const PAUSE: Duration = Duration::from_millis(20);
/// As transactions of producers that are gone are aborted.
const TIMEOUT_MS: i32 = 60_000;

/// See the module.
pub(crate) struct Producer {
    cluster: Cluster,
    id: String,
    producer: (i64, i16),
    /// Next of each partition, of the transaction that is under way.
    sequences: BTreeMap<(String, i32), i32>,
}

impl Producer {
    /// One with that transactional id: what another one had open is aborted.
    pub(crate) fn begin(rig: &Rig, id: &str) -> Producer {
        let mut producer =
            Producer { cluster: rig.client(), id: id.to_owned(), producer: (-1, -1), sequences: BTreeMap::new() };
        let found = producer.insist(|producer| {
            let request = InitProducerIdRequest::default().with_transactional_id(Some(producer.wire_id()));
            let request = request.with_transaction_timeout_ms(TIMEOUT_MS);
            let request = request.with_producer_id(ProducerId(-1)).with_producer_epoch(-1);
            let coordinator = producer.cluster.transaction_coordinator(&producer.id)?;
            let told = producer.cluster.broker(coordinator, |_| request)?;
            ClientError::check("a producer id", told.error_code, None)?;
            Ok((told.producer_id.0, told.producer_epoch))
        });
        producer.producer = found;
        producer
    }

    fn wire_id(&self) -> TransactionalId {
        TransactionalId(StrBytes::from_string(self.id.clone()))
    }

    /// Writes a value in the transaction, which begins with the first.
    pub(crate) fn produce(&mut self, topic: &str, partition: i32, value: &str) {
        let place = (topic.to_owned(), partition);
        let sequence = *self.sequences.entry(place.clone()).or_default();
        let (producer_id, epoch) = self.producer;
        let mut batch = BatchBuilder::new(Codec::None, 0).producer(producer_id, epoch, sequence).transactional();
        let value = Some(bytes::Bytes::copy_from_slice(value.as_bytes()));
        let timestamp = 1_700_000_000_000;
        batch.push(&Record { offset: 0, timestamp, key: None, value, headers: Vec::new() });
        let batch: bytes::Bytes = batch.finish().into();
        self.insist(|producer| {
            let leader = producer.cluster.leader(topic, partition)?;
            let timeout = producer.cluster.timeout();
            let id = producer.wire_id();
            let told = producer.cluster.broker(leader, |_| {
                requests::produce(topic, partition, -1, timeout, batch.clone()).with_transactional_id(Some(id))
            })?;
            let code = told.responses[0].partition_responses[0].error_code;
            if code == DUPLICATE_SEQUENCE_NUMBER {
                return Ok(());
            }
            ClientError::check("a batch", code, None)
        });
        self.sequences.insert(place, sequence + 1);
    }

    /// Ends the transaction.
    pub(crate) fn end(&mut self, commit: bool) {
        self.producer = self.insist(|producer| producer.try_end(commit));
        self.sequences.clear();
    }

    fn try_end(&mut self, commit: bool) -> Result<(i64, i16), ClientError> {
        let (producer_id, epoch) = self.producer;
        let request = EndTxnRequest::default().with_transactional_id(self.wire_id()).with_committed(commit);
        let request = request.with_producer_id(ProducerId(producer_id)).with_producer_epoch(epoch);
        let coordinator = self.cluster.transaction_coordinator(&self.id)?;
        let told = self.cluster.broker(coordinator, |_| request)?;
        ClientError::check("the end", told.error_code, None)?;
        Ok((told.producer_id.0, told.producer_epoch))
    }

    /// Asks for the end once, and does not wait for what comes of it.
    pub(crate) fn end_once(&mut self, commit: bool) {
        drop(self.try_end(commit));
    }

    /// Tries until it is done: a cluster that lost a node answers again.
    fn insist<T>(&mut self, mut attempt: impl FnMut(&mut Producer) -> Result<T, ClientError>) -> T {
        let begun = Instant::now();
        loop {
            let error = match attempt(self) {
                Ok(done) => return done,
                Err(error) => error,
            };
            let may_pass = error.is_retriable()
                || matches!(error, ClientError::TimedOut { .. })
                || error.code() == Some(CONCURRENT_TRANSACTIONS);
            assert!(may_pass, "{}: {error}", self.id);
            assert!(begun.elapsed() < PATIENCE, "{}: {error}", self.id);
            self.cluster.forget_leaders();
            std::thread::sleep(PAUSE);
        }
    }
}
