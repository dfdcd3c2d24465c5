//! Conversations of nodes over the channel as text: what is done, and below `----` all that follows, frame by frame.
//!
//! `MILLRACE_BLESS=1` writes what comes out, to be read and judged. Commands:
//!
//! * `nodes 1 2@7`: those live, in epoch 1 or the given one; they have registered.
//! * `log 2 0:5 3:2`: node 2's log has five records of epoch 0 and two of epoch 3, all durable. `note=4` notes epoch 4 at its end,
//!   `from=3` is its first offset, `hw=3` its high watermark.
//! * `assign 1,2 epoch=4 leader=1 isr=1,2 min=1`: both nodes hear that; `revision` counts by itself.
//! * `append 1 3`, `append 1 1 bytes=9000000`: node 1 appends records, and seals them.
//! * `write 2`: all that node 2 has is written and durable.
//! * `run`: everything under way arrives. `wait 1000`: so many ms go by, with what is due.
//! * `isr ok`, `isr unknown`, `isr refused`: what became of the change that was asked for last.
//! * `break 1 2`: connections between them end; `break 1 2 newest`: only the one that was made last. `unreachable 1`: whoever dials node 1 fails, until `reachable 1`.
//! * `full 2`: node 2's disk takes nothing, until `free 2`.
//! * `hold` keeps frames under way, `run` lets them go. `part 2`: a part of a frame came to node 2, on each of its connections.
//! * `doubts 2 1`: whether node 2 takes node 1's process for gone.
//! * `suspect 2 1`: another shard of node 2 takes node 1's process for gone.
//! * `old`: from here on all greetings are as a node of version 1 says them, and no frame may be of a later one.
//! * `limit 1 leading=100000`, `limit 2 following=100000`: bytes per second for replicas that are not in sync.
//! * `trim 1 3`: node 1's log begins at 3. It tells when it is asked to `write`.
//! * `greet 1 from=2@1 cluster=9 to=1 shard=0 versions=1-2`: a stranger connects to node 1 and says that; what is left out is what
//!   node 2 would say.
//! * `lost 1`: node 1's life is over, and it has no other yet.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    path::PathBuf,
};

use bytes::Bytes;
use millrace_engine::{api::TopicPartition, config::Durability};
use uuid::Uuid;

use super::{
    doubts::{Doubts, Sign},
    event::{Assignment, Done, IsrOutcome, LeaderRole, LinkId, LiveNode, LogPosition, Logs, Nodes, ReadFailure},
    event::{ReadRun, Role, SealedRun},
    frame::{Frame, Hello, Purpose, Run, Verdict, encode},
    intent::{EngineWork, Intent},
    quota::{Limited, LimitedReplicas, ReplicationLimits},
    shard::{ChannelConfig, LAG_MS_MAX, ShardChannel},
};
use crate::cluster::model::{Member, NodeId};

/// The other end of a connection that no node of the script opened.
const STRANGER: NodeId = -1;
/// How long a node is doubted at most.
const DOUBT_MS_MAX: u64 = 5_000;
const P: TopicPartition = TopicPartition { topic: Uuid::from_u128(1), partition: 0 };

/// A log without records: only where it stands.
#[derive(Debug, Default)]
struct Log {
    start: i64,
    epochs: Vec<(i32, i64)>,
    end: i64,
    durable: i64,
    high_watermark: i64,
    is_full: bool,
    /// Payload of runs by where they begin, as far as it is not small.
    large: BTreeMap<i64, usize>,
}

impl Log {
    fn note(&mut self, epoch: i32) {
        if self.epochs.last().is_none_or(|last| last.0 < epoch) {
            self.epochs.push((epoch, self.end));
        }
    }
}

impl Logs for Log {
    fn position(&self, _: TopicPartition) -> Option<LogPosition> {
        let last = self.epochs.last();
        Some(LogPosition {
            log_start: self.start,
            high_watermark: self.high_watermark,
            written: self.durable,
            durable: self.durable,
            end: self.end,
            last_epoch: last.map_or(-1, |last| last.0),
            epoch_start: last.map_or(self.start, |last| last.1),
            durability: Durability::Device,
        })
    }

