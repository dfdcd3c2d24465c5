//! The state of all share partitions that belong to one partition of `__share_group_state`.
//!
//! It runs ahead of the log: every method that changes it gives the record that says so, to be appended in the order of
//! the calls. Should an append fail, the store is to be dropped and loaded anew. Before it serves, `load` is called for
//! every record of the log in order.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::ResponseError;
use millrace_engine::api::LEADER_EPOCH;
use uuid::Uuid;

use super::{ShareKey, Snapshot, StateRecord, Update, merge};
use crate::coordinator::share::partition::Write;

/// What a start offset is as long as nobody has decided.
pub(crate) const UNDECIDED: i64 = -1;

/// Why the store refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// The share partition was never initialized, or its state was deleted.
    #[error("the share partition is not initialized")]
    Uninitialized,
    /// The state was set anew since the caller read it.
    #[error("the state of the share partition was set anew")]
    Fenced,
}

impl StoreError {
    /// What a consumer hears, as of Kafka.
    pub(crate) fn code(self) -> ResponseError {
        match self {
            StoreError::Uninitialized => ResponseError::UnknownServerError,
            StoreError::Fenced => ResponseError::NotLeaderOrFollower,
        }
    }
}

/// A share partition's state in brief.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// First offset that is not done, or [`UNDECIDED`].
    pub(crate) start_offset: i64,
    /// Offsets from there on that are done; -1: not known.
    pub(crate) delivery_complete_count: i32,
    /// Epoch of the partition's leader.
    pub(crate) leader_epoch: i32,
}

/// A share partition's state and where it stands in the log.
#[derive(Debug)]
struct Entry {
    state: Snapshot,
    /// Updates since the last snapshot.
    updates: u32,
    /// Offset of the last snapshot that is known to be durable.
    snapshot_offset: Option<i64>,
}

/// What the store is told again of the records of a write, once it is known where they stand in the log.
#[derive(Debug)]
pub(crate) struct Noted {
    /// How many there are.
    records: i64,
    /// Those that are snapshots: their places in the write, and whose they are.
    snapshots: Vec<(i64, ShareKey)>,
}

impl Noted {
    /// Of the records of a write.
    pub(crate) fn of(records: &[StateRecord]) -> Self {
        let (mut end, mut snapshots) = (0, Vec::new());
        for record in records {
            if let StateRecord::Snapshot(key, Some(_)) = record {
                snapshots.push((end, key.clone()));
            }
            end += 1;
        }
        Self { records: end, snapshots }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Store {
    updates_per_snapshot: u32,
    entries: BTreeMap<ShareKey, Entry>,
    /// End of the log as far as it is known.
    end_offset: i64,
}

impl Store {
    /// A store that knows of nothing. A snapshot is written after that many updates.
    pub(crate) fn new(updates_per_snapshot: u32) -> Self {
        Self { updates_per_snapshot, entries: BTreeMap::new(), end_offset: 0 }
    }

    /// Takes a record of the log over.
    pub(crate) fn load(&mut self, offset: i64, record: StateRecord) {
        self.end_offset = self.end_offset.max(offset + 1);
        match record {
            StateRecord::Snapshot(key, None) => {
                self.entries.remove(&key);
            }
            StateRecord::Snapshot(key, Some(state)) => {
                self.entries.insert(key, Entry { state, updates: 0, snapshot_offset: Some(offset) });
            }
            StateRecord::Update(key, update) => {
                // without a snapshot before it the state was deleted, or the log is damaged
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.apply(&update);
                }
            }
        }
    }

    /// The records of a write are durable, from that offset on.
    pub(crate) fn on_persisted(&mut self, base_offset: i64, noted: &Noted) {
        self.end_offset = self.end_offset.max(base_offset + noted.records);
        for (place, key) in &noted.snapshots {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.snapshot_offset = Some(base_offset + place);
            }
        }
    }

