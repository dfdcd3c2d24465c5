//! What clients and administrators can say.

use kafka_protocol::{
    messages::{
        ConsumerGroupHeartbeatRequest, GroupId, HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest,
        OffsetCommitRequest, OffsetDeleteRequest, SyncGroupRequest, TopicName,
        consumer_group_heartbeat_request::TopicPartitions,
        join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        sync_group_request::SyncGroupRequestAssignment,
    },
    protocol::StrBytes,
};
use std::rc::Rc;
use uuid::Uuid;

use super::{Command, Script, wire};
use crate::coordinator::{
    group::{coordinator::GroupFilter, offsets::Stability},
    runtime::Machine as _,
};

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

fn group(command: &Command<'_>) -> GroupId {
    GroupId(command.text("group", "g"))
}

pub(super) fn run(script: &mut Script, command: &Command<'_>) {
    match command.verb {
        "join" => join(script, command),
        "sync" => sync(script, command),
        "heartbeat" => heartbeat(script, command),
        "leave" => leave(script, command),
        "commit" => commit(script, command),
        "txn-commit" => txn_commit(script, command),
        "fetch" => fetch(script, command),
        "delete-offset" => delete_offset(script, command),
        "delete-groups" => {
            let ids: Vec<_> = command.list("groups").iter().map(ToString::to_string).collect();
            let ticket = script.ticket(command.name);
            script.coordinator.handle_delete_groups(&ids, ticket);
        }
        "list" => list(script, command),
        "beat" => beat(script, command),
        "describe-consumer" => describe_consumer(script, command),
        "describe" => describe(script, command),
        "retention" => script.coordinator.handle_retention(script.now_ms),
        "topic" => {
            script.topics.set(command.name, command.number("partitions", 1));
            script.coordinator.see_topics(Rc::new(script.topics.clone()));
            if command.get("seen") != Some("late") {
                script.coordinator.handle_topics_deleted();
            }
        }
        verb => panic!("no command is called {verb}"),
    }
}

fn join(script: &mut Script, command: &Command<'_>) {
    let caller = script.caller(command, 9);
    let protocol = |part: &str| {
        let (name, metadata) = part.split_once(':').unwrap_or((part, ""));
        JoinGroupRequestProtocol::default().with_name(text(name)).with_metadata(wire::metadata(metadata))
    };
    let protocols = command.get("protocols").unwrap_or("range:x").split(',').filter(|part| !part.is_empty());
    let request = JoinGroupRequest::default()
        .with_group_id(group(command))
        .with_member_id(command.text("member", ""))
        .with_group_instance_id(command.optional("instance"))
        .with_protocol_type(command.text("type", "consumer"))
        .with_session_timeout_ms(command.number("session", 10_000))
        .with_rebalance_timeout_ms(command.number("rebalance", 60_000))
        .with_protocols(protocols.map(protocol).collect());
    let ticket = script.ticket(command.name);
    script.coordinator.handle_join(script.now_ms, &caller, &request, ticket);
}

fn sync(script: &mut Script, command: &Command<'_>) {
    let part = |part: &&str| {
        let (member, assignment) = part.split_once(':').unwrap();
        SyncGroupRequestAssignment::default().with_member_id(text(member)).with_assignment(wire::assignment(assignment))
    };
    let request = SyncGroupRequest::default()
        .with_group_id(group(command))
        .with_member_id(command.text("member", ""))
        .with_group_instance_id(command.optional("instance"))
        .with_generation_id(command.number("generation", 1))
        .with_protocol_type(command.optional("type"))
        .with_protocol_name(command.optional("protocol"))
        .with_assignments(command.list("assign").iter().map(part).collect());
    let ticket = script.ticket(command.name);
    script.coordinator.handle_sync(script.now_ms, &request, ticket);
}

fn heartbeat(script: &mut Script, command: &Command<'_>) {
    let request = HeartbeatRequest::default()
        .with_group_id(group(command))
        .with_member_id(command.text("member", ""))
        .with_group_instance_id(command.optional("instance"))
        .with_generation_id(command.number("generation", 1));
    let ticket = script.ticket(command.name);
    script.coordinator.handle_heartbeat(script.now_ms, &request, ticket);
}

