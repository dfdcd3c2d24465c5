//! Groups over the wire: every version is answered, and what was acknowledged outlives the node.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatRequest, DeleteGroupsRequest,
        DescribeGroupsRequest, FindCoordinatorRequest, GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
        LeaveGroupRequest, ListGroupsRequest, OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest,
        OffsetFetchRequest, OffsetFetchResponse, RequestHeader, SyncGroupRequest,
        join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity,
        metadata_request::MetadataRequestTopic,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics},
        sync_group_request::SyncGroupRequestAssignment,
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use uuid::Uuid;

use crate::{
    client::{Client, topic_name},
    node::{Node, config},
};

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group(id: &str) -> GroupId {
    GroupId(text(id))
}

fn join(client: &mut Client, version: i16, id: &str, member: &str) -> JoinGroupResponse {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(Bytes::from_static(b"x"));
    let mut request = JoinGroupRequest::default()
        .with_group_id(group(id))
        .with_member_id(text(member))
        .with_protocol_type(text("t"))
        .with_session_timeout_ms(30_000)
        .with_protocols(vec![protocol]);
    if version >= 1 {
        request.rebalance_timeout_ms = 10_000;
    }
    client.call_coordinator(version, &request, |response| response.error_code)
}

/// Joins an empty group, with a member id if the version wants one, and brings an assignment.
fn become_member(client: &mut Client, version: i16, id: &str) -> (String, i32) {
    let mut joined = join(client, version, id, "");
    if joined.error_code == ResponseError::MemberIdRequired.code() {
        joined = join(client, version, id, &joined.member_id.clone());
    }
    assert_eq!(joined.error_code, 0);
    assert_eq!(joined.leader, joined.member_id, "alone in its group");
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment(Bytes::from_static(b"all"));
    let mut request = SyncGroupRequest::default()
        .with_group_id(group(id))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_assignments(vec![assignment]);
    if version >= 5 {
        request.protocol_type = Some(text("t"));
        request.protocol_name = Some(text("range"));
    }
    let synced = client.call(version.min(5), &request);
    assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"all"[..]));
    (joined.member_id.to_string(), joined.generation_id)
}

fn heartbeat(client: &mut Client, version: i16, id: &str, member: &str, generation: i32) -> i16 {
    let request = HeartbeatRequest::default()
        .with_group_id(group(id))
        .with_member_id(text(member))
        .with_generation_id(generation);
    client.call(version, &request).error_code
}

fn commit_request(id: &str, member: &str, generation: i32, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(0)
        .with_committed_offset(offset)
        .with_committed_metadata(Some(text("m")));
    let topic = OffsetCommitRequestTopic::default().with_name(topic_name("t")).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group(id))
        .with_member_id(text(member))
        .with_generation_id_or_member_epoch(generation)
        .with_topics(vec![topic])
}

/// Commits for a group that may not have been asked for yet; the partition's error.
fn commit(client: &mut Client, version: i16, request: &OffsetCommitRequest) -> i16 {
    let code = |response: &OffsetCommitResponse| response.topics[0].partitions[0].error_code;
    code(&client.call_coordinator(version, request, code))
}

fn committed(client: &mut Client, id: &str) -> i64 {
    let topic = OffsetFetchRequestTopics::default().with_name(topic_name("t")).with_partition_indexes(vec![0]);
    let asked = OffsetFetchRequestGroup::default()
        .with_group_id(group(id))
        .with_member_epoch(-1)
        .with_topics(Some(vec![topic]));
    let request = OffsetFetchRequest::default().with_groups(vec![asked]).with_require_stable(true);
    let response = client.call_coordinator(9, &request, |response| response.groups[0].error_code);
    assert_eq!(response.groups[0].error_code, 0);
    response.groups[0].topics[0].partitions[0].committed_offset
}

/// A node whose groups do not wait for more members.
fn start(dir: &std::path::Path, shards: usize) -> Node {
    let mut config = config();
    config.broker_settings.insert("group.initial.rebalance.delay.ms".to_owned(), "0".to_owned());
    Node::start(dir, shards, config)
}

