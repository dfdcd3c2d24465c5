//! Looks at a shard's log for [`crate::stall`], and says who waits for whom. Only looks: nothing that waits here is ever
//! woken by it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    time::Duration,
};

use super::{Store, keeper::Doing, wal_files::FilesStanding, writer::Stage};
use crate::{
    api::TopicPartition,
    io::Io,
    partition::Partition,
    stall::{Change, Detector, LOG_PATIENCE, Look, Steps, Waiting},
    wal::WalFileId,
};

/// What is counted for the look, and what looking found out.
pub(crate) struct Watch {
    log_steps: Cell<u64>,
    flush_steps: Cell<u64>,
    segment_steps: Cell<u64>,
    /// What was only written is being flushed.
    pub(super) flushing: Cell<bool>,
    detector: RefCell<Detector<Waiting>>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            log_steps: Cell::default(),
            flush_steps: Cell::default(),
            segment_steps: Cell::default(),
            flushing: Cell::default(),
            detector: RefCell::new(Detector::new(LOG_PATIENCE)),
        }
    }
}

impl Watch {
    /// A write of the shared log has ended.
    pub(super) fn log_step(&self) {
        self.log_steps.update(|steps| steps + 1);
    }

    /// A flush of the shared log has ended.
    pub(super) fn flush_step(&self) {
        self.flush_steps.update(|steps| steps + 1);
    }

    /// A write or a flush of a segment or of the manifest has ended.
    pub(super) fn segment_step(&self) {
        self.segment_steps.update(|steps| steps + 1);
    }

    /// Stalls that began.
    pub(super) fn stalls(&self) -> u64 {
        self.detector.borrow().stalls()
    }

    /// Whether something stands still, as of the last look.
    pub(super) fn is_stalled(&self) -> bool {
        self.detector.borrow().is_stalled()
    }

    /// For how long nothing has moved for the oldest group, as of the last look.
    pub(super) fn oldest_group(&self) -> Duration {
        self.detector.borrow().waited(Waiting::Group)
    }

    fn steps(&self, making: u64) -> Steps {
        let Self { log_steps, flush_steps, segment_steps, .. } = self;
        Steps { log: log_steps.get(), flushes: flush_steps.get(), segments: segment_steps.get(), making }
    }
}

/// What is in a shard's shared log only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Bytes of batches that are in the shared log and in no segment.
    pub(crate) bytes: u64,
    /// Partitions that they are of.
    pub(crate) partitions: u64,
}

impl<I: Io> Store<I> {
    /// Looks whether anything stands still. To be called about every second.
    pub(crate) fn look_for_stalls(&self) -> Option<Change<Waiting>> {
        let waits = self.glance().waits();
        self.watch.detector.borrow_mut().look(self.io.elapsed(), waits)
    }

    /// Whether something stands still, as of the last look.
    pub(crate) fn is_stalled(&self) -> bool {
        self.watch.is_stalled()
    }

    fn glance(&self) -> Look {
        let (flight, wal) = (self.flight.borrow(), self.wal.borrow());
        let (in_flight, in_flight_bytes) = flight.in_flight();
        let (doing, keeper_turns) = self.keeper.doing();
        Look {
            steps: self.watch.steps(wal.making_steps()),
            oldest_group: flight.oldest().or_else(|| self.groups.borrow().oldest()),
            in_flight,
            in_flight_bytes,
            making: wal.making(),
            wiping: if self.failed.borrow().is_some() { 0 } else { wal.wiping() }, // its maker has ended then
            keeper_turns,
            keeper_works: !matches!(doing, Doing::Sleeping | Doing::WaitingForSpace),
            keeper_bytes: if let Doing::Rewriting(bytes) = doing { bytes as u64 } else { 0 },
            flushing: self.watch.flushing.get(),
            full: self.full.get(),
        }
    }

    /// What is in the shared log only. Looks at every partition.
    pub(crate) fn left(&self) -> Left {
        let partitions = self.partitions.borrow();
        let has_tail = |partition: &Partition| partition.tail().live_bytes() > 0;
        let count = partitions.values().filter(|cell| has_tail(&cell.borrow())).count();
        Left { bytes: self.live_bytes.get() as u64, partitions: count as u64 }
    }

