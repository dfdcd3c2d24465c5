//! Limits on copies for replicas that are not in sync: a leader reads no more for them, a follower has their chunks held.

use millrace_engine::api::{TopicId, TopicPartition};

use super::{
    ShardChannel,
    state::{Alarm, Part},
};
use crate::channel::{
    event::LinkId,
    frame::{Chunks, Frame, Hold, VERSION_LOG_STARTS},
    guard::Guard,
    progress::Follower,
    quota::{LimitedReplicas, ReplicationLimits},
};

/// The next partition gets its turn, in ms, though nothing came of the one before.
const TURN_MS_MAX: u64 = 100;

impl ShardChannel {
    /// The limits of this shard are these from now on.
    pub fn handle_limits(&mut self, now_ms: u64, limits: ReplicationLimits) {
        self.limits.leading.set(limits.leading);
        self.limits.following.set(limits.following);
        self.limit_anew(now_ms);
    }

    /// Those replicas of a topic are limited from now on.
    pub fn handle_limited(&mut self, now_ms: u64, topic: TopicId, replicas: LimitedReplicas) {
        if self.limits.set_topic(topic, replicas) {
            self.limit_anew(now_ms);
        }
    }

    /// Other partitions are limited, or by another rate: all that is kept back is looked at again.
    fn limit_anew(&mut self, now_ms: u64) {
        for partition in self.held.take().collect::<Vec<_>>() {
            match self.is_limited_here(partition) {
                true => self.held.push(partition),
                false => self.say_hold(partition, Chunks::Come),
            }
        }
        // chunks of what lagged before are on their way
        let lags = |part: &Part| matches!(part, Part::Following(following) if following.is_catching_up());
        let lagging = self.hosted.iter().filter(|(_, hosted)| lags(&hosted.part)).map(|(partition, _)| *partition);
        let is_counted = |partition: &TopicPartition| self.is_limited_here(*partition) && !self.held.has(*partition);
        let counted: Vec<_> = lagging.filter(is_counted).collect();
        self.coming.extend(counted);
        self.let_come(now_ms);
        for link in std::mem::take(&mut self.limiting) {
            self.release_all(link);
        }
        self.feed(now_ms);
        self.flush();
    }

    /// Whether this shard's limit is for the follower of a partition: it is named, and not in sync.
    fn limits_copy(&self, live: LinkId, partition: TopicPartition) -> bool {
        let Some(Part::Leading(leadership)) = self.hosted.get(&partition).map(|hosted| &hosted.part) else {
            return false;
        };
        let follower = leadership.followers.iter().find(|follower| follower.link == Some(live));
        let is_outside = follower.is_some_and(|follower| !leadership.is_in_isr(follower.member, &self.nodes));
        is_outside && self.limits.limits_leader(partition) && !self.guards.is_off(Guard::LeaderLimit)
    }

