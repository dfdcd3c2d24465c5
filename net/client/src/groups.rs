//! Consumer groups, of the classic protocol and of the newer one (KIP-848), and their committed offsets.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use kafka_protocol::{
    messages::{
        ConsumerGroupDescribeRequest, ConsumerProtocolAssignment, DeleteGroupsRequest, DescribeGroupsRequest, GroupId,
        ListGroupsRequest, OffsetCommitRequest, OffsetFetchRequest,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestGroup,
    },
    protocol::{Decodable, StrBytes},
};

use crate::{
    cluster::Cluster,
    error::{ClientError, partition_named},
    error_code::UNSUPPORTED_VERSION,
    requests::topic_name,
};

/// A group in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupListing {
    /// Its id.
    pub id: String,
    /// `classic`, `consumer`, ...; empty when the broker is too old to say.
    pub kind: String,
    /// Its state, as Kafka calls it.
    pub state: String,
    /// What its members are, as `consumer`.
    pub protocol: String,
}

/// A group in detail.
#[derive(Clone, Debug)]
pub struct GroupDescription {
    /// Its state, as Kafka calls it.
    pub state: String,
    /// How partitions are dealt out.
    pub assignor: String,
    /// Who is in it.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its member id.
    pub id: String,
    /// What it calls itself.
    pub client_id: String,
    /// Where it comes from.
    pub host: String,
    /// Topics and partitions that it reads.
    pub partitions: Vec<(String, i32)>,
}

/// Committed offsets by topic and partition.
pub type Offsets = BTreeMap<(String, i32), i64>;

const GROUP_ID_NOT_FOUND: i16 = 69;

fn group_id(group: &str) -> GroupId {
    GroupId(StrBytes::from_string(group.to_owned()))
}

impl Cluster {
    /// All groups of all brokers, sorted by id.
    pub fn groups(&mut self) -> Result<Vec<GroupListing>, ClientError> {
        let mut groups = Vec::new();
        for broker in self.broker_ids()? {
            let response = self.retry(|cluster| {
                let response = cluster.broker(broker, |_| ListGroupsRequest::default())?;
                ClientError::check("list groups", response.error_code, None)?;
                Ok(response)
            })?;
            groups.extend(response.groups.into_iter().map(|group| GroupListing {
                id: group.group_id.to_string(),
                kind: group.group_type.to_string(),
                state: group.group_state.to_string(),
                protocol: group.protocol_type.to_string(),
            }));
        }
        groups.sort();
        groups.dedup();
        Ok(groups)
    }

    /// One group: asked for as a group of the newer protocol first, then as a classic one.
    pub fn describe_group(&mut self, group: &str) -> Result<GroupDescription, ClientError> {
        let what = format!("group '{group}'");
        self.retry(|cluster| {
            let coordinator = cluster.coordinator(group)?;
            if cluster.broker_connection(coordinator)?.serves::<ConsumerGroupDescribeRequest>() {
                match cluster.describe_consumer_group(coordinator, group, &what) {
                    Err(error) if matches!(error.code(), Some(GROUP_ID_NOT_FOUND | UNSUPPORTED_VERSION)) => {}
                    other => return other,
                }
            }
            cluster.describe_classic_group(coordinator, group, &what)
        })
    }

