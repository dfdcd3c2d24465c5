//! A store in memory that behaves as etcd does: what a kept store is made of ([`super::kept`]), and for tests and simulations
//! of many nodes in virtual time.
//!
//! All nodes of a simulation share one [`Memory`]. It reads no clock: leases end when [`Memory::advance`] says that the time
//! has come. A [`Client`] is one node's way to it, and can be cut off or made to lose answers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use super::kept::file::Contents;
use super::restored::Progress;
use super::store::{
    Change, Compare, KeyValue, LeaseId, Operation, Outcome, Page, Store, StoreError, TRANSACTION_OPERATIONS_MAX,
    Transaction, Watch, Watched,
};

/// Entries of the log of a new etcd: one for each of its members.
const LOG_BEGINS: i64 = 3;

#[derive(Debug, Clone)]
struct Lease {
    ttl: Duration,
    ends: Duration,
}

/// The keys, their history, leases.
#[derive(Debug, Clone)]
pub struct Memory {
    identity: u64,
    revision: i64,
    /// Entries of the log that an etcd would have; none of a store that is kept otherwise.
    index: Option<i64>,
    compacted: i64,
    keys: BTreeMap<String, KeyValue>,
    /// Changes behind `compacted`, in order.
    history: VecDeque<Change>,
    /// The keys as they stood at `compacted`.
    base: BTreeMap<String, KeyValue>,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: LeaseId,
    now: Duration,
}

impl Memory {
    /// An empty one. Stores with another identity are others.
    pub fn new(identity: u64) -> Self {
        Self {
            identity,
            revision: 1,
            index: Some(LOG_BEGINS),
            compacted: 0,
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            base: BTreeMap::new(),
            leases: BTreeMap::new(),
            next_lease: 1,
            now: Duration::ZERO,
        }
    }

    /// One with these keys, as they stood at a revision; leases last for that long from now on. Those that no key was bound to
    /// are forgotten, but whoever was given one may still name it: new ones are counted from `first_lease` on, which none of a
    /// former life may have reached.
    pub fn restore(Contents { identity, revision, entries }: Contents, ttl: Duration, first_lease: LeaseId) -> Self {
        let ids = entries.iter().map(|entry| entry.lease).filter(|lease| *lease != 0);
        let leases = ids.map(|id| (id, Lease { ttl, ends: ttl })).collect();
        let keys: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        Self {
            identity,
            revision,
            index: None,
            compacted: revision,
            base: keys.clone(),
            keys,
            history: VecDeque::new(),
            leases,
            next_lease: first_lease,
            now: Duration::ZERO,
        }
    }

    /// Becomes what an etcd is that was restored from its present keys, leases and all: its log begins anew.
    #[cfg(test)]
    pub(crate) fn restore_etcd(&mut self) {
        self.index = Some(LOG_BEGINS);
    }

    fn log(&mut self) {
        self.index = self.index.map(|index| index + 1);
    }

    /// How far it is, if it stands for an etcd.
    pub fn progress(&self) -> Option<Progress> {
        Some(Progress { revision: self.revision, index: self.index? })
    }

    /// All of it, but for leases and history.
    pub fn contents(&self) -> Contents {
        Contents { identity: self.identity, revision: self.revision, entries: self.keys.values().cloned().collect() }
    }

    /// The revision of the last write.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Which store it is.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// Lets that much time go by: leases that were not kept alive end, and their keys with them.
    pub fn advance(&mut self, time: Duration) {
        self.now += time;
        let ended: Vec<_> = self.leases.iter().filter(|(_, lease)| lease.ends <= self.now).map(|(id, _)| *id).collect();
        ended.into_iter().for_each(|lease| self.end_lease(lease));
    }

    /// Does as etcd does when another of its members begins to lead: every lease lasts for its whole time again.
    pub fn renew_all_leases(&mut self) {
        let now = self.now;
        self.leases.values_mut().for_each(|lease| lease.ends = now + lease.ttl);
    }

