//! Opening, greeting, watching and losing connections, and who takes which frame.

use super::{
    ShardChannel,
    link::{Link, LinkState, Peer},
    state::{Alarm, Part},
};
use crate::{
    channel::{
        doubts::Sign,
        event::{LinkId, Logs},
        frame::{Detach, Frame, Hello, Purpose, Refusal, VERSION_MAX, VERSION_MIN, Welcome},
        intent::Intent,
        pace::PIECE_BYTES_MAX,
        stream::{SHARD_WINDOW_BYTES, WINDOW_BYTES, WINDOW_BYTES_MIN},
    },
    cluster::model::{Member, NodeId},
};

/// Between two questions whether anybody is there, in ms.
const BEAT_MS: u64 = 1_000;
/// A connection on which nothing was heard for so long is broken, in ms.
const SILENCE_MS_MAX: u64 = 3_500;
/// A catch-up connection that nobody needed for so long is closed, in ms.
const UNUSED_MS_MAX: u64 = 10_000;
/// First pause before a connection is tried again, in ms; each further one is twice as long.
const REDIAL_MS: u64 = 50;
/// Longest such pause.
const REDIAL_MS_MAX: u64 = 1_000;

impl ShardChannel {
    /// Somebody opened a connection whose [`Hello`] names this shard. What it will be called; the hello comes as its first frame.
    pub fn handle_accepted(&mut self, now_ms: u64) -> LinkId {
        self.new_link(now_ms, None)
    }

    fn new_link(&mut self, now_ms: u64, peer: Option<Peer>) -> LinkId {
        self.last_link += 1;
        let link = LinkId(self.last_link);
        self.links.insert(link, Link::new(now_ms, peer));
        self.alarms.insert((now_ms + BEAT_MS, Alarm::Beat(link)));
        link
    }

    /// Opens the live connection to a leader's shard unless there is one, or one is tried.
    pub(super) fn dial_live(&mut self, now_ms: u64, node: NodeId, shard: u32) {
        self.dial_unless_resting(now_ms, Peer { node, shard, purpose: Purpose::Live });
    }

    pub(super) fn dial_unless_resting(&mut self, now_ms: u64, peer: Peer) {
        if !self.dialed.get(&peer).is_some_and(|dialed| dialed.is_resting) {
            self.dial(now_ms, peer);
        }
    }

    pub(super) fn dial(&mut self, now_ms: u64, peer: Peer) {
        let is_wanted = self.followed.contains_key(&(peer.node, peer.shard));
        let is_alive = self.me.is_some() && self.nodes.live(peer.node).is_some();
        let dialed = self.dialed.entry(peer).or_default();
        dialed.is_resting = false;
        if dialed.link.is_some() || !is_wanted || !is_alive {
            return;
        }
        let link = self.new_link(now_ms, Some(peer));
        self.dialed.entry(peer).or_default().link = Some(link);
        let Peer { node, shard, purpose } = peer;
        self.intents.push_back(Intent::Dial { link, node, shard, purpose });
    }

    /// A connection is open, or could not be opened.
    pub fn on_dialed(&mut self, now_ms: u64, link: LinkId, result: Result<(), ()>) {
        if result.is_err() {
            return self.handle_closed(now_ms, link);
        }
        let (Some(state), Some(from)) = (self.links.get_mut(&link), self.me) else { return };
        let Some(peer) = state.peer.filter(|_| state.state == LinkState::Dialing) else { return };
        state.state = LinkState::Greeting;
        state.heard_ms = now_ms;
        let hello = Hello {
            cluster: self.config.cluster,
            from,
            from_shard: self.config.shard,
            to: peer.node,
            to_shard: peer.shard,
            purpose: peer.purpose,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
        };
        self.say(link, Frame::Hello(hello));
        self.flush();
    }

    /// The live connection to a leader's shard, if it is up.
    pub(super) fn live_link(&self, (node, shard): (NodeId, u32)) -> Option<LinkId> {
        let link = self.dialed.get(&Peer { node, shard, purpose: Purpose::Live })?.link?;
        self.links.get(&link).filter(|state| state.state == LinkState::Up).map(|_| link)
    }

