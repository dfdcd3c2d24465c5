//! Clients that take no answers or never finish a request: they may not hold memory beyond the budget, nor keep others
//! from being served.

use std::{fs, path::PathBuf, process::Command, time::Duration};

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

/// A memory cgroup of the test's own.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Takes a right that not everybody has; `None`, and why, where it is not there.
    fn new(bytes: u64) -> Option<MemoryGroup> {
        let name = format!("millrace-test-{}", std::process::id());
        let hierarchies = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (root, limit) in hierarchies {
            let group = MemoryGroup(PathBuf::from(root).join(&name));
            let is_made = fs::create_dir(&group.0).is_ok();
            // Who makes a folder somewhere else must not write into it.
            let is_limited =
                is_made && group.0.join(limit).exists() && fs::write(group.0.join(limit), bytes.to_string()).is_ok();
            let joins = || Command::new("sh").args(["-c", &format!("{} true", group.wrapper())]).status();
            if is_limited && joins().is_ok_and(|status| status.success()) {
                return Some(group);
            }
        }
        println!(
            "skipped: a start in a memory cgroup, as none can be made here (root only); its peak is looked at instead"
        );
        None
    }

    /// What runs the command behind it in here.
    fn wrapper(&self) -> String {
        format!("sh -c 'echo $$ > {}/cgroup.procs && exec \"$@\"' sh ", self.0.display())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _it_may_never_have_been_made =
            Command::new("rmdir").arg(&self.0).stderr(std::process::Stdio::null()).status();
    }
}

/// A start read whole files of the log, every shard its own, outside the budget: under a limit that the former life had
/// stayed below it was killed, at every start.
#[test]
fn a_start_with_a_full_log_takes_no_more_memory_than_the_life_before() {
    const SHARDS: i32 = 4;
    let mut broker = Broker::start("--shards 4");
    broker.create_topic("full", SHARDS * 2);
    let shape = BatchShape { records: 200, value_bytes: 1000, key_bytes: 0 };
    let mut writer = Writer::new(broker.address, "full", 2 * SHARDS as usize, 1, 0).shape(shape);
    writer.write(2000);
    let used = |broker: &Broker| broker.usage().peak_rss_bytes;
    let before = used(&broker);
    broker.kill();
    let files: Vec<_> =
        (0..SHARDS).flat_map(|shard| fs::read_dir(broker.data().join(format!("wal-{shard}"))).unwrap()).collect();
    let log_bytes: u64 = files.iter().map(|file| file.as_ref().unwrap().metadata().unwrap().len()).sum();
    assert!(log_bytes > RSS_BYTES_MAX, "a log of {log_bytes} bytes tells nothing");

    let group = MemoryGroup::new(RSS_BYTES_MAX);
    if let Some(group) = &group {
        broker.wrap(group.wrapper());
    }
    broker.restart();
    let after = used(&broker);
    assert!(after < before + before / 10, "{} MiB, and {} MiB in the life before", after >> 20, before >> 20);
    assert!(after < RSS_BYTES_MAX, "{} MiB", after >> 20);
    broker.verify("full", 1, &writer.acknowledged);
    broker.kill();
}
