//! A node that is alone, with partitions that a cluster had before: it leads them itself, in the epoch that follows those of
//! the cluster, which their placement in the catalog says. And how a node's catalog becomes that of one that is alone.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use uuid::Uuid;

use crate::{
    api::{LogError, TopicId, TopicPartition},
    boot::{self, read_catalog, upgrade},
    engine::{Engine, owner},
    format::{
        catalog::{Catalog, REPLICATION, StoredTopic},
        journal::Journal,
        placement::Placement,
        transactions::FEATURE as TRANSACTIONS,
    },
    io::direct::DirectIo,
    lock::DataLock,
    metadata::Topic,
    node::executor,
    replica_api::{Leadership, ReplicaPosition},
    start::StartError,
    store::{Known, Owed, Store, StoreOptions},
};

/// Memory for what lives in the shared log only.
const CACHE_BYTES: usize = 64 << 20;

/// Why a node cannot be alone.
#[derive(Debug, thiserror::Error)]
pub enum AloneError {
    /// Its data are those of a cluster's node.
    #[error("topic {topic} has replicas on nodes {replicas:?}, and no cluster says who leads it")]
    Elsewhere {
        /// Its name, or its id.
        topic: String,
        /// Where they are.
        replicas: Vec<i32>,
    },
    /// The log refused.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Engine {
    /// Leads all partitions of this shard that a cluster had before, with no other replica. For a node without a cluster,
    /// before anybody asks for a partition.
    ///
    /// # Errors
    /// If one has replicas on other nodes, or the beginning of an epoch cannot be made durable.
    pub async fn lead_alone(&self) -> Result<(), AloneError> {
        let placements: Vec<_> = self.0.placements.borrow().iter().map(|(id, it)| (*id, it.clone())).collect();
        for (topic, placement) in placements {
            if let Some(run) = placement.runs().iter().find(|run| run.replicas != [self.node_id()]) {
                let name = self.topics().by_id.get(&topic).map(|topic| topic.name.clone());
                let topic = name.unwrap_or_else(|| topic.to_string());
                return Err(AloneError::Elsewhere { topic, replicas: run.replicas.clone() });
            }
            for (at, leader_epoch) in placement.led_before() {
                let partition = TopicPartition { topic, partition: i32::try_from(at).unwrap_or(i32::MAX) };
                if self.owner(partition) == self.shard() {
                    self.replica(partition)?.lead(leader_epoch, Leadership::Alone).await?;
                }
            }
        }
        Ok(())
    }

    /// The epoch in which a partition is led according to its placement: exact of a node that is alone.
    pub fn placed_epoch(&self, partition: TopicPartition) -> i32 {
        let placements = self.0.placements.borrow();
        let at = u32::try_from(partition.partition).unwrap_or(u32::MAX);
        placements.get(&partition.topic).map_or(0, |placement| placement.leader_epoch(at))
    }
}

/// What a node that leaves its cluster goes on with alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// The id that clients know the cluster by.
    pub cluster_id: Uuid,
    /// Its topics, and the epoch in which each partition is led from now on: above all that the logs know of it.
    pub topics: BTreeMap<TopicId, (StoredTopic, Vec<i32>)>,
    /// The first producer id that was surely never given out.
    pub next_producer_id: i64,
    /// Dynamic settings, as the engine keeps them.
    pub settings: BTreeMap<String, String>,
}

/// The catalog of a node that does not run.
///
/// # Errors
/// If a node runs on the folder, or it cannot be read.
pub fn look(data_dir: &Path) -> Result<Catalog, StartError> {
    with_catalog(data_dir, async |_, catalog| Ok(catalog))
}

/// Nobody else works on a folder for as long as this lives.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "it is locked for as long as this is there")] DataLock);

/// Takes hold of the folder of a node that does not run.
///
/// # Errors
/// If a node runs on it.
pub fn hold(data_dir: &Path) -> Result<Hold, StartError> {
    DataLock::take_offline(data_dir).map(Hold)
}

/// Makes the catalog of a node that does not run that of one that is alone, in one step, as `decide` chooses from what it
/// says now. Topics that are not inherited go with the next start.
///
/// # Errors
/// Those of [`look`], and what `decide` refuses with; nothing was changed then.
pub fn inherit<E: From<StartError> + 'static>(
    data_dir: &Path,
    decide: impl FnOnce(&Catalog) -> Result<Inheritance, E> + 'static,
) -> Result<(), E> {
    with_catalog(data_dir, async move |files, mut catalog| {
        let next = alone(&catalog, decide(&catalog)?);
        files.upgrade(&mut catalog).await?;
        Ok(files.write(&next).await?)
    })
}

/// How far the logs of a node that does not run are, by partition. Opening them is a start of its own, which brings what they
/// hold to segments.
///
/// # Errors
/// If a node runs on the folder, or its logs cannot be read.
pub fn positions(data_dir: &Path, wal_bytes: u64) -> Result<BTreeMap<TopicPartition, ReplicaPosition>, StartError> {
    let folder = data_dir.to_owned();
    with_catalog(data_dir, async move |files, mut catalog| {
        files.upgrade(&mut catalog).await?;
        catalog.run += 1;
        files.write(&catalog).await?;
        let mut positions = BTreeMap::new();
        for shard in 0..catalog.shards {
            let (known, options) = (known(&catalog, shard)?, options(&folder, &catalog, shard, wal_bytes));
            let opened = Store::open(files.io.clone(), options, &known).await;
            let store = opened.map_err(|error| StartError::of_open(error, &catalog))?;
            if catalog.features.contains(TRANSACTIONS) {
                store.use_transactions();
            }
            positions.extend(known.keys().filter_map(|id| Some((*id, store.position(*id).ok()?))));
            store.close().await;
        }
        Ok(positions)
    })
}

