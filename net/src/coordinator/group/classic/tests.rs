//! Conversations with classic groups, and members that do whatever they like.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
        SyncGroupResponse, join_group_request::JoinGroupRequestProtocol, leave_group_request::MemberIdentity,
        sync_group_request::SyncGroupRequestAssignment,
    },
    protocol::StrBytes,
};
use proptest::prelude::*;

use crate::coordinator::group::{caller::Caller, coordinator::Coordinator, script::run_file, settings::Settings};
use crate::coordinator::runtime::{Inbox, Machine, Reply, Ticket, Verdict, WriteId};

#[test]
fn first_members_wait_for_each_other() {
    run_file("classic_join.txt");
}

#[test]
fn rebalances_go_on_without_the_slow_and_the_dead() {
    run_file("classic_rebalance.txt");
}

#[test]
fn static_members_keep_their_place() {
    run_file("classic_static.txt");
}

#[test]
fn refusals_have_kafkas_codes() {
    run_file("classic_refusals.txt");
}

#[test]
fn replies_wait_for_their_records() {
    run_file("classic_failures.txt");
}

#[test]
fn offsets_are_kept_fetched_deleted_and_expired() {
    run_file("offsets.txt");
}

#[test]
fn offsets_of_transactions_count_when_these_are_committed() {
    run_file("transactions.txt");
}

/// What a client does next. Which client it is comes with it.
#[derive(Debug, Clone)]
enum Step {
    Join { metadata: u8 },
    Sync,
    Heartbeat,
    Leave,
    Forget,
    Advance(i64),
    Persist { fail: bool },
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        4 => (0u8..2).prop_map(|metadata| Step::Join { metadata }),
        4 => Just(Step::Sync),
        2 => Just(Step::Heartbeat),
        1 => Just(Step::Leave),
        1 => Just(Step::Forget),
        2 => (0i64..4_000).prop_map(Step::Advance),
        4 => proptest::bool::weighted(0.2).prop_map(|fail| Step::Persist { fail }),
    ];
    (0..CLIENTS, step)
}

const CLIENTS: usize = 5;

#[derive(Debug, Default, Clone)]
struct Client {
    member: String,
    generation: i32,
    /// Set for the leader: whom to assign to.
    members: Vec<String>,
}

/// What a client hears, and which one it is.
enum Heard {
    Join(usize, JoinGroupResponse),
    /// Of the generation in which it asked.
    Sync(usize, i32, SyncGroupResponse),
    Other,
}

/// A coordinator and its clients; keeps what every generation was told.
struct World {
    coordinator: Coordinator,
    clients: Vec<Client>,
    now_ms: i64,
    asked: u64,
    answers: Inbox<Heard>,
    answered: u64,
    writes: Vec<WriteId>,
    /// Leader and protocol of each generation.
    generations: BTreeMap<i32, (String, String)>,
}

/// A member id, without what changes when a static member comes back.
fn person(member: &str) -> &str {
    let end = member.find("static-").map_or(member.len(), |at| at + "static".len());
    &member[..end]
}

fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

impl World {
    fn new() -> Self {
        let settings = Settings { initial_rebalance_delay_ms: 100, ..Settings::default() };
        Self {
            coordinator: Coordinator::new(Rc::new(settings)),
            clients: vec![Client::default(); CLIENTS],
            now_ms: 0,
            asked: 0,
            answers: Inbox::new(),
            answered: 0,
            writes: Vec::new(),
            generations: BTreeMap::new(),
        }
    }

