//! One share partition on its shard: loads it, makes what it decides durable, and ends its locks in time.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BTreeSet,
    rc::Rc,
    time::Duration,
};

use kafka_protocol::ResponseError;
use millrace_engine::{
    api::{LogError, OffsetSpec, ReadBound, TopicPartition},
    engine::Engine,
};

use super::{
    Shares, here,
    notice::Watchers,
    states,
    writes::{Durable, Writes},
};
use crate::{
    coordinator::{
        runtime::promise::{Gate, Promise, next_turn},
        share::{
            partition::{AcknowledgeError, Acknowledgement, SharePartition, Write},
            settings::OffsetReset,
            state::{Epochs, RawBatch, Read, ShareKey, UNDECIDED},
        },
    },
    errors::log_error,
};

/// See the module.
pub(super) struct Live {
    pub(super) key: ShareKey,
    gate: Rc<Gate<Result<(), ResponseError>>>,
    /// `None` while it is loaded.
    pub(super) core: RefCell<Option<SharePartition>>,
    /// In which this node leads the partition: in another one it is another share partition.
    pub(super) leader_epoch: i32,
    /// Epoch of the state that it was loaded from.
    state_epoch: Cell<i32>,
    /// When it stands in the shard's heap of timers next.
    queued_ms: Cell<i64>,
    /// Whether a fetch reads the log for it now.
    pub(super) is_reading: Cell<bool>,
    /// Whether another fetch wanted to meanwhile.
    pub(super) is_contended: Cell<bool>,
    /// Told when something can be acquired that could not before.
    pub(super) watchers: Watchers,
    /// Members with a session that read it.
    pub(super) members: RefCell<BTreeSet<Rc<str>>>,
    /// Changes that are to become durable.
    writes: RefCell<Writes>,
}

/// Pause before a new leader is asked again how far its log goes.
const END_RETRY: Duration = Duration::from_millis(10);

/// Why acknowledgements were not taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcknowledgeFailure {
    pub(crate) error: ResponseError,
    /// Where the code does not say it all.
    pub(crate) message: Option<String>,
}

impl From<ResponseError> for AcknowledgeFailure {
    fn from(error: ResponseError) -> Self {
        Self { error, message: None }
    }
}

impl From<AcknowledgeError> for AcknowledgeFailure {
    fn from(error: AcknowledgeError) -> Self {
        let code = match error {
            AcknowledgeError::PastAcquired => ResponseError::InvalidRequest,
            AcknowledgeError::NotInFlight
            | AcknowledgeError::NotAcquired
            | AcknowledgeError::NotOwner
            | AcknowledgeError::UnderWay
            | AcknowledgeError::RenewDisabled => ResponseError::InvalidRecordState,
        };
        Self { error: code, message: Some(error.to_string()) }
    }
}

/// A member's acknowledgements for share partitions that one shard owns, with the answers in their order.
pub(crate) async fn acknowledge_on(
    engine: &Engine,
    shard: usize,
    (group, member): (String, String),
    parts: Vec<(TopicPartition, Vec<Acknowledgement>)>,
) -> Vec<Result<(), AcknowledgeFailure>> {
    engine
        .on_shard(shard, move |engine| async move {
            let shares = here(&engine).await;
            // all are taken over before the first is waited for
            let begun: Vec<_> = parts
                .into_iter()
                .map(|(partition, acknowledgements)| {
                    let key = ShareKey::new(&group, partition.topic, partition.partition);
                    shares.acknowledge(&key, &member, &acknowledgements)
                })
                .collect();
            let mut answers = Vec::with_capacity(begun.len());
            for begun in begun {
                answers.push(match begun {
                    Ok(Some(durable)) => durable.take().await.map_err(AcknowledgeFailure::from),
                    Ok(None) => Ok(()),
                    Err(failure) => Err(failure),
                });
            }
            answers
        })
        .await
}

/// Gives back what a member has of share partitions that one shard owns: its session is over.
pub(crate) async fn release_on(
    engine: &Engine,
    shard: usize,
    (group, member): (String, String),
    partitions: Vec<TopicPartition>,
) {
    engine
        .on_shard(shard, move |engine| async move {
            let shares = here(&engine).await;
            let keys = partitions.iter().map(|partition| ShareKey::new(&group, partition.topic, partition.partition));
            for durable in keys.filter_map(|key| shares.release(&key, &member)).collect::<Vec<_>>() {
                // who fails is warned of where it fails; the locks end in any case
                let _: Result<(), ResponseError> = durable.take().await;
            }
        })
        .await;
}

/// What a consumer hears of an error of the state, as of Kafka: who was fenced is no leader of it any more.
fn of_state(error: ResponseError) -> ResponseError {
    use ResponseError::*;
    match error {
        FencedStateEpoch | FencedLeaderEpoch => NotLeaderOrFollower,
        NotCoordinator | CoordinatorLoadInProgress => CoordinatorNotAvailable,
        CoordinatorNotAvailable | UnknownTopicOrPartition => error,
        _ => UnknownServerError,
    }
}

