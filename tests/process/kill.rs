//! kill -9 at any moment: what was acknowledged is there afterwards, once and in order.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use millrace_bench::{batch::BatchShape, client, ledger::Acknowledged, payload::splitmix64};

use crate::{
    broker::{Broker, rounds},
    writer::Writer,
};

/// Lets writers run through `kills` crashes, each at a random moment, and answers them.
fn write_through_kills(broker: &mut Broker, writers: Vec<Writer>, kills: u32, seed: u64) -> Vec<Writer> {
    let stop = AtomicBool::new(false);
    let mut random = seed;
    std::thread::scope(|scope| {
        let handles: Vec<_> = writers.into_iter().map(|writer| scope.spawn(|| writer.run(&stop))).collect();
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(100 + splitmix64(&mut random) % 400));
            broker.kill();
            broker.restart();
        }
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Relaxed);
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

fn merged(writers: &[Writer]) -> Acknowledged {
    let mut all = Acknowledged::default();
    writers.iter().for_each(|writer| all.merge(writer.acknowledged.clone()));
    all
}

#[test]
fn acknowledged_records_survive_kill_9() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic("plain", 6);
    let writers = (0..4).map(|producer| Writer::new(broker.address, "plain", 6, 1, producer)).collect();
    let writers = write_through_kills(&mut broker, writers, rounds(6), 1);
    let acknowledged = merged(&writers);
    assert!(writers.iter().all(|writer| writer.refusals.is_empty()), "refused though nothing was wrong");
    assert!(acknowledged.count() > 100, "hardly anything was written: {}", acknowledged.count());
    broker.verify("plain", 1, &acknowledged);
}

#[test]
fn idempotent_producers_survive_kill_9_without_gap_or_duplicate() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic("idempotent", 5);
    let writer = |producer| Writer::new(broker.address, "idempotent", 5, 1, producer).idempotent();
    let writers = (0..3).map(writer).collect();
    let writers = write_through_kills(&mut broker, writers, rounds(6), 2);
    let acknowledged = merged(&writers);
    assert_eq!(writers.iter().flat_map(|writer| writer.refusals.clone()).collect::<Vec<_>>(), [0i16; 0]);
    let tally = broker.verify("idempotent", 1, &acknowledged);
    assert_eq!(tally.unacknowledged, 0, "every batch was sent until it was acknowledged: {tally}");
    assert_eq!(tally.records, acknowledged.count());
}

#[test]
fn large_batches_survive_kill_9() {
    let mut broker = Broker::start("--shards 1");
    broker.create_topic("large", 2);
    let shape = BatchShape { records: 40, value_bytes: 20_000, key_bytes: 0 };
    let writers = (0..2).map(|producer| Writer::new(broker.address, "large", 2, 1, producer).shape(shape)).collect();
    let writers = write_through_kills(&mut broker, writers, rounds(3), 3);
    broker.verify("large", 1, &merged(&writers));
}

#[test]
fn relaxed_topics_lose_nothing_when_only_the_process_dies() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic_with("relaxed", 4, &[("flush.messages", "9223372036854775807")]);
    let writers = (0..3).map(|producer| Writer::new(broker.address, "relaxed", 4, 1, producer)).collect();
    let writers = write_through_kills(&mut broker, writers, rounds(4), 5);
    broker.verify("relaxed", 1, &merged(&writers));
}

#[test]
fn rolling_segments_survive_kill_9() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic_with("rolling", 3, &[("segment.bytes", "1048576")]);
    let shape = BatchShape { records: 10, value_bytes: 10_000, key_bytes: 8 };
    let writer = |producer| Writer::new(broker.address, "rolling", 3, 1, producer).shape(shape).idempotent();
    let writers = (0..2).map(writer).collect();
    let writers = write_through_kills(&mut broker, writers, rounds(3), 6);
    let acknowledged = merged(&writers);
    let tally = broker.verify("rolling", 1, &acknowledged);
    assert_eq!(tally.records, acknowledged.count());
}

#[test]
fn kill_9_during_recovery_loses_nothing() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic("recovery", 4);
    let mut writer = Writer::new(broker.address, "recovery", 4, 1, 0);
    let mut random = 4;
    for _ in 0..rounds(3) {
        writer.write(200);
        writer.disconnect();
        broker.kill();
        for _ in 0..4 {
            broker.launch();
            std::thread::sleep(Duration::from_millis(splitmix64(&mut random) % 120));
            broker.kill();
        }
        broker.restart();
    }
    let tally = broker.verify("recovery", 1, &writer.acknowledged);
    assert_eq!(tally.records, writer.acknowledged.count());
}

#[test]
fn topics_created_and_deleted_stay_so_after_kill_9() {
    let mut broker = Broker::start("--shards 2");
    for round in 0..rounds(4) {
        let (kept, gone) = (format!("kept-{round}"), format!("gone-{round}"));
        broker.create_topic_with(&kept, 3, &[("retention.ms", "7200000")]);
        broker.create_topic(&gone, 3);
        let mut writer = Writer::new(broker.address, &gone, 3, 1, 0);
        writer.write(10);
        let mut writer = Writer::new(broker.address, &kept, 3, u64::from(round), 0);
        writer.write(10);
        client::delete_topic(&mut broker.connect(), &gone).unwrap();
        broker.kill();
        broker.restart();
        let error = client::leaders(&mut broker.connect(), &gone).unwrap_err();
        assert_eq!(error.code(), Some(3), "UNKNOWN_TOPIC_OR_PARTITION, not {error}");
        broker.verify(&kept, u64::from(round), &writer.acknowledged);
        for earlier in 0..round {
            assert_eq!(broker.leaders(&format!("kept-{earlier}")).by_partition.len(), 3);
        }
    }
}
