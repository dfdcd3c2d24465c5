//! A store that one of two nodes keeps itself, in place of etcd, and that the other reaches through it ([`mod@line`]): it behaves as
//! etcd does, is one file, and is there exactly as long as the node that keeps it.

pub mod file;
pub mod line;

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use uuid::Uuid;

use self::file::{Contents, StoreFile};
use super::{
    memory::{Memory, OverMemory},
    store::{LeaseId, StoreError, Watch, Watched},
};

/// How much time passes at most between two looks at the clock: while this process stands still, nobody can keep a lease
/// alive, and none shall end.
const TIME_STEP_MAX: Duration = Duration::from_secs(1);
/// Bits of a lease's id that are left for counting on.
const LEASE_ROOM_BITS: u32 = 2;

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub struct KeptStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something was written.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    memory: Memory,
    file: StoreFile,
    /// Why nothing can be written any more.
    failed: Option<String>,
    looked: Instant,
}

impl KeptStore {
    /// Opens a store with these contents, which its file is made to hold. Leases that were there last as long as `lease` says
    /// from now on: the file does not tell how long they lasted.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn open(path: &Path, contents: Contents, lease: Duration) -> io::Result<Self> {
        let file = StoreFile::create(path, &contents)?;
        let memory = Memory::restore(contents, lease, first_lease());
        let state = State { memory, file, failed: None, looked: Instant::now() };
        Ok(Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while locked")
    }
}

/// Where a life of the store counts its leases from: by chance, so that it meets no other's.
fn first_lease() -> LeaseId {
    let (chance, _) = Uuid::new_v4().as_u64_pair();
    i64::try_from(chance >> LEASE_ROOM_BITS).expect("it is shorter by some bits") + 1
}

impl OverMemory for KeptStore {
    type Seen = KeptWatch;

    /// Does something; what it changed is durable before anybody hears of it.
    fn call<T>(&self, body: impl FnOnce(&mut Memory) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut state = self.lock();
        let State { memory, file, failed, looked } = &mut *state;
        if let Some(reason) = failed {
            return Err(StoreError::Away(reason.clone()));
        }
        let now = Instant::now();
        let before = memory.revision();
        memory.advance(now.duration_since(*looked).min(TIME_STEP_MAX));
        *looked = now;
        let answer = body(memory);
        if memory.revision() > before {
            // a lease that ended is a revision of its own
            for revision in before + 1..=memory.revision() {
                let changes: Vec<_> =
                    memory.changes(revision)?.into_iter().filter(|change| change.revision() == revision).collect();
                if let Err(error) = file.append(revision, &changes, || memory.contents()) {
                    let reason = format!("the store's file cannot be written: {error}");
                    *failed = Some(reason.clone());
                    return Err(StoreError::Away(reason));
                }
            }
            self.0.changed.notify_all();
        }
        answer
    }

    fn seen_from(&self, from: i64) -> KeptWatch {
        KeptWatch { store: self.clone(), from }
    }
}

/// A watch of a [`KeptStore`].
#[derive(Debug)]
pub struct KeptWatch {
    store: KeptStore,
    from: i64,
}

impl Watch for KeptWatch {
    fn next(&mut self, wait: Duration) -> Result<Watched, StoreError> {
        let begun = Instant::now();
        let mut state = self.store.lock();
        loop {
            if let Some(reason) = &state.failed {
                return Err(StoreError::Away(reason.clone()));
            }
            let changes = state.memory.changes(self.from)?;
            if !changes.is_empty() {
                self.from = state.memory.revision() + 1;
                return Ok(Watched::Changes(changes));
            }
            let left = wait.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(Watched::Quiet);
            }
            state = self.store.0.changed.wait_timeout(state, left).expect("no panic while locked").0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{
        conformance,
        store::{Outcome, Store, Transaction},
    };

    const LEASE: Duration = Duration::from_secs(3);

    fn empty() -> Contents {
        Contents { identity: 7, revision: 1, entries: Vec::new() }
    }

    #[test]
    fn a_kept_store_does_what_a_store_must() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = KeptStore::open(&folder.path().join("store"), empty(), LEASE).unwrap();
        let others = store.clone();
        let mut sleep = |time: Duration| {
            let begun = Instant::now();
            while begun.elapsed() < time {
                std::thread::sleep(Duration::from_millis(20));
                others.call(|_| Ok(())).unwrap();
            }
        };
        conformance::check(&mut store, &mut sleep);
    }

    #[test]
    fn a_store_that_is_opened_again_has_all_that_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let mut store = KeptStore::open(&path, empty(), LEASE).unwrap();
        let lease = store.grant(LEASE).unwrap();
        let mut put = Transaction::new().put("a".to_owned(), vec![1]);
        put.operations.push(crate::cluster::store::Operation::Put { key: "n".to_owned(), value: vec![2], lease });
        let Outcome::Done(revision) = store.transact(&put).unwrap() else { panic!("refused") };
        let before = store.range("", None, 0, 10).unwrap();
        drop(store);
        let read = StoreFile::read(&path).unwrap().unwrap();
        let mut again = KeptStore::open(&path, read, LEASE).unwrap();
        assert_eq!(again.range("", None, 0, 10).unwrap(), before);
        assert_eq!((again.identity().unwrap(), before.revision), (7, revision));
        again.keep_alive(lease).expect("leases go on");
        assert_ne!(again.grant(LEASE).unwrap(), lease);
    }

    /// A lease that no key was bound to yet was given out again after a restart: two nodes would have shared it, and the key
    /// of one of them gone with the other's life.
    #[test]
    fn a_lease_is_given_out_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = || KeptStore::open(&folder.path().join("store"), empty(), LEASE).unwrap();
        let before = open().grant(LEASE).unwrap();
        let mut again = open();
        assert_ne!(again.grant(LEASE).unwrap(), before);
        assert_eq!(again.keep_alive(before), Err(StoreError::LeaseOver), "it is forgotten");
    }
}
