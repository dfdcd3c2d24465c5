//! What comes before the shards: the check for direct I/O, the catalog, and laying partitions out anew when
//! the number of shards has changed.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    rc::Rc,
};

use uuid::Uuid;

use crate::{
    api::TopicPartition,
    config::TopicConfig,
    engine::owner,
    format::{
        catalog::{self, Catalog, FORMAT_VERSION, Fault, Reading, Record},
        journal::{self, Journal, Payloads, ReadError},
        manifest::{self, PartitionState},
    },
    io::{Io, direct::DirectIo},
    lock::DataLock,
    start::{NodeOptions, StartError},
    store::{Known, Owed, Store, StoreOptions, manifest_path, topics_dir},
};

/// What shard 0 found; every shard starts from it.
#[derive(Clone, Debug)]
pub(crate) struct Booted {
    pub(crate) catalog: Catalog,
}

/// Opens the lock file with O_DIRECT, which some file systems refuse.
pub(crate) fn check_direct_io(lock: &DataLock) -> Result<(), StartError> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(lock.path());
    match opened {
        Ok(_) => Ok(()),
        Err(error) => Err(StartError::NoDirectIo { path: lock.data_dir(), reason: error.to_string() }),
    }
}

/// CPUs that this process may run on.
#[expect(unsafe_code, reason = "std has no sched_getaffinity")]
pub(crate) fn cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is writable and its size is given.
    let asked = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if asked != 0 {
        return Vec::new();
    }
    let limit = usize::try_from(libc::CPU_SETSIZE).unwrap_or_default();
    // SAFETY: the index is below CPU_SETSIZE.
    (0..limit).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Reads the catalog or begins one, counts this start, and brings the layout to the number of shards.
pub(crate) async fn boot(io: &DirectIo, options: &NodeOptions) -> Result<(Booted, Journal<DirectIo>), StartError> {
    let path = options.data_dir.join("catalog");
    let (mut catalog, new) = match read_catalog(io, &path).await? {
        Some(found) => (found, false),
        None if holds_data(&options.data_dir) => {
            let reason =
                "it is missing, but there is data beside it that only it gives a meaning: restore it, or start \
                in another folder"
                    .to_owned();
            return Err(StartError::Damaged { path, reason });
        }
        None => (
            Catalog {
                format: FORMAT_VERSION,
                cluster_id: Uuid::new_v4(),
                node_id: options.node_id,
                ..Catalog::default()
            },
            true,
        ),
    };
    if catalog.node_id != options.node_id {
        return Err(StartError::Options(format!(
            "{} belongs to node {}, but this node's id is {}: start it with --node-id {}",
            options.data_dir.display(),
            catalog.node_id,
            options.node_id,
            catalog.node_id
        )));
    }
    upgrade(io, &path, &mut catalog).await?;
    catalog.run += 1;
    let shards = u32::try_from(options.shards).expect("shards are bounded");
    if !new && catalog.shards != shards {
        // Logs that a start which was cut short left behind must not count in the new layout.
        forget_layouts(io, options, &catalog).await?;
        lay_out(io, options, &catalog, shards).await?;
    }
    let may_add = !new && catalog.shards == shards;
    if catalog.shards != shards {
        (catalog.generation, catalog.shards) = (catalog.generation + 1, shards);
        catalog.run += 1; // laying out was a start of its own
    }
    let journal =
        begin_catalog(io, &path, &catalog, may_add).await.map_err(|error| StartError::io(path.display(), error))?;
    forget_layouts(io, options, &catalog).await?;
    remove_orphans(&options.data_dir, &catalog)
        .map_err(|error| StartError::io("removing what deleted topics left", error))?;
    Ok((Booted { catalog }, journal))
}

/// Makes this start's catalog: a new one in place of the old one, or, if the disk has no space for that and this start
/// changes nothing else, the old one with this run.
async fn begin_catalog<I: Io>(io: &I, path: &Path, catalog: &Catalog, may_add: bool) -> io::Result<Journal<I>> {
    let full = match Journal::create(io.clone(), path.to_owned(), &catalog.payloads()).await {
        Err(full) if full.kind() == io::ErrorKind::StorageFull && may_add => full,
        made => return made,
    };
    let Ok(end) = journal::read(io, path, |_| Ok::<(), ()>(())).await else {
        return Err(full); // it was read to its end before
    };
    tracing::warn!("no space for a new catalog: the old one goes on");
    let mut payloads = Payloads::default();
    payloads.push(&catalog::encode(&Record::Run(catalog.run)));
    Journal::go_on(io.clone(), path.to_owned(), end, &payloads.finish()).await
}

/// Whether a node has been here. The first thing that it makes is its catalog.
fn holds_data(data_dir: &Path) -> bool {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    names(data_dir).iter().any(|name| parts_of(name).is_some())
        || names(&topics_dir(data_dir)).iter().any(|name| Uuid::parse_str(name).is_ok())
}

