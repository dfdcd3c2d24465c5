//! Who the owners of partitions ask whether a producer's transaction includes them.

use std::{future::Future, rc::Rc};

use futures_util::FutureExt;
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::LogError,
    engine::Engine,
    transactions::{Adds, Admission, LocalFuture, Question, TransactionGate},
};

use super::{Transactions, verify_or_add};
use crate::{
    client::OtherBrokers,
    coordinator::transaction::{AddPartitions, Producer, Progress, metadata::EPOCH_BUMP_VERSION},
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
                && let Some((begun, answered)) = begin_to_add(&engine, id, asked, &name)
                && let Some(progress) = begun.await
            {
                let mut answered = Box::pin(answered);
                return match ((&mut answered).now_or_never(), progress) {
                    (Some(answer), _) => admitted(answer),
                    // the batch is written beside the record, on this shard in the group that has it
                    (None, Progress::Begun) => {
                        Ok(Admission::Pending(Box::pin(answered.map(|answer| answer.map_err(refusal)))))
                    }
                    (None, Progress::Waits) => admitted(answered.await),
                };
            }
            admitted(verify_or_add(&engine, id, asked, vec![name], producer.adds).await)
        })
    }
}

/// Begins to add a partition where its coordinator is, if the topic of those is there. Says first how far that has come, if
/// the coordinator serves: then its record has its place in a log. What it has to say to this shard later comes after that.
fn begin_to_add(
    engine: &Engine,
    id: &str,
    producer: Producer,
    (topic, index): &(String, i32),
) -> Option<(impl Future<Output = Option<Progress>> + use<>, impl Future<Output = Result<(), ResponseError>> + use<>)> {
    let coordinated = Transactions::place(engine, id)?;
    let (id, topic, index) = (id.to_owned(), topic.clone(), *index);
    Some(engine.begin_on_shard(engine.owner(coordinated), move |engine| {
        let add = AddPartitions {
            producer,
            partitions: [(Rc::from(topic), index)].into(),
            client_version: EPOCH_BUMP_VERSION,
        };
        let begun = engine.attached::<Transactions>().and_then(|transactions| {
            transactions.begin(coordinated, |coordinator, now_ms, ticket| {
                coordinator.handle_add_partitions(now_ms, &id, add, ticket)
            })
        });
        let (progress, answered) = begun.unzip();
        let answer = async move {
            match answered {
                Some(answered) => answered.take().await.and_then(|answer| answer),
                None => Err(ResponseError::CoordinatorLoadInProgress),
            }
        };
        (progress, answer)
    }))
}

fn admitted(answer: Result<(), ResponseError>) -> Result<Admission, LogError> {
    answer.map(|()| Admission::Confirmed).map_err(refusal)
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
