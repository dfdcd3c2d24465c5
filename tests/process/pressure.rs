//! Memory under attack: whatever clients claim, send or leave unread, the process stays within its budget, and honest
//! clients are served meanwhile, small ones and large ones.

use std::{io::Write, net::TcpStream, time::Duration};

use millrace_bench::{
    batch::BatchShape,
    client::{self, Connection, FetchLimits},
};

use crate::{broker::Broker, writer::Writer};

const PARTITIONS: usize = 4;
/// What [`Broker`] gives.
const BUDGET_BYTES: u64 = 128 << 20;
/// What a process may take beside its budget, as its banner says.
const BESIDE_BYTES: u64 = 128 << 20;

/// A broker, and what it took before it was attacked.
struct Stage {
    broker: Broker,
    before: u64,
}

impl Stage {
    fn new() -> Stage {
        let broker = Broker::start("--shards 2");
        broker.create_topic_with("topic", PARTITIONS as i32, &[("max.message.bytes", "4000000")]);
        let before = broker.usage().rss_bytes;
        Stage { broker, before }
    }

    /// A connection that sends so many bytes of a frame of `claimed`, as far as they are taken within a moment.
    fn half_sent(&self, claimed: usize, sent: usize) -> TcpStream {
        let mut stream = TcpStream::connect(self.broker.address).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.write_all(&u32::try_from(claimed).unwrap().to_be_bytes()).unwrap();
        // the broker may stop reading, or close the connection
        let _ = stream.write_all(&vec![0; sent]);
        stream
    }

    /// A small client and a large one are served while an attack goes on, and the peak stays within the budget.
    fn passes(self, attack: &mut dyn FnMut(&Stage)) {
        for (run, value_bytes) in (1..).zip([100, 16_384, 3_000_000]) {
            attack(&self);
            let shape = BatchShape { records: 1, value_bytes, key_bytes: 0 };
            let mut writer = Writer::new(self.broker.address, "topic", PARTITIONS, run, 0).shape(shape);
            writer.write(10);
            assert_eq!(writer.acknowledged.count(), 10, "{}", self.broker.log());
        }
        let peak = self.broker.usage().peak_rss_bytes;
        let taken = peak.saturating_sub(self.before);
        let allowed = BUDGET_BYTES + BESIDE_BYTES;
        assert!(peak < allowed, "{} MiB, {} of them taken\n{}", peak >> 20, taken >> 20, self.broker.log());
    }
}

#[test]
fn claims_without_data_hold_no_memory() {
    let stage = Stage::new();
    let mut open = Vec::new();
    stage.passes(&mut |stage| {
        for claimed in [60_000, 1_000_000, 8 << 20] {
            open.extend((0..200).map(|_| stage.half_sent(claimed, 100)));
        }
    });
}

#[test]
fn filled_frames_hold_no_more_than_the_budget() {
    let stage = Stage::new();
    let mut open = Vec::new();
    stage.passes(&mut |stage| {
        for (count, claimed) in [(8, 11 << 20), (50, 1_000_000), (200, 60_000)] {
            open.extend((0..count).map(|_| stage.half_sent(claimed, claimed - 1)));
        }
    });
}

#[test]
fn answers_that_nobody_reads_hold_no_more_than_the_budget() {
    let stage = Stage::new();
    let shape = BatchShape { records: 60, value_bytes: 1000, key_bytes: 0 };
    Writer::new(stage.broker.address, "topic", PARTITIONS, 9, 0).shape(shape).write(2000);
    let limits = FetchLimits { max_bytes: 50 << 20, partition_max_bytes: 16 << 20, ..FetchLimits::default() };
    let all = || (0..PARTITIONS as i32).map(|partition| (partition, 0));
    let mut open: Vec<Connection> = Vec::new();
    stage.passes(&mut |stage| {
        for _ in 0..50 {
            let mut connection = stage.broker.connect();
            for _ in 0..4 {
                connection.send(client::FETCH_VERSION, &client::fetch_request("topic", all(), limits)).unwrap();
            }
            open.push(connection);
        }
    });
}

#[test]
fn large_requests_of_many_honest_producers_stay_within_the_budget_and_are_answered() {
    let stage = Stage::new();
    std::thread::scope(|scope| {
        for producer in 0..150 {
            let shape = BatchShape { records: 1, value_bytes: 1_200_000, key_bytes: 0 };
            let writer = Writer::new(stage.broker.address, "topic", PARTITIONS, 77, producer).shape(shape);
            scope.spawn(move || {
                let mut writer = writer;
                writer.write(3);
                assert_eq!(writer.acknowledged.count(), 3);
            });
        }
    });
    assert!(!stage.broker.log().contains("connection closed"), "nobody stalled\n{}", stage.broker.log());
    stage.passes(&mut |_| {});
}
