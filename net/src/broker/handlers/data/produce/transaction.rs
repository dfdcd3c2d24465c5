//! What a produce request says of transactions: whose it is, and what its errors are called in its version.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use millrace_engine::{
    batch::BatchInfo,
    transactions::{Adds, TransactionalProducer},
};

use crate::wire::hot::produce_request::ProduceRequest;

/// First version whose batches add their partition to the transaction (KIP-890).
const ADDING_VERSION: i16 = 12;
/// First version whose clients know that a transaction can only be aborted (KIP-890).
const ABORTABLE_VERSION: i16 = 11;

/// In whose transaction a request's batches are; `None`: in none.
///
/// # Errors
/// For the whole request: it has transactional batches and does not say whose they are, or they are of several producers.
pub(super) fn transactional_producer(
    request: &ProduceRequest,
    version: i16,
) -> Result<Option<TransactionalProducer>, ResponseError> {
    let batches = request.topics.iter().flat_map(|topic| &topic.partitions).filter_map(|partition| {
        let info = BatchInfo::parse_header(partition.records.as_ref()?).ok()?;
        info.is_transactional().then_some((info.producer_id, info.producer_epoch))
    });
    let mut producer = None;
    for batch in batches {
        if *producer.get_or_insert(batch) != batch {
            return Err(match request.transactional_id {
                Some(_) => ResponseError::InvalidProducerIdMapping,
                None => ResponseError::TransactionalIdAuthorizationFailed,
            });
        }
    }
    match (&request.transactional_id, producer) {
        (_, None) => Ok(None),
        (None, Some(_)) => Err(ResponseError::TransactionalIdAuthorizationFailed),
        (Some(id), Some(_)) => {
            let adds = if version >= ADDING_VERSION { Adds::Add } else { Adds::Verify };
            Ok(Some(TransactionalProducer { transactional_id: Arc::from(id.as_str()), adds }))
        }
    }
}

/// An error as clients of a version expect it.
pub(super) fn named(error: ResponseError, version: i16) -> ResponseError {
    match error {
        // retriable, and the client does not ask for metadata first
        ResponseError::ConcurrentTransactions if version < ADDING_VERSION => ResponseError::NotEnoughReplicas,
        ResponseError::TransactionAbortable if version < ABORTABLE_VERSION => ResponseError::InvalidTxnState,
        ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::StrBytes;
    use millrace_engine::batch::{BatchBuilder, Codec, Record};

    use super::*;
    use crate::wire::hot::produce_request::{PartitionData, TopicData};

    fn batch(producer: Option<(i64, i16)>) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Codec::None, 0);
        if let Some((id, epoch)) = producer {
            builder = builder.producer(id, epoch, 0).transactional();
        }
        builder.push(&Record { offset: 0, timestamp: 0, key: None, value: None, headers: Vec::new() });
        builder.finish()
    }

    fn found(
        id: Option<&'static str>,
        producers: &[Option<(i64, i16)>],
        version: i16,
    ) -> Result<Option<Adds>, ResponseError> {
        let partition =
            |producer: &Option<(i64, i16)>| PartitionData { index: 0, records: Some(batch(*producer).into()) };
        let partitions = producers.iter().map(partition).collect();
        let topic = TopicData { name: StrBytes::new(), id: uuid::Uuid::nil(), partitions };
        let transactional_id = id.map(StrBytes::from_static_str);
        let request = ProduceRequest { transactional_id, acks: -1, timeout_ms: 0, topics: vec![topic] };
        let producer = transactional_producer(&request, version)?;
        Ok(producer.map(|producer| producer.adds))
    }

    #[test]
    fn batches_say_whose_transaction_they_are_of() {
        let (one, other) = (Some((1, 0)), Some((1, 1)));
        assert_eq!(found(Some("t"), &[None, None], 11), Ok(None));
        assert_eq!(found(Some("t"), &[one, None, one], 11), Ok(Some(Adds::Verify)));
        assert_eq!(found(Some("t"), &[one], 12), Ok(Some(Adds::Add)));
        assert_eq!(found(Some("t"), &[one, other], 12), Err(ResponseError::InvalidProducerIdMapping));
        assert_eq!(found(None, &[None, one], 12), Err(ResponseError::TransactionalIdAuthorizationFailed));
        assert_eq!(found(None, &[None], 12), Ok(None));
    }

    #[test]
    fn errors_are_those_that_a_version_knows() {
        use ResponseError::{ConcurrentTransactions, InvalidTxnState, NotEnoughReplicas, TransactionAbortable};
        let named = |error| [10, 11, 12].map(|version| named(error, version));
        assert_eq!(named(ConcurrentTransactions), [NotEnoughReplicas, NotEnoughReplicas, ConcurrentTransactions]);
        assert_eq!(named(TransactionAbortable), [InvalidTxnState, TransactionAbortable, TransactionAbortable]);
        assert_eq!(named(ResponseError::InvalidProducerEpoch), [ResponseError::InvalidProducerEpoch; 3]);
    }
}
