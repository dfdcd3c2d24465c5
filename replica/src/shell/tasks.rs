//! Tasks that run beside others until they are done: nobody is cancelled, and whoever stops waits for all of them.

use std::{cell::Cell, future::Future, rc::Rc};

use glommio::TaskQueueHandle;
use millrace_engine::signal::Signal;

/// Counts the tasks that it started. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Tasks(Rc<Running>);

#[derive(Default)]
struct Running {
    count: Cell<usize>,
    fewer: Signal,
}

/// One running task; it ended when this is dropped.
struct Turn(Rc<Running>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.fewer.notify();
    }
}

impl Tasks {
    /// Starts one on the caller's queue.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(self.counted(work)).detach();
    }

    /// Starts one on another queue, or on the caller's if that is gone.
    pub(super) fn spawn_into(&self, queue: TaskQueueHandle, work: impl Future<Output = ()> + 'static) {
        match glommio::spawn_local_into(self.counted(work), queue) {
            Ok(task) => drop(task.detach()),
            Err(error) => panic!("the queue lives as long as the executor: {error}"),
        }
    }

    fn counted(&self, work: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        self.0.count.set(self.0.count.get() + 1);
        let turn = Turn(self.0.clone());
        async move {
            work.await;
            drop(turn);
        }
    }

    /// How many run.
    pub(super) fn count(&self) -> usize {
        self.0.count.get()
    }

    /// Waits until none runs.
    pub(super) async fn ended(&self) {
        while self.0.count.get() > 0 {
            self.0.fewer.wait().await;
        }
    }
}
