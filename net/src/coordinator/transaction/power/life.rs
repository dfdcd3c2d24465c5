//! One life of the model's node: what the shell does around the coordinators' machines, and clients that use them.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{LogError, ProducePartition, TopicPartition},
    batch::{BatchBuilder, Codec, Record, records},
    simulated::{Machine, Shards},
    transactions::{
        Adds, Admission, LocalFuture, Marker, OpenTransaction, Outcome, Question, TransactionGate,
        TransactionalProducer,
    },
};

use super::{DATA, DATA_TOPIC, STATES, Without, World, all_partitions, coordinated, data, state};
use crate::{
    coordinator::{
        runtime::{
            Actions, AppendFailure, Entrance, Gate, Key, Load, Machine as _, Promise, Replayed, Run, Slots, Ticket,
            append_atomically, runs,
        },
        transaction::{
            AddPartitions, Coordinator, EndTransaction, Errand, InitProducerId, Marked, Marking, PartitionName, Place,
            Producer, Progress, Settings, Surroundings, shell::abort_marker,
        },
    },
    errors::log_error,
};

const TIMEOUT_MS: i32 = 60_000;
/// The epoch in which the node leads all that there is.
const LEADER_EPOCH: i32 = 0;
/// How late markers are that nobody waits for.
const LATE: Duration = Duration::from_millis(50);
/// Longer than anything takes that is under way.
const REST: Duration = Duration::from_millis(400);

/// A shard's partitions as its coordinators see them.
struct Around {
    shards: Rc<Shards>,
    shard: usize,
}

impl Surroundings for Around {
    fn place(&self, (topic, index): &PartitionName) -> Place {
        assert_eq!(&**topic, DATA_TOPIC);
        let partition = data(*index);
        match self.shards.owner(partition) == self.shard {
            true => Place::Here(partition),
            false => Place::Elsewhere(partition),
        }
    }

    fn transaction_version(&self) -> i16 {
        2
    }

    fn may_ask_for_markers(&self) -> bool {
        true
    }
}

/// See the module.
pub(super) struct Life {
    pub(super) shards: Rc<Shards>,
    pub(super) world: Rc<World>,
    slots: Vec<RefCell<Slots<Coordinator>>>,
    is_flush_due: Vec<Cell<bool>>,
    /// Markers that were sent.
    sent: RefCell<Vec<Rc<Gate<()>>>>,
}

impl Life {
    pub(super) async fn begin(machine: &Machine, number: u64, world: Rc<World>) -> Rc<Self> {
        let shards = Shards::open(machine, number, world.shards, &all_partitions()).await;
        let life = Rc::new(Self {
            slots: (0..world.shards).map(|_| RefCell::new(Slots::new(Rc::default()))).collect(),
            is_flush_due: (0..world.shards).map(|_| Cell::new(false)).collect(),
            sent: RefCell::default(),
            shards,
            world,
        });
        for shard in 0..life.slots.len() {
            life.shards.set_transaction_gate(shard, Rc::new(Asked { life: Rc::clone(&life), shard }));
            let flushed = Rc::clone(&life);
            life.shards.on_seal(
                shard,
                Rc::new(move || {
                    if flushed.is_flush_due[shard].get() {
                        flushed.flush(shard);
                    }
                }),
            );
            let own = (0..STATES).map(state).filter(|partition| life.shards.owner(*partition) == shard);
            let led: BTreeMap<_, _> = own.map(|partition| (partition, LEADER_EPOCH)).collect();
            life.slots[shard].borrow_mut().reconcile(life.shards.now_ms(), &led);
            life.act(shard);
        }
        for index in 0..STATES {
            life.ready(state(index)).await.expect("it can be loaded");
        }
        if life.world.without != Without::Reconciliation {
            life.reconcile().await;
        }
        life
    }

