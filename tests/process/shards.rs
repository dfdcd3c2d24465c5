//! The number of shards may change with every start.

use crate::{
    broker::{Broker, rounds},
    writer::Writer,
};

#[test]
fn another_number_of_shards_finds_everything_again() {
    let mut broker = Broker::start("--shards 1");
    broker.create_topic("resharded", 7);
    let mut plain = Writer::new(broker.address, "resharded", 7, 1, 0);
    let mut idempotent = Writer::new(broker.address, "resharded", 7, 1, 1).idempotent();
    for _ in 0..rounds(1) {
        for (shards, crash) in [(3, true), (2, false), (4, true), (1, true), (2, true)] {
            plain.write(60);
            idempotent.write(60);
            plain.disconnect();
            idempotent.disconnect();
            if crash {
                broker.kill();
            } else {
                broker.terminate();
            }
            broker.set_options(&format!("--shards {shards}"));
            broker.restart();
            let mut acknowledged = plain.acknowledged.clone();
            acknowledged.merge(idempotent.acknowledged.clone());
            let tally = broker.verify("resharded", 1, &acknowledged);
            assert_eq!(tally.records, acknowledged.count(), "{shards} shards");
        }
    }
}
