//! Several cores on one store in virtual time: members come and go, questions are answered, the controller acts.

mod behind;
mod chaos;
mod replicas;
mod settings;

use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use millrace_engine::api::{ConfigChange, TopicPartition};

use super::*;
use crate::cluster::{
    change::IsrProposal,
    memory::{Client, Line, Memory},
    model::{Continued, Kept, NodeId, PartitionState, TopicRules},
    plane::{
        AdminCode, Answer, ConfigEdit, CreatedTopic, CreationDefaults, ElectionKind, FactorChange, IsrChange,
        IsrOutcome, JoiningCatalog, JoiningTopic, Mode, MorePartitions, NewPlacement, NewTopic, Reassignment, reply,
    },
    restored::Ahead,
    store::Store,
};

const LEASE: Duration = Duration::from_secs(3);
const MINUTE: Duration = Duration::from_secs(60);

struct Node {
    core: ControlCore,
    client: Client,
    /// The watch that is wanted, and from which revision on it goes on.
    watch: Option<(u64, i64)>,
    heard: Vec<Event>,
    /// How long transactions and what the watch brings are on their way.
    delay: Duration,
    /// How long it takes to read everything.
    reading: Duration,
    travelling: VecDeque<(Instant, Work)>,
    arriving: VecDeque<(Instant, u64, Result<Vec<Change>, StoreError>)>,
}

struct Cluster {
    memory: Arc<Mutex<Memory>>,
    now: Instant,
    nodes: BTreeMap<NodeId, Node>,
    ids: Arc<Mutex<u128>>,
}

impl Cluster {
    fn new() -> Self {
        let memory = Arc::new(Mutex::new(Memory::new(7)));
        Self { memory, now: Instant::now(), nodes: BTreeMap::new(), ids: Arc::new(Mutex::new(1)) }
    }

    /// A cluster of nodes 1 to `count` that are members.
    fn of(count: NodeId) -> Self {
        let mut cluster = Self::new();
        (1..=count).for_each(|id| cluster.start(id));
        cluster.run(Duration::from_secs(1));
        (1..=count).for_each(|id| assert!(cluster.member(id).is_some()));
        cluster
    }

    fn options(&self, id: NodeId) -> Options {
        let ids = self.ids.clone();
        Options {
            node: NodeIdentity {
                id,
                directory: Uuid::from_u128(0xd000 + id as u128),
                machine: format!("machine {id}"),
                rack: None,
                endpoints: Vec::new(),
                peer: format!("node{id}:9"),
                shards: 1,
                version: "test".to_owned(),
                continues: None,
            },
            cluster: ClusterIdentity::Any(Uuid::from_u128(0xc000 + id as u128)),
            remembered: None,
            adoptions_known: None,
            topic_defaults: BTreeMap::new(),
            lease: LEASE,
            away_after: Duration::from_secs(1),
            history: History::Others,
            rebalance: Rebalance::default(),
            wanted_replicas: [("__consumer_offsets".to_owned(), 3)].into(),
            ids: Box::new(move || {
                let mut next = ids.lock().unwrap();
                *next += 1;
                Uuid::from_u128(*next << 64 | *next)
            }),
        }
    }

    fn start(&mut self, id: NodeId) {
        let options = self.options(id);
        self.start_with(id, options);
    }

    fn start_with(&mut self, id: NodeId, options: Options) {
        let core = ControlCore::new(options, self.now);
        let client = Client::new(self.memory.clone());
        self.nodes.insert(id, Node::new(core, client));
    }

    fn kill(&mut self, id: NodeId) {
        self.nodes.remove(&id);
    }

    fn member(&self, id: NodeId) -> Option<Member> {
        self.nodes[&id].core.member()
    }

    fn image(&self, id: NodeId) -> &Image {
        self.nodes[&id].core.image()
    }

    /// Lets that much time go by, in steps of 10 ms, or of 50 if it is much.
    fn run(&mut self, time: Duration) {
        let step = Duration::from_millis(if time > Duration::from_secs(1) { 50 } else { 10 });
        let end = self.now + time;
        while self.now < end {
            self.now += step;
            self.memory.lock().unwrap().advance(step);
            self.settle();
        }
    }