    /// What is open and nobody's is aborted.
    async fn reconcile(&self) {
        let open = self.shards.open_transactions();
        let claimed: Vec<usize> = self
            .slots
            .iter()
            .flat_map(|slots| {
                let slots = slots.borrow();
                slots.machines().flat_map(|machine| machine.claimed(&open)).collect::<Vec<_>>()
            })
            .collect();
        for (_, open) in open.iter().enumerate().filter(|(at, _)| !claimed.contains(at)) {
            let marker = abort_marker(open);
            assert_eq!(self.write_marker(marker).await, Ok(()));
        }
    }

    /// Nothing is open that no coordinator will end.
    pub(super) fn check_owned(&self) {
        let open = self.shards.open_transactions();
        let is_owned = |at: usize| {
            self.slots.iter().any(|slots| slots.borrow().machines().any(|machine| machine.claimed(&open).contains(&at)))
        };
        for (at, open) in open.iter().enumerate() {
            assert!(is_owned(at), "nobody will end {open:?}");
        }
    }

    pub(super) async fn come_to_rest(&self) {
        self.shards.sleep(REST).await;
        for shard in 0..self.slots.len() {
            self.slots[shard].borrow_mut().handle_timeouts(self.shards.now_ms());
        }
        self.shards.sleep(REST).await;
    }

    /// The time that a letter takes.
    async fn letter(&self) {
        self.shards.sleep(Duration::from_micros(self.world.chance.below(150))).await;
    }

    fn with<R>(self: &Rc<Self>, partition: TopicPartition, work: impl FnOnce(&mut Coordinator, i64) -> R) -> Option<R> {
        let shard = self.shards.owner(partition);
        let now_ms = self.shards.now_ms();
        let result = self.slots[shard].borrow_mut().with(partition, |machine| work(machine, now_ms));
        self.act(shard);
        result
    }

    async fn ready(self: &Rc<Self>, partition: TopicPartition) -> Result<(), ResponseError> {
        let shard = self.shards.owner(partition);
        loop {
            let entrance = self.slots[shard].borrow_mut().enter(self.shards.now_ms(), partition, Some(LEADER_EPOCH));
            self.act(shard);
            match entrance {
                Entrance::Open => return Ok(()),
                Entrance::Closed(gate) => gate.pass().await?,
                Entrance::Refused => return Err(ResponseError::NotCoordinator),
            }
        }
    }