fn known(catalog: &Catalog, shard: u32) -> Result<Known, StartError> {
    let mut known = Known::new();
    for (id, stored) in &catalog.topics {
        let topic = Topic::tolerant(*id, stored.clone(), &BTreeMap::new()).map_err(StartError::Options)?;
        let own = catalog.partitions_here(*id).filter(|id| owner(*id, catalog.shards as usize) == shard as usize);
        known.extend(own.map(|id| (id, topic.config.clone())));
    }
    Ok(known)
}

fn options(data_dir: &Path, catalog: &Catalog, shard: u32, wal_bytes: u64) -> StoreOptions {
    StoreOptions {
        data_dir: data_dir.to_owned(),
        shard,
        generation: catalog.generation,
        run: catalog.run,
        cache_bytes: CACHE_BYTES,
        fetch_bytes: 0,
        compact_bytes: 0, // nothing is compacted meanwhile
        wal_bytes,
        reserve_bytes: 0,
        owed: Owed::new(shard as usize + 1, wal_bytes),
        replicated: catalog.replicated_here().into(),
        elsewhere: Rc::default(), // what is left of those goes with the next start
    }
}

/// Where the catalog is, of a node that does not run.
struct Files {
    io: DirectIo,
    path: PathBuf,
}

impl Files {
    async fn upgrade(&self, catalog: &mut Catalog) -> Result<(), StartError> {
        upgrade(&self.io, &self.path, catalog).await
    }

    async fn write(&self, catalog: &Catalog) -> Result<(), StartError> {
        let written = Journal::create(self.io.clone(), self.path.clone(), &catalog.payloads()).await;
        written.map(drop).map_err(|error| StartError::io(self.path.display(), error))
    }
}

/// Does something with the catalog of a node that does not run, nor begins to before that is over.
fn with_catalog<T: 'static, E: From<StartError> + 'static>(
    data_dir: &Path,
    body: impl AsyncFnOnce(Files, Catalog) -> Result<T, E> + 'static,
) -> Result<T, E> {
    let path = data_dir.join("catalog");
    if !path.is_file() {
        let reason = "there is no catalog: this is no data folder".to_owned();
        return Err(StartError::Damaged { path: data_dir.to_owned(), reason }.into());
    }
    let lock = DataLock::take_offline(data_dir)?;
    boot::check_direct_io(&lock)?;
    executor(&lock, "catalog", None)?.run(async move {
        let io = lock.disk().await?;
        let missing = || StartError::io(path.display(), io::ErrorKind::NotFound.into());
        let catalog = read_catalog(&io, &path).await?.ok_or_else(missing)?;
        body(Files { io, path }, catalog).await
    })
}

fn alone(before: &Catalog, inheritance: Inheritance) -> Catalog {
    let Inheritance { cluster_id, topics, next_producer_id, settings } = inheritance;
    let mut next = Catalog {
        cluster_id,
        next_producer_id: next_producer_id.max(before.next_producer_id),
        settings,
        topics: BTreeMap::new(),
        placements: BTreeMap::new(),
        ..before.clone()
    };
    next.features.insert(REPLICATION.to_owned());
    for (id, (stored, epochs)) in topics {
        next.placements.insert(id, Placement::led_alone(before.node_id, epochs));
        next.topics.insert(id, stored);
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inherited_takes_the_place_of_what_the_cluster_had() {
        let [kept, gone] = [1, 2].map(Uuid::from_u128);
        let topic = |name: &str| StoredTopic { name: name.to_owned(), partitions: 3, overrides: BTreeMap::new() };
        let mut before = Catalog { node_id: 4, shards: 2, run: 9, next_producer_id: 2_000, ..Catalog::default() };
        before.topics = [(kept, topic("old name")), (gone, topic("gone"))].into();
        let inheritance = Inheritance {
            cluster_id: Uuid::from_u128(9),
            topics: [(kept, (topic("kept"), vec![3, 3, 5]))].into(),
            next_producer_id: 1_000,
            settings: [("a".to_owned(), "1".to_owned())].into(),
        };
        let next = alone(&before, inheritance);
        assert_eq!((next.run, next.shards, next.next_producer_id), (9, 2, 2_000));
        assert_eq!(next.topics.keys().copied().collect::<Vec<_>>(), [kept]);
        let placement = &next.placements[&kept];
        assert_eq!((0..3).map(|at| placement.leader_epoch(at)).collect::<Vec<_>>(), [3, 3, 5]);
        assert!(placement.runs().iter().all(|run| run.replicas == [4]));
        let mut reading = crate::format::catalog::Reading::default();
        next.payloads().iter().for_each(|page| reading.take(page).unwrap());
        assert_eq!(reading.finish().unwrap().placements, next.placements);
    }
}
