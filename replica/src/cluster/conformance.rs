//! What every store must do, run against the one in memory and against a real etcd.

use std::time::{Duration, Instant};

use super::store::{
    Change, Compare, KeyValue, LeaseId, Operation, Outcome, Store, StoreError, Transaction, Watch, Watched,
};

/// Lets time go by, for leases.
pub(super) type Wait<'a> = &'a mut dyn FnMut(Duration);

/// Between two looks.
const SHORT: Duration = Duration::from_millis(100);

fn done(outcome: Result<Outcome, StoreError>) -> i64 {
    match outcome {
        Ok(Outcome::Done(revision)) => revision,
        other => panic!("not done: {other:?}"),
    }
}

fn put(store: &mut impl Store, key: &str, value: &str) -> i64 {
    done(store.transact(&Transaction::new().put(key.to_owned(), value.into())))
}

fn read(store: &mut impl Store, key: &str) -> Option<KeyValue> {
    store.range(key, None, 0, 10).unwrap().entries.into_iter().find(|entry| entry.key == key)
}

/// All of it, in a store that has none of these keys.
pub(super) fn check(store: &mut impl Store, wait: Wait<'_>) {
    revisions_and_versions_are_counted(store);
    a_transaction_is_done_only_if_every_compare_holds(store);
    compares_of_what_is_not_there(store);
    a_transaction_is_one_revision(store);
    what_etcd_refuses_is_refused(store);
    a_page_is_read_at_one_revision(store);
    a_watch_tells_what_changed_since(store);
    history_ends_where_it_was_compacted(store);
    a_lease_takes_its_keys_along(store, wait);
}

fn revisions_and_versions_are_counted(store: &mut impl Store) {
    let first = put(store, "nodes/1", "a");
    let second = put(store, "nodes/1", "b");
    assert_eq!(second, first + 1);
    let entry = read(store, "nodes/1").unwrap();
    let expected = KeyValue {
        key: "nodes/1".to_owned(),
        value: b"b".to_vec(),
        created: first,
        modified: second,
        version: 2,
        lease: 0,
    };
    assert_eq!(entry, expected);
    done(store.transact(&Transaction::new().delete("nodes/1".to_owned())));
    assert_eq!(read(store, "nodes/1"), None);
    let again = put(store, "nodes/1", "c");
    let entry = read(store, "nodes/1").unwrap();
    assert_eq!((entry.created, entry.modified, entry.version), (again, again, 1));
}

fn a_transaction_is_done_only_if_every_compare_holds(store: &mut impl Store) {
    let first = put(store, "a", "1");
    let second = put(store, "a", "2");
    let key = || "a".to_owned();
    let holding = [
        Compare::Created(key(), first),
        Compare::NotCreated(key(), first - 1),
        Compare::Exists(key()),
        Compare::Modified(key(), second),
        Compare::Value(key(), b"2".to_vec()),
    ];
    let failing = [
        Compare::Created(key(), second),
        Compare::NotCreated(key(), first),
        Compare::Created(key(), 0),
        Compare::Modified(key(), first),
        Compare::Value(key(), b"1".to_vec()),
    ];
    for wrong in failing {
        let mut transaction =
            Transaction { compares: holding.to_vec(), ..Transaction::new() }.put("b".to_owned(), vec![]);
        transaction.require(wrong.clone());
        assert_eq!(store.transact(&transaction), Ok(Outcome::Refused(second)), "{wrong:?}");
        assert_eq!(read(store, "b"), None, "{wrong:?}");
    }
    let all = Transaction { compares: holding.to_vec(), ..Transaction::new() }.put("b".to_owned(), vec![]);
    assert_eq!(store.transact(&all), Ok(Outcome::Done(second + 1)));
    assert_eq!(read(store, "b").unwrap().value, Vec::<u8>::new());
}

fn compares_of_what_is_not_there(store: &mut impl Store) {
    let key = || "nowhere".to_owned();
    let outcome = |store: &mut _, compare| Store::transact(store, &Transaction::new().when(compare)).unwrap();
    for holds in [Compare::Created(key(), 0), Compare::NotCreated(key(), 5), Compare::Modified(key(), 0)] {
        assert!(matches!(outcome(store, holds.clone()), Outcome::Done(_)), "{holds:?}");
    }
    for fails in [Compare::Exists(key()), Compare::NotCreated(key(), 0), Compare::Value(key(), vec![])] {
        assert!(matches!(outcome(store, fails.clone()), Outcome::Refused(_)), "{fails:?}");
    }
}

