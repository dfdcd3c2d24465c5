//! The channel of one shard: all partitions that it leads or follows, and its connections to shards of other nodes.
//!
//! Pure: frames, news and `now` go in, intents come out. Partitions on which nothing happens cost nothing: no timer, no frame.

mod feeding;
mod following;
mod leading;
mod limiting;
mod link;
mod linking;
mod standing;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millrace_engine::{api::TopicPartition, config::Durability};
use uuid::Uuid;

pub use self::standing::{FollowerStanding, LeaderStanding};
use self::{
    link::{Dialed, Link, Peer},
    state::{Acting, Alarm, Change, Hosted, Part, SWEEP_MS},
};
pub use super::leader::LAG_MS_MAX;
use super::{
    event::{Assignment, Done, LinkId, Logs, Nodes, Role},
    follower::Following,
    frame::{Detach, DetachReason, Frame},
    guard::Guards,
    intent::{EngineWork, Intent},
    leader::Leadership,
    pace::Pace,
    quota::Limits,
    turns::Turns,
};
use crate::cluster::model::{Member, NodeId};

/// Pause before a transition that failed is tried again, in ms.
const CHANGE_RETRY_MS: u64 = 1_000;

/// Where a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelConfig {
    /// The cluster's id.
    pub cluster: Uuid,
    /// This node.
    pub node: NodeId,
    /// The shard.
    pub shard: u32,
    /// replica.lag.time.max.ms
    pub lag_ms_max: u64,
}

/// The channel of one shard. One task owns it and calls, in any order,
///
/// * `handle_*` with what happened: [`registered`](Self::handle_registered) first, [`lost`](Self::handle_lost) when that life ends, [`nodes`](Self::handle_nodes) and
///   [`assigned`](Self::handle_assigned) whenever the image changes (nodes before assignments), connections and frames, the
///   engine's news, and [`tick`](Self::handle_tick) at the time that [`next_wake_ms`](Self::next_wake_ms) names;
/// * after each of these [`next_intent`](Self::next_intent) until there is none, doing each at once and in order;
/// * `on_*` when something that an intent asked for has ended;
/// * getters at any time.
///
/// `now_ms` is a monotonic clock's and never falls. A clock that jumps ahead makes the channel impatient, not wrong.
#[derive(Debug)]
pub struct ShardChannel {
    config: ChannelConfig,
    guards: Guards,
    /// This node's present life; none before it has registered.
    me: Option<Member>,
    nodes: Nodes,
    hosted: BTreeMap<TopicPartition, Hosted>,
    links: BTreeMap<LinkId, Link>,
    /// Connections that this shard opens: to the leaders of what it follows.
    dialed: BTreeMap<Peer, Dialed>,
    /// Connections that followers opened.
    accepted: BTreeMap<Peer, LinkId>,
    /// Partitions that are followed, by node and shard of the leader.
    followed: BTreeMap<(NodeId, u32), BTreeSet<TopicPartition>>,
    /// Led partitions for which time alone may change something.
    restless: BTreeSet<TopicPartition>,
    /// Where the sweep over them goes on.
    swept: Option<TopicPartition>,
    alarms: BTreeSet<(u64, Alarm)>,
    /// Links with frames that are not handed out yet.
    unsent: BTreeSet<LinkId>,
    intents: VecDeque<Intent>,
    last_link: u64,
    last_attachment: u32,
    /// How fast followers that lag are fed.
    pace: Pace,
    /// Whose turn to be fed was last.
    fed: LinkId,
    limits: Limits,
    /// Connections with partitions that the limit of leaders keeps back.
    limiting: BTreeSet<LinkId>,
    /// Limited partitions that are followed and of which chunks may come.
    coming: BTreeSet<TopicPartition>,
    /// Limited partitions that are followed and of which no chunks are wanted before the limit is paid for, and it is their turn.
    held: Turns,
    /// When the next of those that wait is let come.
    turn_at_ms: Option<u64>,
}

impl ShardChannel {
    /// A channel that knows nothing yet.
    pub fn new(config: ChannelConfig) -> Self {
        Self::guarded(config, Guards::default())
    }

