//! ListGroups: all groups of the node, or of the shard that is asked where each shard is a broker of its own.

use kafka_protocol::messages::{ApiKey, ListGroupsRequest, ListGroupsResponse, list_groups_response::ListedGroup};

use crate::{
    broker::{
        config::Advertise,
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{Groups, coordinator::GroupFilter},
    wire::api::{
        Call, call,
        shape::{STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRINGS.since(4), STRINGS.since(5)];

/// ListGroups.
pub(crate) static API: Api = Api {
    key: ApiKey::ListGroups,
    version_min: 0,
    version_max: 5,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Cluster, Operation::Describe),
        (ResourceType::Group, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ListGroupsRequest>) -> ListGroupsResponse {
    let lower =
        |names: &[kafka_protocol::protocol::StrBytes]| names.iter().map(|name| name.trim().to_lowercase()).collect();
    let filter = GroupFilter { states: lower(&call.body.states_filter), types: lower(&call.body.types_filter) };
    let engine = context.engine();
    // a client asks every broker: two must not tell of the same group
    let shards = match context.config().advertise {
        Advertise::Node => (0..engine.shards()).collect(),
        Advertise::Shard => vec![engine.shard()],
    };
    let (groups, error) = Groups::read_all(engine, shards, move |coordinator| coordinator.list(&filter)).await;
    let sees_all = context.cluster(Operation::Describe).is_ok();
    let is_seen = |group: &ListedGroup| sees_all || context.group(&group.group_id, Operation::Describe).is_ok();
    let groups = groups.into_iter().filter(is_seen).collect();
    ListGroupsResponse::default().with_groups(groups).with_error_code(error.map_or(0, |error| error.code()))
}