fn leave(script: &mut Script, command: &Command<'_>) {
    // members=a,b or instances=i,j
    let by_id = command.list("members").into_iter().map(|id| MemberIdentity::default().with_member_id(text(id)));
    let by_instance = command
        .list("instances")
        .into_iter()
        .map(|id| MemberIdentity::default().with_group_instance_id(Some(text(id))));
    let request =
        LeaveGroupRequest::default().with_group_id(group(command)).with_members(by_id.chain(by_instance).collect());
    let ticket = script.ticket(command.name);
    script.coordinator.handle_leave(script.now_ms, &request, ticket);
}

fn commit(script: &mut Script, command: &Command<'_>) {
    let caller = script.caller(command, 9);
    let request = commit_request(script, command);
    let ticket = script.ticket(command.name);
    script.coordinator.handle_offset_commit(script.now_ms, &caller, &request, ticket);
}

fn txn_commit(script: &mut Script, command: &Command<'_>) {
    let caller = script.caller(command, 5);
    let request = commit_request(script, command);
    let producer = (command.number("pid", 1), 0);
    let guard = script.coordinator.guard(producer.0, "u".to_owned());
    if command.get("late").is_some() {
        script.coordinator.begin_marker(producer.0);
    }
    let ticket = script.ticket(command.name);
    script.coordinator.handle_txn_offset_commit(script.now_ms, &caller, (producer, &guard), &request, ticket);
}

fn commit_request(script: &Script, command: &Command<'_>) -> OffsetCommitRequest {
    let topics = command.list("offsets").into_iter().map(|part| {
        let (partition, offset) = part.split_once(':').unwrap();
        let (topic, partition) = partition.split_once('/').unwrap();
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(partition.parse().unwrap())
            .with_committed_offset(offset.parse().unwrap())
            .with_committed_metadata(command.optional("metadata"));
        let id = script.topics.topics.get(topic).map_or(Uuid::nil(), |(id, _)| *id);
        OffsetCommitRequestTopic::default()
            .with_name(TopicName(text(topic)))
            .with_topic_id(id)
            .with_partitions(vec![partition])
    });
    OffsetCommitRequest::default()
        .with_group_id(group(command))
        .with_member_id(command.text("member", ""))
        .with_group_instance_id(command.optional("instance"))
        .with_generation_id_or_member_epoch(command.number("generation", -1))
        .with_retention_time_ms(command.number("retention", -1))
        .with_topics(topics.collect())
}

fn fetch(script: &mut Script, command: &Command<'_>) {
    let topic = |part: &&str| {
        let (topic, partition) = part.split_once('/').unwrap();
        let id = script.topics.topics.get(topic).map_or(Uuid::nil(), |(id, _)| *id);
        OffsetFetchRequestTopics::default()
            .with_name(TopicName(text(topic)))
            .with_topic_id(id)
            .with_partition_indexes(vec![partition.parse().unwrap()])
    };
    let request = OffsetFetchRequestGroup::default()
        .with_group_id(group(command))
        .with_member_id(command.optional("member"))
        .with_member_epoch(command.number("epoch", -1))
        .with_topics(command.get("partitions").map(|_| command.list("partitions").iter().map(topic).collect()));
    let stable = if command.get("stable").is_some() { Stability::Required } else { Stability::Any };
    let ticket = script.ticket(command.name);
    script.coordinator.handle_offset_fetch(request, stable, ticket);
}

fn delete_offset(script: &mut Script, command: &Command<'_>) {
    let topics = command.list("partitions").into_iter().map(|part| {
        let (topic, partition) = part.split_once('/').unwrap();
        let partition = OffsetDeleteRequestPartition::default().with_partition_index(partition.parse().unwrap());
        OffsetDeleteRequestTopic::default().with_name(TopicName(text(topic))).with_partitions(vec![partition])
    });
    let request = OffsetDeleteRequest::default().with_group_id(group(command)).with_topics(topics.collect());
    let ticket = script.ticket(command.name);
    script.coordinator.handle_offset_delete(&request, ticket);
}

