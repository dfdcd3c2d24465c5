//! The right to an answer of one type, and answers on their way.
//!
//! Always holds: whoever waits hears exactly once. A ticket can only be given away with an answer of its own type, and
//! one that is lost tells that it was, so that nobody waits for ever.

use std::{
    fmt,
    rc::{Rc, Weak},
};

use kafka_protocol::error::ResponseError;

use super::promise::Promise;

/// Who waits for an answer.
pub(crate) trait Asker<R> {
    /// The answer; an error if the coordinator went without giving one.
    fn hear(&self, answer: Result<R, ResponseError>);
}

/// A task waits.
impl<R> Asker<R> for Promise<Result<R, ResponseError>> {
    fn hear(&self, answer: Result<R, ResponseError>) {
        self.keep(answer);
    }
}

/// A request that waits for an answer of type `R`.
pub(crate) struct Ticket<R> {
    asker: Option<Rc<dyn Asker<R>>>,
}

impl<R: 'static> Ticket<R> {
    /// Of whoever waits.
    pub(crate) fn of(asker: Rc<impl Asker<R> + 'static>) -> Self {
        Self { asker: Some(asker) }
    }

    fn answer(mut self, answer: R) {
        if let Some(asker) = self.asker.take() {
            asker.hear(Ok(answer));
        }
    }

    /// Tells this ticket from others, also when it has been answered.
    pub(crate) fn mark(&self) -> Mark<R> {
        Mark(self.asker.as_ref().map(Rc::downgrade))
    }

    /// Whether the mark is this ticket's.
    pub(crate) fn has(&self, mark: &Mark<R>) -> bool {
        // a mark keeps the place in memory, so that no later ticket has the same
        match (&self.asker, &mark.0) {
            (Some(asker), Some(marked)) => std::ptr::addr_eq(Rc::as_ptr(asker), marked.as_ptr()),
            _ => false,
        }
    }
}

impl<R> Drop for Ticket<R> {
    fn drop(&mut self) {
        if let Some(asker) = self.asker.take() {
            asker.hear(Err(ResponseError::NotCoordinator));
        }
    }
}

impl<R> fmt::Debug for Ticket<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

/// What is remembered of a ticket that somebody else holds.
pub(crate) struct Mark<R>(Option<Weak<dyn Asker<R>>>);

impl<R> fmt::Debug for Mark<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mark")
    }
}

/// What a coordinator answers.
pub(crate) trait Answer: 'static {
    /// Makes it the answer when what it tells could not be made durable.
    fn fail(&mut self, error: ResponseError);
}

/// An answer that can be a refusal.
impl<T: 'static, E: From<ResponseError> + 'static> Answer for Result<T, E> {
    fn fail(&mut self, error: ResponseError) {
        *self = Err(error.into());
    }
}

/// An answer and the ticket that it is for.
pub(crate) struct Reply(Box<dyn Addressed>);

trait Addressed {
    fn fail(&mut self, error: ResponseError);
    fn send(self: Box<Self>);
}

struct Letter<R> {
    ticket: Ticket<R>,
    answer: R,
}

impl<R: Answer> Addressed for Letter<R> {
    fn fail(&mut self, error: ResponseError) {
        self.answer.fail(error);
    }

    fn send(self: Box<Self>) {
        let Self { ticket, answer } = *self;
        ticket.answer(answer);
    }
}

impl Reply {
    /// An answer to a ticket.
    pub(crate) fn new<R: Answer>(ticket: Ticket<R>, answer: R) -> Self {
        Self(Box::new(Letter { ticket, answer }))
    }

    /// The same when what it tells could not be made durable.
    pub(crate) fn failed(mut self, error: ResponseError) -> Self {
        self.0.fail(error);
        self
    }

    /// Tells who waits.
    pub(crate) fn send(self) {
        self.0.send();
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}
