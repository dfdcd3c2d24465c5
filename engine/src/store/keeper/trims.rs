//! Trims: moving a partition's log start, by its owner's wish or by retention.

use std::{collections::VecDeque, io, rc::Rc};

use crate::{
    api::{LogError, TopicPartition},
    format::{
        journal::Payloads,
        manifest::{self, Record},
    },
    io::Io,
    partition::PartitionCell,
    signal::Outcome,
    store::Store,
};

/// A request to move a partition's log start.
pub(super) struct Trim {
    id: TopicPartition,
    before: i64,
    outcome: Rc<Outcome<Result<i64, LogError>>>,
}

impl<I: Io> Store<I> {
    /// Moves a partition's log start up to `before`, which is not above its high watermark. Answers the log start.
    pub(crate) async fn trim(&self, id: TopicPartition, before: i64) -> Result<i64, LogError> {
        if self.keeper.ended.get().is_some() {
            return Err(LogError::ShuttingDown);
        }
        let outcome = Rc::<Outcome<_>>::default();
        self.keeper.trims.borrow_mut().push_back(Trim { id, before, outcome: outcome.clone() });
        self.keeper.signal.notify();
        outcome.wait().await
    }

    pub(super) async fn do_trims(self: &Rc<Self>) -> io::Result<bool> {
        let mut later = VecDeque::new();
        let mut worked = false;
        loop {
            let Some(trim) = self.keeper.trims.borrow_mut().pop_front() else {
                break;
            };
            let Ok(cell) = self.partition(trim.id) else {
                trim.outcome.set(Err(LogError::UnknownPartition));
                continue;
            };
            let (log_start, materialised) = (cell.borrow().marks().log_start(), cell.borrow().marks().materialised());
            if trim.before <= log_start {
                trim.outcome.set(Ok(log_start));
            } else if cell.borrow().replication().is_cutting() {
                later.push_back(trim);
            } else if trim.before > materialised {
                // Segments first: the manifest knows no log start inside the tail.
                self.keeper.look_at(cell);
                later.push_back(trim);
            } else {
                // No fat run may start on a segment that is about to go.
                cell.borrow_mut().begin_keeping();
                let trimmed = self.do_trim(&cell, trim.before).await;
                cell.borrow_mut().end_keeping();
                if let Err(error) = trimmed {
                    later.push_front(trim);
                    self.keeper.trims.borrow_mut().extend(later);
                    return Err(error);
                }
                self.tell_progress(std::iter::once(&cell));
                trim.outcome.set(Ok(trim.before));
                worked = true;
            }
        }
        self.keeper.trims.borrow_mut().extend(later);
        Ok(worked)
    }

    async fn do_trim(self: &Rc<Self>, cell: &Rc<PartitionCell>, before: i64) -> io::Result<()> {
        let (id, (gone, first_segment)) = (cell.borrow().id(), cell.borrow().trimmed_by(before));
        self.note_partitions(std::iter::once(cell)).await?;
        let mut payloads = Payloads::default();
        payloads.push(&manifest::encode(id, &Record::Trim { log_start_offset: before, first_segment }));
        self.note(payloads).await?;
        cell.borrow_mut().trim(before, first_segment);
        self.spawn_segment_removal(id, gone);
        Ok(())
    }

    pub(super) fn refuse_trims(&self, reason: &str) {
        for trim in self.keeper.trims.take() {
            trim.outcome.set(Err(LogError::Storage(reason.to_owned())));
        }
    }

    /// Drops what retention does not keep, brings old tails to segments, and forgets producers that were idle that long.
    pub(crate) async fn retain(self: &Rc<Self>, producer_id_expiration_ms: i64) {
        let now_ms = self.io.now_ms();
        for id in self.partition_ids() {
            let Ok(cell) = self.partition(id) else {
                continue;
            };
            let expired = {
                let mut partition = cell.borrow_mut();
                let idle_before = now_ms.saturating_sub(producer_id_expiration_ms);
                partition.expire_producers(idle_before);
                partition.expired(now_ms)
            };
            if let Some(before) = expired
                && let Err(error) = self.trim(id, before).await
            {
                tracing::warn!("retention of {id:?} failed: {error}");
            }
            self.io.yield_now().await;
        }
    }
}
