//! What a shard does as a leader: answering who attaches, pushing groups, moving high watermarks and ISRs.

use std::collections::BTreeMap;

use millrace_engine::{api::TopicPartition, config::Durability};

use super::{
    ShardChannel,
    link::{Link, Peer},
    state::{Alarm, Part, SWEEP_MS},
};
use crate::{
    channel::{
        event::{IsrOutcome, LinkId, Logs, SealedRun},
        frame::{
            Attach, Attached, Confirm, Detach, Frame, ITEMS_MAX, Live, LogStart, Marks, PAYLOAD_BYTES_MAX, Payload,
            Position, Purpose, Run, Switch, VERSION_LOG_STARTS, Verdict,
        },
        intent::{EngineWork, Intent},
        leader::Leadership,
        progress::{Flow, Follower},
        stream::{Part as FramePart, SHARD_WINDOW_BYTES},
    },
    cluster::{change::IsrProposal, model::Member},
};

/// The latest that a follower hears of a high watermark after it moved, in ms.
const NOTICE_MS: u64 = 5;
/// Restless partitions that one turn looks at.
const SWEEP_MAX: usize = 1_024;
/// Payload of a live frame, but for one run that is larger: what comes sooner is appended sooner.
const LIVE_BYTES_TARGET: usize = 4 << 20;

const _: () = assert!(LIVE_BYTES_TARGET <= PAYLOAD_BYTES_MAX);

impl ShardChannel {
    pub(super) fn leading(&mut self, partition: TopicPartition) -> Option<&mut Leadership> {
        match &mut self.hosted.get_mut(&partition)?.part {
            Part::Leading(leadership) => Some(leadership),
            _ => None,
        }
    }

    /// The engine has noted the epoch: whoever attached meanwhile is answered.
    pub(super) fn begin(&mut self, now_ms: u64, partition: TopicPartition, logs: &dyn Logs) {
        let Some(position) = logs.position(partition) else { return };
        let Some(leadership) = self.leading(partition) else { return };
        leadership.begin(position);
        let (early, count) = (std::mem::take(&mut leadership.early), leadership.role.isr.len());
        self.work(partition, EngineWork::SetInSync { count });
        for (link, attach) in early {
            self.answer(now_ms, link, attach, logs);
        }
        self.advance(now_ms, partition, logs);
        self.rouse(now_ms, partition);
    }

    /// Takes a frame of a follower; none if it has no place there.
    pub(super) fn take_from_follower(
        &mut self,
        now_ms: u64,
        link: LinkId,
        frame: Frame,
        logs: &dyn Logs,
    ) -> Option<()> {
        match frame {
            Frame::Attach(list) if self.links.get(&link)?.is_to_follower() => {
                for attach in list {
                    self.answer(now_ms, link, attach, logs);
                }
                self.read_for(now_ms, link);
            }
            Frame::Confirm(Confirm { sequence }) => {
                let parts = self.links.get_mut(&link)?.outbound.confirm(sequence)?;
                self.confirmed(now_ms, link, &parts, logs);
            }
            Frame::Positions(list) => self.take_positions(now_ms, link, &list, logs),
            Frame::LogStarts(list) if self.speaks_of_log_starts(link) => self.take_log_starts(link, &list),
            Frame::Hold(list) if self.speaks_of_log_starts(link) => self.hold(now_ms, link, &list),
            Frame::Credit(credit_bytes) => {
                self.links.get_mut(&link)?.outbound.grant(credit_bytes);
                let live = self.live_of(link)?;
                self.rouse_backlog(live);
                self.read_for(now_ms, live);
            }
            _ => return None,
        }
        Some(())
    }

    /// The live connection of the follower that an accepted one belongs to; itself if that is not there.
    fn live_of(&self, link: LinkId) -> Option<LinkId> {
        let peer = self.links.get(&link)?.peer?;
        Some(self.accepted.get(&Peer { purpose: Purpose::Live, ..peer }).copied().unwrap_or(link))
    }

