//! The keeper: the one task of a shard that changes segments and the manifest.
//!
//! It works in rounds. A round takes the partitions whose tails have grown, or that stand in the way of recycling a
//! file of the shared log, writes their batches to their segments, flushes those, and appends one note to the manifest.
//! Only then do the marks move and the log's files come free. A crash before the note leaves bytes behind a segment's
//! known end, which the next round overwrites.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashSet, VecDeque},
    io,
    rc::Rc,
    time::Duration,
};

use futures_util::{StreamExt, stream};

use super::{Store, partition_dir, replace::Job, segment_files::OpenSegment};
use crate::{
    api::{LogError, TopicPartition},
    chunk::Memory,
    format::{
        journal::{Journal, Payloads},
        manifest::{self, Record},
        segment::{self, Segment, SegmentName},
    },
    io::{BLOCK, Buffer, File, Io, align_down, align_up},
    materialise::{self, Plan, SegmentWrite},
    partition::{Appending, Partition, PartitionCell, Unnoted},
    signal::{Outcome, Signal},
};

/// A tail is written to its segment when it has that many bytes,
const MATERIALISE_BYTES: usize = 1 << 20;
/// and a round begins when it has that many to write: the flushes of a round, each with a commit of the file system's
/// journal, and its note cost the same for little, and the groups of the shared log wait for them.
const ROUND_BYTES_MIN: usize = 8 << 20;
/// The manifest hears of fat runs when a partition has that many bytes of them.
const NOTE_BYTES: usize = 32 << 20;
/// Bytes of one partition in one round at most, unless a single extent is larger.
const PARTITION_BYTES_MAX: usize = 8 << 20;
/// Bytes and partitions of a round at most.
const ROUND_BYTES: usize = 32 << 20;
const ROUND_PARTITIONS: usize = 512;
/// Bytes of one write and segments written side by side: little, because the next group of the shared log stands behind
/// them at the device.
const WRITE_BYTES: usize = 256 << 10;
const WRITTEN_TOGETHER: usize = 4;
/// Segments flushed side by side. The file system commits the flushes of a moment together.
const FLUSHED_TOGETHER: usize = 16;
/// Pause after an error that may pass (no space).
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A request to move a partition's log start.
struct Trim {
    id: TopicPartition,
    before: i64,
    outcome: Rc<Outcome<Result<i64, LogError>>>,
}

/// A request to bring to segments what there was when it was made: producers that never rest must not hold it up.
struct Pass {
    /// Partitions and the offset up to which they have to be in segments.
    waits_for: Vec<(Rc<PartitionCell>, i64)>,
    done: Rc<Outcome<()>>,
}

/// A partition of a round; without a plan it is only noted.
struct Picked {
    cell: Rc<PartitionCell>,
    plan: Option<Plan>,
}

/// What the manifest is being told of a partition.
struct Taken {
    cell: Rc<PartitionCell>,
    unnoted: Unnoted,
}

