//! Answers and requests that are large.

use super::super::framing::MESSAGE_BYTES_MAX;
use super::*;
use crate::cluster::store::{Change, TRANSACTION_BYTES_MAX, Watch, Watched};

const LARGE: usize = 1_000_000;

fn put(key: String, bytes: usize) -> Transaction {
    Transaction::new().put(key, vec![7; bytes])
}

/// What a watch tells of, until that is as much.
fn revisions(watch: &mut EtcdWatch, count: usize) -> Vec<i64> {
    let mut revisions = Vec::new();
    while revisions.len() < count {
        match watch.next(Duration::from_secs(10)).unwrap() {
            Watched::Changes(changes) => revisions.extend(changes.iter().map(Change::revision)),
            Watched::Quiet => panic!("nothing came"),
        }
    }
    revisions
}

/// More than gRPC takes as one message unless told otherwise, which is 4 MiB.
#[test]
fn large_answers_come() {
    let Some(server) = Server::start(&[]) else { return };
    let mut etcd = Etcd::new(&server.options()).unwrap();
    for number in 0..12 {
        etcd.transact(&put(format!("{number:02}"), LARGE)).unwrap();
    }
    let page = etcd.range("", None, 0, 100).unwrap();
    assert_eq!(page.entries.len(), 12);
    assert!(page.entries.iter().all(|entry| entry.value == vec![7; LARGE]));
    assert_eq!(revisions(&mut etcd.watch(2).unwrap(), 12), (2..14).collect::<Vec<_>>());
}

/// What happened while nobody watched comes at once: more than one message may have, but for etcd's cutting it.
#[test]
fn a_watch_may_lag_by_more_than_one_message_has() {
    let Some(server) = Server::start(&[]) else { return };
    let mut etcd = Etcd::new(&server.options()).unwrap();
    let count = MESSAGE_BYTES_MAX / LARGE + 2;
    for number in 0..count {
        etcd.transact(&put(format!("{number:03}"), LARGE)).unwrap();
    }
    let last = 2 + i64::try_from(count).unwrap();
    assert_eq!(revisions(&mut etcd.watch(2).unwrap(), count), (2..last).collect::<Vec<_>>());
}

#[test]
fn the_largest_transaction_is_taken_and_what_is_too_large_refused() {
    let Some(server) = Server::start(&[]) else { return };
    let mut etcd = Etcd::new(&server.options()).unwrap();
    let largest = put("a".to_owned(), TRANSACTION_BYTES_MAX - 1);
    assert!(largest.fits());
    etcd.transact(&largest).unwrap();
    for bytes in [1_600_000, 10_000_000] {
        let outcome = etcd.transact(&put("b".to_owned(), bytes));
        assert!(matches!(outcome, Err(StoreError::Refused(_))), "{bytes}: {outcome:?}");
    }
    etcd.transact(&put("b".to_owned(), 1)).unwrap();
}

#[test]
fn a_watch_that_nobody_reads_loses_nothing() {
    let Some(server) = Server::start(&[]) else { return };
    let mut etcd = Etcd::new(&server.options()).unwrap();
    let mut watch = etcd.watch(2).unwrap();
    // several times what the connection takes ahead, in small pieces
    for number in 0..400 {
        etcd.transact(&put(format!("small/{number}"), 1)).unwrap();
    }
    for number in 0..20 {
        etcd.transact(&put(format!("large/{number}"), LARGE)).unwrap();
    }
    assert_eq!(revisions(&mut watch, 420), (2..422).collect::<Vec<_>>());
}
