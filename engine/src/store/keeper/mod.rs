//! The keeper: the one task of a shard that changes segments and the manifest.
//!
//! It works in rounds. A round takes the partitions whose tails have grown, or that stand in the way of recycling a
//! file of the shared log, writes their batches to their segments, flushes those, and appends one note to the manifest.
//! Only then do the marks move and the log's files come free. A crash before the note leaves bytes behind a segment's
//! known end, which the next round overwrites. Its parts: what a round takes and writes ([`rounds`]), what the manifest is
//! told ([`notes`]), moving log starts ([`trims`]), and bringing to segments all that there is ([`passes`]).

mod notes;
mod passes;
mod rounds;
mod trims;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    io,
    rc::Rc,
    time::Duration,
};

use self::{passes::Pass, rounds::Picked, trims::Trim};
use super::{Store, replace::Job, truncate::CutSteps};
use crate::{
    api::TopicPartition,
    format::journal::Journal,
    io::Io,
    partition::PartitionCell,
    signal::{Outcome, Signal},
};

/// A tail is written to its segment when it has that many bytes,
const MATERIALISE_BYTES: usize = 1 << 20;
/// and a round begins when it has that many to write: the flushes of a round, each with a commit of the file system's
/// journal, and its note cost the same for little, and the groups of the shared log wait for them.
const ROUND_BYTES_MIN: usize = 8 << 20;
/// The manifest hears of fat runs when a partition has that many bytes of them.
const NOTE_BYTES: usize = 32 << 20;
/// Pause after an error that may pass (no space).
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the keeper has to do.
pub(crate) struct Keeper<I: Io> {
    signal: Signal,
    grown: RefCell<VecDeque<Rc<PartitionCell>>>,
    /// Who has grown shall not wait for others.
    urgent: Cell<bool>,
    removed: RefCell<Vec<(TopicPartition, Rc<Outcome<()>>)>>,
    trims: RefCell<VecDeque<Trim>>,
    pub(super) cuts: RefCell<CutSteps>,
    jobs: RefCell<VecDeque<Job>>,
    passes: RefCell<Vec<Pass>>,
    journal: RefCell<Option<Journal<I>>>,
    pub(super) run_ends: BTreeMap<u64, u64>,
    stopped: Cell<bool>,
    ended: Rc<Outcome<()>>,
    doing: Cell<Doing>,
    /// Counts what it has begun to do.
    turns: Cell<u64>,
}

/// What the keeper does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It has nothing to do.
    #[default]
    Sleeping,
    /// It waits for space on the disk.
    WaitingForSpace,
    /// It removes files, moves log starts, replaces segments.
    Tidying,
    /// It brings the tails of that many partitions to segments.
    Round(usize),
    /// It writes a manifest of that many bytes.
    Rewriting(usize),
}

impl<I: Io> Keeper<I> {
    pub(crate) fn new(journal: Journal<I>, run_ends: BTreeMap<u64, u64>) -> Self {
        Self {
            signal: Signal::default(),
            grown: RefCell::default(),
            urgent: Cell::new(false),
            removed: RefCell::default(),
            trims: RefCell::default(),
            cuts: RefCell::default(),
            jobs: RefCell::default(),
            passes: RefCell::default(),
            journal: RefCell::new(Some(journal)),
            run_ends,
            stopped: Cell::new(false),
            ended: Rc::default(),
            doing: Cell::default(),
            turns: Cell::default(),
        }
    }

    fn does(&self, what: Doing) {
        self.doing.set(what);
        self.turns.update(|turns| turns + 1);
    }

    /// What it does, and how many things it has begun.
    pub(super) fn doing(&self) -> (Doing, u64) {
        (self.doing.get(), self.turns.get())
    }

    /// Partitions that shall be in the next round.
    pub(super) fn queued(&self) -> usize {
        self.grown.borrow().len()
    }