    fn answer(&mut self, now_ms: u64, link: LinkId, attach: Attach, logs: &dyn Logs) {
        let Attach { partition, attachment, epoch, end, last_epoch, .. } = attach;
        let Some(member) = self.links.get(&link).and_then(|state| state.member) else { return };
        let Some(hosted) = self.hosted.get_mut(&partition) else {
            return self
                .say(link, Frame::Attached(vec![Attached { partition, attachment, verdict: Verdict::Unknown }]));
        };
        let verdict = match (&mut hosted.part, logs.position(partition)) {
            (Part::Leading(leadership), Some(position)) => {
                if leadership.epoch == epoch && leadership.start.is_none() {
                    leadership.early.retain(|(other, _)| *other != link);
                    leadership.early.push((link, attach));
                    return;
                }
                leadership.verdict(&attach, position, logs.end_of_epoch(partition, last_epoch))
            }
            _ if epoch > hosted.epoch => Verdict::Unknown,
            _ if epoch < hosted.epoch => Verdict::Fenced { epoch: hosted.epoch },
            _ => Verdict::NotLeader,
        };
        self.say(link, Frame::Attached(vec![Attached { partition, attachment, verdict }]));
        if verdict == Verdict::Match {
            self.take_up(now_ms, link, member, &attach);
            self.say_switch(link, partition, attachment, end);
            self.advance(now_ms, partition, logs);
        }
    }

    /// Takes up a follower whose log matches.
    fn take_up(&mut self, now_ms: u64, link: LinkId, member: Member, attach: &Attach) {
        let partition = attach.partition;
        let (has_credit, speaks) = (self.may_send(link), self.speaks_of_log_starts(link));
        let Some(leadership) = self.leading(partition) else { return };
        let former = leadership.followers.iter().find(|follower| follower.member.node == member.node);
        let former = former.and_then(|follower| follower.link);
        let flow = match attach.end >= leadership.sealed && has_credit {
            true => Flow::Live { next: attach.end },
            false => Flow::CatchUp { next: attach.end, is_reading: false },
        };
        leadership.take_up(now_ms, member, link, attach, flow);
        if speaks && let Some(follower) = leadership.follower(link, attach.attachment) {
            follower.log_start = Some(0); // it says where its log begins if that is elsewhere
        }
        if let Some(former) = former {
            self.forget_follower(former, partition);
        }
        let Some(state) = self.links.get_mut(&link) else { return };
        state.attached.insert(partition);
        if let Flow::CatchUp { .. } = flow {
            state.backlog.push(partition);
        }
        self.notify(now_ms, partition);
    }

    /// Tells a follower which way its next run comes.
    fn say_switch(&mut self, link: LinkId, partition: TopicPartition, attachment: u32, at: i64) {
        let flow =
            self.leading(partition).and_then(|leadership| leadership.follower(link, attachment)).map(|it| it.flow);
        let list = vec![Switch { partition, attachment, at }];
        match flow {
            Some(Flow::Live { .. }) => self.say(link, Frame::GoLive(list)),
            Some(_) => self.say(link, Frame::CatchUp(list)),
            None => {}
        }
    }

    /// Has live followers say how far they flushed, which confirmed what they had written: the topic asks for more from now on,
    /// and there may be no further run to ask it of.
    pub(super) fn ask_for_marks(&mut self, partition: TopicPartition) {
        let Some(leadership) = self.leading(partition) else { return };
        let mut asked = Vec::new();
        for follower in &mut leadership.followers {
            if let (Some(link), Flow::Live { next }) = (follower.link, follower.flow)
                && follower.durable < follower.unflushed
            {
                follower.flow = Flow::CatchUp { next, is_reading: false };
                asked.push((link, follower.attachment, next));
            }
        }
        for (link, attachment, at) in asked {
            // who catches up tells its marks, up to where it goes live again
            self.say(link, Frame::CatchUp(vec![Switch { partition, attachment, at }]));
            if !self.go_live(link, partition, attachment, at)
                && let Some(state) = self.links.get_mut(&link)
            {
                state.backlog.push(partition);
            }
        }
    }