    fn end_of_epoch(&self, _: TopicPartition, epoch: i32) -> Option<(i32, i64)> {
        let first = self.epochs.first()?;
        if epoch < first.0 {
            return Some((epoch, first.1));
        }
        let at = self.epochs.iter().rposition(|entry| entry.0 <= epoch)?;
        Some((self.epochs[at].0, self.epochs.get(at + 1).map_or(self.end, |next| next.1)))
    }
}

#[derive(Debug)]
struct Node {
    core: ShardChannel,
    log: Log,
    doubts: Doubts,
}

#[derive(Debug, Default)]
struct Conversation {
    now: u64,
    nodes: BTreeMap<NodeId, Node>,
    lives: Vec<Member>,
    /// Both ends of connections, and their purpose.
    pipes: Vec<[(NodeId, LinkId); 2]>,
    under_way: VecDeque<(usize, usize, Frame)>,
    is_held: bool,
    is_old: bool,
    unreachable: Vec<NodeId>,
    proposals: Vec<(NodeId, i64)>,
    revision: i64,
    out: String,
}

impl Conversation {
    fn call(&mut self, id: NodeId, call: impl FnOnce(u64, &mut ShardChannel, &dyn Logs)) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("a node of the script");
        call(now, &mut node.core, &node.log);
        self.obey(id);
    }

    fn obey(&mut self, id: NodeId) {
        while let Some(intent) = self.nodes.get_mut(&id).and_then(|node| node.core.next_intent()) {
            match intent {
                Intent::Dial { link, node, purpose, .. } => {
                    let purpose = if purpose == Purpose::Live { "live" } else { "catch-up" };
                    if self.unreachable.contains(&node) {
                        self.call(id, |now, core, _| core.on_dialed(now, link, Err(())));
                        continue;
                    }
                    self.line(format!("{id} dials {node} {purpose}"));
                    let now = self.now;
                    let far = self.nodes.get_mut(&node).expect("a node of the script").core.handle_accepted(now);
                    self.pipes.push([(id, link), (node, far)]);
                    self.call(id, |now, core, _| core.on_dialed(now, link, Ok(())));
                }
                Intent::HangUp { link } => {
                    let pipe = self.pipes.iter().position(|ends| ends.contains(&(id, link))).expect("an open pipe");
                    self.bid_farewell(pipe);
                    self.line(format!("{id} hangs up"));
                    self.end(pipe, id);
                }
                Intent::Send { link, frame } => {
                    let is_from = |ends: &[(NodeId, LinkId); 2]| ends.iter().position(|end| *end == (id, link));
                    let found = self.pipes.iter().enumerate().find_map(|(pipe, ends)| Some((pipe, is_from(ends)?)));
                    if let Some((pipe, end)) = found {
                        self.under_way.push_back((pipe, 1 - end, frame));
                    }
                }
                Intent::Work { work, .. } => self.work(id, work),
                Intent::LogStartsMoved { partition } => {
                    let node = &self.nodes[&id];
                    let low = node.core.low_watermark(partition, &node.log).expect("who hears of it leads");
                    self.line(format!("{id} knows of low watermark {low}"));
                }
                Intent::Heed { member, sign } => {
                    self.heed(id, member, sign);
                }
                Intent::ChangeIsr { revision, proposal, .. } => {
                    let isr: Vec<String> = proposal.isr.iter().map(|member| member.node.to_string()).collect();
                    self.line(format!("{id} asks for isr={} at r{revision}", isr.join(",")));
                    self.proposals.push((id, revision));
                }
            }
        }
    }

    /// What was said to a stranger before the end arrives: a node hangs up once all is sent.
    fn bid_farewell(&mut self, pipe: usize) {
        if self.pipes[pipe][0].0 == STRANGER {
            while let Some(at) = self.under_way.iter().position(|(other, end, _)| (*other, *end) == (pipe, 0)) {
                self.under_way.swap(0, at);
                self.deliver();
            }
        }
    }

    fn end(&mut self, pipe: usize, by: NodeId) {
        let ends = self.pipes[pipe];
        self.under_way.retain(|(other, ..)| *other != pipe);
        // a pipe keeps its place, so that others keep theirs
        self.pipes[pipe] = [(0, LinkId(0)); 2];
        for (node, link) in ends.into_iter().filter(|(node, _)| *node != by && *node > 0) {
            self.call(node, |now, core, _| core.handle_closed(now, link));
        }
    }

    fn work(&mut self, id: NodeId, work: EngineWork) {
        let log = &mut self.nodes.get_mut(&id).expect("a node of the script").log;
        let (text, done) = match work {
            EngineWork::Lead { epoch } => {
                log.note(epoch);
                (format!("leads in {epoch}"), Some(Done::Changed))
            }
            EngineWork::Follow { epoch } => (format!("follows in {epoch}"), Some(Done::Changed)),
            EngineWork::Truncate { end } => {
                log.epochs.retain(|entry| entry.1 < end);
                (log.end, log.durable, log.high_watermark) = (end, end, log.high_watermark.min(end));
                (format!("truncates to {end}"), Some(Done::Changed))
            }
            EngineWork::BeginAnew { log_start } => {
                *log = Log { start: log_start, end: log_start, durable: log_start, ..Log::default() };
                log.high_watermark = log_start;
                (format!("begins anew at {log_start}"), Some(Done::Changed))
            }
            EngineWork::Append { attachment, epoch, base, end, batches } => {
                let fits = base == log.end && !log.is_full;
                if fits {
                    log.note(epoch);
                    log.end = end;
                }
                let large = if batches.len() > 1_000 { format!(" ({} bytes)", batches.len()) } else { String::new() };
                let does = if fits { "appends" } else { "cannot append" };
                (format!("{does} [{base},{end}){large}"), (!fits).then_some(Done::AppendFailed { attachment }))
            }
            EngineWork::AdvanceHighWatermark { high_watermark } => {
                log.high_watermark = high_watermark;
                (format!("high watermark {high_watermark}"), None)
            }
            EngineWork::SetInSync { count } => (format!("{count} in sync"), None),
            EngineWork::Trim { log_start } => {
                log.start = log_start;
                (format!("trims to {log_start}"), None)
            }
            EngineWork::Read { link, attachment, from, .. } => {
                let next = log.large.keys().find(|base| **base > from).copied().unwrap_or(log.end).min(log.end);
                let result = match from < log.start {
                    true => Err(ReadFailure::Trimmed),
                    false => Ok(ReadRun { end: next, bytes: payload(log.large.get(&from).copied()) }),
                };
                (format!("reads from {from}"), Some(Done::Read { link, attachment, from, result }))
            }
        };
        self.line(format!("{id} {text}"));
        if let Some(done) = done {
            self.call(id, |now, core, logs| core.on_done(now, P, done, logs));
        }
    }

    /// A connection whose other end is no node of the script.
    fn greet(&mut self, id: NodeId, words: &[&str]) {
        let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let versions = value("versions").unwrap_or("1-2").split_once('-').expect("oldest and newest");
        let hello = Hello {
            cluster: Uuid::from_u128(value("cluster").map_or(9, |word| word.parse().unwrap())),
            from: member(value("from").unwrap_or("2")),
            from_shard: 0,
            to: value("to").map_or(id, |word| word.parse().unwrap()),
            to_shard: value("shard").map_or(0, |word| word.parse().unwrap()),
            purpose: Purpose::Live,
            version_min: versions.0.parse().unwrap(),
            version_max: versions.1.parse().unwrap(),
        };
        let far = self.nodes.get_mut(&id).expect("a node of the script").core.handle_accepted(self.now);
        self.pipes.push([(STRANGER, LinkId(0)), (id, far)]);
        self.under_way.push_back((self.pipes.len() - 1, 1, Frame::Hello(hello)));
    }

    fn heed(&mut self, id: NodeId, member: Member, sign: Sign) {
        let now = self.now;
        let is_news = self.nodes.get_mut(&id).expect("a node of the script").doubts.note(now, member, sign);
        if is_news && sign == Sign::Gone {
            self.call(id, |_, core, _| core.handle_doubted(member));
        }
    }

    fn line(&mut self, text: String) {
        self.out.push_str(&text);
        self.out.push('\n');
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.deliver() {
                return;
            }
        }
        panic!("they never end");
    }

    /// Delivers the oldest frame, if one is under way.
    fn deliver(&mut self) -> bool {
        let Some((pipe, end, mut frame)) = self.under_way.pop_front() else { return false };
        if self.is_old {
            if let Frame::Hello(hello) = &mut frame {
                hello.version_max = 1;
            }
            assert_eq!(encode(&frame).head[10], 1, "{frame:?} has a version that the other does not know");
        }
        let ((from, _), (to, link)) = (self.pipes[pipe][1 - end], self.pipes[pipe][end]);
        if let Some(text) = describe(&frame) {
            let name = |id: NodeId| if id == STRANGER { "stranger".to_owned() } else { id.to_string() };
            self.line(format!("{}>{} {text}", name(from), name(to)));
        }
        if to != STRANGER {
            self.call(to, |now, core, logs| core.handle_frame(now, link, frame, logs));
        }
        true
    }

    fn wait(&mut self, time: u64) {
        let until = self.now + time;
        loop {
            let due = self.nodes.iter().filter_map(|(id, node)| Some((node.core.next_wake_ms()?, *id)));
            let Some((at, id)) = due.min().filter(|(at, _)| *at <= until) else { break };
            self.now = self.now.max(at);
            self.call(id, |now, core, logs| core.handle_tick(now, logs));
            if !self.is_held {
                self.run();
            }
        }
        self.now = until;
    }

    fn say_whether_it_doubts(&mut self, id: NodeId, of: NodeId) {
        let (now, lives) = (self.now, self.lives.clone());
        let doubts = &mut self.nodes.get_mut(&id).expect("a node of the script").doubts;
        doubts.forget(now, DOUBT_MS_MAX, |member| lives.contains(&member));
        let says = if doubts.nodes().contains(&of) { "doubts" } else { "believes in" };
        self.line(format!("{id} {says} {of}"));
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let id = || words[1].parse::<NodeId>().expect("a node's id");
        match words[0] {
            "nodes" => self.set_nodes(&words[1..]),
            "log" => self.set_log(id(), &words[2..]),
            "assign" => self.assign(&words[1..]),
            "append" => {
                let bytes = words.get(3).and_then(|word| word.strip_prefix("bytes=")).map(|word| word.parse().unwrap());
                self.append(id(), words[2].parse().unwrap(), bytes);
            }
            "write" => {
                let log = &mut self.nodes.get_mut(&id()).expect("a node of the script").log;
                log.durable = log.end;
                self.call(id(), |now, core, logs| core.handle_progressed(now, &[P], logs));
            }
            "trim" => self.nodes.get_mut(&id()).expect("a node of the script").log.start = words[2].parse().unwrap(),
            "unreachable" => self.unreachable.push(id()),
            "reachable" => self.unreachable.retain(|other| *other != id()),
            "full" => self.nodes.get_mut(&id()).expect("a node of the script").log.is_full = true,
            "free" => self.nodes.get_mut(&id()).expect("a node of the script").log.is_full = false,
            "greet" => self.greet(id(), &words[2..]),
            "hold" => self.is_held = true,
            "old" => self.is_old = true,
            "limit" => self.limit(id(), words[2]),
            "run" => self.is_held = false,
            "deliver" => (0..words[1].parse().unwrap()).for_each(|_| assert!(self.deliver(), "nothing is under way")),
            "part" => {
                let ends = self.pipes.iter().flatten().filter(|(node, _)| *node == id()).copied();
                for (node, link) in ends.collect::<Vec<_>>() {
                    self.call(node, |now, core, _| core.handle_heard(now, link));
                }
            }
            "doubts" => self.say_whether_it_doubts(id(), words[2].parse().unwrap()),
            "suspect" => {
                let whom: NodeId = words[2].parse().unwrap();
                let life = *self.lives.iter().find(|life| life.node == whom).expect("it lives");
                self.heed(id(), life, Sign::Gone);
            }
            "lost" => self.call(id(), |now, core, logs| core.handle_lost(now, logs)),
            "wait" => self.wait(words[1].parse().unwrap()),
            "isr" => {
                let (id, revision) = self.proposals.pop().expect("something was asked for");
                self.revision += 1;
                let outcome = match words[1] {
                    "ok" => IsrOutcome::Committed { revision: self.revision },
                    "refused" => IsrOutcome::Refused,
                    _ => IsrOutcome::Unknown,
                };
                self.call(id, |now, core, logs| core.on_isr_changed(now, P, revision, outcome, logs));
            }
            "break" => {
                let pair = [id(), words[2].parse().unwrap()];
                let is_theirs = |pipe: &usize| self.pipes[*pipe].iter().all(|(node, _)| pair.contains(node));
                let mut theirs: Vec<usize> = (0..self.pipes.len()).filter(is_theirs).collect();
                if words.get(3) == Some(&"newest") {
                    theirs.drain(..theirs.len() - 1);
                }
                theirs.into_iter().for_each(|pipe| self.end(pipe, 0));
            }
            other => panic!("no command {other}"),
        }
        if !self.is_held {
            self.run();
        }
    }

    fn limit(&mut self, id: NodeId, word: &str) {
        let (side, rate) = word.split_once('=').expect("a side and a rate");
        let rate = Some(rate.parse().unwrap());
        let mut limits = ReplicationLimits::default();
        *(if side == "leading" { &mut limits.leading } else { &mut limits.following }) = rate;
        let all = LimitedReplicas { leading: Limited::All, following: Limited::All };
        self.call(id, |now, core, _| {
            core.handle_limits(now, limits);
            core.handle_limited(now, P.topic, all);
        });
    }

    fn set_nodes(&mut self, words: &[&str]) {
        self.lives = words.iter().map(|word| member(word)).collect();
        let live = |member: &Member| LiveNode { member: *member, continues: None, draining: false, shards: 1 };
        for member in self.lives.clone() {
            let config =
                ChannelConfig { cluster: Uuid::from_u128(9), node: member.node, shard: 0, lag_ms_max: LAG_MS_MAX };
            let node = || Node { core: ShardChannel::new(config), log: Log::default(), doubts: Doubts::default() };
            self.nodes.entry(member.node).or_insert_with(node);
            let nodes = Nodes::new(self.lives.iter().map(live));
            self.call(member.node, |now, core, logs| {
                core.handle_registered(now, member);
                core.handle_nodes(now, nodes, logs);
            });
        }
    }

    fn set_log(&mut self, id: NodeId, words: &[&str]) {
        let mut log = Log::default();
        for word in words {
            if let Some(epoch) = word.strip_prefix("note=") {
                log.note(epoch.parse().unwrap());
            } else if let Some(start) = word.strip_prefix("from=") {
                (log.start, log.end, log.high_watermark) = (start.parse().unwrap(), start.parse().unwrap(), 0);
            } else if let Some(high_watermark) = word.strip_prefix("hw=") {
                log.high_watermark = high_watermark.parse().unwrap();
            } else {
                let (epoch, records) = word.split_once(':').expect("epoch:records");
                log.note(epoch.parse().unwrap());
                log.end += records.parse::<i64>().unwrap();
            }
        }
        log.durable = log.end;
        self.nodes.get_mut(&id).expect("a node of the script").log = log;
    }

    fn assign(&mut self, words: &[&str]) {
        let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let lives = self.lives.clone();
        let life = |word: &str| match word.contains('@') {
            true => member(word),
            false => *lives.iter().find(|life| life.node == word.parse::<NodeId>().unwrap()).expect("it lives"),
        };
        let epoch = value("epoch").expect("an epoch").parse().unwrap();
        let leader = life(value("leader").expect("a leader"));
        let isr: Vec<Member> = value("isr").expect("an ISR").split(',').map(life).collect();
        let replicas = value("replicas").unwrap_or("1,2").split(',').map(|word| word.parse().unwrap()).collect();
        let min_isr = value("min").map_or(1, |word| word.parse().unwrap());
        let led =
            LeaderRole { replicas, isr, elr: Vec::new(), min_isr, durability: Durability::Device, written: false };
        self.revision += 1;
        for id in words[0].split(',').map(|word| word.parse::<NodeId>().unwrap()) {
            let role = match id == leader.node {
                true => Role::Leader(led.clone()),
                false => Role::Follower { leader, shard: 0 },
            };
            let assignment = Assignment { revision: self.revision, epoch, role };
            self.call(id, |now, core, logs| core.handle_assigned(now, P, Some(assignment), logs));
        }
    }

    fn append(&mut self, id: NodeId, records: i64, bytes: Option<usize>) {
        let log = &mut self.nodes.get_mut(&id).expect("a node of the script").log;
        let (base, epoch) = (log.end, log.epochs.last().expect("it leads").0);
        log.end += records;
        log.large.insert(base, bytes.unwrap_or(100));
        let run = SealedRun { partition: P, epoch, base, end: log.end, bytes: payload(bytes) };
        self.call(id, |now, core, logs| core.handle_sealed(now, vec![run], logs));
    }
}

