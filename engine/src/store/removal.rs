//! Removing files without anybody having to wait for it.
//!
//! Whoever closes a removed file last frees its space, which takes the file system about a tenth of a second for each
//! GiB. That must not be a shard, so files are closed before they are removed, and then `Io::remove` does the work
//! elsewhere. Nor must it be the keeper that waits: deleted partitions and trimmed segments go in tasks of their own, file
//! by file, as what others want of the file system waits behind each removal.

use std::{io, path::Path, rc::Rc, time::Duration};

use super::{Store, partition_dir, segment_files::OpenSegment};
use crate::{
    api::TopicPartition,
    format::segment::SegmentName,
    io::{File, Io, Share},
    signal::Outcome,
};

/// How long a removal waits for readers of a file: an answer on its way is sent within moments, and one that is stuck
/// must not keep the space of a deleted topic.
const READERS_WAIT_MAX: Duration = Duration::from_secs(1);
const READERS_PAUSE: Duration = Duration::from_millis(10);

impl<I: Io> Store<I> {
    /// Removes the files of deleted partitions in the background. Each outcome resolves when that is done.
    pub(super) fn spawn_removal(self: &Rc<Self>, removed: Vec<(TopicPartition, Rc<Outcome<()>>)>) {
        if removed.is_empty() {
            return;
        }
        let store = self.clone();
        self.io.spawn(Share::Background, async move {
            for (id, done) in removed {
                let open = store.segments.forget(id);
                store.await_readers(&open).await;
                for file in open {
                    close(file).await;
                }
                if let Err(error) = remove_folder(&store.io, &partition_dir(&store.options.data_dir, id)).await {
                    tracing::warn!("removing the files of {id:?} failed, the next start will: {error}");
                }
                // what a late reader or writer opened meanwhile
                for file in store.segments.forget(id) {
                    close(file).await;
                }
                done.set(());
            }
        });
    }

    /// Removes segments that the manifest has given up, in the background.
    pub(super) fn spawn_segment_removal(self: &Rc<Self>, id: TopicPartition, gone: Vec<SegmentName>) {
        if gone.is_empty() {
            return;
        }
        let open: Vec<_> = gone.iter().map(|name| self.segments.forget_segment(id, *name)).collect();
        let (store, done) = (self.clone(), Rc::<Outcome<()>>::default());
        self.segment_removals.borrow_mut().entry(id).or_default().push(done.clone());
        self.io.spawn(Share::Background, async move {
            for (name, open) in gone.into_iter().zip(open) {
                if let Some(open) = open {
                    store.await_readers(std::slice::from_ref(&open)).await;
                    close(open).await;
                }
                store.remove_segment(id, name).await;
                store.io.yield_now().await;
            }
            let mut removals = store.segment_removals.borrow_mut();
            if let Some(of_partition) = removals.get_mut(&id) {
                of_partition.retain(|other| !Rc::ptr_eq(other, &done));
                if of_partition.is_empty() {
                    removals.remove(&id);
                }
            }
            drop(removals);
            done.set(());
        });
    }

    /// Removes the file of a segment that was given up, closed and forgotten. Somebody who still knew the segment may have opened
    /// the file again since. It is forgotten once more: the segment that gets the name next would be written into a file that is
    /// in no folder.
    pub(super) async fn remove_segment(&self, id: TopicPartition, name: SegmentName) {
        if let Err(error) = self.io.remove(&self.segments.path(id, name)).await {
            tracing::warn!("removing {} of {id:?} failed, the next start will: {error}", name.file_name());
        }
        if let Some(open) = self.segments.forget_segment(id, name) {
            close(open).await;
        }
    }

    /// Waits until the segments of a partition that were given up so far are removed: those of another life of it have their names.
    pub(super) async fn await_segment_removals(&self, id: TopicPartition) {
        let under_way = self.segment_removals.borrow().get(&id).cloned().unwrap_or_default();
        for removal in under_way {
            removal.wait().await;
        }
    }

    pub(super) async fn await_readers(&self, open: &[Rc<OpenSegment<I>>]) {
        let mut waited = Duration::ZERO;
        while waited < READERS_WAIT_MAX && open.iter().any(OpenSegment::is_in_use) {
            self.io.sleep(READERS_PAUSE).await;
            waited += READERS_PAUSE;
        }
    }
}

/// Closes a file that was taken out of the open ones; with other users, the last of them does.
pub(super) async fn close<I: Io>(open: Rc<OpenSegment<I>>) {
    let Ok(open) = Rc::try_unwrap(open) else { return };
    let OpenSegment { file, buffered, .. } = open;
    drop(buffered);
    if let Err(error) = file.close().await {
        tracing::warn!("closing a segment failed: {error}");
    }
}

async fn remove_folder<I: Io>(io: &I, folder: &Path) -> io::Result<()> {
    for name in io.list(folder).await? {
        io.remove(&folder.join(name)).await?;
        io.yield_now().await;
    }
    io.remove(folder).await
}
