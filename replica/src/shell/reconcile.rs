//! Topics and dynamic settings of the cluster in the engine of this node: shard 0 makes the engine's what the image says, then
//! every shard hears of the image.
//!
//! A topic that the image does not have is removed with its records, so that is done only for images of a cluster that this
//! data directory is a member of: whoever starts the node sees to that.

use std::{collections::BTreeMap, sync::Arc};

use millrace_engine::{
    api::{ConfigChange, TopicError, TopicId},
    engine::Engine,
    format::{
        catalog::StoredTopic,
        placement::{PlacedRun, Placement},
    },
};

use super::{ImageFeed, Shell};
use crate::cluster::{
    image::Image,
    model::{SettingKey, TopicState, Versioned},
};

/// Why the engine does not have what the image says.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// It refused a topic.
    #[error("topic {name}: {source}")]
    Topic {
        /// Its name.
        name: String,
        /// Why.
        source: TopicError,
    },
    /// It refused the dynamic settings.
    #[error("dynamic settings: {0}")]
    Settings(#[from] TopicError),
}

/// Pause before what the engine refused is tried again: the disk may be full.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Takes images as they come, for ever. On shard 0.
pub async fn follow_images(engine: Engine, feed: ImageFeed) {
    let mut placed = Placed::default();
    loop {
        let image = feed.next().await;
        if let Err(error) = placed.reconcile(&engine, &image.image).await {
            tracing::error!(%error, "the engine does not have all topics of the cluster yet");
            glommio::timer::sleep(RETRY_PAUSE).await;
            feed.put_unless_newer(image);
            continue;
        }
        let tell = move |engine: Engine| async move { engine.attachment::<Shell>().await.take_image(image).await };
        engine.on_all(tell).await;
    }
}

/// What the engine was given last.
#[derive(Default)]
struct Placed {
    topics: BTreeMap<TopicId, Arc<TopicState>>,
    settings: Option<Settings>,
}

/// Dynamic settings, as an image has them.
type Settings = Arc<BTreeMap<SettingKey, Versioned<String>>>;

impl Placed {
    async fn reconcile(&mut self, engine: &Engine, image: &Image) -> Result<(), ReconcileError> {
        self.reconcile_settings(engine, image).await?;
        for (id, name) in self.superfluous(engine, image) {
            engine.remove_topic(id).await.map_err(|source| ReconcileError::Topic { name, source })?;
            self.topics.remove(&id);
        }
        for topic in image.topics.values() {
            match self.topics.get_mut(&topic.id) {
                Some(known) if Arc::ptr_eq(known, topic) => continue,
                Some(known) if is_placed_alike(known, topic) => {
                    *known = topic.clone();
                    continue;
                }
                _ => {}
            }
            let stored = StoredTopic {
                name: topic.name.clone(),
                partitions: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
                overrides: topic.configs.clone(),
            };
            let put = engine.put_topic(topic.id, stored, placement(topic)).await;
            put.map_err(|source| ReconcileError::Topic { name: topic.name.clone(), source })?;
            self.topics.insert(topic.id, topic.clone());
        }
        Ok(())
    }

    /// Settings of all nodes and of this one. Those that topics cannot follow were refused when they were set; by a node with
    /// other defaults they may not have been, and must not keep this one from all else that the image says.
    async fn reconcile_settings(&mut self, engine: &Engine, image: &Image) -> Result<(), ReconcileError> {
        if self.settings.as_ref().is_some_and(|known| Arc::ptr_eq(known, &image.settings)) {
            return Ok(());
        }
        let wanted = image.settings_of(engine.node_id());
        let decide = move |kept: &BTreeMap<String, String>| Ok(differences(kept, &wanted));
        match engine.change_broker_settings(false, decide).await {
            Err(TopicError::InvalidConfig(reason)) => {
                tracing::error!(reason, "the dynamic settings of the cluster are not followed here");
            }
            changed => changed?,
        }
        self.settings = Some(image.settings.clone());
        Ok(())
    }

    /// Topics of the engine that the cluster does not have.
    fn superfluous(&self, engine: &Engine, image: &Image) -> Vec<(TopicId, String)> {
        let known = engine.topics();
        let gone = known.by_id.values().filter(|topic| image.topics.get(&topic.id).is_none());
        gone.map(|topic| (topic.id, topic.name.clone())).collect()
    }
}

/// What makes the settings that are kept those that are wanted.
fn differences(kept: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> Vec<ConfigChange> {
    let set = wanted.iter().filter(|(name, value)| kept.get(*name) != Some(value));
    let set = set.map(|(name, value)| ConfigChange::Set(name.clone(), value.clone()));
    let gone = kept.keys().filter(|name| !wanted.contains_key(*name)).cloned();
    set.chain(gone.map(ConfigChange::Delete)).collect()
}

/// Whether the engine has to be told nothing: leaders and ISRs are no matter of its catalog.
fn is_placed_alike(known: &TopicState, topic: &TopicState) -> bool {
    let replicas = |topic: &TopicState| topic.partitions.iter().map(|it| it.value.replicas.clone()).collect::<Vec<_>>();
    known.name == topic.name && known.configs == topic.configs && replicas(known) == replicas(topic)
}

fn placement(topic: &TopicState) -> Placement {
    Placement::of(topic.partitions.iter().map(|partition| PlacedRun {
        partitions: 1,
        leader_epoch: partition.value.leader_epoch,
        replicas: partition.value.replicas.clone(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_settings_become_those_that_are_wanted() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let kept: BTreeMap<_, _> = map(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let wanted: BTreeMap<_, _> = map(&[("a", "1"), ("b", "9"), ("d", "4")]);
        let set = |name: &str, value: &str| ConfigChange::Set(name.to_owned(), value.to_owned());
        let changes = differences(&kept, &wanted);
        assert_eq!(changes, [set("b", "9"), set("d", "4"), ConfigChange::Delete("c".to_owned())]);
    }
}
