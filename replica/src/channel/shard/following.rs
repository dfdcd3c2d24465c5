//! What a shard does as a follower: attaching, appending, confirming.

use millrace_engine::api::TopicPartition;

use super::{
    ShardChannel,
    link::Peer,
    state::{Alarm, Part},
};
use crate::{
    channel::{
        event::{LinkId, Logs},
        follower::{Following, Mismatch, Stage, Taken},
        frame::{
            Attached, Confirm, Detach, DetachReason, Frame, Live, Marks, Purpose, Run, Switch, VERSION_LOG_STARTS,
            Verdict,
        },
        guard::Guard,
        intent::EngineWork,
        stream::Part as FramePart,
    },
    cluster::model::NodeId,
};

/// Which way a run came.
#[derive(Clone, Copy)]
enum Way {
    Live,
    Chunk,
}

impl ShardChannel {
    pub(super) fn following(&mut self, partition: TopicPartition) -> Option<&mut Following> {
        match &mut self.hosted.get_mut(&partition)?.part {
            Part::Following(following) => Some(following),
            _ => None,
        }
    }

    /// Attaches all that is ready to a leader's shard.
    pub(super) fn attach_all(&mut self, peer: (NodeId, u32), logs: &dyn Logs) {
        let partitions: Vec<TopicPartition> = self.followed.get(&peer).into_iter().flatten().copied().collect();
        for partition in partitions {
            self.attach(partition, logs);
        }
    }

    /// Says where a log stands, if the partition is ready and there is a connection.
    pub(super) fn attach(&mut self, partition: TopicPartition, logs: &dyn Logs) {
        let attachment = self.last_attachment.wrapping_add(1);
        if self.hosted.get(&partition).is_none_or(|hosted| hosted.under_way.is_some() || hosted.next_change().is_some())
        {
            return;
        }
        let Some(following) = self.following(partition) else { return };
        let peer = (following.leader.node, following.shard);
        following.prepared();
        if following.stage != Stage::Ready {
            return;
        }
        let (Some(link), Some(position)) = (self.live_link(peer), logs.position(partition)) else { return };
        let Some(following) = self.following(partition) else { return };
        let attach = following.attach(attachment, position);
        self.held.remove(partition);
        self.coming.remove(&partition);
        self.last_attachment = attachment;
        self.say(link, Frame::Attach(vec![attach]));
    }

    /// The time has come to attach again.
    pub(super) fn rested(&mut self, partition: TopicPartition, logs: &dyn Logs) {
        if let Some(following) = self.following(partition)
            && following.stage == Stage::Resting
        {
            following.stage = Stage::Ready;
            self.attach(partition, logs);
        }
    }

    fn rest(&mut self, now_ms: u64, partition: TopicPartition) {
        if let Some(following) = self.following(partition) {
            following.stage = Stage::Resting;
            let pause = following.next_pause_ms();
            self.alarms.insert((now_ms + pause, Alarm::Attach(partition)));
        }
    }

    /// Gives an attempt up, tells the leader why, and attaches again later.
    fn detach(&mut self, now_ms: u64, partition: TopicPartition, reason: DetachReason) {
        let Some(following) = self.following(partition) else { return };
        let (attachment, epoch) = (following.attachment, following.epoch);
        let peer = (following.leader.node, following.shard);
        if following.is_heard()
            && let Some(link) = self.live_link(peer)
        {
            self.say(link, Frame::Detach(vec![Detach { partition, attachment, epoch, reason }]));
        }
        self.rest(now_ms, partition);
    }

    /// The engine refused an append.
    pub(super) fn append_failed(&mut self, now_ms: u64, partition: TopicPartition, attachment: u32) {
        let is_current = |following: &&mut Following| following.attachment == attachment && following.is_heard();
        if self.following(partition).as_ref().is_some_and(is_current) {
            self.detach(now_ms, partition, DetachReason::Failed);
        }
    }