fn a_transaction_is_one_revision(store: &mut impl Store) {
    put(store, "topics/1/0", "");
    put(store, "topics/1/1", "");
    put(store, "topics/10/0", "");
    let mut transaction = Transaction::new().put("topics/1".to_owned(), vec![1]).delete("a".to_owned());
    transaction.operations.push(Operation::DeletePrefix("topics/1/".to_owned()));
    let revision = done(store.transact(&transaction));
    assert_eq!(read(store, "topics/1").unwrap().modified, revision);
    let left = store.range("topics/", None, 0, 10).unwrap().entries;
    assert_eq!(left.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["topics/1", "topics/10/0"]);
    // what changes nothing is no revision
    assert_eq!(done(store.transact(&Transaction::new().delete("a".to_owned()))), revision);
}

fn what_etcd_refuses_is_refused(store: &mut impl Store) {
    let refused = |outcome: Result<Outcome, StoreError>| matches!(outcome, Err(StoreError::Refused(_)));
    let twice = Transaction::new().put("x".to_owned(), vec![]).put("x".to_owned(), vec![]);
    assert!(refused(store.transact(&twice)));
    let both = Transaction::new().put("x".to_owned(), vec![]).delete("x".to_owned());
    assert!(refused(store.transact(&both)));
    let of = |count: usize| (0..count).fold(Transaction::new(), |all, n| all.put(format!("many/{n}"), vec![]));
    done(store.transact(&of(128)));
    assert!(refused(store.transact(&of(129))));
    let mut compares = Transaction::new();
    (0..129).for_each(|n| compares.require(Compare::Created(format!("none/{n}"), 0)));
    assert!(refused(store.transact(&compares)));
    assert_eq!(read(store, "x"), None);
}

fn a_page_is_read_at_one_revision(store: &mut impl Store) {
    let first = store.range("many/", None, 0, 100).unwrap();
    assert_eq!((first.entries.len(), first.more), (100, true));
    let revision = first.revision;
    done(store.transact(&Transaction::new().delete("many/99".to_owned()).put("many/new".to_owned(), vec![])));
    put(store, "many/98", "changed");
    let last = &first.entries[99].key;
    let second = store.range("many/", Some(last), revision, 100).unwrap();
    assert_eq!((second.entries.len(), second.more), (28, false));
    let all: Vec<_> = first.entries.iter().chain(&second.entries).collect();
    assert!(all.is_sorted_by_key(|entry| &entry.key));
    assert!(all.iter().all(|entry| entry.modified <= revision && entry.value.is_empty()));
    assert!(second.revision > revision, "a page tells the store's revision, not the one that was asked for");
    assert!(matches!(store.range("many/", None, revision + 1_000_000, 1), Err(StoreError::Refused(_))));
}

fn next_changes(watch: &mut impl Watch) -> Vec<Change> {
    loop {
        match watch.next(Duration::from_secs(10)).unwrap() {
            Watched::Changes(changes) if changes.is_empty() => {}
            Watched::Changes(changes) => return changes,
            Watched::Quiet => panic!("nothing came"),
        }
    }
}

fn a_watch_tells_what_changed_since(store: &mut impl Store) {
    let first = put(store, "watched/1", "a");
    let second = done(
        store.transact(&Transaction::new().put("watched/2".to_owned(), b"b".to_vec()).delete("watched/1".to_owned())),
    );
    let mut watch = store.watch(first).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(next_changes(&mut watch));
    }
    assert!(matches!(&seen[0], Change::Put(entry) if (entry.key.as_str(), entry.modified) == ("watched/1", first)));
    assert!(matches!(&seen[1], Change::Put(entry) if (entry.value.as_slice(), entry.modified) == (b"b", second)));
    assert_eq!(seen[2], Change::Gone { key: "watched/1".to_owned(), revision: second });
    let third = put(store, "watched/3", "");
    assert_eq!(next_changes(&mut watch).iter().map(Change::revision).collect::<Vec<_>>(), [third]);
}

