//! Conversations with share groups, always checked against a coordinator that was loaded from their records.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterShareGroupOffsetsRequest, DeleteShareGroupOffsetsRequest, GroupId, ShareGroupHeartbeatRequest,
        ShareGroupHeartbeatResponse, TopicName,
        alter_share_group_offsets_request::{
            AlterShareGroupOffsetsRequestPartition, AlterShareGroupOffsetsRequestTopic,
        },
        delete_share_group_offsets_request::DeleteShareGroupOffsetsRequestTopic,
    },
    protocol::StrBytes,
};

use super::StateWork;
use crate::coordinator::group::{
    caller::Caller, coordinator::Coordinator, error::Refusal, record::Record, script::FakeTopics, settings::Settings,
};
use crate::coordinator::runtime::{Inbox, Machine, Reply, Ticket, Verdict};

struct World {
    coordinator: Coordinator,
    settings: Rc<Settings>,
    topics: FakeTopics,
    now_ms: i64,
    log: Vec<Record>,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group_id() -> GroupId {
    GroupId(text("g"))
}

impl World {
    fn new() -> World {
        let settings = Rc::new(Settings::default());
        let mut world = World {
            coordinator: Coordinator::new(Rc::clone(&settings)),
            settings,
            topics: FakeTopics::default(),
            now_ms: 1,
            log: Vec::new(),
        };
        world.topics.set("a", 4);
        world.topics.set("b", 1);
        world.coordinator.see_topics(Rc::new(world.topics.clone()));
        world
    }

    /// Asks the coordinator, makes its records durable, and compares it with one that is loaded from them.
    fn ask<T: 'static>(
        &mut self,
        ask: impl FnOnce(&mut Coordinator, i64, Ticket<Result<T, Refusal>>),
    ) -> Result<T, Refusal> {
        let answers = Inbox::new();
        ask(&mut self.coordinator, self.now_ms, answers.ticket(Some));
        for write in self.coordinator.take_writes() {
            self.log.extend(write.records);
            assert_eq!(self.coordinator.on_persisted(self.now_ms, write.id, Ok(0)), Verdict::Stands);
        }
        let mut loaded = Coordinator::new(Rc::clone(&self.settings));
        for record in &self.log {
            let decoded = Record::decode(&record.key(), record.value().as_deref()).unwrap().unwrap();
            loaded.load(0, None, decoded);
        }
        loaded.see_topics(Rc::new(self.topics.clone()));
        loaded.on_loaded(self.now_ms);
        assert_eq!(loaded.describe_share("g"), self.coordinator.describe_share("g"));
        assert_eq!(loaded.share_partitions("g"), self.coordinator.share_partitions("g"));
        self.coordinator.take_replies().into_iter().for_each(Reply::send);
        answers.take().pop().expect("it was answered").expect("it was not lost")
    }

    fn beat(
        &mut self,
        member: &str,
        epoch: i32,
        topics: Option<&[&str]>,
    ) -> Result<(ShareGroupHeartbeatResponse, Option<StateWork>), Refusal> {
        let names = topics.map(|topics| topics.iter().map(|name| TopicName(text(name))).collect());
        let request = ShareGroupHeartbeatRequest::default()
            .with_group_id(group_id())
            .with_member_id(text(member))
            .with_member_epoch(epoch)
            .with_subscribed_topic_names(names);
        let group = self.settings.share.group(&BTreeMap::new(), |_| None);
        self.ask(|coordinator, now_ms, ticket| {
            coordinator.handle_share_heartbeat(now_ms, &Caller::default(), &group, &request, ticket);
        })
    }

    fn made(&mut self, work: &StateWork, is_made: bool) {
        let done = self.ask(|coordinator, _, ticket| {
            coordinator.handle_share_state_made("g", &work.partitions, is_made, ticket);
        });
        assert_eq!(done, Ok(()));
    }

    /// Number of partitions that a response assigns; `None`: it says nothing.
    fn assigned(response: &ShareGroupHeartbeatResponse) -> Option<usize> {
        let assignment = response.assignment.as_ref()?;
        Some(assignment.topic_partitions.iter().map(|topic| topic.partitions.len()).sum())
    }

    /// Two members that read topic `a` with state.
    fn with_two_members() -> World {
        let mut world = World::new();
        let (_, work) = world.beat("m1", 0, Some(&["a"])).unwrap();
        world.made(&work.unwrap(), true);
        world.now_ms += 1_000;
        world.beat("m2", 0, Some(&["a"])).unwrap();
        world.now_ms += 1_000;
        world.beat("m1", 1, None).unwrap();
        world
    }
}

