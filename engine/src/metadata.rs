//! Topics as every shard knows them ([`Topics`], a snapshot), and the catalog's file that shard 0 keeps them in
//! ([`CatalogFile`]). How they change is `topics`'.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use glommio::sync::RwLock;

use crate::{
    api::{TopicError, TopicId, TopicPartition},
    config::TopicConfig,
    format::{
        catalog::{self, Catalog, Record, StoredTopic},
        journal::{Journal, Payloads},
    },
    io::direct::DirectIo,
};

/// A topic as every shard knows it. Immutable; a change makes a new one.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Settings that differ from the broker's defaults, as the user wrote them.
    pub overrides: BTreeMap<String, String>,
    /// All settings, parsed.
    pub config: Rc<TopicConfig>,
}

/// All topics. A snapshot: holders see no later change.
#[derive(Debug, Default, Clone)]
pub struct Topics {
    /// By name, sorted.
    pub by_name: BTreeMap<String, Rc<Topic>>,
    /// By id.
    pub by_id: HashMap<TopicId, Rc<Topic>>,
    /// Topics that were deleted since the start: tells who looks now and then that some came and went meanwhile.
    pub deletions: u64,
}

impl Topics {
    pub(crate) fn put(&mut self, topic: Rc<Topic>) {
        self.by_name.insert(topic.name.clone(), topic.clone());
        self.by_id.insert(topic.id, topic);
    }

    pub(crate) fn remove(&mut self, id: TopicId) -> Option<Rc<Topic>> {
        let topic = self.by_id.remove(&id)?;
        self.by_name.remove(&topic.name);
        self.deletions += 1;
        Some(topic)
    }
}

impl Topic {
    /// A stored topic with its settings parsed.
    pub(crate) fn new(id: TopicId, stored: StoredTopic, defaults: &BTreeMap<String, String>) -> Result<Self, String> {
        let config = Rc::new(TopicConfig::parse(defaults, &stored.overrides)?);
        let StoredTopic { name, partitions, overrides } = stored;
        Ok(Self { id, name, partitions, overrides, config })
    }

    /// The same for a topic that is there already: settings that have become illegal must not keep it from being served.
    pub(crate) fn tolerant(
        id: TopicId,
        stored: StoredTopic,
        defaults: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        Self::new(id, stored.clone(), defaults).or_else(|reason| {
            tracing::warn!("topic {}: {reason}; its own settings are left out of account", stored.name);
            let config = Rc::new(TopicConfig::parse(defaults, &BTreeMap::new())?);
            let StoredTopic { name, partitions, overrides } = stored;
            Ok(Self { id, name, partitions, overrides, config })
        })
    }

    /// Ids of its partitions.
    pub fn partition_ids(&self) -> impl Iterator<Item = TopicPartition> + use<> {
        let topic = self.id;
        (0..self.partitions).map(move |partition| TopicPartition { topic, partition })
    }
}

/// The catalog's file and state; one change at a time. The lock is glommio's: tasks of shard 0 wait for each other, no
/// thread does.
pub(crate) struct CatalogFile(pub(crate) RwLock<Opened>);

/// The file, and what it says.
pub(crate) struct Opened {
    journal: Journal<DirectIo>,
    pub(crate) state: Catalog,
    /// The next producer id to give out.
    pub(crate) next_producer_id: i64,
}

impl CatalogFile {
    pub(crate) fn new(journal: Journal<DirectIo>, state: Catalog) -> Self {
        let next_producer_id = state.next_producer_id;
        Self(RwLock::new(Opened { journal, state, next_producer_id }))
    }
}

impl Opened {
    /// Makes records durable and applies them. On a full disk, what space the catalog has is left to what may make some:
    /// deletes and changed settings, but no partitions.
    pub(crate) async fn append(&mut self, records: &[Record]) -> Result<(), TopicError> {
        let known = &self.state.topics;
        let makes_space = |record: &Record| match record {
            Record::Topic(id, topic) => known.get(id).is_some_and(|before| before.partitions == topic.partitions),
            Record::Deleted(_) | Record::Setting(..) => true,
            _ => false,
        };
        if !records.iter().all(makes_space) && !self.journal.has_space().await {
            return Err(storage(std::io::ErrorKind::StorageFull.into()));
        }
        let mut payloads = Payloads::default();
        for record in records {
            let bytes = catalog::encode(record);
            if bytes.len() > catalog::RECORD_BYTES_MAX {
                return Err(TopicError::InvalidConfig("the settings are too long".into()));
            }
            payloads.push(&bytes);
        }
        for payload in payloads.finish() {
            self.journal.append(&payload).await.map_err(storage)?;
        }
        for record in records {
            self.state.apply(record.clone());
        }
        if self.journal.wants_rewrite()
            && let Err(error) = self.journal.rewrite(&self.state.payloads()).await
        {
            tracing::warn!("the catalog could not be rewritten and goes on growing: {error}");
        }
        Ok(())
    }
}

fn storage(error: std::io::Error) -> TopicError {
    TopicError::Storage(error.to_string())
}
