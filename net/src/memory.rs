//! The memory that requests of one shard may take, received or being received: a budget with a queue.
//!
//! [`Budget`] decides and is plain data; [`ReceiveMemory`] is the handle that tasks wait on. Always true: bytes are
//! reserved before a buffer grows; requests being received come before new ones, and within each kind whoever asked
//! first is served first; the sum of all reservations exceeds the budget by at most one grant. That grant breaks a
//! deadlock: when all memory is held by requests that are still being received, none of them would ever be finished
//! and give memory back, so the first of them gets what it needs in spite of the budget.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// Who waits. Given out in rising order.
pub(crate) type WaiterId = u64;

/// What bytes are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To read what a connection sends next.
    NewRequest,
    /// To go on with a request of which a part was received.
    Continuation,
}

/// The budget's arithmetic and its queues.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Bytes that may be reserved.
    limit: usize,
    /// Bytes reserved.
    reserved: usize,
    /// Waiters with the bytes they want.
    continuations: VecDeque<(WaiterId, usize)>,
    new_requests: VecDeque<(WaiterId, usize)>,
    next_id: WaiterId,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Budget {
        Budget { limit, reserved: 0, continuations: VecDeque::new(), new_requests: VecDeque::new(), next_id: 0 }
    }

    /// Reserves `bytes` at once if nobody waits and they are there.
    pub(crate) fn reserve(&mut self, bytes: usize) -> bool {
        if self.is_contended() || !self.fits(bytes) {
            return false;
        }
        self.reserved += bytes;
        true
    }

    /// Asks for `bytes`; [`Budget::next_grant`] names the waiter when they are reserved.
    pub(crate) fn enqueue(&mut self, purpose: Purpose, bytes: usize) -> WaiterId {
        let id = self.next_id;
        self.next_id += 1;
        match purpose {
            Purpose::Continuation => self.continuations.push_back((id, bytes)),
            Purpose::NewRequest => self.new_requests.push_back((id, bytes)),
        }
        id
    }

    /// A waiter gave up.
    pub(crate) fn cancel(&mut self, id: WaiterId) {
        self.continuations.retain(|(waiter, _)| *waiter != id);
        self.new_requests.retain(|(waiter, _)| *waiter != id);
    }

    /// The next waiter whose bytes are reserved now. Call until `None` after every change.
    pub(crate) fn next_grant(&mut self) -> Option<WaiterId> {
        let (id, bytes) = if let Some(&(id, bytes)) = self.continuations.front() {
            // The second half may exceed the limit, once: see the module's documentation.
            if !self.fits(bytes) && self.reserved > self.limit {
                return None;
            }
            self.continuations.pop_front();
            (id, bytes)
        } else {
            let &(id, bytes) = self.new_requests.front()?;
            if !self.fits(bytes) {
                return None;
            }
            self.new_requests.pop_front();
            (id, bytes)
        };
        self.reserved += bytes;
        Some(id)
    }

    /// Bytes come back.
    pub(crate) fn release(&mut self, bytes: usize) {
        assert!(self.reserved >= bytes, "more bytes released than reserved");
        self.reserved -= bytes;
    }

    /// Whether anybody waits.
    pub(crate) fn is_contended(&self) -> bool {
        !self.continuations.is_empty() || !self.new_requests.is_empty()
    }

    fn fits(&self, bytes: usize) -> bool {
        self.reserved + bytes <= self.limit
    }
}

/// One shard's receive memory. Clones share it.
#[derive(Clone)]
pub(crate) struct ReceiveMemory {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    budget: Budget,
    waiters: HashMap<WaiterId, Waiter>,
}

#[derive(Default)]
struct Waiter {
    waker: Option<Waker>,
    granted: bool,
}

impl ReceiveMemory {
    /// Memory of `limit` bytes.
    pub(crate) fn new(limit: usize) -> ReceiveMemory {
        let shared = Shared { budget: Budget::new(limit), waiters: HashMap::new() };
        ReceiveMemory { shared: Rc::new(RefCell::new(shared)) }
    }

    /// Reserves `bytes`, waiting in the queue if need be.
    pub(crate) async fn reserve(&self, purpose: Purpose, bytes: usize) -> Reservation {
        if self.shared.borrow_mut().budget.reserve(bytes) {
            return Reservation { memory: self.clone(), bytes };
        }
        let id = {
            let mut shared = self.shared.borrow_mut();
            let id = shared.budget.enqueue(purpose, bytes);
            shared.waiters.insert(id, Waiter::default());
            // This very waiter may be the one that breaks a deadlock.
            shared.grant();
            id
        };
        let waiting = Waiting { memory: self, id, bytes };
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            let waiter = shared.waiters.get_mut(&id).expect("a waiter stays until it leaves");
            if waiter.granted {
                return Poll::Ready(());
            }
            waiter.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        waiting.take()
    }

