//! Whom the stores of a shard ask about transactions: as the shell's gate, with letters that take time.

use std::rc::Rc;

use futures_util::FutureExt;
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{LogError, TopicPartition},
    transactions::{Admission, LocalFuture, Question, TransactionGate},
};

use super::{DATA_TOPIC, Without, coordinated, life::Life};
use crate::coordinator::{
    runtime::{Promise, Ticket},
    transaction::{AddPartitions, Coordinator, Producer, Progress},
};

/// See the module.
pub(super) struct Asked {
    pub(super) life: Rc<Life>,
    pub(super) shard: usize,
}

impl TransactionGate for Asked {
    fn ask(&self, question: Question) -> LocalFuture<Result<Admission, LogError>> {
        let life = Rc::clone(&self.life);
        let id = question.producer.transactional_id.strip_prefix("id-").and_then(|id| id.parse().ok());
        let coordinated = coordinated(id.expect("an id of the model"));
        if life.shards.owner(coordinated) == self.shard {
            return Box::pin(ask_here(life, coordinated, question));
        }
        // a task of its own: time goes by for who is woken by it only
        let promise = Promise::new();
        let kept = Rc::clone(&promise);
        self.life.shards.spawn(async move { kept.keep(ask_there(life, coordinated, question).await) });
        Box::pin(async move { promise.take().await })
    }
}

type Added = Rc<Promise<Result<Result<(), ResponseError>, ResponseError>>>;

/// Has a coordinator take a partition in.
fn add(life: &Rc<Life>, coordinated: TopicPartition, question: &Question) -> (Option<Progress>, Added) {
    let add = AddPartitions {
        producer: Producer { id: question.producer_id, epoch: question.producer_epoch },
        partitions: [(Rc::from(DATA_TOPIC), question.partition.partition)].into(),
        client_version: 2,
    };
    let added: Added = Promise::new();
    let ticket = Ticket::of(Rc::clone(&added));
    let id = &question.producer.transactional_id;
    let progress = life
        .with(coordinated, |machine: &mut Coordinator, now_ms| machine.handle_add_partitions(now_ms, id, add, ticket));
    (progress, added)
}

async fn ask_here(life: Rc<Life>, coordinated: TopicPartition, question: Question) -> Result<Admission, LogError> {
    let (progress, added) = add(&life, coordinated, &question);
    let mut answered = Box::pin(answer(Rc::clone(&life), added, true));
    match ((&mut answered).now_or_never(), progress) {
        (None, Some(Progress::Begun)) => Ok(begun(&life, answered)),
        (Some(answer), _) => answer.map(|()| Admission::Confirmed),
        (None, Some(Progress::Waits) | None) => answered.await.map(|()| Admission::Confirmed),
    }
}

async fn ask_there(life: Rc<Life>, coordinated: TopicPartition, question: Question) -> Result<Admission, LogError> {
    life.letter().await;
    let (progress, added) = add(&life, coordinated, &question);
    let answered = Box::pin(answer(Rc::clone(&life), added, false));
    life.letter().await;
    match progress {
        Some(Progress::Begun) => Ok(begun(&life, answered)),
        Some(Progress::Waits) | None => answered.await.map(|()| Admission::Confirmed),
    }
}

/// The batch may be written beside the record.
fn begun(life: &Life, answered: LocalFuture<Result<(), LogError>>) -> Admission {
    match life.world.without == Without::RecordBeforeAnswer {
        true => Admission::Confirmed,
        false => Admission::Pending(answered),
    }
}

async fn answer(life: Rc<Life>, added: Added, is_here: bool) -> Result<(), LogError> {
    let answer = added.take().await;
    if !is_here {
        life.letter().await;
    }
    answer.and_then(|answer| answer).map_err(|_| LogError::TransactionCoordinatorNotAvailable)
}