    /// A partition's follower is not served through a connection any more.
    pub(super) fn forget_follower(&mut self, link: LinkId, partition: TopicPartition) {
        if let Some(state) = self.links.get_mut(&link) {
            state.attached.remove(&partition);
            state.notices.remove(&partition);
            state.leave_backlog(partition);
            if state.copies.forget(partition) {
                // others may have waited for these, and nobody tells of their end
                self.alarms.insert((0, Alarm::Feed));
            }
        }
    }

    /// A follower's connection is lost.
    pub(super) fn lose_follower(&mut self, now_ms: u64, link: LinkId, state: &Link) {
        for partition in &state.attached {
            let Some(leadership) = self.leading(*partition) else { continue };
            let lost = leadership.followers.iter_mut().filter(|follower| follower.link == Some(link));
            lost.for_each(|follower| follower.break_off(now_ms));
            leadership.early.retain(|(other, _)| *other != link);
            self.rouse(now_ms, *partition);
        }
        self.feed(now_ms);
    }

    /// A follower lets a partition go.
    pub(super) fn let_go_by_follower(&mut self, now_ms: u64, link: LinkId, detach: &Detach, logs: &dyn Logs) {
        let partition = detach.partition;
        let Some(leadership) = self.leading(partition) else { return };
        let Some(follower) = leadership.follower(link, detach.attachment) else { return };
        follower.break_off(now_ms);
        self.forget_follower(link, partition);
        self.end_pieces(now_ms, link);
        self.advance(now_ms, partition, logs);
        self.rouse(now_ms, partition);
    }

    /// A commit group was sealed: its runs, in order. Goes to whoever follows live before the group is written here.
    pub fn handle_sealed(&mut self, now_ms: u64, runs: Vec<SealedRun>, logs: &dyn Logs) {
        self.pace.note_live(now_ms, runs.iter().map(|run| run.bytes.len() as u64).sum());
        let mut frames: BTreeMap<LinkId, Vec<Run>> = BTreeMap::new();
        for run in runs {
            let log_start = logs.position(run.partition).map_or(0, |position| position.log_start);
            self.sealed(now_ms, run, log_start, &mut frames);
        }
        for (link, runs) in frames {
            self.push(now_ms, link, runs);
        }
        self.flush();
    }

    fn sealed(&mut self, now_ms: u64, run: SealedRun, log_start: i64, frames: &mut BTreeMap<LinkId, Vec<Run>>) {
        let SealedRun { partition, base, end, bytes, .. } = run;
        let Some(leadership) = self.leading(partition) else { return };
        leadership.sealed = leadership.sealed.max(end);
        let (epoch, high_watermark) = (leadership.epoch, leadership.high_watermark);
        let durability = leadership.promise();
        let mut payload: Option<Payload> = None;
        let (mut paused, mut joined, mut lagging) = (Vec::new(), Vec::new(), Vec::new());
        for follower in &mut leadership.followers {
            follower.note_growth(now_ms, base);
            let (Some(link), attachment, next) = (follower.link, follower.attachment, follower.flow.next()) else {
                continue;
            };
            match follower.flow {
                Flow::Live { .. } if end <= next => continue,
                Flow::Live { .. } if base == next => {}
                Flow::Live { .. } => {
                    follower.flow = Flow::Paused { next };
                    paused.push((link, attachment, next));
                    continue;
                }
                Flow::CatchUp { is_reading: false, .. } if base == next => {
                    joined.push((link, attachment, next));
                    continue;
                }
                Flow::CatchUp { .. } | Flow::Paused { .. } => {
                    lagging.push(link);
                    continue;
                }
            }
            follower.sent(end, durability);
            let payload = payload.get_or_insert_with(|| Payload::new(bytes.clone())).clone();
            let run = Run { partition, attachment, epoch, base, end, high_watermark, log_start, durability, payload };
            frames.entry(link).or_default().push(run);
        }
        self.rouse(now_ms, partition);
        for (link, attachment, at) in paused {
            self.say(link, Frame::CatchUp(vec![Switch { partition, attachment, at }]));
            self.resume(link, partition, attachment);
        }
        for (link, attachment, at) in joined {
            let goes = self.go_live(link, partition, attachment, at);
            let follower = self.leading(partition).and_then(|leadership| leadership.follower(link, attachment));
            match follower.filter(|_| goes) {
                Some(follower) => {
                    follower.sent(end, durability);
                    let payload = payload.get_or_insert_with(|| Payload::new(bytes.clone())).clone();
                    let run =
                        Run { partition, attachment, epoch, base, end, high_watermark, log_start, durability, payload };
                    frames.entry(link).or_default().push(run);
                }
                None => lagging.push(link),
            }
        }
        for link in lagging {
            self.rouse_backlog(link);
            self.read_for(now_ms, link);
        }
    }