    /// Bytes reserved, and how many may be.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let shared = self.shared.borrow();
        (shared.budget.reserved, shared.budget.limit)
    }

    /// Whether anybody waits.
    pub(crate) fn is_contended(&self) -> bool {
        self.shared.borrow().budget.is_contended()
    }

    fn release(&self, bytes: usize) {
        let mut shared = self.shared.borrow_mut();
        shared.budget.release(bytes);
        shared.grant();
    }
}

impl Shared {
    fn grant(&mut self) {
        while let Some(id) = self.budget.next_grant() {
            let waiter = self.waiters.get_mut(&id).expect("whoever is in the queue waits");
            waiter.granted = true;
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }
}

/// A place in the queue; leaves it when dropped, giving back what was granted meanwhile.
struct Waiting<'a> {
    memory: &'a ReceiveMemory,
    id: WaiterId,
    bytes: usize,
}

impl Waiting<'_> {
    fn take(self) -> Reservation {
        self.memory.shared.borrow_mut().waiters.remove(&self.id);
        Reservation { memory: self.memory.clone(), bytes: self.bytes }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.memory.shared.borrow_mut().waiters.remove(&self.id) else {
            return;
        };
        if waiter.granted {
            self.memory.release(self.bytes);
        } else {
            let mut shared = self.memory.shared.borrow_mut();
            shared.budget.cancel(self.id);
            shared.grant();
        }
    }
}

/// Reserved bytes; they come back when it is dropped.
pub(crate) struct Reservation {
    memory: ReceiveMemory,
    bytes: usize,
}

impl Reservation {
    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Splits off `bytes` of it.
    pub(crate) fn split(&mut self, bytes: usize) -> Reservation {
        assert!(bytes <= self.bytes, "more bytes split off than reserved");
        self.bytes -= bytes;
        Reservation { memory: self.memory.clone(), bytes }
    }

    /// Takes in another one.
    pub(crate) fn join(&mut self, mut other: Reservation) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_are_served_in_order() {
        let mut budget = Budget::new(100);
        assert!(budget.reserve(80));
        assert!(!budget.reserve(30));
        let first = budget.enqueue(Purpose::NewRequest, 30);
        let second = budget.enqueue(Purpose::NewRequest, 5);
        assert!(!budget.reserve(1), "nobody overtakes the queue");
        assert_eq!(budget.next_grant(), None);
        budget.release(80);
        assert_eq!(budget.next_grant(), Some(first));
        assert_eq!(budget.next_grant(), Some(second));
        assert_eq!(budget.next_grant(), None);
        assert_eq!(budget.reserved, 35);
    }

    #[test]
    fn unfinished_requests_come_before_new_ones() {
        let mut budget = Budget::new(100);
        assert!(budget.reserve(100));
        budget.enqueue(Purpose::NewRequest, 10);
        let unfinished = budget.enqueue(Purpose::Continuation, 10);
        budget.release(10);
        assert_eq!(budget.next_grant(), Some(unfinished));
    }

    #[test]
    fn one_unfinished_request_may_exceed_the_budget() {
        let mut budget = Budget::new(100);
        assert!(budget.reserve(60) && budget.reserve(40));
        let first = budget.enqueue(Purpose::Continuation, 60);
        let second = budget.enqueue(Purpose::Continuation, 40);
        assert_eq!(budget.next_grant(), Some(first));
        assert_eq!(budget.next_grant(), None, "only one at a time");
        budget.release(120);
        assert_eq!(budget.next_grant(), Some(second));
    }

    #[test]
    fn whoever_gives_up_leaves_the_queue() {
        let mut budget = Budget::new(10);
        assert!(budget.reserve(10));
        let first = budget.enqueue(Purpose::NewRequest, 10);
        let second = budget.enqueue(Purpose::NewRequest, 10);
        budget.cancel(first);
        budget.release(10);
        assert_eq!(budget.next_grant(), Some(second));
    }

    #[test]
    fn dropped_reservations_come_back() {
        let memory = ReceiveMemory::new(100);
        let mut whole = futures_util::FutureExt::now_or_never(memory.reserve(Purpose::NewRequest, 100))
            .expect("the budget is free");
        let part = whole.split(30);
        assert!(futures_util::FutureExt::now_or_never(memory.reserve(Purpose::NewRequest, 1)).is_none());
        assert!(!memory.is_contended(), "a dropped wait leaves the queue");
        drop(part);
        whole.join(futures_util::FutureExt::now_or_never(memory.reserve(Purpose::NewRequest, 30)).expect("free"));
        assert_eq!(whole.bytes(), 100);
        drop(whole);
        assert_eq!(memory.shared.borrow().budget.reserved, 0);
    }
}
