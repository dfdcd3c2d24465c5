//! Going on without records that the shared log does not give back: offline, and only after somebody has seen which.
//!
//! What can be read is brought to segments and noted, as before another layout; then the log's files are moved aside
//! with the catalog and manifests as they were, oldest first, so that whatever cuts this short leaves a log that can be
//! looked at again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    boot::{self, read_catalog},
    doubt::Doubts,
    format::{catalog::Catalog, journal::Journal},
    io::direct::{DirectIo, create_dir_durably, sync_dir},
    lock::DataLock,
    metadata::Topic,
    node::executor,
    start::StartError,
    store::{Known, Owed, Store, StoreOptions, manifest_path},
};

/// Memory for what lives in the shared log only.
const CACHE_BYTES: usize = 64 << 20;

/// Looks at every shard's log of a data folder; if records are in doubt and `confirm` agrees to go on without them, does
/// so. Answers the folder with what was taken out, if anything was. Nothing is changed before `confirm` has agreed.
///
/// # Errors
/// If a node runs on the folder, or anything else than the shared log is damaged.
pub fn abandon(
    data_dir: &Path,
    confirm: impl FnOnce(&[Doubts]) -> bool + 'static,
) -> Result<Option<PathBuf>, StartError> {
    if !data_dir.join("catalog").is_file() {
        let reason = "there is no catalog: this is no data folder".to_owned();
        return Err(StartError::Damaged { path: data_dir.to_owned(), reason });
    }
    let lock = DataLock::take_offline(data_dir)?;
    boot::check_direct_io(&lock)?;
    let data_dir = data_dir.to_owned();
    executor(&lock, "abandon", None)?.run(async move {
        let io = lock.disk().await?;
        let path = data_dir.join("catalog");
        let missing = || StartError::io(path.display(), io::ErrorKind::NotFound.into());
        let catalog = read_catalog(&io, &path).await?.ok_or_else(missing)?;
        let node = Node { io, data_dir, catalog };
        let doubts = node.look().await?;
        if doubts.is_empty() || !confirm(&doubts) {
            return Ok(None);
        }
        node.go_on_without(&doubts).await.map(Some)
    })
}

/// A node that does not run.
struct Node {
    io: DirectIo,
    data_dir: PathBuf,
    catalog: Catalog,
}

impl Node {
    /// What the logs of all shards do not give back.
    async fn look(&self) -> Result<Vec<Doubts>, StartError> {
        let mut all = Vec::new();
        for shard in 0..self.catalog.shards {
            let found = Store::doubts(&self.io, &self.options(shard, self.catalog.run), &self.known(shard)?).await;
            let mut doubts = found.map_err(|error| StartError::of_open(error, &self.catalog))?;
            doubts.name_topics(|id| Some(self.catalog.topics.get(&id.topic)?.name.clone()));
            all.extend((!doubts.is_empty()).then_some(doubts));
        }
        Ok(all)
    }

    async fn go_on_without(mut self, doubts: &[Doubts]) -> Result<PathBuf, StartError> {
        let aside = self.data_dir.join(format!("abandoned-{}", self.catalog.run));
        self.keep_copies(&aside, doubts).map_err(|error| StartError::io(aside.display(), error))?;
        // This is a start of its own: what it notes must not be taken for the last one's.
        self.catalog.run += 1;
        let path = self.data_dir.join("catalog");
        let counted = Journal::create(self.io.clone(), path.clone(), &self.catalog.payloads()).await;
        drop(counted.map_err(|error| StartError::io(path.display(), error))?);
        for Doubts { shard, folder, .. } in doubts {
            let options = self.options(*shard, self.catalog.run);
            let files = Store::salvage(self.io.clone(), options, &self.known(*shard)?).await;
            let files = files.map_err(|error| StartError::of_open(error, &self.catalog))?;
            let to = aside.join(format!("wal-{shard}"));
            move_files(&files, folder, &to).map_err(|error| StartError::io(to.display(), error))?;
        }
        Ok(aside)
    }

    /// Catalog and manifests as they are: they say what the files of the log mean that are moved beside them.
    fn keep_copies(&self, aside: &Path, doubts: &[Doubts]) -> io::Result<()> {
        create_dir_durably(aside)?;
        let own = |shard: u32| manifest_path(&self.data_dir, self.catalog.generation, shard);
        let manifests = doubts.iter().map(|doubts| own(doubts.shard));
        for from in manifests.chain([self.data_dir.join("catalog")]) {
            let to = aside.join(from.file_name().unwrap_or_default());
            // Cut short before, it is there: what is here now is of the second try.
            if !to.exists() {
                let draft = aside.join("copying"); // a copy that was cut short must not pass for one
                fs::copy(&from, &draft)?;
                fs::File::open(&draft)?.sync_all()?;
                fs::rename(&draft, &to)?;
            }
        }
        sync_dir(aside)
    }

    fn known(&self, shard: u32) -> Result<Known, StartError> {
        let mut known = Known::new();
        for (id, stored) in &self.catalog.topics {
            let topic = Topic::tolerant(*id, stored.clone(), &Default::default()).map_err(StartError::Options)?;
            let shards = self.catalog.shards as usize;
            let own =
                self.catalog.partitions_here(*id).filter(|id| crate::engine::owner(*id, shards) == shard as usize);
            known.extend(own.map(|id| (id, topic.config.clone())));
        }
        Ok(known)
    }

    fn options(&self, shard: u32, run: u64) -> StoreOptions {
        StoreOptions {
            data_dir: self.data_dir.clone(),
            shard,
            generation: self.catalog.generation,
            run,
            cache_bytes: CACHE_BYTES,
            fetch_bytes: 0,
            compact_bytes: 0,
            wal_bytes: 0, // no file is made
            reserve_bytes: 0,
            owed: Owed::new(shard as usize + 1, 0),
            replicated: self.catalog.replicated_here().into(),
            elsewhere: Rc::default(), // nothing is kept of those
        }
    }
}

fn move_files(files: &[PathBuf], from: &Path, to: &Path) -> io::Result<()> {
    create_dir_durably(to)?;
    for file in files {
        fs::rename(file, to.join(file.file_name().unwrap_or_default()))?;
        sync_dir(to)?;
        sync_dir(from)?;
    }
    Ok(())
}