/// Forgets a share partition whose state was set anew or deleted.
pub(crate) async fn drop_on(engine: &Engine, group: String, partition: TopicPartition) {
    engine
        .on_shard(engine.owner(partition), move |engine| async move {
            here(&engine).await.forget(&ShareKey::new(&group, partition.topic, partition.partition));
        })
        .await;
}

impl Shares {
    /// A share partition, loaded when it is first needed.
    pub(super) async fn live(self: &Rc<Self>, key: &ShareKey) -> Result<Rc<Live>, ResponseError> {
        let leader_epoch = self.engine.leader_epoch(key.place()).ok_or(ResponseError::NotLeaderOrFollower)?;
        let known = self.partitions.borrow().get(key).filter(|live| live.leader_epoch == leader_epoch).cloned();
        let live = match known {
            Some(live) => live,
            None => {
                self.forget(key);
                self.begin_live(key, leader_epoch)
            }
        };
        live.gate.pass().await?;
        Ok(live)
    }

    fn begin_live(self: &Rc<Self>, key: &ShareKey, leader_epoch: i32) -> Rc<Live> {
        let live = Rc::new(Live {
            key: key.clone(),
            gate: Gate::new(),
            core: RefCell::new(None),
            leader_epoch,
            state_epoch: Cell::new(0),
            queued_ms: Cell::new(i64::MAX),
            is_reading: Cell::new(false),
            is_contended: Cell::new(false),
            watchers: Watchers::default(),
            members: RefCell::default(),
            writes: RefCell::default(),
        });
        self.partitions.borrow_mut().insert(key.clone(), Rc::clone(&live));
        let (shares, loading) = (Rc::clone(self), Rc::clone(&live));
        glommio::spawn_local(async move {
            let loaded = shares.load_live(&loading).await;
            if loaded.is_err() {
                shares.forget_if(&loading);
            }
            loading.gate.open(loaded);
            loading.watchers.notify();
        })
        .detach();
        live
    }

    async fn load_live(self: &Rc<Self>, live: &Live) -> Result<(), ResponseError> {
        let key = &live.key;
        let (partition, leader_epoch) = (key.place(), live.leader_epoch);
        let state = states::ask(&self.engine, key, Read { leader_epoch }).await.map_err(of_state)?;
        let start_offset = match state.start_offset {
            UNDECIDED => self.reset_offset(&key.group, partition).await?,
            start_offset => start_offset,
        };
        let earliest = self.find(partition, OffsetSpec::Earliest).await?;
        let batches = RawBatch::checked(state.batches).map_err(|error| error.to_string());
        let restored = batches.and_then(|batches| SharePartition::restore(start_offset, &batches));
        let mut core = restored.map_err(|reason| {
            tracing::error!(group = %key.group, topic = %key.topic, partition = key.partition, reason, "bad share state");
            ResponseError::UnknownServerError
        })?;
        core.handle_log_start(earliest);
        live.state_epoch.set(state.state_epoch);
        if self.engine.leader_epoch(partition) != Some(leader_epoch) {
            return Err(ResponseError::NotLeaderOrFollower);
        }
        live.core.replace(Some(core));
        Ok(())
    }

    /// Where a share partition begins that nobody has decided about.
    async fn reset_offset(&self, group: &str, partition: TopicPartition) -> Result<i64, ResponseError> {
        let spec = match self.group_settings(group).offset_reset {
            OffsetReset::Earliest => OffsetSpec::Earliest,
            OffsetReset::Latest => OffsetSpec::Latest,
            OffsetReset::Ago(ms) => OffsetSpec::Timestamp(self.clock.now_ms().saturating_sub(ms)),
        };
        let found = self.find(partition, spec).await?;
        // no record is as young as that
        if found < 0 { self.find(partition, OffsetSpec::Latest).await } else { Ok(found) }
    }

    /// Finds an offset, once it is known how far the leader before may have come.
    async fn find(&self, partition: TopicPartition, spec: OffsetSpec) -> Result<i64, ResponseError> {
        loop {
            match self.engine.list_offset(partition, spec, ReadBound::HighWatermark, -1).await {
                Err(LogError::OffsetNotAvailable) => glommio::timer::sleep(END_RETRY).await,
                found => return found.map(|found| found.offset).map_err(|error| log_error(&error)),
            }
        }
    }

    /// Forgets a share partition: it is loaded anew when it is needed again.
    pub(super) fn forget(&self, key: &ShareKey) {
        let live = self.partitions.borrow_mut().remove(key);
        if let Some(live) = live {
            live.watchers.notify();
        }
    }

    fn forget_if(&self, live: &Rc<Live>) {
        let is_current = self.partitions.borrow().get(&live.key).is_some_and(|current| Rc::ptr_eq(current, live));
        if is_current {
            self.forget(&live.key);
        }
    }