    /// Whether a connection's other end lives no more.
    pub(super) fn is_over(&self, link: &Link) -> bool {
        let Some(peer) = link.peer else { return false };
        let live = self.nodes.live(peer.node).map(|live| live.member);
        match link.member {
            Some(member) => live != Some(member),
            None => live.is_none(),
        }
    }

    /// Closes connections to shards that nobody of this shard follows any more.
    pub(super) fn retire(&mut self, now_ms: u64) {
        let is_unneeded = |peer: &&Peer| !self.followed.contains_key(&(peer.node, peer.shard));
        let unneeded: Vec<Peer> = self.dialed.keys().filter(is_unneeded).copied().collect();
        for peer in unneeded {
            let dialed = self.dialed.remove(&peer);
            if let Some(link) = dialed.and_then(|dialed| dialed.link) {
                self.hang_up(now_ms, link);
            }
        }
    }

    /// Closes a connection after what it has to send.
    pub(super) fn hang_up(&mut self, now_ms: u64, link: LinkId) {
        self.flush();
        self.lose(now_ms, link);
        self.intents.push_back(Intent::HangUp { link });
    }

    /// A connection ended, or its bytes were no frames.
    pub fn handle_closed(&mut self, now_ms: u64, link: LinkId) {
        self.miss(link);
        self.lose(now_ms, link);
        self.flush();
    }

    /// The process at the other end of a connection that this shard opened may be gone.
    fn miss(&mut self, link: LinkId) {
        if let Some(Link { peer: Some(peer), member: Some(member), is_dialed: true, .. }) = self.links.get(&link)
            && peer.purpose == Purpose::Live
        {
            self.intents.push_back(Intent::Heed { member: *member, sign: Sign::Gone });
        }
    }

    /// Somebody of this node takes the process of a life for gone. Whoever has another connection to it asks there: one that is
    /// silent or was closed alone shows nothing of the whole, and a sign that it is there may have crossed the one that it is
    /// not.
    pub fn handle_doubted(&mut self, member: Member) {
        let of_it = |state: &&mut Link| state.member == Some(member) && state.state == LinkState::Up;
        let mut asked = Vec::new();
        for (link, state) in self.links.iter_mut() {
            if of_it(&state) {
                state.questioned = Some(state.unanswered + 1);
                asked.push(*link);
            }
        }
        asked.into_iter().for_each(|link| self.ping(link));
        self.flush();
    }

    /// An answer came.
    fn ponged(&mut self, link: LinkId) {
        let Some(state) = self.links.get_mut(&link) else { return };
        state.unanswered = state.unanswered.saturating_sub(1);
        state.questioned = state.questioned.map(|answers| answers.saturating_sub(1));
        if state.questioned.take_if(|answers| *answers == 0).is_some()
            && let Some(member) = state.member
        {
            self.intents.push_back(Intent::Heed { member, sign: Sign::There });
        }
    }

    fn ping(&mut self, link: LinkId) {
        if let Some(state) = self.links.get_mut(&link) {
            state.unanswered += 1;
        }
        self.say(link, Frame::Ping);
    }

    /// Something of a frame that is not complete was received: somebody is there.
    pub fn handle_heard(&mut self, now_ms: u64, link: LinkId) {
        if let Some(state) = self.links.get_mut(&link) {
            state.heard_ms = now_ms;
        }
    }

    fn lose(&mut self, now_ms: u64, link: LinkId) {
        let Some(state) = self.links.remove(&link) else { return };
        let Some(peer) = state.peer else { return };
        if state.is_dialed {
            self.lose_leader(now_ms, peer, link);
        } else {
            if self.accepted.get(&peer) == Some(&link) {
                self.accepted.remove(&peer);
            }
            self.lose_follower(now_ms, link, &state);
            if let Some(live) = self.accepted.get(&Peer { purpose: Purpose::Live, ..peer }).copied() {
                self.lose_chunks(now_ms, live);
            }
        }
    }

