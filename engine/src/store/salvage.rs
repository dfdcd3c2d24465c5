//! What a shard's log does not give back, and bringing the rest of it to segments.

use std::{path::PathBuf, rc::Rc};

use super::{
    Known, OpenError, Store, StoreOptions,
    open::{Replayed, read_manifest, refuse_to_miss_manifest, replay_log},
    wal_files,
};
use crate::{
    doubt::{Doubts, LostGroup, PartitionDoubt},
    io::Io,
    wal::{
        WalFileId,
        replay::{Loss, Losses},
    },
};

impl<I: Io> Store<I> {
    /// What would have to be given up to open the store. Nothing is changed.
    pub(crate) async fn doubts(io: &I, options: &StoreOptions, known: &Known) -> Result<Doubts, OpenError> {
        refuse_to_miss_manifest(io, options, known).await?;
        let manifest = read_manifest(io, &options.manifest_path()).await?;
        match replay_log(io, options, manifest, known, Losses::Refused).await {
            Ok(_) => Ok(Doubts::default()),
            Err(OpenError::Lost(doubts)) => Ok(*doubts),
            Err(error) => Err(error),
        }
    }

    /// Brings to segments what the log gives back, and notes it. Answers the log's files, in the order of what they hold:
    /// nothing needs them any more.
    pub(crate) async fn salvage(io: I, options: StoreOptions, known: &Known) -> Result<Vec<PathBuf>, OpenError> {
        let dir = options.wal_dir();
        let (store, files) = Self::recover(io, options, known, Losses::Suffered).await?;
        store.keep_all().await.map_err(OpenError::io(&dir))?;
        if store.has_live() {
            return Err(OpenError::damaged(&dir, "what can be read could not be brought to segments"));
        }
        Ok(files.into_iter().map(|id| wal_files::path_of(&dir, id)).collect())
    }

    async fn keep_all(self: &Rc<Self>) -> std::io::Result<()> {
        self.keeper.end_soon();
        while self.keep().await? {}
        Ok(())
    }
}

impl Replayed {
    /// The losses that it suffered.
    pub(super) fn doubts(&self, options: &StoreOptions) -> Doubts {
        let lost = |loss: &Loss| match loss {
            Loss::Group { run, sequence } => {
                Some(LostGroup { run: *run, sequence: *sequence, place: self.place(*run, *sequence) })
            }
            Loss::Hole { .. } => None, // its partition has a gap
        };
        let partitions = self.replay.gaps.iter().map(|(id, gap)| PartitionDoubt {
            id: *id,
            topic: id.topic.to_string(),
            from: gap.from,
            found: gap.found,
            until: gap.until,
        });
        Doubts {
            shard: options.shard,
            folder: options.wal_dir(),
            groups: self.replay.losses.iter().filter_map(lost).collect(),
            partitions: partitions.collect(),
        }
    }

    /// Where a lost group should be, by its neighbours.
    fn place(&self, run: u64, sequence: u64) -> Option<String> {
        let files = self.chains.iter().zip(&self.found);
        let all = files.flat_map(|(chain, file)| chain.begun.iter().chain(&chain.behind).map(move |span| (span, file)));
        let own: Vec<_> = all.filter(|(span, _)| span.first.run == run).collect();
        let name = |id: WalFileId| format!("{:08}.wal", id.0);
        let before = own.iter().find(|(span, _)| span.last.checked_add(1) == Some(sequence));
        let after = own.iter().find(|(span, _)| span.first.sequence.checked_sub(1) == Some(sequence));
        match (before, after) {
            (Some((span, file)), Some((_, after))) if file.id == after.id => {
                Some(format!("at byte {} of {}", span.end, name(file.id)))
            }
            (Some((span, file)), _) if span.end < file.bytes => {
                Some(format!("behind byte {} of {}, or at the begin of the next file", span.end, name(file.id)))
            }
            (_, Some((span, file))) => Some(format!("before byte {} of {}", span.begin, name(file.id))),
            _ => None,
        }
    }
}
