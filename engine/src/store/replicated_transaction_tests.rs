//! Transactions of partitions that are on other nodes too: what is answered when, whom a leader lets in for how long, and
//! what a follower makes of what it is sent.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{
    Store,
    transaction_tests::{Gate, aborted, append, batch, end, evict, fetch, id, in_store, marker, offsets, plain, send},
};
use crate::{
    api::{FetchPartition, LogError, ReadBound},
    batch::Outcome,
    io::{Io, sim::SimIo},
    replica_api::{Leadership, LogTap, SealedGroup},
    transactions::{Adds, Admission, AtomicPart},
};

const REPLICATED: Leadership = Leadership::Replicated { replicas: 3, in_sync: 3 };

async fn lead(store: &Rc<Store<SimIo>>, epoch: i32) {
    for partition in 0..2 {
        store.lead(id(partition), epoch, REPLICATED).await.unwrap();
    }
}

/// Until the log here has all that was appended.
async fn log(store: &Rc<Store<SimIo>>) {
    for partition in 0..2 {
        let cell = store.partition(id(partition)).unwrap();
        store.await_groups(&cell).await.unwrap();
    }
}

/// A batch of a transaction that was let in, which every replica gets.
async fn write(store: &Rc<Store<SimIo>>, producer: i64, epoch: i16) {
    store.let_in(id(0), producer, epoch).unwrap();
    let written = append(store, batch(producer, epoch, 0, "a"));
    let confirmed = async {
        log(store).await;
        store.advance_high_watermark(id(0), store.bounds_end(0)).unwrap();
    };
    futures_util::future::join(written, confirmed).await.0.unwrap();
}

impl Store<SimIo> {
    fn bounds_end(&self, partition: i32) -> i64 {
        self.position(id(partition)).unwrap().end
    }
}

#[test]
fn a_marker_is_answered_and_counts_once_every_replica_in_sync_has_it() {
    in_store(&[], |store| async move {
        lead(&store, 1).await;
        write(&store, 7, 0).await;
        let mut ended = Box::pin(end(&store, marker(7, 1, Outcome::Commit)));
        assert!((&mut ended).now_or_never().is_none());
        log(&store).await;
        assert!((&mut ended).now_or_never().is_none(), "followers lack it");
        assert_eq!(fetch(&store, 0).await.last_stable_offset, 0);
        store.advance_high_watermark(id(0), 2).unwrap();
        assert_eq!(ended.await, Ok(1));
        assert_eq!(fetch(&store, 0).await.last_stable_offset, 2);
    });
}

#[test]
fn what_is_written_at_once_is_answered_once_replicas_have_all_parts() {
    in_store(&[], |store| async move {
        lead(&store, 1).await;
        write(&store, 7, 0).await;
        let decision = AtomicPart::Batch { partition: id(1), batch: plain("decision").batch };
        let parts = vec![decision, AtomicPart::Marker(marker(7, 1, Outcome::Commit))];
        let taken = store.append_atomically(parts).unwrap();
        let mut waits: Vec<_> = taken.into_iter().map(|(_, wait)| Box::pin(wait.wait())).collect();
        log(&store).await;
        assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()));
        store.advance_high_watermark(id(1), 1).unwrap();
        assert_eq!((&mut waits[0]).now_or_never(), Some(Ok(())));
        assert!((&mut waits[1]).now_or_never().is_none());
        store.enter_epoch(&store.partition(id(0)).unwrap(), 2).unwrap();
        assert_eq!((&mut waits[1]).now_or_never(), Some(Err(LogError::NotLeader)), "nobody here knows");
    });
}

#[test]
fn who_was_let_in_by_one_leader_is_asked_for_by_the_next() {
    in_store(&[], |store| async move {
        let gate = Gate::set(&store);
        lead(&store, 1).await;
        write(&store, 7, 0).await;
        assert!(store.open_transactions()[0].confirmed);
        store.let_in(id(0), 8, 0).unwrap();
        store.follow(id(0), 2).await.unwrap();
        assert_eq!(store.let_in(id(0), 8, 0), Err(LogError::NotLeader));
        let refused = send(&store, batch(8, 0, 0, "b"), Adds::Verify).await;
        assert_eq!((refused, gate.asked.borrow().len()), (Err(LogError::NotLeader), 0));
        lead(&store, 3).await;
        assert!(!store.open_transactions()[0].confirmed, "its coordinator may not know of it");
        let sent = [(8, 0), (7, 1)].map(|(producer, sequence)| {
            Box::pin(send(&store, batch(producer, 0, sequence, "b"), Adds::Verify)).shared()
        });
        assert_eq!(gate.asked.borrow().len(), 2);
        assert_eq!(store.bounds_end(0), 1);
        for _ in &sent {
            gate.answer(Ok(Admission::Confirmed));
        }
        while store.bounds_end(0) < 3 {
            store.io.yield_now().await;
        }
        log(&store).await;
        store.advance_high_watermark(id(0), 3).unwrap();
        let [first, second] = sent;
        assert!(first.await.is_ok() && second.await.is_ok());
    });
}

