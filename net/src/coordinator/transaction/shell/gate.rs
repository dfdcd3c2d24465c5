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
            let asked = Producer { id: producer_id, epoch: producer_epoch };
            match let_in(&engine, &producer.transactional_id, asked, name, producer.adds).await {
                Ok(None) => Ok(Admission::Confirmed),
                Ok(Some(confirmed)) => {
                    Ok(Admission::Pending(Box::pin(confirmed.map(|answer| answer.map_err(refusal)))))
                }
                Err(error) => Err(refusal(error)),
            }
        })
    }
}

/// Asks the coordinator for a partition to be in a producer's transaction. The record that says so is on stable storage when
/// this resolves, or, on a node that is alone, has its place in a log, and is there when what it gives resolves: what is
/// written for the transaction meanwhile must not be acknowledged before.
pub(super) async fn let_in(
    engine: &Engine,
    id: &str,
    producer: Producer,
    name: (String, i32),
    adds: Adds,
) -> Result<Option<LocalFuture<Result<(), ResponseError>>>, ResponseError> {
    // replicas of the record and of what is written confirm for themselves: in a cluster the record comes first
    if adds == Adds::Add
        && engine.attached::<OtherBrokers>().is_none()
        && let Some((begun, answered)) = begin_to_add(engine, id, producer, &name)
        && let Some(progress) = begun.await
    {
        let mut answered = Box::pin(answered);
        return match ((&mut answered).now_or_never(), progress) {
            (Some(answer), _) => answer.map(|()| None),
            // what is written goes beside the record, on its shard into the group that has it
            (None, Progress::Begun) => Ok(Some(answered)),
            (None, Progress::Waits) => answered.await.map(|()| None),
        };
    }
    verify_or_add(engine, id, producer, vec![name], adds).await.map(|()| None)
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
