//! Batches that must not be taken before their transaction's coordinator was asked: each waits with all that its producer
//! sends to the same partition after it, so that these do not pass it; others go on.
//!
//! An answer counts for what was asked: if a marker of the producer was appended to the partition meanwhile, the
//! transaction that the coordinator spoke of may be over, and it is asked again; so it is if the partition was led by
//! another node meanwhile, which may have appended a marker. Otherwise a batch that was let in before
//! an abort could be appended behind it, and nobody would ever end what it begins (KAFKA-14884).
//!
//! What waits lies in its request's memory, which has a budget of its own. After [`ADMISSION_WAIT_MAX`] it is refused.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque, hash_map::Entry},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};

use super::{
    Store,
    append::{Appended, Taken},
};
use crate::{
    api::{Acks, LogError, ProducePartition, TopicPartition},
    batch::{AppendOrigin, BatchInfo},
    io::{Io, Share},
    partition::{PartitionCell, Terms, producers::Begins, transacting::Standing, transactions::Confirming},
    signal::Outcome,
    transactions::{
        ADMISSION_WAIT_MAX, Adds, Admission, LocalFuture, Marker, Question, TransactionGate, TransactionalProducer,
    },
};

/// Batches of one producer that wait for one partition, at most: a client has five requests under way.
const HELD_MAX: usize = 64;

type Key = (TopicPartition, i64);

/// See the module.
#[derive(Default)]
pub(super) struct Held {
    gate: RefCell<Option<Rc<dyn TransactionGate>>>,
    queues: RefCell<HashMap<Key, Queue>>,
}

/// What waits for one partition of one producer; empty only while it is worked through, or an answer is awaited that nobody wants
/// any more.
#[derive(Default)]
struct Queue {
    batches: VecDeque<HeldBatch>,
    /// A marker was appended, or leadership ended, since the coordinator was asked.
    is_outdated: bool,
}

struct HeldBatch {
    cell: Rc<PartitionCell>,
    bytes: Bytes,
    info: BatchInfo,
    terms: Terms,
    producer: TransactionalProducer,
    /// By the clock of [`Io::elapsed`].
    refused_at: Duration,
    outcome: Rc<Outcome<Appended>>,
}

impl Held {
    /// Who is asked from here on.
    pub(super) fn set_gate(&self, gate: Rc<dyn TransactionGate>) {
        self.gate.replace(Some(gate));
    }

    /// A marker of the producer was appended.
    pub(super) fn outdate(&self, id: TopicPartition, producer_id: i64) {
        if let Some(queue) = self.queues.borrow_mut().get_mut(&(id, producer_id)) {
            queue.is_outdated = true;
        }
    }

    /// A partition is not led here any more: nobody's batch for it comes in, whatever a coordinator answers. What comes after
    /// that asks anew.
    pub(super) fn refuse_for(&self, id: TopicPartition) {
        let mut refused = Vec::new();
        for (_, queue) in self.queues.borrow_mut().iter_mut().filter(|((held, _), _)| *held == id) {
            queue.is_outdated = true;
            refused.extend(queue.batches.drain(..));
        }
        refused.into_iter().for_each(|held| held.outcome.set(Err(LogError::NotLeader)));
    }

    fn holds(&self, key: &Key) -> bool {
        let queues = self.queues.borrow();
        !queues.is_empty() && queues.contains_key(key)
    }

    fn push(&self, key: Key, batch: HeldBatch) -> Result<(), LogError> {
        match self.queues.borrow_mut().entry(key) {
            Entry::Occupied(known) if known.get().batches.len() >= HELD_MAX => {
                Err(LogError::ConcurrentTransactions("too many batches of the producer wait for its coordinator"))
            }
            known => {
                known.or_default().batches.push_back(batch);
                Ok(())
            }
        }
    }

    fn begin_asking(&self, key: &Key) {
        if let Some(queue) = self.queues.borrow_mut().get_mut(key) {
            queue.is_outdated = false;
        }
    }

    fn is_outdated(&self, key: &Key) -> bool {
        self.queues.borrow().get(key).is_some_and(|queue| queue.is_outdated)
    }

    fn pop(&self, key: &Key) -> Option<HeldBatch> {
        self.queues.borrow_mut().get_mut(key)?.batches.pop_front()
    }

