//! Conversations with consumer groups, and members that come, go, and are slow.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, GroupId, TopicName,
        consumer_group_heartbeat_request::TopicPartitions,
    },
    protocol::StrBytes,
};
use proptest::prelude::*;
use uuid::Uuid;

use crate::coordinator::group::{
    assignment::Assignment,
    caller::Caller,
    coordinator::Coordinator,
    record::Record,
    script::{FakeTopics, run_file},
    settings::Settings,
};
use crate::coordinator::runtime::{Inbox, Machine, Reply, Verdict};

#[test]
fn members_share_partitions_and_hand_them_over() {
    run_file("consumer_basic.txt");
}

#[test]
fn a_group_that_ran_empty_assigns_at_once() {
    run_file("consumer_empty.txt");
}

#[test]
fn refusals_have_kafkas_codes_and_reasons() {
    run_file("consumer_refusals.txt");
}

#[test]
fn static_members_keep_their_partitions() {
    run_file("consumer_static.txt");
}

#[test]
fn regular_expressions_follow_the_topics() {
    run_file("consumer_regex.txt");
}

#[test]
fn groups_change_protocol_while_members_are_in_them() {
    run_file("consumer_classic.txt");
}

#[derive(Debug, Clone)]
enum Step {
    /// A heartbeat, with all partitions given back that must be.
    Beat,
    /// A heartbeat that does not say what the member owns.
    Silent,
    /// Another subscription.
    Subscribe(u8),
    Leave,
    /// Forgets everything without a word.
    Crash,
    Advance(i64),
    Grow,
    /// All writes so far are durable, or none; then all state is rebuilt.
    Persist {
        fail: bool,
    },
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        12 => Just(Step::Beat),
        2 => Just(Step::Silent),
        3 => (1u8..4).prop_map(Step::Subscribe),
        1 => Just(Step::Leave),
        1 => Just(Step::Crash),
        2 => (0i64..30_000).prop_map(Step::Advance),
        1 => Just(Step::Grow),
        6 => proptest::bool::weighted(0.1).prop_map(|fail| Step::Persist { fail }),
    ];
    (0..CLIENTS, step)
}

const CLIENTS: usize = 4;

#[derive(Debug, Default, Clone)]
struct Client {
    /// Counts the member ids that it made.
    lives: usize,
    epoch: i32,
    /// Bit 0: topic a, bit 1: topic b.
    topics: u8,
    owned: Assignment,
    /// When its partitions are no longer its own because it was not heard.
    expires_ms: i64,
}

struct World {
    coordinator: Coordinator,
    settings: Rc<Settings>,
    topics: FakeTopics,
    clients: Vec<Client>,
    now_ms: i64,
    log: Vec<Record>,
    writes: Vec<crate::coordinator::group::effects::Write>,
    /// Client, its life, when it asked, and what it was answered.
    answers: Inbox<(usize, usize, i64, ConsumerGroupHeartbeatResponse)>,
    asked: u64,
    answered: u64,
}

const SESSION_MS: i64 = 45_000;

impl World {
    fn new() -> Self {
        let settings = Rc::new(Settings { consumer_assignment_interval_ms: 0, ..Settings::default() });
        let mut world = Self {
            coordinator: Coordinator::new(Rc::clone(&settings)),
            settings,
            topics: FakeTopics::default(),
            clients: vec![Client { topics: 1, lives: 1, ..Client::default() }; CLIENTS],
            now_ms: 1,
            log: Vec::new(),
            writes: Vec::new(),
            answers: Inbox::new(),
            asked: 0,
            answered: 0,
        };
        world.topics.set("a", 3);
        world.topics.set("b", 2);
        world.coordinator.see_topics(Rc::new(world.topics.clone()));
        world
    }

    fn beat(&mut self, at: usize, epoch: i32, says: bool) {
        let client = &self.clients[at];
        let names = [("a", 1), ("b", 2)].into_iter().filter(|(_, bit)| client.topics & bit != 0);
        let names = names.map(|(name, _)| TopicName(StrBytes::from_static_str(name))).collect();
        let owned = client.owned.iter().map(|(topic, partitions)| {
            TopicPartitions::default().with_topic_id(*topic).with_partitions(partitions.iter().copied().collect())
        });
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(GroupId(StrBytes::from_static_str("g")))
            .with_member_id(StrBytes::from_string(format!("m{at}-{}", client.lives)))
            .with_member_epoch(epoch)
            // longer than a session, which the client knows of
            .with_rebalance_timeout_ms(600_000)
            .with_subscribed_topic_names(Some(names))
            .with_topic_partitions((says && epoch >= 0).then(|| owned.collect()));
        self.asked += 1;
        let (lives, now_ms) = (client.lives, self.now_ms);
        let note = move |answer: Result<_, _>| Some((at, lives, now_ms, answer.expect("nobody is forgotten")));
        let ticket = self.answers.ticket(note);
        let caller = Caller { client_host: "/h".to_owned(), version: 1, ..Caller::default() };
        self.coordinator.handle_consumer_heartbeat(self.now_ms, &caller, &request, ticket);
    }

