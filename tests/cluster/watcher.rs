//! A consumer that reads along whatever happens, and what must be true of all that it was shown: it is in the log in the end.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use millrace_client::{Cluster, FetchFrom, IsolationLevel};
use millrace_engine::batch::batches;

use crate::rig::{Rig, client_of};

/// Kafka's code for an offset that a log does not have: a consumer would begin anew.
const OFFSET_OUT_OF_RANGE: i16 = 1;
const WAIT: Duration = Duration::from_millis(200);

/// Batches of a partition by their first offset: the offset behind each, and what its bytes come to.
pub(crate) type Log = BTreeMap<i64, (i64, u64)>;

/// Reads a topic from its leaders until it is told to stop.
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    reading: JoinHandle<Vec<Log>>,
}

impl Watcher {
    /// Begins at the first record.
    pub(crate) fn start(rig: &Rig, topic: &str, partitions: i32) -> Watcher {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut brokers, topic, is_over) = (rig.brokers(), topic.to_owned(), stop.clone());
        let mut client = rig.client();
        let reading = std::thread::spawn(move || {
            let mut logs = vec![Log::new(); usize::try_from(partitions).unwrap()];
            while !is_over.load(Relaxed) {
                for (partition, log) in (0..).zip(&mut logs) {
                    let leader = client.leader(&topic, partition);
                    if !leader.is_ok_and(|leader| read_more(&mut client, leader, (&topic, partition), log)) {
                        // who was asked may be cut off from the others, and know of no other leader
                        brokers.rotate_left(1);
                        client = client_of(brokers.clone());
                        std::thread::sleep(WAIT / 10);
                    }
                }
            }
            logs
        });
        Watcher { stop, reading }
    }

    /// All that it was shown.
    pub(crate) fn finish(self) -> Vec<Log> {
        self.stop.store(true, Relaxed);
        self.reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Reads on from where a log ends. Whether the node answered.
fn read_more(client: &mut Cluster, node: i32, (topic, partition): (&str, i32), log: &mut Log) -> bool {
    let offset = log.last_key_value().map_or(0, |(_, (end, _))| *end);
    let from = FetchFrom { topic: topic.to_owned(), partition, offset };
    let Ok(mut fetched) = client.fetch(node, &[from], IsolationLevel::ReadUncommitted, WAIT) else { return false };
    let Some(fetched) = fetched.pop() else { return false };
    if let Some(error) = fetched.error {
        assert_ne!(error.code(), Some(OFFSET_OUT_OF_RANGE), "{topic}-{partition} at {offset} of node {node}");
        return false;
    }
    for (info, bytes) in batches(&fetched.records).map_while(Result::ok) {
        if info.base_offset < offset {
            continue;
        }
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        log.insert(info.base_offset, (info.last_offset() + 1, hasher.finish()));
    }
    true
}

/// A node's own log of a partition, once its consumers see as much as up to `end`.
pub(crate) fn log_of(rig: &Rig, node: i32, topic: &str, partition: i32, end: i64) -> Log {
    let mut client = rig.client_of(node);
    let mut log = Log::new();
    rig.until(&format!("node {node} has {topic}-{partition} up to {end}"), || {
        let mut before = None;
        while before != Some(log.len()) {
            before = Some(log.len());
            read_more(&mut client, node, (topic, partition), &mut log);
        }
        log.last_key_value().is_some_and(|(_, (reached, _))| *reached >= end)
    });
    log
}
