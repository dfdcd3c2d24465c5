//! Cutting off the end of a live partition's log (FORMAT.md, 9.16).
//!
//! A task of its own does it, so that it is done once it was begun: nothing is appended any more and what was is waited for;
//! the keeper, between two of its rounds, finds where the cut lands; the shared log says so, durably; the keeper cuts what
//! is in memory and in segments, and tells the manifest of the latter; files that nobody needs are removed. The log takes
//! appends again then.
//!
//! The keeper brings to segments what it likes until it cuts: the shared log may need its files back before it has room
//! to say anything.

use std::{collections::VecDeque, io, path::PathBuf, rc::Rc};

use super::{Store, cut, removal};
use crate::{
    api::{FetchPartition, LogError, ReadBound, TopicPartition},
    format::{journal::Payloads, manifest, wal::Era},
    io::{Buffer, File, IO_BYTES_MAX, Io, Open, Share, align_up},
    partition::{
        PartitionCell,
        cutting::{CutOff, Landing},
    },
    replica_api::{CutBytes, ReplicaPosition},
    signal::Outcome,
    wal::{group::EndEvent, replay::SegmentCut},
};

/// What the keeper has to do for a cut.
pub(super) struct CutStep {
    cell: Rc<PartitionCell>,
    what: What,
    outcome: Rc<Outcome<Result<Done, LogError>>>,
}

#[derive(Clone, Copy)]
enum What {
    /// Find where a cut at an offset lands.
    Land(i64),
    /// Cut there: it is that cut of the partition.
    Cut { end_offset: i64, number: u32 },
}

/// What it did.
#[derive(Clone)]
enum Done {
    Landed(i64),
    Cut(Rc<CutOff>),
}

/// Steps of cuts that wait for the keeper.
pub(super) type CutSteps = VecDeque<CutStep>;

impl<I: Io> Store<I> {
    /// Cuts off the end of a partition that is followed. See [`crate::replica::Replica::truncate_to`].
    pub(crate) async fn truncate(
        self: &Rc<Self>,
        id: TopicPartition,
        end: i64,
        bytes: CutBytes,
    ) -> Result<ReplicaPosition, LogError> {
        let end = end.min(self.position(id)?.end);
        self.run_cut(id, end, bytes).await
    }

    /// Leaves nothing of a partition that is followed. See [`crate::replica::Replica::begin_anew`].
    pub(crate) async fn begin_anew(
        self: &Rc<Self>,
        id: TopicPartition,
        log_start: i64,
    ) -> Result<ReplicaPosition, LogError> {
        let mut position = self.position(id)?;
        if log_start <= position.end {
            position = self.truncate(id, log_start, CutBytes::Drop).await?;
        }
        if log_start > position.end {
            return self.run_cut(id, log_start, CutBytes::Drop).await;
        }
        self.trim_as_follower(id, log_start).await?;
        self.position(id)
    }

    async fn run_cut(
        self: &Rc<Self>,
        id: TopicPartition,
        end: i64,
        bytes: CutBytes,
    ) -> Result<ReplicaPosition, LogError> {
        self.check_not_failed()?;
        let cell = self.partition(id)?;
        cell.borrow_mut().replication_mut().begin_cut()?;
        let outcome = Rc::<Outcome<Result<(), LogError>>>::default();
        let (store, ended) = (self.clone(), outcome.clone());
        self.io.spawn(Share::Serving, async move {
            let result = store.cut_off(&cell, end, bytes).await;
            cell.borrow_mut().replication_mut().end_cut();
            store.keeper.notify(); // trims may wait for that
            ended.set(result);
        });
        outcome.wait().await?;
        self.position(id)
    }

