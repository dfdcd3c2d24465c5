//! SIGTERM: everything acknowledged is there afterwards, and the process ends by itself with success.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    broker::{Broker, PATIENCE},
    writer::Writer,
};

#[test]
fn sigterm_under_load_stops_cleanly() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic("stopped", 4);
    let stop = AtomicBool::new(false);
    let writers: Vec<Writer> = std::thread::scope(|scope| {
        let (address, stop) = (broker.address, &stop);
        let run = |producer| scope.spawn(move || Writer::new(address, "stopped", 4, 1, producer).run(stop));
        let handles: Vec<_> = (0..3).map(run).collect();
        std::thread::sleep(Duration::from_millis(300));
        let status = broker.terminate();
        assert!(status.success(), "{status}\n{}", broker.log());
        broker.restart();
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Relaxed);
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    for writer in &writers {
        // a request that comes in while the node stops may be refused, if with an error that clients try again on:
        // LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, REQUEST_TIMED_OUT, COORDINATOR_NOT_AVAILABLE, KAFKA_STORAGE_ERROR
        let fine = |code: &i16| [5, 6, 7, 15, 56].contains(code);
        assert!(writer.refusals.iter().all(fine), "{:?}", writer.refusals);
        let mut own = writer.acknowledged.clone();
        writers.iter().for_each(|other| own.merge(other.acknowledged.clone()));
        broker.verify("stopped", 1, &own);
    }
}

#[test]
fn sigterm_without_load_and_with_idle_connections_stops_cleanly() {
    let mut broker = Broker::start("--shards 2");
    let idle: Vec<_> = (0..5).map(|_| broker.connect()).collect();
    let status = broker.terminate();
    assert!(status.success(), "{status}\n{}", broker.log());
    drop(idle);
}

#[test]
fn a_line_on_standard_output_says_where_it_listens() {
    let broker = Broker::start("--shards 1");
    let address = broker.address.to_string();
    let said = || broker.log().lines().any(|line| line.contains("listening") && line.contains(&address));
    let start = Instant::now();
    while !said() {
        assert!(start.elapsed() < PATIENCE, "{}", broker.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}
