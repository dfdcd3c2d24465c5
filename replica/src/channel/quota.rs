//! Limits on copies for replicas that are not in sync (KIP-73): bytes per second, and the replicas that they are for.
//!
//! As in Kafka, who is over the limit waits until it is paid for, and a limit that is lower than what comes live keeps a replica
//! from ever getting there.

use std::collections::{BTreeMap, BTreeSet};

use millrace_engine::api::{TopicId, TopicPartition};

/// Settings of a node: bytes per second for replicas that are not in sync.
const LEADER_RATE: &str = "leader.replication.throttled.rate";
const FOLLOWER_RATE: &str = "follower.replication.throttled.rate";
/// Settings of a topic: which replicas these limits are for.
const LEADER_REPLICAS: &str = "leader.replication.throttled.replicas";
const FOLLOWER_REPLICAS: &str = "follower.replication.throttled.replicas";
/// Saved up at most, in ms.
const BURST_MS: u64 = 1_000;
/// What one chunk has at least, as far as there is so much.
const CHUNK_BYTES_MIN: usize = 4 << 10;

/// A limit on bytes per second. Times are of the channel's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quota {
    /// None: there is no limit.
    bytes_per_second: Option<u64>,
    /// When all that was taken is paid for, in microseconds.
    paid_us: u64,
}

impl Quota {
    /// Another limit. What was taken under the former one is forgiven.
    pub(crate) fn set(&mut self, bytes_per_second: Option<u64>) {
        if self.bytes_per_second != bytes_per_second {
            *self = Self { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), paid_us: 0 };
        }
    }

    /// Whether there is a limit.
    pub(crate) fn is_set(&self) -> bool {
        self.bytes_per_second.is_some()
    }

    /// Takes bytes.
    pub(crate) fn take(&mut self, now_ms: u64, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let price_us = u128::from(bytes) * 1_000_000 / u128::from(rate);
        let price_us = u64::try_from(price_us).unwrap_or(u64::MAX);
        let earliest_us = now_ms.saturating_sub(BURST_MS).saturating_mul(1_000);
        self.paid_us = self.paid_us.max(earliest_us).saturating_add(price_us);
    }

    /// When more may be taken; none if that is now.
    pub(crate) fn wake_ms(&self, now_ms: u64) -> Option<u64> {
        let free_ms = self.bytes_per_second.map_or(0, |_| self.paid_us.div_ceil(1_000));
        (free_ms > now_ms).then_some(free_ms)
    }

    /// Bytes of one chunk: no more than half a second is worth.
    pub(crate) fn chunk_bytes(&self, bytes_max: usize) -> usize {
        let worth = |rate| usize::try_from(rate / 2).unwrap_or(usize::MAX).max(CHUNK_BYTES_MIN);
        self.bytes_per_second.map_or(bytes_max, |rate| bytes_max.min(worth(rate)))
    }
}

/// Which replicas a limit of a node is for, of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Limited {
    /// None.
    #[default]
    None,
    /// All partitions.
    All,
    /// Of these partitions.
    Some(BTreeSet<i32>),
}

impl Limited {
    /// What a topic's setting says of a node: `*`, or a list of partition:node. What is neither says nothing.
    pub fn parse(value: &str, node: i32) -> Self {
        if value.trim() == "*" {
            return Self::All;
        }
        let of_node = |entry: &str| {
            let (partition, of) = entry.trim().split_once(':')?;
            (of.trim().parse() == Ok(node)).then(|| partition.trim().parse().ok())?
        };
        let partitions: BTreeSet<i32> = value.split(',').filter_map(of_node).collect();
        if partitions.is_empty() { Self::None } else { Self::Some(partitions) }
    }

    /// Whether a partition is among them.
    pub(crate) fn has(&self, partition: i32) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(partitions) => partitions.contains(&partition),
        }
    }
}

/// Which replicas of a topic a node limits: of those that it leads, and of those with which it follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitedReplicas {
    /// `leader.replication.throttled.replicas`
    pub leading: Limited,
    /// `follower.replication.throttled.replicas`
    pub following: Limited,
}

impl LimitedReplicas {
    /// What a topic's settings say of a node.
    pub fn parse(settings: &BTreeMap<String, String>, node: i32) -> Self {
        let of = |name| settings.get(name).map_or(Limited::None, |value| Limited::parse(value, node));
        Self { leading: of(LEADER_REPLICAS), following: of(FOLLOWER_REPLICAS) }
    }
}

/// Limits of one shard, in bytes per second; none where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicationLimits {
    /// `leader.replication.throttled.rate`
    pub leading: Option<u64>,
    /// `follower.replication.throttled.rate`
    pub following: Option<u64>,
}

