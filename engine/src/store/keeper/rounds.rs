//! Rounds: which tails are written to their segments together, and writing them.

use std::{collections::HashSet, io, rc::Rc};

use futures_util::{StreamExt, stream};

use crate::{
    api::TopicPartition,
    chunk::Memory,
    io::{BLOCK, Buffer, File, Io, align_down, align_up},
    partition::{
        PartitionCell,
        materialise::{Plan, SegmentWrite},
    },
    store::{Store, footer, partition_dir, segment_files::OpenSegment},
};

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

/// A partition of a round; without a plan it is only noted.
pub(super) struct Picked {
    pub(super) cell: Rc<PartitionCell>,
    plan: Option<Plan>,
}

impl<I: Io> Store<I> {
    /// Chooses the partitions of a round and plans them.
    pub(super) fn pick(&self) -> Vec<Picked> {
        let pressure = self.under_pressure();
        let held_up = self.cache.borrow().is_held_up();
        let now_ms = self.io.now_ms();
        let mut picked = Vec::new();
        let mut bytes = 0;
        let mut seen = HashSet::new();
        let mut take = |cell: Rc<PartitionCell>| {
            let mut partition = cell.borrow_mut();
            partition.unqueue();
            if partition.is_deleted() || !seen.insert(partition.id()) {
                return true;
            }
            let plan = partition.plan_round(PARTITION_BYTES_MAX, now_ms);
            let wanted = plan.is_some() || partition.unnoted_bytes().is_some();
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

    pub(super) async fn round(&self, picked: &[Picked]) -> io::Result<()> {
        let plans = || picked.iter().filter_map(|Picked { cell, plan }| Some((cell.borrow().id(), plan.as_ref()?)));
        // One after the other, the folders of a topic's many partitions would keep the first round from ending while
        // all that comes in meanwhile stays in memory.
        let new = plans().filter(|(_, plan)| begins_segment(plan));
        let folders: Vec<_> = new.map(|(id, _)| partition_dir(&self.options.data_dir, id)).collect();
        if !folders.is_empty() {
            self.io.create_dirs(folders).await?;
        }
        let written = stream::iter(plans())
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
            if !partition.is_deleted() {
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

    /// Writes a plan's batches and the footers of segments that end. Answers the files, to be flushed. `head` is what
    /// the first block holds before, if that is known; one write has `write_bytes` at most.
    pub(crate) async fn write_plan(
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
                footer::write(&self.io, &open.file, segment).await?;
            }
            files.push(open);
        }
        Ok(files)
    }

    /// Makes the names of a plan's new segments durable.
    pub(crate) async fn sync_new_segments(&self, id: TopicPartition, plan: &Plan) -> io::Result<()> {
        match begins_segment(plan) {
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
}

fn begins_segment(plan: &Plan) -> bool {
    plan.writes.iter().any(|write| write.from == 0)
}