    /// Sends runs of one group, or has their partitions caught up later if there are no credits.
    fn push(&mut self, now_ms: u64, link: LinkId, runs: Vec<Run>) {
        let mut runs = runs.into_iter().peekable();
        while runs.peek().is_some() {
            if !self.may_send(link) {
                return runs.for_each(|run| self.pause(link, &run));
            }
            let (mut taken, mut bytes) = (Vec::new(), 0);
            while let Some(run) = runs.next_if(|run| {
                let more = bytes + run.payload.bytes.len();
                taken.is_empty() || (more <= LIVE_BYTES_TARGET && taken.len() < ITEMS_MAX)
            }) {
                bytes += run.payload.bytes.len();
                taken.push(run);
            }
            let Some(state) = self.links.get_mut(&link) else { return };
            let parts = taken.iter().map(frame_part).collect();
            let sequence = state.outbound.note_live(bytes as u64, parts);
            state.notices.retain(|partition| !taken.iter().any(|run| run.partition == *partition));
            state.payload_ms = now_ms;
            self.say(link, Frame::Live(Live { sequence, runs: taken }));
        }
    }

    fn pause(&mut self, link: LinkId, run: &Run) {
        let Run { partition, attachment, base, .. } = *run;
        let Some(follower) = self.leading(partition).and_then(|leadership| leadership.follower(link, attachment))
        else {
            return;
        };
        // a second run of the partition in the same group finds it paused
        if let Flow::Live { .. } = follower.flow {
            follower.flow = Flow::Paused { next: base };
            self.say(link, Frame::CatchUp(vec![Switch { partition, attachment, at: base }]));
            self.resume(link, partition, attachment);
        }
    }

    /// Whether a live frame may be sent: within the connection's credits and what the shard keeps in memory for all.
    fn may_send(&self, link: LinkId) -> bool {
        let under_way: u64 = self.links.values().map(|state| state.outbound.under_way_bytes()).sum();
        self.links.get(&link).is_some_and(|state| state.outbound.has_credit()) && under_way < SHARD_WINDOW_BYTES
    }

    /// Lets a follower without credits catch up once it has all that was sent.
    fn resume(&mut self, link: LinkId, partition: TopicPartition, attachment: u32) {
        let Some(follower) = self.leading(partition).and_then(|leadership| leadership.follower(link, attachment))
        else {
            return;
        };
        let Flow::Paused { next } = follower.flow else { return };
        if follower.confirmed >= next {
            follower.flow = Flow::CatchUp { next, is_reading: false };
            if let Some(state) = self.links.get_mut(&link) {
                state.backlog.push(partition);
            }
        }
    }

    /// Turns a follower that has all that was sealed over to live runs, if there are credits.
    pub(super) fn go_live(&mut self, link: LinkId, partition: TopicPartition, attachment: u32, at: i64) -> bool {
        let is_roomy = self.links.get(&link).is_some_and(|state| state.outbound.is_roomy());
        if !is_roomy || !self.may_send(link) {
            return false;
        }
        let Some(follower) = self.leading(partition).and_then(|leadership| leadership.follower(link, attachment))
        else {
            return false;
        };
        follower.flow = Flow::Live { next: at };
        if let Some(state) = self.links.get_mut(&link) {
            state.leave_backlog(partition);
        }
        self.say(link, Frame::GoLive(vec![Switch { partition, attachment, at }]));
        true
    }