fn payload(bytes: Option<usize>) -> Bytes {
    vec![0; bytes.unwrap_or(100)].into()
}

fn member(word: &str) -> Member {
    let (node, epoch) = word.split_once('@').unwrap_or((word, "1"));
    Member { node: node.parse().unwrap(), epoch: epoch.parse().unwrap() }
}

/// A frame in short; none for those that keep a connection alive.
fn describe(frame: &Frame) -> Option<String> {
    let run = |run: &Run| {
        let large =
            if run.payload.bytes.len() > 1_000 { format!(" {} bytes", run.payload.bytes.len()) } else { String::new() };
        format!("[{},{}) epoch={} hw={}{large}", run.base, run.end, run.epoch, run.high_watermark)
    };
    let mut text = String::new();
    match frame {
        Frame::Ping | Frame::Pong => return None,
        Frame::Hello(hello) => write!(text, "hello from {}@{}", hello.from.node, hello.from.epoch),
        Frame::Welcome(_) => write!(text, "welcome"),
        Frame::Refuse(refusal) => write!(text, "refuse {refusal:?}"),
        Frame::Attach(list) => list.iter().try_for_each(|it| {
            write!(text, "attach epoch={} end={} durable={} last={}", it.epoch, it.end, it.durable, it.last_epoch)
        }),
        Frame::Attached(list) => list.iter().try_for_each(|it| match it.verdict {
            Verdict::Match => write!(text, "match"),
            other => write!(text, "{other:?}"),
        }),
        Frame::Live(live) => {
            let runs: Vec<String> = live.runs.iter().map(run).collect();
            write!(text, "live {}: {}", live.sequence, runs.join(", "))
        }
        Frame::Confirm(confirm) => write!(text, "confirm {}", confirm.sequence),
        Frame::Credit(credit) => write!(text, "credit {credit}"),
        Frame::Chunk(chunk) => write!(text, "chunk {}", run(chunk)),
        Frame::Positions(list) => list.iter().try_for_each(|it| write!(text, "position durable={}", it.durable)),
        Frame::Marks(list) => list.iter().try_for_each(|it| {
            write!(text, "marks epoch={} hw={} start={}", it.epoch, it.high_watermark, it.log_start)
        }),
        Frame::GoLive(list) => list.iter().try_for_each(|it| write!(text, "go live at {}", it.at)),
        Frame::CatchUp(list) => list.iter().try_for_each(|it| write!(text, "catch up at {}", it.at)),
        Frame::LogStarts(list) => list.iter().try_for_each(|it| write!(text, "log start {}", it.log_start)),
        Frame::Hold(list) => list.iter().try_for_each(|it| write!(text, "chunks: {:?}", it.chunks)),
        Frame::Detach(list) => list.iter().try_for_each(|it| write!(text, "detach epoch={} {:?}", it.epoch, it.reason)),
    }
    .expect("text takes all");
    Some(text)
}

/// Plays a script, and gives it back with what came out.
fn play(script: &str) -> String {
    let mut conversation = Conversation::default();
    let mut played = String::new();
    for block in script.split("\n\n") {
        let commands = block.split("\n----").next().unwrap_or(block).trim_end();
        for line in commands.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            conversation.command(line);
        }
        let out = std::mem::take(&mut conversation.out);
        writeln!(played, "{commands}\n----\n{out}").expect("text takes all");
    }
    played.trim_end().to_owned() + "\n"
}

#[test]
fn conversations_go_as_written() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/channel/testdata");
    let mut scripts: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for path in scripts {
        let script = std::fs::read_to_string(&path).unwrap();
        let played = play(&script);
        if std::env::var_os("MILLRACE_BLESS").is_some() {
            std::fs::write(&path, &played).unwrap();
        } else {
            assert_eq!(played, script, "{}", path.display());
        }
    }
}
