//! What the keeper does for the compactor: puts new segments in the place of old ones, and removes files that a crash
//! left.
//!
//! A replacement is one record of the manifest. Before it is durable the new segment's file is whole and flushed, and
//! nothing knows it; after it the old files are not needed. A crash at any moment leaves files too many, never too few;
//! their names are of no segment that the manifest knows, and the sweep of the next start finds them.

use std::{io, rc::Rc};

use zerocopy::little_endian::I64;

use super::{Store, partition_dir, removal};
use crate::{
    api::TopicPartition,
    format::{
        journal::Payloads,
        manifest::{self, Record, Replace},
        segment::{Segment, SegmentName},
    },
    io::Io,
    signal::Outcome,
};

/// Work for the keeper.
pub(crate) enum Job {
    Replace(Replacement),
    /// Remove the files of a partition that no segment has.
    Sweep(TopicPartition, Rc<Outcome<()>>),
}

/// Segments to be replaced.
pub(crate) struct Replacement {
    pub(crate) id: TopicPartition,
    /// How often the partition's end had been cut off when they were read: a segment may have the name of one that was.
    pub(crate) cuts: u32,
    /// Neighbours, as they were read; none if only the clean point moves.
    pub(crate) sources: Vec<SegmentName>,
    /// What takes their place; `None` if nothing was left of them.
    pub(crate) segment: Option<Segment>,
    /// The new clean point; `None`: as it was.
    pub(crate) clean_offset: Option<i64>,
    pub(crate) outcome: Rc<Outcome<Fate>>,
}

/// What became of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is done and durable.
    Done,
    /// The partition is not what it was any more: nothing was done, the new file is not needed.
    Dropped,
    /// The manifest could not be written. Perhaps it was: the new file must stay until the next start.
    Unknown,
}

impl<I: Io> Store<I> {
    /// Has the keeper replace segments.
    pub(super) async fn replace(
        &self,
        sources: &[Segment],
        segment: Option<Segment>,
        to: (TopicPartition, u32, Option<i64>),
    ) -> Fate {
        let outcome = Rc::<Outcome<Fate>>::default();
        let (id, cuts, clean_offset) = to;
        let sources = sources.iter().map(Segment::name).collect();
        let replacement = Replacement { id, cuts, sources, segment, clean_offset, outcome: outcome.clone() };
        self.keeper.post(Job::Replace(replacement));
        outcome.wait().await
    }

    /// Has the keeper remove the files of a partition that no segment has.
    pub(super) async fn sweep(&self, id: TopicPartition) {
        let outcome = Rc::<Outcome<()>>::default();
        self.keeper.post(Job::Sweep(id, outcome.clone()));
        outcome.wait().await;
    }

    /// Does the jobs that were posted; whether there were any.
    pub(super) async fn do_jobs(&self) -> io::Result<bool> {
        let mut worked = false;
        while let Some(job) = self.keeper.next_job() {
            worked = true;
            match job {
                Job::Replace(replacement) => self.do_replace(replacement).await?,
                Job::Sweep(id, outcome) => {
                    if let Err(error) = self.do_sweep(id).await {
                        tracing::warn!("looking for files of {id:?} that a crash left failed: {error}");
                    }
                    outcome.set(());
                }
            }
        }
        Ok(worked)
    }

    /// What was not begun is not done: somebody may be waiting for it to stop.
    pub(super) fn refuse_jobs(&self) {
        while let Some(job) = self.keeper.next_job() {
            match job {
                Job::Replace(replacement) => replacement.outcome.set(Fate::Dropped),
                Job::Sweep(_, outcome) => outcome.set(()),
            }
        }
    }

    async fn do_replace(&self, replacement: Replacement) -> io::Result<()> {
        let Replacement { id, cuts, sources, segment, clean_offset, outcome } = replacement;
        let Some(cell) = self.partition(id).ok().filter(|cell| {
            let partition = cell.borrow();
            partition.config().cleanup_policy.compact
                && partition.segments().holds(&sources)
                && (partition.cuts(), partition.replication().is_cutting()) == (cuts, false)
                && self.failed.borrow().is_none()
        }) else {
            outcome.set(Fate::Dropped);
            return Ok(());
        };
        // The log start may have moved behind all that is left.
        let log_start = cell.borrow().marks().log_start();
        let (segment, useless) = match segment {
            Some(segment) if segment.end_offset <= log_start => (None, Some(segment.name())),
            other => (other, None),
        };
        let replace = Replace {
            removed: sources.iter().map(|name| I64::new(name.base_offset)).collect(),
            added: segment.iter().map(Segment::meta).collect(),
            clean_offset: clean_offset.unwrap_or(cell.borrow().clean_offset()),
        };
        let mut payloads = Payloads::default();
        payloads.push(&manifest::encode(id, &Record::Replace(replace.clone())));
        let noted = self.note(payloads).await;
        if noted.is_err() {
            outcome.set(Fate::Unknown);
            return noted;
        }
        cell.borrow_mut().replace(&replace);
        for name in sources.into_iter().chain(useless) {
            if let Some(open) = self.segments.forget_segment(id, name) {
                removal::close(open).await;
            }
            self.remove_segment(id, name).await;
            self.io.yield_now().await;
        }
        outcome.set(Fate::Done);
        Ok(())
    }

    /// A file at or behind the end of the segments may be one that is being begun. Below it, what no segment has is a
    /// replacement that the manifest never heard of, or something that was replaced or dropped. What a segment should
    /// have and is not there is a loss.
    async fn do_sweep(&self, id: TopicPartition) -> io::Result<()> {
        let dir = partition_dir(&self.options.data_dir, id);
        let files = self.io.list(&dir).await?;
        if let Ok(cell) = self.partition(id) {
            // The keeper is here, so that none comes or goes meanwhile.
            for segment in cell.borrow().segments().all().iter().filter(|segment| segment.size > 0) {
                if !files.contains(&segment.name().file_name()) {
                    let (path, end) = (dir.join(segment.name().file_name()), segment.end_offset);
                    tracing::error!("{} is missing: offsets {}..{end} are lost", path.display(), segment.base_offset);
                }
            }
        }
        for file in files {
            let Some(name) = SegmentName::of_file(&file) else { continue };
            let Ok(cell) = self.partition(id) else { return Ok(()) };
            let is_orphan = {
                let partition = cell.borrow();
                name.base_offset < partition.marks().materialised() && !partition.segments().holds(&[name])
            };
            if is_orphan {
                tracing::info!("removing {}, which a crash left", dir.join(&file).display());
                self.io.remove(&dir.join(&file)).await?;
            }
        }
        Ok(())
    }
}