    /// A connection to a leader is lost.
    pub(super) fn lose_leader_of(&mut self, now_ms: u64, peer: Peer) {
        let partitions: Vec<TopicPartition> =
            self.followed.get(&(peer.node, peer.shard)).into_iter().flatten().copied().collect();
        for partition in partitions {
            let Some(following) = self.following(partition) else { continue };
            match peer.purpose {
                Purpose::Live if following.is_heard() => following.stage = Stage::Ready,
                // chunks may be lost: only a new attempt tells where to go on
                Purpose::CatchUp if following.is_catching_up() => {
                    self.detach(now_ms, partition, DetachReason::Mismatch);
                }
                _ => {}
            }
        }
    }

    /// Takes a frame of a leader; none if it has no place there.
    pub(super) fn take_from_leader(&mut self, now_ms: u64, link: LinkId, frame: Frame, logs: &dyn Logs) -> Option<()> {
        let purpose = self.links.get(&link)?.peer?.purpose;
        match (purpose, frame) {
            (Purpose::Live, Frame::Attached(list)) => self.attached(now_ms, &list, logs),
            (Purpose::Live, Frame::Live(live)) => return self.take_live(now_ms, link, live),
            (Purpose::CatchUp, Frame::Chunk(run)) => {
                let bytes = run.payload.bytes.len() as u64;
                self.links.get_mut(&link)?.inbound.receive_chunk(bytes, part(&run));
                let partition = run.partition;
                self.take_run(now_ms, run, Way::Chunk);
                self.charge(now_ms, partition, bytes);
            }
            (Purpose::Live, Frame::Marks(list)) => self.take_marks(&list),
            (Purpose::Live, Frame::GoLive(list)) => self.switch(now_ms, &list, Way::Live),
            (Purpose::Live, Frame::CatchUp(list)) => self.switch(now_ms, &list, Way::Chunk),
            _ => return None,
        }
        Some(())
    }

    fn attached(&mut self, now_ms: u64, list: &[Attached], logs: &dyn Logs) {
        for attached in list {
            let Attached { partition, attachment, verdict } = *attached;
            let Some(following) = self.following(partition) else { continue };
            if following.stage != Stage::Attaching || following.attachment != attachment {
                continue;
            }
            let looked_up = match verdict {
                Verdict::Diverge { epoch, .. } => logs.end_of_epoch(partition, epoch),
                _ => None,
            };
            following.hear(verdict, looked_up);
            match following.stage {
                Stage::Resting => self.rest(now_ms, partition),
                _ => self.drive(now_ms, partition, logs),
            }
            self.report(partition);
        }
    }

    fn take_live(&mut self, now_ms: u64, link: LinkId, live: Live) -> Option<()> {
        let bytes = live.runs.iter().map(|run| run.payload.bytes.len() as u64).sum();
        self.pace.note_live(now_ms, bytes);
        let parts = live.runs.iter().map(part).collect();
        let is_next = self.links.get_mut(&link)?.inbound.receive(live.sequence, bytes, parts);
        for run in live.runs {
            self.take_run(now_ms, run, Way::Live);
        }
        is_next.then_some(())
    }

    fn take_run(&mut self, now_ms: u64, run: Run, way: Way) {
        let (partition, attachment, guards) = (run.partition, run.attachment, self.guards);
        let Some(following) = self.following(partition) else { return };
        let is_of_attempt = following.attachment == attachment && following.is_heard();
        if !is_of_attempt && !guards.is_off(Guard::RunsFit) {
            return;
        }
        let epoch = following.epoch;
        let taken = match way {
            Way::Live => following.take_live(run),
            Way::Chunk => following.take_chunk(run),
        };
        match taken {
            Ok(taken) => self.carry_out(partition, attachment, epoch, taken),
            Err(Mismatch) => self.detach(now_ms, partition, DetachReason::Mismatch),
        }
    }

    fn carry_out(&mut self, partition: TopicPartition, attachment: u32, epoch: i32, taken: Taken) {
        for run in taken.append {
            let Run { base, end, payload, .. } = run;
            self.work(partition, EngineWork::Append { attachment, epoch, base, end, batches: payload.bytes });
        }
        if let Some(high_watermark) = taken.high_watermark {
            self.work(partition, EngineWork::AdvanceHighWatermark { high_watermark });
        }
        if let Some(log_start) = taken.trim {
            self.work(partition, EngineWork::Trim { log_start });
        }
    }