    /// How much may be read for a follower now; none if a limit keeps it back: then it is read for later.
    pub(super) fn within_limits(
        &mut self,
        now_ms: u64,
        live: LinkId,
        partition: TopicPartition,
        bytes_max: usize,
    ) -> Option<usize> {
        let heeds = !self.guards.is_off(Guard::HoldHeeded);
        let waits = |follower: &mut Follower| follower.chunks == Chunks::Wait && heeds;
        let is_held = self.fed_through(live, partition).is_some_and(waits);
        let is_limited = self.limits_copy(live, partition);
        let wake_ms = self.limits.leading.wake_ms(now_ms).filter(|_| is_limited);
        if let Some(wake_ms) = wake_ms {
            self.alarms.insert((wake_ms, Alarm::Feed));
        }
        let state = self.links.get_mut(&live)?;
        if is_held {
            state.held.insert(partition);
            return None;
        }
        if wake_ms.is_some() {
            state.limited.insert(partition);
            self.limiting.insert(live);
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

    /// Has partitions read for again once the limit of this shard is paid for.
    pub(super) fn release_limited(&mut self, now_ms: u64) {
        if self.limiting.is_empty() || self.limits.leading.wake_ms(now_ms).is_some() {
            return;
        }
        for link in std::mem::take(&mut self.limiting) {
            self.release_all(link);
        }
    }

    fn release_all(&mut self, link: LinkId) {
        if let Some(state) = self.links.get_mut(&link) {
            let limited = std::mem::take(&mut state.limited);
            limited.into_iter().for_each(|partition| state.backlog.push(partition));
        }
    }

    /// The ISR of a partition is another: the limit is for its members no more.
    pub(super) fn release_members(&mut self, now_ms: u64, partition: TopicPartition) {
        if self.limiting.is_empty() {
            return;
        }
        let mut is_any = false;
        for link in self.limiting.clone() {
            let Some(state) = self.links.get_mut(&link) else { continue };
            if state.limited.remove(&partition) {
                state.backlog.push(partition);
                is_any = true;
            }
        }
        if is_any {
            self.alarms.insert((now_ms, Alarm::Feed));
        }
    }

    /// A follower wants chunks of partitions, or none.
    pub(super) fn hold(&mut self, now_ms: u64, live: LinkId, list: &[Hold]) {
        for hold in list {
            let follower = self.leading(hold.partition).and_then(|it| it.follower(live, hold.attachment));
            let Some(follower) = follower else { continue };
            follower.chunks = hold.chunks;
            if let Some(state) = self.links.get_mut(&live)
                && hold.chunks == Chunks::Come
                && state.held.remove(&hold.partition)
            {
                state.backlog.push(hold.partition);
            }
        }
        self.feed(now_ms);
    }

    fn is_limited_here(&self, partition: TopicPartition) -> bool {
        self.limits.following.is_set() && self.limits.limits_follower(partition)
    }

    /// Chunks of a partition are to come: at once, unless the limit is used up or others wait for it.
    pub(super) fn line_up(&mut self, now_ms: u64, partition: TopicPartition) {
        if !self.is_limited_here(partition) {
            return;
        }
        if self.limits.following.wake_ms(now_ms).is_none() && self.held.is_empty() {
            self.coming.insert(partition);
            return;
        }
        self.coming.remove(&partition);
        self.held.push(partition);
        self.say_hold(partition, Chunks::Wait);
    }

    /// A chunk came: it counts if it is of a partition that is limited here. While that was too much, all leaders wait.
    pub(super) fn charge(&mut self, now_ms: u64, partition: TopicPartition, bytes: u64) {
        if !self.is_limited_here(partition) || self.guards.is_off(Guard::FollowerLimit) {
            return;
        }
        self.limits.following.take(now_ms, bytes);
        let Some(wake_ms) = self.limits.following.wake_ms(now_ms) else { return self.let_come(now_ms) };
        self.let_come_at(wake_ms);
        self.coming.remove(&partition);
        let others = std::mem::take(&mut self.coming);
        for partition in others.into_iter().chain([partition]) {
            let lags = self.following(partition).is_some_and(|following| following.is_catching_up());
            // what came all the same was on its way
            if lags && !self.held.has(partition) {
                self.held.push(partition);
                self.say_hold(partition, Chunks::Wait);
            }
        }
    }

    /// Has chunks of the next partition come that waits, if the limit is paid for; its chunk, or a while, brings the one after it.
    pub(super) fn let_come(&mut self, now_ms: u64) {
        if let Some(wake_ms) = self.limits.following.wake_ms(now_ms) {
            if !self.held.is_empty() {
                self.let_come_at(wake_ms);
            }
            return;
        }
        if self.guards.is_off(Guard::HoldEnds) {
            return;
        }
        while let Some(partition) = self.held.pop() {
            self.say_hold(partition, Chunks::Come);
            // one that lags no more, or has another attempt, brings nothing
            if self.following(partition).is_some_and(|following| following.is_catching_up()) {
                self.coming.insert(partition);
                break;
            }
        }
        if !self.held.is_empty() {
            self.let_come_at(now_ms + TURN_MS_MAX);
        }
    }

    /// The next turn is then: there is one at a time.
    fn let_come_at(&mut self, at_ms: u64) {
        if let Some(before) = self.turn_at_ms.replace(at_ms) {
            self.alarms.remove(&(before, Alarm::LetCome));
        }
        self.alarms.insert((at_ms, Alarm::LetCome));
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
