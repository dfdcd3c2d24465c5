//! Whom the stores of a shard ask about transactions: as the shell's gate, with letters that take time.

use std::{
    future::{Future, ready},
    rc::Rc,
};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{LogError, TopicPartition},
    transactions::{Admission, LocalFuture, Question, TransactionGate},
};

use super::{DATA_TOPIC, Without, coordinated, life::Life};
use crate::coordinator::{
    runtime::{Promise, Ticket},
    transaction::{
        AddPartitions, Coordinator, PartitionName, Producer, Progress,
        shell::{LetIn, admission, let_in_beside},
    },
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

async fn ask_here(life: Rc<Life>, coordinated: TopicPartition, question: Question) -> Result<Admission, LogError> {
    let (progress, answered) = begin_to_add(&life, coordinated, &question);
    let let_in = let_in_beside(ready(progress), answered).await;
    admit(&life, let_in)
}

async fn ask_there(life: Rc<Life>, coordinated: TopicPartition, question: Question) -> Result<Admission, LogError> {
    life.letter().await;
    let (progress, answered) = begin_to_add(&life, coordinated, &question);
    let begun = async {
        life.letter().await;
        progress
    };
    let there = Rc::clone(&life);
    let answered = async move {
        let answer = answered.await;
        there.letter().await;
        answer
    };
    let let_in = let_in_beside(begun, answered).await;
    admit(&life, let_in)
}

/// Has a coordinator take the partition of a batch in.
fn begin_to_add(
    life: &Rc<Life>,
    coordinated: TopicPartition,
    question: &Question,
) -> (Option<Progress>, impl Future<Output = Result<(), ResponseError>> + use<>) {
    let producer = Producer { id: question.producer_id, epoch: question.producer_epoch };
    let name = (Rc::from(DATA_TOPIC), question.partition.partition);
    life.begin_to_add(coordinated, &question.producer.transactional_id, producer, name)
}

/// The batch may be written beside the record.
fn admit(life: &Life, let_in: Option<Result<LetIn, ResponseError>>) -> Result<Admission, LogError> {
    let let_in = let_in.unwrap_or(Err(ResponseError::CoordinatorNotAvailable));
    match (admission(let_in)?, life.world.without) {
        (Admission::Pending(_), Without::RecordBeforeAnswer) => Ok(Admission::Confirmed),
        (admission, _) => Ok(admission),
    }
}

impl Life {
    /// Has a coordinator take a partition in: how far that has come, if it serves, and what it will answer.
    pub(super) fn begin_to_add(
        self: &Rc<Self>,
        coordinated: TopicPartition,
        id: &str,
        producer: Producer,
        name: PartitionName,
    ) -> (Option<Progress>, impl Future<Output = Result<(), ResponseError>> + use<>) {
        let add = AddPartitions { producer, partitions: [name].into(), client_version: 2 };
        let added = Promise::new();
        let ticket = Ticket::of(Rc::clone(&added));
        let progress = self.with(coordinated, |machine: &mut Coordinator, now_ms| {
            machine.handle_add_partitions(now_ms, id, add, ticket)
        });
        (progress, async move { added.take().await.and_then(|answer| answer) })
    }
}
