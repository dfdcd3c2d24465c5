//! Taking a batch: checks, offsets, a place in the open group. Synchronous, so the order of calls is the order of
//! offsets; a batch that must be recompressed first keeps its turn, and those of its partition that come after it wait.

use std::rc::Rc;

use bytes::Bytes;

use super::Store;
use crate::{
    api::{Acks, LogError, ProducePartition, Produced},
    batch::{self, AppendOrigin, BatchInfo, Compression, Rules},
    config::{Durability, TopicConfig},
    io::Io,
    partition::{PartitionCell, Placed, Repeated, Terms, replication::Confirmation, transactions::Confirming},
    signal::Outcome,
    wal::group::{BatchStamp, GroupOutcome, PlacedBatch},
};

/// What became of a batch.
pub(crate) type Appended = Result<(Produced, Option<Wait>), LogError>;

/// A batch that was taken, or refused.
pub(crate) enum Taken {
    /// It has its place, if it was not refused.
    Now(Appended),
    /// It waits for its turn.
    Later(Rc<Outcome<Appended>>),
}

impl Taken {
    /// What becomes of the batch, once it has its place or was refused.
    pub(crate) async fn appended(self) -> Appended {
        match self {
            Taken::Now(appended) => appended,
            Taken::Later(outcome) => outcome.wait().await,
        }
    }
}

/// What the answer to a batch waits for. `None` in [`Appended`]: for nothing, consumers see it already.
#[derive(Clone, Debug)]
pub(crate) struct Wait {
    /// Until the log here has it. Who wants no answer is to hear of errors all the same, as they end its connection. None
    /// for one that was there before a restart.
    group: Option<Rc<GroupOutcome>>,
    /// Until every replica in sync has it, if there are others and who sent it asks for them.
    pub(super) confirmation: Option<Rc<Confirmation>>,
    /// Until its transaction's coordinator has it on stable storage; none if that is so.
    confirming: Option<Confirming>,
}

impl Wait {
    /// For what waits for no coordinator.
    pub(super) fn of(group: Rc<GroupOutcome>, confirmation: Option<Rc<Confirmation>>) -> Self {
        Self { group: Some(group), confirmation, confirming: None }
    }

    /// Resolves when the batch is as safe as its topic and who sent it ask.
    pub(crate) async fn wait(self) -> Result<(), LogError> {
        let (confirmation, confirming) = (self.confirmation.clone(), self.confirming.clone());
        self.logged().await?;
        if let Some(confirmation) = confirmation {
            confirmation.wait().await?;
        }
        match confirming {
            Some(confirming) => confirming.wait().await,
            None => Ok(()),
        }
    }

    /// Resolves when the log here has the batch, or will not have it.
    pub(super) async fn logged(self) -> Result<(), LogError> {
        match self.group {
            Some(group) => group.wait().await,
            None => Ok(()),
        }
    }

    /// Whether the log here has the batch, or will not have it.
    pub(super) fn is_over(&self) -> bool {
        self.group.as_ref().is_none_or(|group| group.get().is_some())
    }
}

/// A checked batch that waits for its turn with the recompressor.
pub(super) struct Waiting {
    pub(super) cell: Rc<PartitionCell>,
    pub(super) bytes: Bytes,
    pub(super) info: BatchInfo,
    pub(super) terms: Terms,
    /// What it shall become; `None` if it only waits for others.
    pub(super) to: Option<Compression>,
    /// Bytes that it may have then.
    pub(super) bytes_max: usize,
    pub(super) outcome: Rc<Outcome<Appended>>,
}

impl<I: Io> Store<I> {
    /// Takes one batch.
    pub(crate) fn append(&self, part: ProducePartition, origin: AppendOrigin, acks: Acks) -> Taken {
        let terms = Terms::plain(origin, acks);
        self.take(part, terms).unwrap_or_else(|refused| Taken::Now(Err(refused)))
    }

    fn take(&self, part: ProducePartition, terms: Terms) -> Result<Taken, LogError> {
        let (cell, info) = self.check_batch(&part, terms)?;
        self.take_checked(cell, part.batch, info, terms)
    }

    /// Checks a batch by itself.
    pub(super) fn check_batch(
        &self,
        part: &ProducePartition,
        terms: Terms,
    ) -> Result<(Rc<PartitionCell>, BatchInfo), LogError> {
        self.check_not_failed()?;
        let cell = self.partition(part.partition)?;
        let config = cell.borrow().config().clone();
        cell.borrow().replication().check_produce(terms.acks, config.min_insync_replicas)?;
        let info = batch::check(&part.batch, &rules(&config, terms.origin, self.io.now_ms()))?;
        if info.is_transactional() {
            self.check_transactions_in_use()?;
        }
        Ok((cell, info))
    }

