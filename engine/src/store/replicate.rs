//! Leading and following: what must be durable before a partition takes batches in a new role, taking batches as a follower,
//! reading for followers, and the tap.

use std::rc::Rc;

use bytes::Bytes;

use super::{Store, fat::FatRun};
use crate::{
    api::{Chunk, FetchPartition, LogError, ReadBound, TopicPartition},
    chunk::Memory,
    config::Durability,
    io::Io,
    partition::{
        Partition, PartitionCell,
        replicating::Piece,
        replication::{Replication, Role},
    },
    replica_api::{CaughtUp, EpochEnd, LeaderLease, Leadership, LogTap, ReplicaPosition, SealedGroup, SealedRun},
    wal::group::{BatchStamp, CommitGroup, EndEvent, GroupOutcome, PlacedBatch, Run},
};

/// What a follower has appended.
#[derive(Clone, Debug)]
pub struct FollowerAppend {
    /// Where its log ends now.
    pub end_offset: i64,
    group: Rc<GroupOutcome>,
}

impl FollowerAppend {
    /// Resolves when the log here has it as safely as its topic asks: it may be confirmed to the leader then.
    pub async fn kept(self) -> Result<(), LogError> {
        self.group.wait().await
    }
}

impl<I: Io> Store<I> {
    /// How far a partition is.
    pub(crate) fn position(&self, id: TopicPartition) -> Result<ReplicaPosition, LogError> {
        Ok(self.partition(id)?.borrow().position())
    }

    /// About how many bytes of batches are at or behind an offset.
    pub(crate) fn bytes_from(&self, id: TopicPartition, offset: i64) -> Result<u64, LogError> {
        Ok(self.partition(id)?.borrow().bytes_from(offset))
    }

    /// What its topic asks of a log.
    pub(crate) fn durability(&self, id: TopicPartition) -> Result<Durability, LogError> {
        Ok(self.partition(id)?.borrow().config().durability)
    }

    /// Where a leader epoch of it ends.
    pub(crate) fn end_of_epoch(&self, id: TopicPartition, epoch: i32) -> Result<EpochEnd, LogError> {
        Ok(self.partition(id)?.borrow().end_of_epoch(epoch))
    }

    /// The same for who asks the leader, and believes in that epoch.
    pub(crate) fn end_of_epoch_for(
        &self,
        id: TopicPartition,
        current_leader_epoch: i32,
        epoch: i32,
    ) -> Result<EpochEnd, LogError> {
        self.check_leads(id, current_leader_epoch)?;
        self.end_of_epoch(id, epoch)
    }

    /// The epoch in which a partition is led here.
    pub(crate) fn leads(&self, id: TopicPartition) -> Option<i32> {
        self.partition(id).ok()?.borrow().replication().leads()
    }

    /// Checks that a partition is led here, for who believes in that epoch.
    pub(crate) fn check_leads(&self, id: TopicPartition, leader_epoch: i32) -> Result<(), LogError> {
        let cell = self.partition(id)?;
        let partition = cell.borrow();
        partition.check_asker(leader_epoch)?;
        self.check_lease(&partition)
    }

    /// Leads a partition. See [`crate::replica::Replica::lead`].
    pub(crate) async fn lead(
        &self,
        id: TopicPartition,
        epoch: i32,
        leadership: Leadership,
    ) -> Result<ReplicaPosition, LogError> {
        let cell = self.partition(id)?;
        let leads_already = cell.borrow().replication().leads() == Some(epoch);
        if !leads_already {
            self.begin_epoch(&cell, epoch).await?;
        }
        let mut partition = cell.borrow_mut();
        partition.lead(leadership);
        if let Leadership::Replicated { in_sync, .. } = leadership {
            let min_in_sync = partition.config().min_insync_replicas;
            partition.replication_mut().set_in_sync(in_sync, min_in_sync)?;
        }
        Ok(partition.position())
    }

    /// Makes durable where an epoch begins, unless that is known. Nothing is appended meanwhile. It is the current one then, and
    /// nobody else has entered it.
    async fn begin_epoch(&self, cell: &Rc<PartitionCell>, epoch: i32) -> Result<(), LogError> {
        self.await_cleared(cell).await?;
        self.enter_epoch(cell, epoch)?;
        let entered = cell.borrow().replication().entered();
        self.check_not_failed()?;
        let begun = cell.borrow_mut().begin_epoch();
        let Some(end_offset) = begun else { return Ok(()) };
        let era = cell.borrow().era();
        let durable = self.groups.borrow_mut().push_event(cell, era, EndEvent::EpochStart { end_offset });
        self.pump.notify();
        durable.wait().await?;
        check_entered(cell, entered)
    }

