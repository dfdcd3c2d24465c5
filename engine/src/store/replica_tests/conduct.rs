//! What a replicated partition answers, to whom, and when: one question a test.

use std::{cell::Cell, time::Duration};

use futures_util::FutureExt;

use super::*;
use crate::format::segment::SegmentName;

/// A store with one replicated partition, for the length of a body.
fn with_store(settings: &[(&str, &str)], body: impl AsyncFnOnce(Rc<Store<SimIo>>, TopicPartition)) {
    with_disk(settings, async |_, store, id| body(store, id).await);
}

/// The same, and its disk.
fn with_disk(settings: &[(&str, &str)], body: impl AsyncFnOnce(&Sim, Rc<Store<SimIo>>, TopicPartition)) {
    let (sim, world) = (Sim::new(3), World::new(0, settings));
    sim.run_until(async {
        sim.io().create_dir(Path::new("/d")).await.unwrap();
        let store = open(sim.io(), 1, &world).await;
        body(&sim, store, world.id).await;
    })
    .unwrap();
}

async fn open(io: SimIo, run: u64, world: &World) -> Rc<Store<SimIo>> {
    let known = Known::from([(world.id, world.config.clone())]);
    let replicated = Rc::new([world.id].into());
    let options = StoreOptions { replicated, reserve_bytes: 1, ..StoreOptions::of_test(run) };
    Store::open(io, options, &known).await.unwrap_or_else(|error| panic!("{error}"))
}

fn one(producer: i64, sequence: i32) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, 0).producer(producer, 0, sequence);
    let value = Some(Bytes::from_static(b"value"));
    builder.push(&Record { offset: 0, timestamp: 5, key: None, value, headers: vec![] });
    builder.finish().into()
}

type Answer = (i64, Option<crate::store::append::Wait>);

async fn produce(store: &Store<SimIo>, id: TopicPartition, sequence: i32, acks: Acks) -> Result<Answer, LogError> {
    let part = ProducePartition { partition: id, batch: one(7, sequence) };
    let (produced, wait) = store.append(part, AppendOrigin::Client, acks).appended().await?;
    Ok((produced.base_offset, wait))
}

const THREE: Leadership = Leadership::Replicated { replicas: 3, in_sync: 3 };

#[test]
fn who_wants_all_replicas_waits_for_the_high_watermark_and_who_wants_the_leader_does_not() {
    with_store(&[("min.insync.replicas", "2")], async |store, id| {
        assert_eq!(
            produce(&store, id, 0, Acks::All).await.err(),
            Some(LogError::NotLeader),
            "nobody has said who leads"
        );
        store.lead(id, 1, THREE).await.unwrap();
        let (_, leader) = produce(&store, id, 0, Acks::Leader).await.unwrap();
        leader.unwrap().wait().await.unwrap();
        let mut all = Vec::new();
        for sequence in 1..4 {
            all.push(produce(&store, id, sequence, Acks::All).await.unwrap().1.unwrap());
        }
        let again = produce(&store, id, 1, Acks::All).await.unwrap().1.unwrap();
        store.await_groups(&store.partition(id).unwrap()).await.unwrap();
        assert_eq!(store.bounds(id).unwrap().1, 0, "consumers see nothing yet");
        assert_eq!(store.advance_high_watermark(id, 2), Ok(2));
        assert_eq!(all.remove(0).wait().await, Ok(()));
        assert_eq!(again.wait().await, Ok(()), "one that comes again waits for as much");
        store.set_in_sync(id, 1).unwrap();
        assert_eq!(all.remove(0).wait().await, Err(LogError::NotEnoughReplicasAfterAppend));
        assert_eq!(produce(&store, id, 4, Acks::All).await.err(), Some(LogError::NotEnoughReplicas));
        store.set_in_sync(id, 3).unwrap();
        let (_, lost) = produce(&store, id, 4, Acks::All).await.unwrap();
        store.follow(id, 2).await.unwrap();
        assert_eq!(lost.unwrap().wait().await, Err(LogError::NotLeader));
        assert_eq!(produce(&store, id, 5, Acks::Leader).await.err(), Some(LogError::NotLeader));
    });
}