    /// Sets a share partition's state anew; a state of a later epoch stays.
    pub(crate) fn initialize(
        &mut self,
        now_ms: i64,
        key: &ShareKey,
        state_epoch: i32,
        start_offset: i64,
    ) -> Result<StateRecord, StoreError> {
        let before = self.entries.get(key);
        if before.is_some_and(|before| state_epoch != -1 && before.state.state_epoch > state_epoch) {
            return Err(StoreError::Fenced);
        }
        let state = Snapshot {
            snapshot_epoch: before.map_or(0, |before| before.state.snapshot_epoch + 1),
            state_epoch,
            leader_epoch: LEADER_EPOCH,
            start_offset,
            delivery_complete_count: if start_offset == UNDECIDED { -1 } else { 0 },
            create_timestamp_ms: now_ms,
            write_timestamp_ms: now_ms,
            batches: Vec::new(),
        };
        let snapshot_offset = before.and_then(|before| before.snapshot_offset);
        self.entries.insert(key.clone(), Entry { state: state.clone(), updates: 0, snapshot_offset });
        Ok(StateRecord::Snapshot(key.clone(), Some(state)))
    }

    /// Takes changes of a share partition over.
    pub(crate) fn write(
        &mut self,
        now_ms: i64,
        key: &ShareKey,
        state_epoch: i32,
        write: &Write,
    ) -> Result<StateRecord, StoreError> {
        let entry = self.entries.get_mut(key).ok_or(StoreError::Uninitialized)?;
        if entry.state.state_epoch > state_epoch {
            return Err(StoreError::Fenced);
        }
        let update = Update {
            snapshot_epoch: entry.state.snapshot_epoch,
            leader_epoch: LEADER_EPOCH,
            start_offset: write.start_offset,
            delivery_complete_count: write.delivery_complete_count,
            batches: merge(&[], &write.batches, write.start_offset),
        };
        entry.apply(&update);
        if entry.updates > self.updates_per_snapshot {
            return Ok(entry.snapshot(now_ms, key));
        }
        Ok(StateRecord::Update(key.clone(), update))
    }

    /// A share partition's state.
    pub(crate) fn read(&self, key: &ShareKey) -> Result<&Snapshot, StoreError> {
        self.entries.get(key).map(|entry| &entry.state).ok_or(StoreError::Uninitialized)
    }

    /// A share partition's state in brief; what is not initialized is undecided.
    pub(crate) fn summary(&self, key: &ShareKey) -> Summary {
        let state = self.entries.get(key).map(|entry| &entry.state);
        Summary {
            start_offset: state.map_or(UNDECIDED, |state| state.start_offset),
            delivery_complete_count: state.map_or(-1, |state| state.delivery_complete_count),
            leader_epoch: state.map_or(LEADER_EPOCH, |state| state.leader_epoch),
        }
    }

    /// Forgets a share partition; `None`: it was not there.
    pub(crate) fn delete(&mut self, key: &ShareKey) -> Option<StateRecord> {
        self.entries.remove(key)?;
        Some(StateRecord::Snapshot(key.clone(), None))
    }

    /// Forgets all share partitions of topics that are gone.
    pub(crate) fn delete_topics(&mut self, is_gone: impl Fn(Uuid) -> bool) -> Vec<StateRecord> {
        let gone: Vec<_> = self.entries.keys().filter(|key| is_gone(key.topic)).cloned().collect();
        gone.iter().filter_map(|key| self.delete(key)).collect()
    }

    /// First offset of the log that is still needed.
    pub(crate) fn needed_from(&self) -> i64 {
        let offsets = self.entries.values().map(|entry| entry.snapshot_offset.unwrap_or(0));
        offsets.min().unwrap_or(self.end_offset)
    }

    /// Snapshots of share partitions that hold the log back because they have long not been written, if that is worth it.
    pub(crate) fn refresh(&mut self, now_ms: i64, older_than_ms: i64) -> Vec<StateRecord> {
        let needed = i64::try_from(self.entries.len()).unwrap_or(i64::MAX) + i64::from(self.updates_per_snapshot);
        if self.end_offset - self.needed_from() <= needed {
            return Vec::new();
        }
        let is_cold = |entry: &Entry| now_ms - entry.state.write_timestamp_ms >= older_than_ms;
        let cold = self.entries.iter_mut().filter(|(_, entry)| is_cold(entry));
        cold.map(|(key, entry)| entry.snapshot(now_ms, key)).collect()
    }
}

impl Entry {
    fn apply(&mut self, update: &Update) {
        let state = &mut self.state;
        if update.start_offset != UNDECIDED {
            state.start_offset = state.start_offset.max(update.start_offset);
        }
        state.delivery_complete_count = update.delivery_complete_count;
        state.batches = merge(&state.batches, &update.batches, state.start_offset);
        self.updates += 1;
    }