/// Reads the catalog; `None` if there is none.
pub(crate) async fn read_catalog<I: Io>(io: &I, path: &Path) -> Result<Option<Catalog>, StartError> {
    let refuse = |fault: Fault| match fault {
        Fault::Damaged(reason) => StartError::Damaged { path: path.to_owned(), reason },
        Fault::Newer(reason) => StartError::Newer { path: path.to_owned(), reason },
    };
    let mut reading = Reading::default();
    match journal::read(io, path, |page| reading.take(page)).await {
        Ok(_) => reading.finish().map(Some).map_err(refuse),
        Err(ReadError::Io(missing)) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(ReadError::Io(error)) => Err(StartError::io(path.display(), error)),
        Err(ReadError::Damaged(error)) => Err(refuse(Fault::Damaged(error.to_string()))),
        Err(ReadError::Refused(fault)) => Err(refuse(fault)),
    }
}

/// Brings a folder of an older version to this one, before anything else in it is changed: what it says stays the same.
pub(crate) async fn upgrade<I: Io>(io: &I, path: &Path, catalog: &mut Catalog) -> Result<(), StartError> {
    if catalog.format == FORMAT_VERSION {
        return Ok(());
    }
    tracing::info!("the data directory goes from format {} to {FORMAT_VERSION}", catalog.format);
    let written = Journal::create(io.clone(), path.to_owned(), &catalog.payloads()).await;
    drop(written.map_err(|error| StartError::io(path.display(), error))?);
    catalog.format = FORMAT_VERSION;
    Ok(())
}

/// Brings everything to segments under the former layout and writes the manifests of the new one. The catalog's record
/// makes it so; a crash before that leaves the former layout in force.
async fn lay_out(io: &DirectIo, options: &NodeOptions, catalog: &Catalog, shards: u32) -> Result<(), StartError> {
    tracing::info!(from = catalog.shards, to = shards, "the number of shards changed: laying partitions out anew");
    let config = Rc::new(TopicConfig::parse(&options.topic_defaults, &BTreeMap::new()).map_err(StartError::Options)?);
    let replicated = Rc::new(catalog.replicated_here());
    let mut states: HashMap<usize, Vec<(TopicPartition, PartitionState)>> = HashMap::new();
    let mut run_ends: HashMap<usize, BTreeMap<u64, u64>> = HashMap::new();
    for shard in 0..catalog.shards {
        let ids = catalog.topics.keys().flat_map(|topic| catalog.partitions_here(*topic));
        let own = ids.filter(|id| owner(*id, catalog.shards as usize) == shard as usize);
        let known: Known = own.map(|id| (id, config.clone())).collect();
        let store_options = StoreOptions {
            data_dir: options.data_dir.clone(),
            shard,
            generation: catalog.generation,
            run: catalog.run,
            cache_bytes: options.memory_bytes / 2,
            fetch_bytes: options.memory_bytes / 4,
            compact_bytes: 0, // nothing is compacted meanwhile
            wal_bytes: options.wal_bytes,
            reserve_bytes: 0,
            owed: Owed::new(shard as usize + 1, options.wal_bytes),
            replicated: replicated.clone(),
            elsewhere: elsewhere(catalog, shard, &config),
        };
        let opened = Store::open(io.clone(), store_options, &known).await;
        let store = opened.map_err(|error| StartError::of_open(error, catalog))?;
        store.close().await;
        if store.has_live() {
            let reason = "no space to bring the shared log to segments, which another number of shards needs".into();
            return Err(StartError::Damaged { path: options.data_dir.clone(), reason });
        }
        run_ends.insert(shard as usize, store.run_ends().clone());
        for (id, state) in store.states() {
            states.entry(owner(id, shards as usize)).or_default().push((id, state));
        }
    }
    for shard in 0..shards {
        let path = manifest_path(&options.data_dir, catalog.generation + 1, shard);
        let own = states.remove(&(shard as usize)).unwrap_or_default();
        let ends = run_ends.remove(&(shard as usize)).unwrap_or_default();
        let payloads = manifest::encode_all(&ends, own.into_iter());
        let made = Journal::create(io.clone(), path.clone(), &payloads).await;
        made.map_err(|error| StartError::io(path.display(), error))?;
    }
    Ok(())
}

/// The partitions of a shard that are on other nodes only.
fn elsewhere(catalog: &Catalog, shard: u32, config: &Rc<TopicConfig>) -> Rc<Known> {
    let all = catalog.topics.keys().flat_map(|topic| catalog.partitions_elsewhere(*topic));
    let own = all.filter(|id| owner(*id, catalog.shards as usize) == shard as usize);
    Rc::new(own.map(|id| (id, config.clone())).collect())
}