#[test]
fn members_and_offsets_outlive_the_node() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = start(dir.path(), 2);
    let mut client = node.client();
    client.create_topic("t", 1);
    let groups: Vec<String> = (0..8).map(|number| format!("group-{number}")).collect();
    let mut members = Vec::new();
    for (offset, id) in groups.iter().enumerate() {
        let (member, generation) = become_member(&mut client, 9, id);
        let response = client.call(9, &commit_request(id, &member, generation, offset as i64));
        assert_eq!(response.topics[0].partitions[0].error_code, 0);
        members.push((member, generation));
    }
    node.stop();

    // another number of shards: every group is coordinated elsewhere
    let node = start(dir.path(), 3);
    let mut client = node.client();
    for (offset, (id, (member, generation))) in groups.iter().zip(&members).enumerate() {
        // in this order: a heartbeat is fine as well while the coordinator is being loaded
        assert_eq!(committed(&mut client, id), offset as i64);
        assert_eq!(heartbeat(&mut client, 4, id, member, *generation), 0, "{id} has its member");
    }
    let listed = client.call_coordinator(5, &ListGroupsRequest::default(), |response| response.error_code);
    let mut ids: Vec<_> = listed.groups.iter().map(|group| group.group_id.to_string()).collect();
    ids.sort();
    assert_eq!((listed.error_code, ids), (0, groups), "all shards tell of their groups");
}

#[test]
fn every_version_of_the_group_apis_is_answered() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = start(dir.path(), 2);
    let mut client = node.client();
    client.create_topic("t", 1);
    for version in 0..=6 {
        let request = if version < 4 {
            FindCoordinatorRequest::default().with_key(text("g"))
        } else {
            FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g"), text("h")])
        };
        let found = client.call(version, &request);
        let port = if version < 4 { found.port } else { found.coordinators[1].port };
        assert_eq!(port, i32::from(node.address.port()), "version {version}");
    }
    for version in 0..=9 {
        let id = format!("join-{version}");
        let (member, generation) = become_member(&mut client, version, &id);
        assert_eq!(heartbeat(&mut client, version.min(4), &id, &member, generation), 0);
        let version = version.min(5);
        let mut request = LeaveGroupRequest::default().with_group_id(group(&id));
        if version < 3 {
            request.member_id = text(&member);
        } else {
            request.members = vec![MemberIdentity::default().with_member_id(text(&member))];
        }
        let left = client.call(version, &request);
        assert_eq!((left.error_code, left.members.len()), (0, usize::from(version >= 3)));
        let again = client.call(version, &request);
        let code = if version < 3 { again.error_code } else { again.members[0].error_code };
        assert_eq!(code, ResponseError::UnknownMemberId.code());
    }
    for version in 2..=9 {
        let request = commit_request("offsets", "", -1, i64::from(version));
        assert_eq!(commit(&mut client, version, &request), 0, "version {version}");
        assert_eq!(committed(&mut client, "offsets"), i64::from(version));
    }
    for version in 1..=7 {
        let topic = OffsetFetchRequestTopic::default().with_name(topic_name("t")).with_partition_indexes(vec![0, 5]);
        let request = OffsetFetchRequest::default().with_group_id(group("offsets")).with_topics(Some(vec![topic]));
        let response = client.call(version, &request);
        let offsets: Vec<_> = response.topics[0].partitions.iter().map(|part| part.committed_offset).collect();
        assert_eq!(offsets, [9, -1], "version {version}");
    }
    administer(&mut client);
}

