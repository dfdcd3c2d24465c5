//! PushTelemetry: metrics of a client (KIP-714), to be shown on the page of metrics.

use kafka_protocol::messages::{ApiKey, PushTelemetryRequest, PushTelemetryResponse};

use super::get_telemetry_subscriptions::caller;
use crate::{
    broker::{
        context::{Authorization, Context},
        table::{Api, OnDisconnect},
        telemetry::{self, Push},
    },
    wire::api::{
        Call, call,
        shape::{BOOL, BYTES, INT8, INT32, Shape, UUID},
    },
};

const SHAPE: Shape = &[UUID, INT32, BOOL, INT8, BYTES];

/// PushTelemetry. A client that ends does not wait for the answer to its last push.
pub(crate) static API: Api = Api {
    key: ApiKey::PushTelemetry,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Open("A client tells of itself only."),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<PushTelemetryRequest>) -> PushTelemetryResponse {
    let id = call.body.client_instance_id;
    let caller = caller(&context, &call.header, id);
    let push = Push {
        subscription_id: call.body.subscription_id,
        is_terminating: call.body.terminating,
        compression: call.body.compression_type,
        metrics: call.body.metrics,
    };
    let pushed = telemetry::push(context.engine(), id, caller, push).await;
    PushTelemetryResponse::default().with_error_code(pushed.map_or_else(|error| error.code(), |()| 0))
}