    async fn ask<R: 'static>(
        self: &Rc<Self>,
        partition: TopicPartition,
        work: impl FnOnce(&mut Coordinator, i64, Ticket<R>),
    ) -> Result<R, ResponseError> {
        self.letter().await;
        self.ready(partition).await?;
        let promise = Promise::new();
        let ticket = Ticket::of(Rc::clone(&promise));
        self.with(partition, |machine, now_ms| work(machine, now_ms, ticket));
        let answer = promise.take().await;
        self.letter().await;
        answer
    }

    fn act(self: &Rc<Self>, shard: usize) {
        let Actions { loads, errands, is_dirty, .. } = self.slots[shard].borrow_mut().take_actions();
        if is_dirty && !self.is_flush_due[shard].replace(true) {
            let life = Rc::clone(self);
            self.shards.spawn(async move {
                life.shards.yield_now().await;
                life.flush(shard);
            });
        }
        for load in loads {
            let life = Rc::clone(self);
            self.shards.spawn(async move { life.load(load).await });
        }
        for (partition, errand) in errands {
            self.run_errand(partition, errand);
        }
    }

    async fn load(self: &Rc<Self>, load: Load) {
        let shard = self.shards.owner(load.partition);
        let around = Around { shards: Rc::clone(&self.shards), shard };
        let mut machine = Coordinator::new(Rc::new(Settings::default()), Rc::new(around), Rc::default(), LEADER_EPOCH);
        for (info, bytes) in self.shards.all_batches(load.partition).await {
            assert!(!info.is_control());
            for record in records(&bytes).expect("the log is whole") {
                let (key, value) = (record.key.as_deref().unwrap_or_default(), record.value.as_deref());
                machine
                    .replay(&Replayed { offset: record.offset, producer: None, key, value })
                    .expect("it was written");
            }
        }
        let loaded = Ok::<_, ()>(Box::new(machine));
        self.slots[shard].borrow_mut().on_loaded(self.shards.now_ms(), load, loaded);
        self.act(shard);
    }

    fn flush(self: &Rc<Self>, shard: usize) {
        self.is_flush_due[shard].set(false);
        let appends = self.slots[shard].borrow_mut().take_appends(self.shards.now_ms());
        for run in runs(appends, true) {
            let Run::Atomic { key, parts } = run else { panic!("coordinators of transactions write all at once") };
            let appended = append_atomically(|parts| self.shards.append_atomically(parts), parts);
            let life = Rc::clone(self);
            self.shards.spawn(async move {
                let appended = appended.await;
                life.take_written(shard, key, appended);
            });
        }
    }

    fn take_written(self: &Rc<Self>, shard: usize, (partition, number): Key, appended: Result<i64, LogError>) {
        let result = appended.map_err(|error| AppendFailure::from(&error));
        self.slots[shard].borrow_mut().on_appended(self.shards.now_ms(), partition, number, result);
        self.act(shard);
    }

    fn run_errand(self: &Rc<Self>, partition: TopicPartition, errand: Errand) {
        let life = Rc::clone(self);
        match errand {
            Errand::ProducerId => self.shards.spawn(async move {
                life.letter().await;
                let id = life.world.next_producer_id.replace(life.world.next_producer_id.get() + 1);
                life.with(partition, |machine, now_ms| machine.handle_producer_id(now_ms, Ok(id)));
            }),
            Errand::Admit(partitions, producer) => self.shards.spawn(async move {
                life.letter().await;
                for partition in partitions {
                    // one that is fenced is not let in
                    drop(life.shards.admit(partition, producer.id, producer.epoch));
                }
            }),
            Errand::Mark(marking) => {
                let answered = Gate::new();
                self.sent.borrow_mut().push(Rc::clone(&answered));
                self.shards.spawn(async move {
                    let marked = life.mark(&marking).await;
                    answered.open(());
                    life.with(partition, |machine, now_ms| machine.handle_marked(now_ms, &marking, marked));
                });
            }
            Errand::AskForMarkers(asked) => {
                let before = self.sent.borrow().clone();
                self.shards.spawn(async move {
                    for answered in before {
                        answered.pass().await;
                    }
                    life.letter().await;
                    let has_one = |markers: &[Marker]| markers.iter().any(|marker| life.shards.has_marker(marker));
                    let found = asked.into_iter().map(|(id, markers)| (id, has_one(&markers))).collect();
                    life.letter().await;
                    life.with(partition, |machine, now_ms| machine.handle_markers_found(now_ms, found));
                });
            }
        }
    }

    async fn mark(self: &Rc<Self>, marking: &Marking) -> Marked {
        let open = self.shards.open_transactions();
        let is_wanted = |marker: &Marker| {
            let is_of =
                |open: &OpenTransaction| (open.partition, open.producer_id) == (marker.partition, marker.producer_id);
            !marking.only_where_open || open.iter().any(is_of)
        };
        let writing = marking.markers.iter().map(|(name, marker)| async {
            if !is_wanted(marker) {
                return (name.clone(), Ok(()));
            }
            if self.world.without == Without::DurableMarkers {
                let (life, marker) = (Rc::clone(self), *marker);
                self.shards.spawn(async move {
                    life.shards.sleep(LATE).await;
                    // it may come too late to be taken
                    drop(life.write_marker(marker).await);
                });
                return (name.clone(), Ok(()));
            }
            self.letter().await;
            let result = self.write_marker(*marker).await;
            self.letter().await;
            (name.clone(), result.map_err(|error| log_error(&error)))
        });
        join_all(writing).await
    }

    async fn write_marker(&self, marker: Marker) -> Result<(), LogError> {
        self.shards.write_markers(self.shards.owner(marker.partition), vec![marker]).await.remove(0).map(|_| ())
    }

    /// A client: transactions one after the other, until one is left open.
    pub(super) async fn run_client(self: &Rc<Self>, id: usize, rounds: usize) {
        let name: Rc<str> = Rc::from(format!("id-{id}"));
        let chance = &self.world.chance;
        let init = InitProducerId { timeout_ms: TIMEOUT_MS, expected: None };
        let key = Rc::clone(&name);
        let begun = self.ask(coordinated(id), |machine, now_ms, ticket| {
            machine.handle_init_producer_id(now_ms, &key, init, ticket);
        });
        let Ok(Ok(mut producer)) = begun.await else { return };
        for _ in 0..rounds {
            let chosen: Vec<i32> = (0..DATA).filter(|_| chance.one_in(2)).collect();
            let writing = chosen.iter().map(|partition| self.write(&name, producer, *partition));
            let is_whole = join_all(writing).await.into_iter().all(|written| written.is_ok());
            if chance.one_in(10) {
                return; // its client does not come back
            }
            let outcome =
                if is_whole && !chance.one_in(3) && !chosen.is_empty() { Outcome::Commit } else { Outcome::Abort };
            self.world.with_sent(producer, |sent| sent.asked = Some(outcome));
            let end = EndTransaction { producer, outcome, client_version: 2 };
            let key = Rc::clone(&name);
            let ended = self.ask(coordinated(id), |machine, now_ms, ticket| {
                machine.handle_end(now_ms, &key, end, ticket);
            });
            let Ok(Ok(next)) = ended.await else { return };
            self.world.with_sent(producer, |sent| sent.is_answered = true);
            producer = next;
        }
    }

    async fn write(&self, id: &str, producer: Producer, partition: i32) -> Result<(), LogError> {
        let transactional = TransactionalProducer { transactional_id: Arc::from(id), adds: Adds::Add };
        for sequence in 0..=i32::from(self.world.chance.one_in(3)) {
            self.letter().await;
            let part = ProducePartition { partition: data(partition), batch: batch(producer, sequence) };
            let produced = self.shards.produce(part, &transactional).await?;
            self.world.with_sent(producer, |sent| sent.acked.extend([(partition, produced.base_offset)]));
        }
        Ok(())
    }
}

