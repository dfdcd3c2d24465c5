//! Removing what is here of partitions that are on other nodes only.
//!
//! Nobody is served from the moment on in which that begins, and who waited for replicas hears it; removing the records takes as
//! long as the disk and those who still read them take, and is a task's, so that whoever brings news of other partitions need
//! not wait. What comes back before it is over is neither led nor followed until then: a follower that said how far its log is, of
//! which the end was cut off later, would have confirmed what it has not.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use super::{Store, replicate::check_still};
use crate::{
    api::{LogError, TopicPartition},
    io::{Io, Share},
    partition::PartitionCell,
};

/// Partitions that a shard works on at once: readers of one need not keep all others waiting.
const AT_ONCE: usize = 8;

/// What is to be removed by a shard.
#[derive(Default)]
pub(super) struct Clearings {
    waiting: RefCell<VecDeque<Rc<PartitionCell>>>,
    tasks: Cell<usize>,
}

impl<I: Io> Store<I> {
    /// Leaves nothing of partitions that are on other nodes only from here on: each will be empty, and is neither led nor followed.
    /// How often its end was cut off stays known, for when it comes back. Whoever still takes this node for its leader is sent
    /// away from the first moment on: told that an offset is out of range, a consumer would begin at the start of the log again.
    pub(crate) fn clear(self: &Rc<Self>, ids: impl IntoIterator<Item = TopicPartition>) {
        for id in ids {
            let Some(cell) = self.begin_clearing(id) else { continue };
            self.clearings.waiting.borrow_mut().push_back(cell);
            if self.clearings.tasks.get() < AT_ONCE {
                self.clearings.tasks.update(|tasks| tasks + 1);
                let store = self.clone();
                self.io.spawn(Share::Background, async move { store.clear_waiting().await });
            }
        }
    }

    async fn clear_waiting(self: &Rc<Self>) {
        loop {
            let next = self.clearings.waiting.borrow_mut().pop_front();
            let Some(cell) = next else { break };
            self.end_clearing(&cell).await;
        }
        self.clearings.tasks.update(|tasks| tasks - 1);
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
        let departed = cell.borrow().replication().departed();
        clearing.wait().await;
        match cell.borrow().replication().departed() == departed {
            true => Ok(()),
            false => Err(LogError::NotLeader),
        }
    }

    /// None if there is nothing to remove, or that is under way: nothing came since, as nobody leads or follows meanwhile.
    fn begin_clearing(&self, id: TopicPartition) -> Option<Rc<PartitionCell>> {
        let cell = self.partition(id).ok()?;
        // nobody leads or follows it from here on, also who was about to
        let epoch = cell.borrow().replication().epoch().max(0);
        self.enter_epoch(&cell, epoch).ok()?;
        let begins = {
            let mut partition = cell.borrow_mut();
            partition.replication_mut().depart();
            !partition.is_clear() && partition.replication_mut().begin_clearing()
        };
        begins.then_some(cell)
    }

    async fn end_clearing(self: &Rc<Self>, cell: &Rc<PartitionCell>) {
        let removed = self.remove_records(cell).await;
        cell.borrow_mut().replication_mut().end_clearing();
        if let Err(error) = removed {
            let id = cell.borrow().id();
            tracing::warn!("{id:?} is on other nodes now, but what is here of it stays: {error}");
        }
    }

    async fn remove_records(self: &Rc<Self>, cell: &Rc<PartitionCell>) -> Result<(), LogError> {
        self.await_groups(cell).await?;
        // it may have been about to be cut to what its leader has
        let cutting = cell.borrow().replication().cutting();
        if let Some(cutting) = cutting {
            cutting.wait().await;
        }
        let (id, epoch) = (cell.borrow().id(), cell.borrow().replication().epoch());
        if cell.borrow().is_deleted() {
            return Err(LogError::UnknownPartition);
        }
        cell.borrow_mut().replication_mut().clear();
        let begun = self.begin_anew(id, 0).await;
        self.await_segment_removals(id).await;
        if check_still(cell, epoch).is_ok() {
            self.enter_epoch(cell, epoch)?;
        }
        begun.map(drop)
    }
}