fn administer(client: &mut Client) {
    for version in 0..=5 {
        let listed = client.call(version, &ListGroupsRequest::default());
        assert!(listed.groups.iter().any(|listed| listed.group_id == group("offsets")), "version {version}");
    }
    for version in 0..=6 {
        let request = DescribeGroupsRequest::default()
            .with_groups(vec![group("join-9"), group("nobody")])
            .with_include_authorized_operations(version >= 3);
        let described = client.call(version, &request);
        let states: Vec<_> = described.groups.iter().map(|described| described.group_state.to_string()).collect();
        assert_eq!(states, ["Empty", "Dead"], "version {version}");
    }
    let partition = OffsetDeleteRequestPartition::default().with_partition_index(0);
    let topic =
        |name| OffsetDeleteRequestTopic::default().with_name(topic_name(name)).with_partitions(vec![partition.clone()]);
    let request =
        OffsetDeleteRequest::default().with_group_id(group("offsets")).with_topics(vec![topic("t"), topic("u")]);
    let deleted = client.call(0, &request);
    let codes: Vec<_> = deleted.topics.iter().map(|topic| topic.partitions[0].error_code).collect();
    assert_eq!((deleted.error_code, codes), (0, vec![0, ResponseError::UnknownTopicOrPartition.code()]));
    assert_eq!(committed(client, "offsets"), -1);
    for version in 0..=2 {
        let request =
            DeleteGroupsRequest::default().with_groups_names(vec![group(&format!("join-{version}")), group("nobody")]);
        let deleted = client.call(version, &request);
        let codes: Vec<_> = deleted.results.iter().map(|result| result.error_code).collect();
        assert_eq!(codes, [0, ResponseError::GroupIdNotFound.code()], "version {version}");
    }
}

#[test]
fn offsets_are_kept_by_topic_id() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = start(dir.path(), 1);
    let mut client = node.client();
    client.create_topic("t", 1);
    let wanted = MetadataRequestTopic::default().with_name(Some(topic_name("t")));
    let request = kafka_protocol::messages::MetadataRequest::default().with_topics(Some(vec![wanted]));
    let id = client.call(12, &request).topics[0].topic_id;

    let commit = |topic: Uuid| {
        let mut body = BytesMut::new();
        body.put_slice(&[2, b'g']);
        body.put_i32(-1);
        body.put_slice(&[1, 0, 2]);
        body.put_slice(topic.as_bytes());
        body.put_u8(2);
        body.put_i32(0);
        body.put_i64(7);
        body.put_i32(0);
        body.put_slice(&[0, 0, 0, 0]);
        body
    };
    let answer = |client: &mut Client, topic| {
        let response = raw(client, ApiKey::OffsetCommit, 10, &commit(topic));
        let response = OffsetCommitResponse::decode(&mut response.clone(), 10).expect("a legal response");
        (response.topics[0].topic_id, response.topics[0].partitions[0].error_code)
    };
    assert_eq!(answer(&mut client, id), (id, 0));
    let other = Uuid::from_u128(1);
    assert_eq!(answer(&mut client, other), (other, ResponseError::UnknownTopicId.code()));

    let mut body = BytesMut::new();
    body.put_slice(&[2, 2, b'g', 0]);
    body.put_i32(-1);
    body.put_u8(2);
    body.put_slice(id.as_bytes());
    body.put_u8(2);
    body.put_i32(0);
    body.put_slice(&[0, 0, 1, 0]);
    let response = raw(&mut client, ApiKey::OffsetFetch, 10, &body);
    let response = OffsetFetchResponse::decode(&mut response.clone(), 10).expect("a legal response");
    let topic = &response.groups[0].topics[0];
    assert_eq!((topic.topic_id, topic.partitions[0].committed_offset), (id, 7));
    assert_eq!(committed(&mut client, "g"), 7, "by name as well");
}

/// Sends a request in a version that the message library cannot write; answers what follows the response's header.
fn raw(client: &mut Client, key: ApiKey, version: i16, body: &[u8]) -> Bytes {
    use std::io::Write;
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_correlation_id(77)
        .with_client_id(Some(text("raw")));
    let mut bytes = BytesMut::new();
    bytes.put_u32(0);
    header.encode(&mut bytes, 2).expect("a legal header");
    bytes.put_slice(body);
    let length = u32::try_from(bytes.len() - 4).expect("small");
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    client.stream().write_all(&bytes).expect("the node takes it");
    let mut response = client.receive().expect("a response");
    assert_eq!((response.get_i32(), response.get_u8()), (77, 0));
    response
}

