//! Changes of one share partition on their way to its state: in the order in which they were decided, one write at a time.
//! What is decided meanwhile goes together behind it, so that none overtakes another, however often one is tried again.

use std::rc::Rc;

use kafka_protocol::ResponseError;

use crate::coordinator::{
    runtime::promise::Promise,
    share::{
        partition::{Write, WriteId},
        state::merge,
    },
};

/// Kept when a write is durable, or failed.
pub(super) type Durable = Rc<Promise<Result<(), ResponseError>>>;

/// Whom a write is to be told of when it is done.
pub(super) type Told = Vec<(Option<WriteId>, Durable)>;

/// See the module.
#[derive(Default)]
pub(super) struct Writes {
    /// Somebody carries them out.
    is_under_way: bool,
    waiting: Option<(Write, Told)>,
}

impl Writes {
    /// Adds one; answers whether the caller is to carry them out from now on.
    #[must_use]
    pub(super) fn push(&mut self, write: Write, durable: Durable) -> bool {
        let told = (write.id, durable);
        match &mut self.waiting {
            Some((waiting, all)) => {
                add(waiting, write);
                all.push(told);
            }
            None => self.waiting = Some((write, vec![told])),
        }
        !std::mem::replace(&mut self.is_under_way, true)
    }

    /// All that waits, as one write. `None`: whoever carried them out is done.
    pub(super) fn next(&mut self) -> Option<(Write, Told)> {
        let next = self.waiting.take();
        self.is_under_way = next.is_some();
        next
    }
}

/// Lays what was decided later over what was decided before it.
fn add(before: &mut Write, later: Write) {
    before.start_offset = before.start_offset.max(later.start_offset);
    before.delivery_complete_count = later.delivery_complete_count;
    before.batches = merge(&before.batches, &later.batches, before.start_offset);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::share::state::{DeliveryState, StateBatch};

    fn write(start_offset: i64, first_offset: i64, last_offset: i64, delivery_count: i16) -> Write {
        let state = if delivery_count == 1 { DeliveryState::Available } else { DeliveryState::Acknowledged };
        let batch = StateBatch { first_offset, last_offset, state, delivery_count };
        Write { id: None, start_offset, delivery_complete_count: delivery_count.into(), batches: vec![batch] }
    }

    #[test]
    fn what_is_decided_during_a_write_goes_together_behind_it() {
        let mut writes = Writes::default();
        assert!(writes.push(write(3, 3, 9, 1), Promise::new()), "nobody carries it out yet");
        assert!(!writes.push(write(3, 5, 6, 2), Promise::new()));
        let (first, told) = writes.next().expect("both");
        assert_eq!(told.len(), 2);
        let of = |write: &Write| -> Vec<(i64, i64, i16)> {
            write.batches.iter().map(|batch| (batch.first_offset, batch.last_offset, batch.delivery_count)).collect()
        };
        assert_eq!(of(&first), [(3, 4, 1), (5, 6, 2), (7, 9, 1)]);
        assert!(!writes.push(write(3, 7, 9, 2), Promise::new()), "the first is under way");
        assert!(!writes.push(write(7, 10, 11, 2), Promise::new()));
        let (second, told) = writes.next().expect("what came meanwhile");
        assert_eq!((second.start_offset, second.delivery_complete_count, told.len()), (7, 2, 2));
        assert_eq!(of(&second), [(7, 11, 2)]);
        assert!(writes.next().is_none());
        assert!(writes.push(write(12, 12, 12, 2), Promise::new()), "somebody else is to carry it out");
    }
}
