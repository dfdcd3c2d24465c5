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
    io::{BLOCK, File, IO_BYTES_MAX, Io},
    partition::{
        Ahead, Appending, PartitionCell,
        materialise::{self, Plan},
        tail::{Backing, Extent},
    },
    signal::Outcome,
    wal::group::{CommitGroup, Run},
};

/// Runs of at least this size take the fat path.
pub(crate) const FAT_BYTES: usize = 256 << 10;

/// Segments that the write of a fat run may go to, with what lies before it: the pump waits for each file.
const SEGMENTS_MAX: usize = 8;

/// A run that is written to its segment.
pub(crate) struct FatRun {
    pub(crate) cell: Rc<PartitionCell>,
    pub(crate) plan: Rc<Plan>,
    pub(crate) pointer: SegmentPointer,
    /// What the first block holds before; `None`: read it.
    head: Option<Rc<Vec<u8>>>,
    /// The fat run before it, whose last block is this one's first.
    before: Option<Rc<Outcome<bool>>>,
    written: Rc<Outcome<bool>>,
}

impl<I: Io> Store<I> {
    /// Whether some runs of a group are large and there is room for them: the shared log needs no new space, segments do.
    pub(super) fn may_have_fat_runs(&self, group: &CommitGroup) -> bool {
        group.runs.iter().any(|run| run.len >= FAT_BYTES) && self.room().is_some_and(|room| room >= group.bytes as u64)
    }

    /// Plans the fat path for a run that is being sealed, if it is large and nothing speaks against it. The run joins
    /// the tail then.
    pub(super) fn plan_fat(&self, run: &Run, file: &Rc<WalFile<I>>) -> Option<FatRun> {
        let mut partition = run.partition.borrow_mut();
        if run.len < FAT_BYTES || partition.deleted {
            return None;
        }
        let (active, from, runs, head, before) = match &partition.appending {
            Appending::Keeper => return None,
            Appending::Nobody => {
                let active = partition.active().map(|at| partition.segments[at].clone());
                (active, partition.marks().materialised(), 0, None, None)
            }
            Appending::Fat(ahead) => {
                let before = (Some(ahead.last_block.clone()), Some(ahead.written.clone()));
                (Some(ahead.active.clone()), ahead.end_offset, ahead.runs, before.0, before.1)
            }
        };
        let mut memory = vec![0; run.len];
        run.fill(&mut memory);
        let memory: Rc<dyn Memory> = Rc::new(memory);
        let backing = Backing::new(memory.clone(), file.id, 1);
        let extent = Extent {
            base_offset: run.base_offset,
            end_offset: run.end_offset,
            at: 0,
            len: u32::try_from(run.len).expect("runs are bounded"),
            backing: backing.clone(),
        };
        let mut extents = partition.tail_from(from);
        extents.push(extent.clone());
        let plan = materialise::plan(active.as_ref(), extents, partition.config(), self.io.now_ms());
        if plan.end_offset != run.end_offset || plan.writes.len() > SEGMENTS_MAX {
            return None;
        }
        let pointer = plan.last_place()?;
        let segment = &plan.writes.last().expect("it has a place").segment;
        let written = Rc::<Outcome<bool>>::default();
        let filled = usize::try_from(segment.size % BLOCK as u64).expect("less than a block");
        partition.appending = Appending::Fat(Ahead {
            runs: runs + 1,
            end_offset: run.end_offset,
            active: segment.clone(),
            last_block: Rc::new(memory.bytes()[run.len - filled..].to_vec()),
            written: written.clone(),
        });
        partition.push_extent(extent);
        drop(partition);
        self.cache.borrow_mut().insert(backing, run.len, vec![(run.partition.clone(), run.end_offset)]);
        // A segment that begins with this run has no block in common with what is before.
        let head = head.filter(|_| plan.writes.first().is_some_and(|write| write.from > 0));
        Some(FatRun { cell: run.partition.clone(), plan: Rc::new(plan), pointer, head, before, written })
    }

    /// Writes a fat run to stable storage, whatever its topic asks: the groups behind it may be acknowledged as durable
    /// and must not depend on a pointer to nothing. Of a partition that is gone, files and folders may be missing.
    pub(super) async fn write_fat(&self, fat: &FatRun) -> io::Result<()> {
        match self.try_write_fat(fat).await {
            Err(_) if fat.cell.borrow().deleted => Ok(()),
            result => result,
        }
    }

    async fn try_write_fat(&self, fat: &FatRun) -> io::Result<()> {
        let id = fat.cell.borrow().id;
        let result = match &fat.before {
            Some(before) if !before.clone().wait().await => Err(io::Error::other("the write before it failed")),
            _ => self.write_plan(id, &fat.plan, fat.head.as_ref(), IO_BYTES_MAX).await,
        };
        fat.written.set(result.is_ok());
        for open in result? {
            open.file.flush().await?;
        }
        self.sync_new_segments(id, &fat.plan).await
    }

    /// A fat run is in its segment.
    pub(super) fn fat_done(&self, fat: &FatRun) {
        let mut partition = fat.cell.borrow_mut();
        if let Appending::Fat(ahead) = &mut partition.appending {
            ahead.runs -= 1;
            if ahead.runs == 0 {
                partition.appending = Appending::Nobody;
                // It passed this partition over meanwhile, and a trim may wait for that.
                self.keeper.notify();
            }
        }
        if partition.deleted {
            return;
        }
        partition.fat_appended(&fat.plan, self.io.now_ms());
        drop(partition);
        self.live_bytes.set(self.live_bytes.get() - fat.plan.extents.iter().map(|e| e.len as usize).sum::<usize>());
        self.keeper.grown(&fat.cell);
    }
}
