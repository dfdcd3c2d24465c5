//! Those who ask in tests: what they hear is kept in the order in which it was said.

use std::{cell::RefCell, rc::Rc};

use kafka_protocol::error::ResponseError;

use super::{Ticket, ticket::Asker};

/// Answers of any type, as whatever the test makes of them.
pub(crate) struct Inbox<T>(Rc<RefCell<Vec<T>>>);

struct Slip<T, F> {
    inbox: Rc<RefCell<Vec<T>>>,
    note: F,
}

impl<R, T, F: Fn(Result<R, ResponseError>) -> Option<T>> Asker<R> for Slip<T, F> {
    fn hear(&self, answer: Result<R, ResponseError>) {
        self.inbox.borrow_mut().extend((self.note)(answer));
    }
}

impl<T: 'static> Inbox<T> {
    /// Nothing was heard yet.
    pub(crate) fn new() -> Self {
        Self(Rc::default())
    }

    /// A ticket whose answer `note` turns into something to be kept.
    pub(crate) fn ticket<R: 'static>(
        &self,
        note: impl Fn(Result<R, ResponseError>) -> Option<T> + 'static,
    ) -> Ticket<R> {
        Ticket::of(Rc::new(Slip { inbox: Rc::clone(&self.0), note }))
    }

    /// What was heard since the last look.
    pub(crate) fn take(&self) -> Vec<T> {
        self.0.take()
    }
}
