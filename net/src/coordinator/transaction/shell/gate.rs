//! Who the owners of partitions ask whether a producer's transaction includes them.

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::LogError,
    engine::Engine,
    transactions::{Admission, LocalFuture, Question, TransactionGate},
};

use super::verify_or_add;
use crate::coordinator::transaction::Producer;

/// See the module.
pub(crate) struct Gate {
    /// Of the shard whose partitions are asked about.
    pub(crate) engine: Engine,
}

impl TransactionGate for Gate {
    fn ask(&self, question: Question) -> LocalFuture<Result<Admission, LogError>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let Question { partition, producer_id, producer_epoch, producer } = question;
            let topic = engine.topics().by_id.get(&partition.topic).map(|topic| topic.name.clone());
            let name = (topic.ok_or(LogError::UnknownPartition)?, partition.partition);
            let asked = Producer { id: producer_id, epoch: producer_epoch };
            let admitted = verify_or_add(&engine, &producer.transactional_id, asked, vec![name], producer.adds).await;
            admitted.map(|()| Admission::Confirmed).map_err(refusal)
        })
    }
}

/// What the batch hears.
fn refusal(error: ResponseError) -> LogError {
    match error {
        // on Produce it always is that of the epoch
        ResponseError::ProducerFenced | ResponseError::InvalidProducerEpoch => LogError::InvalidProducerEpoch,
        ResponseError::InvalidProducerIdMapping => LogError::InvalidProducerIdMapping,
        ResponseError::ConcurrentTransactions => {
            LogError::ConcurrentTransactions("the transaction before it is still ending")
        }
        ResponseError::TransactionAbortable => {
            LogError::TransactionAbortable("the partition is not in the transaction")
        }
        ResponseError::InvalidTxnState => LogError::InvalidTxnState("the transaction is not ongoing"),
        // loading, moving, or its log refused: it is tried again
        _ => LogError::TransactionCoordinatorNotAvailable,
    }
}