    fn take_marks(&mut self, list: &[Marks]) {
        for marks in list {
            let Some(following) = self.following(marks.partition) else { continue };
            if following.attachment == marks.attachment {
                let (attachment, epoch, taken) = (following.attachment, following.epoch, following.take_marks(marks));
                self.carry_out(marks.partition, attachment, epoch, taken);
            }
        }
    }

    fn switch(&mut self, now_ms: u64, list: &[Switch], way: Way) {
        for switch in list {
            let partition = switch.partition;
            let Some(following) = self.following(partition) else { continue };
            if following.attachment != switch.attachment || !following.is_heard() {
                continue;
            }
            let peer = Peer { node: following.leader.node, shard: following.shard, purpose: Purpose::CatchUp };
            let result = match way {
                Way::Live => following.go_live(switch.at),
                Way::Chunk => following.catch_up(switch.at),
            };
            match (result, way) {
                (Err(Mismatch), _) => self.detach(now_ms, partition, DetachReason::Mismatch),
                (Ok(()), Way::Chunk) => {
                    self.dial_unless_resting(now_ms, peer);
                    self.line_up(now_ms, partition);
                }
                (Ok(()), Way::Live) => {
                    self.coming.remove(&partition);
                    self.report(partition);
                }
            }
        }
    }

    /// A followed log was written or flushed further.
    pub(super) fn progressed(&mut self, partition: TopicPartition, logs: &dyn Logs) {
        let Some(position) = logs.position(partition) else { return };
        let Some(following) = self.following(partition) else { return };
        following.progress(position);
        self.report(partition);
    }

    /// Has the leader hear where a log stands, as far as it does not know.
    fn report(&mut self, partition: TopicPartition) {
        let Some(following) = self.following(partition) else { return };
        let peer = (following.leader.node, following.shard);
        if let Some(state) = self.live_link(peer).and_then(|link| self.links.get_mut(&link)) {
            state.reports.insert(partition);
        }
    }

    /// Confirms what is safe by now, tells marks, and grants what was used.
    pub(super) fn settle(&mut self, now_ms: u64) {
        let dialed: Vec<LinkId> = self.dialed.values().filter_map(|dialed| dialed.link).collect();
        for link in dialed {
            let Some(mut state) = self.links.remove(&link) else { continue };
            let purpose = state.peer.map_or(Purpose::Live, |peer| peer.purpose);
            let window = self.window(now_ms, purpose);
            for partition in std::mem::take(&mut state.reports) {
                if let Some(report) = self.following(partition).and_then(Following::next_report) {
                    state.say(Frame::Positions(vec![report]));
                    self.unsent.insert(link);
                }
                if state.version >= VERSION_LOG_STARTS
                    && let Some(report) = self.following(partition).and_then(Following::next_log_start)
                {
                    state.say(Frame::LogStarts(vec![report]));
                    self.unsent.insert(link);
                }
            }
            let confirmed = state.inbound.settle(|part| self.is_done(part));
            let grant = confirmed.and_then(|_| state.inbound.next_grant(window));
            self.links.insert(link, state);
            if let Some(sequence) = confirmed.filter(|_| purpose == Purpose::Live) {
                self.say(link, Frame::Confirm(Confirm { sequence }));
            }
            if let Some(grant) = grant {
                self.say(link, Frame::Credit(grant));
            }
        }
    }

    /// Whether nothing is waited for any more for a run: it is as safe as it asked, or its attempt is over.
    fn is_done(&self, part: &FramePart) -> bool {
        match self.hosted.get(&part.partition).map(|hosted| &hosted.part) {
            Some(Part::Following(following)) if following.attachment == part.attachment && following.is_heard() => {
                following.has(part.end, part.durability)
            }
            _ => true,
        }
    }

    /// The leader lets a partition go.
    pub(super) fn let_go_by_leader(&mut self, now_ms: u64, detach: &Detach) {
        let Some(following) = self.following(detach.partition) else { return };
        if following.attachment == detach.attachment && following.is_heard() {
            self.rest(now_ms, detach.partition);
        }
    }
}

fn part(run: &Run) -> FramePart {
    let Run { partition, attachment, end, durability, .. } = *run;
    FramePart { partition, attachment, end, durability }
}
