//! Clients that take no answers or never finish a request: they may not hold memory beyond the budget, nor keep others
//! from being served.

use std::time::Duration;

use millrace_bench::{
    batch::BatchShape,
    client::{self, Connection, FetchLimits},
};

use crate::{broker::Broker, writer::Writer};

const PARTITIONS: usize = 4;
/// The budget that [`Broker`] gives, and what a process has beside it: code, stacks, rings, what the allocator rounds up.
const RSS_BYTES_MAX: u64 = (128 + 128) << 20;

fn fetch_all(connection: &mut Connection, topic: &str) {
    let limits = FetchLimits { max_bytes: 50 << 20, partition_max_bytes: 16 << 20, ..FetchLimits::default() };
    let request = client::fetch_request(topic, (0..PARTITIONS as i32).map(|partition| (partition, 0)), limits);
    connection.send(client::FETCH_VERSION, &request).unwrap();
}

#[test]
fn clients_that_do_not_read_or_do_not_finish_hold_no_memory_beyond_the_budget() {
    let broker = Broker::start("--shards 2");
    broker.create_topic("old", PARTITIONS as i32);
    let shape = BatchShape { records: 60, value_bytes: 1000, key_bytes: 0 };
    let mut writer = Writer::new(broker.address, "old", PARTITIONS, 1, 0).shape(shape);
    writer.write(3000); // more than the budget
    let before = broker.usage().rss_bytes;
    let mut unread: Vec<_> = (0..100).map(|_| broker.connect()).collect();
    let mut unfinished: Vec<_> = (0..50).map(|_| broker.connect()).collect();
    for _ in 0..4 {
        unread.iter_mut().for_each(|connection| fetch_all(connection, "old"));
    }
    let mut half = (40i32 << 20).to_be_bytes().to_vec();
    half.resize(1 << 20, 0);
    for connection in &mut unfinished {
        // the broker may stop reading, or close the connection
        let _ = connection.send_raw(&half);
    }
    std::thread::sleep(Duration::from_secs(2)); // what is going to be read into memory is read
    let peak = broker.usage().peak_rss_bytes;
    assert!(peak < RSS_BYTES_MAX, "{} MiB, {} before\n{}", peak >> 20, before >> 20, broker.log());

    broker.create_topic("new", 1);
    let mut other = Writer::new(broker.address, "new", 1, 2, 0);
    other.write(50);
    broker.verify("new", 2, &other.acknowledged);
    broker.verify("old", 1, &writer.acknowledged);
    drop((unread, unfinished));
}