#[test]
fn consumer_groups_are_assigned_to() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = start(dir.path(), 2);
    let mut client = node.client();
    client.create_topic("t", 4);
    let beat = |client: &mut Client, version: i16, id: &str, member: &str, epoch: i32| {
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(group(id))
            .with_member_id(text(member))
            .with_member_epoch(epoch)
            .with_rebalance_timeout_ms(10_000)
            .with_subscribed_topic_names(Some(vec![topic_name("t")]))
            .with_topic_partitions(Some(Vec::new()));
        client.call_coordinator(version, &request, |response| response.error_code)
    };
    for version in 0..=1 {
        let id = format!("group-{version}");
        let joined = beat(&mut client, version, &id, if version == 0 { "" } else { "m" }, 0);
        assert_eq!((joined.error_code, joined.member_epoch), (0, 2), "{:?}", joined.error_message);
        let member = joined.member_id.expect("a member has an id");
        assert_eq!(joined.assignment.expect("all is its own").topic_partitions[0].partitions, [0, 1, 2, 3]);
        let request = ConsumerGroupDescribeRequest::default()
            .with_group_ids(vec![group(&id), group("nobody"), group("")])
            .with_include_authorized_operations(true);
        let described = client.call(version, &request);
        let codes: Vec<_> = described.groups.iter().map(|group| group.error_code).collect();
        assert_eq!(codes, [0, ResponseError::GroupIdNotFound.code(), ResponseError::InvalidGroupId.code()]);
        assert_eq!(described.groups[0].members[0].assignment.topic_partitions[0].topic_name, topic_name("t"));
        assert_eq!(described.groups[0].authorized_operations, 3400);
        let stale = beat(&mut client, version, &id, &member, 9);
        assert_eq!(stale.error_code, ResponseError::FencedMemberEpoch.code());
        let left = beat(&mut client, version, &id, &member, -1);
        assert_eq!((left.error_code, left.member_epoch), (0, -1));
    }
}

#[test]
fn what_cannot_be_written_is_not_acknowledged() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = start(dir.path(), 2);
    let mut client = node.client();
    client.create_topic("t", 1);
    assert_eq!(commit(&mut client, 9, &commit_request("g", "", -1, 5)), 0);
    node.stop();

    let join = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group("h"))
        .with_member_id(text("m"))
        .with_rebalance_timeout_ms(10_000)
        .with_subscribed_topic_names(Some(vec![topic_name("t")]))
        .with_topic_partitions(Some(Vec::new()));
    let node = Node::start_with_reserve(dir.path(), 2, config(), u64::MAX);
    let mut client = node.client();
    let unavailable = ResponseError::CoordinatorNotAvailable.code();
    // from here on both coordinators are loaded, and answer with other errors for other reasons
    let describe = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group("h")]);
    client.call_coordinator(1, &describe, |response| response.groups[0].error_code);
    assert_eq!(committed(&mut client, "g"), 5);
    for _ in 0..3 {
        let response = client.call(9, &commit_request("g", "", -1, 6));
        assert_eq!(response.topics[0].partitions[0].error_code, unavailable);
        assert_eq!(committed(&mut client, "g"), 5, "reads go on");
        // the group that ran ahead of its records is forgotten each time
        assert_eq!(client.call(1, &join).error_code, unavailable);
        let described = client.call(1, &describe);
        assert_eq!(described.groups[0].error_code, ResponseError::GroupIdNotFound.code());
    }
    node.stop();

    let node = start(dir.path(), 2);
    let mut client = node.client();
    assert_eq!(client.call_coordinator(1, &join, |response| response.error_code).error_code, 0);
    assert_eq!(committed(&mut client, "g"), 5);
}
