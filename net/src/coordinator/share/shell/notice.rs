//! A fetch waits for any of several things to change.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::{Rc, Weak},
    task::{Poll, Waker},
};

/// Something happened; one task waits for it.
#[derive(Default)]
pub(super) struct Notice {
    is_given: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Notice {
    /// Wakes the task.
    pub(super) fn give(&self) {
        self.is_given.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for it.
    pub(super) async fn given(&self) {
        poll_fn(|context| {
            if self.is_given.get() {
                return Poll::Ready(());
            }
            self.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Those who want to know when something changes next.
#[derive(Default)]
pub(super) struct Watchers(RefCell<Vec<Weak<Notice>>>);

impl Watchers {
    /// One more, until the next change.
    pub(super) fn add(&self, notice: &Rc<Notice>) {
        let mut watchers = self.0.borrow_mut();
        // who went without a change is swept out here
        if watchers.len() == watchers.capacity() {
            watchers.retain(|watcher| watcher.strong_count() > 0);
        }
        watchers.push(Rc::downgrade(notice));
    }

    /// It changed.
    pub(super) fn notify(&self) {
        for watcher in self.0.take() {
            if let Some(notice) = watcher.upgrade() {
                notice.give();
            }
        }
    }
}