fn batch(producer: Producer, sequence: i32) -> Bytes {
    let mut batch = BatchBuilder::new(Codec::None, 0).producer(producer.id, producer.epoch, sequence).transactional();
    let value = Some(Bytes::from_static(b"value"));
    batch.push(&Record { offset: 0, timestamp: 1_700_000_000_000, key: None, value, headers: vec![] });
    batch.finish().into()
}

/// Whom the stores of a shard ask about transactions: as the shell's gate, with letters that take time.
struct Asked {
    life: Rc<Life>,
    shard: usize,
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
    let progress = life.with(coordinated, |machine, now_ms| machine.handle_add_partitions(now_ms, id, add, ticket));
    (progress, added)
}

async fn ask_here(life: Rc<Life>, coordinated: TopicPartition, question: Question) -> Result<Admission, LogError> {
    let (progress, added) = add(&life, coordinated, &question);
    let mut answered = Box::pin(answer(life, added, true));
    match ((&mut answered).now_or_never(), progress) {
        (None, Some(Progress::Begun)) => Ok(Admission::Pending(answered)),
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
        Some(Progress::Begun) => Ok(Admission::Pending(answered)),
        Some(Progress::Waits) | None => answered.await.map(|()| Admission::Confirmed),
    }
}

async fn answer(life: Rc<Life>, added: Added, is_here: bool) -> Result<(), LogError> {
    let answer = added.take().await;
    if !is_here {
        life.letter().await;
    }
    answer.and_then(|answer| answer).map_err(|_| LogError::TransactionCoordinatorNotAvailable)
}
