//! Topics of the cluster in the engine of this node: shard 0 makes the engine's what the image says, then every shard hears of
//! the image.
//!
//! A topic that the image does not have is removed with its records, so that is done only for images of a cluster that this
//! data directory is a member of: whoever starts the node sees to that.

use std::{collections::BTreeMap, sync::Arc};

use millrace_engine::{
    api::{TopicError, TopicId},
    engine::Engine,
    format::{
        catalog::StoredTopic,
        placement::{PlacedRun, Placement},
    },
};

use super::{ImageFeed, Shell};
use crate::cluster::{image::Image, model::TopicState};

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
}

/// Pause before what the engine refused is tried again: the disk may be full.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Takes images as they come, for ever. On shard 0. `settings` is told the dynamic settings of this node.
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
}

impl Placed {
    async fn reconcile(&mut self, engine: &Engine, image: &Image) -> Result<(), ReconcileError> {
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

    /// Topics of the engine that the cluster does not have.
    fn superfluous(&self, engine: &Engine, image: &Image) -> Vec<(TopicId, String)> {
        let known = engine.topics();
        let gone = known.by_id.values().filter(|topic| image.topics.get(&topic.id).is_none());
        gone.map(|topic| (topic.id, topic.name.clone())).collect()
    }
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
