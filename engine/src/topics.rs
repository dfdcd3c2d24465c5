//! Changes to topics and settings. Shard 0 owns the catalog: a change goes there, becomes durable, and is then told to all
//! shards before its caller hears of it.

use std::{
    collections::{BTreeMap, HashSet},
    rc::Rc,
};

use uuid::Uuid;

use crate::{
    api::{ConfigChange, LogError, NewTopic, TopicError, TopicId, TopicPartition},
    config::{self, Durability, TopicConfig},
    engine::Engine,
    format::{
        catalog::{Catalog, REPLICATION, Record, StoredTopic},
        placement::Placement,
    },
    io::{Io, Share},
    metadata::{CatalogFile, Topic},
    store::topics_dir,
};

/// Partitions of one topic at most: what one metadata answer can still name.
pub(crate) const PARTITIONS_MAX: i32 = 100_000;

/// Producer ids are made durable in blocks of this size, as Kafka's are.
const PRODUCER_ID_BLOCK: i64 = 1_000;

impl Engine {
    /// Creates a topic, durable and known to every shard when it returns. `validate_only` only checks.
    pub async fn create_topic(&self, topic: NewTopic, validate_only: bool) -> Result<Rc<Topic>, TopicError> {
        config::check_topic_name(&topic.name).map_err(TopicError::InvalidName)?;
        if !(1..=PARTITIONS_MAX).contains(&topic.partitions) {
            let text = format!("{} is not in 1..={PARTITIONS_MAX}", topic.partitions);
            return Err(TopicError::InvalidPartitions(text));
        }
        let stored = StoredTopic { name: topic.name, partitions: topic.partitions, overrides: topic.configs };
        let id = Uuid::new_v4();
        let checked = Topic::new(id, stored.clone(), &self.topic_defaults()).map_err(TopicError::InvalidConfig)?;
        self.change(move |state, defaults| {
            TopicConfig::parse(defaults, &stored.overrides).map_err(TopicError::InvalidConfig)?;
            // Kafka refuses names that differ in '.' and '_' only: its metrics could not tell them apart.
            let same = |known: &&StoredTopic| known.name.replace('.', "_") == stored.name.replace('.', "_");
            match state.topics.values().find(same) {
                Some(known) if known.name == stored.name => Err(TopicError::Exists(stored.name)),
                Some(known) => Err(TopicError::InvalidName(format!(
                    "Topic '{}' collides with existing topic: {}",
                    stored.name, known.name
                ))),
                None if validate_only => Ok(None),
                None => Ok(Some((id, Some(stored)))),
            }
        })
        .await?;
        Ok(Rc::new(checked))
    }

    /// Brings a topic to what a cluster says of it, durably, on every shard: its name, settings and number of partitions,
    /// and on which nodes they are. A partition that comes to this node is empty, and is neither led nor followed before it
    /// is said; of one that is on other nodes only from now on, nothing is served, and soon nothing is left. Nothing is done for a topic that is as it is
    /// said to be. The leader epochs of the placement need not follow elections: that of a partition is 0 only if it is on one
    /// node alone and no cluster decides who leads it.
    ///
    /// # Errors
    /// If another topic has the name, it would have fewer partitions than before or not as many as are placed, or a setting
    /// is not legal.
    pub async fn put_topic(&self, id: TopicId, stored: StoredTopic, placement: Placement) -> Result<(), TopicError> {
        config::check_topic_name(&stored.name).map_err(TopicError::InvalidName)?;
        self.call(0, move |engine: Engine| async move {
            let mut opened = engine.catalog().0.write().await.map_err(|_| closed())?;
            check_reconciled(&opened.state, id, &stored, &placement)?;
            let defaults = engine.topic_defaults();
            TopicConfig::parse(&defaults, &stored.overrides).map_err(TopicError::InvalidConfig)?;
            let records = opened.state.reconciling_records(id, &stored, &placement);
            if records.is_empty() {
                return Ok(());
            }
            if !opened.state.features.contains(REPLICATION) {
                opened.append(&[Record::Feature(REPLICATION.to_owned())]).await?;
            }
            opened.append(&records).await?;
            engine.tell_placed(id, stored, placement).await;
            Ok(())
        })
        .await
    }

    /// Removes a topic that a cluster does not have any more; one that is not there is fine.
    pub async fn remove_topic(&self, id: TopicId) -> Result<(), TopicError> {
        match self.delete_topic(id).await {
            Err(TopicError::Unknown) => Ok(()),
            deleted => deleted,
        }
    }