    /// Gives a batch its place, or has it wait for its turn.
    pub(super) fn take_checked(
        &self,
        cell: Rc<PartitionCell>,
        bytes: Bytes,
        info: BatchInfo,
        terms: Terms,
    ) -> Result<Taken, LogError> {
        let (id, config) = (cell.borrow().id(), cell.borrow().config().clone());
        let to = config.compression.filter(|to| !info.is_control() && info.codec() != Ok(to.codec));
        if to.is_none() && !self.recompressor.holds(id) {
            return Ok(Taken::Now(self.admit(&cell, bytes, &info, terms)));
        }
        let outcome = Rc::default();
        let bytes_max = config.batch_bytes_max();
        self.recompressor.push(Waiting { cell, bytes, info, terms, to, bytes_max, outcome: Rc::clone(&outcome) })?;
        Ok(Taken::Later(outcome))
    }

    pub(super) fn check_not_failed(&self) -> Result<(), LogError> {
        let failed = self.failed.borrow().clone();
        failed.map_or(Ok(()), |reason| Err(LogError::Storage(reason)))
    }

    /// Gives a checked batch its place, unless it has one.
    pub(super) fn admit(&self, cell: &Rc<PartitionCell>, bytes: Bytes, info: &BatchInfo, terms: Terms) -> Appended {
        match self.known(cell, info, terms)? {
            Some(known) => Ok(known),
            None => Ok(self.place(cell, bytes, info, terms)),
        }
    }

    /// The answer to a batch that came before; none if it is new and may be given a place.
    pub(super) fn known(
        &self,
        cell: &PartitionCell,
        info: &BatchInfo,
        terms: Terms,
    ) -> Result<Option<(Produced, Option<Wait>)>, LogError> {
        self.check_not_failed()?;
        let mut partition = cell.borrow_mut();
        if partition.is_deleted() {
            return Err(LogError::UnknownPartition);
        }
        self.check_lease(&partition)?;
        let known = match partition.known(info, terms)? {
            None if self.full.get() => return Err(LogError::StorageFull),
            None => return Ok(None),
            Some(known) => known,
        };
        let Repeated { produced, end_offset, group, confirming } = known;
        let confirmation = partition.expect(terms.acks, end_offset);
        let waits = group.is_some() || confirmation.is_some() || confirming.is_some();
        Ok(Some((produced, waits.then_some(Wait { group, confirmation, confirming }))))
    }

    fn place(
        &self,
        cell: &Rc<PartitionCell>,
        bytes: Bytes,
        info: &BatchInfo,
        terms: Terms,
    ) -> (Produced, Option<Wait>) {
        let placed = cell.borrow_mut().place(info, terms.origin, self.io.now_ms());
        let confirming = placed.confirming.clone();
        let confirmation = cell.borrow_mut().expect(terms.acks, placed.end_offset);
        let (produced, group) = self.push_placed(cell, bytes, info, placed);
        self.pump.notify();
        (produced, Some(Wait { group: Some(group), confirmation, confirming }))
    }

    /// Puts a batch that has its place into the open group. One of a transaction is flushed whatever its topic asks: who
    /// decides on the transaction later could not know that a part of it was lost.
    fn push_placed(
        &self,
        cell: &Rc<PartitionCell>,
        bytes: Bytes,
        info: &BatchInfo,
        placed: Placed,
    ) -> (Produced, Rc<GroupOutcome>) {
        let (produced, end_offset) = (placed.produced, placed.end_offset);
        let flush = cell.borrow().config().durability == Durability::Device || info.is_transactional();
        let batch = self.to_push(bytes, info, placed);
        (produced, self.groups.borrow_mut().push(cell, batch, end_offset, flush))
    }

    /// Puts a batch into the open group, where room was made for more than this one; the group is flushed.
    pub(super) fn push_to_open(
        &self,
        cell: &Rc<PartitionCell>,
        bytes: Bytes,
        info: &BatchInfo,
        placed: Placed,
    ) -> (Produced, Rc<GroupOutcome>) {
        let (produced, end_offset) = (placed.produced, placed.end_offset);
        let batch = self.to_push(bytes, info, placed);
        (produced, self.groups.borrow_mut().push_to_open(cell, batch, end_offset, true))
    }

    fn to_push(&self, bytes: Bytes, info: &BatchInfo, placed: Placed) -> PlacedBatch {
        let Placed { produced, append_time_ms, .. } = placed;
        self.counters.produced_batches.add(1);
        self.counters.produced_records.add(usize::try_from(info.record_count).unwrap_or(0));
        self.counters.produced_bytes.add(bytes.len());
        let stamp = BatchStamp::Here { checked: *info, append_time_ms };
        PlacedBatch { bytes, base_offset: produced.base_offset, stamp }
    }
}

fn rules(config: &TopicConfig, origin: AppendOrigin, now_ms: i64) -> Rules {
    Rules {
        origin,
        max_bytes: config.batch_bytes_max(),
        now_ms,
        timestamp_type: config.timestamp_type,
        before_max_ms: config.timestamp_before_max_ms,
        after_max_ms: config.timestamp_after_max_ms,
        key_required: config.cleanup_policy.compact,
    }
}
