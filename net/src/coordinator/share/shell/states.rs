//! The ways to the state of share partitions, on whatever shard it is kept.

use std::rc::Rc;

use kafka_protocol::ResponseError;
use millrace_engine::{
    api::{NewTopic, TopicPartition},
    engine::Engine,
};

use crate::coordinator::{
    runtime::{Kind, Runtime},
    share::{
        partition::Write,
        settings::Settings,
        state::{Change, Prune, ShareKey, Snapshot, StateCoordinator, Store, Summary},
    },
};

/// Name of the topic that keeps the state.
pub(crate) const STATE_TOPIC: &str = "__share_group_state";

/// The kind of coordinators of share state.
pub(crate) struct StateKind {
    settings: Rc<Settings>,
}

/// The share state of one shard.
pub(crate) type States = Runtime<StateKind>;

impl StateKind {
    /// With a node's settings.
    pub(crate) fn new(settings: Rc<Settings>) -> Self {
        Self { settings }
    }
}

impl Kind for StateKind {
    type Machine = StateCoordinator;
    const TOPIC: &'static str = STATE_TOPIC;

    fn new_topic(&self) -> NewTopic {
        let configs = [
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", "-1".to_owned()),
            ("compression.type", "producer".to_owned()),
            ("segment.bytes", self.settings.get("share.coordinator.state.topic.segment.bytes").to_string()),
        ];
        let partitions = self.settings.get("share.coordinator.state.topic.num.partitions");
        NewTopic {
            name: STATE_TOPIC.to_owned(),
            partitions: i32::try_from(partitions).unwrap_or(1),
            configs: configs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    fn machine(&self, _: &Engine, _: TopicPartition) -> StateCoordinator {
        StateCoordinator::new(Rc::clone(&self.settings))
    }

    fn run_errand(states: &Rc<States>, partition: TopicPartition, Prune(needed_from): Prune) {
        let engine = states.engine().clone();
        glommio::spawn_local(async move {
            if let Err(error) = engine.delete_records(partition, needed_from).await {
                tracing::warn!(partition = partition.partition, %error, "{STATE_TOPIC} cannot be pruned");
            }
        })
        .detach();
    }
}

/// Lets the store of a share partition do something, on whatever shard it is; returns when that is durable.
async fn ask<R: Send + 'static>(
    engine: &Engine,
    key: &ShareKey,
    work: impl FnOnce(&mut Store, &ShareKey, i64) -> Change<R> + Send + 'static,
) -> Result<R, ResponseError> {
    let (group, topic, index) = (key.group.to_string(), key.topic, key.partition);
    let coordinator_key = key.coordinator_key();
    let asked = States::ask_for(engine, &coordinator_key, move |coordinator, now_ms, ticket| {
        let key = ShareKey::new(&group, topic, index);
        coordinator.change(ticket, |store| work(store, &key, now_ms));
    });
    asked.await?
}

/// Sets the state of a share partition anew.
pub(crate) async fn initialize(
    engine: &Engine,
    key: &ShareKey,
    state_epoch: i32,
    start_offset: i64,
) -> Result<(), ResponseError> {
    let work = move |store: &mut Store, key: &ShareKey, now_ms| {
        Ok(((), Some(store.initialize(now_ms, key, state_epoch, start_offset)?)))
    };
    ask(engine, key, work).await
}

/// Writes changes of a share partition.
pub(super) async fn write(
    engine: &Engine,
    key: &ShareKey,
    state_epoch: i32,
    write: Write,
) -> Result<(), ResponseError> {
    let work =
        move |store: &mut Store, key: &ShareKey, now_ms| Ok(((), Some(store.write(now_ms, key, state_epoch, &write)?)));
    ask(engine, key, work).await
}

/// Reads the state of a share partition.
pub(super) async fn read(engine: &Engine, key: &ShareKey) -> Result<Snapshot, ResponseError> {
    ask(engine, key, |store, key, _| Ok((store.read(key)?.clone(), None))).await
}

/// Reads the state of a share partition in brief.
pub(crate) async fn summary(engine: &Engine, key: &ShareKey) -> Result<Summary, ResponseError> {
    ask(engine, key, |store, key, _| Ok((store.summary(key), None))).await
}

/// Deletes the state of a share partition, if there is any.
pub(crate) async fn delete(engine: &Engine, key: &ShareKey) -> Result<(), ResponseError> {
    ask(engine, key, |store, key, _| Ok(((), store.delete(key)))).await
}

#[cfg(test)]
mod tests;
