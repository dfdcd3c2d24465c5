//! The engine's calls for transactions: producing in one, letting producers in, ending transactions, and what is open.
//!
//! As elsewhere, the order among calls is fixed when a call returns, not when its future resolves: letters to a shard stay
//! in order, and so do a coordinator's admission, the batch that it lets in and the marker that ends both.

use std::{collections::BTreeMap, future::Future, rc::Rc, time::Duration};

use futures_util::{FutureExt, future::Either, future::join_all};

use crate::{
    api::{AcksWithin, LogError, ProducePartition, Produced, TopicError, TopicPartition},
    engine::{Engine, settle},
    format::{catalog::Record, transactions::FEATURE},
    io::Io,
    store::{Taken, all_ended, each_ended},
    transactions::{
        AtomicAppended, AtomicPart, AtomicRefused, Marker, OpenTransaction, TransactionGate, TransactionalProducer,
    },
};

impl Engine {
    /// Says durably that there may be transactions in this folder, unless that is said already: a version that knows of
    /// none refuses it from then on. Before, nothing of a transaction is taken ([`LogError::InvalidTxnState`]).
    ///
    /// # Errors
    /// If the catalog cannot be written.
    pub async fn use_transactions(&self) -> Result<(), TopicError> {
        if self.0.store.check_transactions_in_use().is_ok() {
            return Ok(());
        }
        self.call(0, |engine: Engine| async move {
            let mut opened = engine.catalog().0.write().await.map_err(|_| crate::topics::closed())?;
            if !opened.state.features.contains(FEATURE) {
                opened.append(&[Record::Feature(FEATURE.to_owned())]).await?;
            }
            engine
                .on_all(|engine: Engine| {
                    engine.0.store.use_transactions();
                    std::future::ready(())
                })
                .await;
            Ok(())
        })
        .await
    }

    /// Who is asked from here on whether a transaction includes a partition of this shard. Without one, only producers that
    /// were let in by [`Engine::admit`] may write for transactions.
    pub fn set_transaction_gate(&self, gate: Rc<dyn TransactionGate>) {
        self.0.store.set_transaction_gate(gate);
    }