    /// A partition is neither led nor followed from here on. What waits for a coordinator does so in vain.
    pub(super) fn enter_epoch(&self, cell: &PartitionCell, epoch: i32) -> Result<(), LogError> {
        cell.borrow_mut().enter_epoch(epoch)?;
        self.held.refuse_for(cell.borrow().id());
        Ok(())
    }

    /// So many replicas are in sync.
    pub(crate) fn set_in_sync(&self, id: TopicPartition, count: u32) -> Result<(), LogError> {
        let cell = self.partition(id)?;
        let mut partition = cell.borrow_mut();
        let min_in_sync = partition.config().min_insync_replicas;
        partition.replication_mut().set_in_sync(count, min_in_sync)
    }

    /// It has other replicas. See [`crate::replica::Replica::set_replicas`].
    pub(crate) fn set_replicas(&self, id: TopicPartition, epoch: i32, leadership: Leadership) -> Result<(), LogError> {
        let cell = self.partition(id)?;
        let mut partition = cell.borrow_mut();
        let min_in_sync = partition.config().min_insync_replicas;
        partition.replication_mut().set_replicas(epoch, leadership, min_in_sync)
    }

    /// Follows another node. See [`crate::replica::Replica::follow`].
    pub(crate) async fn follow(&self, id: TopicPartition, epoch: i32) -> Result<ReplicaPosition, LogError> {
        let cell = self.partition(id)?;
        self.await_cleared(&cell).await?;
        let follows_already = {
            let partition = cell.borrow();
            partition.replication().role() == Role::Following && partition.replication().epoch() == epoch
        };
        if !follows_already {
            self.enter_epoch(&cell, epoch)?;
        }
        let entered = cell.borrow().replication().entered();
        self.await_groups(&cell).await?;
        check_entered(&cell, entered)?;
        let mut partition = cell.borrow_mut();
        partition.replication_mut().follow();
        Ok(partition.position())
    }

    /// Waits until nothing of a partition is on its way to the log.
    pub(super) async fn await_groups(&self, cell: &Rc<PartitionCell>) -> Result<(), LogError> {
        loop {
            let last = cell.borrow().last_group().filter(|group| group.get().is_none()).cloned();
            match last {
                Some(group) => group.wait().await?,
                None => return Ok(()),
            }
        }
    }

    /// The high watermark of a partition is that at least.
    pub(crate) fn advance_high_watermark(&self, id: TopicPartition, high_watermark: i64) -> Result<i64, LogError> {
        let cell = self.partition(id)?;
        let mut partition = cell.borrow_mut();
        Ok(partition.tell_high_watermark(high_watermark))
    }

    /// Moves the log start of a partition that is followed, as far as consumers can see it here.
    pub(crate) async fn trim_as_follower(&self, id: TopicPartition, log_start: i64) -> Result<i64, LogError> {
        let before = self.advance_high_watermark(id, log_start)?.min(log_start);
        self.trim(id, before).await
    }

    /// Appends what a leader sent. See [`crate::replica::Replica::append_as_follower`].
    pub(crate) fn append_as_follower(
        &self,
        id: TopicPartition,
        epoch: i32,
        base_offset: i64,
        batches: &Bytes,
    ) -> Result<FollowerAppend, LogError> {
        self.check_not_failed()?;
        let cell = self.partition(id)?;
        let pieces = cell.borrow().check_pieces(epoch, base_offset, batches)?;
        if self.full.get() {
            return Err(LogError::StorageFull);
        }
        let mut appended = Err(LogError::UnknownPartition);
        for piece in pieces {
            let end_offset = piece.end_offset;
            let group = self.place_piece(&cell, piece);
            appended = Ok(FollowerAppend { end_offset, group });
        }
        self.pump.notify();
        appended
    }

    fn place_piece(&self, cell: &Rc<PartitionCell>, piece: Piece) -> Rc<GroupOutcome> {
        let mut partition = cell.borrow_mut();
        partition.place_piece(&piece, self.io.now_ms());
        // As at its leader, what is of a transaction is flushed whatever the topic asks.
        let flush = partition.config().durability == Durability::Device || piece.is_transactional;
        drop(partition);
        let Piece { base_offset, end_offset, bytes, .. } = piece;
        let placed = PlacedBatch { bytes, base_offset, stamp: BatchStamp::Leaders };
        self.groups.borrow_mut().push(cell, placed, end_offset, flush)
    }