    fn describe_consumer_group(
        &mut self,
        coordinator: i32,
        group: &str,
        what: &str,
    ) -> Result<GroupDescription, ClientError> {
        let response = self
            .broker(coordinator, |_| ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id(group)]))?;
        let found = response.groups.into_iter().next();
        let Some(found) = found else { return Err(not_found(what)) };
        ClientError::check(what, found.error_code, found.error_message.as_deref())?;
        let member = |member: kafka_protocol::messages::consumer_group_describe_response::Member| {
            let assigned = member.assignment.topic_partitions.iter();
            Member {
                id: member.member_id.to_string(),
                client_id: member.client_id.to_string(),
                host: member.client_host.to_string(),
                partitions: assigned
                    .flat_map(|t| t.partitions.iter().map(|p| (t.topic_name.to_string(), *p)))
                    .collect(),
            }
        };
        Ok(GroupDescription {
            state: found.group_state.to_string(),
            assignor: found.assignor_name.to_string(),
            members: found.members.into_iter().map(member).collect(),
        })
    }

    fn describe_classic_group(
        &mut self,
        coordinator: i32,
        group: &str,
        what: &str,
    ) -> Result<GroupDescription, ClientError> {
        let response =
            self.broker(coordinator, |_| DescribeGroupsRequest::default().with_groups(vec![group_id(group)]))?;
        let Some(found) = response.groups.into_iter().next() else { return Err(not_found(what)) };
        ClientError::check(what, found.error_code, found.error_message.as_deref())?;
        // Older brokers have no error code for it: an unknown group is a dead one.
        if found.group_state.as_str() == "Dead" {
            return Err(not_found(what));
        }
        let member = |member: kafka_protocol::messages::describe_groups_response::DescribedGroupMember| Member {
            id: member.member_id.to_string(),
            client_id: member.client_id.to_string(),
            host: member.client_host.to_string(),
            partitions: assignment(member.member_assignment),
        };
        Ok(GroupDescription {
            state: found.group_state.to_string(),
            assignor: found.protocol_data.to_string(),
            members: found.members.into_iter().map(member).collect(),
        })
    }

    /// All offsets that a group has committed.
    pub fn committed_offsets(&mut self, group: &str) -> Result<Offsets, ClientError> {
        let what = format!("group '{group}'");
        self.retry(|cluster| {
            let coordinator = cluster.coordinator(group)?;
            let response = cluster.broker(coordinator, |version| match version {
                ..=7 => OffsetFetchRequest::default().with_group_id(group_id(group)).with_topics(None),
                _ => OffsetFetchRequest::default().with_groups(vec![
                    OffsetFetchRequestGroup::default().with_group_id(group_id(group)).with_topics(None),
                ]),
            })?;
            ClientError::check(&what, response.error_code, None)?;
            let mut offsets = Offsets::new();
            for topic in &response.topics {
                for p in topic.partitions.iter().filter(|p| p.committed_offset >= 0) {
                    offsets.insert((topic.name.to_string(), p.partition_index), p.committed_offset);
                }
            }
            for found in &response.groups {
                ClientError::check(&what, found.error_code, None)?;
                for topic in &found.topics {
                    for p in topic.partitions.iter().filter(|p| p.committed_offset >= 0) {
                        offsets.insert((topic.name.to_string(), p.partition_index), p.committed_offset);
                    }
                }
            }
            Ok(offsets)
        })
    }

    /// Commits offsets for a group without members.
    pub fn commit_offsets(&mut self, group: &str, offsets: &Offsets) -> Result<(), ClientError> {
        let what = format!("group '{group}'");
        let mut topics: BTreeMap<&str, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for ((topic, partition), offset) in offsets {
            let commit = OffsetCommitRequestPartition::default()
                .with_partition_index(*partition)
                .with_committed_offset(*offset)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::new()));
            topics.entry(topic).or_default().push(commit);
        }
        let topics: Vec<OffsetCommitRequestTopic> = topics
            .into_iter()
            .map(|(name, partitions)| {
                OffsetCommitRequestTopic::default().with_name(topic_name(name)).with_partitions(partitions)
            })
            .collect();
        self.retry(|cluster| {
            let coordinator = cluster.coordinator(group)?;
            let response = cluster.broker(coordinator, |_| {
                OffsetCommitRequest::default()
                    .with_group_id(group_id(group))
                    .with_generation_id_or_member_epoch(-1)
                    .with_topics(topics.clone())
            })?;
            for topic in &response.topics {
                for partition in &topic.partitions {
                    let what = format!("{what}, {}", partition_named(&topic.name, partition.partition_index));
                    ClientError::check(what, partition.error_code, None)?;
                }
            }
            Ok(())
        })
    }

    /// Deletes a group without members, and its offsets.
    pub fn delete_group(&mut self, group: &str) -> Result<(), ClientError> {
        let what = format!("group '{group}'");
        self.retry(|cluster| {
            let coordinator = cluster.coordinator(group)?;
            let response = cluster
                .broker(coordinator, |_| DeleteGroupsRequest::default().with_groups_names(vec![group_id(group)]))?;
            let Some(outcome) = response.results.first() else { return Err(not_found(&what)) };
            ClientError::check(&what, outcome.error_code, None)
        })
    }
}

fn not_found(what: &str) -> ClientError {
    ClientError::Refused { what: what.to_owned(), code: GROUP_ID_NOT_FOUND, message: None }
}

/// Partitions in a classic member's assignment; none when they are in a form that only its clients know.
fn assignment(mut bytes: Bytes) -> Vec<(String, i32)> {
    if bytes.len() < 2 {
        return Vec::new();
    }
    let version = bytes.get_i16();
    match ConsumerProtocolAssignment::decode(&mut bytes, version.clamp(0, 3)) {
        Ok(assignment) => assignment
            .assigned_partitions
            .iter()
            .flat_map(|t| t.partitions.iter().map(|p| (t.topic.to_string(), *p)))
            .collect(),
        Err(_) => Vec::new(),
    }
}
