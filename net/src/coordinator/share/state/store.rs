//! The state of all share partitions that belong to one partition of `__share_group_state`.
//!
//! It runs ahead of the log: every method that changes it gives the record that says so, to be appended in the order of
//! the calls. Should an append fail, the store is to be dropped and loaded anew. Before it serves, `load` is called for
//! every record of the log in order.

use std::{cmp::Ordering, collections::BTreeMap, rc::Rc};

use kafka_protocol::ResponseError;
use millrace_engine::api::{LEADER_EPOCH, TopicPartition};
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
    FencedState,
    /// A leader of the partition in a later epoch has read the state.
    #[error("the partition is led in a later epoch")]
    FencedLeader,
    /// Epochs, offsets or states that cannot be.
    #[error("the request makes no sense")]
    Senseless,
    /// There is no such partition, as far as is known here.
    #[error("the partition is not known")]
    UnknownPartition,
}

impl StoreError {
    /// What the broker hears that asks.
    pub(crate) fn code(self) -> ResponseError {
        match self {
            StoreError::Uninitialized | StoreError::Senseless => ResponseError::InvalidRequest,
            StoreError::FencedState => ResponseError::FencedStateEpoch,
            StoreError::FencedLeader => ResponseError::FencedLeaderEpoch,
            StoreError::UnknownPartition => ResponseError::UnknownTopicOrPartition,
        }
    }
}

/// A share partition's state in brief.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Epoch of the state, 0 if there is none.
    pub(crate) state_epoch: i32,
    /// First offset that is not done, or [`UNDECIDED`].
    pub(crate) start_offset: i64,
    /// Offsets from there on that are done; -1: not known.
    pub(crate) delivery_complete_count: i32,
    /// Epoch of the partition's leader.
    pub(crate) leader_epoch: i32,
}