fn list(script: &mut Script, command: &Command<'_>) {
    let set = |key| command.list(key).iter().map(|name| name.to_lowercase()).collect();
    let filter = GroupFilter { states: set("states"), types: set("types") };
    let mut groups = script.coordinator.list(&filter);
    groups.sort_by(|a, b| a.group_id.as_str().cmp(b.group_id.as_str()));
    for group in groups {
        let (id, kind) = (group.group_id.as_str(), group.group_type.as_str());
        script.say(format_args!("{id} {kind} {} '{}'", group.group_state, group.protocol_type));
    }
}

fn describe(script: &mut Script, command: &Command<'_>) {
    let group = script.coordinator.describe(command.get("group").unwrap_or("g"), command.number("version", 6));
    let error = group.error_message.as_deref().map(|text| format!(" {text}")).unwrap_or_default();
    script.say(format_args!(
        "{} {} type='{}' protocol='{}'{error}",
        group.group_id.as_str(),
        group.group_state,
        group.protocol_type,
        group.protocol_data
    ));
    for member in &group.members {
        let instance = member.group_instance_id.as_deref().map(|id| format!("({id})")).unwrap_or_default();
        script.say(format_args!(
            "  {}{instance} {} {} '{}' '{}'",
            member.member_id,
            member.client_id,
            member.client_host,
            wire::show(&member.member_metadata),
            wire::show(&member.member_assignment)
        ));
    }
}

/// A ConsumerGroupHeartbeat: `topics=t+u` or `regex=...`, `owned=t/0+t/1`; what is left out is not said, but for the first
/// one of a member (epoch 0), which must say what it wants.
fn beat(script: &mut Script, command: &Command<'_>) {
    let caller = script.caller(command, 1);
    let epoch = command.number("epoch", 0);
    let owned = command.get("owned").or((epoch == 0).then_some(""));
    let owned = owned.map(|owned| {
        let id = |topic: &str| script.topics.topics.get(topic).map_or(Uuid::nil(), |(id, _)| *id);
        let owned = wire::partitions(owned).into_iter();
        owned
            .map(|(topic, partitions)| TopicPartitions::default().with_topic_id(id(&topic)).with_partitions(partitions))
            .collect()
    });
    let names = command.get("topics").map(|topics| {
        let names = topics.split('+').filter(|name| !name.is_empty());
        names.map(|name| TopicName(text(name))).collect()
    });
    let request = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group(command))
        .with_member_id(command.text("member", ""))
        .with_member_epoch(epoch)
        .with_instance_id(command.optional("instance"))
        .with_rebalance_timeout_ms(command.number("rebalance", if epoch == 0 { 60_000 } else { -1 }))
        .with_subscribed_topic_names(names)
        .with_subscribed_topic_regex(command.optional("regex"))
        .with_server_assignor(command.optional("assignor"))
        .with_topic_partitions(owned);
    let ticket = script.ticket(command.name);
    script.coordinator.handle_consumer_heartbeat(script.now_ms, &caller, &request, ticket);
}

fn describe_consumer(script: &mut Script, command: &Command<'_>) {
    let group = script.coordinator.describe_consumer(command.get("group").unwrap_or("g"));
    let error = group.error_message.as_deref().map(|text| format!(" {text}")).unwrap_or_default();
    script.say(format_args!(
        "{} {} epoch={} assigned={} by {}{error}",
        group.group_id.as_str(),
        group.group_state,
        group.group_epoch,
        group.assignment_epoch,
        group.assignor_name
    ));
    for member in &group.members {
        let partitions = |assignment: &kafka_protocol::messages::consumer_group_describe_response::Assignment| {
            let topics = assignment.topic_partitions.iter().flat_map(|topic| {
                let name = topic.topic_name.as_str();
                topic.partitions.iter().map(move |partition| format!("{name}/{partition}"))
            });
            topics.collect::<Vec<_>>().join("+")
        };
        let kind = if member.member_type == 0 { "classic" } else { "consumer" };
        script.say(format_args!(
            "  {} {kind} epoch={} has {} wants {}",
            member.member_id,
            member.member_epoch,
            partitions(&member.assignment),
            partitions(&member.target_assignment)
        ));
    }
}