    /// Tells all shards where the partitions of a topic are, and what it is.
    async fn tell_placed(&self, id: TopicId, stored: StoredTopic, placement: Placement) {
        self.tell_placement(id, placement.clone()).await;
        self.tell_topic(id, stored).await;
        self.on_all(move |engine: Engine| async move {
            let here: HashSet<i32> =
                placement.on(engine.node_id()).filter_map(|(at, _)| i32::try_from(at).ok()).collect();
            let own = engine.0.store.partition_ids().into_iter().filter(|partition| partition.topic == id);
            engine.0.store.clear(own.filter(|partition| !here.contains(&partition.partition)));
        })
        .await;
    }

    async fn tell_placement(&self, id: TopicId, placement: Placement) {
        self.on_all(move |engine: Engine| {
            engine.0.placements.borrow_mut().insert(id, Rc::new(placement));
            std::future::ready(())
        })
        .await;
    }

    /// Deletes a topic.
    pub async fn delete_topic(&self, topic: TopicId) -> Result<(), TopicError> {
        self.change(move |state, _| match state.topics.contains_key(&topic) {
            true => Ok(Some((topic, None))),
            false => Err(TopicError::Unknown),
        })
        .await
    }

    /// Changes a topic's settings.
    pub async fn alter_topic(
        &self,
        topic: TopicId,
        changes: Vec<ConfigChange>,
        validate_only: bool,
    ) -> Result<(), TopicError> {
        self.change(move |state, defaults| {
            let mut stored = state.topics.get(&topic).cloned().ok_or(TopicError::Unknown)?;
            let overrides = config::apply_changes(defaults, &stored.overrides, &changes);
            stored.overrides = overrides.map_err(TopicError::InvalidConfig)?;
            TopicConfig::parse(defaults, &stored.overrides).map_err(TopicError::InvalidConfig)?;
            Ok((!validate_only).then_some((topic, Some(stored))))
        })
        .await
    }

    /// Gives a topic more partitions: `partitions` in all.
    pub async fn create_partitions(
        &self,
        topic: TopicId,
        partitions: i32,
        validate_only: bool,
    ) -> Result<(), TopicError> {
        self.change(move |state, _| {
            let mut stored = state.topics.get(&topic).cloned().ok_or(TopicError::Unknown)?;
            if partitions <= stored.partitions || partitions > PARTITIONS_MAX {
                return Err(TopicError::InvalidPartitions(format!(
                    "Topic currently has {} partitions, which is not fewer than the requested {partitions}",
                    stored.partitions
                )));
            }
            stored.partitions = partitions;
            Ok((!validate_only).then_some((topic, Some(stored))))
        })
        .await
    }

    /// Changes dynamic broker settings, named as [`config::dynamic_value`] reads them. The caller knows which there are;
    /// checked here is that topics can follow them: with the new defaults, every topic's settings must make sense.
    pub async fn alter_broker_settings(
        &self,
        changes: Vec<ConfigChange>,
        validate_only: bool,
    ) -> Result<(), TopicError> {
        self.change_broker_settings(validate_only, |_| Ok(changes)).await
    }

    /// As [`Engine::alter_broker_settings`], with the changes that `decide` chooses, which is shown all that are in force:
    /// no other change comes between its look and what it decides.
    pub async fn change_broker_settings<E>(
        &self,
        validate_only: bool,
        decide: impl FnOnce(&BTreeMap<String, String>) -> Result<Vec<ConfigChange>, E> + Send + 'static,
    ) -> Result<(), E>
    where
        E: From<TopicError> + Send + 'static,
    {
        self.call(0, move |engine: Engine| async move {
            let mut opened = engine.catalog().0.write().await.map_err(|_| closed())?;
            let settings = opened.state.settings.clone();
            let altered = config::apply_broker_changes(&settings, &decide(&settings)?);
            let before = engine.topic_defaults();
            let defaults = config::topic_defaults(&engine.0.started_defaults, &altered);
            let defaults = (defaults != *before).then_some(defaults);
            if let Some(defaults) = &defaults {
                check_defaults(&opened.state, &before, defaults).await?;
            }
            if validate_only {
                return Ok(());
            }
            let mut records = Vec::new();
            for (key, value) in &altered {
                if settings.get(key) != Some(value) {
                    records.push(Record::Setting(key.clone(), Some(value.clone())));
                }
            }
            let dropped = settings.keys().filter(|key| !altered.contains_key(*key));
            records.extend(dropped.map(|key| Record::Setting(key.clone(), None)));
            opened.append(&records).await?;
            // The lock is held until every shard knows, so that all shards see changes in one order.
            engine.on_all(move |engine: Engine| engine.take_settings(altered, defaults)).await;
            Ok(())
        })
        .await
    }