#[test]
fn what_consumers_do_not_see_is_read_for_followers_only() {
    with_store(&[], async |store, id| {
        store.lead(id, 1, THREE).await.unwrap();
        for sequence in 0..3 {
            produce(&store, id, sequence, Acks::Leader).await.unwrap().1.unwrap().wait().await.unwrap();
        }
        store.materialise_all().await;
        let bound = ReadBound::HighWatermark;
        let part = |offset| FetchPartition { partition: id, offset, max_bytes: 9_000, leader_epoch: 1, bound };
        assert!(store.read(&part(0), 9_000, true).await.unwrap().records.is_empty());
        let unseen = store.read(&part(1), 9_000, true).await;
        assert!(unseen.unwrap().records.is_empty(), "a consumer that saw more of another leader waits");
        let beyond = store.read(&part(4), 9_000, true).await;
        assert!(matches!(beyond, Err(LogError::OffsetOutOfRange { .. })));
        let caught = store.read_for_follower(id, 1, 9_000).await.unwrap();
        assert_eq!((caught.end_offset, caught.high_watermark), (3, 0));
        store.advance_high_watermark(id, 2).unwrap();
        assert_eq!(store.read(&part(0), 9_000, true).await.unwrap().records.end_offset(), Some(2));
        let stale = FetchPartition { leader_epoch: 0, ..part(0) };
        assert_eq!(store.read(&stale, 9_000, true).await.err(), Some(LogError::FencedLeaderEpoch));
    });
}

#[test]
fn a_new_leader_does_not_tell_the_end_before_it_knows_what_consumers_may_have_seen() {
    with_store(&[], async |store, id| {
        store.lead(id, 1, THREE).await.unwrap();
        produce(&store, id, 0, Acks::Leader).await.unwrap().1.unwrap().wait().await.unwrap();
        store.lead(id, 2, THREE).await.unwrap();
        let latest = async || store.list_offset(id, OffsetSpec::Latest, ReadBound::HighWatermark).await;
        assert_eq!(latest().await.err(), Some(LogError::OffsetNotAvailable));
        store.advance_high_watermark(id, 1).unwrap();
        assert_eq!(latest().await.unwrap().offset, 1);
    });
}

#[test]
fn offsets_are_told_with_the_leader_epoch_of_what_is_there() {
    with_store(&[], async |store, id| {
        for (epoch, sequence) in [(1, 0), (4, 1)] {
            store.lead(id, epoch, THREE).await.unwrap();
            produce(&store, id, sequence, Acks::Leader).await.unwrap().1.unwrap().wait().await.unwrap();
        }
        store.lead(id, 6, THREE).await.unwrap();
        store.advance_high_watermark(id, 2).unwrap();
        let found = async |spec| {
            let found = store.list_offset(id, spec, ReadBound::HighWatermark).await.unwrap();
            (found.offset, found.leader_epoch)
        };
        assert_eq!(found(OffsetSpec::Earliest).await, (0, 1));
        assert_eq!(found(OffsetSpec::Timestamp(5)).await, (0, 1));
        assert_eq!(found(OffsetSpec::Latest).await, (2, 6), "where the next record comes");
        assert_eq!(found(OffsetSpec::Timestamp(6)).await, (-1, -1));
        store.follow(id, 7).await.unwrap();
        store.trim_as_follower(id, 1).await.unwrap();
        assert_eq!(found(OffsetSpec::Earliest).await, (1, 4));
    });
}

/// A process that was stopped for longer than its lease went on as leader for as long as it had not heard of the next one.
#[test]
fn who_may_not_lead_any_more_takes_and_tells_nothing_as_leader() {
    struct Lease(Cell<bool>);
    impl LeaderLease for Lease {
        fn holds(&self) -> bool {
            self.0.get()
        }
    }
    with_store(&[], async |store, id| {
        let lease = Rc::new(Lease(true.into()));
        store.attach_lease(lease.clone());
        store.lead(id, 1, THREE).await.unwrap();
        produce(&store, id, 0, Acks::Leader).await.unwrap().1.unwrap().wait().await.unwrap();
        let bound = ReadBound::HighWatermark;
        let part = FetchPartition { partition: id, offset: 0, max_bytes: 9_000, leader_epoch: 1, bound };
        lease.0.set(false);
        assert_eq!(produce(&store, id, 1, Acks::Leader).await.err(), Some(LogError::NotLeader));
        assert_eq!(produce(&store, id, 0, Acks::Leader).await.err(), Some(LogError::NotLeader), "a repetition too");
        assert_eq!(store.read(&part, 9_000, true).await.err(), Some(LogError::NotLeader));
        assert_eq!(store.check_leads(id, 1), Err(LogError::NotLeader));
        assert!(store.refuses(&[part]), "who waits hears it");
        lease.0.set(true);
        assert!(produce(&store, id, 1, Acks::Leader).await.is_ok(), "it was not replaced");
        lease.0.set(false);
        store.follow(id, 2).await.unwrap();
        assert!(store.read(&FetchPartition { leader_epoch: 2, ..part }, 9_000, true).await.is_ok(), "as a follower");
    });
}

