//! Leaders' wishes for their ISRs: those of one turn and of the time that the control thread takes go together.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use millrace_engine::signal::Signal;

use super::Shell;
use crate::{
    channel::event::IsrOutcome,
    cluster::plane::{self, ControlError, IsrChange},
};

/// Proposals of one batch: what fits into one transaction of the store.
const BATCH_MAX: usize = 100;
/// How long the control thread has for a batch. What is not known by then may have happened.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What waits for the control thread. The core has one proposal per partition under way, which bounds it.
#[derive(Default)]
pub(super) struct Proposals {
    waiting: RefCell<Vec<IsrChange>>,
    bell: Signal,
    is_over: Cell<bool>,
}

impl Proposals {
    pub(super) fn put(&self, change: IsrChange) {
        self.waiting.borrow_mut().push(change);
        self.bell.notify();
    }

    /// No more are sent.
    pub(super) fn end(&self) {
        self.is_over.set(true);
        self.bell.notify();
    }

    async fn next(&self) -> Option<Vec<IsrChange>> {
        while self.waiting.borrow().is_empty() {
            if self.is_over.get() {
                return None;
            }
            self.bell.wait().await;
        }
        let mut waiting = self.waiting.borrow_mut();
        let some = waiting.len().min(BATCH_MAX);
        Some(waiting.drain(..some).collect())
    }
}

impl Shell {
    /// Sends batches, one at a time, until the shell ends.
    pub(super) async fn propose(self: Rc<Self>) {
        while let Some(batch) = self.proposals.next().await {
            let outcomes = self.control.alter_isr(batch.clone(), TIMEOUT).await;
            let outcomes: Vec<IsrOutcome> = match outcomes {
                Ok(outcomes) if outcomes.len() == batch.len() => outcomes.into_iter().map(outcome).collect(),
                Ok(_) | Err(ControlError::TimedOut(_)) => vec![IsrOutcome::Unknown; batch.len()],
                // it was never sent
                Err(ControlError::Busy | ControlError::Stopping) => vec![IsrOutcome::Refused; batch.len()],
            };
            for (IsrChange { partition, revision, .. }, outcome) in batch.into_iter().zip(outcomes) {
                self.tell(|core, now, logs| core.on_isr_changed(now, partition, revision, outcome, logs));
            }
        }
    }
}

fn outcome(outcome: plane::IsrOutcome) -> IsrOutcome {
    match outcome {
        plane::IsrOutcome::Changed(state) => IsrOutcome::Committed { revision: state.revision },
        plane::IsrOutcome::Refused(refusal) => {
            tracing::debug!(%refusal, "a change of an ISR is refused");
            IsrOutcome::Refused
        }
        plane::IsrOutcome::Stale(_) => IsrOutcome::Stale,
        plane::IsrOutcome::Unknown => IsrOutcome::Unknown,
    }
}
