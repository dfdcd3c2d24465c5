//! Removing what is here of partitions that are on other nodes only.
//!
//! Nobody is served from the moment on in which that begins, and who waited for replicas hears it; removing the records takes as
//! long as the disk and those who still read them take, and is a task's, so that whoever brings news of other partitions need
//! not wait. What comes back before it is over is neither led nor followed until then: a follower that said how far its log is, of
//! which the end was cut off later, would have confirmed what it has not.

use std::rc::Rc;

use super::{Store, replicate::check_still};
use crate::{
    api::{LogError, TopicPartition},
    io::{Io, Share},
    partition::PartitionCell,
    signal::Outcome,
};

/// One that has begun.
struct Clearing {
    cell: Rc<PartitionCell>,
    /// The newest that was known then.
    epoch: i32,
    /// The one before it, which goes on.
    before: Option<Rc<Outcome<()>>>,
    /// To be set at its end.
    over: Rc<Outcome<()>>,
}

impl<I: Io> Store<I> {
    /// Leaves nothing of partitions that are on other nodes only from here on: each will be empty, and is neither led nor followed.
    /// How often its end was cut off stays known, for when it comes back. Whoever still takes this node for its leader is sent
    /// away from the first moment on: told that an offset is out of range, a consumer would begin at the start of the log again.
    pub(crate) fn clear(self: &Rc<Self>, ids: impl IntoIterator<Item = TopicPartition>) {
        let begun: Vec<Clearing> = ids.into_iter().filter_map(|id| self.begin_clearing(id)).collect();
        if begun.is_empty() {
            return;
        }
        let store = self.clone();
        self.io.spawn(Share::Background, async move {
            for clearing in begun {
                let id = clearing.cell.borrow().id();
                if let Err(error) = store.end_clearing(clearing).await {
                    tracing::warn!("{id:?} is on other nodes now, but what is here of it stays: {error}");
                }
            }
        });
    }

    /// The same for what a start found of them.
    pub(super) fn clear_elsewhere(self: &Rc<Self>) {
        self.clear(self.options.elsewhere.keys().copied());
    }

    /// Waits until what was here of a partition is removed, if that is under way.
    ///
    /// # Errors
    /// If it has left this node once more since.
    pub(super) async fn await_cleared(&self, cell: &PartitionCell) -> Result<(), LogError> {
        let Some(clearing) = cell.borrow().replication().clearing() else { return Ok(()) };
        clearing.wait().await;
        match cell.borrow().replication().clearing() {
            None => Ok(()),
            Some(_) => Err(LogError::NotLeader),
        }
    }

    /// None if there is nothing to remove.
    fn begin_clearing(&self, id: TopicPartition) -> Option<Clearing> {
        let cell = self.partition(id).ok()?;
        // nobody leads or follows it from here on, also who was about to
        let epoch = cell.borrow().replication().epoch().max(0);
        self.enter_epoch(&cell, epoch).ok()?;
        if cell.borrow().is_clear() {
            return None;
        }
        let (before, over) = {
            let mut partition = cell.borrow_mut();
            let replication = partition.replication_mut();
            (replication.clearing(), replication.begin_clearing())
        };
        Some(Clearing { cell, epoch, before, over })
    }

    async fn end_clearing(self: &Rc<Self>, clearing: Clearing) -> Result<(), LogError> {
        let Clearing { cell, epoch, before, over } = clearing;
        if let Some(before) = before {
            before.wait().await;
        }
        let removed = self.remove_records(&cell, epoch).await;
        cell.borrow_mut().replication_mut().end_clearing(&over);
        over.set(());
        removed
    }

    async fn remove_records(self: &Rc<Self>, cell: &Rc<PartitionCell>, epoch: i32) -> Result<(), LogError> {
        self.await_groups(cell).await?;
        check_still(cell, epoch)?;
        cell.borrow_mut().replication_mut().clear();
        let id = cell.borrow().id();
        let begun = self.begin_anew(id, 0).await;
        if check_still(cell, epoch).is_ok() {
            self.enter_epoch(cell, epoch)?;
        }
        begun.map(drop)
    }
}
