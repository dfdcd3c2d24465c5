//! The threads, against memory and against a real etcd.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
};

use uuid::Uuid;

use super::*;
use crate::cluster::{
    core::{ClusterIdentity, History, NodeIdentity, Rebalance},
    etcd::tests::Server,
    image::Image,
    memory::{Client, Memory},
    model::{Member, NodeId},
    plane::{AdminCode, CreationDefaults, Mode, NewPlacement, NewTopic, Question, Reply, reply},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A control thread and what it tells.
struct Node {
    thread: ControlThread,
    events: Receiver<Event>,
    image: Image,
    /// Whether it said that its store is away, and not yet that it is back.
    is_away: bool,
}

fn options(id: NodeId) -> Options {
    Options {
        node: NodeIdentity {
            id,
            directory: Uuid::from_u128(id as u128),
            machine: "here".to_owned(),
            rack: None,
            endpoints: Vec::new(),
            peer: String::new(),
            shards: 1,
            version: "test".to_owned(),
            continues: None,
        },
        cluster: ClusterIdentity::Any(Uuid::from_u128(77)),
        remembered: None,
        adoptions_known: None,
        topic_defaults: BTreeMap::new(),
        lease: Duration::from_secs(3),
        away_after: Duration::from_millis(100),
        history: History::Others,
        rebalance: Rebalance::default(),
        wanted_replicas: BTreeMap::new(),
        ids: Box::new(Uuid::new_v4),
    }
}

impl Node {
    fn new(start: impl FnOnce(mpsc::Sender<Event>) -> ControlThread) -> Self {
        let (sender, events) = mpsc::channel();
        Self { thread: start(sender), events, image: Image::default(), is_away: false }
    }

    fn on_etcd(id: NodeId, server: &Server) -> Self {
        let etcd = EtcdOptions { timeout: Duration::from_secs(2), ..server.options() };
        Self::new(|events| start(&etcd, options(id), move |event| drop(events.send(event))).unwrap())
    }

    /// Waits for an event.
    fn until<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let event = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).expect("an event");
            self.note(&event);
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Image(image, _) | Event::Registered(_, image) => self.image = image.clone(),
            Event::Away(..) => self.is_away = true,
            Event::Back => self.is_away = false,
            _ => {}
        }
    }

    /// Takes what it told until now.
    fn drain(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.note(&event);
        }
    }

    /// Waits until it says that its store is away.
    fn until_away(&mut self) {
        if !self.is_away {
            self.until(|event| matches!(event, Event::Away(..)).then_some(()));
        }
    }

    /// Waits until it says that its store is back.
    fn until_back(&mut self) {
        if self.is_away {
            self.until(|event| matches!(event, Event::Back).then_some(()));
        }
    }

    /// Waits until the image is so.
    fn until_image(&mut self, wanted: impl Fn(&Image) -> bool) {
        if !wanted(&self.image) {
            self.until(|event| match event {
                Event::Image(image, _) | Event::Registered(_, image) => wanted(image).then_some(()),
                _ => None,
            });
        }
    }

    fn registered(&mut self) -> Member {
        self.until(|event| match event {
            Event::Registered(member, _) => Some(*member),
            _ => None,
        })
    }

    fn ask<T: Send + 'static>(&self, question: impl FnOnce(Reply<T>) -> Question) -> Result<T, ControlError> {
        let (sender, answers) = mpsc::channel();
        let reply = Reply::new(move |answer| drop(sender.send(answer)));
        self.thread.plane().put(question(reply), PATIENCE);
        answers.recv_timeout(2 * PATIENCE).unwrap()
    }

    /// Creates a topic once there are nodes enough: one that was too late with its lease is away for a moment.
    fn create(&self, name: &str, replication_factor: i16) {
        let begun = Instant::now();
        loop {
            let placement = NewPlacement::Spread { partitions: 3, replication_factor };
            let topic = NewTopic { name: name.to_owned(), placement, configs: BTreeMap::new() };
            let defaults = CreationDefaults { partitions: 1, replication_factor: 1 };
            let created = self.ask(|reply| Question::CreateTopics(vec![topic], defaults, Mode::Apply, reply));
            match &created.unwrap().outcome[0] {
                Ok(_) => return,
                Err(error) if error.code == AdminCode::InvalidReplicationFactor && begun.elapsed() < PATIENCE => {}
                Err(error) => panic!("{name}: {error:?}"),
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_node_alone_on_memory() {
    let memory = Arc::new(Mutex::new(Memory::new(1)));
    let ways = Ways::of(&Client::new(memory));
    let mut node = Node::new(|events| start_with(ways, options(1), move |event| drop(events.send(event))).unwrap());
    node.registered();
    node.create("a", 1);
    node.until_image(|image| image.topic("a").is_some());
    let plane = node.thread.plane();
    node.thread.stop();
    let (reply, _answer) = reply();
    plane.put(Question::ProducerIds(reply), PATIENCE);
}

#[test]
fn three_nodes_on_a_real_etcd() {
    let Some(mut server) = Server::start(&[]) else { return };
    let mut nodes: Vec<_> = (1..=3).map(|id| Node::on_etcd(id, &server)).collect();
    for (id, node) in (1..).zip(&mut nodes) {
        assert_eq!(node.registered().node, id);
    }
    nodes[0].until_image(|image| image.nodes.len() == 3 && image.controller.is_some());
    nodes[0].create("a", 3);
    for node in &mut nodes {
        node.until_image(|image| image.topic("a").is_some_and(|topic| topic.partitions.len() == 3));
    }
    // one dies; its lease ends, and another leads
    let dead = nodes.pop().unwrap();
    drop(dead);
    nodes[1].until_image(|image| !image.nodes.contains_key(&3));
    nodes[1].until_image(|image| {
        image.topic("a").unwrap().partitions.iter().all(|one| {
            let isr: Vec<_> = one.value.isr.iter().map(|member| member.node).collect();
            one.value.leader.is_some_and(|leader| leader.node != 3) && !isr.contains(&3)
        })
    });
    // etcd goes away and comes back: the nodes say so, and are members again
    // and may have before, where the machine is busy
    nodes.iter_mut().for_each(Node::drain);
    server.stop();
    nodes.iter_mut().for_each(Node::until_away);
    server.restart();
    for node in &mut nodes {
        node.until_back();
        node.until_image(|image| image.nodes.len() == 2);
    }
    nodes[0].create("b", 2);
    nodes[1].until_image(|image| image.topic("b").is_some());
    assert_eq!(nodes[1].ask(Question::Drain), Ok(()));
    assert_eq!(nodes[1].ask(Question::Leave), Ok(()));
    nodes[0].until_image(|image| !image.nodes.contains_key(&2));
}