#[test]
fn the_tap_hears_of_a_group_before_it_is_written_and_of_progress_behind_it() {
    #[derive(Default)]
    struct Heard(RefCell<Vec<String>>);
    impl LogTap for Heard {
        fn sealed(&self, group: &SealedGroup) {
            for run in &group.runs {
                let (of, bytes) = (run.leader_epoch, run.batches.as_slice().unwrap());
                let epochs: Vec<_> = batches(bytes).map(|batch| batch.unwrap().0.leader_epoch).collect();
                self.0.borrow_mut().push(format!("{}..{} of {of}: {epochs:?}", run.base_offset, run.end_offset));
            }
        }

        fn progressed(&self, _: TopicPartition, written: i64, durable: i64) {
            self.0.borrow_mut().push(format!("{written} {durable}"));
        }
    }
    with_store(&[], async |store, id| {
        let heard = Rc::<Heard>::default();
        store.attach_tap(heard.clone());
        store.lead(id, 4, THREE).await.unwrap();
        produce(&store, id, 0, Acks::Leader).await.unwrap().1.unwrap().wait().await.unwrap();
        store.follow(id, 5).await.unwrap();
        let mut sent = one(7, 1).to_vec();
        assign(&mut sent, 1, 5, None);
        store.append_as_follower(id, 5, 1, &sent.into()).unwrap().kept().await.unwrap();
        assert_eq!(*heard.0.borrow(), ["0..1 of 4: [4]", "1 1", "2 2"], "what is followed is not passed on");
    });
}

/// Where the log starts inside a batch, a cut can only land before it.
#[test]
fn a_cut_inside_the_batch_that_the_log_starts_in_leaves_nothing() {
    with_store(&[], async |store, id| {
        store.follow(id, 1).await.unwrap();
        let mut sent = BatchBuilder::new(Codec::None, 0);
        for offset in 0..4 {
            sent.push(&Record { offset, timestamp: 5, key: None, value: Some("v".into()), headers: vec![] });
        }
        let mut sent = sent.finish();
        assign(&mut sent, 0, 1, None);
        store.append_as_follower(id, 1, 0, &sent.into()).unwrap().kept().await.unwrap();
        store.trim_as_follower(id, 2).await.unwrap();
        let position = store.truncate(id, 3, CutBytes::Drop).await.unwrap();
        assert_eq!((position.log_start, position.end, position.last_epoch), (0, 0, -1));
        store.clear([id]);
        assert_eq!(store.lead(id, 1, THREE).await.unwrap().end, 0);
    });
}

/// A partition moved to other nodes while a consumer read from here: in the moments in which what was here was removed, the
/// consumer heard that its offset was out of range, and began at the start of the log again.
#[test]
fn nobody_is_told_that_an_offset_is_out_of_range_while_a_partition_is_cleared() {
    with_store(&[], async |store, id| {
        store.lead(id, 0, THREE).await.unwrap();
        for sequence in 0..3 {
            let wait = produce(&store, id, sequence, Acks::Leader).await.unwrap().1.unwrap();
            wait.wait().await.unwrap();
        }
        store.advance_high_watermark(id, 3).unwrap();
        store.materialise_all().await; // so that there are files to be removed, which takes time
        let bound = ReadBound::HighWatermark;
        let part = FetchPartition { partition: id, offset: 3, max_bytes: 1000, leader_epoch: 0, bound };
        assert!(store.read(&part, 1000, true).await.is_ok());
        store.clear([id]);
        let cell = store.partition(id).unwrap();
        let mut told = Vec::new();
        while cell.borrow().replication().clearing().is_some() {
            told.push(store.read(&part, 1000, true).await.err());
            store.io.sleep(Duration::from_micros(1)).await;
        }
        assert!(told.len() > 2, "it took some time: {told:?}");
        told.retain(|error| error.is_some());
        assert!(told.iter().all(|error| *error == Some(LogError::NotLeader)), "{told:?}");
    });
}

