//! FindCoordinator: the broker to talk to about a group.

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, BrokerId, FindCoordinatorRequest, FindCoordinatorResponse, find_coordinator_response::Coordinator,
    },
    protocol::StrBytes,
};

use crate::{
    api::{
        Api, Call, Context, OnDisconnect, call,
        shape::{INT8, STRING, STRINGS, Shape},
    },
    cluster::{self, Broker},
    config::Advertise,
    group::{shell, strings::wire},
};

const SHAPE: Shape = &[STRING.until(3), INT8.since(1), STRINGS.since(4)];

/// FindCoordinator.
pub(crate) static API: Api = Api {
    key: ApiKey::FindCoordinator,
    version_min: 0,
    version_max: 6,
    advertised_min: 0,
    shape: Some(SHAPE),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// First version that asks for many keys.
const KEYS_VERSION: i16 = 4;
/// Key type of groups; the others are not served.
const GROUP: i8 = 0;

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
                .with_error_message(found.err().map(|error| wire(&error.to_string())))
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
            .with_error_message(Some(wire(&error.to_string()))),
    }
}

async fn find(context: &Context, key_type: i8, key: &str) -> Result<Broker, ResponseError> {
    if key_type != GROUP {
        return Err(ResponseError::InvalidRequest);
    }
    let engine = context.engine();
    let shard = shell::coordinator_shard(engine, key).await?;
    let id = match context.config().advertise {
        Advertise::Node => BrokerId(engine.node_id()),
        Advertise::Shard { .. } => cluster::shard_broker(engine, shard),
    };
    let brokers = cluster::brokers(engine, context.config());
    brokers.into_iter().find(|broker| broker.id == id).ok_or(ResponseError::CoordinatorNotAvailable)
}