    /// Does a transaction, or not.
    pub fn transact(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let Transaction { compares, operations } = transaction;
        if compares.len().max(operations.len()) > TRANSACTION_OPERATIONS_MAX {
            return Err(StoreError::Refused("etcdserver: too many operations in txn request".to_owned()));
        }
        self.check_keys(operations)?;
        self.log();
        if !compares.iter().all(|compare| self.holds(compare)) {
            return Ok(Outcome::Refused(self.revision));
        }
        for operation in operations {
            if let Operation::Put { lease, .. } = operation
                && *lease != 0
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::LeaseOver);
            }
        }
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        for operation in operations {
            match operation {
                Operation::Put { key, value, lease } => changes.push(self.put(revision, key, value, *lease)),
                Operation::Delete(key) => changes.extend(self.remove(revision, key)),
                Operation::DeletePrefix(prefix) => {
                    for key in self.with_prefix(prefix) {
                        changes.extend(self.remove(revision, &key));
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
            self.history.extend(changes);
        }
        Ok(Outcome::Done(self.revision))
    }

    /// Keys that begin with `prefix`, behind `after`, as they stood at `revision` (0: now).
    pub fn range(&self, prefix: &str, after: Option<&str>, revision: i64, limit: usize) -> Result<Page, StoreError> {
        if revision > self.revision {
            return Err(StoreError::Refused("etcdserver: mvcc: required revision is a future revision".to_owned()));
        }
        if revision != 0 && revision < self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let behind = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let mut entries: Vec<_> = match revision {
            0 => self.keys.values().filter(|entry| behind(&entry.key)).cloned().collect(),
            _ => self.keys_at(revision).into_values().filter(|entry| behind(&entry.key)).collect(),
        };
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Page { revision: self.revision, entries, more })
    }

    /// Changes from a revision on.
    pub fn changes(&self, from: i64) -> Result<Vec<Change>, StoreError> {
        if from <= self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        Ok(self.history.iter().filter(|change| change.revision() >= from).cloned().collect())
    }

    /// A new lease.
    pub fn grant(&mut self, ttl: Duration) -> LeaseId {
        self.log();
        let id = self.next_lease;
        self.next_lease += 1;
        self.leases.insert(id, Lease { ttl, ends: self.now + ttl });
        id
    }

    /// Lets a lease last for its whole time again; the revision.
    pub fn keep_alive(&mut self, lease: LeaseId) -> Result<i64, StoreError> {
        let now = self.now;
        let lease = self.leases.get_mut(&lease).ok_or(StoreError::LeaseOver)?;
        lease.ends = now + lease.ttl;
        Ok(self.revision)
    }

    /// Ends a lease, and its keys with it.
    pub fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.leases.contains_key(&lease).then(|| self.end_lease(lease)).ok_or(StoreError::LeaseOver)
    }

    /// Forgets history before a revision.
    pub fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        self.log();
        if revision <= self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        if revision > self.revision {
            return Err(StoreError::Refused("etcdserver: mvcc: required revision is a future revision".to_owned()));
        }
        self.base = self.keys_at(revision);
        self.compacted = revision;
        self.history.retain(|change| change.revision() > revision);
        Ok(())
    }

    fn end_lease(&mut self, lease: LeaseId) {
        self.log();
        self.leases.remove(&lease);
        let bound: Vec<_> =
            self.keys.values().filter(|entry| entry.lease == lease).map(|entry| entry.key.clone()).collect();
        if bound.is_empty() {
            return;
        }
        let revision = self.revision + 1;
        let changes: Vec<_> = bound.iter().filter_map(|key| self.remove(revision, key)).collect();
        self.revision = revision;
        self.history.extend(changes);
    }

    fn check_keys(&self, operations: &[Operation]) -> Result<(), StoreError> {
        let mut written: Vec<_> = operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::Put { key, .. } => Some(key),
                Operation::Delete(_) | Operation::DeletePrefix(_) => None,
            })
            .collect();
        written.sort();
        let deleted = |key: &str| {
            operations.iter().any(|operation| match operation {
                Operation::Put { .. } => false,
                Operation::Delete(deleted) => deleted == key,
                Operation::DeletePrefix(prefix) => key.starts_with(prefix.as_str()),
            })
        };
        match written.windows(2).any(|pair| pair[0] == pair[1]) || written.iter().any(|key| deleted(key)) {
            true => Err(StoreError::Refused("etcdserver: duplicate key given in txn request".to_owned())),
            false => Ok(()),
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let entry = self.keys.get(compare.key());
        match compare {
            Compare::Created(_, revision) => entry.map_or(0, |entry| entry.created) == *revision,
            Compare::NotCreated(_, revision) => entry.map_or(0, |entry| entry.created) != *revision,
            Compare::Exists(_) => entry.is_some(),
            Compare::Modified(_, revision) => entry.map_or(0, |entry| entry.modified) == *revision,
            // a key that is not there has no value that could be compared
            Compare::Value(_, value) => entry.is_some_and(|entry| entry.value == *value),
        }
    }

    fn put(&mut self, revision: i64, key: &str, value: &[u8], lease: LeaseId) -> Change {
        let before = self.keys.get(key);
        let entry = KeyValue {
            key: key.to_owned(),
            value: value.to_vec(),
            created: before.map_or(revision, |before| before.created),
            modified: revision,
            version: before.map_or(1, |before| before.version + 1),
            lease,
        };
        self.keys.insert(key.to_owned(), entry.clone());
        Change::Put(entry)
    }

    fn remove(&mut self, revision: i64, key: &str) -> Option<Change> {
        self.keys.remove(key)?;
        Some(Change::Gone { key: key.to_owned(), revision })
    }

    fn with_prefix(&self, prefix: &str) -> Vec<String> {
        self.keys.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// The keys as they stood at a revision that is not compacted away.
    fn keys_at(&self, revision: i64) -> BTreeMap<String, KeyValue> {
        let mut keys = self.base.clone();
        for change in self.history.iter().filter(|change| change.revision() <= revision) {
            match change {
                Change::Put(entry) => drop(keys.insert(entry.key.clone(), entry.clone())),
                Change::Gone { key, .. } => drop(keys.remove(key)),
            }
        }
        keys
    }
}

