//! One line for each reply and record.

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ConsumerGroupHeartbeatResponse, HeartbeatResponse, JoinGroupResponse, LeaveGroupResponse, OffsetCommitResponse,
        OffsetDeleteResponse, SyncGroupResponse, delete_groups_response::DeletableGroupResult,
        offset_fetch_response::OffsetFetchResponseGroup,
    },
};

use super::wire::show;
use crate::coordinator::group::{
    assignment::Assignment,
    record::{AssignedPartitions, Record},
};

fn error(code: i16) -> String {
    ResponseError::try_from_code(code).map_or("ok".to_owned(), |error| format!("{error:?}"))
}

fn field(name: &str, value: impl std::fmt::Display) -> String {
    let value = value.to_string();
    if value.is_empty() { String::new() } else { format!(" {name}={value}") }
}

fn list(parts: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", parts.into_iter().collect::<Vec<_>>().join(", "))
}

fn join(reply: &JoinGroupResponse) -> String {
    let mut line = error(reply.error_code);
    line += &field("member", &reply.member_id);
    if reply.error_code != 0 {
        return line;
    }
    line += &field("generation", reply.generation_id);
    line += &field("protocol", reply.protocol_name.as_deref().unwrap_or_default());
    line += &field("leader", &reply.leader);
    if reply.skip_assignment {
        line += " skip";
    }
    if !reply.members.is_empty() {
        let members = reply.members.iter().map(|member| {
            let instance = member.group_instance_id.as_deref().map(|id| format!("({id})")).unwrap_or_default();
            format!("{}{instance}:{}", member.member_id, show(&member.metadata))
        });
        line += &field("members", list(members));
    }
    line
}

/// One line.
pub(in crate::coordinator::group) trait Print {
    /// It.
    fn print(&self) -> String;
}

impl Print for JoinGroupResponse {
    fn print(&self) -> String {
        join(self)
    }
}

impl Print for SyncGroupResponse {
    fn print(&self) -> String {
        let protocol = field("protocol", self.protocol_name.as_deref().unwrap_or_default());
        format!("{}{protocol}{}", error(self.error_code), field("assignment", show(&self.assignment)))
    }
}

impl Print for HeartbeatResponse {
    fn print(&self) -> String {
        error(self.error_code)
    }
}

impl Print for LeaveGroupResponse {
    fn print(&self) -> String {
        let members = self.members.iter().map(|member| {
            let instance = member.group_instance_id.as_deref().map(|id| format!("({id})")).unwrap_or_default();
            format!("{}{instance}:{}", member.member_id, error(member.error_code))
        });
        format!("{} {}", error(self.error_code), list(members))
    }
}

impl Print for OffsetCommitResponse {
    fn print(&self) -> String {
        list(self.topics.iter().flat_map(|topic| {
            let name = topic.name.as_str();
            topic
                .partitions
                .iter()
                .map(move |part| format!("{name}/{}:{}", part.partition_index, error(part.error_code)))
        }))
    }
}

impl Print for OffsetFetchResponseGroup {
    fn print(&self) -> String {
        let parts = list(self.topics.iter().flat_map(|topic| {
            let name = topic.name.as_str();
            topic.partitions.iter().map(move |part| {
                let metadata = part.metadata.as_deref().filter(|text| !text.is_empty());
                let metadata = metadata.map(|text| format!("({text})")).unwrap_or_default();
                match part.error_code {
                    0 => format!("{name}/{}:{}{metadata}", part.partition_index, part.committed_offset),
                    code => format!("{name}/{}:{}", part.partition_index, error(code)),
                }
            })
        }));
        format!("{} {parts}", error(self.error_code))
    }
}

impl Print for OffsetDeleteResponse {
    fn print(&self) -> String {
        let parts = list(self.topics.iter().flat_map(|topic| {
            let name = topic.name.as_str();
            topic
                .partitions
                .iter()
                .map(move |part| format!("{name}/{}:{}", part.partition_index, error(part.error_code)))
        }));
        format!("{} {parts}", error(self.error_code))
    }
}

impl Print for Vec<DeletableGroupResult> {
    fn print(&self) -> String {
        list(self.iter().map(|result| format!("{}:{}", result.group_id.as_str(), error(result.error_code))))
    }
}

