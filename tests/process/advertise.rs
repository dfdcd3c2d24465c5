//! Each shard as a broker of its own.

use std::{collections::BTreeSet, time::Duration};

use millrace_bench::{
    batch::BatchShape,
    clock::Clock,
    load::{self, Load, Progress, schedule::Partitioner},
};

use crate::{
    broker::{Broker, PATIENCE},
    writer::Writer,
};

#[test]
fn every_shard_is_a_leader_on_a_port_of_its_own() {
    let broker = Broker::start("--shards 3 --advertise shard");
    let leaders = broker.create_topic("spread", 32);
    let ports: BTreeSet<_> = leaders.by_partition.iter().collect();
    assert_eq!(ports.len(), 3, "{leaders:?}");
    let load = Load {
        topic: "spread".into(),
        leaders,
        shape: BatchShape { records: 5, value_bytes: 100, key_bytes: 8 },
        producers: 2,
        threads: 1,
        in_flight: 5,
        batches_per_request: 3,
        acks: -1,
        idempotent: true,
        partitioner: Partitioner::Random,
        records_per_second: 0,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(500),
        drain: PATIENCE,
        request_timeout: PATIENCE,
        run: 1,
    };
    let (outcome, _) = load::generate(&load, Clock::start(), &Progress::default(), |_| ()).unwrap();
    assert_eq!((outcome.failure, outcome.errors.len()), (None, 0), "{:?}", outcome.errors);
    broker.verify("spread", 1, &outcome.acknowledged);
}

#[test]
fn leaders_stay_reachable_over_restarts_and_when_shards_are_no_longer_advertised() {
    let mut broker = Broker::start("--shards 2 --advertise shard");
    broker.create_topic("moved", 8);
    let leaders = broker.leaders("moved");
    let partition = 0;
    let mut writer = Writer::new(leaders.by_partition[partition], "moved", 1, 1, 0);
    writer.write(20);
    broker.kill();
    broker.set_options("--shards 2");
    broker.restart();
    let leaders = broker.leaders("moved");
    assert!(leaders.by_partition.iter().all(|&leader| leader == broker.address), "{leaders:?}");
    broker.verify("moved", 1, &writer.acknowledged);
}
