//! The tail cache: groups in memory, oldest first, within a budget. Pure.
//!
//! A group with a live extent is never evicted: it is what materialisation writes from. So the budget also bounds what
//! may be live, and a full cache of live groups stops the log until some are materialised.

use std::{collections::VecDeque, rc::Rc};

use crate::partition::{PartitionCell, Slot};

struct Cached {
    slot: Rc<Slot>,
    bytes: usize,
    /// Partitions with extents in it, to be pruned when it goes.
    partitions: Vec<Rc<PartitionCell>>,
}

/// See the module.
pub(crate) struct Cache {
    budget: usize,
    bytes: usize,
    slots: VecDeque<Cached>,
}

/// What an extent costs beside its bytes.
const EXTENT_OVERHEAD_BYTES: usize = 72;

impl Cache {
    pub(crate) fn new(budget: usize) -> Self {
        Self { budget, bytes: 0, slots: VecDeque::new() }
    }

    /// Bytes that a group will take.
    fn cost(buffer_bytes: usize, extents: usize) -> usize {
        buffer_bytes + extents * EXTENT_OVERHEAD_BYTES
    }

    /// Makes room for a group; `false` when live groups are in the way.
    pub(crate) fn make_room(&mut self, buffer_bytes: usize, extents: usize) -> bool {
        let wanted = Self::cost(buffer_bytes, extents);
        self.evict_to(self.budget.saturating_sub(wanted));
        self.bytes + wanted <= self.budget || self.slots.is_empty()
    }

    /// Adds a group.
    pub(crate) fn insert(&mut self, slot: Rc<Slot>, buffer_bytes: usize, partitions: Vec<Rc<PartitionCell>>) {
        let bytes = Self::cost(buffer_bytes, partitions.len());
        self.bytes += bytes;
        self.slots.push_back(Cached { slot, bytes, partitions });
    }

    fn evict_to(&mut self, bytes: usize) {
        while self.bytes > bytes && self.slots.front().is_some_and(|oldest| oldest.slot.live.get() == 0) {
            let oldest = self.slots.pop_front().expect("there is a front");
            self.bytes -= oldest.bytes;
            oldest.slot.bytes.replace(None);
            for partition in oldest.partitions {
                partition.borrow_mut().prune_tail();
            }
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The budget.
    pub(crate) fn budget(&self) -> usize {
        self.budget
    }
}