    fn run(&mut self, at: usize, step: &Step) {
        match step {
            Step::Beat => {
                let epoch = self.clients[at].epoch;
                if epoch == 0 {
                    self.clients[at].owned.clear();
                }
                self.beat(at, epoch, true);
            }
            Step::Silent if self.clients[at].epoch > 0 => self.beat(at, self.clients[at].epoch, false),
            Step::Silent => {}
            Step::Subscribe(topics) => self.clients[at].topics = *topics,
            Step::Leave => {
                self.clients[at].owned.clear();
                self.beat(at, -1, false);
                self.crash(at);
            }
            Step::Crash => self.crash(at),
            Step::Advance(by) => {
                self.now_ms += by;
                self.coordinator.handle_timeouts(self.now_ms);
                // a client that is not heard gives up by itself
                for client in &mut self.clients {
                    if self.now_ms >= client.expires_ms {
                        client.owned.clear();
                    }
                }
            }
            Step::Grow => {
                let (_, partitions) = self.topics.topics["a"];
                self.topics.set("a", (partitions + 1).min(8));
                self.coordinator.see_topics(Rc::new(self.topics.clone()));
            }
            Step::Persist { fail } => self.persist(*fail),
        }
        self.settle();
    }

    fn crash(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let topics = client.topics;
        *client = Client { lives: client.lives + 1, topics, ..Client::default() };
    }

    fn persist(&mut self, fail: bool) {
        let mut rebuild = false;
        for write in std::mem::take(&mut self.writes) {
            let result = if fail { Err(ResponseError::NotCoordinator) } else { Ok(0) };
            rebuild |= self.coordinator.on_persisted(self.now_ms, write.id, result) == Verdict::Rebuild;
            if !fail {
                self.log.extend(write.records);
            }
        }
        self.settle();
        if rebuild {
            self.coordinator.close(self.now_ms, ResponseError::NotCoordinator);
            self.settle();
            self.writes.clear();
            self.reload();
        }
    }

    /// The state that was rebuilt from the log must be the one that is there.
    fn reload(&mut self) {
        self.coordinator = Coordinator::new(Rc::clone(&self.settings));
        self.coordinator.see_topics(Rc::new(self.topics.clone()));
        (0..).zip(&self.log).for_each(|(offset, record)| self.coordinator.load(offset, None, record.clone()));
        self.coordinator.on_loaded(self.now_ms);
    }

    fn settle(&mut self) {
        self.coordinator.check();
        self.writes.extend(self.coordinator.take_writes());
        self.coordinator.take_replies().into_iter().for_each(Reply::send);
        for (client, life, sent_ms, reply) in self.answers.take() {
            self.answered += 1;
            if self.clients[client].lives == life {
                self.heard(client, sent_ms, &reply);
            }
        }
        self.check_owners();
    }

    fn heard(&mut self, at: usize, sent_ms: i64, reply: &ConsumerGroupHeartbeatResponse) {
        let client = &mut self.clients[at];
        match ResponseError::try_from_code(reply.error_code) {
            None if reply.member_epoch < client.epoch => {}
            // the answer took longer than a session: the client has long given up
            None if self.now_ms >= sent_ms + SESSION_MS => {}
            None => {
                client.epoch = reply.member_epoch;
                client.expires_ms = sent_ms + SESSION_MS;
                if let Some(assignment) = &reply.assignment {
                    let topics = assignment.topic_partitions.iter();
                    let owned = topics.map(|topic| (topic.topic_id, topic.partitions.iter().copied().collect()));
                    client.owned = owned
                        .filter(|(_, partitions): &(Uuid, _)| !std::collections::BTreeSet::is_empty(partitions))
                        .collect();
                }
            }
            Some(
                ResponseError::FencedMemberEpoch | ResponseError::UnknownMemberId | ResponseError::GroupIdNotFound,
            ) => {
                client.epoch = 0;
                client.owned.clear();
            }
            Some(ResponseError::NotCoordinator) => {}
            Some(error) => panic!("{error:?} {:?}", reply.error_message),
        }
    }

    /// No two living members believe that they own a partition.
    fn check_owners(&self) {
        let mut owners = BTreeMap::new();
        for (at, client) in self.clients.iter().enumerate() {
            for (topic, partitions) in &client.owned {
                for partition in partitions {
                    let other = owners.insert((topic, partition), at);
                    assert_eq!(other, None, "{topic}/{partition} belongs to {at} as well");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn partitions_have_one_owner_and_the_group_settles(steps in proptest::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for (client, step) in &steps {
            world.run(*client, step);
        }
        // everybody goes on sending heartbeats: the group comes to rest with everything assigned
        for _ in 0..30 {
            for client in 0..CLIENTS {
                world.run(client, &Step::Beat);
            }
            world.run(0, &Step::Persist { fail: false });
            world.run(0, &Step::Advance(5_000));
        }
        prop_assert_eq!(world.asked, world.answered);
        let described = world.coordinator.describe_consumer("g");
        prop_assert_eq!(described.group_state.as_str(), "Stable");
        let owned: usize = world.clients.iter().flat_map(|client| client.owned.values()).map(|owned| owned.len()).sum();
        let subscribed = world.clients.iter().fold(0, |all, client| all | client.topics);
        let topics = [("a", 1), ("b", 2)].into_iter().filter(|(_, bit)| subscribed & bit != 0);
        let expected: i32 = topics.map(|(name, _)| world.topics.topics[name].1).sum();
        prop_assert_eq!(owned, expected.unsigned_abs() as usize);
        // what the log says is what is there
        world.reload();
        prop_assert_eq!(world.coordinator.describe_consumer("g"), described);
    }
}
