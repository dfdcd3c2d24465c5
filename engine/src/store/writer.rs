//! The pump: seals groups, writes them, and moves the marks when they are written or durable, in the order of their
//! sequences.
//!
//! A group that must be flushed is one write on a descriptor with O_DSYNC, unless groups before it were only written:
//! then it is written plainly too and everything is flushed together, because an acknowledged group must not depend on
//! one that a power cut may take.

use std::{cell::RefCell, collections::VecDeque, io, rc::Rc, time::Duration};

use futures_util::future::{join, join_all};

use super::{Store, fat::FatRun, wal_files::WalFile};
use crate::{
    api::LogError,
    chunk::Memory,
    format::wal::{GroupEncoder, SegmentPointer, Stamp},
    io::{Buffer, File, Io, Share},
    partition::{
        PartitionCell,
        tail::{Backing, Extent},
    },
    timing::Timings,
    wal::group::{CommitGroup, EndEvent, PlacedEvent},
};

/// How far a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Writing,
    Written,
    Flushing,
    Done,
}

struct Flying<I: Io> {
    sequence: u64,
    group: CommitGroup,
    /// Runs that are written to their segments beside the group.
    fat: Rc<Vec<FatRun>>,
    stage: Stage,
    /// To be flushed once this group and all before it are written; empty when the write itself is durable.
    flush: Vec<Rc<WalFile<I>>>,
}

/// Groups being written.
pub(crate) struct Flight<I: Io> {
    groups: VecDeque<Flying<I>>,
    next_sequence: u64,
    /// Every group up to this one is durable.
    durable_sequence: u64,
    /// Where the next group goes in the current file.
    position: u64,
    /// Files with groups that were only written since the last group that flushes.
    unflushed: Vec<Rc<WalFile<I>>>,
    /// Whether something was only written since [`Store::flush_written`] ran.
    dirty: bool,
}

impl<I: Io> Flight<I> {
    pub(crate) fn new() -> Self {
        Self {
            groups: VecDeque::new(),
            next_sequence: 1,
            durable_sequence: 0,
            position: 0,
            unflushed: Vec::new(),
            dirty: false,
        }
    }

    /// Number of the oldest group on its way.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.groups.front().map(|flying| flying.group.number())
    }

    /// Groups on their way and their bytes.
    pub(crate) fn in_flight(&self) -> (usize, u64) {
        (self.groups.len(), self.groups.iter().map(|flying| flying.group.bytes as u64).sum())
    }

    /// How far they are, oldest first.
    pub(crate) fn stages(&self) -> impl Iterator<Item = Stage> {
        self.groups.iter().map(|flying| flying.stage)
    }

    /// Whether no group is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether the current file has room for a group.
    fn has_room(&self, current: &WalFile<I>, padded: usize) -> bool {
        self.position + padded as u64 <= current.bytes
    }

    pub(crate) fn take_all(&mut self) -> Vec<CommitGroup> {
        self.groups.drain(..).map(|flying| flying.group).collect()
    }
}

impl<I: Io> Store<I> {
    /// The task that writes groups; ends with the shard.
    pub(super) async fn run_pump(self: Rc<Self>) {
        loop {
            self.pump.wait().await;
            if self.stopped.get() {
                return;
            }
            while self.may_seal() {
                self.call_before_seal();
                let Some((group, file)) = self.next_group() else { break };
                self.start(group, file);
            }
        }
    }

    /// Has a function called before each group is sealed; what it appends is in that group, if there is room.
    pub(crate) fn on_seal(&self, call: Rc<dyn Fn()>) {
        self.before_seal.borrow_mut().push(call);
    }

    fn call_before_seal(&self) {
        // one at a time: a call may have another one added
        let mut next = 0;
        while let Some(call) = self.nth_before_seal(next) {
            call();
            next += 1;
        }
    }

    fn nth_before_seal(&self, n: usize) -> Option<Rc<dyn Fn()>> {
        self.before_seal.borrow().get(n).map(Rc::clone)
    }

    fn may_seal(&self) -> bool {
        self.groups.borrow().may_go(self.flight.borrow().groups.len())
    }

    /// The next group that may go, with the file it goes to. Without room in memory or in the log it has to wait for
    /// the keeper, which notifies the pump.
    fn next_group(&self) -> Option<(CommitGroup, Rc<WalFile<I>>)> {
        let padded = self.groups.borrow().next_padded()?;
        if !self.cache.borrow_mut().make_room(padded, 1) {
            self.starved.set(true);
            self.keeper.notify();
            return None;
        }
        let mut wal = self.wal.borrow_mut();
        let mut flight = self.flight.borrow_mut();
        if !wal.current().is_some_and(|file| flight.has_room(&file, padded)) {
            if !wal.advance() {
                self.starved.set(true);
                self.maker.notify();
                self.keeper.notify();
                return None;
            }
            flight.position = 0;
            self.maker.notify();
            self.keeper.notify();
        }
        self.starved.set(false);
        let file = wal.current().expect("there is a current file");
        let group = self.groups.borrow_mut().next(flight.groups.len())?;
        Some((group, file))
    }

