//! DescribeClientQuotas: there are no quotas.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DescribeClientQuotasRequest, DescribeClientQuotasResponse,
        describe_client_quotas_request::ComponentData,
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    errors::ApiError,
    wire::api::{
        Call, call,
        shape::{BOOL, INT8, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[array(&[STRING, INT8, STRING]), BOOL];

/// DescribeClientQuotas.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeClientQuotas,
    version_min: 0,
    version_max: 1,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::DescribeConfigs)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<DescribeClientQuotasRequest>) -> DescribeClientQuotasResponse {
    let response = DescribeClientQuotasResponse::default();
    let checked = match context.cluster(Operation::DescribeConfigs) {
        Ok(_) => check(&call.body.components),
        Err(error) => Err(error.into()),
    };
    match checked {
        Ok(()) => response.with_error_message(Some(StrBytes::new())).with_entries(Some(Vec::new())),
        Err(error) => response.with_error_code(error.code()).with_error_message(error.message).with_entries(None),
    }
}

fn check(components: &[ComponentData]) -> Result<(), ApiError> {
    let refuse = |reason: String| Err(ApiError::new(ResponseError::InvalidRequest, reason));
    for (at, component) in components.iter().enumerate() {
        let entity_type = &*component.entity_type;
        if !matches!(entity_type, "user" | "client-id" | "ip") {
            let reason = format!("Unsupported entity type {entity_type}");
            return Err(ApiError::new(ResponseError::UnsupportedVersion, reason));
        }
        if components[..at].iter().any(|other| other.entity_type == component.entity_type) {
            return refuse(format!("Entity type {entity_type} is named twice"));
        }
        if !matches!(component.match_type, 0..=2) {
            return refuse(format!("Unknown match type {}", component.match_type));
        }
    }
    let has = |entity_type: &str| components.iter().any(|component| &*component.entity_type == entity_type);
    if has("ip") && components.len() > 1 {
        return refuse("Entity type ip cannot be combined with others".to_string());
    }
    Ok(())
}
