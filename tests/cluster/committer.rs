//! A consumer that commits ever higher offsets, and looks after each whether its group went back.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kafka_protocol::{
    messages::{
        GroupId, OffsetCommitRequest, OffsetFetchRequest, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestGroup,
    },
    protocol::StrBytes,
};
use millrace_client::{ClientError, Cluster};

use crate::{
    node::PATIENCE,
    rig::{Rig, client_of},
};

const TOPIC: &str = "orders";
const PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub(crate) struct Committer {
    group: String,
    stop: Arc<AtomicBool>,
    /// The highest offset whose commit was answered.
    committed: Arc<AtomicI64>,
    thread: JoinHandle<()>,
}

struct Commits {
    cluster: Cluster,
    /// All nodes, whom it asks next first.
    brokers: Vec<(String, u16)>,
    group: String,
    committed: i64,
    /// Offsets of commits that were not answered. One of them may be done at any later time, over a higher one: a commit
    /// carries nothing that says which of two is the later one.
    in_doubt: BTreeSet<i64>,
}

impl Committer {
    /// Begins to commit, as this group, for partition 0 of `orders`.
    pub(crate) fn start(rig: &Rig, group: &str) -> Committer {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let mut commits = Commits {
            cluster: rig.client(),
            brokers: rig.brokers(),
            group: group.to_owned(),
            committed: 0,
            in_doubt: BTreeSet::new(),
        };
        let (is_over, count) = (stop.clone(), committed.clone());
        let thread = std::thread::spawn(move || {
            while !is_over.load(Relaxed) {
                commits.commit();
                count.store(commits.committed, Relaxed);
                commits.look();
            }
        });
        Committer { group: group.to_owned(), stop, committed, thread }
    }

    /// Waits until that many more commits were answered.
    pub(crate) fn await_more(&self, rig: &Rig, commits: i64) {
        let target = self.committed.load(Relaxed) + commits;
        rig.until("offsets are committed", || self.thread.is_finished() || self.committed.load(Relaxed) >= target);
    }

    /// Asks a node that may be no coordinator any more: it says so, or tells an offset that is not behind.
    pub(crate) fn ask(&self, rig: &Rig, node: i32) {
        let before = self.committed.load(Relaxed);
        if let Ok(offset) = fetch(&mut rig.client_of(node), node, &self.group) {
            assert!(offset >= before, "node {node} tells {offset}, {before} was committed\n{}", rig.logs());
        }
    }

    /// Stops; fails if the group ever went back.
    pub(crate) fn finish(self) -> i64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.committed.load(Relaxed)
    }
}

impl Commits {
    fn commit(&mut self) {
        let offset = self.committed + 1;
        let group = self.group.clone();
        self.insist(Some(offset), |cluster| {
            let coordinator = cluster.coordinator(&group)?;
            commit(cluster, coordinator, &group, offset)
        });
        self.in_doubt.retain(|doubtful| *doubtful != offset);
        self.committed = offset;
    }

    fn look(&mut self) {
        let group = self.group.clone();
        let told = self.insist(None, |cluster| {
            let coordinator = cluster.coordinator(&group)?;
            fetch(cluster, coordinator, &group)
        });
        let committed = self.committed;
        assert!(told >= committed || self.in_doubt.contains(&told), "{told} is told, {committed} was committed");
    }

    /// Tries until it is done: a cluster that lost a node answers again.
    fn insist<T>(&mut self, offset: Option<i64>, mut attempt: impl FnMut(&mut Cluster) -> Result<T, ClientError>) -> T {
        let begun = Instant::now();
        loop {
            let error = match attempt(&mut self.cluster) {
                Ok(done) => return done,
                Err(error) => error,
            };
            assert!(error.is_retriable() || matches!(error, ClientError::TimedOut { .. }), "{}: {error}", self.group);
            assert!(begun.elapsed() < PATIENCE, "{}: {error}", self.group);
            if error.code().is_none() {
                self.in_doubt.extend(offset);
            }
            self.brokers.rotate_left(1);
            self.cluster = client_of(self.brokers.clone());
            std::thread::sleep(PAUSE);
        }
    }
}

fn group_id(group: &str) -> GroupId {
    GroupId(StrBytes::from_string(group.to_owned()))
}

fn commit(cluster: &mut Cluster, node: i32, group: &str, offset: i64) -> Result<(), ClientError> {
    let partition =
        OffsetCommitRequestPartition::default().with_committed_offset(offset).with_committed_leader_epoch(-1);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(StrBytes::from_static_str(TOPIC)))
        .with_partitions(vec![partition.with_committed_metadata(Some(StrBytes::new()))]);
    let request = OffsetCommitRequest::default().with_group_id(group_id(group));
    let request = request.with_generation_id_or_member_epoch(-1).with_topics(vec![topic]);
    let answer = cluster.broker(node, |_| request)?;
    ClientError::check("a commit", answer.topics[0].partitions[0].error_code, None)
}

fn fetch(cluster: &mut Cluster, node: i32, group: &str) -> Result<i64, ClientError> {
    let all = OffsetFetchRequestGroup::default().with_group_id(group_id(group)).with_topics(None);
    let answer = cluster.broker(node, |_| OffsetFetchRequest::default().with_groups(vec![all]))?;
    let group = &answer.groups[0];
    ClientError::check("offsets", group.error_code, None)?;
    let told = group.topics.first().and_then(|topic| topic.partitions.first());
    Ok(told.map_or(-1, |partition| partition.committed_offset))
}