    /// Lets every node do what it has to do now.
    fn settle(&mut self) {
        let now = self.now;
        for node in self.nodes.values_mut() {
            node.turn(now);
        }
    }

    fn put(&mut self, id: NodeId, question: Question) {
        let asked = Asked { question, deadline: self.now + Duration::from_secs(10) };
        let now = self.now;
        self.nodes.get_mut(&id).unwrap().core.handle_asked(asked, now);
    }

    fn ask<T: Send + 'static>(&mut self, id: NodeId, question: impl FnOnce(Reply<T>) -> Question) -> T {
        let (reply, mut answer) = reply();
        self.put(id, question(reply));
        for _ in 0..1_200 {
            self.run(Duration::from_millis(10));
            if let Some(answer) = poll(&mut answer) {
                return answer.unwrap();
            }
        }
        panic!("no answer");
    }

    fn create(&mut self, name: &str, placement: NewPlacement) -> CreatedTopic {
        let topic = NewTopic { name: name.to_owned(), placement, configs: BTreeMap::new() };
        let answer = self.ask(1, |reply| Question::CreateTopics(vec![topic], DEFAULTS, Mode::Apply, reply));
        assert!(self.image(1).revision >= answer.revision);
        answer.outcome.into_iter().next().unwrap().unwrap()
    }

    fn partition(&self, by: NodeId, tp: TopicPartition) -> PartitionState {
        self.image(by).partition(tp).unwrap().value.clone()
    }

    /// Puts the leader's proposal that those nodes are in sync.
    fn alter_isr(&mut self, tp: TopicPartition, isr: &[NodeId]) -> IsrOutcome {
        let held = self.image(1).partition(tp).unwrap().clone();
        let leader = held.value.leader.unwrap();
        let isr = isr.iter().map(|id| self.image(1).nodes[id].member()).collect();
        let proposal = IsrProposal { leader, leader_epoch: held.value.leader_epoch, isr, is_flushed: false };
        let change = IsrChange { partition: tp, revision: held.revision, proposal };
        self.ask(leader.node, |reply| Question::AlterIsr(vec![change], reply)).remove(0)
    }
}

const DEFAULTS: CreationDefaults = CreationDefaults { partitions: 1, replication_factor: 1 };

fn assigned(replicas: &[NodeId]) -> NewPlacement {
    NewPlacement::Assigned(vec![(0, replicas.to_vec())])
}

fn first(topic: &CreatedTopic) -> TopicPartition {
    TopicPartition { topic: topic.id, partition: 0 }
}