impl Print for ConsumerGroupHeartbeatResponse {
    fn print(&self) -> String {
        let mut line = error(self.error_code);
        line += &field("message", self.error_message.as_deref().unwrap_or_default());
        if self.error_code != 0 {
            return line;
        }
        line += &field("member", self.member_id.as_deref().unwrap_or_default());
        line += &field("epoch", self.member_epoch);
        if let Some(assignment) = &self.assignment {
            let parts = assignment.topic_partitions.iter().flat_map(|topic| {
                topic.partitions.iter().map(|partition| format!("{}/{partition}", topic.topic_id.as_u128()))
            });
            line += &format!(" assignment={}", list(parts));
        }
        line
    }
}

fn assignment(assignment: &Assignment) -> String {
    list(
        assignment.iter().flat_map(|(topic, partitions)| {
            partitions.iter().map(|partition| format!("{}/{partition}", topic.as_u128()))
        }),
    )
}

fn epochs(assigned: &AssignedPartitions) -> String {
    list(assigned.iter().flat_map(|(topic, partitions)| {
        partitions.iter().map(|(partition, epoch)| format!("{}/{partition}@{epoch}", topic.as_u128()))
    }))
}

fn record(record: &Record) -> String {
    let group = record.group();
    match record {
        Record::Share { record, .. } => format!("share {group} {:?}", record.kind()),
        Record::OffsetCommit { topic, partition, value, .. } => match value {
            Some(value) => format!("offset {group} {topic}/{partition} {}", value.offset),
            None => format!("offset {group} {topic}/{partition} deleted"),
        },
        Record::GroupMetadata { value: Some(value), .. } => {
            let members =
                value.members.iter().map(|member| format!("{}:{}", member.member_id, show(&member.assignment)));
            format!("group {group} generation={} members={}", value.generation, list(members))
        }
        Record::GroupMetadata { value: None, .. } => format!("group {group} deleted"),
        Record::ConsumerGroup { value: Some(value), .. } => format!("epoch {group} {}", value.epoch),
        Record::ConsumerGroup { value: None, .. } => format!("epoch {group} deleted"),
        Record::ConsumerPartitionMetadata { value, .. } => {
            format!("partition-metadata {group}{}", if value.is_some() { "" } else { " deleted" })
        }
        Record::ConsumerMember { member, value: Some(value), .. } => {
            let mut line = format!("member {group} {member}");
            line += &field("instance", value.instance_id.as_deref().unwrap_or_default());
            line += &field("topics", value.topic_names.join("+"));
            line += &field("regex", value.topic_regex.as_deref().unwrap_or_default());
            line += &field("assignor", value.server_assignor.as_deref().unwrap_or_default());
            line += if value.classic.is_some() { " classic" } else { "" };
            line
        }
        Record::ConsumerMember { member, value: None, .. } => format!("member {group} {member} deleted"),
        Record::ConsumerTargetMetadata { value: Some(value), .. } => format!("target-epoch {group} {}", value.epoch),
        Record::ConsumerTargetMetadata { value: None, .. } => {
            format!("target-epoch {group} deleted")
        }
        Record::ConsumerTarget { member, value: Some(value), .. } => {
            format!("target {group} {member} {}", assignment(value))
        }
        Record::ConsumerTarget { member, value: None, .. } => format!("target {group} {member} deleted"),
        Record::ConsumerCurrent { member, value: Some(value), .. } => {
            let state = ["stable", "unrevoked", "unreleased"][value.state.unsigned_abs() as usize];
            let mut line =
                format!("current {group} {member} epoch={} {state} {}", value.epoch, epochs(&value.assigned));
            if !value.pending_revocation.is_empty() {
                line += &field("revoke", epochs(&value.pending_revocation));
            }
            line
        }
        Record::ConsumerCurrent { member, value: None, .. } => format!("current {group} {member} deleted"),
        Record::ConsumerRegex { regex, value: Some(value), .. } => {
            format!("regex {group} {regex} {}", list(value.topics.iter().map(ToString::to_string)))
        }
        Record::ConsumerRegex { regex, value: None, .. } => format!("regex {group} {regex} deleted"),
    }
}

pub(super) fn records(records: &[Record]) -> String {
    records.iter().map(record).collect::<Vec<_>>().join("; ")
}
