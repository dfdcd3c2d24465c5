//! What a shard does as a leader for followers that lag: it reads chunks of its logs and sends them, on a connection of their own.

use bytes::Bytes;
use millrace_engine::api::TopicPartition;

use super::{
    ShardChannel,
    link::{Link, LinkState, Peer},
    state::Alarm,
};
use crate::channel::{
    event::{LinkId, Logs, ReadFailure, ReadRun},
    frame::{Detach, DetachReason, Frame, Payload, Purpose, Run},
    intent::EngineWork,
    progress::{Flow, Follower},
};

impl ShardChannel {
    /// Has partitions read again that wait for credits or for news.
    pub(super) fn rouse_backlog(&mut self, link: LinkId) {
        if let Some(state) = self.links.get_mut(&link) {
            let resting = std::mem::take(&mut state.resting);
            resting.into_iter().for_each(|partition| state.backlog.push(partition));
        }
    }

    /// Feeds all followers that lag, beginning with the one whose turn it is.
    pub(super) fn feed(&mut self, now_ms: u64) {
        if self.young_bytes(now_ms) == 0 {
            self.pace.end(now_ms);
        }
        self.release_limited(now_ms);
        let lags = |(id, state): (&LinkId, &Link)| (!state.backlog.is_empty()).then_some(*id);
        let lagging: Vec<LinkId> = self.links.iter().filter_map(lags).collect();
        let turn = lagging.iter().position(|link| *link > self.fed).unwrap_or(0);
        for at in 0..lagging.len() {
            self.read_for(now_ms, lagging[(turn + at) % lagging.len()]);
        }
    }

    /// Reads chunks for the partitions of a live connection that lag, in turns.
    pub(super) fn read_for(&mut self, now_ms: u64, live: LinkId) {
        let lags = |state: &&Link| state.is_to_follower() && !state.backlog.is_empty();
        let Some(peer) = self.links.get(&live).filter(lags).and_then(|state| state.peer) else { return };
        let chunks =
            self.accepted.get(&Peer { purpose: Purpose::CatchUp, ..peer }).and_then(|link| self.links.get(link));
        let Some(chunks) = chunks.filter(|state| state.state == LinkState::Up) else { return };
        let credit_left = chunks.outbound.credit_left();
        let young_before = self.young_bytes(now_ms);
        let mut begun = 0;
        loop {
            let Some(state) = self.links.get_mut(&live).filter(|state| !state.backlog.is_empty()) else { return };
            // what is being read will be sent
            if state.copies.reading_bytes() >= credit_left {
                return;
            }
            let Some(bytes_max) = self.pace.next_piece(now_ms, state.copies.bytes(), young_before + begun) else {
                return self.feed_later(now_ms);
            };
            let Some(partition) = state.backlog.pop() else { return };
            let Some(bytes_max) = self.within_limits(now_ms, live, partition, bytes_max) else { continue };
            let Some(follower) = self.fed_through(live, partition) else { continue };
            let Flow::CatchUp { next, is_reading: false } = follower.flow else { continue };
            follower.flow = Flow::CatchUp { next, is_reading: true };
            let (link, attachment, from) = (live, follower.attachment, next);
            self.work(partition, EngineWork::Read { link, attachment, from, bytes_max });
            let earned_bytes = self.pace.begin(now_ms, bytes_max);
            self.fed = live;
            begun += bytes_max as u64;
            if let Some(state) = self.links.get_mut(&live) {
                state.copies.begin_read(now_ms, attachment, bytes_max, earned_bytes);
            }
        }
    }

    /// Has [`Alarm::Feed`] look again when a pause is over, or nobody waits any more for something that is on its way.
    fn feed_later(&mut self, now_ms: u64) {
        let is_busy = self.pace.is_busy(now_ms);
        let old_ms = || self.links.values().filter_map(|state| state.copies.next_old_ms(now_ms)).min();
        let wake_ms = self.pace.wake_ms(now_ms).or_else(|| old_ms().filter(|_| is_busy));
        if let Some(wake_ms) = wake_ms {
            self.alarms.insert((wake_ms, Alarm::Feed));
        }
    }

    /// Bytes on their way to all followers that others wait for.
    fn young_bytes(&mut self, now_ms: u64) -> u64 {
        self.links.values_mut().map(|state| state.copies.young_bytes(now_ms)).sum()
    }

    /// The follower of a partition that is served through a connection.
    pub(super) fn fed_through(&mut self, live: LinkId, partition: TopicPartition) -> Option<&mut Follower> {
        self.leading(partition)?.followers.iter_mut().find(|follower| follower.link == Some(live))
    }