    /// As [`ShardChannel::new`].
    pub(crate) fn guarded(config: ChannelConfig, guards: Guards) -> Self {
        Self {
            config,
            guards,
            me: None,
            nodes: Nodes::default(),
            hosted: BTreeMap::new(),
            links: BTreeMap::new(),
            dialed: BTreeMap::new(),
            accepted: BTreeMap::new(),
            followed: BTreeMap::new(),
            restless: BTreeSet::new(),
            swept: None,
            alarms: BTreeSet::new(),
            unsent: BTreeSet::new(),
            intents: VecDeque::new(),
            last_link: 0,
            last_attachment: 0,
            pace: Pace::default(),
            fed: LinkId(0),
            limits: Limits::default(),
            limiting: BTreeSet::new(),
            coming: BTreeSet::new(),
            held: Turns::default(),
            turn_at_ms: None,
        }
    }

    /// The node has registered: what was said and heard in a former life is over, and every partition waits to be assigned
    /// anew. The engine goes on as it was told last.
    pub fn handle_registered(&mut self, now_ms: u64, me: Member) {
        if self.me == Some(me) {
            return;
        }
        self.me = Some(me);
        self.limits.forget_topics();
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.hang_up(now_ms, link);
        }
        let partitions: Vec<TopicPartition> = self.hosted.keys().copied().collect();
        for partition in partitions {
            self.let_go(partition);
            if let Some(hosted) = self.hosted.get_mut(&partition) {
                (hosted.part, hosted.revision, hosted.epoch) = (Part::Waiting, -1, -1);
            }
        }
        self.flush();
    }

    /// The node's life is over, and it has no other yet: whoever is elected meanwhile, this node leads nothing before it hears in its
    /// next life that it does. What it follows it follows on.
    pub fn handle_lost(&mut self, now_ms: u64, logs: &dyn Logs) {
        if self.me.take().is_none() {
            return;
        }
        let leads = |hosted: &Hosted| matches!(hosted.part, Part::Leading(_));
        let led: Vec<_> = self.hosted.iter().filter(|(_, hosted)| leads(hosted)).map(|(id, _)| *id).collect();
        for partition in led {
            self.let_go(partition);
            self.set(partition, Part::Leaderless);
            self.drive(now_ms, partition, logs);
        }
        self.flush();
    }

    /// Which nodes live. Connections to lives that are over end.
    pub fn handle_nodes(&mut self, now_ms: u64, nodes: Nodes, logs: &dyn Logs) {
        self.nodes = nodes;
        let over: Vec<LinkId> = self.links.iter().filter(|(_, link)| self.is_over(link)).map(|(id, _)| *id).collect();
        for link in over {
            self.hang_up(now_ms, link);
        }
        let followed: Vec<(NodeId, u32)> = self.followed.keys().copied().collect();
        for (node, shard) in followed {
            self.dial_live(now_ms, node, shard);
        }
        self.sweep(now_ms, logs);
        self.flush();
    }

    /// What this node has to do with a partition, from its key; none if it is no replica, or the partition is no more.
    pub fn handle_assigned(
        &mut self,
        now_ms: u64,
        partition: TopicPartition,
        assignment: Option<Assignment>,
        logs: &dyn Logs,
    ) {
        match (assignment, self.me) {
            (None, _) => self.unassign(partition),
            (Some(assignment), Some(me)) => self.assign(now_ms, partition, assignment, me, logs),
            (Some(_), None) => {}
        }
        self.retire(now_ms);
        self.flush();
    }

    fn unassign(&mut self, partition: TopicPartition) {
        self.let_go(partition);
        let Some(hosted) = self.hosted.get_mut(&partition) else { return };
        (hosted.part, hosted.revision, hosted.epoch) = (Part::Waiting, -1, -1);
        match hosted.under_way {
            // its end will be reported, and must not be taken for that of another
            Some(_) => hosted.is_leaving = true,
            None => drop(self.hosted.remove(&partition)),
        }
    }

    fn assign(&mut self, now_ms: u64, partition: TopicPartition, assignment: Assignment, me: Member, logs: &dyn Logs) {
        let hosted = self.hosted.entry(partition).or_default();
        if assignment.revision < hosted.revision || assignment.epoch < hosted.epoch {
            return;
        }
        hosted.is_leaving = false;
        (hosted.revision, hosted.epoch) = (assignment.revision, assignment.epoch);
        let epoch = assignment.epoch;
        match (assignment.role, &mut hosted.part) {
            (Role::Leader(role), Part::Leading(leadership)) if leadership.epoch == epoch => {
                let before = leadership.role.durability;
                leadership.update(assignment.revision, role);
                let is_stricter = before == Durability::Written && leadership.role.durability == Durability::Device;
                let count = leadership.role.isr.len();
                self.work(partition, EngineWork::SetInSync { count });
                self.release_members(now_ms, partition);
                if is_stricter {
                    self.ask_for_marks(partition);
                }
                self.advance(now_ms, partition, logs);
                self.rouse(now_ms, partition);
            }
            (Role::Leader(role), _) => {
                self.let_go(partition);
                let leadership = Leadership::new(now_ms, me, epoch, assignment.revision, role, self.guards);
                let leadership = leadership.with_lag(self.config.lag_ms_max);
                self.set(partition, Part::Leading(Box::new(leadership)));
                self.drive(now_ms, partition, logs);
            }
            (Role::Follower { leader, shard }, Part::Following(following))
                if (following.epoch, following.leader, following.shard) == (epoch, leader, shard) => {}
            (Role::Follower { leader, shard }, _) => {
                self.let_go(partition);
                let following = Following::new(partition, epoch, leader, shard, self.guards);
                self.set(partition, Part::Following(Box::new(following)));
                self.followed.entry((leader.node, shard)).or_default().insert(partition);
                self.dial_live(now_ms, leader.node, shard);
                self.drive(now_ms, partition, logs);
            }
            (Role::Leaderless, _) => {
                self.let_go(partition);
                self.set(partition, Part::Leaderless);
                self.drive(now_ms, partition, logs);
            }
        }
    }

    fn set(&mut self, partition: TopicPartition, part: Part) {
        self.hosted.entry(partition).or_default().part = part;
    }

    /// Ends what this shard says and hears about a partition.
    fn let_go(&mut self, partition: TopicPartition) {
        self.restless.remove(&partition);
        self.coming.remove(&partition);
        self.held.remove(partition);
        let Some(hosted) = self.hosted.get_mut(&partition) else { return };
        let epoch = hosted.epoch.max(0);
        match std::mem::take(&mut hosted.part) {
            Part::Leading(leadership) => {
                for follower in &leadership.followers {
                    let Some(link) = follower.link else { continue };
                    let (attachment, reason) = (follower.attachment, DetachReason::Moved);
                    self.forget_follower(link, partition);
                    self.say(link, Frame::Detach(vec![Detach { partition, attachment, epoch, reason }]));
                }
            }
            Part::Following(following) => {
                let peer = (following.leader.node, following.shard);
                if following.is_heard()
                    && let Some(link) = self.live_link(peer)
                {
                    let (attachment, reason) = (following.attachment, DetachReason::Moved);
                    self.say(link, Frame::Detach(vec![Detach { partition, attachment, epoch, reason }]));
                }
                if let Some(partitions) = self.followed.get_mut(&peer) {
                    partitions.remove(&partition);
                    if partitions.is_empty() {
                        self.followed.remove(&peer);
                    }
                }
            }
            Part::Leaderless | Part::Waiting => {}
        }
    }

    /// Asks the engine for the transition that a partition needs next, if none is under way.
    fn drive(&mut self, now_ms: u64, partition: TopicPartition, logs: &dyn Logs) {
        let Some(hosted) = self.hosted.get_mut(&partition) else { return };
        if hosted.under_way.is_some() {
            return;
        }
        match hosted.next_change() {
            Some(change) => {
                hosted.under_way = Some(change);
                let work = match change {
                    Change::Lead(epoch) => EngineWork::Lead { epoch },
                    Change::Follow(epoch) => EngineWork::Follow { epoch },
                    Change::Cut(end) => EngineWork::Truncate { end },
                    Change::BeginAnew(log_start) => EngineWork::BeginAnew { log_start },
                };
                self.work(partition, work);
            }
            None => match &mut hosted.part {
                Part::Leading(leadership) if leadership.start.is_none() => self.begin(now_ms, partition, logs),
                Part::Following(_) => self.attach(partition, logs),
                _ => {}
            },
        }
    }

    /// A piece of engine work has ended.
    pub fn on_done(&mut self, now_ms: u64, partition: TopicPartition, done: Done, logs: &dyn Logs) {
        match done {
            Done::Changed => self.changed(now_ms, partition, logs),
            Done::ChangeFailed => {
                if let Some(hosted) = self.hosted.get_mut(&partition) {
                    hosted.under_way = None;
                    self.alarms.insert((now_ms + CHANGE_RETRY_MS, Alarm::Drive(partition)));
                }
                self.remove_if_leaving(partition);
            }
            Done::AppendFailed { attachment } => self.append_failed(now_ms, partition, attachment),
            Done::Read { link, attachment, from, result } => {
                self.read_ended(now_ms, partition, link, attachment, from, result, logs);
            }
        }
        self.flush();
    }

    fn changed(&mut self, now_ms: u64, partition: TopicPartition, logs: &dyn Logs) {
        let Some(hosted) = self.hosted.get_mut(&partition) else { return };
        match hosted.under_way.take() {
            Some(Change::Lead(epoch)) => hosted.acting = Some(Acting::Leads(epoch)),
            Some(Change::Follow(epoch)) => hosted.acting = Some(Acting::Follows(epoch)),
            Some(Change::Cut(_) | Change::BeginAnew(_)) => {
                if let Part::Following(following) = &mut hosted.part {
                    following.was_cut();
                }
            }
            None => {}
        }
        self.remove_if_leaving(partition);
        self.drive(now_ms, partition, logs);
    }

    fn remove_if_leaving(&mut self, partition: TopicPartition) {
        if self.hosted.get(&partition).is_some_and(|hosted| hosted.is_leaving && hosted.under_way.is_none()) {
            self.hosted.remove(&partition);
        }
    }

    /// Logs of these partitions were written or flushed further.
    pub fn handle_progressed(&mut self, now_ms: u64, partitions: &[TopicPartition], logs: &dyn Logs) {
        for partition in partitions {
            match self.hosted.get(partition).map(|hosted| &hosted.part) {
                Some(Part::Leading(_)) => self.advance(now_ms, *partition, logs),
                Some(Part::Following(_)) => self.progressed(*partition, logs),
                _ => {}
            }
        }
        self.settle(now_ms);
        self.flush();
    }

    /// The time that [`ShardChannel::next_wake_ms`] named has come.
    pub fn handle_tick(&mut self, now_ms: u64, logs: &dyn Logs) {
        let due: Vec<(u64, Alarm)> = self.alarms.iter().take_while(|(at, _)| *at <= now_ms).copied().collect();
        for alarm in due {
            self.alarms.remove(&alarm);
            match alarm.1 {
                Alarm::Notices => self.send_notices(logs),
                Alarm::Sweep => self.sweep(now_ms, logs),
                Alarm::Beat(link) => self.beat(now_ms, link),
                Alarm::Dial(peer) => self.dial(now_ms, peer),
                Alarm::Drive(partition) => self.drive(now_ms, partition, logs),
                Alarm::Attach(partition) => self.rested(partition, logs),
                Alarm::Feed => self.feed(now_ms),
                Alarm::LetCome => self.let_come(now_ms),
            }
        }
        self.flush();
    }

    /// What is to be done next.
    pub fn next_intent(&mut self) -> Option<Intent> {
        self.intents.pop_front()
    }

    /// When [`ShardChannel::handle_tick`] is to be called; none if time changes nothing.
    pub fn next_wake_ms(&self) -> Option<u64> {
        self.alarms.first().map(|(at, _)| *at)
    }

    fn work(&mut self, partition: TopicPartition, work: EngineWork) {
        self.intents.push_back(Intent::Work { partition, work });
    }

    /// Puts a frame behind those that a connection has to send, together with the last one if they are lists of one kind.
    fn say(&mut self, link: LinkId, frame: Frame) {
        if let Some(state) = self.links.get_mut(&link) {
            state.say(frame);
            self.unsent.insert(link);
        }
    }

    /// Hands out the frames of this turn.
    fn flush(&mut self) {
        for link in std::mem::take(&mut self.unsent) {
            let Some(state) = self.links.get_mut(&link) else { continue };
            let frames = state.take_frames();
            self.intents.extend(frames.into_iter().map(|frame| Intent::Send { link, frame }));
        }
    }

    /// Has [`Alarm::Sweep`] look at a led partition.
    fn rouse(&mut self, now_ms: u64, partition: TopicPartition) {
        let was_calm = self.restless.is_empty();
        self.restless.insert(partition);
        if was_calm {
            self.alarms.insert((now_ms + SWEEP_MS, Alarm::Sweep));
        }
    }
}
