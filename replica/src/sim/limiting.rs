//! Limits on replication: what nodes hear of them, and whether they keep to them.

use std::collections::BTreeSet;

use millrace_engine::api::TopicPartition;

use super::world::{View, World};
use crate::{
    channel::{
        event::LinkId,
        frame::{Chunks, Frame, Run},
        quota::{Limited, LimitedReplicas, ReplicationLimits},
        shard::FollowerStanding,
    },
    cluster::model::{Member, NodeId},
};

/// What is saved up in time that nothing was taken, in ms.
const BURST_MS: u64 = 1_000;
/// What may be on its way from one leader before any of it counts: a chunk for each follower of each partition.
const AT_ONCE_BYTES: u64 = 4_000;
/// The slowest rate at which every log gets there while a world comes to rest, in bytes per second.
const RATE_AT_REST: u64 = 5_000;

/// What of a node is limited, and what it took.
#[derive(Debug, Default)]
pub(super) struct Limiting {
    limits: ReplicationLimits,
    replicas: LimitedReplicas,
    /// The process and life that know.
    told: Option<(u64, Member)>,
    /// Since when, by the channel's clock.
    since_ms: u64,
    /// What was sent under the limit of leaders since then.
    sent_bytes: u64,
    /// When all that came under the limit of followers is paid for, in microseconds of that clock.
    paid_us: u64,
}

/// What followers asked to be held back, as leaders heard it and as they said it.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Leader, its process, its connection, attempt.
    heard: BTreeSet<(NodeId, u64, LinkId, u32)>,
    /// Follower, its process, attempt.
    said: BTreeSet<(NodeId, u64, u32)>,
    /// Attempts of which followers heard that they are to catch up, in the same way: who has heard only that the logs match
    /// may be about to hear that it goes live.
    told: BTreeSet<(NodeId, u64, u32)>,
}

impl World {
    /// Somebody limits replication on a node, or does so no more.
    pub(super) fn limit(&mut self, id: NodeId, partition: TopicPartition) {
        let rates = [None, Some(100), Some(400), Some(4_000)];
        let limits = ReplicationLimits { leading: self.random.pick(&rates), following: self.random.pick(&rates) };
        let mut replicas = || match self.random.below(4) {
            0 => Limited::None,
            1 => Limited::Some([partition.partition].into()),
            _ => Limited::All,
        };
        let replicas = LimitedReplicas { leading: replicas(), following: replicas() };
        self.nodes.get_mut(&id).expect("a node").limiting = Limiting { limits, replicas, ..Limiting::default() };
        self.tell_limits(id);
    }

