//! Batches that are not in their topic's codec: a task that recompresses them, one at a time and beside the shard.
//!
//! A batch that waits for it holds back what comes after it for the same partition, so that the order of calls stays the
//! order of offsets; partitions take turns ([`Turns`]), and those that nothing is recompressed for know nothing of it.
//! Producer and sequence are looked at when a batch has its turn: nothing of its partition can come in between, so a
//! batch that came before is not recompressed again.
//!
//! What waits lies in its request's memory, which has a budget of its own. What was made lies in memory until it is
//! written: of that there are [`MADE_BYTES_MAX`] and one batch at most.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use bytes::Bytes;

use super::{
    Store,
    append::{Appended, Wait, Waiting},
    turns::Turns,
};
use crate::{
    api::{LogError, TopicPartition},
    batch::{BatchInfo, Recompress, Recompressed},
    io::Io,
    signal::{Outcome, Signal},
};

/// Bytes of recompressed batches that may wait to be written before the next one is begun.
const MADE_BYTES_MAX: usize = 8 << 20;

/// Bytes of records between two looks at whether the node stops: a quarter of a second at the slowest level.
const STEP_BYTES: usize = 256 << 10;

/// See the module.
#[derive(Default)]
pub(super) struct Recompressor {
    turns: RefCell<Turns<Waiting>>,
    due: Signal,
    stopping: Cell<bool>,
    ended: Rc<Outcome<()>>,
}

impl Recompressor {
    /// Whether a batch of that partition waits.
    pub(super) fn holds(&self, id: TopicPartition) -> bool {
        self.turns.borrow().holds(id)
    }

    /// Has a batch wait for its turn.
    pub(super) fn push(&self, waiting: Waiting) -> Result<(), LogError> {
        if self.stopping.get() {
            return Err(LogError::ShuttingDown);
        }
        let id = waiting.cell.borrow().id();
        self.turns.borrow_mut().push(id, waiting);
        self.due.notify();
        Ok(())
    }
}

impl<I: Io> Store<I> {
    /// The task.
    pub(super) async fn run_recompressor(self: Rc<Self>) {
        let mut made = Made::default();
        while !self.recompressor.stopping.get() {
            let Some((id, first)) = self.begin_turn() else {
                self.recompressor.due.wait().await;
                continue;
            };
            let outcome = first.outcome.clone();
            outcome.set(self.turn(first, &mut made).await);
            while let Some(Waiting { cell, bytes, info, terms, outcome, .. }) = self.next_ready(id) {
                outcome.set(self.admit(&cell, bytes, &info, terms));
                self.io.yield_now().await;
            }
            self.recompressor.turns.borrow_mut().end(id);
        }
        for waiting in self.recompressor.turns.borrow_mut().take_all() {
            waiting.outcome.set(Err(LogError::ShuttingDown));
        }
        self.recompressor.ended.set(());
    }

    fn begin_turn(&self) -> Option<(TopicPartition, Waiting)> {
        self.recompressor.turns.borrow_mut().begin()
    }

    /// The next batch of a partition, if it only waited for others.
    fn next_ready(&self, id: TopicPartition) -> Option<Waiting> {
        self.recompressor.turns.borrow_mut().next_of(id, |waiting| waiting.to.is_none())
    }

    async fn turn(&self, waiting: Waiting, made: &mut Made) -> Appended {
        let Waiting { cell, bytes, info, terms, to, bytes_max, .. } = waiting;
        let Some(to) = to else { return self.admit(&cell, bytes, &info, terms) };
        if let Some(known) = self.known(&cell, &info, terms)? {
            return Ok(known);
        }
        made.make_room().await;
        self.counters.recompressed_batches.add(1);
        self.counters.recompressed_bytes.add(bytes.len());
        let (bytes, info) = self.recompress(Recompress::new(&bytes, &info, to, bytes_max)?).await?;
        let size = bytes.len();
        let (produced, wait) = self.admit(&cell, bytes, &info, terms)?;
        made.note(size, wait.as_ref());
        Ok((produced, wait))
    }

    async fn recompress(&self, mut batch: Recompress) -> Result<(Bytes, BatchInfo), LogError> {
        loop {
            match self.io.beside(move || batch.step(STEP_BYTES)).await? {
                Recompressed::Done(bytes, info) => return Ok((bytes, info)),
                Recompressed::More(_) if self.recompressor.stopping.get() => return Err(LogError::ShuttingDown),
                Recompressed::More(rest) => batch = rest,
            }
        }
    }

    /// Takes no more batches, gives up the one that has its turn and refuses those that wait.
    pub(super) async fn stop_recompressor(&self) {
        self.recompressor.stopping.set(true);
        self.recompressor.due.notify();
        self.recompressor.ended.clone().wait().await;
    }
}

/// Recompressed batches that may not be written yet, oldest first, with their bytes.
#[derive(Default)]
struct Made {
    batches: VecDeque<(usize, Wait)>,
    bytes: usize,
}

impl Made {
    /// Waits until so much is written that one more may be made.
    async fn make_room(&mut self) {
        while let Some((bytes, wait)) = self.batches.front() {
            if !wait.is_over() && self.bytes <= MADE_BYTES_MAX {
                return;
            }
            let _who_sent_it_is_told = wait.clone().logged().await;
            self.bytes -= bytes;
            self.batches.pop_front();
        }
    }

    fn note(&mut self, bytes: usize, wait: Option<&Wait>) {
        if let Some(wait) = wait {
            self.batches.push_back((bytes, wait.clone()));
            self.bytes += bytes;
        }
    }
}