/// A reader that went on from one segment to the next one found none, as the log was removed in between: the node ended.
#[test]
fn a_reader_of_a_log_that_is_removed_meanwhile_is_sent_away() {
    // two do not fit one segment
    let large = {
        let mut builder = BatchBuilder::new(Codec::None, 0);
        let value = Some(Bytes::from(vec![0; 600_000]));
        builder.push(&Record { offset: 0, timestamp: 5, key: None, value, headers: vec![] });
        Bytes::from(builder.finish())
    };
    for bound in [ReadBound::HighWatermark, ReadBound::LastStable] {
        with_store(&[("segment.bytes", "1048576")], async |store, id| {
            store.lead(id, 0, THREE).await.unwrap();
            for _ in 0..3 {
                let part = ProducePartition { partition: id, batch: large.clone() };
                let (_, wait) = store.append(part, AppendOrigin::Client, Acks::Leader).appended().await.unwrap();
                wait.unwrap().wait().await.unwrap();
            }
            store.advance_high_watermark(id, 3).unwrap();
            store.materialise_all().await;
            let cell = store.partition(id).unwrap();
            cell.borrow().tail().extents().for_each(|extent| extent.backing.evict());
            let part = FetchPartition { partition: id, offset: 0, max_bytes: 10 << 20, leader_epoch: 0, bound };
            let mut reading = Box::pin(store.read(&part, part.max_bytes, true));
            assert!(reading.as_mut().now_or_never().is_none(), "it waits for the disk");
            store.clear([id]);
            while cell.borrow().replication().clearing().is_some() {
                store.io.sleep(Duration::from_millis(1)).await;
            }
            match reading.await {
                Ok(read) => assert_eq!(read.records.len(), large.len(), "it ends with what it had"),
                Err(error) => assert_eq!(error, LogError::NotLeader),
            }
        });
    }
}

/// A partition left its node while that was about to lead or to follow it: it was led when the beginning of the epoch was durable,
/// by a node that has no replica of it.
#[test]
fn who_is_about_to_lead_or_follow_does_not_if_the_partition_leaves_meanwhile() {
    with_store(&[], async |store, id| {
        let mut leading = Box::pin(store.lead(id, 3, THREE));
        assert!(leading.as_mut().now_or_never().is_none());
        store.clear([id]);
        assert_eq!(leading.await, Err(LogError::FencedLeaderEpoch));
        assert_eq!(store.leads(id), None);
        store.lead(id, 4, THREE).await.unwrap();
        produce(&store, id, 0, Acks::Leader).await.unwrap();
        let mut following = Box::pin(store.follow(id, 5));
        assert!(following.as_mut().now_or_never().is_none(), "the batch is on its way to the log");
        store.clear([id]);
        assert_eq!(following.await, Err(LogError::FencedLeaderEpoch));
    });
}

/// What a follower cut to what its leader has stayed when the partition left in that moment: there was one cut too many.
#[test]
fn a_partition_that_leaves_while_its_end_is_cut_off_is_removed_all_the_same() {
    with_store(&[], async |store, id| {
        store.lead(id, 1, THREE).await.unwrap();
        for sequence in 0..3 {
            produce(&store, id, sequence, Acks::Leader).await.unwrap().1.unwrap().wait().await.unwrap();
        }
        store.follow(id, 2).await.unwrap();
        let mut cutting = Box::pin(store.truncate(id, 2, CutBytes::Keep));
        assert!(cutting.as_mut().now_or_never().is_none());
        store.clear([id]);
        store.clear([id]);
        assert_eq!(store.follow(id, 2).await.unwrap().end, 0);
        cutting.await.unwrap();
    });
}

