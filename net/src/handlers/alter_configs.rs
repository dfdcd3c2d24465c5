//! AlterConfigs: replaces all settings of a topic or of the broker.

use std::collections::HashMap;

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterConfigsRequest, AlterConfigsResponse, ApiKey, alter_configs_request::AlterConfigsResource,
        alter_configs_response::AlterConfigsResourceResponse,
    },
};

use crate::{
    api::{
        Api, Call, Context, OnDisconnect, call,
        shape::{BOOL, INT8, STRING, Shape, array},
    },
    config_resource::{self, Alteration},
    errors::ApiError,
};

const SHAPE: Shape = &[array(&[INT8, STRING, array(&[STRING, STRING])]), BOOL];

/// AlterConfigs.
pub(crate) static API: Api = Api {
    key: ApiKey::AlterConfigs,
    version_min: 0,
    version_max: 2,
    advertised_min: 0,
    shape: Some(SHAPE),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<AlterConfigsRequest>) -> AlterConfigsResponse {
    let key = |resource: &AlterConfigsResource| (resource.resource_type, resource.resource_name.clone());
    let mut counts: HashMap<_, usize> = HashMap::new();
    for resource in &call.body.resources {
        *counts.entry(key(resource)).or_default() += 1;
    }
    let mut responses = Vec::with_capacity(call.body.resources.len());
    for resource in &call.body.resources {
        let outcome = if counts[&key(resource)] > 1 {
            Err(ApiError::new(ResponseError::InvalidRequest, "Each resource must appear at most once."))
        } else {
            alter(&context, resource, call.body.validate_only).await
        };
        let response = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        responses.push(match outcome {
            Ok(()) => response.with_error_message(None),
            Err(error) => response.with_error_code(error.code()).with_error_message(error.message),
        });
    }
    AlterConfigsResponse::default().with_responses(responses)
}

async fn alter(context: &Context, resource: &AlterConfigsResource, validate_only: bool) -> Result<(), ApiError> {
    config_resource::check_no_duplicates(resource.configs.iter().map(|config| &*config.name))?;
    let settings = resource.configs.iter().map(|config| match &config.value {
        Some(value) => Ok((config.name.to_string(), value.to_string())),
        None => Err(config_resource::null_value(&config.name)),
    });
    let alteration = Alteration::Replacement(settings.collect::<Result<_, _>>()?);
    config_resource::alter(context, (resource.resource_type, &resource.resource_name), alteration, validate_only).await
}
