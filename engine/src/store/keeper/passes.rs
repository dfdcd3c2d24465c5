//! Passes: bringing to segments all that there is at a moment, whatever the size of the tails.

use std::rc::Rc;

use super::Keeper;
use crate::{
    io::Io,
    partition::{Partition, PartitionCell},
    signal::Outcome,
    store::Store,
};

/// A request to bring to segments what there was when it was made: producers that never rest must not hold it up.
pub(super) struct Pass {
    /// Partitions and the offset up to which they have to be in segments.
    waits_for: Vec<(Rc<PartitionCell>, i64)>,
    done: Rc<Outcome<()>>,
}

impl Pass {
    pub(super) fn is_over(&mut self) -> bool {
        self.waits_for.retain(|(cell, end)| {
            let partition = cell.borrow();
            !partition.is_deleted() && partition.marks().materialised() < *end
        });
        self.waits_for.is_empty()
    }
}

impl<I: Io> Keeper<I> {
    /// Partitions that are waited for shall have their turn, whatever the size of their tails. Does not wake the keeper.
    fn queue_all(&self, pass: &Pass) {
        pass.waits_for.iter().for_each(|(cell, _)| self.queue(cell));
    }
}

impl<I: Io> Store<I> {
    /// Brings everything that is kept now to segments, unless there is no space for it.
    pub(crate) async fn materialise_all(&self) {
        self.materialise(|partition| partition.marks().materialised() < partition.marks().kept()).await;
    }

    /// The same for compacted partitions, where that ends a segment: only those that have ended are compacted.
    pub(crate) async fn materialise_compacted(&self) {
        let now_ms = self.io.now_ms();
        self.materialise(|partition| {
            partition.config().cleanup_policy.compact
                && partition.marks().materialised() < partition.marks().kept()
                && partition.would_roll(now_ms)
        })
        .await;
    }

    async fn materialise(&self, wanted: impl Fn(&Partition) -> bool) {
        let now = |cell: &Rc<PartitionCell>| (cell.clone(), cell.borrow().marks().kept());
        let wanted = |cell: &&Rc<PartitionCell>| wanted(&cell.borrow());
        let waits_for = self.partitions.borrow().values().filter(wanted).map(now).collect();
        let pass = Pass { waits_for, done: Rc::default() };
        // Of what went to segments directly the manifest may not know yet: nothing waits for that, but it shall hear.
        let is_unnoted = |cell: &&Rc<PartitionCell>| cell.borrow().unnoted_bytes().is_some();
        self.partitions.borrow().values().filter(is_unnoted).for_each(|cell| self.keeper.queue(cell));
        if pass.waits_for.is_empty() || self.keeper.ended.get().is_some() {
            return self.keeper.notify();
        }
        self.keeper.queue_all(&pass);
        let done = pass.done.clone();
        self.keeper.passes.borrow_mut().push(pass);
        self.keeper.signal.notify();
        done.wait().await;
    }

    pub(super) fn end_passes(&self, mut is_over: impl FnMut(&mut Pass) -> bool) {
        for over in self.keeper.passes.borrow_mut().extract_if(.., |pass| is_over(pass)) {
            over.done.set(());
        }
        // A round has an end; what it left has its turn again.
        self.keeper.passes.borrow().iter().for_each(|pass| self.keeper.queue_all(pass));
    }
}
