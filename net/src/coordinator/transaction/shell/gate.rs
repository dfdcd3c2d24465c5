//! Who the owners of partitions ask whether a producer's transaction includes them.

use futures_util::FutureExt;
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::LogError,
    engine::Engine,
    transactions::{Admission, LocalFuture, Question, TransactionGate},
};

use super::let_in::{LetIn, let_in};
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
            admission(let_in(&engine, &producer.transactional_id, asked, name, producer.adds).await)
        })
    }
}

/// What becomes of a batch whose partition is let in, or is not.
pub(crate) fn admission(let_in: Result<LetIn, ResponseError>) -> Result<Admission, LogError> {
    Ok(match let_in.map_err(refusal)? {
        LetIn::Confirmed => Admission::Confirmed,
        LetIn::Beside(confirmed) => Admission::Pending(Box::pin(confirmed.map(|answer| answer.map_err(refusal)))),
    })
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