    fn front<T>(&self, key: &Key, look: impl FnOnce(&HeldBatch) -> T) -> Option<T> {
        self.queues.borrow().get(key)?.batches.front().map(look)
    }

    fn end(&self, key: &Key) {
        self.queues.borrow_mut().remove(key);
    }
}

impl<I: Io> Store<I> {
    /// Who is asked about transactions from here on.
    pub(crate) fn set_transaction_gate(&self, gate: Rc<dyn TransactionGate>) {
        self.held.set_gate(gate);
    }

    /// Takes one batch of a producer with a transactional id.
    pub(crate) fn append_in_transaction(
        self: &Rc<Self>,
        part: ProducePartition,
        producer: &TransactionalProducer,
        acks: Acks,
    ) -> Taken {
        let begins = if producer.adds == Adds::Add { Begins::AtZero } else { Begins::Anywhere };
        let terms = Terms { origin: AppendOrigin::Client, acks, begins };
        self.take_or_hold(part, producer, terms).unwrap_or_else(|refused| Taken::Now(Err(refused)))
    }

    fn take_or_hold(
        self: &Rc<Self>,
        part: ProducePartition,
        producer: &TransactionalProducer,
        terms: Terms,
    ) -> Result<Taken, LogError> {
        let (cell, info) = self.check_batch(&part, terms)?;
        let key = (part.partition, info.producer_id);
        let is_behind = self.held.holds(&key);
        if !info.is_transactional() || (!is_behind && cell.borrow().standing(&info, terms.begins) == Standing::Decided)
        {
            return self.take_checked(cell, part.batch, info, terms);
        }
        if !is_behind {
            // What would be refused anyway need not come into a transaction.
            cell.borrow().would_take(&info, terms.begins)?;
        }
        let outcome = Rc::<Outcome<Appended>>::default();
        let refused_at = self.io.elapsed() + ADMISSION_WAIT_MAX;
        let held = HeldBatch {
            cell,
            bytes: part.batch,
            info,
            terms,
            producer: producer.clone(),
            refused_at,
            outcome: outcome.clone(),
        };
        self.held.push(key, held)?;
        if !is_behind {
            self.work_off(key);
        }
        Ok(match outcome.get() {
            Some(appended) => Taken::Now(appended),
            None => Taken::Later(outcome),
        })
    }

    /// Takes what waits, in order, up to a batch whose transaction has to be asked for.
    fn work_off(self: &Rc<Self>, key: Key) {
        while let Some((is_decided, question)) = self.held.front(&key, |held| held.question(key.0)) {
            if is_decided {
                let held = self.held.pop(&key).expect("it was looked at");
                self.take_held(held);
                continue;
            }
            match self.ask(&key, question) {
                Some(answer) => self.settle_answer(&key, answer),
                None => return, // a task goes on
            }
        }
        self.held.end(&key);
    }

