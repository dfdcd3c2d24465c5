//! Limits on copies for replicas that are not in sync: a leader reads no more for them, a follower has their chunks held.

use millrace_engine::api::{TopicId, TopicPartition};

use super::{
    ShardChannel,
    state::{Alarm, Part},
};
use crate::channel::{
    event::LinkId,
    frame::{Chunks, Frame, Hold, VERSION_LOG_STARTS},
    quota::{LimitedReplicas, ReplicationLimits},
};

impl ShardChannel {
    /// The limits of this shard are these from now on.
    pub fn handle_limits(&mut self, now_ms: u64, limits: ReplicationLimits) {
        self.limits.leading.set(limits.leading);
        self.limits.following.set(limits.following);
        self.let_come(now_ms);
        self.feed(now_ms);
        self.flush();
    }

    /// Those replicas of a topic are limited from now on.
    pub fn handle_limited(&mut self, now_ms: u64, topic: TopicId, replicas: LimitedReplicas) {
        if self.limits.set_topic(topic, replicas) {
            self.let_come(now_ms);
            self.feed(now_ms);
            self.flush();
        }
    }

    /// Whether this shard's limit is for the follower of a partition: it is named, and not in sync.
    fn limits_copy(&self, live: LinkId, partition: TopicPartition) -> bool {
        let Some(Part::Leading(leadership)) = self.hosted.get(&partition).map(|hosted| &hosted.part) else {
            return false;
        };
        let follower = leadership.followers.iter().find(|follower| follower.link == Some(live));
        let is_outside = follower.is_some_and(|follower| !leadership.is_in_isr(follower.member, &self.nodes));
        is_outside && self.limits.limits_leader(partition)
    }

    /// How much may be read for a follower now; none if a limit keeps it back: then it is read for later.
    pub(super) fn within_limits(
        &mut self,
        now_ms: u64,
        live: LinkId,
        partition: TopicPartition,
        bytes_max: usize,
    ) -> Option<usize> {
        let is_held = self.fed_through(live, partition).is_some_and(|follower| follower.chunks == Chunks::Wait);
        let is_limited = self.limits_copy(live, partition);
        let wake_ms = self.limits.leading.wake_ms(now_ms).filter(|_| is_limited);
        if let Some(wake_ms) = wake_ms {
            self.alarms.insert((wake_ms, Alarm::Feed));
        }
        if is_held || wake_ms.is_some() {
            self.links.get_mut(&live)?.limited.insert(partition);
            return None;
        }
        Some(if is_limited { self.limits.leading.chunk_bytes(bytes_max) } else { bytes_max })
    }

    /// A chunk was sent.
    pub(super) fn charge_leader(&mut self, now_ms: u64, live: LinkId, partition: TopicPartition, bytes: u64) {
        if self.limits_copy(live, partition) {
            self.limits.leading.take(now_ms, bytes);
        }
    }

    /// Has partitions read for again that the limit of this shard does not keep back any more.
    pub(super) fn release_limited(&mut self, now_ms: u64) {
        let links: Vec<LinkId> =
            self.links.iter().filter(|(_, state)| !state.limited.is_empty()).map(|(id, _)| *id).collect();
        for link in links {
            let limited = self.links.get_mut(&link).map(|state| std::mem::take(&mut state.limited)).unwrap_or_default();
            for partition in limited {
                let is_held = self.fed_through(link, partition).is_some_and(|follower| follower.chunks == Chunks::Wait);
                let is_over = self.limits.leading.wake_ms(now_ms).is_some() && self.limits_copy(link, partition);
                let Some(state) = self.links.get_mut(&link) else { break };
                match is_held || is_over {
                    true => drop(state.limited.insert(partition)),
                    false => state.backlog.push_back(partition),
                }
            }
        }
    }

    /// A follower wants chunks of partitions, or none.
    pub(super) fn hold(&mut self, now_ms: u64, live: LinkId, list: &[Hold]) {
        for hold in list {
            let follower = self.leading(hold.partition).and_then(|it| it.follower(live, hold.attachment));
            if let Some(follower) = follower {
                follower.chunks = hold.chunks;
            }
        }
        self.feed(now_ms);
    }

    /// A chunk came: it counts if it is of a partition that is limited here, whose leader waits if that was too much.
    pub(super) fn charge(&mut self, now_ms: u64, partition: TopicPartition, bytes: u64) {
        if !self.limits.limits_follower(partition) {
            return;
        }
        self.limits.following.take(now_ms, bytes);
        if let Some(wake_ms) = self.limits.following.wake_ms(now_ms) {
            self.alarms.insert((wake_ms, Alarm::LetCome));
            if self.held.insert(partition) {
                self.say_hold(partition, Chunks::Wait);
            }
        }
    }

    /// Has chunks come again of partitions that are not over their limit any more.
    pub(super) fn let_come(&mut self, now_ms: u64) {
        let is_over = self.limits.following.wake_ms(now_ms).is_some();
        let held = std::mem::take(&mut self.held);
        for partition in held {
            match is_over && self.limits.limits_follower(partition) {
                true => drop(self.held.insert(partition)),
                false => self.say_hold(partition, Chunks::Come),
            }
        }
    }

    fn say_hold(&mut self, partition: TopicPartition, chunks: Chunks) {
        let Some(following) = self.following(partition).filter(|following| following.is_attached()) else { return };
        let (peer, attachment) = ((following.leader.node, following.shard), following.attachment);
        let Some(link) = self.live_link(peer) else { return };
        if self.links.get(&link).is_some_and(|state| state.version >= VERSION_LOG_STARTS) {
            self.say(link, Frame::Hold(vec![Hold { partition, attachment, chunks }]));
        }
    }
}
