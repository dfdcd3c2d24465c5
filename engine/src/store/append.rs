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
    partition::{PartitionCell, Placed, Repeated},
    signal::Outcome,
    wal::group::{GroupOutcome, PlacedBatch},
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
    group: Rc<GroupOutcome>,
    /// What it is to be as safe as. With one replica all mean the same; with several this is where they part.
    pub(super) acks: Acks,
}

impl Wait {
    /// Resolves when the batch is as safe as its topic and who sent it ask.
    pub(crate) async fn wait(self) -> Result<(), LogError> {
        match self.acks {
            // The leader's log has it, and with one replica that is every one. Who wants no answer is to hear of errors
            // all the same, as they end its connection.
            Acks::None | Acks::Leader | Acks::All => self.group.wait().await,
        }
    }

    /// Whether there is nothing to wait for any more.
    pub(super) fn is_over(&self) -> bool {
        self.group.get().is_some()
    }
}

/// A checked batch that waits for its turn with the recompressor.
pub(super) struct Waiting {
    pub(super) cell: Rc<PartitionCell>,
    pub(super) bytes: Bytes,
    pub(super) info: BatchInfo,
    pub(super) acks: Acks,
    /// What it shall become; `None` if it only waits for others.
    pub(super) to: Option<Compression>,
    /// Bytes that it may have then.
    pub(super) bytes_max: usize,
    pub(super) outcome: Rc<Outcome<Appended>>,
}

impl<I: Io> Store<I> {
    /// Takes one batch.
    pub(crate) fn append(&self, part: ProducePartition, origin: AppendOrigin, acks: Acks) -> Taken {
        self.take(part, origin, acks).unwrap_or_else(|refused| Taken::Now(Err(refused)))
    }

    fn take(&self, part: ProducePartition, origin: AppendOrigin, acks: Acks) -> Result<Taken, LogError> {
        self.check_not_failed()?;
        let cell = self.partition(part.partition)?;
        let config = cell.borrow().config().clone();
        let info = batch::check(&part.batch, &rules(&config, origin, self.io.now_ms()))?;
        let to = config.compression.filter(|to| !info.is_control() && info.codec() != Ok(to.codec));
        if to.is_none() && !self.recompressor.holds(part.partition) {
            return Ok(Taken::Now(self.admit(&cell, part.batch, &info, acks)));
        }
        let outcome = Rc::default();
        let bytes_max = config.batch_bytes_max();
        self.recompressor.push(Waiting {
            cell,
            bytes: part.batch,
            info,
            acks,
            to,
            bytes_max,
            outcome: Rc::clone(&outcome),
        })?;
        Ok(Taken::Later(outcome))
    }

    fn check_not_failed(&self) -> Result<(), LogError> {
        let failed = self.failed.borrow().clone();
        failed.map_or(Ok(()), |reason| Err(LogError::Storage(reason)))
    }

    /// Gives a checked batch its place, unless it has one.
    pub(super) fn admit(&self, cell: &Rc<PartitionCell>, bytes: Bytes, info: &BatchInfo, acks: Acks) -> Appended {
        match self.known(cell, info, acks)? {
            Some(known) => Ok(known),
            None => Ok(self.place(cell, bytes, info, acks)),
        }
    }

    /// The answer to a batch that came before; none if it is new and may be given a place.
    pub(super) fn known(
        &self,
        cell: &PartitionCell,
        info: &BatchInfo,
        acks: Acks,
    ) -> Result<Option<(Produced, Option<Wait>)>, LogError> {
        self.check_not_failed()?;
        let partition = cell.borrow();
        if partition.is_deleted() {
            return Err(LogError::UnknownPartition);
        }
        match partition.known(info)? {
            None if self.full.get() => Err(LogError::StorageFull),
            known => Ok(known.map(|Repeated { produced, group }| (produced, group.map(|group| Wait { group, acks })))),
        }
    }

    fn place(&self, cell: &Rc<PartitionCell>, bytes: Bytes, info: &BatchInfo, acks: Acks) -> (Produced, Option<Wait>) {
        let mut partition = cell.borrow_mut();
        let Placed { produced, end_offset, append_time_ms } = partition.place(info, self.io.now_ms());
        let flush = partition.config().durability == Durability::Device;
        drop(partition);
        self.counters.produced_batches.add(1);
        self.counters.produced_records.add(usize::try_from(info.record_count).unwrap_or(0));
        self.counters.produced_bytes.add(bytes.len());
        let placed = PlacedBatch { bytes, checked: *info, base_offset: produced.base_offset, append_time_ms };
        let group = self.groups.borrow_mut().push(cell, placed, end_offset, flush);
        self.pump.notify();
        (produced, Some(Wait { group, acks }))
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