#[test]
fn partitions_are_assigned_once_they_have_state() {
    let mut world = World::new();
    let (response, work) = world.beat("m1", 0, Some(&["a"])).unwrap();
    assert_eq!((response.member_epoch, World::assigned(&response)), (1, Some(0)));
    let work = work.unwrap();
    assert_eq!((work.state_epoch, work.partitions.len()), (1, 4));
    let (_, again) = world.beat("m1", 1, None).unwrap();
    assert_eq!(again, None, "it is under way");
    world.made(&work, true);
    let (early, _) = world.beat("m1", 1, None).unwrap();
    assert_eq!(World::assigned(&early), None, "too soon after the last assignment");
    world.now_ms += 1_000;
    let (response, work) = world.beat("m1", 1, None).unwrap();
    assert_eq!((response.member_epoch, World::assigned(&response), work), (2, Some(4), None));
}

#[test]
fn state_that_could_not_be_made_is_asked_for_again() {
    let mut world = World::new();
    let (_, work) = world.beat("m1", 0, Some(&["a"])).unwrap();
    world.made(&work.unwrap(), false);
    let (_, work) = world.beat("m1", 1, None).unwrap();
    assert_eq!(work.unwrap().partitions.len(), 4);
    world.now_ms += 30_000;
    let (_, work) = world.beat("m1", 1, None).unwrap();
    assert_eq!(work.unwrap().partitions.len(), 4, "nobody reported for too long");
}

#[test]
fn members_share_and_leave() {
    let mut world = World::with_two_members();
    let (response, _) = world.beat("m1", 0, Some(&["a"])).unwrap();
    assert_eq!(World::assigned(&response), Some(2));
    let described = world.coordinator.describe_share("g");
    assert_eq!((described.group_state.as_str(), described.members.len()), ("Stable", 2));
    let (left, _) = world.beat("m2", -1, None).unwrap();
    assert_eq!(left.member_epoch, -1);
    world.now_ms += 1_000;
    let (response, _) = world.beat("m1", response.member_epoch, None).unwrap();
    assert_eq!(World::assigned(&response), Some(4));
    world.beat("m1", -1, None).unwrap();
    assert_eq!(world.coordinator.describe_share("g").group_state.as_str(), "Empty");
}

#[test]
fn a_group_that_ran_empty_assigns_at_once() {
    let mut world = World::new();
    let (_, work) = world.beat("m1", 0, Some(&["a"])).unwrap();
    world.made(&work.unwrap(), true);
    world.now_ms += 1_000;
    world.beat("m1", 1, None).unwrap();
    world.beat("m1", -1, None).unwrap();
    let (response, _) = world.beat("m2", 0, Some(&["a"])).unwrap();
    assert_eq!(World::assigned(&response), Some(4));
}

#[test]
fn members_that_are_not_heard_of_are_thrown_out() {
    let mut world = World::with_two_members();
    world.now_ms += 44_500;
    world.beat("m1", 0, Some(&["a"])).unwrap();
    world.now_ms += 500;
    let now_ms = world.now_ms;
    world.coordinator.handle_timeouts(now_ms);
    let (response, _) = world.beat("m1", 0, Some(&["a"])).unwrap();
    assert_eq!(World::assigned(&response), Some(4));
    assert_eq!(world.beat("m2", 3, None).unwrap_err().error, ResponseError::UnknownMemberId);
}

#[test]
fn new_partitions_and_deleted_topics_are_followed() {
    let mut world = World::with_two_members();
    world.topics.set("a", 6);
    world.coordinator.see_topics(Rc::new(world.topics.clone()));
    world.now_ms += 1_000;
    let (response, work) = world.beat("m1", 0, Some(&["a"])).unwrap();
    let work = work.unwrap();
    assert_eq!(work.partitions.iter().map(|(_, index, _)| *index).collect::<Vec<_>>(), [4, 5]);
    world.made(&work, true);
    world.now_ms += 1_000;
    let (response, _) = world.beat("m1", response.member_epoch, None).unwrap();
    assert_eq!(World::assigned(&response), Some(3));
}