    fn acknowledge(
        self: &Rc<Self>,
        key: &ShareKey,
        member: &str,
        acknowledgements: &[Acknowledgement],
    ) -> Result<Option<Durable>, AcknowledgeFailure> {
        let leader_epoch = self.engine.leader_epoch(key.place()).ok_or(ResponseError::NotLeaderOrFollower)?;
        let live = self.partitions.borrow().get(key).filter(|live| live.leader_epoch == leader_epoch).cloned();
        let live = live.ok_or(AcknowledgeFailure::from(ResponseError::UnknownTopicOrPartition))?;
        let limits = self.group_settings(&key.group).limits;
        let write = {
            let mut core = live.core.borrow_mut();
            let core = core.as_mut().ok_or(AcknowledgeFailure::from(ResponseError::UnknownTopicOrPartition))?;
            core.acknowledge(self.clock.now_ms(), member, acknowledgements, &limits)?
        };
        self.schedule(&live);
        Ok(write.map(|write| self.persist(&live, write)))
    }

    fn release(self: &Rc<Self>, key: &ShareKey, member: &str) -> Option<Durable> {
        let live = self.partitions.borrow().get(key).cloned()?;
        let limits = self.group_settings(&key.group).limits;
        live.members.borrow_mut().remove(member);
        let write = live.core.borrow_mut().as_mut()?.release(member, &limits);
        match write {
            Some(write) => Some(self.persist(&live, write)),
            None => {
                self.forget_if_unused(&live);
                None
            }
        }
    }

    /// Nobody reads it any more: what is kept of it is all there is to know.
    fn forget_if_unused(&self, live: &Rc<Live>) {
        let is_quiet = live.core.borrow().as_ref().is_some_and(SharePartition::is_quiet);
        if is_quiet && live.members.borrow().is_empty() {
            self.forget_if(live);
        }
    }

    /// Makes a write durable and tells the share partition, whoever waits for it.
    pub(super) fn persist(self: &Rc<Self>, live: &Rc<Live>, write: Write) -> Durable {
        let promise = Promise::new();
        if live.writes.borrow_mut().push(write, Rc::clone(&promise)) {
            glommio::spawn_local(Rc::clone(self).write_all(Rc::clone(live))).detach();
        }
        promise
    }

    /// Writes what there is to write of a share partition, until there is nothing.
    async fn write_all(self: Rc<Self>, live: Rc<Live>) {
        let epochs = Epochs { state: live.state_epoch.get(), leader: live.leader_epoch };
        // what others that are runnable now decide goes with it
        next_turn().await;
        let mut lost = None;
        loop {
            let next = live.writes.borrow_mut().next();
            let Some((write, told)) = next else { break };
            let result = match lost {
                // whoever knows of it next goes on from what is kept, in the same epochs: nothing comes behind its back
                Some(error) => Err(error),
                None => states::write(&self.engine, &live.key, epochs, &write).await.map_err(of_state),
            };
            let limits = self.group_settings(&live.key.group).limits;
            let now_ms = self.clock.now_ms();
            if let Some(core) = live.core.borrow_mut().as_mut() {
                for id in told.iter().filter_map(|(id, _)| *id) {
                    core.on_persisted(now_ms, id, result.is_ok(), &limits);
                }
            }
            live.watchers.notify();
            if let Err(error @ (ResponseError::NotLeaderOrFollower | ResponseError::UnknownServerError)) = result {
                // its state is another one now, or none
                lost = Some(error);
                self.forget_if(&live);
            }
            told.into_iter().for_each(|(_, durable)| durable.keep(result));
        }
        self.forget_if_unused(&live);
    }

    /// Ends the locks of a share partition that are over.
    pub(super) fn time_out(self: &Rc<Self>, live: &Rc<Live>, at_ms: i64) {
        if live.queued_ms.get() != at_ms {
            return;
        }
        live.queued_ms.set(i64::MAX);
        let limits = self.group_settings(&live.key.group).limits;
        let write = match live.core.borrow_mut().as_mut() {
            Some(core) => core.handle_timeouts(self.clock.now_ms(), &limits),
            None => None,
        };
        if let Some(write) = write {
            live.watchers.notify();
            // they are free already; what becomes of the write is told by a warning
            drop(self.persist(live, write));
        }
        self.schedule(live);
    }

    /// Puts a share partition's next deadline into the heap, if it is nearer than the one that stands there.
    pub(super) fn schedule(&self, live: &Live) {
        let next_ms = live.core.borrow().as_ref().and_then(SharePartition::next_deadline_ms);
        let Some(next_ms) = next_ms.filter(|next_ms| *next_ms < live.queued_ms.get()) else { return };
        live.queued_ms.set(next_ms);
        self.timers.borrow_mut().push(Reverse((next_ms, live.key.clone())));
        if next_ms < self.sleeps_until_ms.get() {
            self.bell.ring();
        }
    }
}