/// A node whose disk is full is where partitions are moved away from.
#[test]
fn what_moves_away_from_a_full_disk_makes_room() {
    with_disk(&[], async |sim, store, id| {
        store.lead(id, 0, THREE).await.unwrap();
        for sequence in 0..3 {
            let wait = produce(&store, id, sequence, Acks::Leader).await.unwrap().1.unwrap();
            wait.wait().await.unwrap();
        }
        store.materialise_all().await;
        let segments = || sim.files().iter().filter(|file| file.extension().is_some_and(|ext| ext == "log")).count();
        assert!(segments() > 0);
        sim.set_free_bytes(0);
        store.check_space_anew();
        assert!(store.is_full());
        store.clear([id]);
        assert_eq!(store.follow(id, 1).await.unwrap().end, 0);
        assert_eq!(segments(), 0);
    });
}

/// A segment that retention had given up was removed when readers let it go, by its name: that of the first segment of the partition
/// that had left and come back meanwhile.
#[test]
fn what_comes_back_waits_for_the_removal_of_what_retention_gave_up() {
    with_store(&[], async |store, id| {
        store.lead(id, 0, THREE).await.unwrap();
        produce(&store, id, 0, Acks::Leader).await.unwrap().1.unwrap().wait().await.unwrap();
        store.materialise_all().await;
        let name = SegmentName { base_offset: 0, generation: 0 };
        let reader = store.segments.get(id, name, false).await.unwrap();
        store.spawn_segment_removal(id, vec![name]);
        store.clear([id]);
        assert_eq!(store.follow(id, 1).await.unwrap().end, 0);
        assert!(store.segment_removals.borrow().is_empty());
        drop(reader);
    });
}

/// A follower that came back while its old records were being removed could have said that it has them: they would have counted
/// as confirmed.
#[test]
fn who_waits_hears_at_once_that_a_partition_has_left_and_what_comes_back_is_empty() {
    with_store(&[], async |store, id| {
        store.lead(id, 3, THREE).await.unwrap();
        let waiting = produce(&store, id, 0, Acks::All).await.unwrap().1.unwrap();
        store.clear([id]);
        assert_eq!(produce(&store, id, 1, Acks::Leader).await.err(), Some(LogError::NotLeader));
        assert_eq!(waiting.wait().await, Err(LogError::NotLeader));
        assert_eq!(store.follow(id, 3).await.unwrap().end, 0, "in the epoch that it was in, too");
        store.lead(id, 4, THREE).await.unwrap();
        produce(&store, id, 0, Acks::Leader).await.unwrap().1.unwrap().wait().await.unwrap();
        // it leaves, comes back, and leaves once more before the first time is over
        store.clear([id]);
        let mut following = Box::pin(store.follow(id, 5));
        assert!(following.as_mut().now_or_never().is_none());
        store.clear([id]);
        assert_eq!(following.await, Err(LogError::NotLeader));
        let cell = store.partition(id).unwrap();
        store.await_cleared(&cell).await.unwrap();
        assert!(cell.borrow().is_clear());
    });
}

/// What its leader appended, one record each.
fn sent(offsets: std::ops::Range<i64>, epoch: i32, append_time_ms: Option<i64>) -> Bytes {
    let batch = |offset: i64| {
        let mut batch = one(7, i32::try_from(offset).unwrap()).to_vec();
        assign(&mut batch, offset, epoch, append_time_ms);
        batch
    };
    offsets.flat_map(batch).collect::<Vec<u8>>().into()
}

/// Replicas would differ, and times be looked up differently after a failover.
#[test]
fn a_follower_keeps_the_time_that_its_leader_stamped() {
    with_store(&[("message.timestamp.type", "LogAppendTime")], async |store, id| {
        store.follow(id, 4).await.unwrap();
        let sent = sent(0..1, 4, Some(77));
        store.append_as_follower(id, 4, 0, &sent).unwrap().kept().await.unwrap();
        for _ in 0..2 {
            let caught = store.read_for_follower(id, 0, 9_000).await.unwrap();
            assert_eq!(
                caught.records.chunks.iter().flat_map(|chunk| chunk.as_slice().unwrap().to_vec()).collect::<Vec<u8>>(),
                sent
            );
            store.materialise_all().await;
        }
    });
}