/// The epochs by which writes of former leaders, and of former lives of the state, are told from those that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epochs {
    /// Of the state, as it was read.
    pub(crate) state: i32,
    /// In which the writer leads the partition.
    pub(crate) leader: i32,
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
        if before.is_some_and(|before| before.state.state_epoch > state_epoch) {
            return Err(StoreError::FencedState);
        }
        let state = Snapshot {
            snapshot_epoch: before.map_or(0, |before| before.state.snapshot_epoch + 1),
            state_epoch,
            // who was fenced by it stays fenced
            leader_epoch: before.map_or(LEADER_EPOCH, |before| before.state.leader_epoch),
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

    /// Takes changes of a share partition over, from its leader in an epoch. Where they are older than what is there, in
    /// where the share partition begins, they do not take it back.
    pub(crate) fn write(
        &mut self,
        now_ms: i64,
        key: &ShareKey,
        epochs: Epochs,
        write: &Write,
    ) -> Result<StateRecord, StoreError> {
        let entry = self.entries.get_mut(key).ok_or(StoreError::Uninitialized)?;
        if entry.state.leader_epoch > epochs.leader {
            return Err(StoreError::FencedLeader);
        }
        if entry.state.state_epoch > epochs.state {
            return Err(StoreError::FencedState);
        }
        let start_offset = entry.state.start_offset.max(write.start_offset);
        let update = Update {
            snapshot_epoch: entry.state.snapshot_epoch,
            leader_epoch: epochs.leader,
            start_offset,
            delivery_complete_count: entry.delivery_complete_count(write),
            batches: merge(&[], &write.batches, start_offset),
        };
        Ok(entry.update(now_ms, key, self.updates_per_snapshot, update))
    }

    /// A share partition's state, for its leader in an epoch: leaders of earlier epochs write nothing from now on. The
    /// record says so, if it was not said before.
    pub(crate) fn read(
        &mut self,
        now_ms: i64,
        key: &ShareKey,
        leader_epoch: i32,
    ) -> Result<(Snapshot, Option<StateRecord>), StoreError> {
        let entry = self.entries.get_mut(key).ok_or(StoreError::Uninitialized)?;
        if entry.state.leader_epoch > leader_epoch {
            return Err(StoreError::FencedLeader);
        }
        if entry.state.leader_epoch == leader_epoch {
            return Ok((entry.state.clone(), None));
        }
        let update = Update {
            snapshot_epoch: entry.state.snapshot_epoch,
            leader_epoch,
            start_offset: entry.state.start_offset,
            delivery_complete_count: entry.state.delivery_complete_count,
            batches: Vec::new(),
        };
        let record = entry.update(now_ms, key, self.updates_per_snapshot, update);
        Ok((entry.state.clone(), Some(record)))
    }

    /// A share partition's state in brief; what is not initialized is undecided.
    pub(crate) fn summary(&self, key: &ShareKey) -> Summary {
        let state = self.entries.get(key).map(|entry| &entry.state);
        Summary {
            state_epoch: state.map_or(0, |state| state.state_epoch),
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
    /// What is known to be done once a write counts: what is older than the start that is known tells nothing, and of two
    /// writes of the same start the one that knows more is the later one.
    fn delivery_complete_count(&self, write: &Write) -> i32 {
        match write.start_offset.cmp(&self.state.start_offset) {
            Ordering::Less => self.state.delivery_complete_count,
            Ordering::Equal => self.state.delivery_complete_count.max(write.delivery_complete_count),
            Ordering::Greater => write.delivery_complete_count,
        }
    }

    /// Takes an update over; answers the record that says so.
    fn update(&mut self, now_ms: i64, key: &ShareKey, updates_per_snapshot: u32, update: Update) -> StateRecord {
        self.apply(&update);
        if self.updates > updates_per_snapshot {
            return self.snapshot(now_ms, key);
        }
        StateRecord::Update(key.clone(), update)
    }

    fn apply(&mut self, update: &Update) {
        let state = &mut self.state;
        state.leader_epoch = state.leader_epoch.max(update.leader_epoch);
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

    /// The partition.
    pub(crate) fn place(&self) -> TopicPartition {
        TopicPartition { topic: self.topic, partition: self.partition }
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

    const EPOCHS: Epochs = Epochs { state: 3, leader: 0 };

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

    fn state(store: &Store, partition: i32) -> Option<&Snapshot> {
        store.entries.get(&key(partition)).map(|entry| &entry.state)
    }

    #[test]
    fn what_is_loaded_is_what_was() {
        let mut store = Store::new(2);
        let mut records =
            vec![store.initialize(5, &key(0), 3, UNDECIDED).unwrap(), store.initialize(5, &key(1), 3, 40).unwrap()];
        for offset in 0..7 {
            records.push(store.write(10 + offset, &key(0), EPOCHS, &write(offset, offset, offset + 1)).unwrap());
            let loaded = reloaded(&records);
            for partition in 0..2 {
                assert_eq!(state(&loaded, partition), state(&store, partition));
            }
        }
        let snapshots = |record: &&StateRecord| matches!(record, StateRecord::Snapshot(..));
        assert_eq!(records.iter().filter(snapshots).count(), 4, "two to begin with, then one for every third write");
        records.extend(store.delete(&key(0)));
        assert_eq!(state(&reloaded(&records), 0), None);
        assert_eq!(store.summary(&key(0)).start_offset, UNDECIDED);
    }

    #[test]
    fn writes_of_an_older_state_are_fenced() {
        let mut store = Store::new(2);
        assert_eq!(store.write(0, &key(0), EPOCHS, &write(0, 0, 0)), Err(StoreError::Uninitialized));
        store.initialize(0, &key(0), 3, 0).unwrap();
        store.write(0, &key(0), EPOCHS, &write(0, 0, 0)).unwrap();
        store.initialize(0, &key(0), 4, 7).unwrap();
        assert_eq!(store.write(0, &key(0), EPOCHS, &write(0, 1, 1)), Err(StoreError::FencedState));
        assert_eq!(store.initialize(0, &key(0), 2, 0), Err(StoreError::FencedState));
        assert_eq!(state(&store, 0).unwrap().start_offset, 7);
    }

    #[test]
    fn who_leads_later_fences_who_led_before_also_after_a_load() {
        let mut store = Store::new(2);
        let mut records = vec![store.initialize(0, &key(0), 3, 0).unwrap()];
        assert_eq!(store.read(0, &key(1), 5), Err(StoreError::Uninitialized));
        records.push(store.write(0, &key(0), Epochs { state: 3, leader: 4 }, &write(0, 0, 0)).unwrap());
        let (read, record) = store.read(0, &key(0), 5).unwrap();
        assert_eq!((read.start_offset, read.leader_epoch, read.batches.len()), (0, 5, 1));
        records.extend(record);
        assert_eq!(records.len(), 3);
        assert_eq!(store.read(0, &key(0), 5).unwrap().1, None, "it is known already");
        let mut stores = [reloaded(&records), store];
        for store in &mut stores {
            assert_eq!(store.read(0, &key(0), 4), Err(StoreError::FencedLeader));
            let former = Epochs { state: 3, leader: 4 };
            assert_eq!(store.write(0, &key(0), former, &write(0, 1, 1)), Err(StoreError::FencedLeader));
            assert_eq!(store.summary(&key(0)).leader_epoch, 5);
            store.initialize(0, &key(0), 4, 0).unwrap();
            assert_eq!(store.read(0, &key(0), 4), Err(StoreError::FencedLeader));
        }
        assert_eq!(state(&stores[0], 0), state(&stores[1], 0));
    }

    #[test]
    fn what_comes_late_does_not_take_the_start_back() {
        let mut store = Store::new(2);
        store.initialize(0, &key(0), 3, 0).unwrap();
        let done = |start, count| Write { delivery_complete_count: count, ..write(start, start + 1, start + 1) };
        let told =
            |store: &Store| (store.summary(&key(0)).start_offset, store.summary(&key(0)).delivery_complete_count);
        for (late, expected) in [(done(4, 2), (4, 2)), (done(4, 1), (4, 2)), (done(2, 9), (4, 2)), (done(6, 1), (6, 1))]
        {
            store.write(0, &key(0), EPOCHS, &late).unwrap();
            assert_eq!(told(&store), expected);
        }
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
            let record = store.write(1000, &key(0), Epochs { state: 0, leader: 0 }, &write(0, at, at)).unwrap();
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