    fn lose_leader(&mut self, now_ms: u64, peer: Peer, link: LinkId) {
        if peer.purpose == Purpose::Live {
            let chunks = self.dialed.remove(&Peer { purpose: Purpose::CatchUp, ..peer });
            if let Some(link) = chunks.and_then(|dialed| dialed.link) {
                self.hang_up(now_ms, link);
            }
        }
        self.lose_leader_of(now_ms, peer);
        let is_followed = self.followed.contains_key(&(peer.node, peer.shard));
        let Some(dialed) = self.dialed.get_mut(&peer).filter(|dialed| dialed.link == Some(link)) else { return };
        dialed.link = None;
        if !is_followed || peer.purpose == Purpose::CatchUp {
            self.dialed.remove(&peer);
            return;
        }
        let pause = (REDIAL_MS << dialed.failures.min(8)).min(REDIAL_MS_MAX);
        (dialed.failures, dialed.is_resting) = (dialed.failures + 1, true);
        self.alarms.insert((now_ms + pause, Alarm::Dial(peer)));
    }

    /// Sees whether anybody is there, and asks.
    pub(super) fn beat(&mut self, now_ms: u64, link: LinkId) {
        let Some(state) = self.links.get(&link) else { return };
        let unused = now_ms.saturating_sub(state.payload_ms) >= UNUSED_MS_MAX;
        let is_silent = now_ms.saturating_sub(state.heard_ms) >= SILENCE_MS_MAX;
        let is_asked = state.is_dialed && state.state == LinkState::Up;
        if is_silent {
            self.miss(link);
        }
        if is_silent || (unused && self.is_unneeded(link)) {
            return self.hang_up(now_ms, link);
        }
        if is_asked {
            self.ping(link);
        }
        self.alarms.insert((now_ms + BEAT_MS, Alarm::Beat(link)));
    }

    /// Whether a connection is for chunks and nobody waits for any.
    fn is_unneeded(&self, link: LinkId) -> bool {
        let peer = self.links.get(&link).filter(|state| state.is_dialed).and_then(|state| state.peer);
        // a live one is needed as long as anything is followed: who looks at each of thousands every second is not idle
        let Some(peer) = peer.filter(|peer| peer.purpose == Purpose::CatchUp) else { return false };
        let followed = self.followed.get(&(peer.node, peer.shard));
        let lags = followed.into_iter().flatten().any(|partition| {
            let part = self.hosted.get(partition).map(|hosted| &hosted.part);
            matches!(part, Some(Part::Following(following)) if following.is_catching_up())
        });
        !lags
    }

    /// Takes a frame. What has no place on its connection ends that.
    pub fn handle_frame(&mut self, now_ms: u64, link: LinkId, frame: Frame, logs: &dyn Logs) {
        if let Some(state) = self.links.get_mut(&link) {
            state.heard_ms = now_ms;
            let bytes = frame.payload_bytes();
            if bytes > 0 {
                state.payload_ms = now_ms;
            }
            if self.take(now_ms, link, frame, logs).is_none() {
                self.hang_up(now_ms, link);
            }
        }
        self.settle(now_ms);
        self.flush();
    }

    /// None if the frame has no place on this connection.
    fn take(&mut self, now_ms: u64, link: LinkId, frame: Frame, logs: &dyn Logs) -> Option<()> {
        let state = self.links.get(&link)?;
        match (state.state, state.is_dialed, frame) {
            (LinkState::Greeting, false, Frame::Hello(hello)) => return self.greet(now_ms, link, hello),
            (LinkState::Greeting, true, Frame::Welcome(welcome)) => return self.welcomed(now_ms, link, welcome, logs),
            (LinkState::Up, _, Frame::Ping) => self.say(link, Frame::Pong),
            (LinkState::Up, _, Frame::Pong) => self.ponged(link),
            (LinkState::Up, _, Frame::Detach(list)) => self.detached(now_ms, link, &list, logs),
            (LinkState::Up, true, frame) => return self.take_from_leader(now_ms, link, frame, logs),
            (LinkState::Up, false, frame) => return self.take_from_follower(now_ms, link, frame, logs),
            _ => return None,
        }
        Some(())
    }

