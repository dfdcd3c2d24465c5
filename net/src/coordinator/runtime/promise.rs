//! How tasks of one shard wait for each other. Nothing here crosses shards.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// A value that one task will give and one other takes.
pub(crate) struct Promise<T> {
    value: Cell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Promise<T> {
    /// A promise that is not kept yet.
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { value: Cell::new(None), waker: RefCell::new(None) })
    }

    /// Gives the value.
    pub(crate) fn keep(&self, value: T) {
        self.value.set(Some(value));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for the value and takes it.
    pub(crate) async fn take(&self) -> T {
        poll_fn(|context| match self.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                self.waker.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

/// Any number of tasks wait until it is opened, once, with a result.
pub(crate) struct Gate<T> {
    result: Cell<Option<T>>,
    wakers: RefCell<Vec<Waker>>,
}

impl<T: Copy> Gate<T> {
    /// A closed gate.
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { result: Cell::new(None), wakers: RefCell::default() })
    }

    /// Lets everybody through.
    pub(crate) fn open(&self, result: T) {
        self.result.set(Some(result));
        self.wakers.take().into_iter().for_each(Waker::wake);
    }

    /// What it was opened with.
    pub(crate) fn result(&self) -> Option<T> {
        self.result.get()
    }

    /// Waits until it is open.
    pub(crate) async fn pass(&self) -> T {
        poll_fn(|context| match self.result() {
            Some(result) => Poll::Ready(result),
            None => {
                self.wakers.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

/// One task sleeps until it is rung; a ring before that is not lost.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Bell {
    /// Wakes the task.
    pub(crate) fn ring(&self) {
        self.rung.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for a ring.
    pub(crate) async fn rung(&self) {
        poll_fn(|context| {
            if self.rung.take() {
                return Poll::Ready(());
            }
            self.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Lets all other tasks run that are runnable now.
pub(crate) async fn next_turn() {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
