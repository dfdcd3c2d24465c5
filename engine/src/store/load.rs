//! Bringing back to memory what lives in the shared log only, within the budget of the cache: if there is more than that,
//! because the budget was larger before or because there was no space for segments, the oldest goes to segments first.

use std::{collections::BTreeMap, io, path::Path, rc::Rc};

use super::{OpenError, Store, open::FoundFile, wal_files};
use crate::{
    api::TopicPartition,
    batch::batches,
    chunk::Memory,
    format::manifest::logged_producer_batch,
    io::{File, Io, Open, window::Window},
    partition::tail::{Backing, Extent},
    wal::{
        WalFileId,
        replay::{LiveRun, Replay},
    },
};

/// Runs of a file by the position of their group.
type Runs = BTreeMap<u64, Vec<(TopicPartition, LiveRun)>>;

impl<I: Io> Store<I> {
    /// Brings the runs that live in the shared log only back to memory, and their files back to use.
    pub(super) async fn load_live(self: &Rc<Self>, found: &[FoundFile], replay: Replay) -> Result<(), OpenError> {
        let mut by_file: BTreeMap<usize, Runs> = BTreeMap::new();
        for (id, runs) in replay.live {
            for run in runs {
                by_file.entry(run.file).or_default().entry(run.group).or_default().push((id, run));
            }
        }
        for at in replay.order {
            let FoundFile { id, bytes } = found[at];
            let path = wal_files::path_of(&self.options.wal_dir(), id);
            let groups = by_file.remove(&at).unwrap_or_default();
            let file = wal_files::open(&self.io, &self.options.wal_dir(), id, bytes).await;
            let file = file.map_err(OpenError::io(&path))?;
            let runs = groups.values().flatten();
            let live: Vec<_> = runs.filter_map(|(id, _)| self.partition(*id).ok()).collect();
            self.wal.borrow_mut().adopt(file, live);
            if !groups.is_empty() {
                self.load_file(id, &path, groups).await.map_err(OpenError::io(&path))?;
            }
        }
        for cell in self.partitions.borrow().values() {
            self.keeper.grown(cell);
        }
        Ok(())
    }

    async fn load_file(self: &Rc<Self>, id: WalFileId, path: &Path, groups: Runs) -> io::Result<()> {
        let file = self.io.open(path, Open::Read).await?;
        let mut window = Window::new(&file);
        for (group, mut runs) in groups {
            runs.sort_by_key(|(_, run)| run.at);
            let bytes = runs.iter().map(|(_, run)| run.len).sum();
            self.make_room_for(bytes, runs.len()).await?;
            let mut memory = Vec::with_capacity(bytes);
            for (_, run) in &runs {
                window.copy(group + run.at as u64, run.len, &mut memory).await?;
            }
            self.load_group(id, memory, &runs);
        }
        file.close().await
    }

    /// Has what was loaded written to segments until there is room, unless there is no space for it.
    async fn make_room_for(self: &Rc<Self>, bytes: usize, extents: usize) -> io::Result<()> {
        let mut kept = Ok(true);
        // Without an error it ends when everything is in segments at the latest.
        while matches!(kept, Ok(true)) && !self.cache.borrow_mut().make_room(bytes, extents) {
            self.starved.set(true);
            kept = self.keep().await;
        }
        self.starved.set(false);
        match kept {
            Err(full) if full.kind() == io::ErrorKind::StorageFull => {
                let shard = self.options.shard;
                tracing::warn!(shard, "the shared log needs more memory than there is, and segments no space: {full}");
                Ok(())
            }
            kept => kept.map(drop),
        }
    }

    fn load_group(&self, wal: WalFileId, memory: Vec<u8>, runs: &[(TopicPartition, LiveRun)]) {
        let size = memory.len();
        let memory: Rc<dyn Memory> = Rc::new(memory);
        let backing = Backing::new(memory.clone(), wal, runs.len());
        let mut at = 0;
        let mut cells = Vec::new();
        for (id, run) in runs {
            let cell = self.partition(*id).expect("only known partitions are replayed");
            let all = batches(&memory.bytes()[at..at + run.len]).flatten();
            let left: Vec<_> = all.take_while(|(info, _)| info.base_offset < run.end_offset).collect();
            let len = left.iter().map(|(info, _)| info.size).sum::<usize>();
            let logged = left.iter().filter_map(|(info, batch)| logged_producer_batch(info, batch));
            let producers: Vec<_> = logged.collect();
            let extent = Extent {
                base_offset: run.base_offset,
                end_offset: run.end_offset,
                at: u32::try_from(at).expect("groups are bounded"),
                len: u32::try_from(len).expect("groups are bounded"),
                backing: backing.clone(),
            };
            cell.borrow_mut().recover(extent, &producers);
            at += run.len;
            self.live_bytes.set(self.live_bytes.get() + len);
            cells.push((cell, run.end_offset));
        }
        self.cache.borrow_mut().insert(backing, size, cells);
    }
}
