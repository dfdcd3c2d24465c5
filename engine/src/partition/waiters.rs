//! Who waits for a partition's log to grow. Each says by how many bytes it must have grown to be of interest, so that an
//! append wakes nobody whom it does not serve: for the others it costs one comparison.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::Waker,
};

/// Somebody who waits, on one partition or on many.
#[derive(Default)]
pub(crate) struct Waiter {
    notified: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Waiter {
    pub(crate) fn notify(&self) {
        self.notified.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ready once notified.
    pub(crate) fn poll(&self, waker: &Waker) -> bool {
        if !self.notified.get() {
            self.waker.replace(Some(waker.clone()));
        }
        self.notified.get()
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Waiters {
    /// Bytes that consumers were shown while somebody waited.
    shown_bytes: u64,
    /// What that must be for a waiter to be notified.
    waiting: Vec<(u64, Rc<Waiter>)>,
}

impl Waiters {
    /// Lets the waiter know once there are so many bytes more. Those that nobody holds any more are dropped on the way.
    pub(crate) fn watch(&mut self, waiter: &Rc<Waiter>, bytes: usize) {
        if self.waiting.len().is_power_of_two() {
            self.waiting.retain(|(_, waiter)| Rc::strong_count(waiter) > 1);
        }
        self.waiting.push((self.shown_bytes.saturating_add(bytes as u64), waiter.clone()));
    }

    /// Whether there is nobody to tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Consumers are shown so many bytes more. Need not be told while nobody waits: each counts from when it came.
    pub(crate) fn grow(&mut self, bytes: usize) {
        self.shown_bytes += bytes as u64;
        let shown = self.shown_bytes;
        for (_, waiter) in self.waiting.extract_if(.., |(at, _)| *at <= shown) {
            waiter.notify();
        }
    }

    /// Something else has changed: everybody looks.
    pub(crate) fn wake(&mut self) {
        for (_, waiter) in std::mem::take(&mut self.waiting) {
            waiter.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_is_notified_once_there_is_enough_for_it() {
        let mut waiters = Waiters::default();
        waiters.grow(1_000);
        let [little, much, gone] = [10, 100, 20].map(|bytes| {
            let waiter = Rc::new(Waiter::default());
            waiters.watch(&waiter, bytes);
            waiter
        });
        let is_notified = |waiter: &Rc<Waiter>| waiter.poll(Waker::noop());
        waiters.grow(9);
        assert!(!is_notified(&little));
        waiters.grow(1);
        assert!(is_notified(&little) && !is_notified(&much));
        drop(gone);
        waiters.watch(&much, 1_000); // the others are looked through
        assert_eq!(waiters.waiting.len(), 2);
        waiters.grow(90);
        assert!(is_notified(&much));
        waiters.wake();
        assert!(waiters.waiting.is_empty());
    }
}
