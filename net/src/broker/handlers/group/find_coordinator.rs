//! FindCoordinator: the broker to talk to about a group or a transactional id.

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, BrokerId, FindCoordinatorRequest, FindCoordinatorResponse, find_coordinator_response::Coordinator,
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        cluster::Broker,
        context::{Authorization, Context, Operation, ResourceType},
        handlers,
        table::{Api, OnDisconnect},
    },
    coordinator::{group::Groups, transaction::Transactions},
    errors::ApiError,
    wire::api::{
        Call, call,
        shape::{INT8, STRING, STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRING.until(3), INT8.since(1), STRINGS.since(4)];

/// FindCoordinator.
pub(crate) static API: Api = Api {
    key: ApiKey::FindCoordinator,
    version_min: 0,
    version_max: 6,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Describe),
        (ResourceType::Cluster, Operation::ClusterAction),
        (ResourceType::TransactionalId, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// First version that asks for many keys.
const KEYS_VERSION: i16 = 4;
/// Key type of groups.
const GROUP: i8 = 0;
/// Key type of transactional ids.
const TRANSACTION: i8 = 1;
/// Key type of share partitions (KIP-932).
const SHARE: i8 = 2;

async fn handle(context: Context, call: Call<FindCoordinatorRequest>) -> FindCoordinatorResponse {
    let key_type = call.body.key_type;
    if call.version() >= KEYS_VERSION {
        let keys = call.body.coordinator_keys.iter();
        let found = keys.map(|key| async {
            let found = find(&context, key_type, key).await;
            let broker = found.as_ref().ok();
            Coordinator::default()
                .with_key(key.clone())
                .with_node_id(broker.map_or(BrokerId(-1), |broker| broker.id))
                .with_host(broker.map_or_else(StrBytes::default, |broker| broker.host.clone()))
                .with_port(broker.map_or(-1, |broker| broker.port))
                .with_error_code(found.as_ref().err().map_or(0, |error| error.code()))
                .with_error_message(found.err().map(|error| error.message.unwrap_or_default()))
        });
        return FindCoordinatorResponse::default().with_coordinators(futures_util::future::join_all(found).await);
    }
    match find(&context, key_type, &call.body.key).await {
        Ok(broker) => {
            FindCoordinatorResponse::default().with_node_id(broker.id).with_host(broker.host).with_port(broker.port)
        }
        Err(error) => FindCoordinatorResponse::default()
            .with_node_id(BrokerId(-1))
            .with_port(-1)
            .with_error_code(error.code())
            .with_error_message(Some(error.message.unwrap_or_default())),
    }
}

async fn find(context: &Context, key_type: i8, key: &str) -> Result<Broker, ApiError> {
    let engine = context.engine();
    let partition = match key_type {
        GROUP => {
            let group = context.group(key, Operation::Describe)?;
            Groups::locate(engine, &group).await?
        }
        SHARE => {
            context.cluster(Operation::ClusterAction)?;
            handlers::share::coordinator_partition(engine, key).await?
        }
        TRANSACTION => {
            let id = context.transactional_id(key, Operation::Describe)?;
            if id.is_empty() {
                return Err(ResponseError::InvalidRequest.into());
            }
            Transactions::locate(engine, &id).await?
        }
        _ => return Err(ResponseError::InvalidRequest.into()),
    };
    let view = context.view();
    let leader = view.partition(partition).leader.ok();
    leader.and_then(|leader| view.broker(leader)).ok_or_else(|| ResponseError::CoordinatorNotAvailable.into())
}