    fn confirmed(&mut self, now_ms: u64, link: LinkId, parts: &[FramePart], logs: &dyn Logs) {
        let mut ended = false;
        for part in parts {
            let Some(position) = logs.position(part.partition) else { continue };
            let Some(leadership) = self.leading(part.partition) else { continue };
            leadership.confirm(now_ms, link, part.attachment, part.end, position.end);
            if part.durability == Durability::Device
                && let Some(follower) = leadership.follower(link, part.attachment)
            {
                follower.note_flushed(part.end, part.end);
            }
            if let Some(state) = self.links.get_mut(&link) {
                ended |= state.copies.confirm(part.partition, part.attachment, part.end);
            }
            self.resume(link, part.partition, part.attachment);
            self.advance(now_ms, part.partition, logs);
        }
        self.rouse_backlog(link);
        match ended {
            true => self.end_pieces(now_ms, link),
            false => self.read_for(now_ms, link),
        }
    }

    fn take_positions(&mut self, now_ms: u64, link: LinkId, list: &[Position], logs: &dyn Logs) {
        for told in list {
            let Some(position) = logs.position(told.partition) else { continue };
            let Some(leadership) = self.leading(told.partition) else { continue };
            let offset = leadership.confirmed_of(told);
            leadership.confirm(now_ms, link, told.attachment, offset, position.end);
            if let Some(follower) = leadership.follower(link, told.attachment) {
                follower.note_flushed(told.durable, offset);
            }
            if let Some(state) = self.links.get_mut(&link) {
                state.copies.confirm(told.partition, told.attachment, offset);
            }
            self.resume(link, told.partition, told.attachment);
            self.advance(now_ms, told.partition, logs);
        }
        self.end_pieces(now_ms, link);
    }

    fn speaks_of_log_starts(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(|state| state.is_to_follower() && state.version >= VERSION_LOG_STARTS)
    }

    fn take_log_starts(&mut self, link: LinkId, list: &[LogStart]) {
        for told in list {
            let partition = told.partition;
            let Some(leadership) = self.leading(partition) else { continue };
            let Some(follower) = leadership.follower(link, told.attachment) else { continue };
            follower.log_start = follower.log_start.max(Some(told.log_start));
            self.intents.push_back(Intent::LogStartsMoved { partition });
        }
    }

    /// Moves the high watermark and the ISR as far as what is known allows, and tells of a beginning that the log has lost.
    pub(super) fn advance(&mut self, now_ms: u64, partition: TopicPartition, logs: &dyn Logs) {
        let Some(position) = logs.position(partition) else { return };
        let Some(Part::Leading(leadership)) = self.hosted.get_mut(&partition).map(|hosted| &mut hosted.part) else {
            return;
        };
        let risen = leadership.advance(now_ms, position, &self.nodes);
        let may_ask = leadership.has_outsider() || leadership.is_flushed(position, &self.nodes);
        let is_trimmed = leadership.log_start < position.log_start;
        leadership.log_start = leadership.log_start.max(position.log_start);
        if let Some(high_watermark) = risen {
            self.work(partition, EngineWork::AdvanceHighWatermark { high_watermark });
        }
        if risen.is_some() || is_trimmed {
            self.notify(now_ms, partition);
        }
        if may_ask {
            self.rouse(now_ms, partition);
            self.ask(now_ms, partition, logs);
        }
    }

    /// Asks for another ISR if there is one to ask for.
    fn ask(&mut self, now_ms: u64, partition: TopicPartition, logs: &dyn Logs) {
        let (Some(position), Some(leader)) = (logs.position(partition), self.me) else { return };
        let Some(Part::Leading(leadership)) = self.hosted.get_mut(&partition).map(|hosted| &mut hosted.part) else {
            return;
        };
        let (leader_epoch, revision) = (leadership.epoch, leadership.revision);
        if let Some(isr) = leadership.next_change(now_ms, position, &self.nodes) {
            let is_flushed = leadership.asks_to_flush();
            let proposal = IsrProposal { leader, leader_epoch, isr, is_flushed };
            self.intents.push_back(Intent::ChangeIsr { partition, revision, proposal });
            self.rouse(now_ms, partition);
        }
    }

