//! The compactor: a background task of a shard that rewrites the sealed segments of compacted partitions, the dirtiest
//! partition first, until none is due. What is due and what stays is decided in [`crate::compact`]; segments are
//! replaced by the keeper.
//!
//! It must not be felt by producers: small reads and writes one at a time, short turns, and a pause after each while
//! the shared log is being written. A partition that is deleted, trimmed or changed meanwhile wins: the work is dropped.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    io,
    rc::Rc,
    time::Duration,
};

use super::{
    Store, partition_dir,
    replace::Fate,
    rewrite::{BatchStream, REWRITE_IO_BYTES, SegmentOut},
    space::Space,
};
use crate::{
    api::TopicPartition,
    batch::{BatchError, BatchInfo, verify_crc},
    compact::{self, AbortedThere, Due, Filter, Look, Mapped, Mapping, OffsetMap, Part, Seen, Verdict},
    config::TopicConfig,
    format::segment::{self, Segment, SegmentName},
    io::{Io, Open},
    partition::PartitionCell,
};

/// Work between two pauses, in bytes as the filter counts it: 0.1 to 0.2 ms.
const TURN_BYTES: usize = 64 << 10;
/// Pause after a turn or an input or output, with and without producers who would feel it. One of 256 KiB per
/// millisecond is 256 MiB/s at most.
const PAUSE_BUSY: Duration = Duration::from_millis(1);
const PAUSE_IDLE: Duration = Duration::from_micros(20);

/// State of the compactor.
#[derive(Default)]
pub(crate) struct Compactor {
    running: Cell<bool>,
    stopping: Cell<bool>,
    /// Whether files that a crash left were looked for.
    swept: Cell<bool>,
    /// The partition that is being rewritten: its folder must stay until that is given up.
    busy_with: Cell<Option<TopicPartition>>,
    /// Partitions that could not be compacted: damaged ones. Until the next start.
    pub(super) uncleanable: RefCell<HashSet<TopicPartition>>,
    /// Replacements whose fate is unknown. Their names are not used again.
    pub(super) unknown: Cell<u32>,
    /// Work that may be done before the next pause.
    budget: Cell<usize>,
}

impl Compactor {
    /// The partition that is being rewritten.
    pub(crate) fn busy_with(&self) -> Option<TopicPartition> {
        self.busy_with.get()
    }
}