fn poll<T>(answer: &mut Answer<T>) -> Option<Result<T, ControlError>> {
    match pin!(answer).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

fn leads(state: &PartitionState) -> Option<NodeId> {
    state.leader.map(|leader| leader.node)
}

fn in_sync(state: &PartitionState) -> Vec<NodeId> {
    state.isr.iter().map(|member| member.node).collect()
}

impl Node {
    fn new(core: ControlCore, client: Client) -> Self {
        let (travelling, arriving) = (VecDeque::new(), VecDeque::new());
        Self {
            core,
            client,
            watch: None,
            heard: Vec::new(),
            delay: Duration::ZERO,
            reading: Duration::ZERO,
            travelling,
            arriving,
        }
    }

    fn turn(&mut self, now: Instant) {
        self.core.handle_tick(now);
        self.work(now);
        while let Some(at) = self.travelling.iter().position(|(due, _)| *due <= now) {
            let work = self.travelling.remove(at).map(|(_, work)| work);
            work.into_iter().for_each(|work| self.execute(work, now));
            self.work(now);
        }
        self.look(now);
        while self.arriving.front().is_some_and(|(due, ..)| *due <= now) {
            if let Some((_, number, changes)) = self.arriving.pop_front() {
                self.core.handle_watched(number, changes, now);
                self.work(now);
            }
        }
    }

    /// Takes what the watch has to tell.
    fn look(&mut self, now: Instant) {
        let Some((number, from)) = self.watch else { return };
        let changes = self.changes(from);
        if changes.as_ref().is_ok_and(Vec::is_empty) {
            return;
        }
        let next = changes.as_ref().ok().and_then(|changes| changes.last()).map(Change::revision);
        self.watch = next.map(|revision| (number, revision + 1));
        self.arriving.push_back((now + self.delay, number, changes));
    }

    fn changes(&self, from: i64) -> Result<Vec<Change>, StoreError> {
        use crate::cluster::store::{Watch, Watched};
        match self.client.clone().watch(from)?.next(Duration::ZERO)? {
            Watched::Changes(changes) => Ok(changes),
            Watched::Quiet => Ok(Vec::new()),
        }
    }

    fn work(&mut self, now: Instant) {
        let mut free = Vec::new();
        while let Some(work) = self.core.next_work() {
            match &work {
                Work::Transact(ticket, _, Order::Free) if self.delay > Duration::ZERO => {
                    // some take three times as long as others
                    let delay = self.delay * (1 + u32::try_from(ticket % 3).unwrap());
                    self.travelling.push_back((now + delay, work));
                }
                Work::ReadAll if self.reading > Duration::ZERO => self.travelling.push_back((now + self.reading, work)),
                Work::Transact(..) if self.delay > Duration::ZERO => {
                    self.travelling.push_back((now + self.delay, work));
                }
                Work::Transact(_, _, Order::Free) => free.push(work),
                _ => self.execute(work, now),
            }
        }
        // those that need no order come in the worst one
        while let Some(work) = free.pop() {
            self.execute(work, now);
        }
        while let Some(event) = self.core.next_event() {
            self.heard.push(event);
        }
    }

    fn execute(&mut self, work: Work, now: Instant) {
        let done = match work {
            Work::ReadAll => Done::ReadAll(self.read_all()),
            Work::Watch(number, from) => {
                let begun = self.client.watch(from).map(drop);
                self.watch = begun.is_ok().then_some((number, from));
                Done::Watch(number, begun)
            }
            Work::Grant(ttl) => Done::Granted(self.client.grant(ttl)),
            Work::KeepAlive(lease) => Done::KeptAlive(lease, now, self.client.keep_alive(lease)),
            Work::Revoke(lease) => Done::Revoked(self.client.revoke(lease)),
            Work::Transact(ticket, transaction, _) => Done::Transacted(ticket, self.client.transact(&transaction)),
            Work::Compact(revision) => Done::Compacted(self.client.compact(revision)),
        };
        self.core.handle_done(done, now);
    }

    fn read_all(&mut self) -> Result<Snapshot, StoreError> {
        let identity = self.client.identity()?;
        let told = self.client.progress()?;
        let page = self.client.range("", None, 0, usize::MAX)?;
        let ahead = told.map(|told| Ahead::new(told, page.revision));
        Ok(Snapshot { identity, revision: page.revision, ahead, entries: page.entries })
    }
}

#[test]
fn nodes_become_members_and_one_of_them_controller() {
    let cluster = Cluster::of(3);
    let image = cluster.image(1);
    assert_eq!(image.nodes.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(image.known.len(), 3);
    assert!(image.controller.is_some() && image.cluster_id.is_some());
    for id in [2, 3] {
        assert_eq!(cluster.image(id), image);
    }
    for (id, node) in &cluster.nodes {
        let registered = node.heard.iter().find_map(|event| match event {
            Event::Registered(member, image) => Some((*member, image.nodes[id].epoch)),
            _ => None,
        });
        let (member, epoch) = registered.unwrap();
        assert_eq!(member, Member { node: *id, epoch }, "what it may act on shows it");
    }
}

#[test]
fn topics_are_created_seen_by_all_and_deleted() {
    let mut cluster = Cluster::of(3);
    let created = cluster.create("a", NewPlacement::Spread { partitions: 6, replication_factor: 3 });
    assert_eq!((created.partitions, created.replication_factor), (6, 3));
    cluster.run(Duration::from_millis(100));
    let topic = cluster.image(3).topic("a").unwrap().clone();
    assert_eq!(topic.id, created.id);
    let leaders: std::collections::BTreeSet<_> = topic.partitions.iter().filter_map(|one| leads(&one.value)).collect();
    assert_eq!(leaders.len(), 3, "leaders are spread: {topic:?}");
    let again = NewTopic { name: "a".to_owned(), placement: assigned(&[1]), configs: BTreeMap::new() };
    let answer = cluster.ask(2, |reply| Question::CreateTopics(vec![again], DEFAULTS, Mode::Apply, reply));
    assert_eq!(answer.outcome[0].as_ref().unwrap_err().code, AdminCode::TopicAlreadyExists);
    let deleted = cluster.ask(2, |reply| Question::DeleteTopics(vec![topic.id], reply));
    assert_eq!(deleted.outcome, [Ok(())]);
    cluster.run(Duration::from_millis(100));
    assert!(cluster.image(1).topic("a").is_none());
    let again = cluster.ask(2, |reply| Question::DeleteTopics(vec![topic.id], reply));
    assert_eq!(again.outcome[0].as_ref().unwrap_err().code, AdminCode::UnknownTopicId);
    let left = cluster.memory.lock().unwrap().range("partitions/", None, 0, 10).unwrap();
    assert!(left.entries.is_empty());
}

#[test]
fn a_topic_larger_than_a_transaction_is_there_at_once_or_not_at_all() {
    let mut cluster = Cluster::of(2);
    let created = cluster.create("large", NewPlacement::Spread { partitions: 350, replication_factor: 2 });
    assert_eq!(cluster.image(1).topics.get(&created.id).unwrap().partitions.len(), 350);
    for event in &cluster.nodes[&2].heard {
        if let Event::Image(image, _) = event
            && let Some(topic) = image.topic("large")
        {
            assert_eq!(topic.partitions.len(), 350);
        }
    }
    let more = MorePartitions { topic: "large".to_owned(), count: 600, assignments: None };
    let answer = cluster.ask(2, |reply| Question::CreatePartitions(vec![more], Mode::Apply, reply));
    assert_eq!(answer.outcome, [Ok(())]);
    assert_eq!(cluster.image(2).topics.get(&created.id).unwrap().partitions.len(), 600);
}

#[test]
fn what_a_dead_creator_left_is_taken_away() {
    let mut cluster = Cluster::of(2);
    let topic = NewTopic {
        name: "large".to_owned(),
        placement: NewPlacement::Spread { partitions: 500, replication_factor: 1 },
        configs: BTreeMap::new(),
    };
    let (reply, _answer) = reply();
    cluster.put(2, Question::CreateTopics(vec![topic], DEFAULTS, Mode::Apply, reply));
    // it dies before its last transaction
    let node = cluster.nodes.get_mut(&2).unwrap();
    for _ in 0..3 {
        let Some(Work::Transact(ticket, transaction, _)) = node.core.next_work() else { panic!("a transaction") };
        let outcome = node.client.transact(&transaction);
        node.core.handle_done(Done::Transacted(ticket, outcome), cluster.now);
    }
    cluster.kill(2);
    cluster.run(Duration::from_secs(10));
    assert_eq!(cluster.image(1).forming.len(), 1);
    assert!(cluster.image(1).topic("large").is_none());
    cluster.run(MINUTE);
    assert!(cluster.image(1).forming.is_empty());
    assert!(cluster.memory.lock().unwrap().range("partitions/", None, 0, 10).unwrap().entries.is_empty());
}

#[test]
fn leaders_of_a_dead_node_are_elected_once_its_lease_is_over() {
    let mut cluster = Cluster::of(3);
    let topic = cluster.create("a", assigned(&[3, 2, 1]));
    cluster.kill(3);
    cluster.run(Duration::from_secs(1));
    assert_eq!(leads(&cluster.partition(1, first(&topic))), Some(3));
    cluster.run(LEASE);
    let state = cluster.partition(1, first(&topic));
    assert_eq!((leads(&state), in_sync(&state), state.leader_epoch), (Some(2), vec![2, 1], 1));
}

#[test]
fn a_dead_controller_is_followed_by_another() {
    let mut cluster = Cluster::of(3);
    let topic = cluster.create("a", assigned(&[1, 2, 3]));
    let controller = cluster.image(1).controller.unwrap();
    let other = if controller.node == 2 { 3 } else { 2 };
    cluster.kill(controller.node);
    cluster.run(LEASE + Duration::from_secs(1));
    let next = cluster.image(other).controller.unwrap();
    assert!(next.node != controller.node && next.epoch > controller.epoch);
    assert!(!in_sync(&cluster.partition(other, first(&topic))).contains(&controller.node));
}

#[test]
fn a_node_that_refuses_connections_is_fenced_at_once_if_two_say_so() {
    let mut cluster = Cluster::of(3);
    let topic = cluster.create("a", assigned(&[1, 2, 3]));
    for victim in [3, 1] {
        let whom = cluster.member(victim).unwrap();
        cluster.kill(victim);
        let others: Vec<_> = cluster.nodes.keys().copied().collect();
        cluster.put(others[0], Question::Unreachable(whom));
        cluster.run(Duration::from_millis(100));
        let is_alive = cluster.image(2).is_alive(whom);
        if others.len() > 1 {
            assert!(is_alive, "one node alone may be cut off itself");
            cluster.put(others[1], Question::Unreachable(whom));
            cluster.run(Duration::from_millis(100));
        }
        assert!(!cluster.image(2).is_alive(whom));
        cluster.run(Duration::from_millis(300));
        assert!(!in_sync(&cluster.partition(2, first(&topic))).contains(&victim), "{victim}");
    }
    assert_eq!(leads(&cluster.partition(2, first(&topic))), Some(2));
}

#[test]
fn a_node_that_one_could_not_reach_for_a_while_is_not_fenced_by_a_later_witness() {
    let mut cluster = Cluster::of(3);
    let whom = cluster.member(3).unwrap();
    cluster.put(1, Question::Unreachable(whom));
    cluster.run(Duration::from_secs(11));
    assert!(cluster.image(2).reports.is_empty());
    cluster.put(2, Question::Unreachable(whom));
    cluster.run(Duration::from_secs(1));
    assert!(cluster.image(1).is_alive(whom));
}

#[test]
fn a_watch_that_hangs_is_replaced() {
    let mut cluster = Cluster::of(2);
    // the connection is dead, and nobody says so
    let hung = cluster.nodes.get_mut(&2).unwrap().watch.take();
    assert!(hung.is_some());
    cluster.create("a", assigned(&[1]));
    cluster.run(Duration::from_secs(5));
    assert!(cluster.image(2).topic("a").is_some());
}

#[test]
fn a_restarted_node_takes_its_key_back_without_waiting_for_the_lease() {
    let mut cluster = Cluster::of(2);
    let before = cluster.member(1).unwrap();
    cluster.kill(1);
    cluster.start(1);
    cluster.run(Duration::from_millis(700));
    let after = cluster.member(1).unwrap();
    assert!(after.epoch > before.epoch);
    assert!(cluster.nodes[&2].core.image().is_alive(after));
}

#[test]
fn a_copied_directory_on_another_machine_waits_and_is_refused() {
    let mut cluster = Cluster::of(2);
    let mut options = cluster.options(2);
    options.node.machine = "another machine".to_owned();
    options.node.id = 1;
    options.node.directory = Uuid::from_u128(0xd001);
    cluster.start_with(4, options);
    cluster.run(Duration::from_secs(5));
    assert!(cluster.member(4).is_none());
    assert!(cluster.nodes[&4].heard.iter().any(|event| matches!(event, Event::Waiting(_))));
    cluster.run(Duration::from_secs(15));
    assert!(matches!(cluster.nodes[&4].heard.last(), Some(Event::Fatal(_))));
    assert!(cluster.member(1).is_some());
}

#[test]
fn a_lost_lease_begins_another_life_that_continues_the_former() {
    let mut cluster = Cluster::of(2);
    let topic = cluster.create("a", assigned(&[2]));
    let before = cluster.member(2).unwrap();
    cluster.nodes[&2].client.set_line(Line::Cut);
    cluster.run(LEASE + Duration::from_secs(2));
    assert!(!cluster.image(1).is_alive(before));
    assert_eq!(leads(&cluster.partition(1, first(&topic))), None);
    assert!(cluster.nodes[&2].heard.iter().any(|event| matches!(event, Event::Away(..))));
    cluster.nodes[&2].client.set_line(Line::Open);
    cluster.run(Duration::from_secs(2));
    let after = cluster.member(2).unwrap();
    assert!(after.epoch > before.epoch);
    let heard = &cluster.nodes[&2].heard;
    assert!(heard.iter().any(|event| matches!(event, Event::Lost)));
    assert!(heard.iter().any(|event| matches!(event, Event::Back)));
    let state = cluster.partition(1, first(&topic));
    assert_eq!((state.leader, state.recovering), (Some(after), false), "nothing was lost");
}

#[test]
fn a_lease_that_old_etcd_renewed_in_vain_is_noticed() {
    // before 3.4.38, keeping alive answers success although the lease is revoked: only the key tells
    let mut cluster = Cluster::of(1);
    let before = cluster.member(1).unwrap();
    cluster.memory.lock().unwrap().transact(&Transaction::new().delete("nodes/1".to_owned())).unwrap();
    cluster.run(Duration::from_secs(1));
    assert!(cluster.member(1).unwrap().epoch > before.epoch);
}

#[test]
fn a_drained_node_leads_nothing_before_it_is_told_so() {
    let mut cluster = Cluster::of(3);
    let topics: Vec<_> = ["a", "b", "c"].iter().map(|name| cluster.create(name, assigned(&[2, 1, 3]))).collect();
    cluster.ask(2, Question::Drain);
    for topic in &topics {
        let state = cluster.partition(2, first(topic));
        assert_eq!((leads(&state), in_sync(&state)), (Some(1), vec![1, 3]));
    }
    let member = cluster.member(2).unwrap();
    cluster.ask(2, Question::Leave);
    cluster.run(Duration::from_millis(50));
    assert!(!cluster.image(1).is_alive(member));
    assert!(cluster.member(2).is_none());
}

#[test]
fn isr_changes_are_written_by_the_leader_and_stale_ones_are_not() {
    let mut cluster = Cluster::of(3);
    let tp = first(&cluster.create("a", assigned(&[1, 2, 3])));
    let before = cluster.image(1).partition(tp).unwrap().clone();
    let IsrOutcome::Changed(now) = cluster.alter_isr(tp, &[1, 2]) else { panic!("changed") };
    assert_eq!((in_sync(&now.value), now.partition_epoch()), (vec![1, 2], 1));
    assert_eq!(cluster.image(1).partition(tp), Some(&now));
    let proposal = IsrProposal {
        leader: before.value.leader.unwrap(),
        leader_epoch: 0,
        isr: before.value.isr.clone(),
        is_flushed: false,
    };
    let stale = IsrChange { partition: tp, revision: before.revision, proposal };
    let outcome = cluster.ask(1, |reply| Question::AlterIsr(vec![stale], reply)).remove(0);
    assert_eq!(outcome, IsrOutcome::Stale(Some(now)));
    cluster.kill(3);
    cluster.run(LEASE);
    cluster.start(3);
    cluster.run(Duration::from_secs(1));
    let IsrOutcome::Changed(now) = cluster.alter_isr(tp, &[1, 2, 3]) else { panic!("changed") };
    assert_eq!(now.value.isr[2], cluster.member(3).unwrap());
}

#[test]
fn an_isr_change_of_unknown_outcome_is_said_to_be_so_and_is_settled_by_the_next() {
    let mut cluster = Cluster::of(3);
    let tp = first(&cluster.create("a", assigned(&[1, 2, 3])));
    cluster.nodes[&1].client.set_line(Line::Deaf);
    let held = cluster.image(1).partition(tp).unwrap().clone();
    let isr = held.value.isr[..2].to_vec();
    let proposal = IsrProposal { leader: held.value.leader.unwrap(), leader_epoch: 0, isr, is_flushed: false };
    let change = IsrChange { partition: tp, revision: held.revision, proposal };
    let (reply, mut answer) = reply();
    let question = Question::AlterIsr(vec![change], reply);
    let deadline = cluster.now + Duration::from_secs(1);
    cluster.nodes.get_mut(&1).unwrap().core.handle_asked(Asked { question, deadline }, cluster.now);
    cluster.run(Duration::from_secs(2));
    assert_eq!(poll(&mut answer), Some(Ok(vec![IsrOutcome::Unknown])));
    assert_eq!(in_sync(&cluster.partition(2, tp)), [1, 2], "it was done");
    cluster.nodes[&1].client.set_line(Line::Open);
    cluster.run(Duration::from_secs(1));
    assert_eq!(in_sync(&cluster.partition(1, tp)), [1, 2]);
}

#[test]
fn preferred_leaders_are_elected_when_asked_for_and_now_and_then() {
    let mut cluster = Cluster::of(2);
    let tp = first(&cluster.create("a", assigned(&[2, 1])));
    cluster.kill(2);
    cluster.run(LEASE + Duration::from_secs(1));
    cluster.start(2);
    cluster.run(Duration::from_secs(1));
    let elect = |cluster: &mut Cluster| {
        cluster.ask(1, |reply| Question::ElectLeaders(ElectionKind::Preferred, vec![tp], reply)).outcome.remove(0)
    };
    assert_eq!(elect(&mut cluster).unwrap_err().code, AdminCode::PreferredLeaderNotAvailable);
    cluster.alter_isr(tp, &[1, 2]);
    assert_eq!(leads(&cluster.partition(1, tp)), Some(1));
    assert_eq!(elect(&mut cluster), Ok(()));
    assert_eq!(leads(&cluster.partition(1, tp)), Some(2));
    assert_eq!(elect(&mut cluster).unwrap_err().code, AdminCode::ElectionNotNeeded);
    cluster.kill(2);
    cluster.run(LEASE + Duration::from_secs(1));
    cluster.start(2);
    cluster.run(Duration::from_secs(1));
    cluster.alter_isr(tp, &[1, 2]);
    cluster.run(Duration::from_secs(301));
    assert_eq!(leads(&cluster.partition(1, tp)), Some(2));
}

#[test]
fn leaders_go_back_when_the_settings_say_so() {
    let soon = Some(Duration::from_secs(10));
    for (every, percent_max, leader) in [(soon, 0, 2), (soon, 49, 2), (soon, 50, 1), (None, 0, 1)] {
        let mut cluster = Cluster::new();
        for id in [1, 2] {
            let options = Options { rebalance: Rebalance { every, percent_max }, ..cluster.options(id) };
            cluster.start_with(id, options);
            cluster.run(Duration::from_secs(1)); // the first one is controller
        }
        let placement = NewPlacement::Assigned(vec![(0, vec![2, 1]), (1, vec![1, 2]), (2, vec![2, 1])]);
        let topic = cluster.create("a", placement);
        cluster.kill(2);
        cluster.run(LEASE + Duration::from_secs(1));
        let options = Options { rebalance: Rebalance { every, percent_max }, ..cluster.options(2) };
        cluster.start_with(2, options);
        cluster.run(Duration::from_secs(1));
        let [moved, other] = [0, 2].map(|partition| TopicPartition { topic: topic.id, partition });
        for tp in [moved, other] {
            cluster.alter_isr(tp, &[1, 2]);
        }
        let elect = |reply| Question::ElectLeaders(ElectionKind::Preferred, vec![moved], reply);
        assert_eq!(cluster.ask(1, elect).outcome, [Ok(())]);
        assert_eq!([moved, other].map(|tp| leads(&cluster.partition(1, tp))), [Some(2), Some(1)]);
        cluster.run(Duration::from_secs(12));
        assert_eq!(leads(&cluster.partition(1, other)), Some(leader), "{every:?}, {percent_max} %");
    }
}

/// A broker that loads its metadata for longer than a lease is not fenced meanwhile (KAFKA-19586).
#[test]
fn a_lease_is_kept_while_everything_is_read_for_longer_than_it_lasts() {
    let mut cluster = Cluster::of(2);
    let before = cluster.member(1);
    cluster.nodes.get_mut(&1).unwrap().reading = 3 * LEASE;
    cluster.run(MINUTE);
    let is_read = |node: &Node| node.travelling.iter().any(|(_, work)| matches!(work, Work::ReadAll));
    let mut was_read = false;
    for _ in 0..60 {
        was_read |= is_read(&cluster.nodes[&1]);
        cluster.run(Duration::from_secs(1));
    }
    assert!(was_read, "everything is read anew now and then");
    assert_eq!(cluster.member(1), before, "it is the same life");
    assert_eq!(cluster.image(2).nodes[&1].member(), before.unwrap());
}

#[test]
fn a_life_is_trusted_as_long_as_its_lease_from_when_that_was_asked_for() {
    let mut cluster = Cluster::of(1);
    cluster.run(Duration::from_secs(2));
    let until = |cluster: &Cluster| {
        let leases = cluster.nodes[&1].heard.iter().filter_map(|event| match event {
            Event::Lease(until) => Some(*until),
            _ => None,
        });
        leases.max().unwrap()
    };
    let before = until(&cluster);
    assert!(before > cluster.now && before <= cluster.now + LEASE);
    // etcd does not answer, so it elects nobody: who is awake goes on
    cluster.nodes[&1].client.set_line(Line::Cut);
    cluster.run(Duration::from_secs(5));
    let away = until(&cluster);
    assert!(away > cluster.now && away <= cluster.now + LEASE);
    // stopped for longer than its lease: it cannot know what happened meanwhile, and etcd's silence does not tell
    cluster.now += LEASE + Duration::from_secs(1);
    cluster.run(Duration::from_secs(2));
    assert_eq!(until(&cluster), away);
    cluster.nodes[&1].client.set_line(Line::Open);
    cluster.run(Duration::from_secs(2));
    assert!(until(&cluster) > cluster.now, "the lease is there still, or another life has begun");
}

#[test]
fn producer_ids_are_never_given_out_twice() {
    let mut cluster = Cluster::of(2);
    let mut seen = std::collections::BTreeSet::new();
    for id in [1, 2, 1, 2, 2] {
        let block = cluster.ask(id, Question::ProducerIds);
        assert!((block.first..block.first + i64::from(block.count)).all(|id| seen.insert(id)));
    }
}

#[test]
fn a_node_that_is_gone_can_be_unregistered() {
    let mut cluster = Cluster::of(2);
    let unregister = |cluster: &mut Cluster, id| cluster.ask(1, |reply| Question::Unregister(id, reply)).outcome;
    assert_eq!(unregister(&mut cluster, 9).unwrap_err().code, AdminCode::BrokerIdNotRegistered);
    assert_eq!(unregister(&mut cluster, 2).unwrap_err().code, AdminCode::InvalidRequest);
    cluster.kill(2);
    cluster.run(LEASE + Duration::from_secs(1));
    assert_eq!(unregister(&mut cluster, 2), Ok(()));
    assert!(!cluster.image(1).known.contains_key(&2));
}

#[test]
fn history_is_compacted_only_by_the_controller_of_an_etcd_that_is_ours() {
    let mut cluster = Cluster::new();
    for id in [1, 2] {
        let mut options = cluster.options(id);
        options.history = History::Ours;
        cluster.start_with(id, options);
    }
    cluster.run(Duration::from_secs(1));
    let before = cluster.image(1).revision;
    assert!(cluster.memory.lock().unwrap().changes(2).is_ok());
    cluster.create("a", assigned(&[1]));
    cluster.run(Duration::from_secs(601));
    assert!(cluster.memory.lock().unwrap().changes(2).is_err());
    assert!(cluster.memory.lock().unwrap().changes(before + 10).is_ok());
}

#[test]
fn questions_that_cannot_be_answered_say_why() {
    let mut cluster = Cluster::of(1);
    cluster.nodes[&1].client.set_line(Line::Cut);
    cluster.run(Duration::from_secs(2));
    let (reply, mut answer) = reply();
    cluster.put(1, Question::ProducerIds(reply));
    cluster.run(Duration::from_secs(11));
    let error = poll(&mut answer).unwrap().unwrap_err();
    assert!(matches!(&error, ControlError::TimedOut(text) if text.contains("etcd does not answer")), "{error}");
}