    fn snapshot(&mut self, now_ms: i64, key: &ShareKey) -> StateRecord {
        self.updates = 0;
        self.state.snapshot_epoch += 1;
        self.state.write_timestamp_ms = now_ms;
        StateRecord::Snapshot(key.clone(), Some(self.state.clone()))
    }
}

impl ShareKey {
    /// The text whose hash says to which partition of the topic it belongs.
    pub(crate) fn coordinator_key(&self) -> String {
        format!("{}:{}:{}", self.group, crate::kafka_uuid::kafka_uuid(self.topic), self.partition)
    }

    /// A share partition.
    pub(crate) fn new(group: &str, topic: Uuid, partition: i32) -> Self {
        Self { group: Rc::from(group), topic, partition }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::share::state::{DeliveryState, StateBatch};

    fn key(partition: i32) -> ShareKey {
        ShareKey::new("g", Uuid::from_u128(1), partition)
    }

    fn write(start_offset: i64, first: i64, last: i64) -> Write {
        let state = DeliveryState::Acknowledged;
        let batch = StateBatch { first_offset: first, last_offset: last, state, delivery_count: 1 };
        Write { id: None, start_offset, delivery_complete_count: 1, batches: vec![batch] }
    }

    /// What is there after loading the records.
    fn reloaded(records: &[StateRecord]) -> Store {
        let mut store = Store::new(2);
        for (offset, record) in (0..).zip(records) {
            let (key, value) = (record.key(), record.value());
            let decoded = StateRecord::decode(&key, value.as_deref()).expect("it was just encoded");
            store.load(offset, decoded.expect("it is of a known type"));
        }
        store
    }

    #[test]
    fn what_is_loaded_is_what_was() {
        let mut store = Store::new(2);
        let mut records =
            vec![store.initialize(5, &key(0), 3, UNDECIDED).unwrap(), store.initialize(5, &key(1), 3, 40).unwrap()];
        for offset in 0..7 {
            records.push(store.write(10 + offset, &key(0), 3, &write(offset, offset, offset + 1)).unwrap());
            let loaded = reloaded(&records);
            for partition in 0..2 {
                assert_eq!(loaded.read(&key(partition)), store.read(&key(partition)));
            }
        }
        let snapshots = |record: &&StateRecord| matches!(record, StateRecord::Snapshot(..));
        assert_eq!(records.iter().filter(snapshots).count(), 4, "two to begin with, then one for every third write");
        records.extend(store.delete(&key(0)));
        assert_eq!(reloaded(&records).read(&key(0)), Err(StoreError::Uninitialized));
        assert_eq!(store.summary(&key(0)).start_offset, UNDECIDED);
    }

    #[test]
    fn writes_of_an_older_epoch_are_fenced() {
        let mut store = Store::new(2);
        assert_eq!(store.write(0, &key(0), 3, &write(0, 0, 0)), Err(StoreError::Uninitialized));
        store.initialize(0, &key(0), 3, 0).unwrap();
        store.write(0, &key(0), 3, &write(0, 0, 0)).unwrap();
        store.initialize(0, &key(0), 4, 7).unwrap();
        assert_eq!(store.write(0, &key(0), 3, &write(0, 1, 1)), Err(StoreError::Fenced));
        assert_eq!(store.initialize(0, &key(0), 2, 0), Err(StoreError::Fenced));
        assert_eq!(store.read(&key(0)).unwrap().start_offset, 7);
    }

    #[test]
    fn log_is_needed_from_the_oldest_snapshot_on() {
        let mut store = Store::new(2);
        let mut offset = 0;
        let mut note = |store: &mut Store, record: StateRecord| {
            store.on_persisted(offset, &Noted::of(&[record]));
            offset += 1;
        };
        for partition in 0..2 {
            let record = store.initialize(0, &key(partition), 0, 0).unwrap();
            note(&mut store, record);
        }
        for at in 0..9 {
            let record = store.write(1000, &key(0), 0, &write(0, at, at)).unwrap();
            note(&mut store, record);
        }
        assert_eq!(store.needed_from(), 1, "partition 1 was not written since");
        let refreshed = store.refresh(1500, 1000);
        assert_eq!(refreshed.len(), 1);
        refreshed.into_iter().for_each(|record| note(&mut store, record));
        assert_eq!(store.needed_from(), 10);
        assert_eq!(store.refresh(9000, 1000), [], "nothing to gain");
        store.delete_topics(|_| true);
        assert_eq!(store.needed_from(), 12);
    }
}