    /// How everything stands that groups, pump, maker and keeper wait for. Looks at every partition. `name` says what a
    /// partition is called.
    pub(crate) fn standing(&self, name: impl Fn(TopicPartition) -> String) -> Standing {
        let files = self.wal.borrow().standing();
        let held = self.wal.borrow().oldest_held();
        let cache = self.cache.borrow();
        let cache_holders: Vec<_> = cache.oldest_live().map(|cell| (cell.borrow().id(), 1)).collect();
        let (doing, _) = self.keeper.doing();
        Standing {
            waiting: self.groups.borrow().waiting(),
            in_flight: self.flight.borrow().stages().collect(),
            starved: self.starved.get(),
            file_holders: held.map(|(file, holders)| (file, Holders::of(holders, &name))),
            files,
            live_bytes: self.live_bytes.get(),
            cached: (cache.bytes(), cache.budget()),
            cache_holders: Holders::of(cache_holders, &name),
            doing,
            queued: self.keeper.queued(),
            full: self.full.get(),
        }
    }
}

/// Partitions that are named.
const NAMED_MAX: usize = 4;
/// Files of the log that are listed.
const FILES_MAX: usize = 16;

/// Partitions with their extents, a few by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holders {
    named: Vec<(String, usize)>,
    more: usize,
}

impl Holders {
    fn of(all: Vec<(TopicPartition, usize)>, name: impl Fn(TopicPartition) -> String) -> Self {
        let all: BTreeMap<TopicPartition, usize> = all.into_iter().collect();
        let named = all.iter().take(NAMED_MAX).map(|(id, extents)| (name(*id), *extents)).collect();
        Self { named, more: all.len().saturating_sub(NAMED_MAX) }
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.named.is_empty() {
            return f.write_str("nobody");
        }
        for (at, (name, extents)) in self.named.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name} ({extents})")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// How a shard's log stands. Shown in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Groups that are not being written, and their bytes.
    waiting: (usize, u64),
    /// Oldest first.
    in_flight: Vec<Stage>,
    starved: bool,
    files: FilesStanding,
    /// The oldest file that cannot be recycled, and whose extents are in it.
    file_holders: Option<(WalFileId, Holders)>,
    live_bytes: usize,
    /// Of its budget.
    cached: (usize, usize),
    /// Whose extents keep the cache from evicting.
    cache_holders: Holders,
    doing: Doing,
    queued: usize,
    full: bool,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (waiting, bytes) = self.waiting;
        write!(f, "groups: {waiting} of {bytes} bytes wait")?;
        match &self.in_flight[..] {
            [] => f.write_str(", none is being written")?,
            stages => write!(f, ", {stages:?} at the disk")?,
        }
        f.write_str(if self.starved { ", the pump lacks room" } else { "" })?;
        self.write_files(f)?;
        let (cached, budget) = self.cached;
        write!(f, "; memory: {} bytes live, {cached} of {budget} cached", self.live_bytes)?;
        write!(f, ", the oldest live of {}", self.cache_holders)?;
        match self.doing {
            Doing::Sleeping => f.write_str("; keeper: sleeps")?,
            Doing::WaitingForSpace => f.write_str("; keeper: waits for space on the disk")?,
            Doing::Tidying => f.write_str("; keeper: removes or replaces files")?,
            Doing::Round(partitions) => write!(f, "; keeper: writes {partitions} partitions to segments")?,
            Doing::Rewriting(bytes) => write!(f, "; keeper: writes a manifest of {bytes} bytes")?,
        }
        write!(f, ", {} partitions queued", self.queued)?;
        f.write_str(if self.full { "; the disk is full" } else { "" })
    }
}

impl Standing {
    fn write_files(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FilesStanding { used, free, spent, wiping, making, count_max } = &self.files;
        write!(f, "; log files: {} of {count_max} used", used.len())?;
        for (at, (file, live)) in used.iter().take(FILES_MAX).enumerate() {
            write!(f, "{}{}: {live}", if at == 0 { " (live extents " } else { ", " }, file.0)?;
        }
        f.write_str(if used.is_empty() { "" } else { ")" })?;
        write!(f, ", {free} free, {spent} spent, {wiping} being wiped")?;
        if let Some((unmade, size)) = making {
            write!(f, ", one in the making lacks {unmade} of {size} bytes")?;
        }
        match &self.file_holders {
            Some((file, holders)) => write!(f, ", file {} is held by {holders}", file.0),
            None => Ok(()),
        }
    }
}