/// How often who waits for changes is told that there are none.
const LOOKS_EVERY: Duration = Duration::from_millis(1);

/// How answers come to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// They do.
    Open,
    /// The store hears nothing, the client hears nothing.
    Cut,
    /// The store hears and does what it is asked, the client hears nothing.
    Deaf,
}

/// One node's way to a [`Memory`] that several share.
#[derive(Debug, Clone)]
pub struct Client {
    memory: Arc<Mutex<Memory>>,
    line: Arc<Mutex<Line>>,
}

impl Client {
    /// A way of its own to that store.
    pub fn new(memory: Arc<Mutex<Memory>>) -> Self {
        Self { memory, line: Arc::new(Mutex::new(Line::Open)) }
    }

    /// Sets how answers come, to this client and its copies.
    pub fn set_line(&self, line: Line) {
        *self.line.lock().expect("no panic while locked") = line;
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("no panic while locked")
    }
}

impl OverMemory for Client {
    type Seen = MemoryWatch;

    fn call<T>(&self, call: impl FnOnce(&mut Memory) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let line = *self.line.lock().expect("no panic while locked");
        let lost = || Err(StoreError::Away("the line is cut".to_owned()));
        match line {
            Line::Open => call(&mut self.memory()),
            Line::Cut => lost(),
            Line::Deaf => {
                drop(call(&mut self.memory()));
                lost()
            }
        }
    }

    fn seen_from(&self, from: i64) -> MemoryWatch {
        MemoryWatch { client: self.clone(), from }
    }
}

/// A store that is a [`Memory`] behind something: the way there may fail, and what is done may have to be kept.
pub trait OverMemory: Send {
    /// What a watch is held by.
    type Seen: Watch;

    /// Has the memory do something.
    ///
    /// # Errors
    /// Those of the memory, and of the way there.
    fn call<T>(&self, body: impl FnOnce(&mut Memory) -> Result<T, StoreError>) -> Result<T, StoreError>;

    /// A watch of all that changes from a revision on.
    fn seen_from(&self, from: i64) -> Self::Seen;
}

impl<S: OverMemory> Store for S {
    type Watch = S::Seen;

    fn transact(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        self.call(|memory| memory.transact(transaction))
    }

    fn range(&mut self, prefix: &str, after: Option<&str>, revision: i64, limit: usize) -> Result<Page, StoreError> {
        self.call(|memory| memory.range(prefix, after, revision, limit))
    }

    fn watch(&mut self, from: i64) -> Result<S::Seen, StoreError> {
        self.call(|_| Ok(()))?;
        Ok(self.seen_from(from))
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.call(|memory| Ok(memory.grant(ttl)))
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<i64, StoreError> {
        self.call(|memory| memory.keep_alive(lease))
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(|memory| memory.revoke(lease))
    }

    fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        self.call(|memory| memory.compact(revision))
    }

    fn identity(&mut self) -> Result<u64, StoreError> {
        self.call(|memory| Ok(memory.identity()))
    }

    fn progress(&mut self) -> Result<Option<Progress>, StoreError> {
        self.call(|memory| Ok(memory.progress()))
    }
}

/// A watch of a [`Memory`]. Hardly waits: what has not happened yet is quiet.
#[derive(Debug)]
pub struct MemoryWatch {
    client: Client,
    from: i64,
}

impl Watch for MemoryWatch {
    fn next(&mut self, wait: Duration) -> Result<Watched, StoreError> {
        let from = self.from;
        let (revision, changes) = self.client.call(|memory| Ok((memory.revision(), memory.changes(from)?)))?;
        if changes.is_empty() {
            std::thread::sleep(wait.min(LOOKS_EVERY));
            return Ok(Watched::Quiet);
        }
        self.from = revision + 1;
        Ok(Watched::Changes(changes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::conformance;

    #[test]
    fn memory_does_what_a_store_must() {
        let memory = Arc::new(Mutex::new(Memory::new(1)));
        let mut client = Client::new(memory.clone());
        conformance::check(&mut client, &mut |time| memory.lock().unwrap().advance(time));
    }

    #[test]
    fn an_answer_can_be_lost_on_its_way() {
        let memory = Arc::new(Mutex::new(Memory::new(1)));
        let mut client = Client::new(memory.clone());
        client.set_line(Line::Cut);
        assert!(client.transact(&Transaction::new().put("a".to_owned(), vec![])).unwrap_err().is_unknown());
        assert_eq!(memory.lock().unwrap().revision(), 1);
        client.set_line(Line::Deaf);
        assert!(client.transact(&Transaction::new().put("a".to_owned(), vec![])).unwrap_err().is_unknown());
        assert_eq!(memory.lock().unwrap().revision(), 2);
    }
}
