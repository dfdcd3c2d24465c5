//! What a shell does for a core: connections, frames as bytes, the engine's work and its disk, and proposals.

use bytes::Bytes;
use millrace_engine::{api::TopicPartition, config::Durability};

use super::{
    control::Line,
    log::Acting,
    network::{Arrival, End},
    world::{Event, Rule, World},
};
use crate::{
    channel::{
        event::{Done, IsrOutcome, LinkId, SealedRun},
        frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, decode, encode},
        guard::Guard,
        intent::{EngineWork, Intent},
    },
    cluster::{change::IsrProposal, model::NodeId},
};

/// So long a flush may come after what no acknowledgement waits to have flushed.
const FLUSH_MS_MAX: u64 = 1_000;

impl World {
    /// Does what a core wants, in order, and sees to it that it is woken.
    pub(super) fn obey(&mut self, id: NodeId) {
        while let Some(intent) = self.nodes.get_mut(&id).expect("a node").core.next_intent() {
            self.tell(|| format!("  {id} {intent:?}"));
            let process = self.nodes[&id].process;
            match intent {
                Intent::Dial { link, node: to, .. } => {
                    let after = self.random.between(1, 4);
                    self.at(after, Event::Dialed { node: id, process, link, to });
                }
                Intent::HangUp { link } => self.hang_up(id, process, link),
                Intent::Send { link, frame } => self.send(id, process, link, &frame),
                Intent::Work { partition, work } => {
                    if let EngineWork::Read { link, attachment, .. } = work {
                        self.check_read(id, process, link, attachment);
                    }
                    self.work(id, process, partition, work);
                }
                Intent::LogStartsMoved { .. } => self.look_at_deletions(id),
                Intent::Heed { .. } => {}
                Intent::ChangeIsr { partition, revision, proposal } => {
                    self.propose(id, process, partition, revision, proposal);
                }
            }
        }
        let ahead = self.nodes[&id].clock_ahead_ms;
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(wake) = node.core.next_wake_ms() else { return };
        let wake = wake.saturating_sub(ahead).max(self.now_ms);
        if node.wake_ms.is_none_or(|planned| planned > wake) {
            node.wake_ms = Some(wake);
            let process = node.process;
            self.at(wake - self.now_ms, Event::Tick(id, process));
        }
    }

    pub(super) fn dialed(&mut self, id: NodeId, process: u64, link: LinkId, to: NodeId) {
        if !self.is_running(id, process) {
            return;
        }
        let other = &self.nodes[&to];
        let is_reachable = other.is_up && !self.network.is_cut(id, to) && !self.network.is_cut(to, id);
        let far = End { node: to, process: other.process, link: None };
        if is_reachable {
            self.network.open(End { node: id, process, link: Some(link) }, far);
        }
        self.call(id, |now, core, _| core.on_dialed(now, link, if is_reachable { Ok(()) } else { Err(()) }));
    }

    fn send(&mut self, id: NodeId, process: u64, link: LinkId, frame: &Frame) {
        let encoded = encode(frame);
        let mut bytes = encoded.head.to_vec();
        encoded.payload.iter().for_each(|part| bytes.extend_from_slice(part));
        if let Some((connection, end)) = self.network.find(id, process, link) {
            let to = self.network.connections[&connection].ends[1 - end].node;
            self.note_sent(id, process, to, frame);
            self.put(connection, 1 - end, Arrival::Frame(bytes.into()));
        }
    }

    fn hang_up(&mut self, id: NodeId, process: u64, link: LinkId) {
        if let Some((connection, end)) = self.network.find(id, process, link) {
            self.network.connections.get_mut(&connection).expect("found").ends[end].link = None;
            self.put(connection, 1 - end, Arrival::Closed);
        }
    }

    /// Puts something on its way, behind what is.
    fn put(&mut self, id: u64, end: usize, arrival: Arrival) {
        let delay = if self.random.one_in(20) { self.random.between(1, 30) } else { self.random.between(0, 3) };
        let connection = self.network.connections.get_mut(&id).expect("found");
        let at = (self.now_ms + delay).max(connection.until_ms[end]);
        connection.until_ms[end] = at;
        connection.ways[end].push_back(arrival);
        self.at(at - self.now_ms, Event::Deliver(id, end));
    }

