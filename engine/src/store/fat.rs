//! The fat path: a large run goes straight to its partition's segment, with the group that points to it in the shared
//! log, so that large batches are not written twice. Whatever of the tail lies before it goes along.
//!
//! One appender per partition at a time: while the keeper appends, large runs go to the shared log as small ones do.
//! Fat runs of one partition are written one after the other, because neighbours share a block.

use std::{io, rc::Rc};

use super::{Store, wal_files::WalFile};
use crate::{
    chunk::Memory,
    format::wal::SegmentPointer,
    io::{File, IO_BYTES_MAX, Io},
    partition::{
        PartitionCell,
        keeping::FatPlan,
        tail::{Backing, Extent},
    },
    replica_api::FAT_BYTES,
    wal::group::{CommitGroup, Run},
};

/// Segments that the write of a fat run may go to, with what lies before it: the pump waits for each file.
const SEGMENTS_MAX: usize = 8;

/// A run that is written to its segment.
pub(crate) struct FatRun {
    pub(crate) cell: Rc<PartitionCell>,
    place: FatPlan,
}

impl FatRun {
    /// Its batches.
    pub(crate) fn memory(&self) -> Rc<dyn Memory> {
        self.place.plan.extents.last().expect("it was planned with its own").live_memory()
    }

    /// What the shared log says of it.
    pub(crate) fn pointer(&self) -> SegmentPointer {
        self.place.pointer
    }
}

impl<I: Io> Store<I> {
    /// Whether some runs of a group are large and there is room for them: the shared log needs no new space, segments do.
    pub(super) fn may_have_fat_runs(&self, group: &CommitGroup) -> bool {
        group.runs.iter().any(|run| run.len >= FAT_BYTES) && self.room().is_some_and(|room| room >= group.bytes as u64)
    }

    /// Plans the fat path for a run that is being sealed, if it is large and nothing speaks against it. The run joins
    /// the tail then.
    pub(super) fn plan_fat(&self, run: &Run, file: &Rc<WalFile<I>>) -> Option<FatRun> {
        if run.len < FAT_BYTES || !run.partition.borrow().takes_fat_runs() {
            return None;
        }
        let backing = Backing::new(run.memory(), file.id, 1);
        let extent = Extent {
            base_offset: run.base_offset,
            end_offset: run.end_offset,
            at: 0,
            len: u32::try_from(run.len).expect("runs are bounded"),
            backing: backing.clone(),
        };
        let place = run.partition.borrow_mut().plan_fat(extent, SEGMENTS_MAX, self.io.now_ms())?;
        self.cache.borrow_mut().insert(backing, run.len, vec![(run.partition.clone(), run.end_offset)]);
        Some(FatRun { cell: run.partition.clone(), place })
    }

    /// Writes a fat run to stable storage, whatever its topic asks: the groups behind it may be acknowledged as durable
    /// and must not depend on a pointer to nothing. Of a partition that is gone, files and folders may be missing.
    pub(super) async fn write_fat(&self, fat: &FatRun) -> io::Result<()> {
        match self.try_write_fat(fat).await {
            Err(_) if fat.cell.borrow().is_deleted() => Ok(()),
            result => result,
        }
    }

    async fn try_write_fat(&self, fat: &FatRun) -> io::Result<()> {
        let (id, place) = (fat.cell.borrow().id(), &fat.place);
        let result = match &place.before {
            Some(before) if !before.clone().wait().await => Err(io::Error::other("the write before it failed")),
            _ => self.write_plan(id, &place.plan, place.head.as_ref(), IO_BYTES_MAX).await,
        };
        place.written.set(result.is_ok());
        for open in result? {
            open.file.flush().await?;
        }
        self.sync_new_segments(id, &place.plan).await
    }

    /// A fat run is in its segment.
    pub(super) fn fat_done(&self, fat: &FatRun) {
        let mut partition = fat.cell.borrow_mut();
        if partition.end_fat() {
            // The keeper passed this partition over meanwhile, and a trim may wait for that.
            self.keeper.notify();
        }
        if partition.is_deleted() {
            return;
        }
        let plan = &fat.place.plan;
        partition.fat_appended(plan, self.io.now_ms());
        drop(partition);
        self.live_bytes.set(self.live_bytes.get() - plan.extents.iter().map(|e| e.len as usize).sum::<usize>());
        self.keeper.grown(&fat.cell);
    }
}
