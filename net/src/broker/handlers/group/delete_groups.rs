//! DeleteGroups: groups without members, with their offsets.

use kafka_protocol::messages::{
    ApiKey, DeleteGroupsRequest, DeleteGroupsResponse, delete_groups_response::DeletableGroupResult,
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::group::{Groups, strings::wire},
    wire::api::{
        Call, call,
        shape::{STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRINGS];

/// DeleteGroups.
pub(crate) static API: Api = Api {
    key: ApiKey::DeleteGroups,
    version_min: 0,
    version_max: 2,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Group, Operation::Delete)]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DeleteGroupsRequest>) -> DeleteGroupsResponse {
    let groups = call.body.groups_names.iter().map(|group| group.to_string()).collect();
    let results = super::on_groups(groups, async |group| {
        let failed = |error: kafka_protocol::error::ResponseError| {
            let result =
                DeletableGroupResult::default().with_group_id(wire(&group).into()).with_error_code(error.code());
            vec![result]
        };
        if let Err(error) = context.group(&group, Operation::Delete) {
            return failed(error);
        }
        if let Err(error) = crate::broker::handlers::share::delete_group_state(context.engine(), &group).await {
            return failed(error);
        }
        let ids = vec![group.clone()];
        let reply = Groups::ask_for(context.engine(), &group, move |coordinator, _, ticket| {
            coordinator.handle_delete_groups(&ids, ticket);
        });
        match reply.await {
            Ok(results) => results,
            Err(error) => failed(error),
        }
    });
    DeleteGroupsResponse::default().with_results(results.await.into_iter().flatten().collect())
}