    /// What became of a change of an ISR: of the key's revision that its intent named.
    pub fn on_isr_changed(
        &mut self,
        now_ms: u64,
        partition: TopicPartition,
        revision: i64,
        outcome: IsrOutcome,
        logs: &dyn Logs,
    ) {
        let Some(leadership) = self.leading(partition) else { return };
        if leadership.conclude(now_ms, revision, outcome) {
            let (count, revision) = (leadership.role.isr.len(), leadership.revision);
            if let Some(hosted) = self.hosted.get_mut(&partition) {
                hosted.revision = hosted.revision.max(revision);
            }
            self.work(partition, EngineWork::SetInSync { count });
            self.release_members(now_ms, partition);
        }
        self.advance(now_ms, partition, logs);
        self.rouse(now_ms, partition);
        self.flush();
    }

    /// Looks at partitions for which time alone may change something.
    pub(super) fn sweep(&mut self, now_ms: u64, logs: &dyn Logs) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = self.swept.take().map_or(Unbounded, Excluded);
        let due: Vec<TopicPartition> = self.restless.range((from, Unbounded)).take(SWEEP_MAX).copied().collect();
        for partition in &due {
            self.advance(now_ms, *partition, logs);
            self.ask(now_ms, *partition, logs);
            let position = logs.position(*partition);
            let is_restless = match (self.hosted.get(partition).map(|hosted| &hosted.part), position) {
                (Some(Part::Leading(leadership)), Some(position)) => leadership.is_restless(position, &self.nodes),
                _ => false,
            };
            if !is_restless {
                self.restless.remove(partition);
            }
        }
        if due.len() == SWEEP_MAX {
            self.swept = due.last().copied();
            self.alarms.insert((now_ms + 1, Alarm::Sweep));
        } else if !self.restless.is_empty() {
            self.alarms.retain(|(_, alarm)| *alarm != Alarm::Sweep);
            self.alarms.insert((now_ms + SWEEP_MS, Alarm::Sweep));
        }
    }

    /// Has the followers of a partition hear of its marks, with their next run or soon.
    fn notify(&mut self, now_ms: u64, partition: TopicPartition) {
        let Some(leadership) = self.leading(partition) else { return };
        let links: Vec<LinkId> = leadership.followers.iter().filter_map(|follower| follower.link).collect();
        let mut is_new = false;
        for link in links {
            if let Some(state) = self.links.get_mut(&link) {
                is_new |= state.notices.insert(partition);
            }
        }
        if is_new && !self.alarms.iter().any(|(_, alarm)| *alarm == Alarm::Notices) {
            self.alarms.insert((now_ms + NOTICE_MS, Alarm::Notices));
        }
    }

    /// Tells followers what they have not heard.
    pub(super) fn send_notices(&mut self, logs: &dyn Logs) {
        let links: Vec<LinkId> =
            self.links.iter().filter(|(_, state)| !state.notices.is_empty()).map(|(id, _)| *id).collect();
        for link in links {
            let Some(state) = self.links.get_mut(&link) else { continue };
            for partition in std::mem::take(&mut state.notices) {
                let log_start = logs.position(partition).map_or(0, |position| position.log_start);
                let Some(leadership) = self.leading(partition) else { continue };
                let (epoch, high_watermark) = (leadership.epoch, leadership.high_watermark);
                let served = |follower: &&Follower| follower.link == Some(link);
                let Some(attachment) = leadership.followers.iter().find(served).map(|it| it.attachment) else {
                    continue;
                };
                self.say(link, Frame::Marks(vec![Marks { partition, attachment, epoch, high_watermark, log_start }]));
            }
        }
    }
}

fn frame_part(run: &Run) -> FramePart {
    let Run { partition, attachment, end, durability, .. } = *run;
    FramePart { partition, attachment, end, durability }
}