    pub(super) fn deliver(&mut self, id: u64, end: usize) {
        let Some(connection) = self.network.connections.get(&id) else { return };
        let (from, to) = (connection.ends[1 - end], connection.ends[end]);
        if self.network.is_cut(from.node, to.node) {
            return self.at(25, Event::Deliver(id, end));
        }
        let way = self.network.connections.get_mut(&id).map(|connection| &mut connection.ways[end]);
        let Some(arrival) = way.and_then(|way| way.pop_front()) else { return };
        if !self.is_running(to.node, to.process) {
            return;
        }
        let link = match to.link {
            Some(link) => link,
            // the end that was opened to takes the connection with its first frame; one that hung up takes nothing
            None if end == 1 && matches!(arrival, Arrival::Frame(_)) && self.is_new(id) => self.accept(id, to.node),
            None => return,
        };
        match arrival {
            Arrival::Frame(bytes) => match read(bytes) {
                Ok(frame) => {
                    let chunk = if let Frame::Chunk(run) = &frame { Some(run.clone()) } else { None };
                    self.note_heard(to.node, to.process, link, &frame);
                    self.call(to.node, |now, core, logs| core.handle_frame(now, link, frame, logs));
                    if let Some(run) = chunk {
                        self.check_held(to.node, to.process, &run);
                    }
                }
                Err(error) => self.violate(format!("a frame cannot be read: {error}")),
            },
            Arrival::Closed => {
                self.network.connections.remove(&id);
                self.call(to.node, |now, core, _| core.handle_closed(now, link));
            }
        }
    }

    /// Whether nothing was ever sent back: the end that was opened to has not taken the connection.
    fn is_new(&self, id: u64) -> bool {
        self.network.connections[&id].until_ms[0] == 0
    }

    fn accept(&mut self, id: u64, node: NodeId) -> LinkId {
        let now = self.now_ms;
        let node = self.nodes.get_mut(&node).expect("a node");
        let link = node.core.handle_accepted(now + node.clock_ahead_ms);
        let connection = self.network.connections.get_mut(&id).expect("found");
        connection.ends[1].link = Some(link);
        // even if nothing is ever said
        connection.until_ms[0] = now.max(1);
        link
    }

    /// Breaks a connection: both ends hear of it, what is under way is lost.
    pub(super) fn break_off(&mut self, id: u64) {
        let Some(connection) = self.network.connections.remove(&id) else { return };
        for end in connection.ends {
            if let Some(link) = end.link
                && self.is_running(end.node, end.process)
            {
                self.call(end.node, |now, core, _| core.handle_closed(now, link));
            }
        }
    }

    fn work(&mut self, id: NodeId, process: u64, partition: TopicPartition, work: EngineWork) {
        let after = self.random.between(1, 6);
        self.begin_change(id, partition, &work);
        let node = self.nodes.get_mut(&id).expect("a node");
        let is_full = node.full_until_ms > self.now_ms;
        let Some(log) = node.logs.get_mut(&partition) else { return };
        match work {
            EngineWork::Follow { epoch } => {
                if let Acting::Leads(_) = log.acting {
                    log.acting = Acting::Follows(epoch);
                }
                self.at(after, Event::Work { node: id, process, partition, work });
            }
            EngineWork::Lead { .. } | EngineWork::Truncate { .. } | EngineWork::BeginAnew { .. } => {
                self.at(after, Event::Work { node: id, process, partition, work });
            }
            EngineWork::Read { .. } => self.at(after, Event::Work { node: id, process, partition, work }),
            EngineWork::Append { attachment, epoch, base, end, batches } => {
                let is_strict = self.plan.without != Some(Guard::RunsFit);
                let is_follower = log.acting == Acting::Follows(epoch) && !is_full;
                match is_follower && log.append_run(base, end, &batches, is_strict).is_some() {
                    true => self.plan_seal(id),
                    false => self.done(id, partition, Done::AppendFailed { attachment }),
                }
            }
            EngineWork::AdvanceHighWatermark { high_watermark } => self.show(id, partition, high_watermark),
            EngineWork::SetInSync { count } => self.set_in_sync(id, partition, count),
            EngineWork::Trim { log_start } => self.plan_trim(id, partition, log_start),
        }
    }