/// Removes manifests of other layouts and shared logs of shards that are no more, whether this start or one that was cut
/// short left them: were there as many shards again one day, their groups would count.
async fn forget_layouts(io: &DirectIo, options: &NodeOptions, catalog: &Catalog) -> Result<(), StartError> {
    let list = io.list(&options.data_dir).await;
    for name in list.map_err(|error| StartError::io(options.data_dir.display(), error))? {
        let other_layout = match parts_of(&name) {
            Some(("manifest", generation, shard)) => {
                generation != catalog.generation || shard >= u64::from(catalog.shards)
            }
            Some((_, _, shard)) => shard >= u64::from(catalog.shards),
            None => false,
        };
        if other_layout {
            let path = options.data_dir.join(name);
            io.remove(&path).await.map_err(|error| StartError::io(path.display(), error))?;
        }
    }
    let synced = io.sync_dir(&options.data_dir).await;
    synced.map_err(|error| StartError::io(options.data_dir.display(), error))
}

/// Kind, generation and shard of a manifest or of a shared log (which has no generation) by its name.
fn parts_of(name: &str) -> Option<(&str, u64, u64)> {
    let name = name.strip_suffix(".making").unwrap_or(name);
    match name.split('-').collect::<Vec<_>>()[..] {
        [kind @ "manifest", generation, shard] => Some((kind, generation.parse().ok()?, shard.parse().ok()?)),
        [kind @ "wal", shard] => Some((kind, 0, shard.parse().ok()?)),
        _ => None,
    }
}

/// Removes directories of topics that the catalog does not know: their deletion was cut short.
fn remove_orphans(data_dir: &Path, catalog: &Catalog) -> io::Result<()> {
    let entries = match fs::read_dir(topics_dir(data_dir)) {
        Ok(entries) => entries,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok());
        if id.is_some_and(|id| !catalog.topics.contains_key(&id)) {
            tracing::info!("removing {}: its topic was deleted", entry.path().display());
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{format::catalog::StoredTopic, io::sim::Sim};

    const PATH: &str = "/d/catalog";

    /// A disk without a free block, and on it the catalog of a node that was started once.
    fn full_disk(seed: u64) -> (Sim, Catalog) {
        let topic = StoredTopic { name: "a".to_owned(), partitions: 1, overrides: BTreeMap::new() };
        let mut catalog = Catalog { format: FORMAT_VERSION, shards: 1, run: 1, ..Catalog::default() };
        catalog.apply(Record::Topic(Uuid::from_u128(1), topic));
        let sim = Sim::new(seed);
        sim.run_until(async {
            sim.io().create_dir(Path::new("/d")).await.unwrap();
            begin_catalog(&sim.io(), Path::new(PATH), &catalog, false).await.unwrap();
        });
        sim.set_free_bytes(0);
        (sim, catalog)
    }

    fn found(sim: &Sim) -> Catalog {
        let io = sim.restart();
        sim.run_until(read_catalog(&io, Path::new(PATH))).unwrap().unwrap().unwrap()
    }

    /// A start failed on a full disk: it wrote its catalog anew beside the old one.
    #[test]
    fn a_start_is_counted_without_a_free_block_or_not_at_all() {
        for crash in 1.. {
            let mut ended = 0;
            for seed in 0..20 {
                let (sim, mut catalog) = full_disk(seed);
                catalog.run = 2;
                sim.crash_after(crash);
                let counted = sim.run_until(begin_catalog(&sim.io(), Path::new(PATH), &catalog, true));
                let runs = if counted.map(|begun| drop(begun.unwrap())).is_some() { 2..=2 } else { 1..=2 };
                ended += u32::from(runs == (2..=2));
                catalog.run = found(&sim).run;
                assert!(runs.contains(&catalog.run), "crash {crash}, seed {seed}");
                assert_eq!(found(&sim), catalog);
            }
            if ended == 20 {
                return;
            }
        }
    }

    #[test]
    fn many_starts_are_counted_without_a_free_block() {
        let (sim, mut catalog) = full_disk(0);
        let mut begin = |may_add| {
            catalog.run += 1;
            let io = sim.restart();
            let begun = sim.run_until(begin_catalog(&io, Path::new(PATH), &catalog, may_add)).unwrap();
            assert_eq!(found(&sim).run == catalog.run, begun.is_ok());
            begun.map(drop).map_err(|error| error.kind())
        };
        for _ in 0..100 {
            begin(true).unwrap();
        }
        assert_eq!(begin(false), Err(io::ErrorKind::StorageFull), "a new layout is more than the run");
        let refused = (0..100).find_map(|_| begin(true).err());
        assert_eq!(refused, Some(io::ErrorKind::StorageFull), "there was an end to what is reserved");
    }
}