#[test]
fn refusals_are_those_of_kafka() {
    let mut world = World::new();
    let code = |result: Result<_, Refusal>| result.map(|_: (_, Option<StateWork>)| ()).unwrap_err().error;
    assert_eq!(code(world.beat("", 0, Some(&["a"]))), ResponseError::InvalidRequest);
    assert_eq!(code(world.beat("m", 0, None)), ResponseError::InvalidRequest);
    assert_eq!(code(world.beat("m", -2, None)), ResponseError::InvalidRequest);
    assert_eq!(code(world.beat("m", 1, None)), ResponseError::GroupIdNotFound);
    assert_eq!(code(world.beat("m", -1, None)), ResponseError::GroupIdNotFound);
    world.beat("m", 0, Some(&["a"])).unwrap();
    assert_eq!(code(world.beat("m", 7, None)), ResponseError::FencedMemberEpoch);
    assert_eq!(code(world.beat("other", 1, None)), ResponseError::UnknownMemberId);
    for member in 1..200 {
        world.beat(&member.to_string(), 0, Some(&["a"])).unwrap();
    }
    assert_eq!(code(world.beat("one too many", 0, Some(&["a"]))), ResponseError::GroupMaxSizeReached);
}

fn alter(topic: &str, index: i32, start_offset: i64) -> AlterShareGroupOffsetsRequest {
    let partition =
        AlterShareGroupOffsetsRequestPartition::default().with_partition_index(index).with_start_offset(start_offset);
    let topic = AlterShareGroupOffsetsRequestTopic::default()
        .with_topic_name(TopicName(text(topic)))
        .with_partitions(vec![partition]);
    AlterShareGroupOffsetsRequest::default().with_group_id(group_id()).with_topics(vec![topic])
}

#[test]
fn offsets_of_groups_without_members_are_set_and_deleted() {
    let mut world = World::new();
    let request = alter("a", 2, 77);
    let reply = world.ask(|coordinator, now_ms, ticket| coordinator.handle_share_alter(now_ms, &request, ticket));
    let altered = reply.unwrap();
    assert_eq!(altered.work.partitions.iter().map(|(_, index, at)| (*index, *at)).collect::<Vec<_>>(), [(2, 77)]);
    assert_eq!(altered.response.responses[0].partitions[0].error_code, 0);
    world.made(&altered.work, true);
    let request = alter("a", 4, 0);
    let reply = world.ask(|coordinator, now_ms, ticket| coordinator.handle_share_alter(now_ms, &request, ticket));
    let refused = reply.unwrap();
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(refused.response.responses[0].partitions[0].error_code, unknown);

    let topic = |name| DeleteShareGroupOffsetsRequestTopic::default().with_topic_name(TopicName(text(name)));
    let request = DeleteShareGroupOffsetsRequest::default().with_group_id(group_id()).with_topics(vec![
        topic("a"),
        topic("b"),
        topic("none"),
    ]);
    let reply = world.ask(|coordinator, _, ticket| coordinator.handle_share_delete_offsets(&request, ticket));
    let deleted = reply.unwrap();
    assert_eq!((deleted.topics.len(), deleted.work.partitions.len(), deleted.refused.len()), (1, 1, 2));
    let gone = [deleted.topics[0].0];
    let done = world.ask(|coordinator, _, ticket| coordinator.handle_share_state_deleted("g", &gone, ticket));
    assert_eq!(done, Ok(()));
    assert_eq!(world.coordinator.share_partitions("g"), []);

    world.beat("m", 0, Some(&["a"])).unwrap();
    let request = alter("a", 0, 1);
    let reply = world.ask(|coordinator, now_ms, ticket| coordinator.handle_share_alter(now_ms, &request, ticket));
    assert_eq!(reply.unwrap_err().error, ResponseError::NonEmptyGroup);
}

#[test]
fn groups_are_deleted_after_their_state() {
    let mut world = World::with_two_members();
    let delete = |world: &mut World| world.ask(|coordinator, _, ticket| coordinator.handle_share_delete("g", ticket));
    assert_eq!(delete(&mut world).unwrap_err().error, ResponseError::NonEmptyGroup);
    world.beat("m1", -1, None).unwrap();
    world.beat("m2", -1, None).unwrap();
    let Ok(Some(work)) = delete(&mut world) else { panic!("it is a share group") };
    assert_eq!(work.partitions.len(), 4);
    let Ok(Some(again)) = delete(&mut world) else { panic!("it is still there") };
    assert_eq!(again.partitions, work.partitions, "it can be tried again");
    let ids = ["g".to_owned()];
    world.coordinator.handle_delete_groups(&ids, Inbox::new().ticket(Some));
    for write in world.coordinator.take_writes() {
        world.log.extend(write.records);
        assert_eq!(world.coordinator.on_persisted(1, write.id, Ok(0)), Verdict::Stands);
    }
    assert_eq!(world.coordinator.describe_share("g").error_code, ResponseError::GroupIdNotFound.code());
    assert_eq!(delete(&mut world), Ok(None));
}
