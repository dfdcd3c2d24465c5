//! The stores of share state on one shard: one for each partition of `__share_group_state` that it owns.
//!
//! A store runs ahead of its log; who asked for a change is answered when the record is durable. When a record could not
//! be written the store is stale: it serves no more and is loaded anew once all writes under way are done.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use millrace_engine::{
    api::{Acks, NewTopic, ProducePartition, TopicError, TopicPartition},
    batch::{self, AppendOrigin, BatchBuilder, Codec},
    engine::{Engine, Topic, Topics},
};

use super::{Shares, here};
use crate::coordinator::{
    group::{
        error::write_error,
        shell::{index_of, load::read_records},
    },
    runtime::promise::Gate,
    share::{
        partition::Write,
        state::{ShareKey, Snapshot, StateRecord, Store, StoreError, Summary},
    },
};

/// Name of the topic that keeps the state.
pub(crate) const STATE_TOPIC: &str = "__share_group_state";

/// One partition of the topic.
struct Slot {
    partition: TopicPartition,
    store: Option<Store>,
    gate: Rc<Gate<Result<(), ResponseError>>>,
    under_way: usize,
    is_stale: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct States {
    slots: RefCell<BTreeMap<i32, Slot>>,
    next_prune_ms: Cell<i64>,
}

/// The topic, if it is there.
pub(crate) fn state_topic(engine: &Engine) -> Option<Rc<Topic>> {
    engine.topics().by_name.get(STATE_TOPIC).cloned()
}

/// The partition of the topic to which a share partition belongs. The topic is made when it is first needed.
pub(crate) async fn locate(engine: &Engine, coordinator_key: &str) -> Result<TopicPartition, ResponseError> {
    let topic = match state_topic(engine) {
        Some(topic) => topic,
        None => make_topic(engine).await?,
    };
    Ok(TopicPartition { topic: topic.id, partition: index_of(coordinator_key, topic.partitions) })
}

async fn make_topic(engine: &Engine) -> Result<Rc<Topic>, ResponseError> {
    let shares = here(engine).await;
    let settings = &shares.settings;
    let configs = [
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", "-1".to_owned()),
        ("compression.type", "producer".to_owned()),
        ("segment.bytes", settings.get("share.coordinator.state.topic.segment.bytes").to_string()),
    ];
    let new = NewTopic {
        name: STATE_TOPIC.to_owned(),
        partitions: i32::try_from(settings.get("share.coordinator.state.topic.num.partitions")).unwrap_or(1),
        configs: configs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    };
    match engine.create_topic(new, false).await {
        Ok(topic) => Ok(topic),
        // another shard was faster
        Err(TopicError::Exists(_)) => state_topic(engine).ok_or(ResponseError::CoordinatorNotAvailable),
        Err(error) => {
            tracing::error!(%error, "{STATE_TOPIC} cannot be created");
            Err(ResponseError::CoordinatorNotAvailable)
        }
    }
}

/// What a store did: a result, and the record that says so.
type Change<R> = Result<(R, Option<StateRecord>), StoreError>;

/// Lets the store of a share partition do something, on whatever shard it is; returns when that is durable.
async fn ask<R: Send + 'static>(
    engine: &Engine,
    key: &ShareKey,
    work: impl FnOnce(&mut Store, &ShareKey, i64) -> Change<R> + Send + 'static,
) -> Result<R, ResponseError> {
    let partition = locate(engine, &key.coordinator_key()).await?;
    let (group, topic, index) = (key.group.to_string(), key.topic, key.partition);
    engine
        .on_shard(engine.owner(partition), move |engine| async move {
            let key = ShareKey::new(&group, topic, index);
            here(&engine).await.change(partition, |store, now_ms| work(store, &key, now_ms)).await
        })
        .await
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

impl Shares {
    /// Lets a store that this shard owns do something; returns when that is durable.
    async fn change<R>(
        self: &Rc<Self>,
        partition: TopicPartition,
        work: impl FnOnce(&mut Store, i64) -> Change<R>,
    ) -> Result<R, ResponseError> {
        self.ready(partition).await?;
        let changed = {
            let mut slots = self.states.slots.borrow_mut();
            let slot = current(&mut slots, partition).filter(|slot| !slot.is_stale);
            let store = slot.and_then(|slot| slot.store.as_mut());
            let store = store.ok_or(ResponseError::CoordinatorLoadInProgress)?;
            work(store, self.clock.now_ms())
        };
        let (result, record) = changed.map_err(StoreError::code)?;
        if let Some(record) = record {
            self.append(partition, vec![record]).await?;
        }
        Ok(result)
    }

    /// Waits until a store serves.
    async fn ready(self: &Rc<Self>, partition: TopicPartition) -> Result<(), ResponseError> {
        let gate = {
            let slots = self.states.slots.borrow();
            let slot = slots.get(&partition.partition).filter(|slot| slot.partition == partition);
            match slot {
                Some(slot) if slot.is_stale => return Err(ResponseError::CoordinatorLoadInProgress),
                Some(slot) if slot.store.is_some() => return Ok(()),
                Some(slot) => Some(Rc::clone(&slot.gate)),
                None => None,
            }
        };
        let gate = gate.unwrap_or_else(|| self.begin_load(partition));
        gate.pass().await
    }

    fn begin_load(self: &Rc<Self>, partition: TopicPartition) -> Rc<Gate<Result<(), ResponseError>>> {
        let gate = Gate::new();
        let slot = Slot { partition, store: None, gate: Rc::clone(&gate), under_way: 0, is_stale: false };
        self.states.slots.borrow_mut().insert(partition.partition, slot);
        let (shares, opened) = (Rc::clone(self), Rc::clone(&gate));
        glommio::spawn_local(async move { opened.open(shares.load(partition).await) }).detach();
        gate
    }

    async fn load(self: &Rc<Self>, partition: TopicPartition) -> Result<(), ResponseError> {
        let updates = self.settings.get("share.coordinator.snapshot.update.records.per.snapshot");
        let mut store = Store::new(u32::try_from(updates).unwrap_or(0));
        let read = read_records(&self.engine, partition, |record| take(&mut store, partition, record)).await;
        if let Err(error) = read {
            tracing::error!(partition = partition.partition, %error, "a partition of {STATE_TOPIC} cannot be loaded");
            let mut slots = self.states.slots.borrow_mut();
            if current(&mut slots, partition).is_some() {
                slots.remove(&partition.partition);
            }
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        let topics = self.engine.topics();
        let gone = store.delete_topics(|id| !topics.by_id.contains_key(&id));
        match current(&mut self.states.slots.borrow_mut(), partition) {
            Some(slot) => slot.store = Some(store),
            // the topic was made again meanwhile: this was read in its former life
            None => return Err(ResponseError::NotCoordinator),
        }
        self.append_in_background(partition, gone);
        Ok(())
    }

    fn append_in_background(self: &Rc<Self>, partition: TopicPartition, records: Vec<StateRecord>) {
        if !records.is_empty() {
            // its outcome is told by a warning and by the store being stale
            let appended = self.append(partition, records);
            glommio::spawn_local(appended).detach();
        }
    }

    /// Appends records of a store. Their order is fixed when this returns; the future resolves when they are durable.
    fn append(
        self: &Rc<Self>,
        partition: TopicPartition,
        records: Vec<StateRecord>,
    ) -> impl Future<Output = Result<(), ResponseError>> + use<> {
        let now_ms = self.clock.now_ms();
        let mut builder = BatchBuilder::new(Codec::None, 0);
        for record in &records {
            builder.push(&batch::Record {
                offset: i64::from(builder.record_count()),
                timestamp: now_ms,
                key: Some(record.key().into()),
                value: record.value().map(Bytes::from),
                headers: Vec::new(),
            });
        }
        if let Some(slot) = current(&mut self.states.slots.borrow_mut(), partition) {
            slot.under_way += 1;
        }
        let written = self.engine.produce(
            AppendOrigin::Coordinator,
            Acks::All,
            vec![ProducePartition { partition, batch: builder.finish().into() }],
        );
        let shares = Rc::clone(self);
        // in a task of its own: whoever waits may go, the store must hear of it
        let task = glommio::spawn_local(async move {
            let answer = written.await.pop();
            let answer = answer.unwrap_or(Err(millrace_engine::api::LogError::ShuttingDown));
            let result = answer.map_err(|error| {
                tracing::warn!(partition = partition.partition, %error, "state of share groups could not be written");
                write_error(&error)
            });
            shares.on_appended(partition, &records, result.as_ref().ok().map(|produced| produced.base_offset));
            result.map(|_| ())
        });
        let task = task.detach();
        async move { task.await.unwrap_or(Err(ResponseError::NotCoordinator)) }
    }

    fn on_appended(&self, partition: TopicPartition, records: &[StateRecord], base_offset: Option<i64>) {
        let mut slots = self.states.slots.borrow_mut();
        let Some(slot) = current(&mut slots, partition) else { return };
        slot.under_way = slot.under_way.saturating_sub(1);
        match (base_offset, &mut slot.store) {
            (Some(base), Some(store)) => {
                (base..).zip(records).for_each(|(offset, record)| store.note_offset(offset, record));
            }
            (Some(_), None) => {}
            (None, _) => slot.is_stale = true,
        }
        if slot.is_stale && slot.under_way == 0 {
            slots.remove(&partition.partition);
        }
    }

    /// Forgets the state of deleted topics, and now and then the part of the logs that is not needed any more.
    pub(super) fn tick_states(self: &Rc<Self>, deleted: &dyn Fn(&Topics) -> bool) {
        let topics = self.engine.topics();
        let now_ms = self.clock.now_ms();
        let is_prune_due = now_ms >= self.states.next_prune_ms.get();
        let has_deleted = deleted(&topics);
        if is_prune_due {
            let interval_ms = self.settings.get("share.coordinator.state.topic.prune.interval.ms");
            self.states.next_prune_ms.set(now_ms.saturating_add(interval_ms));
        }
        if !is_prune_due && !has_deleted {
            return;
        }
        let cold_ms = self.settings.get("share.coordinator.cold.partition.snapshot.interval.ms");
        let mut work = Vec::new();
        {
            let mut slots = self.states.slots.borrow_mut();
            // a topic of the same name is another one
            slots.retain(|_, slot| topics.by_id.contains_key(&slot.partition.topic));
            for slot in slots.values_mut().filter(|slot| !slot.is_stale) {
                let Some(store) = slot.store.as_mut() else { continue };
                let mut records = Vec::new();
                if has_deleted {
                    records.extend(store.delete_topics(|id| !topics.by_id.contains_key(&id)));
                }
                let needed_from = store.needed_from();
                if is_prune_due {
                    records.extend(store.refresh(now_ms, cold_ms));
                }
                work.push((slot.partition, records, needed_from));
            }
        }
        for (partition, records, needed_from) in work {
            self.append_in_background(partition, records);
            if is_prune_due && needed_from > 0 {
                let engine = self.engine.clone();
                glommio::spawn_local(async move {
                    if let Err(error) = engine.delete_records(partition, needed_from).await {
                        tracing::warn!(partition = partition.partition, %error, "{STATE_TOPIC} cannot be pruned");
                    }
                })
                .detach();
            }
        }
    }
}

/// The slot of a partition, not of one with the same index in another life of the topic.
fn current(slots: &mut BTreeMap<i32, Slot>, partition: TopicPartition) -> Option<&mut Slot> {
    slots.get_mut(&partition.partition).filter(|slot| slot.partition == partition)
}

fn take(store: &mut Store, partition: TopicPartition, record: &batch::Record) {
    let key = record.key.as_deref().unwrap_or_default();
    match StateRecord::decode(key, record.value.as_deref()) {
        Ok(Some(decoded)) => store.load(record.offset, decoded),
        Ok(None) => {}
        Err(error) => {
            let (partition, offset) = (partition.partition, record.offset);
            tracing::warn!(partition, offset, %error, "a record of {STATE_TOPIC} is left out");
        }
    }
}

#[cfg(test)]
mod tests;