/// A coordinator's yes to a leader that was another in between let a batch in behind the marker that ended its transaction.
#[test]
fn an_answer_from_before_another_leader_does_not_count() {
    in_store(&[], |store| async move {
        let gate = Gate::set(&store);
        lead(&store, 1).await;
        let mut held = Box::pin(send(&store, batch(7, 0, 0, "a"), Adds::Verify));
        assert!((&mut held).now_or_never().is_none());
        store.follow(id(0), 2).await.unwrap();
        assert_eq!(held.await, Err(LogError::NotLeader), "it does not wait for an answer in vain");
        lead(&store, 3).await;
        let mut again = Box::pin(send(&store, batch(7, 0, 0, "a"), Adds::Verify));
        gate.answer(Ok(Admission::Confirmed));
        while gate.asked.borrow().len() < 2 {
            store.io.yield_now().await;
        }
        assert_eq!((store.bounds_end(0), (&mut again).now_or_never()), (0, None));
        gate.answer(Err(LogError::TransactionAbortable("not in it")));
        assert_eq!(again.await, Err(LogError::TransactionAbortable("not in it")));
    });
}

/// What a leader's groups hold of the first partition.
#[derive(Default)]
struct Sent(RefCell<Vec<(i64, Bytes)>>);

impl LogTap for Sent {
    fn sealed(&self, group: &SealedGroup) {
        for run in group.runs.iter().filter(|run| run.partition == id(0)) {
            self.0.borrow_mut().push((run.base_offset, Bytes::copy_from_slice(run.batches.as_slice().unwrap())));
        }
    }

    fn progressed(&self, _: crate::api::TopicPartition, _: i64, _: i64) {}
}

/// A leader's groups with transactions: two are aborted, one is committed, one stays open.
fn leaders_groups(settings: &'static [(&str, &str)]) -> Vec<(i64, Bytes)> {
    let sent = Rc::<RefCell<Vec<(i64, Bytes)>>>::default();
    let kept = sent.clone();
    in_store(settings, |store| async move {
        let tap = Rc::<Sent>::default();
        store.attach_tap(tap.clone());
        lead(&store, 1).await;
        for (producer, outcome) in [(1, Some(Outcome::Abort)), (2, Some(Outcome::Commit)), (3, None)] {
            write(&store, producer, 0).await;
            if let Some(outcome) = outcome {
                let mut ended = Box::pin(end(&store, marker(producer, 1, outcome)));
                assert!((&mut ended).now_or_never().is_none());
                log(&store).await;
                store.advance_high_watermark(id(0), store.bounds_end(0)).unwrap();
                ended.await.unwrap();
            }
        }
        kept.replace(tap.0.take());
    });
    sent.take()
}

#[test]
fn a_follower_knows_of_transactions_what_its_leader_does_also_after_a_cut() {
    let groups = leaders_groups(&[]);
    in_store(&[], |store| async move {
        store.follow(id(0), 1).await.unwrap();
        for (base, batches) in &groups {
            store.append_as_follower(id(0), 1, *base, batches).unwrap().kept().await.unwrap();
        }
        store.advance_high_watermark(id(0), 3).unwrap();
        let open = |store: &Rc<Store<SimIo>>| {
            let open = store.open_transactions();
            open.iter().map(|open| (open.producer_id, open.first_offset, open.confirmed)).collect::<Vec<_>>()
        };
        assert_eq!(open(&store), [(3, 4, false)]);
        let part = FetchPartition {
            partition: id(0),
            offset: 0,
            max_bytes: 1 << 20,
            leader_epoch: -1,
            bound: ReadBound::LastStable,
        };
        let fetched = store.read(&part, 1 << 20, true).await.unwrap();
        assert_eq!((offsets(&fetched), aborted(&fetched), fetched.last_stable_offset), (vec![0, 1], vec![(1, 0)], 2));
        let coordinators = |store: &Rc<Store<SimIo>>| {
            let active = store.active_producers(id(0)).unwrap();
            active.iter().map(|one| (one.producer_id, one.coordinator_epoch)).collect::<Vec<_>>()
        };
        assert_eq!(coordinators(&store), [(1, 3), (2, 3), (3, -1)]);
        // The commit of the second one is cut off: it is open again, and the third one never was.
        store.follow(id(0), 2).await.unwrap();
        store.truncate(id(0), 3, crate::replica_api::CutBytes::Drop).await.unwrap();
        assert_eq!(open(&store), [(2, 2, false)]);
        assert_eq!(coordinators(&store), [(1, 3), (2, -1)]);
    });
}