    /// A read for a follower that lags has ended.
    #[expect(clippy::too_many_arguments, reason = "what a read says of itself")]
    pub(super) fn read_ended(
        &mut self,
        now_ms: u64,
        partition: TopicPartition,
        live: LinkId,
        attachment: u32,
        from: i64,
        result: Result<ReadRun, ReadFailure>,
        logs: &dyn Logs,
    ) {
        let earned = self.links.get_mut(&live).and_then(|state| state.copies.end_read(attachment));
        let found = result.as_ref().map_or(0, |run| run.bytes.len() as u64);
        self.pace.refund(earned.unwrap_or(0).saturating_sub(found));
        let log_start = logs.position(partition).map_or(0, |position| position.log_start);
        let follower = self.leading(partition).and_then(|leadership| leadership.follower(live, attachment));
        if let Some(follower) = follower
            && follower.flow == (Flow::CatchUp { next: from, is_reading: true })
        {
            follower.flow = Flow::CatchUp { next: from, is_reading: false };
            match result {
                Ok(run) => self.send_chunk(now_ms, partition, live, attachment, from, run, log_start),
                Err(failure) => self.give_up(now_ms, partition, live, attachment, failure),
            }
        }
        self.end_pieces(now_ms, live);
    }

    /// Whatever was on its way to a follower may have arrived: others' turn, or the next piece's.
    pub(super) fn end_pieces(&mut self, now_ms: u64, live: LinkId) {
        match self.young_bytes(now_ms) > 0 {
            true => self.read_for(now_ms, live),
            false => self.feed(now_ms),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a chunk is made of")]
    fn send_chunk(
        &mut self,
        now_ms: u64,
        partition: TopicPartition,
        live: LinkId,
        attachment: u32,
        base: i64,
        read: ReadRun,
        log_start: i64,
    ) {
        let ReadRun { end, bytes } = read;
        let peer = self.links.get(&live).and_then(|state| state.peer);
        let chunks = peer.and_then(|peer| self.accepted.get(&Peer { purpose: Purpose::CatchUp, ..peer }).copied());
        let mut next = base;
        if let Some(chunks) = chunks.filter(|_| end > base) {
            let length = bytes.len() as u64;
            self.charge_leader(now_ms, live, partition, length);
            self.say_chunk(now_ms, chunks, partition, attachment, base, end, log_start, bytes);
            if let Some(state) = self.links.get_mut(&live) {
                state.copies.send(now_ms, partition, attachment, end, length);
            }
            next = end;
        }
        let Some(leadership) = self.leading(partition) else { return };
        let is_complete = next >= leadership.sealed;
        if let Some(follower) = leadership.follower(live, attachment) {
            follower.flow = Flow::CatchUp { next, is_reading: false };
        }
        if is_complete && self.go_live(live, partition, attachment, next) {
            return;
        }
        let Some(state) = self.links.get_mut(&live) else { return };
        match is_complete || next == base {
            true => {
                state.resting.insert(partition);
            }
            false => state.backlog.push(partition),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a chunk is made of")]
    fn say_chunk(
        &mut self,
        now_ms: u64,
        link: LinkId,
        partition: TopicPartition,
        attachment: u32,
        base: i64,
        end: i64,
        log_start: i64,
        bytes: Bytes,
    ) {
        let Some(leadership) = self.leading(partition) else { return };
        let (epoch, high_watermark) = (leadership.epoch, leadership.high_watermark);
        let durability = leadership.promise();
        let payload = Payload::new(bytes);
        let bytes = payload.bytes.len() as u64;
        let run = Run { partition, attachment, epoch, base, end, high_watermark, log_start, durability, payload };
        if let Some(state) = self.links.get_mut(&link) {
            state.outbound.note_chunk(bytes);
            state.payload_ms = now_ms;
        }
        self.say(link, Frame::Chunk(run));
    }

    /// The connection for a follower's chunks ended: those that were not confirmed may be lost with it. The follower need not know
    /// that any were sent, if it has not heard yet that they come, or that the next run comes live: it would wait for them.
    pub(super) fn lose_chunks(&mut self, now_ms: u64, live: LinkId) {
        let lost = self.links.get(&live).map_or_else(Vec::new, |state| state.copies.unconfirmed());
        for partition in lost {
            let Some(attachment) = self.fed_through(live, partition).map(|follower| follower.attachment) else {
                continue;
            };
            self.end_attempt(now_ms, partition, live, attachment, DetachReason::Mismatch);
        }
    }

    /// Lets a follower go that cannot be fed; it will attach again, and hear where to begin.
    fn give_up(&mut self, now_ms: u64, partition: TopicPartition, live: LinkId, attachment: u32, failure: ReadFailure) {
        let reason = match failure {
            ReadFailure::Trimmed => DetachReason::Trimmed,
            ReadFailure::Failed => DetachReason::Failed,
        };
        self.end_attempt(now_ms, partition, live, attachment, reason);
    }

    /// Ends a follower's attempt, and tells it.
    fn end_attempt(
        &mut self,
        now_ms: u64,
        partition: TopicPartition,
        live: LinkId,
        attachment: u32,
        reason: DetachReason,
    ) {
        let Some(leadership) = self.leading(partition) else { return };
        let epoch = leadership.epoch;
        if let Some(follower) = leadership.follower(live, attachment) {
            follower.break_off(now_ms);
        }
        self.forget_follower(live, partition);
        self.say(live, Frame::Detach(vec![Detach { partition, attachment, epoch, reason }]));
        self.rouse(now_ms, partition);
    }
}
