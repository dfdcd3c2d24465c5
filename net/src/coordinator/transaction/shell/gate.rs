//! Who the owners of partitions ask whether a producer's transaction includes them.

use std::rc::Rc;

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::LogError,
    engine::Engine,
    transactions::{Adds, Admission, LocalFuture, Question, TransactionGate},
};

use super::{Transactions, verify_or_add};
use crate::{
    client::OtherBrokers,
    coordinator::{
        runtime::Answered,
        transaction::{AddPartitions, Producer, Progress, metadata::EPOCH_BUMP_VERSION},
    },
};

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
            let (id, asked) = (&*producer.transactional_id, Producer { id: producer_id, epoch: producer_epoch });
            // replicas of the record and of the batch confirm for themselves: in a cluster the record comes first
            if producer.adds == Adds::Add
                && engine.attached::<OtherBrokers>().is_none()
                && let Some((progress, answered)) = add_here(&engine, id, asked, &name)
            {
                return match (answered.try_take(), progress) {
                    (Some(answer), _) => admitted(answer),
                    // the batch goes into the group that the record is in
                    (None, Progress::Begun) => Ok(Admission::Pending(Box::pin(async move {
                        answered.take().await.and_then(|answer| answer).map_err(refusal)
                    }))),
                    (None, Progress::Waits) => admitted(answered.take().await),
                };
            }
            admitted(Ok(verify_or_add(&engine, id, asked, vec![name], producer.adds).await))
        })
    }
}

/// Begins to add a partition, if its coordinator is on this shard and serves.
fn add_here(
    engine: &Engine,
    id: &str,
    producer: Producer,
    (topic, index): &(String, i32),
) -> Option<(Progress, Answered<Result<(), ResponseError>>)> {
    let coordinated = Transactions::place(engine, id).filter(|partition| engine.owner(*partition) == engine.shard())?;
    let add = AddPartitions {
        producer,
        partitions: [(Rc::from(topic.as_str()), *index)].into(),
        client_version: EPOCH_BUMP_VERSION,
    };
    engine
        .attached::<Transactions>()?
        .begin(coordinated, |coordinator, now_ms, ticket| coordinator.handle_add_partitions(now_ms, id, add, ticket))
}

fn admitted(answer: Result<Result<(), ResponseError>, ResponseError>) -> Result<Admission, LogError> {
    answer.and_then(|answer| answer).map(|()| Admission::Confirmed).map_err(refusal)
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
