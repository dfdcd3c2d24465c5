//! Clients of the model: each does transactions one after the other under its id, of batches and of offsets of its group. Its
//! node may go meanwhile, and it may outlive that; or it stands still, and another process of its id takes its place.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        GroupId, OffsetCommitRequest, OffsetCommitResponse, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    },
    protocol::StrBytes,
};
use millrace_engine::{
    api::{LogError, ProducePartition},
    batch::{BatchBuilder, Codec, Record},
    transactions::{Adds, Outcome, TransactionalProducer},
};

use super::{
    DATA, INPUT_TOPIC, Sent,
    checks::end_of,
    coordinated, data, group_of,
    life::{Life, TIMEOUT_MS},
};
use crate::coordinator::{
    group::{OFFSETS_TOPIC, Stability, TransactionGuard, caller::Caller, coordinator::Coordinator as Groups},
    transaction::{
        Coordinator, EndTransaction, InitProducerId, Producer,
        shell::{CommitSteps, LetIn, commit_by, let_in_beside},
    },
};

/// By when a transaction is aborted that was begun before.
const TOO_LONG: Duration = Duration::from_secs(12);
/// How often an end is asked for.
const ENDS_MAX: usize = 4;

/// Whether a client goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Another,
    /// It does not come back, and leaves its transaction open.
    Gone,
}

impl Life {
    pub(super) async fn run_client(self: &Rc<Self>, id: usize, rounds: usize) {
        if self.world.chance.one_in(2) {
            self.forget(id); // another process takes its place
        }
        for _ in 0..rounds {
            let Some(producer) = self.producer(id).await else { continue };
            if self.transact(id, producer).await == Next::Gone {
                return;
            }
        }
    }

    fn forget(&self, id: usize) {
        self.world.clients[id].set(None);
    }

    /// The producer that a client has, or begins with.
    pub(super) async fn producer(self: &Rc<Self>, id: usize) -> Option<Producer> {
        if let Some(known) = self.world.clients[id].get() {
            return Some(known);
        }
        let init = InitProducerId { timeout_ms: TIMEOUT_MS, expected: None };
        let name = format!("id-{id}");
        let begun = self.ask(coordinated(id), |machine: &mut Coordinator, now_ms, ticket| {
            machine.handle_init_producer_id(now_ms, &name, init, ticket);
        });
        let producer = begun.await.and_then(|answer| answer).ok()?;
        self.world.clients[id].set(Some(producer));
        Some(producer)
    }

    async fn transact(self: &Rc<Self>, id: usize, producer: Producer) -> Next {
        let (chance, mood) = (&self.world.chance, self.world.mood);
        let Sent { begun, mut answered, asked, .. } = self.world.with_sent(producer, |sent| sent.clone());
        if let Some(outcome) = asked {
            // its answer was lost with the node
            self.end_and_go_on(id, producer, outcome).await;
            return Next::Another;
        }
        if answered < begun && chance.one_in(2) {
            answered = self.send_again(id, producer).await;
        }
        // one that has outlived its node may have written all that it wanted to
        let has_done = begun > 0 && chance.one_in(2);
        let mut is_whole = begun == answered && (has_done || self.write_some(id, producer).await);
        if is_whole && chance.one_in(mood.stands) {
            self.stand_still().await;
            is_whole = self.write_some(id, producer).await;
        }
        if chance.one_in(12) {
            self.forget(id);
            return Next::Gone;
        }
        if is_whole && chance.one_in(mood.hastes) {
            self.write_in_haste(id, producer);
            self.letter().await;
            self.letter().await;
        }
        let has_written = self.world.with_sent(producer, |sent| !sent.partitions.is_empty());
        let outcome = match is_whole && has_written && !chance.one_in(3) {
            true => Outcome::Commit,
            false => Outcome::Abort,
        };
        if chance.one_in(mood.stands) {
            self.forget(id);
            let life = Rc::clone(self);
            self.shards.spawn(async move {
                life.stand_still().await;
                life.end(id, producer, outcome).await;
            });
            return Next::Another;
        }
        self.end_and_go_on(id, producer, outcome).await;
        Next::Another
    }

    /// For so long that it is taken for gone, or shorter, or so short that nobody notices.
    async fn stand_still(&self) {
        match self.world.chance.below(4) {
            0 => {}
            1 => self.shards.sleep(Duration::from_micros(self.world.chance.below(3_000))).await,
            _ => self.shards.sleep(TOO_LONG).await,
        }
    }

