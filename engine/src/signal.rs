//! How tasks of one shard wait for each other. Nothing here crosses shards.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// One task sleeps until it is notified; a notification before the sleep is not lost.
#[derive(Default)]
pub(crate) struct Signal {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Wakes the task that waits, or the next one to do so.
    pub(crate) fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for a notification and takes it.
    pub(crate) async fn wait(&self) {
        poll_fn(|cx| {
            if self.set.take() {
                return Poll::Ready(());
            }
            self.waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// A value that is set once and that any number of tasks wait for.
pub(crate) struct Outcome<T> {
    value: RefCell<Option<T>>,
    wakers: RefCell<Vec<Option<Waker>>>,
}

impl<T: std::fmt::Debug> std::fmt::Debug for Outcome<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outcome({:?})", self.value.borrow())
    }
}

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Self { value: RefCell::new(None), wakers: RefCell::default() }
    }
}

impl<T: Clone> Outcome<T> {
    /// Sets the value, once, and wakes everybody.
    pub(crate) fn set(&self, value: T) {
        let before = self.value.replace(Some(value));
        assert!(before.is_none(), "an outcome is set once");
        for waker in self.wakers.take().into_iter().flatten() {
            waker.wake();
        }
    }

    /// The value, if it is there.
    pub(crate) fn get(&self) -> Option<T> {
        self.value.borrow().clone()
    }

    /// Waits for the value.
    pub(crate) async fn wait(self: Rc<Self>) -> T {
        let mut slot = None;
        poll_fn(|cx| {
            if let Some(value) = self.get() {
                return Poll::Ready(value);
            }
            let mut wakers = self.wakers.borrow_mut();
            let at = *slot.get_or_insert_with(|| {
                wakers.push(None);
                wakers.len() - 1
            });
            wakers[at] = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}
