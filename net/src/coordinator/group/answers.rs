//! What coordinators of groups answer, in the newest version's form (the handler fits it to the version that the client
//! speaks), and what becomes of it when it could not be made durable.

use kafka_protocol::messages::{
    ConsumerGroupHeartbeatResponse, HeartbeatResponse, JoinGroupResponse, LeaveGroupResponse, OffsetCommitResponse,
    OffsetDeleteResponse, SyncGroupResponse, delete_groups_response::DeletableGroupResult,
    offset_fetch_response::OffsetFetchResponseGroup,
};

use super::error::GroupError;
use crate::coordinator::runtime::Answer;

impl Answer for JoinGroupResponse {
    fn fail(&mut self, error: GroupError) {
        let member_id = std::mem::take(&mut self.member_id);
        *self = Self::default().with_member_id(member_id).with_error_code(error.code());
    }
}

impl Answer for SyncGroupResponse {
    fn fail(&mut self, error: GroupError) {
        *self = Self::default().with_error_code(error.code());
    }
}

impl Answer for HeartbeatResponse {
    fn fail(&mut self, error: GroupError) {
        self.error_code = error.code();
    }
}

impl Answer for LeaveGroupResponse {
    fn fail(&mut self, error: GroupError) {
        *self = Self::default().with_error_code(error.code());
    }
}

impl Answer for OffsetCommitResponse {
    fn fail(&mut self, error: GroupError) {
        let partitions = self.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
        partitions.for_each(|partition| partition.error_code = error.code());
    }
}

/// One group of OffsetFetch.
impl Answer for OffsetFetchResponseGroup {
    fn fail(&mut self, error: GroupError) {
        let group_id = std::mem::take(&mut self.group_id);
        *self = Self::default().with_group_id(group_id).with_error_code(error.code());
    }
}

impl Answer for OffsetDeleteResponse {
    fn fail(&mut self, error: GroupError) {
        *self = Self::default().with_error_code(error.code());
    }
}

/// DeleteGroups
impl Answer for Vec<DeletableGroupResult> {
    fn fail(&mut self, error: GroupError) {
        self.iter_mut().for_each(|result| result.error_code = error.code());
    }
}

impl Answer for ConsumerGroupHeartbeatResponse {
    fn fail(&mut self, error: GroupError) {
        *self = Self::default().with_error_code(error.code());
    }
}
