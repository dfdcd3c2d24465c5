//! Turns: of the requests of one connection whose answers may be large, one at a time is worked on.
//!
//! A client that asks for many fetches at once and reads slowly would otherwise hold all their records in memory. The
//! next one begins when the answer of the one before was sent. Plain data but for the wakers.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// The turns of one connection. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Turns(Rc<State>);

#[derive(Default)]
struct State {
    /// Tickets given out.
    given: Cell<u64>,
    /// Whose turn it is.
    current: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Turns {
    /// The next place.
    pub(super) fn take_ticket(&self) -> Ticket {
        let ticket = self.0.given.get();
        self.0.given.set(ticket + 1);
        Ticket(ticket)
    }

    /// Waits for a place's turn.
    pub(super) async fn wait(&self, ticket: Ticket) {
        poll_fn(|cx| {
            if self.0.current.get() == ticket.0 {
                return Poll::Ready(());
            }
            self.0.waiting.borrow_mut().insert(ticket.0, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whoever's turn it was is done; called once for each ticket, in order.
    pub(super) fn next(&self) {
        self.0.current.set(self.0.current.get() + 1);
        let waker = self.0.waiting.borrow_mut().remove(&self.0.current.get());
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn places_come_up_in_order() {
        let turns = Turns::default();
        let tickets = [turns.take_ticket(), turns.take_ticket(), turns.take_ticket()];
        for up in 0..3 {
            for (at, ticket) in tickets.into_iter().enumerate() {
                assert_eq!(turns.wait(ticket).now_or_never().is_some(), at == up);
            }
            turns.next();
        }
    }
}
