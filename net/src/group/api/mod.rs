//! The APIs of groups: from requests to coordinators and back, one file per API.

pub(crate) mod consumer_group_describe;
pub(crate) mod consumer_group_heartbeat;
pub(crate) mod delete_groups;
pub(crate) mod describe_groups;
pub(crate) mod find_coordinator;
pub(crate) mod heartbeat;
pub(crate) mod join_group;
pub(crate) mod leave_group;
pub(crate) mod list_groups;
pub(crate) mod offset_commit;
pub(crate) mod offset_delete;
pub(crate) mod offset_fetch;
pub(crate) mod sync_group;

use uuid::Uuid;

use super::caller::Caller;
use crate::api::{Context, RequestHeader};

/// What an administrator may do with a group as long as nothing is forbidden, as a set of Kafka's AclOperation codes:
/// READ, DELETE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS.
const GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;
/// What is told to who does not ask for that.
const NO_OPERATIONS: i32 = i32::MIN;

fn operations(asked: bool) -> i32 {
    if asked { GROUP_OPERATIONS } else { NO_OPERATIONS }
}

/// Who sent a request.
fn caller(context: &Context, header: &RequestHeader) -> Caller {
    Caller {
        client_id: header.client_id.as_deref().unwrap_or_default().to_owned(),
        client_host: format!("/{}", context.peer.address.ip()),
        version: header.version,
        fresh_id: Uuid::new_v4().to_string(),
    }
}
