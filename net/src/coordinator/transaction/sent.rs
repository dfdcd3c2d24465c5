//! Markers that were sent and may not be answered, of all coordinators of a shard: a machine that is loaded anew waits for
//! those of the one before it. Pure.

use std::{cell::RefCell, rc::Rc};

use millrace_engine::api::TopicPartition;

use super::Questioner;
use crate::coordinator::runtime::Gate;

struct Markers {
    /// The partition whose coordinator has sent them, and which machine of it.
    partition: TopicPartition,
    by: Questioner,
    answered: Rc<Gate<()>>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Sent(RefCell<Vec<Markers>>);

impl Sent {
    /// A machine sends some; the gate is to be opened when they are answered.
    pub(super) fn begin(&self, partition: TopicPartition, by: &Questioner) -> Rc<Gate<()>> {
        let answered = Gate::new();
        let mut sent = self.0.borrow_mut();
        // looked through only when it would grow
        if sent.len() == sent.capacity() {
            sent.retain(|known| known.answered.result().is_none());
            let under_way = sent.len();
            sent.reserve(under_way.max(16));
        }
        sent.push(Markers { partition, by: by.clone(), answered: Rc::clone(&answered) });
        answered
    }

    /// The gates of those that machines of a partition have sent which are gone, as the one of now sees it.
    pub(super) fn of_gone(&self, partition: TopicPartition, by: &Questioner) -> Vec<Rc<Gate<()>>> {
        let sent = self.0.borrow();
        let of_gone =
            sent.iter().filter(|it| it.partition == partition && it.by != *by && it.answered.result().is_none());
        of_gone.map(|it| Rc::clone(&it.answered)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every marker waited for all that were under way on the shard: those of one coordinator went one after the other.
    #[test]
    fn markers_wait_for_those_of_the_machine_before_and_no_others() {
        let at = |partition| TopicPartition { topic: uuid::Uuid::nil(), partition };
        let (sent, former, now) = (Sent::default(), Questioner::default(), Questioner::default());
        let (first, answered) = (sent.begin(at(0), &former), sent.begin(at(0), &former));
        answered.open(());
        sent.begin(at(1), &former);
        sent.begin(at(0), &now);
        let waited_for = sent.of_gone(at(0), &now);
        assert!(waited_for.len() == 1 && Rc::ptr_eq(&waited_for[0], &first));
    }
}