    /// A producer id that was never given out before.
    pub async fn next_producer_id(&self) -> Result<i64, LogError> {
        self.call(0, |engine: Engine| async move {
            let opened = engine.catalog().0.write().await;
            let mut opened = opened.map_err(|_| LogError::ShuttingDown)?;
            if opened.next_producer_id >= opened.state.next_producer_id {
                let block_end = opened.next_producer_id + PRODUCER_ID_BLOCK;
                let durable = opened.append(&[Record::ProducerIds(block_end)]).await;
                durable.map_err(|error| LogError::Storage(error.to_string()))?;
            }
            let id = opened.next_producer_id;
            opened.next_producer_id += 1;
            Ok(id)
        })
        .await
    }

    /// The catalog, on the shard that keeps it.
    pub(crate) fn catalog(&self) -> &CatalogFile {
        self.0.catalog.as_ref().expect("shard 0 holds the catalog")
    }

    /// Lets `decide` look at the catalog on shard 0 and choose a topic's new state (`None`: deleted), makes that
    /// durable, and tells all shards.
    async fn change<D>(&self, decide: D) -> Result<(), TopicError>
    where
        D: FnOnce(&Catalog, &BTreeMap<String, String>) -> Result<Option<(TopicId, Option<StoredTopic>)>, TopicError>
            + Send
            + 'static,
    {
        self.call(0, move |engine: Engine| async move {
            let mut opened = engine.catalog().0.write().await.map_err(|_| closed())?;
            let defaults = engine.topic_defaults();
            let Some((id, stored)) = decide(&opened.state, &defaults)? else {
                return Ok(());
            };
            let records = match &stored {
                Some(stored) => opened.state.topic_records(id, stored),
                None => vec![Record::Deleted(id)],
            };
            opened.append(&records).await?;
            // The lock is held until every shard knows, so that all shards see changes in one order.
            match stored {
                Some(stored) => {
                    // one that a cluster had before has grown here
                    let placement = opened.state.placements.get(&id).cloned();
                    if let Some(placement) = placement.filter(|_| engine.0.placements.borrow().contains_key(&id)) {
                        engine.tell_placement(id, placement).await;
                    }
                    engine.tell_topic(id, stored).await;
                }
                None => engine.tell_deleted(id).await,
            }
            Ok(())
        })
        .await
    }

    async fn tell_topic(&self, id: TopicId, stored: StoredTopic) {
        self.on_all(move |engine: Engine| async move {
            let topic = Topic::tolerant(id, stored, &engine.topic_defaults()).expect("the defaults were checked");
            let before = engine.0.topics.borrow().by_id.get(&id).map(|known| known.config.durability);
            if (before, topic.config.durability) == (Some(Durability::Written), Durability::Device) {
                engine.flush_written_before().await;
            }
            engine.apply_topic(Rc::new(topic));
        })
        .await;
    }

    async fn flush_written_before(&self) {
        if let Err(error) = self.0.store.flush_written().await {
            tracing::error!("flushing what was written before failed: {error}");
        }
    }

    /// Takes new dynamic settings over on this shard, and gives topics that follow changed defaults their new settings.
    async fn take_settings(self, settings: BTreeMap<String, String>, defaults: Option<BTreeMap<String, String>>) {
        const TOPICS_IN_A_TURN: usize = 32;
        self.0.settings.replace(Rc::new(settings));
        let Some(defaults) = defaults else { return };
        // Topics change under the same lock as settings, so these are all and stay as they are.
        let topics: Vec<_> = self.topics().by_id.values().cloned().collect();
        let mut followers = Vec::new();
        for some in topics.chunks(TOPICS_IN_A_TURN) {
            for topic in some {
                let config = TopicConfig::parse(&defaults, &topic.overrides);
                // one whose own settings were left out of account goes on without them
                let config = config.or_else(|_| TopicConfig::parse(&defaults, &BTreeMap::new()));
                let config = config.expect("the defaults were checked");
                if config != *topic.config {
                    followers.push((topic, config));
                }
            }
            glommio::yield_if_needed().await;
        }
        let is_stricter = |(topic, config): &(&Rc<Topic>, TopicConfig)| {
            (topic.config.durability, config.durability) == (Durability::Written, Durability::Device)
        };
        if followers.iter().any(is_stricter) {
            self.flush_written_before().await;
        }
        self.0.defaults.replace(Rc::new(defaults));
        for (count, (topic, config)) in followers.into_iter().enumerate() {
            self.apply_topic(Rc::new(Topic { config: Rc::new(config), ..(**topic).clone() }));
            if count % TOPICS_IN_A_TURN == 0 {
                glommio::yield_if_needed().await;
            }
        }
    }

