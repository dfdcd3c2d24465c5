//! GetTelemetrySubscriptions: which metrics a client is to push, how often (KIP-714).

use kafka_protocol::{
    messages::{ApiKey, GetTelemetrySubscriptionsRequest, GetTelemetrySubscriptionsResponse},
    protocol::StrBytes,
};
use millrace_engine::batch::Codec;
use uuid::Uuid;

use crate::{
    broker::{
        context::{Authorization, Context},
        table::{Api, OnDisconnect},
        telemetry::{self, Attributes, Caller, TELEMETRY_BYTES_MAX},
    },
    kafka_uuid::kafka_uuid,
    wire::api::{
        Call, RequestHeader, call,
        shape::{Shape, UUID},
    },
};

const SHAPE: Shape = &[UUID];

/// GetTelemetrySubscriptions.
pub(crate) static API: Api = Api {
    key: ApiKey::GetTelemetrySubscriptions,
    version_min: 0,
    version_max: 0,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Open("A client tells of itself only."),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// In the order of preference, as Kafka has them.
const COMPRESSIONS: [Codec; 4] = [Codec::Zstd, Codec::Lz4, Codec::Gzip, Codec::Snappy];

async fn handle(context: Context, call: Call<GetTelemetrySubscriptionsRequest>) -> GetTelemetrySubscriptionsResponse {
    let make_caller = |id| caller(&context, &call.header, id);
    let granted = telemetry::get(context.engine(), call.body.client_instance_id, make_caller).await;
    let response = GetTelemetrySubscriptionsResponse::default();
    let (id, granted) = match granted {
        Ok(granted) => granted,
        Err(error) => return response.with_error_code(error.code()),
    };
    response
        .with_client_instance_id(id)
        .with_subscription_id(granted.subscription_id)
        .with_accepted_compression_types(COMPRESSIONS.iter().map(|codec| *codec as i8).collect())
        .with_push_interval_ms(granted.asked.interval_ms)
        .with_telemetry_max_bytes(i32::try_from(TELEMETRY_BYTES_MAX).expect("a small size"))
        .with_delta_temporality(true)
        .with_requested_metrics(granted.asked.metrics.into_iter().map(StrBytes::from_string).collect())
}

/// Who sent a request.
pub(super) fn caller(context: &Context, header: &RequestHeader, id: Uuid) -> Caller {
    let origin = context.peer.origin;
    let mut session = context.session_mut();
    session.pushes_telemetry = true;
    let software = session.software.clone();
    Caller {
        attributes: Attributes {
            client_instance_id: kafka_uuid(id),
            client_id: header.client_id.as_ref().map(ToString::to_string),
            software: software.map(|(name, version)| (name.to_string(), version.to_string())),
            source_address: origin.address.ip().to_canonical().to_string(),
            source_port: origin.address.port(),
        },
        connection: origin.connection,
    }
}