    /// Whether the next group, if there is one, finds memory and a place now, or will find a file that is on its way.
    pub(super) fn next_would_go(&self) -> bool {
        let Some(padded) = self.groups.borrow().next_padded() else { return true };
        let wal = self.wal.borrow();
        let has_place = wal.current().is_some_and(|file| self.flight.borrow().has_room(&file, padded));
        self.cache.borrow().may_have_room(padded, 1) && (has_place || wal.has_file_coming())
    }

    fn start(self: &Rc<Self>, group: CommitGroup, file: Rc<WalFile<I>>) {
        let may_be_fat = self.may_have_fat_runs(&group);
        let plan = |run| if may_be_fat { self.plan_fat(run, &file) } else { None };
        let fat: Vec<Option<FatRun>> = group.runs.iter().map(plan).collect();
        let pointers: Vec<_> = fat.iter().map(|fat| fat.as_ref().map(FatRun::pointer)).collect();
        let mut buffer = self.io.buffer(group.encoded_bytes(&pointers));
        let mut flight = self.flight.borrow_mut();
        let sequence = flight.next_sequence;
        flight.next_sequence += 1;
        let stamp = Stamp {
            run: self.options.run,
            shard: self.options.shard,
            sequence,
            durable_sequence: flight.durable_sequence,
        };
        let mut encoder = GroupEncoder::new(buffer.bytes_mut());
        let places = group.encode(&pointers, &mut encoder);
        encoder.finish(stamp, self.io.now_ms());
        let buffer = Rc::new(buffer);
        let memory: Rc<dyn Memory> = buffer.clone();
        let tapped = self.tapped(&group, &fat, &places, &memory);
        self.counters.wal_groups.add(1);
        self.counters.wal_bytes.add(buffer.bytes().len());
        let position = flight.position;
        flight.position += buffer.bytes().len() as u64;

        self.hold(&group, &pointers, &places, &file, buffer.clone());
        let fat: Rc<Vec<FatRun>> = Rc::new(fat.into_iter().flatten().collect());
        let first_unflushed = flight.unflushed.is_empty();
        let mut flush = Vec::new();
        if !group.flush || !first_unflushed {
            if !flight.unflushed.iter().any(|known| known.id == file.id) {
                flight.unflushed.push(file.clone());
            }
            match group.flush {
                true => flush = std::mem::take(&mut flight.unflushed),
                false => flight.dirty = true,
            }
        }
        let wants_flush = group.flush;
        let durable_write = wants_flush && flush.is_empty();
        flight.groups.push_back(Flying { sequence, group, fat: fat.clone(), stage: Stage::Writing, flush });
        drop(flight);
        if let Some((tap, sealed)) = tapped {
            tap.sealed(&sealed);
        }

        let store = self.clone();
        self.io.spawn(Share::Serving, async move {
            let target = if durable_write { &file.durable } else { &file.plain };
            let fat_runs = join_all(fat.iter().map(|fat| store.write_fat(fat)));
            let began = store.io.elapsed();
            let (written, fat_written) = join(target.write(buffer, position), fat_runs).await;
            store.watch.log_step();
            match fat_written.into_iter().fold(written, Result::and) {
                Ok(()) => {
                    let counters = &store.counters;
                    let timings = if durable_write { &counters.wal_durable_writes } else { &counters.wal_writes };
                    store.record(timings, began);
                    store.stage(sequence, Stage::Written);
                }
                Err(error) => store.fail("a write of the shared log failed", &error),
            }
        });
    }

    /// Keeps a group in memory and its file in use; its runs join the tails, to be seen when the marks pass them.
    fn hold(
        &self,
        group: &CommitGroup,
        fat: &[Option<SegmentPointer>],
        places: &[u32],
        file: &Rc<WalFile<I>>,
        buffer: Rc<I::Buffer>,
    ) {
        let buffer_bytes = buffer.bytes().len();
        let backing = Backing::new(buffer, file.id, 0);
        let mut extents = Vec::new();
        for ((run, fat), at) in group.runs.iter().zip(fat).zip(places) {
            self.wal.borrow_mut().pin(file.id, &run.partition);
            self.live_bytes.set(self.live_bytes.get() + run.len);
            if fat.is_some() {
                continue; // it has memory of its own
            }
            backing.add_live();
            let extent = Extent {
                base_offset: run.base_offset,
                end_offset: run.end_offset,
                at: *at,
                len: u32::try_from(run.len).expect("groups are bounded"),
                backing: backing.clone(),
            };
            if run.partition.borrow().is_deleted() {
                self.release(run.id, std::iter::once(&extent));
                continue;
            }
            run.partition.borrow_mut().push_extent(extent);
            extents.push((run.partition.clone(), run.end_offset));
        }
        for PlacedEvent { partition, event, .. } in &group.events {
            if matches!(event, EndEvent::EpochStart { .. }) && !partition.borrow().is_deleted() {
                self.wal.borrow_mut().pin(file.id, partition);
                partition.borrow_mut().pin_epoch(file.id);
            }
        }
        if !extents.is_empty() {
            self.cache.borrow_mut().insert(backing, buffer_bytes, extents);
        }
        self.appended_bytes(group.runs.iter().map(|run| run.len).sum());
    }

