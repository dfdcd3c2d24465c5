//! How tasks of one shard wait for each other. Nothing here crosses shards.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// One task sleeps until it is notified; a notification before the sleep is not lost.
#[derive(Default)]
pub struct Signal {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Wakes the task that waits, or the next one to do so.
    pub fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for a notification and takes it.
    pub async fn wait(&self) {
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
pub struct Outcome<T> {
    value: RefCell<Option<T>>,
    waiting: RefCell<Waiting>,
}

/// Who waits for an outcome, each at a place of its own, and the places that were given up.
#[derive(Default)]
struct Waiting {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// A place among those who wait; given up on drop.
struct Place<'a> {
    waiting: &'a RefCell<Waiting>,
    at: usize,
}

impl<'a> Place<'a> {
    fn take(waiting: &'a RefCell<Waiting>) -> Self {
        let mut inner = waiting.borrow_mut();
        let at = inner.free.pop().unwrap_or_else(|| {
            inner.wakers.push(None);
            inner.wakers.len() - 1
        });
        Self { waiting, at }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.borrow_mut();
        // Once the outcome is set nobody waits and the places are gone.
        if let Some(waker) = waiting.wakers.get_mut(self.at) {
            waker.take();
            waiting.free.push(self.at);
        }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Outcome<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outcome({:?})", self.value.borrow())
    }
}

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Self { value: RefCell::new(None), waiting: RefCell::default() }
    }
}

impl<T: Clone> Outcome<T> {
    /// Sets the value, once, and wakes everybody.
    pub fn set(&self, value: T) {
        let before = self.value.replace(Some(value));
        assert!(before.is_none(), "an outcome is set once");
        for waker in self.waiting.take().wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    /// The value, if it is there.
    pub fn get(&self) -> Option<T> {
        self.value.borrow().clone()
    }

    /// Waits for the value.
    pub async fn wait(self: Rc<Self>) -> T {
        let mut place = None;
        poll_fn(|cx| {
            if let Some(value) = self.get() {
                return Poll::Ready(value);
            }
            let at = place.get_or_insert_with(|| Place::take(&self.waiting)).at;
            self.waiting.borrow_mut().wakers[at] = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Waits that were dropped kept their place: a long-lived outcome grew with every one.
    #[test]
    fn a_dropped_wait_gives_its_place_up() {
        let outcome = Rc::<Outcome<u8>>::default();
        for _ in 0..100 {
            assert_eq!(outcome.clone().wait().now_or_never(), None);
        }
        assert_eq!(outcome.waiting.borrow().wakers.len(), 1);
        outcome.set(7);
        assert_eq!(outcome.wait().now_or_never(), Some(7));
    }
}