    /// Takes a topic's new state over on this shard.
    pub(crate) fn apply_topic(&self, topic: Rc<Topic>) {
        let placement = self.0.placements.borrow().get(&topic.id).cloned();
        let put = |id: TopicPartition, is_replicated: bool| {
            if self.owner(id) == self.shard() {
                match is_replicated {
                    true => self.0.store.put_replicated_partition(id, topic.config.clone()),
                    false => self.0.store.put_partition(id, topic.config.clone()),
                }
            }
        };
        match placement {
            None => topic.partition_ids().for_each(|id| put(id, false)),
            Some(placement) => {
                let ids = topic.partition_ids().collect::<Vec<_>>();
                let here = placement.on(self.node_id());
                here.for_each(|(at, is_replicated)| {
                    ids.get(at as usize).into_iter().for_each(|id| put(*id, is_replicated))
                });
            }
        }
        Rc::make_mut(&mut *self.0.topics.borrow_mut()).put(topic);
    }

    async fn tell_deleted(&self, id: TopicId) {
        let removals = self.on_all(move |engine: Engine| {
            let topic = Rc::make_mut(&mut *engine.0.topics.borrow_mut()).remove(id);
            engine.0.placements.borrow_mut().remove(&id);
            let partitions = topic.iter().flat_map(|topic| topic.partition_ids()).collect::<Vec<_>>();
            let removed: Vec<_> = partitions.into_iter().filter_map(|id| engine.0.store.remove_partition(id)).collect();
            // Files go in the background; the answer does not wait for them.
            let ticket = engine.next_id();
            engine.0.removals.borrow_mut().insert(ticket, removed);
            std::future::ready(ticket)
        });
        let tickets = removals.await;
        let engine = self.clone();
        self.0.io.spawn(Share::Background, async move {
            let waits = tickets.into_iter().enumerate().map(|(shard, ticket)| {
                engine.call(shard, move |engine: Engine| async move {
                    let removed = engine.0.removals.borrow_mut().remove(&ticket).unwrap_or_default();
                    for done in removed {
                        done.wait().await;
                    }
                })
            });
            futures_util::future::join_all(waits.collect::<Vec<_>>()).await;
            let dir = topics_dir(&engine.0.data_dir).join(id.to_string());
            if let Err(error) = engine.0.io.remove(&dir).await {
                tracing::warn!("removing {} failed, the next start will: {error}", dir.display());
            }
        });
    }
}

/// Checks what a cluster says of a topic.
fn check_reconciled(
    state: &Catalog,
    id: TopicId,
    stored: &StoredTopic,
    placement: &Placement,
) -> Result<(), TopicError> {
    let named = state.topics.iter().find(|(_, known)| known.name == stored.name);
    if named.is_some_and(|(known, _)| *known != id) {
        return Err(TopicError::Exists(stored.name.clone()));
    }
    let before = state.topics.get(&id).map_or(1, |known| known.partitions);
    let placed = i32::try_from(placement.partitions()).unwrap_or(i32::MAX);
    if stored.partitions != placed || !(before..=PARTITIONS_MAX).contains(&placed) {
        let text = format!("{} partitions, of which {placed} are placed; it had {before}", stored.partitions);
        return Err(TopicError::InvalidPartitions(text));
    }
    Ok(())
}

/// Checks that the defaults, and every topic under them, make sense. A topic that made none before is let pass.
async fn check_defaults(
    state: &Catalog,
    before: &BTreeMap<String, String>,
    defaults: &BTreeMap<String, String>,
) -> Result<(), TopicError> {
    TopicConfig::parse(defaults, &BTreeMap::new()).map_err(TopicError::InvalidConfig)?;
    for topic in state.topics.values().filter(|topic| !topic.overrides.is_empty()) {
        glommio::yield_if_needed().await;
        if let Err(reason) = TopicConfig::parse(defaults, &topic.overrides)
            && TopicConfig::parse(before, &topic.overrides).is_ok()
        {
            return Err(TopicError::InvalidConfig(format!("topic {}: {reason}", topic.name)));
        }
    }
    Ok(())
}

/// The answer of a node that is stopping.
pub(crate) fn closed() -> TopicError {
    TopicError::Storage("the node is stopping".into())
}
