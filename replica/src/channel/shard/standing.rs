//! What a shard's channel says of itself, for people and metrics.

use millrace_engine::api::TopicPartition;

use super::{ShardChannel, state::Part};
use crate::{
    channel::event::Logs,
    cluster::model::{Member, NodeId},
};

/// A follower, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerStanding {
    /// The partition.
    pub partition: TopicPartition,
    /// The follower.
    pub node: NodeId,
    /// Its connection is there.
    pub is_attached: bool,
    /// It is in the committed ISR.
    pub is_in_sync: bool,
    /// Up to where it has the log as safely as the topic asks.
    pub confirmed: i64,
    /// Records that the leader has and it did not confirm.
    pub lag: i64,
    /// Since when it lacks records, in ms; 0 if it lacks none.
    pub lag_ms: u64,
}

/// A partition that is followed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderStanding {
    /// The partition.
    pub partition: TopicPartition,
    /// Whom it follows.
    pub leader: NodeId,
    /// The logs were found to match, and records come.
    pub is_attached: bool,
    /// Records that consumers may see at the leader, as far as this node has heard, and that it does not have.
    pub lag: i64,
}

impl ShardChannel {
    /// This node's present life; none before it has registered.
    pub fn member(&self) -> Option<Member> {
        self.me
    }

    /// Every follower that was heard in the present epoch of a partition that is led here.
    pub fn followers<'a>(&'a self, now_ms: u64, logs: &'a dyn Logs) -> impl Iterator<Item = FollowerStanding> + 'a {
        let led = self.hosted.iter().filter_map(|(partition, hosted)| match &hosted.part {
            Part::Leading(leadership) => Some((*partition, leadership)),
            _ => None,
        });
        led.flat_map(move |(partition, leadership)| {
            let end = logs.position(partition).map_or(0, |position| position.end);
            leadership.followers.iter().map(move |follower| {
                let lag = (end - follower.confirmed).max(0);
                FollowerStanding {
                    partition,
                    node: follower.member.node,
                    is_attached: follower.link.is_some(),
                    is_in_sync: leadership.is_in_isr(follower.member, &self.nodes),
                    confirmed: follower.confirmed,
                    lag,
                    lag_ms: if lag == 0 { 0 } else { now_ms.saturating_sub(follower.caught_up_ms) },
                }
            })
        })
    }

    /// Up to where all replicas of a partition whose nodes live have let go of it; none if it is not led here.
    pub fn low_watermark(&self, partition: TopicPartition, logs: &dyn Logs) -> Option<i64> {
        match &self.hosted.get(&partition)?.part {
            Part::Leading(leadership) if leadership.start.is_some() => {
                Some(leadership.low_watermark(logs.position(partition)?, &self.nodes))
            }
            _ => None,
        }
    }

    /// The attempt of a partition that is followed here and of which chunks may come.
    #[cfg(test)]
    pub(crate) fn awaits_chunks(&self, partition: TopicPartition) -> Option<u32> {
        match &self.hosted.get(&partition)?.part {
            Part::Following(following) if following.awaits_chunks() => Some(following.attachment),
            _ => None,
        }
    }

    /// Epoch and maximal ISR of a partition that is led here.
    #[cfg(test)]
    pub(crate) fn maximal_isr(&self, partition: TopicPartition) -> Option<(i32, Vec<Member>)> {
        match &self.hosted.get(&partition)?.part {
            Part::Leading(leadership) if leadership.start.is_some() => {
                Some((leadership.epoch, leadership.maximal_isr()))
            }
            _ => None,
        }
    }

    /// Epoch of a partition that is led here, and members of the committed ISR.
    #[cfg(test)]
    pub(crate) fn in_sync(&self, partition: TopicPartition) -> Option<(i32, usize)> {
        match &self.hosted.get(&partition)?.part {
            Part::Leading(leadership) => Some((leadership.epoch, leadership.role.isr.len())),
            _ => None,
        }
    }

    /// Every partition that is followed here.
    pub fn leaders(&self) -> impl Iterator<Item = LeaderStanding> + '_ {
        self.hosted.iter().filter_map(|(partition, hosted)| match &hosted.part {
            Part::Following(following) => Some(LeaderStanding {
                partition: *partition,
                leader: following.leader.node,
                is_attached: following.is_attached(),
                lag: following.lag(),
            }),
            _ => None,
        })
    }
}