impl ReplicationLimits {
    /// One shard's part of what a node's settings say, of which `value` looks one up. As in Kafka the largest number is no limit; what
    /// is none, or none at all, does not limit either.
    pub fn parse(value: impl Fn(&str) -> Option<String>, shards: u64) -> Self {
        let rate = |name| {
            let rate = value(name)?.trim().parse::<u64>().ok()?;
            (rate < i64::MAX as u64).then(|| (rate / shards).max(1))
        };
        Self { leading: rate(LEADER_RATE), following: rate(FOLLOWER_RATE) }
    }
}

/// What of a shard is limited, and how far each limit is used up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) leading: Quota,
    pub(crate) following: Quota,
    topics: BTreeMap<TopicId, LimitedReplicas>,
}

impl Limits {
    /// Whether that is another word than before.
    pub(crate) fn set_topic(&mut self, topic: TopicId, replicas: LimitedReplicas) -> bool {
        if replicas == LimitedReplicas::default() {
            return self.topics.remove(&topic).is_some();
        }
        let former = self.topics.insert(topic, replicas);
        former.as_ref() != self.topics.get(&topic)
    }

    /// No topic is limited, before that is said anew.
    pub(crate) fn forget_topics(&mut self) {
        self.topics.clear();
    }

    /// Whether the limit of leaders is for that partition.
    pub(crate) fn limits_leader(&self, partition: TopicPartition) -> bool {
        self.topics.get(&partition.topic).is_some_and(|it| it.leading.has(partition.partition))
    }

    /// Whether the limit of followers is for that partition.
    pub(crate) fn limits_follower(&self, partition: TopicPartition) -> bool {
        self.topics.get(&partition.topic).is_some_and(|it| it.following.has(partition.partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_bytes_pass_in_a_second_and_idle_time_is_hardly_saved_up() {
        let mut quota = Quota::default();
        quota.take(1_000_000, u64::MAX);
        assert_eq!(quota.wake_ms(1_000_000), None, "there is no limit");
        quota.set(Some(1_000_000));
        let (mut now_ms, mut taken) = (1_000_000, 0);
        while now_ms < 1_010_000 {
            match quota.wake_ms(now_ms) {
                Some(wake_ms) => now_ms = wake_ms,
                None => {
                    quota.take(now_ms, 300_000);
                    taken += 300_000;
                }
            }
        }
        assert!((10_000_000..12_000_000).contains(&taken), "{taken} in ten seconds");
        quota.set(Some(10));
        assert_eq!(quota.wake_ms(now_ms), None, "another limit begins anew");
        quota.take(now_ms, 100);
        assert_eq!(quota.wake_ms(now_ms), Some(now_ms + 9_000));
        quota.set(None);
        assert_eq!(quota.wake_ms(now_ms), None);
    }

    #[test]
    fn a_chunk_is_no_larger_than_its_limit_is_for_half_a_second() {
        let mut quota = Quota::default();
        assert_eq!(quota.chunk_bytes(1 << 20), 1 << 20);
        quota.set(Some(100_000));
        assert_eq!(quota.chunk_bytes(1 << 20), 50_000);
        quota.set(Some(1));
        assert_eq!(quota.chunk_bytes(1 << 20), CHUNK_BYTES_MIN);
    }

    #[test]
    fn a_shard_has_its_part_of_a_nodes_limits() {
        let parse = |leading: &str, following: &str| {
            let settings = BTreeMap::from([(LEADER_RATE, leading.to_owned()), (FOLLOWER_RATE, following.to_owned())]);
            let limits = ReplicationLimits::parse(|name| settings.get(name).cloned(), 4);
            (limits.leading, limits.following)
        };
        assert_eq!(parse(" 4000 ", "2"), (Some(1_000), Some(1)), "none is kept back for ever");
        assert_eq!(parse("9223372036854775807", "many"), (None, None));
        assert_eq!(ReplicationLimits::parse(|_| None, 4), ReplicationLimits::default());
        let topic = BTreeMap::from([
            (LEADER_REPLICAS.to_owned(), "0:1".to_owned()),
            (FOLLOWER_REPLICAS.to_owned(), "*".to_owned()),
        ]);
        let limited = LimitedReplicas::parse(&topic, 1);
        assert_eq!((limited.leading, limited.following), (Limited::Some([0].into()), Limited::All));
    }

    #[test]
    fn a_topics_setting_names_the_replicas_of_a_node() {
        assert_eq!(Limited::parse("*", 1), Limited::All);
        assert_eq!(Limited::parse("", 1), Limited::None);
        assert_eq!(Limited::parse("0:2,1:3", 1), Limited::None);
        assert_eq!(Limited::parse("0:1, 1:2 ,7:1", 1), Limited::Some([0, 7].into()));
    }
}