    /// Raises a high watermark, and acknowledges what waited for it.
    fn show(&mut self, id: NodeId, partition: TopicPartition, high_watermark: i64) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(log) = node.logs.get_mut(&partition) else { return };
        let from = log.high_watermark;
        log.high_watermark = from.max(high_watermark.min(log.end()));
        let is_leader = matches!(log.acting, Acting::Leads(_));
        let shown = self.ghost.show(partition, log, from, is_leader);
        let high_watermark = log.high_watermark;
        if let Err(violation) = shown {
            return self.violate(format!("{} at {id} of {partition:?}", violation.0));
        }
        self.confirm(id, partition, high_watermark);
        self.check_candidates(partition, from);
    }

    /// A transition or a read ends.
    pub(super) fn worked(&mut self, id: NodeId, process: u64, partition: TopicPartition, work: EngineWork) {
        if !self.is_running(id, process) {
            return;
        }
        let records = 1 + self.random.below(12) as i64;
        let notes = self.plan.breaks != Some(Rule::EmptyEpochNote);
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(log) = node.logs.get_mut(&partition) else { return };
        let mut is_changed = true;
        match work {
            EngineWork::Lead { epoch } => {
                is_changed = !matches!(log.acting, Acting::Leads(held) | Acting::Follows(held) if held > epoch);
                if is_changed && log.acting != Acting::Leads(epoch) {
                    log.flush_all();
                    if notes {
                        log.note(epoch);
                    }
                    log.acting = Acting::Leads(epoch);
                    let log = log.clone();
                    let is_present = self.state(partition).leader_epoch == epoch;
                    if let Err(reason) = self.ghost.holds(partition, &log, log.end(), 0)
                        && is_present
                    {
                        self.violate(format!("leader completeness: {id} leads {partition:?} in {epoch}: {reason}"));
                    }
                    self.lead(id, partition);
                }
            }
            EngineWork::Follow { epoch } => {
                is_changed = !matches!(log.acting, Acting::Leads(held) | Acting::Follows(held) if held > epoch);
                if is_changed {
                    log.write_all();
                    log.acting = Acting::Follows(epoch);
                }
            }
            EngineWork::Truncate { end } => log.cut(end),
            EngineWork::BeginAnew { log_start } => log.begin_anew(log_start),
            EngineWork::Read { link, attachment, from, .. } => {
                let result = log.read(from, records);
                return self.done(id, partition, Done::Read { link, attachment, from, result });
            }
            _ => return,
        }
        self.done(id, partition, if is_changed { Done::Changed } else { Done::ChangeFailed });
        self.check_superset(id, partition);
    }

    /// Seals what was appended, for followers, then for the disk.
    pub(super) fn seal(&mut self, id: NodeId, process: u64) {
        if !self.is_running(id, process) {
            return;
        }
        let node = self.nodes.get_mut(&id).expect("a node");
        node.is_sealing = false;
        let (mut runs, mut ends) = (Vec::new(), Vec::new());
        for (partition, log) in &mut node.logs {
            let (base, end) = (log.sealed, log.end());
            if base >= end {
                continue;
            }
            let epoch = log.record(base).expect("within the log").epoch;
            runs.push(SealedRun { partition: *partition, epoch, base, end, bytes: log.bytes(base, end) });
            log.sealed = end;
            ends.push((*partition, end, log.cuts));
        }
        let written = node.disk_free_ms.max(self.now_ms) + self.random.between(1, 3);
        let slow = if self.random.one_in(30) { self.random.between(5, 60) } else { 0 };
        let flushed = written + self.random.between(1, 4) + slow;
        let node = self.nodes.get_mut(&id).expect("a node");
        node.disk_free_ms = flushed;
        let may_wait = ends.iter().all(|(partition, ..)| node.logs[partition].durability == Durability::Written);
        let flushed = if may_wait { flushed + self.random.between(0, FLUSH_MS_MAX) } else { flushed };
        let now = self.now_ms;
        self.at(written - now, Event::Written { node: id, process, ends: ends.clone(), is_flush: false });
        self.at(flushed - now, Event::Written { node: id, process, ends, is_flush: true });
        self.call(id, |now, core, logs| core.handle_sealed(now, runs, logs));
    }

    pub(super) fn written(&mut self, id: NodeId, process: u64, ends: &[(TopicPartition, i64, u64)], is_flush: bool) {
        if !self.is_running(id, process) {
            return;
        }
        let node = self.nodes.get_mut(&id).expect("a node");
        for (partition, end, cuts) in ends {
            let Some(log) = node.logs.get_mut(partition).filter(|log| log.cuts == *cuts) else { continue };
            log.written = log.written.max(*end);
            if is_flush {
                log.durable = log.durable.max(*end);
                log.keep_high_watermark();
            }
        }
        let partitions: Vec<TopicPartition> = ends.iter().map(|(partition, ..)| *partition).collect();
        self.call(id, |now, core, logs| core.handle_progressed(now, &partitions, logs));
    }

    /// Sends a leader's proposal to the store. It may get lost on the way, or come late; so may the answer.
    fn propose(&mut self, id: NodeId, process: u64, partition: TopicPartition, revision: i64, proposal: IsrProposal) {
        let fate = self.random.below(12);
        let node = self.nodes.get_mut(&id).expect("a node");
        let (decided, line) = (node.control.propose(partition, revision, proposal), node.line);
        let answer = |outcome| Event::Altered { node: id, process, partition, revision, outcome };
        let transaction = match decided {
            Ok(transaction) => transaction,
            Err(outcome) => return self.at(1, answer(outcome)),
        };
        let arrives = |is_heard| Event::Alter { node: id, process, partition, revision, transaction, is_heard };
        match (fate, line) {
            (_, Line::Cut) | (0, _) => self.at(50, answer(IsrOutcome::Unknown)),
            (1 | 2, _) => {
                let after = self.random.between(1, 400);
                self.at(after, arrives(false));
                self.at(60, answer(IsrOutcome::Unknown));
            }
            (_, Line::Deaf) => {
                self.at(2, arrives(false));
                self.at(60, answer(IsrOutcome::Unknown));
            }
            _ => {
                let after = self.random.between(1, 8);
                self.at(after, arrives(true));
            }
        }
    }

    /// Replication quorum superset: whoever leads in the store's epoch waits for all that the store has in the ISR.
    pub(super) fn check_superset(&mut self, id: NodeId, partition: TopicPartition) {
        let state = self.state(partition);
        let leads = state.leader.is_some_and(|leader| leader.node == id);
        if let Some((epoch, maximal)) = self.nodes[&id].core.maximal_isr(partition)
            && leads
            && epoch == state.leader_epoch
            && self.plan.without.is_none()
            && let Some(member) =
                state.isr.iter().find(|member| !maximal.iter().any(|waited| waited.node == member.node))
        {
            self.violate(format!("quorum superset: {id} does not wait for {member:?} in {partition:?}"));
        }
    }

    /// Ends a node's process. What was not written is lost, or what was not flushed.
    pub(super) fn crash(&mut self, id: NodeId, is_power_cut: bool) {
        let node = self.nodes.get_mut(&id).expect("a node");
        if !std::mem::replace(&mut node.is_up, false) {
            return;
        }
        for log in node.logs.values_mut() {
            let left = if is_power_cut { log.durable } else { log.written };
            log.crash(left);
        }
        if let Some(former) = &mut node.control.former
            && is_power_cut
            && self.plan.breaks != Some(Rule::MemberPairs)
        {
            former.kept = crate::cluster::model::Kept::Flushed;
        }
        let process = node.process;
        self.break_off_waits(id);
        for (connection, end) in self.network.of(id, process) {
            let other = self.network.connections[&connection].ends[1 - end].node;
            if is_power_cut || self.network.is_cut(id, other) {
                // nobody says that the connection is gone
                self.network.connections.get_mut(&connection).expect("found").ways[1 - end].clear();
            } else {
                self.break_off(connection);
            }
        }
    }

    /// What a person asks the control plane for.
    pub(super) fn administer(&mut self, id: NodeId, partition: TopicPartition, event: &crate::cluster::change::Event) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let is_done = node.control.administer(&mut self.memory, partition, event);
        self.tell(|| format!("{event:?} of {partition:?}: {is_done}"));
    }
}

fn read(bytes: Bytes) -> Result<Frame, crate::channel::frame::FrameError> {
    let header: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk().expect("whole frames are sent");
    let header = FrameHeader::parse(header)?;
    decode(header, bytes.slice(FRAME_HEADER_BYTES..))
}