    /// As [`Engine::produce`] for a client with a transactional id. Batches of a transaction whose partition its coordinator
    /// is not known to have let in wait for that, and all of their producer behind them for the same partition. What is of a
    /// transaction is acknowledged once it is on stable storage, whatever its topic asks, and its coordinator's record too.
    pub fn produce_in_transaction(
        &self,
        producer: TransactionalProducer,
        acks: impl Into<AcksWithin>,
        parts: Vec<ProducePartition>,
    ) -> impl Future<Output = Vec<Result<Produced, LogError>>> + 'static {
        let AcksWithin { acks, patience } = acks.into();
        self.produce_with(parts, patience, move |engine: &Engine, part| {
            engine.0.store.append_in_transaction(part, &producer, acks)
        })
    }

    /// A coordinator lets a producer write to partitions for its transaction, of which it has the record on stable storage.
    /// Holds until a marker of the producer comes. Also for transactions that are open after a start: they count as
    /// confirmed then. One answer per partition, in order.
    pub fn admit(
        &self,
        partitions: Vec<TopicPartition>,
        producer_id: i64,
        producer_epoch: i16,
    ) -> impl Future<Output = Vec<Result<(), LogError>>> + 'static {
        let pending = self.by_owner(partitions, |partition| *partition).into_iter().map(|(shard, (places, own))| {
            let answers = self.call(shard, move |engine: Engine| {
                let store = &engine.0.store;
                let answers: Vec<_> = own.into_iter().map(|id| store.let_in(id, producer_id, producer_epoch)).collect();
                std::future::ready(answers)
            });
            async move { (places, answers.await) }
        });
        in_order(pending.collect())
    }

    /// Writes a coordinator's records and markers all at once: consumers see all of it or nothing, and so does a start
    /// after a crash. All parts are of one shard, this or another; they are on stable storage when the future resolves,
    /// whatever their topics ask.
    ///
    /// Of partitions with replicas it resolves once every replica in sync has all parts. All or nothing is promised for this
    /// node only: each partition goes its own way to its followers, which may have one part and not the other, and another
    /// node may come to lead one of them meanwhile. So what must be whole on other nodes must not rest on a group: a
    /// decision is written first, and what follows from it when every replica in sync has that.
    pub fn append_atomically(&self, parts: Vec<AtomicPart>) -> impl Future<Output = AtomicAppended> + 'static {
        let shard = parts.first().map_or(self.shard(), |part| self.owner(part.partition()));
        if let Some(part) = parts.iter().position(|part| self.owner(part.partition()) != shard) {
            let error = LogError::InvalidTxnState("parts of several shards cannot be written at once");
            return Either::Left(std::future::ready(Err(AtomicRefused { part, error })));
        }
        Either::Right(self.call(shard, move |engine: Engine| all_ended(engine.0.store.append_atomically(parts))))
    }

    /// Writes markers, those of each shard all at once. Each is checked by itself; one that cannot be written holds up no
    /// other. They are on stable storage when the future resolves, at every replica in sync. One answer per marker, in order.
    pub fn write_markers(
        &self,
        markers: Vec<Marker>,
    ) -> impl Future<Output = Vec<Result<Produced, LogError>>> + 'static {
        let pending = self.by_owner(markers, |marker| marker.partition).into_iter().map(|(shard, (places, own))| {
            let answers = self.call(shard, move |engine: Engine| each_ended(engine.0.store.append_markers(own)));
            async move { (places, answers.await) }
        });
        in_order(pending.collect())
    }

    /// Whether markers are the last ones of their producers in their partitions: on stable storage, or on their way there.
    /// One answer per marker, in order.
    pub async fn have_markers(&self, markers: Vec<Marker>) -> Vec<bool> {
        let pending = self.by_owner(markers, |marker| marker.partition).into_iter().map(|(shard, (places, own))| {
            let answers = self.call(shard, move |engine: Engine| {
                let store = &engine.0.store;
                std::future::ready(own.iter().map(|marker| Ok(store.has_marker(marker))).collect::<Vec<_>>())
            });
            async move { (places, answers.await) }
        });
        let answers = in_order(pending.collect()).await;
        answers.into_iter().map(|answer| answer.unwrap_or(false)).collect()
    }

    /// Transactions that are open, in all partitions of the node: each has to be of a coordinator that knows it.
    pub async fn open_transactions(&self) -> Vec<OpenTransaction> {
        let of_shards = self.on_all(|engine: Engine| std::future::ready(engine.0.store.open_transactions()));
        of_shards.await.into_iter().flatten().collect()
    }

    /// Puts what is asked for together by the shards that own it, with the places in the question.
    fn by_owner<T>(&self, items: Vec<T>, partition: impl Fn(&T) -> TopicPartition) -> ByOwner<T> {
        let mut by_owner = ByOwner::new();
        for (at, item) in items.into_iter().enumerate() {
            let (places, own) = by_owner.entry(self.owner(partition(&item))).or_default();
            places.push(at);
            own.push(item);
        }
        by_owner
    }

    /// Has batches taken by their shards: when the letter is opened, as the order of letters is the order of offsets.
    pub(crate) fn produce_with(
        &self,
        parts: Vec<ProducePartition>,
        patience: Option<Duration>,
        take: impl Fn(&Engine, ProducePartition) -> Taken + Clone + Send + 'static,
    ) -> impl Future<Output = Vec<Result<Produced, LogError>>> + 'static {
        self.note_activity();
        let pending = self.by_owner(parts, |part| part.partition).into_iter().map(|(shard, (places, own))| {
            let take = take.clone();
            let answers = self.call(shard, move |engine: Engine| {
                let taken: Vec<Taken> = own.into_iter().map(|part| take(&engine, part)).collect();
                let io = engine.0.io.clone();
                settle(taken, async move {
                    match patience {
                        Some(patience) => io.sleep(patience).await,
                        None => std::future::pending().await,
                    }
                })
            });
            async move { (places, answers.await) }
        });
        in_order(pending.collect())
    }
}

/// By shard: places in the question, and what is there.
type ByOwner<T> = BTreeMap<usize, (Vec<usize>, Vec<T>)>;

/// Puts the answers of shards in the order of the question.
fn in_order<T>(
    pending: Vec<impl Future<Output = (Vec<usize>, Vec<Result<T, LogError>>)>>,
) -> impl Future<Output = Vec<Result<T, LogError>>> {
    join_all(pending).map(|of_shards| {
        let count = of_shards.iter().map(|(places, _)| places.len()).sum();
        let mut answers: Vec<_> = std::iter::repeat_with(|| Err(LogError::ShuttingDown)).take(count).collect();
        for (places, of_shard) in of_shards {
            for (at, answer) in places.into_iter().zip(of_shard) {
                answers[at] = answer;
            }
        }
        answers
    })
}
