//! Every partition with a log of its own, on one thread: one file and one flush per partition. What the shared log is
//! measured against; nothing serves from it.

use std::{collections::BTreeMap, path::Path, rc::Rc};

use bytes::Bytes;
use futures_util::future::join_all;
use uuid::Uuid;

use crate::{
    api::{Acks, LogError, ProducePartition, Produced, TopicPartition},
    batch::AppendOrigin,
    config::TopicConfig,
    format::catalog::Catalog,
    io::direct::DirectIo,
    lock::DataLock,
    node,
    start::StartError,
    store::{Owed, Store, StoreOptions},
};

/// Stores of one partition each.
pub struct Apart(Vec<Rc<Store<DirectIo>>>);

/// Runs a body on a thread as a shard has it, over so many partitions in an empty folder. `memory_bytes`: budget of all
/// caches.
pub fn run<F, Fut, T>(data_dir: &Path, partitions: u32, memory_bytes: usize, body: F) -> Result<T, StartError>
where
    F: FnOnce(Rc<Apart>) -> Fut,
    Fut: Future<Output = T>,
{
    let lock = DataLock::take_offline(data_dir)?;
    let executor = node::executor(&lock, "apart", None)?;
    executor.run(async {
        let apart = Rc::new(Apart::open(&lock, data_dir, partitions, memory_bytes).await?);
        let result = body(apart.clone()).await;
        join_all(apart.0.iter().map(|store| store.close())).await;
        Ok(result)
    })
}

impl Apart {
    async fn open(lock: &DataLock, data_dir: &Path, partitions: u32, memory_bytes: usize) -> Result<Self, StartError> {
        let io = lock.disk().await?;
        let config = TopicConfig::parse(&BTreeMap::new(), &BTreeMap::new()).map_err(StartError::Options)?;
        let config = Rc::new(config);
        let mut stores = Vec::new();
        for at in 0..partitions {
            let options = StoreOptions {
                data_dir: data_dir.to_owned(),
                shard: at,
                generation: 1,
                run: 1,
                cache_bytes: memory_bytes / partitions as usize,
                fetch_bytes: 0,
                compact_bytes: 0,
                wal_bytes: 0, // the least
                reserve_bytes: 0,
                owed: Owed::new(partitions as usize, 0),
                replicated: Rc::default(),
                elsewhere: Rc::default(),
            };
            let known = [(id(at), config.clone())].into();
            let opened = Store::open(io.clone(), options, &known).await;
            stores.push(opened.map_err(|error| StartError::of_open(error, &Catalog::default()))?);
        }
        Ok(Self(stores))
    }

    /// Appends a batch to a partition, by its number; resolves when it is durable.
    pub fn produce(&self, partition: u32, batch: Bytes) -> impl Future<Output = Result<Produced, LogError>> + use<> {
        let taken = self.0[partition as usize].append(
            ProducePartition { partition: id(partition), batch },
            AppendOrigin::Client,
            Acks::All,
        );
        async move {
            let (produced, wait) = taken.appended().await?;
            if let Some(wait) = wait {
                wait.wait().await?;
            }
            Ok(produced)
        }
    }
}

fn id(partition: u32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(1), partition: partition.cast_signed() }
}