    /// Limits that are too low for logs to get there any more are raised.
    pub(super) fn raise_limits(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let Limiting { limits, replicas, .. } = &self.nodes[&id].limiting;
            let raised = |rate: Option<u64>| rate.map(|rate| rate.max(RATE_AT_REST));
            let limits = ReplicationLimits { leading: raised(limits.leading), following: raised(limits.following) };
            let limiting = Limiting { limits, replicas: replicas.clone(), ..Limiting::default() };
            self.nodes.get_mut(&id).expect("a node").limiting = limiting;
            self.tell_limits(id);
        }
    }

    /// Gives a node's channel its limits unless it knows them.
    pub(super) fn tell_limits(&mut self, id: NodeId) {
        let (now, topic) = (self.now_ms, self.partitions[0].topic);
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(me) = node.core.member().filter(|_| node.is_up && node.paused_until_ms <= now) else { return };
        let limiting = &mut node.limiting;
        if limiting.told == Some((node.process, me)) {
            return;
        }
        limiting.told = Some((node.process, me));
        (limiting.since_ms, limiting.sent_bytes, limiting.paid_us) = (now + node.clock_ahead_ms, 0, 0);
        let (limits, replicas) = (limiting.limits, limiting.replicas.clone());
        self.call(id, |now, core, _| {
            core.handle_limits(now, limits);
            core.handle_limited(now, topic, replicas);
        });
    }

    /// A frame leaves a node: a chunk is within its limit, and what it asks its leader is noted.
    pub(super) fn note_sent(&mut self, id: NodeId, process: u64, to: NodeId, frame: &Frame) {
        match frame {
            Frame::Chunk(run) => self.check_rate(id, to, run),
            Frame::Hold(list) => {
                for hold in list {
                    let key = (id, process, hold.attachment);
                    match hold.chunks {
                        Chunks::Wait => drop(self.holding.said.insert(key)),
                        Chunks::Come => drop(self.holding.said.remove(&key)),
                    }
                }
            }
            _ => {}
        }
    }

    fn check_rate(&mut self, id: NodeId, to: NodeId, run: &Run) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let now = self.now_ms + node.clock_ahead_ms;
        let limiting = &mut node.limiting;
        let Some(rate) = limiting.limits.leading.filter(|_| limiting.replicas.leading.has(run.partition.partition))
        else {
            return;
        };
        let logs = View(&node.logs);
        let is_member = |it: FollowerStanding| (it.partition, it.node, it.is_in_sync) == (run.partition, to, true);
        let is_in_sync = node.core.followers(now, &logs).any(is_member);
        if is_in_sync {
            return;
        }
        limiting.sent_bytes += run.payload.bytes.len() as u64;
        let allowed = rate * (now - limiting.since_ms + BURST_MS) / 1_000 + AT_ONCE_BYTES;
        if limiting.sent_bytes > allowed {
            let (bytes, ms) = (limiting.sent_bytes, now - limiting.since_ms);
            self.violate(format!("limit: {id} sent {bytes} in {ms} ms with {rate} bytes per second"));
        }
    }

    /// A node is about to hear what a follower wants of it, or what its leader does.
    pub(super) fn note_heard(&mut self, id: NodeId, process: u64, link: LinkId, frame: &Frame) {
        if let Frame::CatchUp(list) = frame {
            self.holding.told.extend(list.iter().map(|switch| (id, process, switch.attachment)));
        }
        let Frame::Hold(list) = frame else { return };
        for hold in list {
            let key = (id, process, link, hold.attachment);
            match hold.chunks {
                Chunks::Wait => drop(self.holding.heard.insert(key)),
                Chunks::Come => drop(self.holding.heard.remove(&key)),
            }
        }
    }

    /// A leader reads for a follower, which must want it.
    pub(super) fn check_read(&mut self, id: NodeId, process: u64, link: LinkId, attachment: u32) {
        if self.holding.heard.contains(&(id, process, link, attachment)) {
            self.violate(format!("limit: {id} reads for attempt {attachment}, which said that it has to wait"));
        }
    }

    /// A follower took a chunk: if that was too much, it has said of all that are limited that no more is to come.
    pub(super) fn check_held(&mut self, id: NodeId, process: u64, run: &Run) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let limiting = &mut node.limiting;
        let is_told = limiting.told == node.core.member().map(|me| (process, me));
        let Some(rate) = limiting.limits.following.filter(|_| limiting.replicas.following.has(run.partition.partition))
        else {
            return;
        };
        if !is_told {
            return;
        }
        let now_us = (self.now_ms + node.clock_ahead_ms) * 1_000;
        let earliest_us = now_us.saturating_sub(BURST_MS * 1_000);
        limiting.paid_us = limiting.paid_us.max(earliest_us) + run.payload.bytes.len() as u64 * 1_000_000 / rate;
        if limiting.paid_us <= now_us + 1_000 {
            return;
        }
        let limited = self.partitions.iter().filter(|it| limiting.replicas.following.has(it.partition));
        let awaited = limited.filter_map(|it| Some((*it, node.core.awaits_chunks(*it)?)));
        let Held { said, told, .. } = &self.holding;
        let is_unsaid = |key: &(NodeId, u64, u32)| told.contains(key) && !said.contains(key);
        let mut unsaid = awaited.filter(|(_, attachment)| is_unsaid(&(id, process, *attachment)));
        if let Some((partition, _)) = unsaid.next() {
            self.violate(format!("limit: {id} is over {rate} bytes per second and awaits more of {partition:?}"));
        }
    }
}