/// Why the compaction of a partition ended early.
#[derive(Debug)]
enum Halt {
    /// The partition is not what it was, or the node stops.
    Gone,
    /// Not now.
    NoSpace(String),
    /// Not before somebody has looked at it.
    Failed(String),
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone,
            io::ErrorKind::StorageFull => Self::NoSpace(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<BatchError> for Halt {
    fn from(error: BatchError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// One round over one partition.
struct Round {
    id: TopicPartition,
    cell: Rc<PartitionCell>,
    config: Rc<TopicConfig>,
    due: Due,
    /// What may be rewritten.
    segments: Vec<Segment>,
    /// How often the partition's end had been cut off.
    cuts: u32,
}

impl<I: Io> Store<I> {
    /// Compacts what is due. Does nothing while an earlier call is at it.
    pub(crate) async fn compact(&self) {
        let compactor = &self.compactor;
        if compactor.stopping.get() || self.failed.borrow().is_some() || compactor.running.replace(true) {
            return;
        }
        if !compactor.swept.replace(true) {
            for id in self.partition_ids() {
                let has_files = self.partition(id).is_ok_and(|cell| cell.borrow().marks().materialised() > 0);
                if has_files && !compactor.stopping.get() {
                    self.sweep(id).await;
                }
            }
        }
        self.materialise_compacted().await;
        let mut given_up = HashSet::new();
        while let Some(round) = self.dirtiest(&given_up) {
            let id = round.id;
            compactor.busy_with.set(Some(id));
            let result = self.run_round(&round).await;
            compactor.busy_with.set(None);
            self.keeper.notify(); // a removal may have waited
            let Err(halt) = result else { continue };
            given_up.insert(id);
            // What was read may have been written over meanwhile.
            let halt = if round.cell.borrow().cuts() == round.cuts { halt } else { Halt::Gone };
            match halt {
                Halt::Gone => tracing::debug!("compaction of {id:?} was given up: it changed"),
                Halt::NoSpace(reason) => tracing::warn!("compaction of {id:?} has to wait for space: {reason}"),
                Halt::Failed(reason) => {
                    tracing::error!("compaction of {id:?} failed and is not tried again before a restart: {reason}");
                    compactor.uncleanable.borrow_mut().insert(id);
                }
            }
        }
        compactor.running.set(false);
    }

    /// Ends compaction.
    pub(super) async fn stop_compactor(&self) {
        self.compactor.stopping.set(true);
        while self.compactor.running.get() {
            self.io.sleep(PAUSE_BUSY).await;
        }
    }

    /// The round that has the most to do.
    fn dirtiest(&self, given_up: &HashSet<TopicPartition>) -> Option<Round> {
        if self.compactor.stopping.get() || self.failed.borrow().is_some() {
            return None;
        }
        let now_ms = self.io.now_ms();
        let uncleanable = self.compactor.uncleanable.borrow();
        let mut best: Option<(Rc<PartitionCell>, Due)> = None;
        for (id, cell) in &*self.partitions.borrow() {
            let partition = cell.borrow();
            if !partition.config().cleanup_policy.compact || given_up.contains(id) || uncleanable.contains(id) {
                continue;
            }
            let (log_start, clean_offset) = (partition.marks().log_start(), partition.clean_offset());
            let due = compact::due(partition.sealed(), log_start, clean_offset, partition.config(), now_ms);
            if let Some(due) = due
                && best.as_ref().is_none_or(|(_, best)| due.ratio > best.ratio)
            {
                best = Some((cell.clone(), due));
            }
        }
        let (cell, due) = best?;
        let partition = cell.borrow();
        let (id, config) = (partition.id(), partition.config().clone());
        let segments = partition.sealed()[..due.segments].to_vec();
        let cuts = partition.cuts();
        drop(partition);
        Some(Round { id, cell, config, due, segments, cuts })
    }

    async fn run_round(&self, round: &Round) -> Result<(), Halt> {
        let filter = self.map(round).await?;
        let reached = round.segments.partition_point(|segment| segment.base_offset < filter.mapped_end);
        let segments = &round.segments[..reached];
        let before = segments.iter().map(|segment| segment.size).sum::<u64>();
        let mut after = 0;
        let mut seen = Seen::default();
        for group in compact::groups(segments, round.config.segment_bytes) {
            after += self.clean(round, &filter, &mut seen, &segments[group]).await?;
        }
        let clean_offset = Some(filter.mapped_end);
        self.settle_replacement(self.replace(&[], None, (round.id, round.cuts, clean_offset)).await)?;
        tracing::debug!(
            topic = %round.id.topic,
            partition = round.id.partition,
            from = round.due.first_dirty,
            to = filter.mapped_end,
            keys = filter.map.len(),
            bytes_before = before,
            bytes_after = after,
            ms = self.io.now_ms() - filter.now_ms,
            "compacted"
        );
        Ok(())
    }

    fn settle_replacement(&self, fate: Fate) -> Result<(), Halt> {
        match fate {
            Fate::Done => Ok(()),
            Fate::Dropped => Err(Halt::Gone),
            Fate::Unknown => {
                self.compactor.unknown.set(self.compactor.unknown.get() + 1);
                Err(Halt::NoSpace("the manifest could not be written".into()))
            }
        }
    }

    /// Finds the newest record of every key of the dirty part, or of as much of it as the map has room for.
    async fn map(&self, round: &Round) -> Result<Filter, Halt> {
        let Due { first_dirty, end_offset, .. } = round.due;
        let keys = u64::try_from(end_offset - first_dirty).unwrap_or_default();
        let mut map = OffsetMap::new(keys, self.options.compact_bytes);
        let now_ms = self.io.now_ms();
        let mut mapped_end = end_offset;
        'segments: for segment in round.segments.iter().filter(|s| s.end_offset > first_dirty) {
            let aborted = self.aborted_there(round, segment).await?;
            let mut batches = self.stream(round, segment, first_dirty).await?;
            while let Some(info) = self.next_batch(round, &mut batches).await? {
                if aborted.has(&info) {
                    continue;
                }
                let mut mapping = Mapping::new(batches.batch(), &info)?;
                loop {
                    match self.paid(|budget| mapping.step(&mut map, first_dirty, budget))? {
                        Mapped::More => self.pause_if_due(round).await?,
                        Mapped::All => break,
                        Mapped::Full(offset) => {
                            mapped_end = offset;
                            break 'segments;
                        }
                    }
                }
            }
        }
        Ok(Filter {
            map,
            mapped_end,
            round_end: end_offset,
            last_of_producers: round.cell.borrow().producers().last_of_each(),
            now_ms,
            delete_retention_ms: round.config.delete_retention_ms,
        })
    }

    /// Turns neighbours into one segment, and answers how large it is. A segment that stays as it is, is left alone.
    async fn clean(&self, round: &Round, filter: &Filter, seen: &mut Seen, sources: &[Segment]) -> Result<u64, Halt> {
        if let [alone] = sources
            && let Some(then) = self.unchanged(round, filter, seen, alone).await?
        {
            *seen = then;
            return Ok(alone.size);
        }
        self.check_room(sources)?;
        let (first, last) = (&sources[0], &sources[sources.len() - 1]);
        let generation = sources.iter().map(|segment| segment.generation).max().unwrap_or_default();
        let segment = Segment {
            generation: generation + 1 + self.compactor.unknown.get(),
            ..Segment::begin(first.base_offset, last.created_ms)
        };
        let name = segment.name();
        let written = self.rewrite(round, filter, seen, sources, segment).await;
        let segment = match written {
            Ok(segment) => segment,
            Err(halt) => {
                self.discard(round.id, name).await;
                return Err(halt);
            }
        };
        let size = segment.as_ref().map_or(0, |segment| segment.size);
        if segment.is_none() {
            self.discard(round.id, name).await;
        }
        let fate = self.replace(sources, segment, (round.id, round.cuts, None)).await;
        if fate == Fate::Dropped {
            self.discard(round.id, name).await;
        }
        self.settle_replacement(fate).map(|()| size)
    }

    /// Writes what stays of the sources to the file of `segment`. `None`: nothing does.
    async fn rewrite(
        &self,
        round: &Round,
        filter: &Filter,
        seen: &mut Seen,
        sources: &[Segment],
        segment: Segment,
    ) -> Result<Option<Segment>, Halt> {
        let path = self.segments.path(round.id, segment.name());
        self.io.remove(&path).await?;
        let file = self.io.open(&path, Open::Write).await?;
        let mut out = SegmentOut::new(self.io.clone(), file, segment);
        for source in sources {
            if let Err(halt) = self.rewrite_from(round, filter, seen, source, &mut out).await {
                out.abandon().await?;
                return Err(halt);
            }
        }
        if out.segment().size == 0 {
            out.abandon().await?;
            return Ok(None);
        }
        let segment = out.seal().await?;
        self.io.sync_dir(&partition_dir(&self.options.data_dir, round.id)).await?;
        Ok(Some(segment))
    }

    async fn rewrite_from(
        &self,
        round: &Round,
        filter: &Filter,
        seen: &mut Seen,
        source: &Segment,
        out: &mut SegmentOut<I>,
    ) -> Result<(), Halt> {
        let aborted = self.aborted_there(round, source).await?;
        let mut batches = self.stream(round, source, 0).await?;
        while let Some(info) = self.next_batch(round, &mut batches).await? {
            let part = seen.look(&aborted, &info, batches.batch())?;
            match self.look(round, filter, batches.batch(), &info, part).await? {
                Verdict::Drop => continue,
                Verdict::Copy => self.push(round, out, &info, batches.batch()).await?,
                Verdict::Empty(batch) => {
                    let info = BatchInfo::parse(&batch)?;
                    self.push(round, out, &info, &batch).await?;
                }
                Verdict::Rebuild(mut rebuild) => {
                    while !self.paid(|budget| rebuild.step(budget))? {
                        self.pause_if_due(round).await?;
                    }
                    let batch = rebuild.finish();
                    let info = BatchInfo::parse(&batch)?;
                    self.push(round, out, &info, &batch).await?;
                }
            }
            if let Part::Ends(Some(entry)) = part {
                out.push_aborted(entry);
            }
        }
        Ok(())
    }

    /// What was seen of transactions behind a segment, if all in it would stay as it is.
    async fn unchanged(
        &self,
        round: &Round,
        filter: &Filter,
        seen: &Seen,
        segment: &Segment,
    ) -> Result<Option<Seen>, Halt> {
        let mut seen = seen.clone();
        let aborted = self.aborted_there(round, segment).await?;
        let mut batches = self.stream(round, segment, 0).await?;
        while let Some(info) = self.next_batch(round, &mut batches).await? {
            let part = seen.look(&aborted, &info, batches.batch())?;
            if !matches!(self.look(round, filter, batches.batch(), &info, part).await?, Verdict::Copy) {
                return Ok(None);
            }
        }
        Ok(Some(seen))
    }

    /// Aborted transactions with records in a segment.
    async fn aborted_there(&self, round: &Round, segment: &Segment) -> Result<AbortedThere, Halt> {
        let entries = self.aborted_between(&round.cell, segment.base_offset, segment.end_offset).await?;
        Ok(AbortedThere::of(entries))
    }

    async fn look<'a>(
        &self,
        round: &Round,
        filter: &Filter,
        batch: &'a [u8],
        info: &BatchInfo,
        part: Part,
    ) -> Result<Verdict<'a>, Halt> {
        let mut look = Look::new(batch, info, part)?;
        while !self.paid(|budget| look.step(filter, budget))? {
            self.pause_if_due(round).await?;
        }
        Ok(look.verdict(filter)?)
    }

    /// Reads a segment from the batch that holds `offset` on.
    async fn stream(&self, round: &Round, segment: &Segment, offset: i64) -> Result<BatchStream<I>, Halt> {
        // Another segment may have that name by now.
        if round.cell.borrow().cuts() != round.cuts {
            return Err(Halt::Gone);
        }
        let open = self.segments.get(round.id, segment.name(), false).await?;
        let from = match offset > segment.base_offset {
            true => segment::position_before(&self.index(&open, segment).await?, offset),
            false => 0,
        };
        Ok(BatchStream::new(open, segment, from))
    }

    /// The next batch, whose checksum is good: what is damaged must not get a new checksum.
    async fn next_batch(&self, round: &Round, batches: &mut BatchStream<I>) -> Result<Option<BatchInfo>, Halt> {
        let Some(info) = batches.next().await? else { return Ok(None) };
        if !verify_crc(batches.batch()) {
            return Err(Halt::Failed(format!("the batch at offset {} is damaged", info.base_offset)));
        }
        self.paid(|budget| *budget = budget.saturating_sub(info.size));
        self.pause_if_due(round).await?;
        Ok(Some(info))
    }

    async fn push(&self, round: &Round, out: &mut SegmentOut<I>, info: &BatchInfo, batch: &[u8]) -> Result<(), Halt> {
        out.push(info, batch).await?;
        self.paid(|budget| *budget = budget.saturating_sub(batch.len()));
        self.pause_if_due(round).await
    }

    /// Does something that takes its work from what is left of the turn.
    fn paid<T>(&self, work: impl FnOnce(&mut usize) -> T) -> T {
        let mut budget = self.compactor.budget.get();
        let result = work(&mut budget);
        self.compactor.budget.set(budget);
        result
    }

    /// Lets others go first when the turn is over. Ends the round when it has become pointless.
    async fn pause_if_due(&self, round: &Round) -> Result<(), Halt> {
        if self.compactor.budget.get() > 0 {
            return Ok(());
        }
        self.compactor.budget.set(TURN_BYTES);
        let is_busy = !self.flight.borrow().is_empty();
        self.io.sleep(if is_busy { PAUSE_BUSY } else { PAUSE_IDLE }).await;
        let partition = round.cell.borrow();
        let is_pointless = self.compactor.stopping.get()
            || partition.is_deleted()
            || !partition.config().cleanup_policy.compact
            || partition.cuts() != round.cuts;
        if is_pointless { Err(Halt::Gone) } else { Ok(()) }
    }

    /// Compaction may not make the disk so full that producers are refused; when it is so full already, it may take
    /// half of the reserve to help, but nothing that is owed to what was acknowledged.
    fn check_room(&self, sources: &[Segment]) -> Result<(), Halt> {
        let bytes = sources.iter().map(|segment| segment.size).sum::<u64>() + REWRITE_IO_BYTES as u64;
        let Space { free, owed } = self.space()?;
        let reserve = self.options.reserve_bytes;
        let kept = if self.full.get() { owed.max(reserve / 2) } else { reserve.saturating_add(owed) };
        match free >= bytes.saturating_add(kept) {
            true => Ok(()),
            false => Err(Halt::NoSpace(format!("{bytes} bytes may be needed, {free} are free, {kept} must stay"))),
        }
    }

    /// Removes a file that became no segment.
    async fn discard(&self, id: TopicPartition, name: SegmentName) {
        if let Err(error) = self.io.remove(&self.segments.path(id, name)).await {
            tracing::warn!("removing {} of {id:?} failed, the next start will: {error}", name.file_name());
        }
    }
}