    async fn cut_off(self: &Rc<Self>, cell: &Rc<PartitionCell>, wanted: i64, bytes: CutBytes) -> Result<(), LogError> {
        self.await_groups(cell).await?;
        let Done::Landed(to) = self.ask_keeper(cell, What::Land(wanted)).await? else { return Ok(()) };
        if cell.borrow().ends_at(to) {
            return Ok(());
        }
        let from = cell.borrow().marks().end();
        if bytes == CutBytes::Keep && to < from {
            self.keep_cut_bytes(cell, to, from).await;
        }
        let number = cell.borrow().next_cut();
        let number = number.ok_or_else(|| LogError::Storage("the log was cut off too often".to_owned()))?;
        let era = Era { leader_epoch: cell.borrow().replication().epoch().max(0), cuts: number };
        self.check_not_failed()?;
        let said = self.groups.borrow_mut().push_event(cell, era, EndEvent::Cut { from, to });
        self.pump.notify();
        said.wait().await?;
        let done = self.ask_keeper(cell, What::Cut { end_offset: to, number }).await?;
        let id = cell.borrow().id();
        if let Done::Cut(off) = done {
            self.remove_cut(id, &off).await;
        }
        Ok(())
    }

    async fn ask_keeper(&self, cell: &Rc<PartitionCell>, what: What) -> Result<Done, LogError> {
        if self.keeper.has_ended() {
            return Err(LogError::ShuttingDown);
        }
        let outcome = Rc::<Outcome<_>>::default();
        self.keeper.cuts.borrow_mut().push_back(CutStep { cell: cell.clone(), what, outcome: outcome.clone() });
        self.keeper.notify();
        outcome.wait().await
    }

    /// The keeper's part. Whether there was something to do.
    pub(super) async fn do_cuts(&self) -> io::Result<bool> {
        let mut worked = false;
        loop {
            let Some(step) = self.keeper.cuts.borrow_mut().pop_front() else { return Ok(worked) };
            worked = true;
            let CutStep { cell, what, outcome } = &step;
            let done = match what {
                _ if cell.borrow().is_deleted() => Ok(Err(LogError::UnknownPartition)),
                What::Land(offset) => Ok(self.land(cell, *offset).await.map(Done::Landed)),
                What::Cut { end_offset, number } => {
                    let cut = self.cut_there(cell, *end_offset, *number).await;
                    cut.map(|off| Ok(Done::Cut(Rc::new(off))))
                }
            };
            match done {
                Ok(result) => outcome.set(result),
                Err(error) => {
                    self.keeper.cuts.borrow_mut().push_front(step);
                    return Err(error);
                }
            }
        }
    }

    /// Cuts that will not be done.
    pub(super) fn refuse_cuts(&self, reason: &str) {
        for step in self.keeper.cuts.take() {
            step.outcome.set(Err(LogError::Storage(reason.to_owned())));
        }
    }

    async fn land(&self, cell: &Rc<PartitionCell>, mut offset: i64) -> Result<i64, LogError> {
        loop {
            let (id, landing) = (cell.borrow().id(), cell.borrow().landing(offset));
            let segment = match landing {
                Landing::At(end) => return Ok(end),
                Landing::In(segment) => segment,
            };
            let path = self.segments.path(id, segment.name());
            let end = cut::end_below(&self.io, &path, &segment, offset).await;
            match end.map_err(|error| self.unreadable(id, &segment, &error))? {
                Some(end) => return Ok(end),
                None => offset = segment.base_offset,
            }
        }
    }

    /// Cuts what is in memory, and what is in segments.
    async fn cut_there(&self, cell: &Rc<PartitionCell>, end_offset: i64, number: u32) -> io::Result<CutOff> {
        let marks = *cell.borrow().marks();
        let id = cell.borrow().id();
        if marks.materialised() < end_offset && end_offset <= marks.end() {
            let off = cell.borrow_mut().cut_tail(end_offset);
            return Ok(self.release_cut(id, off));
        }
        cell.borrow_mut().begin_keeping();
        let cut = self.note_cut(cell, end_offset, number).await;
        cell.borrow_mut().end_keeping();
        let cut::Looked { cut, transactions } = cut?;
        if cell.borrow().is_deleted() {
            return Ok(CutOff { live: Vec::new(), bytes: 0, gone: Vec::new(), shortened: None });
        }
        let off = cell.borrow_mut().cut_segments(cut, transactions);
        Ok(self.release_cut(id, off))
    }