/// What the keeper has to do.
pub(crate) struct Keeper<I: Io> {
    signal: Signal,
    grown: RefCell<VecDeque<Rc<PartitionCell>>>,
    /// Who has grown shall not wait for others.
    urgent: Cell<bool>,
    removed: RefCell<Vec<(TopicPartition, Rc<Outcome<()>>)>>,
    trims: RefCell<VecDeque<Trim>>,
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

impl Pass {
    fn is_over(&mut self) -> bool {
        self.waits_for.retain(|(cell, end)| {
            let partition = cell.borrow();
            !partition.deleted && partition.materialised < *end
        });
        self.waits_for.is_empty()
    }
}

impl<I: Io> Keeper<I> {
    pub(crate) fn new(journal: Journal<I>, run_ends: BTreeMap<u64, u64>) -> Self {
        Self {
            signal: Signal::default(),
            grown: RefCell::default(),
            urgent: Cell::new(false),
            removed: RefCell::default(),
            trims: RefCell::default(),
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
        let unnoted = partition.unnoted.as_ref().map_or(0, |unnoted| unnoted.bytes);
        let due = unnoted >= NOTE_BYTES
            || partition.tail_bytes >= MATERIALISE_BYTES && matches!(partition.appending, Appending::Nobody);
        if due && !partition.queued {
            partition.queued = true;
            self.grown.borrow_mut().push_back(cell.clone());
        }
        if partition.queued && (unnoted >= NOTE_BYTES || partition.tail_bytes >= ROUND_BYTES_MIN) {
            self.urgent.set(true);
        }
        if self.is_round_due() {
            self.signal.notify();
        }
    }

    /// Partitions that are waited for shall have their turn, whatever the size of their tails. Does not wake the keeper.
    fn queue_all(&self, pass: &Pass) {
        pass.waits_for.iter().for_each(|(cell, _)| self.queue(cell));
    }

    fn queue(&self, cell: &Rc<PartitionCell>) {
        if !std::mem::replace(&mut cell.borrow_mut().queued, true) {
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

    fn refuse_trims(&self, reason: &str) {
        for trim in self.keeper.trims.take() {
            trim.outcome.set(Err(LogError::Storage(reason.to_owned())));
        }
    }

    /// Does what there is to do; `false` when there was nothing.
    pub(super) async fn keep(self: &Rc<Self>) -> io::Result<bool> {
        self.keeper.does(Doing::Tidying);
        self.remove_files().await?;
        let worked = self.do_trims().await? | self.do_jobs().await?;
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

    /// Chooses the partitions of a round and plans them.
    fn pick(&self) -> Vec<Picked> {
        let pressure = self.under_pressure();
        let held_up = self.cache.borrow().is_held_up();
        let now_ms = self.io.now_ms();
        let mut picked = Vec::new();
        let mut bytes = 0;
        let mut seen = HashSet::new();
        let mut take = |cell: Rc<PartitionCell>| {
            let mut partition = cell.borrow_mut();
            partition.queued = false;
            if partition.deleted || !seen.insert(partition.id) {
                return true;
            }
            let plan = matches!(partition.appending, Appending::Nobody)
                .then(|| partition.materialisable(PARTITION_BYTES_MAX))
                .filter(|extents| !extents.is_empty())
                .map(|extents| {
                    let active = partition.active().map(|at| partition.segments[at].clone());
                    materialise::plan(active.as_ref(), extents, &partition.config, now_ms)
                });
            if plan.is_some() {
                partition.appending = Appending::Keeper;
            }
            let wanted = plan.is_some() || partition.unnoted.is_some();
            drop(partition);
            if wanted {
                bytes += plan.iter().flat_map(|plan| &plan.extents).map(|e| e.len as usize).sum::<usize>();
                picked.push(Picked { cell, plan });
            }
            bytes < ROUND_BYTES && picked.len() < ROUND_PARTITIONS
        };
        let mut more = true;
        let due = pressure || held_up || self.keeper.is_round_due();
        while due && more {
            let Some(cell) = self.keeper.grown.borrow_mut().pop_front() else {
                break;
            };
            more = take(cell);
        }
        if due && more {
            self.keeper.urgent.set(false);
        }
        // Who holds the oldest file may hold no memory, and its note may fail: both are in the way.
        more = more && (!pressure || self.wal.borrow().oldest_holders().all(|cell| take(cell.clone())));
        if more && (pressure || held_up) {
            let _all_taken = self.cache.borrow().oldest_live().all(|cell| take(cell.clone()));
        }
        picked
    }

    /// Whether tails must be materialised that have not grown enough by themselves.
    fn under_pressure(&self) -> bool {
        let (cached, budget) = (self.cache.borrow().bytes(), self.cache.borrow().budget());
        let live = self.live_bytes.get();
        self.keeper.stopped.get()
            || self.starved.get()
            || self.wal.borrow().under_pressure()
            || live > budget / 2
            || live > 0 && cached > budget / 8 * 7
    }

    async fn round(&self, picked: &[Picked]) -> io::Result<()> {
        let plans = picked.iter().filter_map(|Picked { cell, plan }| Some((cell.borrow().id, plan.as_ref()?)));
        let written = stream::iter(plans)
            .map(|(id, plan)| async move { Ok((id, plan, self.write_plan(id, plan, None, WRITE_BYTES).await?)) })
            .buffer_unordered(WRITTEN_TOGETHER)
            .collect::<Vec<_>>()
            .await;
        let written = written.into_iter().collect::<io::Result<Vec<_>>>()?;
        let flushed = stream::iter(written)
            .map(|(id, plan, files)| async move {
                for open in files {
                    open.file.flush().await?;
                    self.watch.segment_step();
                }
                self.sync_new_segments(id, plan).await
            })
            .buffer_unordered(FLUSHED_TOGETHER)
            .collect::<Vec<_>>()
            .await;
        flushed.into_iter().collect::<io::Result<Vec<()>>>()?;
        for Picked { cell, plan } in picked {
            let Some(plan) = plan else { continue };
            let mut partition = cell.borrow_mut();
            partition.end_keeping();
            if !partition.deleted {
                partition.appended(plan, self.io.now_ms());
                let bytes = plan.extents.iter().map(|e| e.len as usize).sum::<usize>();
                self.live_bytes.set(self.live_bytes.get() - bytes);
            }
        }
        self.pump.notify(); // there is memory, whatever becomes of the note
        self.note_partitions(picked.iter().map(|picked| &picked.cell)).await?;
        for Picked { cell, .. } in picked {
            cell.borrow_mut().prune_tail();
            self.keeper.grown(cell);
        }
        self.check_space();
        self.pump.notify();
        Ok(())
    }

    /// Tells the manifest what it does not know of these partitions; then the shared log is not needed for that.
    async fn note_partitions(&self, cells: impl Iterator<Item = &Rc<PartitionCell>>) -> io::Result<()> {
        let mut payloads = Payloads::default();
        let mut taken = Vec::new();
        for cell in cells {
            let mut partition = cell.borrow_mut();
            let Some((unnoted, advance)) = partition.take_unnoted() else {
                continue;
            };
            for part in manifest::split(advance) {
                payloads.push(&manifest::encode(partition.id, &Record::Advance(part)));
            }
            taken.push(Taken { cell: cell.clone(), unnoted });
        }
        let noted = self.note(payloads).await;
        self.settle_taken(taken, noted.is_ok());
        noted
    }

    /// The shared log is not needed for what the manifest knows now. If it does not, it must be told another time.
    fn settle_taken(&self, taken: Vec<Taken>, noted: bool) {
        for Taken { cell, unnoted } in taken {
            let mut partition = cell.borrow_mut();
            if noted || partition.deleted {
                unnoted.pins.into_iter().for_each(|(file, extents)| self.unpin(file, partition.id, extents));
            } else {
                partition.put_back(unnoted);
            }
        }
    }

    /// Appends to the manifest, durably.
    pub(super) async fn note(&self, payloads: Payloads) -> io::Result<()> {
        let mut journal = self.keeper.journal.take().expect("only the keeper uses the manifest");
        let mut result = Ok(());
        for payload in payloads.finish() {
            result = journal.append(&payload).await;
            if result.is_err() {
                break;
            }
            self.watch.segment_step();
        }
        self.keeper.journal.replace(Some(journal));
        result
    }

    /// Writes a plan's batches and the footers of segments that end. Answers the files, to be flushed. `head` is what
    /// the first block holds before, if that is known; one write has `write_bytes` at most.
    pub(super) async fn write_plan(
        &self,
        id: TopicPartition,
        plan: &Plan,
        mut head: Option<&Rc<Vec<u8>>>,
        write_bytes: usize,
    ) -> io::Result<Vec<Rc<OpenSegment<I>>>> {
        let mut files = Vec::new();
        for write in &plan.writes {
            let segment = &write.segment;
            let open = self.segments.get(id, segment.name(), write.from == 0).await?;
            let head = head.take().filter(|_| write.from > 0);
            // What an append that was cut short left behind the end must not be taken for batches once a footer follows.
            let ends_in_block = segment.sealed && !write.from.is_multiple_of(BLOCK as u64);
            if !write.pieces.is_empty() || ends_in_block {
                self.write_batches(&open, write, head, write_bytes).await?;
            }
            if segment.sealed {
                let footer = segment::encode_footer(segment);
                let mut buffer = self.io.buffer(footer.len());
                buffer.bytes_mut().copy_from_slice(&footer);
                open.file.write(Rc::new(buffer), segment.footer_position()).await?;
            }
            files.push(open);
        }
        Ok(files)
    }

    /// Makes the names of a plan's new segments durable.
    pub(super) async fn sync_new_segments(&self, id: TopicPartition, plan: &Plan) -> io::Result<()> {
        match plan.writes.iter().any(|write| write.from == 0) {
            true => self.io.sync_dir(&partition_dir(&self.options.data_dir, id)).await,
            false => Ok(()),
        }
    }

    /// Appends batches behind a segment's end. The block that the end lies in is written again with what it held.
    async fn write_batches(
        &self,
        open: &OpenSegment<I>,
        write: &SegmentWrite,
        head: Option<&Rc<Vec<u8>>>,
        write_bytes: usize,
    ) -> io::Result<()> {
        let mut position = align_down(write.from);
        let mut filled = usize::try_from(write.from - position).expect("less than a block");
        let mut left = filled + write.pieces.iter().map(|piece| piece.range.len()).sum::<usize>();
        let mut buffer = self.write_buffer(left, write_bytes);
        if filled > 0 {
            let head: Rc<dyn Memory> = match head {
                Some(known) => known.clone(),
                None => open.file.read(position, BLOCK).await?,
            };
            let head = head.bytes().get(..filled).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.bytes_mut()[..filled].copy_from_slice(head);
        }
        for piece in &write.pieces {
            let mut rest = &piece.memory.bytes()[piece.range.clone()];
            while !rest.is_empty() {
                let room = buffer.bytes_mut();
                let now = rest.len().min(room.len() - filled);
                room[filled..filled + now].copy_from_slice(&rest[..now]);
                filled += now;
                rest = &rest[now..];
                if filled == room.len() && left > filled {
                    left -= filled;
                    let full = std::mem::replace(&mut buffer, self.write_buffer(left, write_bytes));
                    open.file.write(Rc::new(full), position).await?;
                    self.watch.segment_step();
                    position += filled as u64;
                    filled = 0;
                }
            }
        }
        buffer.bytes_mut()[filled..].fill(0);
        open.file.write(Rc::new(buffer), position).await?;
        self.watch.segment_step();
        Ok(())
    }

    fn write_buffer(&self, left: usize, write_bytes: usize) -> I::Buffer {
        self.io.buffer(usize::try_from(align_up(left as u64)).expect("bounded").min(write_bytes))
    }

    /// Rewrites the manifest to what the partitions say now, if most of it is history. Then nothing is left to note.
    async fn rewrite_manifest(&self) -> io::Result<()> {
        let wanted = self.keeper.journal.borrow().as_ref().is_some_and(Journal::wants_rewrite);
        if !wanted {
            return Ok(());
        }
        let cells: Vec<_> = self.partitions.borrow().values().cloned().collect();
        let take = |cell: Rc<PartitionCell>| {
            let (unnoted, _) = cell.borrow_mut().take_unnoted()?;
            Some(Taken { cell, unnoted })
        };
        let taken = cells.into_iter().filter_map(take).collect();
        let payloads = self.manifest_payloads();
        self.keeper.does(Doing::Rewriting(payloads.iter().map(Vec::len).sum()));
        let mut journal = self.keeper.journal.take().expect("only the keeper uses the manifest");
        let result = journal.rewrite(&payloads).await;
        self.keeper.journal.replace(Some(journal));
        self.settle_taken(taken, result.is_ok());
        self.pump.notify();
        result
    }

    /// The manifest of the partitions as they are.
    fn manifest_payloads(&self) -> Vec<Vec<u8>> {
        let states = self.partitions.borrow();
        let states = states.iter().map(|(id, cell)| (*id, cell.borrow().state()));
        manifest::encode_all(&self.keeper.run_ends, states)
    }

    /// Moves a partition's log start up to `before`, which is not above its high watermark. Answers the log start.
    pub(crate) async fn trim(&self, id: TopicPartition, before: i64) -> Result<i64, LogError> {
        if self.keeper.ended.get().is_some() {
            return Err(LogError::ShuttingDown);
        }
        let outcome = Rc::<Outcome<_>>::default();
        self.keeper.trims.borrow_mut().push_back(Trim { id, before, outcome: outcome.clone() });
        self.keeper.signal.notify();
        outcome.wait().await
    }

    async fn do_trims(self: &Rc<Self>) -> io::Result<bool> {
        let mut later = VecDeque::new();
        let mut worked = false;
        loop {
            let Some(trim) = self.keeper.trims.borrow_mut().pop_front() else {
                break;
            };
            let Ok(cell) = self.partition(trim.id) else {
                trim.outcome.set(Err(LogError::UnknownPartition));
                continue;
            };
            let (log_start, materialised) = (cell.borrow().log_start, cell.borrow().materialised);
            if trim.before <= log_start {
                trim.outcome.set(Ok(log_start));
            } else if trim.before > materialised {
                // Segments first: the manifest knows no log start inside the tail.
                self.keeper.look_at(cell);
                later.push_back(trim);
            } else {
                // No fat run may start on a segment that is about to go.
                cell.borrow_mut().begin_keeping();
                let trimmed = self.do_trim(&cell, trim.before).await;
                cell.borrow_mut().end_keeping();
                if let Err(error) = trimmed {
                    later.push_front(trim);
                    self.keeper.trims.borrow_mut().extend(later);
                    return Err(error);
                }
                trim.outcome.set(Ok(trim.before));
                worked = true;
            }
        }
        self.keeper.trims.borrow_mut().extend(later);
        Ok(worked)
    }

    async fn do_trim(self: &Rc<Self>, cell: &Rc<PartitionCell>, before: i64) -> io::Result<()> {
        let (id, gone, first_segment) = {
            let partition = cell.borrow();
            let gone = partition.segments.partition_point(|segment| segment.end_offset <= before);
            // A segment that a fat run is being written to stays.
            let fat = matches!(partition.appending, Appending::Fat(_));
            let gone = if fat { gone.min(partition.segments.len().saturating_sub(1)) } else { gone };
            let first = partition.segments.get(gone).map_or(i64::MAX, |segment| segment.base_offset);
            let gone: Vec<SegmentName> = partition.segments[..gone].iter().map(Segment::name).collect();
            (partition.id, gone, first)
        };
        self.note_partitions(std::iter::once(cell)).await?;
        let mut payloads = Payloads::default();
        payloads.push(&manifest::encode(id, &Record::Trim { log_start_offset: before, first_segment }));
        self.note(payloads).await?;
        cell.borrow_mut().trim(before, first_segment);
        self.spawn_segment_removal(id, gone);
        Ok(())
    }

    /// Drops what retention does not keep, brings old tails to segments, and forgets producers that were idle that long.
    pub(crate) async fn retain(self: &Rc<Self>, producer_id_expiration_ms: i64) {
        let now_ms = self.io.now_ms();
        for id in self.partition_ids() {
            let Ok(cell) = self.partition(id) else {
                continue;
            };
            let expired = {
                let mut partition = cell.borrow_mut();
                let idle_before = now_ms.saturating_sub(producer_id_expiration_ms);
                partition.producers.expire(idle_before);
                partition.checkpointed.expire(idle_before);
                partition.expired(now_ms)
            };
            if let Some(before) = expired
                && let Err(error) = self.trim(id, before).await
            {
                tracing::warn!("retention of {id:?} failed: {error}");
            }
            self.io.yield_now().await;
        }
    }

    /// Brings everything that consumers can see now to segments, unless there is no space for it.
    pub(crate) async fn materialise_all(&self) {
        self.materialise(|partition| partition.materialised < partition.high_watermark()).await;
    }

    /// The same for compacted partitions, where that ends a segment: only those that have ended are compacted.
    pub(super) async fn materialise_compacted(&self) {
        let now_ms = self.io.now_ms();
        let ends_segment = |partition: &Partition| {
            let active = partition.active().map(|at| &partition.segments[at]);
            materialise::would_roll(active, &partition.materialisable(usize::MAX), &partition.config, now_ms)
        };
        self.materialise(|partition| {
            partition.config.cleanup_policy.compact
                && partition.materialised < partition.high_watermark()
                && ends_segment(partition)
        })
        .await;
    }

    async fn materialise(&self, wanted: impl Fn(&Partition) -> bool) {
        let now = |cell: &Rc<PartitionCell>| (cell.clone(), cell.borrow().high_watermark());
        let wanted = |cell: &&Rc<PartitionCell>| wanted(&cell.borrow());
        let waits_for = self.partitions.borrow().values().filter(wanted).map(now).collect();
        let pass = Pass { waits_for, done: Rc::default() };
        // Of what went to segments directly the manifest may not know yet: nothing waits for that, but it shall hear.
        let is_unnoted = |cell: &&Rc<PartitionCell>| cell.borrow().unnoted.is_some();
        self.partitions.borrow().values().filter(is_unnoted).for_each(|cell| self.keeper.queue(cell));
        if pass.waits_for.is_empty() || self.keeper.ended.get().is_some() {
            return self.keeper.notify();
        }
        self.keeper.queue_all(&pass);
        let done = pass.done.clone();
        self.keeper.passes.borrow_mut().push(pass);
        self.keeper.signal.notify();
        done.wait().await;
    }

    fn end_passes(&self, mut is_over: impl FnMut(&mut Pass) -> bool) {
        for over in self.keeper.passes.borrow_mut().extract_if(.., |pass| is_over(pass)) {
            over.done.set(());
        }
        // A round has an end; what it left has its turn again.
        self.keeper.passes.borrow().iter().for_each(|pass| self.keeper.queue_all(pass));
    }

    /// Ends the keeper once everything is in segments.
    pub(crate) async fn stop_keeper(&self) {
        self.keeper.stopped.set(true);
        self.keeper.signal.notify();
        self.keeper.ended.clone().wait().await;
    }
}
