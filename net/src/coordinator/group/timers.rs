//! The deadlines of all groups of one coordinator partition, in one heap.
//!
//! Moving a deadline later, as every heartbeat does, only changes a map: the heap's entry is found to be early when it
//! comes up and is put back. So the heap holds about one entry per timer, however often it is moved.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    rc::Rc,
};

/// What a deadline is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum TimerKind {
    /// A classic group waits for its members to join.
    GroupJoin,
    /// A classic group waits for its members to sync.
    GroupSync,
    /// A member must be heard of.
    Session(Rc<str>),
    /// A member of a consumer group must have given its partitions back.
    Rebalance(Rc<str>),
    /// A member of a consumer group that uses the classic protocol must rejoin.
    MemberJoin(Rc<str>),
    /// A member of a consumer group that uses the classic protocol must sync.
    MemberSync(Rc<str>),
}

/// A timer: a group and what it waits for.
pub(crate) type Timer = (Rc<str>, TimerKind);

#[derive(Debug, Clone, Copy)]
struct Due {
    /// When it is really due.
    at_ms: i64,
    /// The earliest time under which it stands in the heap; other entries of the same timer are left over.
    queued_ms: i64,
}

/// See the module. Times are ms of whatever clock the owner uses.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: HashMap<Timer, Due>,
    heap: BinaryHeap<Reverse<(i64, Timer)>>,
}

impl Timers {
    /// Sets a timer, or moves it.
    pub(crate) fn schedule(&mut self, group: &Rc<str>, kind: TimerKind, at_ms: i64) {
        let timer = (Rc::clone(group), kind);
        match self.due.get_mut(&timer) {
            Some(due) if due.queued_ms <= at_ms => due.at_ms = at_ms,
            _ => {
                self.due.insert(timer.clone(), Due { at_ms, queued_ms: at_ms });
                self.heap.push(Reverse((at_ms, timer)));
            }
        }
    }

    /// Sets a timer unless it is set already.
    pub(crate) fn schedule_if_absent(&mut self, group: &Rc<str>, kind: TimerKind, at_ms: i64) {
        if !self.due.contains_key(&(Rc::clone(group), kind.clone())) {
            self.schedule(group, kind, at_ms);
        }
    }

    /// Takes a timer away.
    pub(crate) fn cancel(&mut self, group: &Rc<str>, kind: TimerKind) {
        self.due.remove(&(Rc::clone(group), kind));
    }

    /// When to ask [`Timers::pop`] next; may be too early, never too late.
    pub(crate) fn next_deadline_ms(&self) -> Option<i64> {
        self.heap.peek().map(|Reverse((at_ms, _))| *at_ms)
    }

    /// Takes out a timer that is due.
    pub(crate) fn pop(&mut self, now_ms: i64) -> Option<Timer> {
        while let Some(Reverse((queued_ms, _))) = self.heap.peek() {
            if *queued_ms > now_ms {
                return None;
            }
            let Reverse((queued_ms, timer)) = self.heap.pop()?;
            let Some(due) = self.due.get_mut(&timer).filter(|due| due.queued_ms == queued_ms) else {
                continue;
            };
            if due.at_ms <= now_ms {
                self.due.remove(&timer);
                return Some(timer);
            }
            due.queued_ms = due.at_ms;
            self.heap.push(Reverse((due.at_ms, timer)));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(timers: &mut Timers, now_ms: i64) -> Vec<TimerKind> {
        std::iter::from_fn(|| timers.pop(now_ms).map(|(_, kind)| kind)).collect()
    }

    #[test]
    fn moved_timers_leave_one_entry_in_the_heap() {
        let (group, mut timers) = (Rc::from("g"), Timers::default());
        for now in 0..1000 {
            timers.schedule(&group, TimerKind::GroupJoin, 10 + now);
            assert_eq!(drain(&mut timers, now), []);
            assert!(timers.heap.len() <= 1);
        }
        assert_eq!(drain(&mut timers, 1009), [TimerKind::GroupJoin]);
        assert_eq!(timers.next_deadline_ms(), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Schedule(u8, i64),
        Cancel(u8),
        Advance(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..4, 0i64..50).prop_map(|(timer, after)| Step::Schedule(timer, after)),
            (0u8..4).prop_map(Step::Cancel),
            (0i64..30).prop_map(Step::Advance),
        ]
    }

    proptest! {
        #[test]
        fn fires_exactly_what_is_due(steps in proptest::collection::vec(step(), 0..60)) {
            let (group, mut timers) = (Rc::from("g"), Timers::default());
            let (mut model, mut now) = (HashMap::new(), 0);
            let kind = |timer: u8| TimerKind::Session(Rc::from(timer.to_string().as_str()));
            for step in steps {
                match step {
                    Step::Schedule(timer, after) => {
                        timers.schedule(&group, kind(timer), now + after);
                        model.insert(kind(timer), now + after);
                    }
                    Step::Cancel(timer) => {
                        timers.cancel(&group, kind(timer));
                        model.remove(&kind(timer));
                    }
                    Step::Advance(by) => now += by,
                }
                if let Some(first) = model.values().min() {
                    prop_assert!(timers.next_deadline_ms().is_some_and(|deadline| deadline <= *first));
                }
                let mut fired = drain(&mut timers, now);
                let mut expected: Vec<_> = model.extract_if(|_, at| *at <= now).map(|(kind, _)| kind).collect();
                fired.sort();
                expected.sort();
                prop_assert_eq!(fired, expected);
            }
        }
    }
}