    /// Whether it does nothing any more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get().is_some()
    }

    /// Something stands in the way of the pump.
    pub(crate) fn notify(&self) {
        self.signal.notify();
    }

    /// Everything is to be kept from here on, whatever its size.
    pub(super) fn end_soon(&self) {
        self.stopped.set(true);
    }

    /// A partition's tail has grown.
    pub(crate) fn grown(&self, cell: &Rc<PartitionCell>) {
        let mut partition = cell.borrow_mut();
        let (unnoted, tail) = (partition.unnoted_bytes().unwrap_or(0), partition.tail().live_bytes());
        let due = unnoted >= NOTE_BYTES || tail >= MATERIALISE_BYTES && !partition.is_appended_to();
        if due && partition.queue() {
            self.grown.borrow_mut().push_back(cell.clone());
        }
        if partition.is_queued() && (unnoted >= NOTE_BYTES || tail >= ROUND_BYTES_MIN) {
            self.urgent.set(true);
        }
        if self.is_round_due() {
            self.signal.notify();
        }
    }

    fn queue(&self, cell: &Rc<PartitionCell>) {
        if cell.borrow_mut().queue() {
            self.grown.borrow_mut().push_back(cell.clone());
        }
        self.urgent.set(true);
    }

    /// A partition shall be in the next round, whatever the size of its tail. Does not wake the keeper.
    pub(super) fn look_at(&self, cell: Rc<PartitionCell>) {
        self.grown.borrow_mut().push_front(cell);
        self.urgent.set(true);
    }

    fn is_round_due(&self) -> bool {
        self.urgent.get() || self.grown.borrow().len() * MATERIALISE_BYTES >= ROUND_BYTES_MIN
    }

    /// Something to do for the compactor.
    pub(super) fn post(&self, job: Job) {
        self.jobs.borrow_mut().push_back(job);
        self.signal.notify();
    }

    pub(super) fn next_job(&self) -> Option<Job> {
        self.jobs.borrow_mut().pop_front()
    }

    /// What waits for the keeper: trims, jobs of the compactor and passes.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> [usize; 3] {
        [self.trims.borrow().len(), self.jobs.borrow().len(), self.passes.borrow().len()]
    }

    /// A partition is gone: its files go too. Resolves when they are removed.
    pub(crate) fn removed(&self, id: TopicPartition) -> Rc<Outcome<()>> {
        let done = Rc::<Outcome<()>>::default();
        self.removed.borrow_mut().push((id, done.clone()));
        self.signal.notify();
        done
    }
}

impl<I: Io> Store<I> {
    /// The keeper's task; ends after [`Store::stop_keeper`].
    pub(super) async fn run_keeper(self: Rc<Self>) {
        loop {
            let kept = self.keep().await;
            if kept.is_err() {
                self.refuse_jobs();
            }
            let worked = match kept {
                Ok(worked) => worked,
                Err(error) if self.keeper.stopped.get() => {
                    tracing::error!("tails stay in the shared log: {error}");
                    false
                }
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    tracing::warn!(shard = self.options.shard, "no space for segments: {error}");
                    self.full.set(true);
                    self.end_passes(|_| true); // retention must not wait for the space that it makes
                    self.keeper.does(Doing::WaitingForSpace);
                    self.io.sleep(RETRY_AFTER).await;
                    self.check_space();
                    true
                }
                Err(error) => {
                    self.fail("writing segments failed", &error);
                    false
                }
            };
            self.end_passes(|pass| !worked || pass.is_over());
            if !worked {
                if let Some(reason) = &*self.failed.borrow() {
                    self.refuse_trims(reason); // those that could be done are
                    self.refuse_cuts(reason);
                }
                self.keeper.does(Doing::Sleeping);
                if self.keeper.stopped.get() {
                    return self.keeper.ended.set(());
                }
                self.note_standing();
                self.keeper.signal.wait().await;
            }
        }
    }

    /// Does what there is to do; `false` when there was nothing.
    pub(super) async fn keep(self: &Rc<Self>) -> io::Result<bool> {
        self.keeper.does(Doing::Tidying);
        self.remove_files().await?;
        let worked = self.do_cuts().await? | self.do_trims().await? | self.do_jobs().await?;
        let picked = self.pick();
        if picked.is_empty() {
            return Ok(worked);
        }
        self.keeper.does(Doing::Round(picked.len()));
        if let Err(error) = self.round(&picked).await {
            for Picked { cell, .. } in picked {
                cell.borrow_mut().end_keeping();
                self.keeper.look_at(cell);
            }
            return Err(error);
        }
        self.rewrite_manifest().await?;
        Ok(true)
    }

    async fn remove_files(self: &Rc<Self>) -> io::Result<()> {
        // that one gives up soon, and notifies
        let busy_with = self.compactor.busy_with();
        let (later, removed) = self.keeper.removed.take().into_iter().partition(|(id, _)| Some(*id) == busy_with);
        *self.keeper.removed.borrow_mut() = later;
        self.spawn_removal(removed);
        let retired = self.wal.borrow().retired();
        if retired.is_empty() {
            return Ok(());
        }
        for file in &retired {
            self.io.remove(&super::wal_files::path_of(&self.options.wal_dir(), *file)).await?;
        }
        self.io.sync_dir(&self.options.wal_dir()).await?;
        self.wal.borrow_mut().removed(&retired);
        self.pump.notify();
        Ok(())
    }

    /// Ends the keeper once everything is in segments.
    pub(crate) async fn stop_keeper(&self) {
        self.keeper.stopped.set(true);
        self.keeper.signal.notify();
        self.keeper.ended.clone().wait().await;
    }
}