    fn stage(self: &Rc<Self>, sequence: u64, stage: Stage) {
        let mut flight = self.flight.borrow_mut();
        // After a failure nothing is in flight any more.
        let Some(flying) = flight.groups.iter_mut().find(|flying| flying.sequence == sequence) else {
            return;
        };
        flying.stage = stage;
        drop(flight);
        self.settle();
    }

    /// Ends the groups at the front that are as durable as they have to be.
    fn settle(self: &Rc<Self>) {
        loop {
            let mut flight = self.flight.borrow_mut();
            let Some(front) = flight.groups.front_mut() else {
                break;
            };
            match front.stage {
                Stage::Writing | Stage::Flushing => break,
                Stage::Written if !front.flush.is_empty() => {
                    front.stage = Stage::Flushing;
                    let (sequence, files) = (front.sequence, front.flush.clone());
                    self.flush(sequence, files);
                    break;
                }
                Stage::Written | Stage::Done => {
                    let done = flight.groups.pop_front().expect("there is a front");
                    if done.group.flush {
                        flight.durable_sequence = done.sequence;
                    }
                    drop(flight);
                    self.apply(done);
                }
            }
        }
        self.pump.notify();
    }

    fn flush(self: &Rc<Self>, sequence: u64, files: Vec<Rc<WalFile<I>>>) {
        let store = self.clone();
        self.io.spawn(Share::Serving, async move {
            match store.flush_all(&files).await {
                Ok(()) => store.stage(sequence, Stage::Done),
                Err(error) => store.fail("a flush of the shared log failed", &error),
            }
        });
    }

    /// Flushes files of the log.
    async fn flush_all(&self, files: &[Rc<WalFile<I>>]) -> io::Result<()> {
        for file in files {
            let began = self.io.elapsed();
            file.plain.flush().await?;
            self.watch.flush_step();
            self.record(&self.counters.wal_flushes, began);
        }
        Ok(())
    }

    fn record(&self, timings: &RefCell<Timings>, began: Duration) {
        timings.borrow_mut().record(self.minute(), self.io.elapsed().saturating_sub(began));
    }

    /// Moves the marks, lets consumers see the batches, and answers the producers.
    fn apply(&self, done: Flying<I>) {
        let Flying { group, fat, .. } = done;
        for run in &group.runs {
            let mut partition = run.partition.borrow_mut();
            if !partition.is_deleted() {
                match group.flush {
                    true => partition.on_durable(run.end_offset),
                    false => partition.on_written(run.end_offset),
                }
            }
        }
        for fat in fat.iter() {
            self.fat_done(fat);
        }
        for run in &group.runs {
            self.keeper.grown(&run.partition);
        }
        if self.cache.borrow().is_held_up() {
            self.keeper.notify();
        }
        group.outcome.set(Ok(()));
        self.tell_progress(group.runs.iter().map(|run| &run.partition));
    }

    /// Makes everything that was written before this call durable, and the marks say so.
    pub(crate) async fn flush_written(self: &Rc<Self>) -> Result<(), LogError> {
        let files = {
            let mut flight = self.flight.borrow_mut();
            // What is being written now is for the next time.
            flight.dirty = flight.groups.iter().any(|flying| !flying.group.flush);
            // They stay listed: a group sealed meanwhile must not count on this flush.
            let in_flight = flight.groups.iter().flat_map(|flying| flying.flush.iter());
            flight.unflushed.iter().chain(in_flight).cloned().collect::<Vec<_>>()
        };
        let now = |cell: &Rc<PartitionCell>| {
            let partition = cell.borrow();
            (cell.clone(), partition.era().cuts, partition.marks().written())
        };
        let written: Vec<_> = self.partitions.borrow().values().map(now).collect();
        self.watch.flushing.set(true);
        let flushed = self.flush_all(&files).await;
        self.watch.flushing.set(false);
        if let Err(error) = flushed {
            self.fail("a flush of the shared log failed", &error);
            return Err(LogError::Storage(error.to_string()));
        }
        for (partition, cuts, written) in &written {
            let mut partition = partition.borrow_mut();
            // Offsets that were cut off meanwhile may be of other batches now.
            if partition.era().cuts == *cuts {
                partition.on_durable(*written);
            }
        }
        self.tell_progress(written.iter().map(|(partition, _, _)| partition));
        self.keeper.notify(); // what a topic wants flushed that did not before can go to segments now
        Ok(())
    }

    /// Whether groups were written that no flush has covered.
    pub(crate) fn has_unflushed(&self) -> bool {
        self.flight.borrow().dirty
    }

    /// Waits until everything taken so far is written.
    pub(crate) async fn drain(&self) {
        while !(self.groups.borrow().is_empty() && self.flight.borrow().groups.is_empty()) {
            if self.failed.borrow().is_some() {
                return;
            }
            self.io.sleep(Duration::from_millis(1)).await;
        }
    }
}