    fn detached(&mut self, now_ms: u64, link: LinkId, list: &[Detach], logs: &dyn Logs) {
        let is_dialed = self.links.get(&link).is_some_and(|state| state.is_dialed);
        for detach in list {
            match is_dialed {
                true => self.let_go_by_leader(now_ms, detach),
                false => self.let_go_by_follower(now_ms, link, detach, logs),
            }
        }
    }

    /// Takes the first frame of a follower.
    fn greet(&mut self, now_ms: u64, link: LinkId, hello: Hello) -> Option<()> {
        let me = match self.judge(&hello) {
            Ok(me) => me,
            Err(refusal) => {
                self.say(link, Frame::Refuse(refusal));
                return None;
            }
        };
        let peer = Peer { node: hello.from.node, shard: hello.from_shard, purpose: hello.purpose };
        if let Some(former) = self.accepted.insert(peer, link) {
            self.hang_up(now_ms, former);
            self.accepted.insert(peer, link);
        }
        let state = self.links.get_mut(&link)?;
        let version = VERSION_MAX.min(hello.version_max);
        (state.peer, state.member, state.state) = (Some(peer), Some(hello.from), LinkState::Up);
        state.version = version;
        self.say(link, Frame::Welcome(Welcome { from: me, version }));
        if peer.purpose == Purpose::CatchUp
            && let Some(live) = self.accepted.get(&Peer { purpose: Purpose::Live, ..peer }).copied()
        {
            self.read_for(now_ms, live);
        }
        Some(())
    }

    fn judge(&self, hello: &Hello) -> Result<Member, Refusal> {
        let me = self.me.ok_or(Refusal::NotRegistered)?;
        if hello.cluster != self.config.cluster {
            return Err(Refusal::OtherCluster);
        }
        if (hello.to, hello.to_shard) != (self.config.node, self.config.shard) {
            return Err(Refusal::OtherNode);
        }
        if hello.version_min > VERSION_MAX || hello.version_max < VERSION_MIN {
            return Err(Refusal::OtherVersion);
        }
        match self.nodes.live(hello.from.node) {
            Some(live) if live.member == hello.from => Ok(me),
            _ => Err(Refusal::OtherLife),
        }
    }

    /// Takes the first frame of a leader.
    fn welcomed(&mut self, now_ms: u64, link: LinkId, welcome: Welcome, logs: &dyn Logs) -> Option<()> {
        let peer = self.links.get(&link)?.peer?;
        let window = self.window(now_ms, peer.purpose);
        let state = self.links.get_mut(&link)?;
        if welcome.from.node != peer.node || !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version) {
            return None;
        }
        (state.member, state.state, state.version) = (Some(welcome.from), LinkState::Up, welcome.version);
        let grant = state.inbound.next_grant(window);
        if let Some(dialed) = self.dialed.get_mut(&peer) {
            dialed.failures = 0;
        }
        self.intents.push_back(Intent::Heed { member: welcome.from, sign: Sign::There });
        if let Some(grant) = grant {
            self.say(link, Frame::Credit(grant));
        }
        if peer.purpose == Purpose::Live {
            self.attach_all((peer.node, peer.shard), logs);
        }
        Some(())
    }

    /// Payload that one leader may have under way to this shard: its share of what all may, and of chunks less while others write.
    pub(super) fn window(&self, now_ms: u64, purpose: Purpose) -> u64 {
        if purpose == Purpose::CatchUp && self.pace.is_busy(now_ms) {
            return PIECE_BYTES_MAX as u64;
        }
        let links = self.dialed.len().max(1) as u64;
        (SHARD_WINDOW_BYTES / links).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES)
    }
}