    fn ticket<R: 'static>(&mut self, heard: impl Fn(R) -> Heard + 'static) -> Ticket<R> {
        self.asked += 1;
        self.answers.ticket(move |answer| Some(heard(answer.expect("nobody is forgotten"))))
    }

    fn run(&mut self, at: usize, step: &Step) {
        let client = self.clients[at].clone();
        let group = GroupId(text("g"));
        // the last client is static
        let instance = (at == CLIENTS - 1).then(|| text("static"));
        match step {
            Step::Join { metadata } => {
                let fresh_id = format!("{}", self.asked);
                let version = if at == 0 { 3 } else { 9 };
                let caller = Caller { client_id: format!("c{at}"), version, fresh_id, ..Caller::default() };
                let protocol = |name: &str| {
                    let metadata = bytes::Bytes::from(vec![*metadata]);
                    JoinGroupRequestProtocol::default().with_name(text(name)).with_metadata(metadata)
                };
                let mut protocols = vec![protocol("range"), protocol("robin")];
                protocols.rotate_left(at % 2);
                let request = JoinGroupRequest::default()
                    .with_group_id(group)
                    .with_member_id(text(client.member))
                    .with_group_instance_id(instance)
                    .with_protocol_type(text("t"))
                    .with_session_timeout_ms(6_000)
                    .with_rebalance_timeout_ms(9_000)
                    .with_protocols(protocols);
                let ticket = self.ticket(move |reply| Heard::Join(at, reply));
                self.coordinator.handle_join(self.now_ms, &caller, &request, ticket);
            }
            Step::Sync => {
                let assign = |member: &String| {
                    let assignment = bytes::Bytes::from(format!("{}:{member}", client.generation));
                    SyncGroupRequestAssignment::default().with_member_id(text(member)).with_assignment(assignment)
                };
                let request = SyncGroupRequest::default()
                    .with_group_id(group)
                    .with_member_id(text(&client.member))
                    .with_group_instance_id(instance)
                    .with_generation_id(client.generation)
                    .with_assignments(client.members.iter().map(assign).collect());
                let generation = client.generation;
                let ticket = self.ticket(move |reply| Heard::Sync(at, generation, reply));
                self.coordinator.handle_sync(self.now_ms, &request, ticket);
            }
            Step::Heartbeat => {
                let request = HeartbeatRequest::default()
                    .with_group_id(group)
                    .with_member_id(text(client.member))
                    .with_generation_id(client.generation);
                let ticket = self.ticket(|_| Heard::Other);
                self.coordinator.handle_heartbeat(self.now_ms, &request, ticket);
            }
            Step::Leave => {
                let member = MemberIdentity::default().with_member_id(text(client.member));
                let request = LeaveGroupRequest::default().with_group_id(group).with_members(vec![member]);
                let ticket = self.ticket(|_| Heard::Other);
                self.coordinator.handle_leave(self.now_ms, &request, ticket);
            }
            Step::Forget => self.clients[at] = Client::default(),
            Step::Advance(by) => {
                self.now_ms += by;
                self.coordinator.handle_timeouts(self.now_ms);
            }
            Step::Persist { fail } => self.persist(*fail),
        }
        self.settle();
    }

    fn persist(&mut self, fail: bool) {
        for id in std::mem::take(&mut self.writes) {
            let result = if fail { Err(ResponseError::NotCoordinator) } else { Ok(0) };
            let verdict = self.coordinator.on_persisted(self.now_ms, id, result);
            assert_eq!(verdict, Verdict::Stands, "classic groups do not run ahead");
        }
    }

    fn settle(&mut self) {
        self.coordinator.check();
        self.writes.extend(self.coordinator.take_writes().iter().map(|write| write.id));
        self.coordinator.take_replies().into_iter().for_each(Reply::send);
        for heard in self.answers.take() {
            self.answered += 1;
            match heard {
                Heard::Join(client, reply) => self.joined(client, &reply),
                Heard::Sync(client, generation, reply) if reply.error_code == 0 => {
                    let member = &self.clients[client].member;
                    if reply.assignment.is_empty() || self.clients[client].generation != generation {
                        continue;
                    }
                    // a static member takes over what was assigned to it under an older member id
                    let expected = format!("{generation}:{}", person(member));
                    let assigned = String::from_utf8(reply.assignment.to_vec()).unwrap();
                    assert_eq!(person(&assigned), expected, "an assignment is of its own generation");
                }
                Heard::Sync(..) | Heard::Other => {}
            }
        }
    }

    fn joined(&mut self, at: usize, reply: &JoinGroupResponse) {
        let client = &mut self.clients[at];
        match ResponseError::try_from_code(reply.error_code) {
            Some(ResponseError::UnknownMemberId | ResponseError::FencedInstanceId) => *client = Client::default(),
            Some(ResponseError::MemberIdRequired) => client.member = reply.member_id.to_string(),
            Some(_) => {}
            None => {
                client.member = reply.member_id.to_string();
                client.generation = reply.generation_id;
                client.members = reply.members.iter().map(|member| member.member_id.to_string()).collect();
                assert!(client.members.is_empty() || client.members.contains(&client.member));
                // a static leader may get a new member id within a generation
                let leader = person(&reply.leader);
                let protocol = reply.protocol_name.as_deref().unwrap_or_default();
                let told = (leader.to_owned(), protocol.to_owned());
                let first = self.generations.entry(reply.generation_id).or_insert_with(|| told.clone());
                assert_eq!(*first, told, "all members of a generation are told the same");
            }
        }
    }
}

proptest! {
    #[test]
    fn generations_never_mix_and_everybody_is_answered(steps in proptest::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        for (client, step) in &steps {
            world.run(*client, step);
        }
        // with nobody sending anything any more, sessions end and the group becomes empty
        for _ in 0..100 {
            world.run(0, &Step::Persist { fail: false });
            world.run(0, &Step::Advance(10_000));
        }
        prop_assert_eq!(world.asked, world.answered);
        prop_assert_eq!(world.coordinator.next_deadline_ms(), None);
    }
}

#[test]
fn texts_that_no_record_can_hold_are_refused() {
    let mut coordinator = Coordinator::new(Rc::new(Settings::default()));
    let long = "x".repeat(40_000);
    let request = JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_protocol_type(text("t"))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(i32::MIN)
        .with_protocols(vec![JoinGroupRequestProtocol::default().with_name(text("range"))]);
    let caller = Caller { version: 3, fresh_id: "1".to_owned(), ..Caller::default() };
    let by_group = request.clone().with_group_id(GroupId(text(&*long)));
    let by_instance = request.clone().with_group_instance_id(Some(text(&*long)));
    let by_client = Caller { client_id: long, ..caller.clone() };
    let answers = Inbox::new();
    let ticket =
        |number| answers.ticket(move |answer: Result<JoinGroupResponse, _>| Some((number, answer.ok()?.error_code)));
    coordinator.handle_join(0, &caller, &by_group, ticket(1));
    coordinator.handle_join(0, &caller, &by_instance, ticket(2));
    coordinator.handle_join(0, &by_client, &request, ticket(3));
    // a rebalance timeout without sense ends the rebalance at once
    coordinator.handle_join(0, &caller, &request, ticket(4));
    coordinator.handle_timeouts(3_000);
    coordinator.take_replies().into_iter().for_each(Reply::send);
    let invalid = ResponseError::InvalidRequest.code();
    let expected = [(1, ResponseError::InvalidGroupId.code()), (2, invalid), (3, invalid), (4, 0)];
    assert_eq!(answers.take(), expected);
    for write in coordinator.take_writes() {
        write.records.iter().for_each(|record| assert!(!record.key().is_empty()));
    }
}