    /// Reads for a follower. See [`crate::replica::Replica::read`].
    pub(crate) async fn read_for_follower(
        &self,
        id: TopicPartition,
        from: i64,
        max_bytes: usize,
    ) -> Result<CaughtUp, LogError> {
        let cell = self.partition(id)?;
        let permit = self.fetch_memory.acquire(max_bytes).await;
        let max_bytes = permit.bytes();
        let end = cell.borrow().sealed_end();
        let part = FetchPartition {
            partition: id,
            offset: from,
            max_bytes,
            leader_epoch: -1,
            bound: ReadBound::HighWatermark,
        };
        let mut fetched = self.read_to_memory(&cell, &part, end).await?;
        let end_offset = fetched.records.end_offset().unwrap_or(from);
        permit.cover(fetched.records.chunks.iter_mut());
        Ok(CaughtUp {
            from,
            end_offset,
            log_start: fetched.log_start_offset,
            high_watermark: fetched.high_watermark,
            records: fetched.records,
        })
    }

    /// Whether partitions with replicas may be led is asked there.
    pub(crate) fn attach_lease(&self, lease: Rc<dyn LeaderLease>) {
        self.lease.replace(Some(lease));
    }

    /// Checks that who leads a partition here may still do so.
    pub(super) fn check_lease(&self, partition: &Partition) -> Result<(), LogError> {
        let replication = partition.replication();
        let needs = replication.is_replicated() && replication.leads().is_some();
        match needs && self.lease.borrow().as_ref().is_some_and(|lease| !lease.holds()) {
            true => Err(LogError::NotLeader),
            false => Ok(()),
        }
    }

    /// Lets somebody hear of groups.
    pub(crate) fn attach_tap(&self, tap: Rc<dyn LogTap>) {
        self.tap.replace(Some(tap));
    }

    /// What the tap is to hear of a group that is sealed, if anything.
    pub(super) fn tapped(
        &self,
        group: &CommitGroup,
        fat: &[Option<FatRun>],
        places: &[u32],
        memory: &Rc<dyn Memory>,
    ) -> Option<(Rc<dyn LogTap>, SealedGroup)> {
        let tap = self.tap.borrow().clone()?;
        let of = |((run, fat), at): ((&Run, &Option<FatRun>), &u32)| {
            let partition = run.partition.borrow();
            if partition.is_deleted() || !partition.replication().is_replicated() {
                return None;
            }
            partition.replication().leads()?;
            let (memory, at) = match fat {
                Some(fat) => (fat.memory(), 0),
                None => (memory.clone(), *at as usize),
            };
            Some(SealedRun {
                partition: run.id,
                leader_epoch: run.era.leader_epoch,
                base_offset: run.base_offset,
                end_offset: run.end_offset,
                batches: Chunk::Shared(memory, at..at + run.len),
            })
        };
        let runs: Vec<_> = group.runs.iter().zip(fat).zip(places).filter_map(of).collect();
        (!runs.is_empty()).then_some((tap, SealedGroup { runs }))
    }

    /// Tells the tap how far replicated partitions are.
    pub(super) fn tell_progress<'a>(&self, cells: impl Iterator<Item = &'a Rc<PartitionCell>>) {
        let Some(tap) = self.tap.borrow().clone() else { return };
        for cell in cells {
            let partition = cell.borrow();
            let (id, marks) = (partition.id(), *partition.marks());
            let is_told = partition.replication().is_replicated() && !partition.is_deleted();
            drop(partition);
            if is_told {
                tap.progressed(id, marks.written(), marks.durable());
            }
        }
    }
}

/// Whether nobody has made the partition neither led nor followed since, be it in the same epoch: it may have left this node.
fn check_entered(cell: &PartitionCell, entered: u64) -> Result<(), LogError> {
    check_unless_deleted(cell, |replication| replication.entered() == entered)
}

/// Whether the epoch that was entered is still the current one.
pub(super) fn check_still(cell: &PartitionCell, epoch: i32) -> Result<(), LogError> {
    check_unless_deleted(cell, |replication| replication.epoch() == epoch)
}

fn check_unless_deleted(cell: &PartitionCell, is_so: impl Fn(&Replication) -> bool) -> Result<(), LogError> {
    let partition = cell.borrow();
    if partition.is_deleted() {
        return Err(LogError::UnknownPartition);
    }
    match is_so(partition.replication()) {
        true => Ok(()),
        false => Err(LogError::FencedLeaderEpoch),
    }
}
