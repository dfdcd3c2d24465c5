//! How replication stands on a shard, for people and for pages of metrics.

use std::collections::BTreeMap;

use millrace_engine::api::TopicPartition;

use super::Shell;
use crate::{
    channel::shard::FollowerStanding,
    cluster::{image::Image, model::NodeId},
};

/// One shard's part. `Send`: it travels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicationReport {
    /// Partitions that are led here.
    pub led: u64,
    /// Partitions that are followed here.
    pub followed: u64,
    /// Those of them that wait for their leader, or for the logs to be found to match.
    pub detached: u64,
    /// Led partitions with fewer replicas in sync than they have.
    pub under_replicated: u64,
    /// Led partitions with fewer replicas in sync than `min.insync.replicas` asks for.
    pub under_min_isr: u64,
    /// Open connections to shards of other nodes.
    pub links: u64,
    /// What followers of the partitions that are led here lack, by node.
    pub followers: BTreeMap<NodeId, FollowerReport>,
    /// etcd does not answer: nobody is elected meanwhile.
    pub is_etcd_away: bool,
    /// Nodes that live, as far as this shard knows.
    pub nodes: u64,
    /// This node is controller.
    pub is_controller: bool,
    /// Of the follower of two nodes without an etcd: whether it could lead.
    pub promotion: Option<Promotion>,
}

/// What a follower would lack if it were promoted, as far as it has heard: partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promotion {
    /// With a replica here that is not in sync.
    pub behind: u64,
    /// Without a replica here.
    pub elsewhere: u64,
}

impl Promotion {
    /// Of a node in an image; none if it leads itself, or if others decide who does.
    fn of(image: &Image, node: NodeId) -> Option<Self> {
        image.fixed_leader.filter(|leader| *leader != node)?;
        let mut promotion = Self::default();
        for partition in image.topics.values().flat_map(|topic| &topic.partitions) {
            let is_here = partition.value.replicas.contains(&node);
            promotion.elsewhere += u64::from(!is_here);
            promotion.behind += u64::from(is_here && partition.value.in_sync(node).is_none());
        }
        Some(promotion)
    }
}

/// What one node lacks of the partitions that it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowerReport {
    /// Partitions that it follows.
    pub partitions: u64,
    /// Those of them in whose ISR it is: it may be elected there, and nothing that was acknowledged is lost by that.
    pub in_sync: u64,
    /// Records that it lacks in all.
    pub lag_records: u64,
    /// About how many bytes they have.
    pub lag_bytes: u64,
    /// The longest time for which it has lacked records of one, in ms.
    pub lag_ms: u64,
}

impl FollowerReport {
    /// The same of another shard.
    pub fn add(&mut self, other: &Self) {
        self.partitions += other.partitions;
        self.in_sync += other.in_sync;
        self.lag_records += other.lag_records;
        self.lag_bytes += other.lag_bytes;
        self.lag_ms = self.lag_ms.max(other.lag_ms);
    }
}

impl Shell {
    /// How replication stands on this shard now.
    pub fn standing(&self) -> ReplicationReport {
        let core = self.core.borrow();
        let mut report = ReplicationReport {
            links: self.links.borrow().len() as u64,
            is_etcd_away: self.etcd_trouble().is_some(),
            ..ReplicationReport::default()
        };
        for standing in core.followers(self.now_ms(), &self.logs) {
            report.followers.entry(standing.node).or_default().add(&FollowerReport {
                partitions: 1,
                in_sync: u64::from(standing.is_in_sync),
                lag_records: u64::try_from(standing.lag).unwrap_or(0),
                lag_bytes: self.bytes_from(&standing),
                lag_ms: standing.lag_ms,
            });
        }
        for standing in core.leaders() {
            report.followed += 1;
            report.detached += u64::from(!standing.is_attached);
        }
        self.report_led(&mut report);
        report
    }

    /// Why etcd does not do what it is asked, in words for people; none if it does.
    pub fn etcd_trouble(&self) -> Option<String> {
        self.options.feed.etcd_trouble()
    }

    fn bytes_from(&self, standing: &FollowerStanding) -> u64 {
        if standing.lag == 0 {
            return 0;
        }
        let replica = self.engine.replica(standing.partition);
        replica.and_then(|replica| replica.bytes_from(standing.confirmed)).unwrap_or(0)
    }

    /// What this shard lacks of the partitions that it follows, as far as it has heard of their leaders.
    pub fn lags(&self) -> Vec<(TopicPartition, i64)> {
        self.core.borrow().leaders().map(|standing| (standing.partition, standing.lag)).collect()
    }

    fn report_led(&self, report: &mut ReplicationReport) {
        let image = self.image.borrow();
        let Some(image) = image.as_ref() else { return };
        report.nodes = image.nodes.len() as u64;
        report.promotion = Promotion::of(image, self.engine.node_id());
        report.is_controller = image.controller.is_some_and(|it| it.node == self.engine.node_id());
        for partition in self.told.borrow().keys() {
            let Some(state) = image.partition(*partition) else { continue };
            if state.value.leader != self.me.get() {
                continue;
            }
            report.led += 1;
            report.under_replicated += u64::from(state.value.isr.len() < state.value.replicas.len());
            let min_isr = image.topics.get(&partition.topic).map_or(1, |topic| topic.rules.min_isr);
            report.under_min_isr += u64::from(state.value.isr.len() < min_isr.min(state.value.replicas.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::cluster::{
        keys::{self, StoredMirror, StoredTopic},
        model::{Member, PartitionState},
        store::KeyValue,
    };

    #[test]
    fn a_follower_knows_whether_it_could_lead() {
        let topic = Uuid::from_u128(1);
        let [one, two] = [1, 2].map(|node| Member { node, epoch: 5 });
        let both = PartitionState::new(&[one, two]);
        let states = [PartitionState { isr: vec![one], ..both.clone() }, both, PartitionState::new(&[one])];
        let stored = StoredTopic { name: "t".to_owned(), partitions: 3, configs: BTreeMap::new(), forming: false };
        let mirror = StoredMirror { leader: 1, term: 1, fenced: String::new() };
        let mut values = vec![
            (keys::MIRROR.to_owned(), keys::encode_mirror(&mirror)),
            (keys::topic(topic), keys::encode_topic(&stored)),
        ];
        values.extend((0..).zip(&states).map(|(at, it)| (keys::partition(topic, at), keys::encode_partition(it))));
        let entry = |(key, value)| KeyValue { key, value, created: 3, modified: 3, version: 1, lease: 0 };
        let entries: Vec<_> = values.into_iter().map(entry).collect();
        let image = Image::read(Arc::default(), 9, &entries).unwrap();
        assert_eq!(Promotion::of(&image, 2), Some(Promotion { behind: 1, elsewhere: 1 }));
        assert_eq!(Promotion::of(&image, 1), None, "it leads");
    }
}