    async fn end_and_go_on(self: &Rc<Self>, id: usize, producer: Producer, outcome: Outcome) {
        let next = self.end(id, producer, outcome).await;
        self.world.clients[id].set(next);
    }

    /// The producer of the next transaction; `None`: it was refused, or nobody knows.
    pub(super) async fn end(self: &Rc<Self>, id: usize, producer: Producer, outcome: Outcome) -> Option<Producer> {
        self.world.with_sent(producer, |sent| sent.asked = Some(outcome));
        let end = EndTransaction { producer, outcome, client_version: 2 };
        for _ in 0..ENDS_MAX {
            let name = format!("id-{id}");
            let ended = self.ask(coordinated(id), |machine: &mut Coordinator, now_ms, ticket| {
                machine.handle_end(now_ms, &name, end, ticket);
            });
            match ended.await.and_then(|answer| answer) {
                Ok(next) => {
                    self.world.with_sent(producer, |sent| sent.is_answered = true);
                    if outcome == Outcome::Commit && self.world.chance.one_in(2) {
                        self.check_marked(producer).await;
                    }
                    return Some(next);
                }
                // it may go meanwhile, and another process begin anew
                Err(ResponseError::NotCoordinator | ResponseError::ConcurrentTransactions)
                    if !self.world.chance.one_in(3) =>
                {
                    self.letter().await;
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// What was answered as committed has its markers.
    async fn check_marked(&self, producer: Producer) {
        for partition in self.world.with_sent(producer, |sent| sent.partitions.clone()) {
            let is_end = |(info, bytes): &(_, Bytes)| {
                let info: &millrace_engine::batch::BatchInfo = info;
                (info.producer_id, info.producer_epoch) == (producer.id, producer.epoch + 1)
                    && end_of(info, bytes) == Some(Outcome::Commit)
            };
            let batches = self.shards.all_batches(partition).await;
            assert!(batches.iter().any(is_end), "{producer:?} was answered as committed before {partition:?} knew");
        }
    }

    /// Batches for some partitions, and perhaps an offset. Answers whether all of it was acknowledged.
    async fn write_some(self: &Rc<Self>, id: usize, producer: Producer) -> bool {
        let chance = &self.world.chance;
        let chosen: Vec<i32> = (0..DATA).filter(|_| chance.one_in(self.world.mood.writes)).collect();
        let writing = chosen.iter().map(|partition| self.write(id, producer, *partition));
        let committing = async { !chance.one_in(2) || self.commit_offset(id, producer).await.is_ok() };
        let (written, is_committed) = join(join_all(writing), committing).await;
        is_committed && written.into_iter().all(|written| written.is_ok())
    }

    /// A batch that its client does not wait for.
    fn write_in_haste(self: &Rc<Self>, id: usize, producer: Producer) {
        self.world.with_sent(producer, |sent| sent.is_hasty = true);
        let index = i32::try_from(self.world.chance.below(DATA.unsigned_abs().into())).expect("a few partitions");
        let life = Rc::clone(self);
        // it may be refused
        self.shards.spawn(async move { drop(life.write(id, producer, index).await) });
    }

    pub(super) async fn write(&self, id: usize, producer: Producer, index: i32) -> Result<(), LogError> {
        for _ in 0..=u64::from(self.world.chance.one_in(3)) {
            let sequence = self.world.with_sent(producer, |sent| {
                sent.begun += 1;
                let next = sent.sequences.entry(index).or_default();
                sent.unanswered.insert((index, *next));
                std::mem::replace(next, *next + 1)
            });
            self.send(id, producer, (index, sequence)).await?;
        }
        Ok(())
    }

    /// One batch, with that sequence.
    async fn send(&self, id: usize, producer: Producer, (index, sequence): (i32, i32)) -> Result<(), LogError> {
        let name = Arc::from(format!("id-{id}"));
        let transactional = TransactionalProducer { transactional_id: name, adds: Adds::Add };
        self.letter().await;
        let part = ProducePartition { partition: data(index), batch: batch(producer, sequence) };
        let produced = self.shards.produce(part, &transactional).await?;
        self.world.with_sent(producer, |sent| {
            sent.answered += usize::from(sent.unanswered.remove(&(index, sequence)));
            sent.partitions.insert(data(index));
            sent.acked.insert((data(index), produced.base_offset));
        });
        Ok(())
    }

    /// The batches whose answers were lost with the node. Answers how much is answered then.
    async fn send_again(&self, id: usize, producer: Producer) -> usize {
        let unanswered = self.world.with_sent(producer, |sent| sent.unanswered.clone());
        for batch in unanswered {
            if self.send(id, producer, batch).await.is_err() {
                break;
            }
        }
        self.world.with_sent(producer, |sent| sent.answered)
    }

    /// TxnOffsetCommit, as its handler carries it out.
    pub(super) async fn commit_offset(self: &Rc<Self>, id: usize, producer: Producer) -> Result<(), ResponseError> {
        let offset = self.world.next_offset.replace(self.world.next_offset.get() + 1);
        self.world.with_sent(producer, |sent| sent.begun += 1);
        let committed = commit_by(&OffsetOfClient { life: self, id, producer, offset }).await?;
        match ResponseError::try_from_code(committed.topics[0].partitions[0].error_code) {
            Some(error) => Err(error),
            None => {
                self.world.with_sent(producer, |sent| {
                    sent.answered += 1;
                    sent.offsets.insert(offset);
                    sent.partitions.insert(group_of(id));
                });
                Ok(())
            }
        }
    }

    /// What an id's group has committed.
    pub(super) async fn committed_offset(self: &Rc<Self>, id: usize) -> Option<i64> {
        let topic = OffsetFetchRequestTopics::default().with_name(topic(INPUT_TOPIC)).with_partition_indexes(vec![0]);
        let request = OffsetFetchRequestGroup::default().with_group_id(group(id)).with_topics(Some(vec![topic]));
        let told = self.ask(group_of(id), |machine: &mut Groups, _, ticket| {
            machine.handle_offset_fetch(request, Stability::Any, ticket);
        });
        let told = told.await.expect("it is loaded");
        assert_eq!(told.error_code, 0);
        let offset = told.topics[0].partitions[0].committed_offset;
        (offset >= 0).then_some(offset)
    }
}

/// An offset that a client commits, with letters that take time.
pub(super) struct OffsetOfClient<'a> {
    pub(super) life: &'a Rc<Life>,
    pub(super) id: usize,
    pub(super) producer: Producer,
    pub(super) offset: i64,
}

impl CommitSteps for OffsetOfClient<'_> {
    async fn guard(&self) -> Result<TransactionGuard, ResponseError> {
        let (producer, unique) = (self.producer.id, format!("request {}", self.offset));
        let guard = self.life.ask(group_of(self.id), |machine: &mut Groups, _, ticket| {
            machine.handle_guard(producer, unique, ticket);
        });
        guard.await?
    }

    async fn let_in(&self) -> Result<LetIn, ResponseError> {
        let (life, coordinated) = (self.life, coordinated(self.id));
        life.letter().await;
        life.ready::<Coordinator>(coordinated).await?;
        let name = (Rc::from(OFFSETS_TOPIC), group_of(self.id).partition);
        let (progress, answered) = life.begin_to_add(coordinated, &format!("id-{}", self.id), self.producer, name);
        let begun = async {
            life.letter().await;
            progress
        };
        let_in_beside(begun, answered).await.unwrap_or(Err(ResponseError::NotCoordinator))
    }

    async fn give_back(&self, guard: TransactionGuard) {
        let given = self.life.ask(group_of(self.id), |machine: &mut Groups, _, ticket| {
            machine.handle_guard_given_back(&guard, ticket);
        });
        let _: Result<Result<(), ResponseError>, ResponseError> = given.await;
    }

    async fn write(&self, guard: &TransactionGuard) -> Result<OffsetCommitResponse, ResponseError> {
        let (request, producer) = (offset_commit(self.id, self.offset), (self.producer.id, self.producer.epoch));
        let written = self.life.ask(group_of(self.id), |machine: &mut Groups, now_ms, ticket| {
            let caller = Caller { version: 5, ..Caller::default() };
            machine.handle_txn_offset_commit(now_ms, &caller, (producer, guard), &request, ticket);
        });
        written.await
    }
}

fn group(id: usize) -> GroupId {
    GroupId(StrBytes::from_string(format!("group-{id}")))
}

fn topic(name: &'static str) -> TopicName {
    TopicName(StrBytes::from_static_str(name))
}

fn offset_commit(id: usize, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let topic = OffsetCommitRequestTopic::default().with_name(topic(INPUT_TOPIC)).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group(id))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

fn batch(producer: Producer, sequence: i32) -> Bytes {
    let mut batch = BatchBuilder::new(Codec::None, 0).producer(producer.id, producer.epoch, sequence).transactional();
    let value = Some(Bytes::from_static(b"value"));
    batch.push(&Record { offset: 0, timestamp: 1_700_000_000_000, key: None, value, headers: vec![] });
    batch.finish().into()
}