/// A round notes of a producer what is left of it in the end: a batch whose epoch a marker has ended is not in the manifest.
#[test]
fn a_batch_before_a_marker_that_is_cut_off_is_known_again() {
    in_store(&[], |store| async move {
        lead(&store, 1).await;
        write(&store, 7, 0).await;
        store.materialise_all().await;
        let second = append(&store, batch(7, 0, 1, "b"));
        let confirmed = async {
            log(&store).await;
            store.advance_high_watermark(id(0), 2).unwrap();
        };
        futures_util::future::join(second, confirmed).await.0.unwrap();
        let mut ended = Box::pin(end(&store, marker(7, 1, Outcome::Commit)));
        assert!((&mut ended).now_or_never().is_none());
        log(&store).await;
        store.materialise_all().await;
        store.follow(id(0), 2).await.unwrap();
        store.truncate(id(0), 2, crate::replica_api::CutBytes::Drop).await.unwrap();
        let known = store.active_producers(id(0)).unwrap();
        let known: Vec<_> = known.iter().map(|one| (one.producer_id, one.producer_epoch, one.last_sequence)).collect();
        assert_eq!(known, [(7, 0, 1)], "else the second batch would be taken twice");
    });
}

/// A transaction that is aborted, and enough behind it that its segment ends. All is in segments, and in memory no more.
async fn abort_in_a_segment_that_ends(store: &Rc<Store<SimIo>>, producer: i64) {
    store.let_in(id(0), producer, 0).unwrap();
    append(store, batch(producer, 0, 0, "a")).await.unwrap();
    end(store, marker(producer, 1, Outcome::Abort)).await.unwrap();
    for key in ["b", "c", "d", "e", "f"] {
        append(store, plain(key)).await.unwrap();
    }
    store.materialise_all().await;
    evict(store);
}

/// A reader looked up the aborted transactions of a segment that was cut meanwhile, and kept them for all who came later: these
/// were told nothing of what was aborted behind the cut, and took its records for committed.
#[test]
fn aborted_transactions_that_were_cut_off_while_they_were_read_are_not_told_later() {
    in_store(&[("internal.segment.bytes", "1500")], |store| async move {
        append(&store, plain("p")).await.unwrap();
        abort_in_a_segment_that_ends(&store, 1).await;
        let cell = store.partition(id(0)).unwrap();
        let name = cell.borrow().segments().all()[0].name();
        let mut reading = Box::pin(store.aborted_between(&cell, 0, 3));
        assert!(reading.as_mut().now_or_never().is_none(), "it reads the footer");
        store.follow(id(0), 1).await.unwrap();
        store.truncate(id(0), 1, crate::replica_api::CutBytes::Drop).await.unwrap();
        assert_eq!(reading.await.unwrap().len(), 1);
        store.lead(id(0), 2, Leadership::Alone).await.unwrap();
        abort_in_a_segment_that_ends(&store, 2).await;
        let again = cell.borrow().segments().all()[0].clone();
        assert!(again.name() == name && again.sealed);
        assert_eq!(aborted(&fetch(&store, 0).await), [(2, 1)]);
    });
}

/// A coordinator decides on what every replica has: a power cut may not take a part of it from one of them.
#[test]
fn a_follower_flushes_what_is_of_a_transaction_whatever_its_topic_asks() {
    const WRITTEN: &[(&str, &str)] = &[("flush.messages", "1000")];
    let groups = leaders_groups(WRITTEN);
    in_store(WRITTEN, |store| async move {
        store.follow(id(0), 1).await.unwrap();
        for (base, batches) in &groups {
            store.append_as_follower(id(0), 1, *base, batches).unwrap().kept().await.unwrap();
            let position = store.position(id(0)).unwrap();
            assert_eq!((position.durable, position.written), (position.end, position.end));
        }
        let plain = plain_batch_at(5);
        store.append_as_follower(id(0), 1, 5, &plain).unwrap().kept().await.unwrap();
        let position = store.position(id(0)).unwrap();
        assert_eq!((position.durable, position.written), (5, 6), "others need not be");
    });
}

fn plain_batch_at(offset: i64) -> Bytes {
    let mut bytes = plain("p").batch.to_vec();
    crate::batch::assign(&mut bytes, offset, 1, None);
    bytes.into()
}