    /// Asks the coordinator. `None`: it has to be waited for.
    fn ask(self: &Rc<Self>, key: &Key, question: Question) -> Option<Result<Admission, LogError>> {
        let Some(gate) = self.held.gate.borrow().clone() else {
            return Some(Err(LogError::InvalidTxnState("no transaction of the producer is open in the partition")));
        };
        self.held.begin_asking(key);
        let mut answer = gate.ask(question);
        // A coordinator on this shard may answer at once: then its record and the batch share a group.
        if let Poll::Ready(answer) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(answer);
        }
        let (store, key) = (self.clone(), *key);
        self.io.spawn(Share::Serving, async move {
            let left = store.held.front(&key, |held| held.refused_at.saturating_sub(store.io.elapsed()));
            let answer = store.within(answer, left.unwrap_or_default()).await;
            if store.held.is_outdated(&key) && answer.is_ok() {
                return store.work_off(key); // asks again
            }
            store.settle_answer(&key, answer);
            store.work_off(key);
        });
        None
    }

    async fn within<T>(&self, work: LocalFuture<Result<T, LogError>>, time: Duration) -> Result<T, LogError> {
        let slept = pin!(self.io.sleep(time));
        match select(work, slept).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(LogError::ConcurrentTransactions("the transaction's coordinator has not answered")),
        }
    }

    /// An answer for the first batch that waits: if it is no, it counts for all of its transaction.
    fn settle_answer(self: &Rc<Self>, key: &Key, answer: Result<Admission, LogError>) {
        let Some((cell, epoch)) = self.held.front(key, |held| (held.cell.clone(), held.info.producer_epoch)) else {
            return;
        };
        let admitted = answer.and_then(|admission| {
            let confirming = match admission {
                Admission::Confirmed => None,
                Admission::Pending(confirmed) => Some(self.await_confirmation(&cell, key.1, confirmed)),
            };
            cell.borrow_mut().admit(key.1, epoch, confirming)
        });
        let Err(error) = admitted else { return };
        while self.held.front(key, |held| held.info.producer_epoch == epoch) == Some(true) {
            let held = self.held.pop(key).expect("it was looked at");
            held.outcome.set(Err(error.clone()));
        }
    }

    /// Batches are taken meanwhile, and acknowledged once the outcome is set.
    fn await_confirmation(
        self: &Rc<Self>,
        cell: &Rc<PartitionCell>,
        producer_id: i64,
        confirmed: LocalFuture<Result<(), LogError>>,
    ) -> Confirming {
        let confirming = Confirming::default();
        let (store, cell, outcome) = (self.clone(), cell.clone(), confirming.clone());
        self.io.spawn(Share::Serving, async move {
            let result = store.within(confirmed, ADMISSION_WAIT_MAX).await;
            cell.borrow_mut().settle_admission(producer_id, &outcome, &result);
            outcome.set(result);
        });
        confirming
    }

    fn take_held(self: &Rc<Self>, held: HeldBatch) {
        let HeldBatch { cell, bytes, info, terms, outcome, .. } = held;
        match self.take_checked(cell, bytes, info, terms) {
            Ok(Taken::Now(appended)) => outcome.set(appended),
            Ok(Taken::Later(later)) => {
                self.io.spawn(Share::Serving, async move { outcome.set(later.wait().await) });
            }
            Err(error) => outcome.set(Err(error)),
        }
    }

    /// Refuses what waits: the node is stopping.
    pub(super) fn refuse_held(&self) {
        for (_, queue) in self.held.queues.take() {
            for held in queue.batches {
                held.outcome.set(Err(LogError::ShuttingDown));
            }
        }
    }

    /// A coordinator lets a producer write to a partition, and has that on stable storage.
    pub(crate) fn let_in(&self, id: TopicPartition, producer_id: i64, producer_epoch: i16) -> Result<(), LogError> {
        self.check_transactions_in_use()?;
        self.partition(id)?.borrow_mut().admit(producer_id, producer_epoch, None)
    }

    /// The catalog says durably that there may be transactions.
    pub(crate) fn use_transactions(&self) {
        self.transactions_in_use.set(true);
    }

    /// What is of a transaction may be written once the catalog says so, for binaries that know of none.
    pub(crate) fn check_transactions_in_use(&self) -> Result<(), LogError> {
        match self.transactions_in_use.get() {
            true => Ok(()),
            false => Err(LogError::InvalidTxnState("transactions are not in use on this node")),
        }
    }

    /// Whether a marker is the last one of its producer in its partition.
    pub(crate) fn has_marker(&self, marker: &Marker) -> bool {
        self.partition(marker.partition).is_ok_and(|cell| cell.borrow().has_marker(marker))
    }

    /// Transactions that are open in partitions of this shard.
    pub(crate) fn open_transactions(&self) -> Vec<crate::transactions::OpenTransaction> {
        self.partitions
            .borrow()
            .values()
            .flat_map(|cell| cell.borrow().open_transactions().collect::<Vec<_>>())
            .collect()
    }
}

impl HeldBatch {
    /// Whether it can be decided on now, and what to ask otherwise.
    fn question(&self, partition: TopicPartition) -> (bool, Question) {
        let is_decided = self.cell.borrow().standing(&self.info, self.terms.begins) == Standing::Decided;
        let question = Question {
            partition,
            producer_id: self.info.producer_id,
            producer_epoch: self.info.producer_epoch,
            producer: self.producer.clone(),
        };
        (is_decided, question)
    }
}
