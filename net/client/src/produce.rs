//! Writing batches to the leader of a partition.

use bytes::Bytes;
use kafka_protocol::messages::{InitProducerIdRequest, ProducerId as WireProducerId};

use crate::{
    cluster::Cluster,
    error::{ClientError, partition_named},
    error_code::UNKNOWN_SERVER_ERROR,
    requests,
};

/// Who writes, for brokers that drop what a producer sends twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerId {
    /// The id.
    pub id: i64,
    /// How often the id was given out.
    pub epoch: i16,
}

impl Cluster {
    /// Gets an id for an idempotent producer.
    pub fn init_producer_id(&mut self) -> Result<ProducerId, ClientError> {
        self.retry(|cluster| {
            let response = cluster.any(|version| {
                let request = InitProducerIdRequest::default().with_transactional_id(None);
                match version {
                    ..=2 => request,
                    _ => request.with_producer_id(WireProducerId(-1)).with_producer_epoch(-1),
                }
            })?;
            ClientError::check("producer id", response.error_code, None)?;
            Ok(ProducerId { id: response.producer_id.0, epoch: response.producer_epoch })
        })
    }

    /// Writes one batch; returns the offset of its first record, or `None` with `acks` 0. Tries again where that is
    /// safe: a broken connection leaves open whether the batch was written, so it is sent again only if it carries a
    /// producer id (`idempotent`).
    pub fn produce(
        &mut self,
        topic: &str,
        partition: i32,
        batch: &Bytes,
        acks: i16,
        idempotent: bool,
    ) -> Result<Option<i64>, ClientError> {
        let what = partition_named(topic, partition);
        self.retry(|cluster| {
            let leader = cluster.leader(topic, partition)?;
            let timeout = cluster.timeout();
            // Nothing was sent yet when this fails, so that it may be tried again.
            cluster.broker_connection(leader)?;
            let request = |_| requests::produce(topic, partition, acks, timeout, batch.clone());
            if acks == 0 {
                return cluster.tell(leader, request).map(|()| None);
            }
            let response = cluster.broker(leader, request).map_err(|error| uncertain(error, &what, idempotent))?;
            let outcome = response.responses.first().and_then(|t| t.partition_responses.first());
            let Some(outcome) = outcome else {
                return Err(ClientError::Refused { what: what.clone(), code: UNKNOWN_SERVER_ERROR, message: None });
            };
            let message = outcome
                .error_message
                .as_deref()
                .or_else(|| outcome.record_errors.first().and_then(|e| e.batch_index_error_message.as_deref()));
            ClientError::check(&what, outcome.error_code, message)?;
            Ok(Some(outcome.base_offset))
        })
    }
}

/// Turns a lost connection into an error that is not tried again, unless the broker would notice.
fn uncertain(error: ClientError, what: &str, idempotent: bool) -> ClientError {
    match error {
        ClientError::Lost { .. } if !idempotent => {
            ClientError::MaybeWritten { what: what.to_owned(), source: Box::new(error) }
        }
        other => other,
    }
}