    async fn note_cut(&self, cell: &Rc<PartitionCell>, end_offset: i64, number: u32) -> io::Result<cut::Looked> {
        self.note_partitions(std::iter::once(cell)).await?;
        let (id, state) = (cell.borrow().id(), cell.borrow().state());
        let wanted = SegmentCut { partition: id, end_offset, number };
        let dir = super::partition_dir(&self.options.data_dir, id);
        let cut = cut::look(&self.io, &dir, &state, &wanted).await.map_err(io::Error::other)?;
        let mut payloads = Payloads::default();
        for record in cut.records() {
            payloads.push(&manifest::encode(id, &record));
        }
        self.note(payloads).await?;
        Ok(cut)
    }

    fn release_cut(&self, id: TopicPartition, off: CutOff) -> CutOff {
        self.release(id, off.live.iter());
        self.live_bytes.set(self.live_bytes.get() - off.bytes);
        self.pump.notify();
        off
    }

    /// Closes and removes what a cut left of files. Readers may still send what they found before: they are waited for.
    async fn remove_cut(&self, id: TopicPartition, off: &CutOff) {
        for name in off.gone.iter().chain(&off.shortened) {
            if let Some(open) = self.segments.forget_segment(id, *name) {
                self.await_readers(std::slice::from_ref(&open)).await;
                removal::close(open).await;
            }
        }
        for name in &off.gone {
            self.remove_segment(id, *name).await;
            self.io.yield_now().await;
        }
        // Whoever still knew it as it was may have opened it again: what is kept with an open file would be of what was cut off.
        if let Some(open) = off.shortened.and_then(|name| self.segments.forget_segment(id, name)) {
            removal::close(open).await;
        }
    }

    /// Leaves a copy of batches that are about to be cut off. They were confirmed to nobody, so that a copy which cannot be
    /// made is no reason not to cut.
    async fn keep_cut_bytes(&self, cell: &Rc<PartitionCell>, from: i64, end: i64) {
        let id = cell.borrow().id();
        let path = self.cut_bytes_path(id, from);
        match self.copy_batches(cell, from, end, &path).await {
            Ok(()) => tracing::warn!("offsets {from}..{end} of {id:?} are cut off; a copy is {}", path.display()),
            Err(error) => tracing::error!("offsets {from}..{end} of {id:?} are cut off without a copy: {error}"),
        }
    }

    fn cut_bytes_path(&self, id: TopicPartition, from: i64) -> PathBuf {
        let now_ms = self.io.now_ms();
        let name = format!("{}-{}-{now_ms}", id.topic, id.partition);
        self.options.data_dir.join("cut-off").join(name).join(format!("{from:020}.log"))
    }

    async fn copy_batches(
        &self,
        cell: &Rc<PartitionCell>,
        from: i64,
        end: i64,
        path: &std::path::Path,
    ) -> Result<(), LogError> {
        let storage = |error: io::Error| LogError::Storage(error.to_string());
        self.io.create_dir(path.parent().expect("it has a folder")).await.map_err(storage)?;
        let file = self.io.open(path, Open::Write).await.map_err(storage)?;
        let (mut offset, mut position, mut rest) = (from, 0, Vec::new());
        let partition = cell.borrow().id();
        while offset < end {
            let max_bytes = IO_BYTES_MAX;
            let part =
                FetchPartition { partition, offset, max_bytes, leader_epoch: -1, bound: ReadBound::HighWatermark };
            let fetched = self.read_to_memory(cell, &part, end).await?;
            let Some(behind) = fetched.records.end_offset() else { break };
            let chunks = fetched.records.chunks.iter().filter_map(|chunk| chunk.as_slice());
            chunks.for_each(|bytes| rest.extend_from_slice(bytes));
            offset = behind;
            let len = if offset < end { rest.len() / crate::io::BLOCK * crate::io::BLOCK } else { rest.len() };
            let padded = usize::try_from(align_up(len as u64)).expect("bounded by a read");
            let mut buffer = self.io.buffer(padded);
            buffer.bytes_mut()[..len].copy_from_slice(&rest[..len]);
            buffer.bytes_mut()[len..].fill(0);
            rest.drain(..len);
            if padded > 0 {
                file.write(Rc::new(buffer), position).await.map_err(storage)?;
            }
            position += padded as u64;
        }
        file.flush().await.map_err(storage)?;
        file.close().await.map_err(storage)
    }
}
