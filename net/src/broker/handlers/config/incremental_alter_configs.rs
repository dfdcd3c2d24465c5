//! IncrementalAlterConfigs: changes single settings of a topic or of the broker (KIP-339).

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        incremental_alter_configs_response::AlterConfigsResourceResponse,
    },
};
use millrace_engine::api::ConfigChange;

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        settings::resource::{self, Alteration, Asked},
        table::{Api, OnDisconnect},
    },
    errors::ApiError,
    wire::api::{
        Call, call,
        shape::{BOOL, INT8, STRING, Shape, array},
    },
};

const SHAPE: Shape = &[array(&[INT8, STRING, array(&[STRING, INT8, STRING])]), BOOL];

/// IncrementalAlterConfigs.
pub(crate) static API: Api = Api {
    key: ApiKey::IncrementalAlterConfigs,
    version_min: 0,
    version_max: 1,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Topic, Operation::AlterConfigs),
        (ResourceType::Group, Operation::AlterConfigs),
        (ResourceType::Cluster, Operation::AlterConfigs),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<IncrementalAlterConfigsRequest>) -> IncrementalAlterConfigsResponse {
    let asked = call.body.resources.into_iter().map(asked).collect();
    let answers = resource::alter_all(&context, asked, call.body.validate_only).await;
    let responses = answers.into_iter().map(|(resource_type, name, error)| {
        AlterConfigsResourceResponse::default()
            .with_resource_type(resource_type)
            .with_resource_name(name)
            .with_error_code(error.as_ref().map_or(0, ApiError::code))
            .with_error_message(error.and_then(|error| error.message))
    });
    IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
}

fn asked(resource: AlterConfigsResource) -> Asked {
    let changes = resource.configs.iter().map(change).collect::<Result<_, _>>();
    let alteration = changes.map(Alteration::Incremental);
    Asked {
        resource_type: resource.resource_type,
        name: resource.resource_name,
        settings: resource.configs.into_iter().map(|config| config.name).collect(),
        alteration,
    }
}

fn change(config: &AlterableConfig) -> Result<ConfigChange, ApiError> {
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    const APPEND: i8 = 2;
    const SUBTRACT: i8 = 3;
    let name = config.name.to_string();
    let value = || resource::given(&config.name, config.value.as_ref());
    match config.config_operation {
        SET => Ok(ConfigChange::Set(name, value()?)),
        DELETE => Ok(ConfigChange::Delete(name)),
        APPEND => Ok(ConfigChange::Append(name, value()?)),
        SUBTRACT => Ok(ConfigChange::Subtract(name, value()?)),
        other => Err(ApiError::new(ResponseError::InvalidRequest, format!("Unknown config operation {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::StrBytes;

    use super::*;

    #[test]
    fn operations_need_a_value_but_for_deleting() {
        let config = AlterableConfig::default().with_name(StrBytes::from_static_str("a")).with_value(None);
        assert_eq!(change(&config.clone().with_config_operation(1)), Ok(ConfigChange::Delete("a".to_string())));
        for operation in [0, 2, 3, 4, -1] {
            assert!(change(&config.clone().with_config_operation(operation)).is_err(), "{operation}");
        }
        let config = config.with_value(Some(StrBytes::from_static_str("b")));
        let [name, value] = ["a", "b"].map(str::to_string);
        assert_eq!(change(&config.with_config_operation(3)), Ok(ConfigChange::Subtract(name, value)));
    }
}
