//! Lets a partition into a producer's transaction before something is written there for it.

use std::{future::Future, rc::Rc};

use futures_util::FutureExt;
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    engine::Engine,
    transactions::{Adds, LocalFuture},
};

use super::{Transactions, reconcile::look_soon, verify_or_add};
use crate::{
    client::OtherBrokers,
    coordinator::transaction::{AddPartitions, Producer, Progress, metadata::EPOCH_BUMP_VERSION},
};

/// When what is written for a transaction counts.
pub(crate) enum LetIn {
    /// The record that includes the partition is on stable storage.
    Confirmed,
    /// It has its place in a log: what is written beside it must not be acknowledged before this resolves.
    Beside(LocalFuture<Result<(), ResponseError>>),
}

/// Asks the coordinator for a partition to be in a producer's transaction. In a cluster replicas of the record and of what is
/// written confirm for themselves: there the record comes first.
pub(super) async fn let_in(
    engine: &Engine,
    id: &str,
    producer: Producer,
    name: (String, i32),
    adds: Adds,
) -> Result<LetIn, ResponseError> {
    if adds == Adds::Add
        && engine.attached::<OtherBrokers>().is_none()
        && let Some((begun, answered)) = begin_to_add(engine, id, producer, &name)
        && let Some(let_in) = let_in_beside(begun, answered).await
    {
        return let_in.map(|let_in| report_loss(engine, let_in));
    }
    verify_or_add(engine, id, producer, vec![name], adds).await.map(|()| LetIn::Confirmed)
}

/// What is written beside a record that is lost is open and nobody's. So it may be where nobody waits any more to hear of that,
/// because it took too long.
pub(super) fn report_loss(engine: &Engine, let_in: LetIn) -> LetIn {
    match let_in {
        LetIn::Confirmed => LetIn::Confirmed,
        LetIn::Beside(confirmed) => {
            let unless_confirmed = LookSoon { engine: Some(engine.clone()) };
            LetIn::Beside(Box::pin(confirmed.inspect(move |answer| unless_confirmed.hear(*answer))))
        }
    }
}

/// Has what is open looked at when it is dropped; the start of the next life does, if this one is about to end.
struct LookSoon {
    engine: Option<Engine>,
}

impl LookSoon {
    fn hear(mut self, answer: Result<(), ResponseError>) {
        if answer.is_ok() {
            self.engine = None;
        }
    }
}

impl Drop for LookSoon {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.as_ref().filter(|engine| !engine.is_stopping()) {
            look_soon(engine);
        }
    }
}

/// What a coordinator that has begun to add a partition lets be written, given how far it has come and what it will answer.
/// `None`: it does not serve.
pub(crate) async fn let_in_beside(
    begun: impl Future<Output = Option<Progress>>,
    answered: impl Future<Output = Result<(), ResponseError>> + 'static,
) -> Option<Result<LetIn, ResponseError>> {
    let progress = begun.await?;
    let mut answered = Box::pin(answered);
    Some(match ((&mut answered).now_or_never(), progress) {
        (Some(answer), _) => answer.map(|()| LetIn::Confirmed),
        // what is written goes beside the record, on its shard into the group that has it
        (None, Progress::Begun) => Ok(LetIn::Beside(answered)),
        (None, Progress::Waits) => answered.await.map(|()| LetIn::Confirmed),
    })
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