/// Segments of a record each, in files.
async fn fill_segments(store: &Store<SimIo>, id: TopicPartition, epoch: i32) -> Vec<SegmentName> {
    store.follow(id, epoch).await.unwrap();
    store.append_as_follower(id, epoch, 0, &sent(0..3, epoch, None)).unwrap().kept().await.unwrap();
    store.materialise_all().await;
    let cell = store.partition(id).unwrap();
    let names: Vec<_> = cell.borrow().segments().all().iter().map(|segment| segment.name()).collect();
    assert_eq!(names.len(), 3);
    names
}

/// The compactor opened a segment again that had left with its partition, before its file was removed. When the partition came
/// back, its first segment had that name: it was written into the file that was in no folder any more, and was gone after a restart.
#[test]
fn what_comes_back_is_not_written_into_a_file_that_was_opened_again_while_it_left() {
    let (sim, world) = (Sim::new(3), World::new(0, &[("internal.segment.bytes", "1")]));
    let id = world.id;
    sim.run_until(async {
        sim.io().create_dir(Path::new("/d")).await.unwrap();
        let store = open(sim.io(), 1, &world).await;
        let names = fill_segments(&store, id, 1).await;
        let reader = store.segments.get(id, names[2], false).await.unwrap();
        store.clear([id]);
        while store.segments.if_open(id, names[2]).is_some() {
            store.io.sleep(Duration::from_micros(1)).await;
        }
        drop(store.segments.get(id, names[0], false).await.unwrap());
        assert!(
            store.segments.if_open(id, names[0]).is_some(),
            "all are forgotten, and the last one's reader is waited for"
        );
        drop(reader);
        assert_eq!(fill_segments(&store, id, 2).await, names);
        assert!(sim.files().contains(&store.segments.path(id, names[0])));
    })
    .unwrap();
    sim.crash();
    let io = sim.restart();
    sim.run_until(async {
        let store = open(io, 2, &world).await;
        let caught = store.read_for_follower(id, 0, 9_000).await.unwrap();
        assert_eq!(caught.records.end_offset(), Some(3));
    })
    .unwrap();
}

#[test]
fn a_file_that_is_opened_again_while_retention_removes_it_does_not_stay_open() {
    with_store(&[("internal.segment.bytes", "1")], async |store, id| {
        let names = fill_segments(&store, id, 1).await;
        let reader = store.segments.get(id, names[0], false).await.unwrap();
        store.spawn_segment_removal(id, names[..2].to_vec());
        drop(store.segments.get(id, names[1], false).await.unwrap());
        assert!(store.segments.if_open(id, names[1]).is_some());
        drop(reader);
        store.await_segment_removals(id).await;
        assert!(store.segments.if_open(id, names[1]).is_none());
    });
}

/// A follower whose log began after its leader's would lack what consumers are still shown when it leads.
#[test]
fn a_follower_lets_go_of_nothing_before_its_leader_does() {
    with_store(&[("internal.segment.bytes", "1"), ("retention.bytes", "0")], async |store, id| {
        store.follow(id, 1).await.unwrap();
        store.append_as_follower(id, 1, 0, &sent(0..4, 1, None)).unwrap().kept().await.unwrap();
        store.advance_high_watermark(id, 4).unwrap();
        store.materialise_all().await;
        store.retain(1_000_000).await;
        assert_eq!(store.position(id).unwrap().log_start, 0);
        store.lead(id, 2, THREE).await.unwrap();
        store.retain(1_000_000).await;
        assert!(store.position(id).unwrap().log_start > 0, "who leads it lets go of the same");
    });
}

/// It stayed below the log's start, where nothing can be read (KAFKA-9491).
#[test]
fn the_high_watermark_of_a_log_that_begins_anew_is_not_before_its_start() {
    with_store(&[], async |store, id| {
        store.follow(id, 1).await.unwrap();
        store.append_as_follower(id, 1, 0, &sent(0..2, 1, None)).unwrap().kept().await.unwrap();
        let position = store.begin_anew(id, 100).await.unwrap();
        assert_eq!((position.log_start, position.high_watermark, position.end), (100, 100, 100));
        store.append_as_follower(id, 1, 100, &sent(100..101, 1, None)).unwrap().kept().await.unwrap();
        assert_eq!(store.bounds(id).unwrap(), (100, 100));
    });
}