fn history_ends_where_it_was_compacted(store: &mut impl Store) {
    let before = put(store, "kept", "1");
    let at = put(store, "other", "1");
    let after = put(store, "kept", "2");
    store.compact(at).unwrap();
    assert!(matches!(store.range("kept", None, before, 1), Err(StoreError::Compacted(_))));
    assert_eq!(store.range("kept", None, at, 1).unwrap().entries[0].value, b"1");
    assert_eq!(store.range("kept", None, after, 1).unwrap().entries[0].value, b"2");
    let watched = store.watch(before).and_then(|mut watch| {
        loop {
            match watch.next(Duration::from_secs(10))? {
                Watched::Changes(changes) if changes.is_empty() => {}
                other => return Ok(other),
            }
        }
    });
    assert!(matches!(watched, Err(StoreError::Compacted(_))), "{watched:?}");
    assert!(store.compact(before).is_err());
}

fn bound(key: &str, lease: LeaseId) -> Transaction {
    Transaction { operations: vec![Operation::Put { key: key.to_owned(), value: vec![], lease }], ..Transaction::new() }
}

/// A lease of two seconds that is kept alive.
struct Kept {
    lease: LeaseId,
    /// When it was last asked to last that long again, and did.
    asked: Instant,
}

impl Kept {
    /// The shortest that every store gives.
    const TTL: Duration = Duration::from_secs(2);

    fn new(store: &mut impl Store) -> Self {
        let asked = Instant::now();
        Self { lease: store.grant(Self::TTL).unwrap(), asked }
    }

    /// What came of it; `None` if the lease is over, and may be: the machine was too busy to ask in time.
    fn unless_over<T>(&self, outcome: Result<T, StoreError>) -> Option<T> {
        match outcome {
            Err(StoreError::LeaseOver) if self.asked.elapsed() > Self::TTL => None,
            other => Some(other.expect("it was kept alive")),
        }
    }

    fn put(&self, store: &mut impl Store, key: &str) -> Option<i64> {
        self.unless_over(store.transact(&bound(key, self.lease))).map(|outcome| done(Ok(outcome)))
    }

    /// Keeps it alive; the store's revision.
    fn again(&mut self, store: &mut impl Store) -> Option<i64> {
        let asked = Instant::now();
        let revision = self.unless_over(store.keep_alive(self.lease))?;
        self.asked = asked;
        Some(revision)
    }
}

/// A lease that was kept alive for more than twice its time, with `leased/1` bound to it by that revision, and `leased/2` no
/// more. `None` if the machine was too busy to do so.
fn kept_alive(store: &mut impl Store, wait: Wait<'_>) -> Option<(LeaseId, i64)> {
    let mut kept = Kept::new(store);
    let revision = kept.put(store, "leased/1")?;
    kept.again(store)?;
    kept.put(store, "leased/2")?;
    let mut waited = Duration::ZERO;
    while waited <= 2 * Kept::TTL {
        assert!(kept.again(store)? > revision);
        wait(Kept::TTL / 2);
        waited += Kept::TTL / 2;
    }
    // written without the lease, a key does not go with it
    done(store.transact(&bound("leased/2", 0)));
    let entry = read(store, "leased/1");
    // that it can be kept alive now says that it was not over before
    kept.again(store)?;
    assert_eq!(entry.map(|entry| (entry.lease, entry.modified)), Some((kept.lease, revision)), "it was kept alive");
    Some((kept.lease, revision))
}

fn a_lease_takes_its_keys_along(store: &mut impl Store, wait: Wait<'_>) {
    let (lease, revision) =
        (0..20).find_map(|_| kept_alive(store, wait)).expect("once in a while there is time to keep it alive");
    let mut watch = store.watch(revision + 1).unwrap();
    let mut waited = Duration::ZERO;
    while read(store, "leased/1").is_some() {
        assert!(waited < Duration::from_secs(60), "the lease does not end");
        wait(SHORT);
        waited += SHORT;
    }
    assert_eq!(read(store, "leased/2").unwrap().lease, 0);
    assert_eq!(store.keep_alive(lease), Err(StoreError::LeaseOver));
    assert_eq!(store.transact(&bound("leased/3", lease)), Err(StoreError::LeaseOver));
    let gone = loop {
        let changes = next_changes(&mut watch);
        if let Some(gone) = changes.iter().find(|change| matches!(change, Change::Gone { .. })) {
            break gone.key().to_owned();
        }
    };
    assert_eq!(gone, "leased/1");
    let other = store.grant(Duration::from_secs(60)).unwrap();
    done(store.transact(&bound("leased/4", other)));
    store.revoke(other).unwrap();
    assert_eq!(read(store, "leased/4"), None);
    assert_eq!(store.revoke(other), Err(StoreError::LeaseOver));
}
