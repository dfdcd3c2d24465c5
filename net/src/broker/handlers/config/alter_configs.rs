//! AlterConfigs: replaces all settings of a topic or of the broker.

use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, ApiKey,
    alter_configs_request::{AlterConfigsResource, AlterableConfig},
    alter_configs_response::AlterConfigsResourceResponse,
};

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

const SHAPE: Shape = &[array(&[INT8, STRING, array(&[STRING, STRING])]), BOOL];

/// AlterConfigs.
pub(crate) static API: Api = Api {
    key: ApiKey::AlterConfigs,
    version_min: 0,
    version_max: 2,
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

async fn handle(context: Context, call: Call<AlterConfigsRequest>) -> AlterConfigsResponse {
    let asked = call.body.resources.into_iter().map(asked).collect();
    let answers = resource::alter_all(&context, asked, call.body.validate_only).await;
    let responses = answers.into_iter().map(|(resource_type, name, error)| {
        AlterConfigsResourceResponse::default()
            .with_resource_type(resource_type)
            .with_resource_name(name)
            .with_error_code(error.as_ref().map_or(0, ApiError::code))
            .with_error_message(error.and_then(|error| error.message))
    });
    AlterConfigsResponse::default().with_responses(responses.collect())
}

fn asked(resource: AlterConfigsResource) -> Asked {
    let setting =
        |config: &AlterableConfig| Ok((config.name.to_string(), resource::given(&config.name, config.value.as_ref())?));
    let settings = resource.configs.iter().map(setting).collect::<Result<_, _>>();
    let alteration = settings.map(Alteration::Replacement);
    Asked {
        resource_type: resource.resource_type,
        name: resource.resource_name,
        settings: resource.configs.into_iter().map(|config| config.name).collect(),
        alteration,
    }
}
