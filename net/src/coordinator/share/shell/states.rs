//! The ways to the state of share partitions, on whatever node and shard it is kept.
//!
//! While its coordinator moves, or cannot be reached, who asks tries again for a while: everything that is asked can be
//! carried out twice, and what a former leader asks late is refused by its epoch.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use kafka_protocol::ResponseError;
use millrace_engine::{
    api::{NewTopic, TopicPartition},
    engine::Engine,
};

use crate::{
    client::{Leader, OtherBrokers, Purpose},
    coordinator::{
        runtime::{Kind, Runtime, Ticket},
        share::{
            partition::Write,
            settings::Settings,
            state::{
                Delete, Epochs, Initialize, Part, Prune, RawBatch, Read, ReadSummary, ShareKey, StateCoordinator,
                StateRequest, StoreError, UNDECIDED, WriteState,
            },
        },
    },
};

/// How long it is tried again.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one node is waited for, before it is looked whether another one is to be asked by now.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// The first pause before it is tried again; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A node that does not know a partition may not have heard of it yet; this often it is asked again.
const UNKNOWN_MAX: u32 = 5;

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

/// What a coordinator does for something that is asked of a share partition.
pub(crate) trait Work: Part {
    /// Does it; the ticket is answered when what came of it is durable.
    fn run(self, coordinator: &mut StateCoordinator, now_ms: i64, key: &ShareKey, ticket: Answers<Self>);
}

type Answers<P> = Ticket<Result<<P as Part>::Answer, ResponseError>>;

impl Work for Initialize {
    fn run(self, coordinator: &mut StateCoordinator, now_ms: i64, key: &ShareKey, ticket: Answers<Self>) {
        let Initialize { state_epoch, start_offset } = self;
        coordinator.change_known(ticket, key, |store| {
            legal(state_epoch >= 0 && start_offset >= UNDECIDED)?;
            Ok(((), Some(store.initialize(now_ms, key, state_epoch, start_offset)?)))
        });
    }
}

impl Work for Read {
    fn run(self, coordinator: &mut StateCoordinator, now_ms: i64, key: &ShareKey, ticket: Answers<Self>) {
        let Read { leader_epoch } = self;
        coordinator.change_known(ticket, key, |store| {
            legal(leader_epoch >= 0)?;
            let (state, record) = store.read(now_ms, key, leader_epoch)?;
            Ok((state.into(), record))
        });
    }
}

impl Work for WriteState {
    fn run(self, coordinator: &mut StateCoordinator, now_ms: i64, key: &ShareKey, ticket: Answers<Self>) {
        let epochs = Epochs { state: self.state_epoch, leader: self.leader_epoch };
        coordinator.change_known(ticket, key, |store| {
            legal(epochs.state >= 0 && epochs.leader >= 0)?;
            let write = Write {
                id: None,
                start_offset: self.start_offset,
                delivery_complete_count: self.delivery_complete_count,
                batches: RawBatch::checked(self.batches)?,
            };
            Ok(((), Some(store.write(now_ms, key, epochs, &write)?)))
        });
    }
}

impl Work for Delete {
    fn run(self, coordinator: &mut StateCoordinator, _: i64, key: &ShareKey, ticket: Answers<Self>) {
        // of a partition that is gone, too
        coordinator.change(ticket, |store| Ok(((), store.delete(key))));
    }
}

impl Work for ReadSummary {
    fn run(self, coordinator: &mut StateCoordinator, _: i64, key: &ShareKey, ticket: Answers<Self>) {
        coordinator.change_known(ticket, key, |store| Ok((store.summary(key), None)));
    }
}

fn legal(is_legal: bool) -> Result<(), StoreError> {
    if is_legal { Ok(()) } else { Err(StoreError::Senseless) }
}

/// Asks the coordinator of a share partition, if that is on this node.
pub(crate) async fn ask_here<P: Work>(engine: &Engine, key: &ShareKey, part: P) -> Result<P::Answer, ResponseError> {
    let partition = States::place(engine, &key.coordinator_key()).ok_or(ResponseError::NotCoordinator)?;
    let (group, topic, index) = (key.group.to_string(), key.topic, key.partition);
    let work = move |coordinator: &mut StateCoordinator, now_ms, ticket| {
        part.run(coordinator, now_ms, &ShareKey::new(&group, topic, index), ticket);
    };
    let asked = move |engine| async move { States::here(&engine).await.ask(partition, work).await };
    engine.on_shard(engine.owner(partition), asked).await?
}

/// Asks the coordinator of a share partition, wherever it is.
pub(crate) async fn ask<P: Work + Clone>(engine: &Engine, key: &ShareKey, part: P) -> Result<P::Answer, ResponseError> {
    use ResponseError::*;
    let deadline = Instant::now() + ASK_TIMEOUT;
    let (mut pause, mut unknown) = (PAUSE_MIN, 0);
    loop {
        let error = match ask_once(engine, key, part.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let passes = match error {
            NotCoordinator | CoordinatorNotAvailable | CoordinatorLoadInProgress => true,
            UnknownTopicOrPartition => {
                unknown += 1;
                unknown <= UNKNOWN_MAX
            }
            _ => false,
        };
        if !passes || Instant::now() + pause >= deadline {
            return Err(error);
        }
        glommio::timer::sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
    }
}

async fn ask_once<P: Work>(engine: &Engine, key: &ShareKey, part: P) -> Result<P::Answer, ResponseError> {
    let partition = States::locate(engine, &key.coordinator_key()).await?;
    let Some(others) = engine.attached::<OtherBrokers>() else { return ask_here(engine, key, part).await };
    match others.leader(partition) {
        Leader::Here => ask_here(engine, key, part).await,
        Leader::Node(node) => ask_node(&others, node, key, part).await,
        Leader::Nobody => Err(ResponseError::CoordinatorNotAvailable),
    }
}

async fn ask_node<P: Work>(
    others: &OtherBrokers,
    node: i32,
    key: &ShareKey,
    part: P,
) -> Result<P::Answer, ResponseError> {
    let topics = vec![(key.topic, vec![(key.partition, part)])];
    let request = StateRequest { group: key.group.to_string(), topics };
    let asked = std::pin::pin!(others.ask(node, Purpose::ShareState, |_| request));
    let response = match select(asked, std::pin::pin!(glommio::timer::sleep(NODE_TIMEOUT))).await {
        Either::Left((Ok(response), _)) => response,
        Either::Left((Err(error), _)) => {
            tracing::debug!(node, %error, "share state cannot be asked for");
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        Either::Right(_) => return Err(ResponseError::CoordinatorNotAvailable),
    };
    let mut partitions = response.topics.into_iter().flat_map(|(_, partitions)| partitions);
    let (_, answer) = partitions.next().ok_or(ResponseError::UnknownServerError)?;
    answer.map_err(|refused| refused.error)
}

/// Writes changes of a share partition.
pub(super) async fn write(engine: &Engine, key: &ShareKey, epochs: Epochs, write: &Write) -> Result<(), ResponseError> {
    let part = WriteState {
        state_epoch: epochs.state,
        leader_epoch: epochs.leader,
        start_offset: write.start_offset,
        delivery_complete_count: write.delivery_complete_count,
        batches: write.batches.iter().map(RawBatch::from).collect(),
    };
    ask(engine, key, part).await
}

#[cfg(test)]
mod tests;
