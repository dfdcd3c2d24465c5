//! UpdateFeatures: levels of features are fixed by what the node serves; asking for the level in force changes nothing,
//! anything else is refused.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, UpdateFeaturesRequest, UpdateFeaturesResponse, update_features_request::FeatureUpdateKey,
        update_features_response::UpdatableFeatureResult,
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        features::{self, Feature},
        table::{Api, OnDisconnect},
    },
    wire::api::{
        Call, call,
        shape::{BOOL, INT8, INT16, INT32, STRING, Shape, array},
    },
};

const UPDATE: Shape = &[STRING, INT16, BOOL.until(0), INT8.since(1)];
const SHAPE: Shape = &[INT32, array(UPDATE), BOOL.since(1)];

/// UpdateFeatures.
pub(crate) static API: Api = Api {
    key: ApiKey::UpdateFeatures,
    version_min: 0,
    version_max: 2,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Alter)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<UpdateFeaturesRequest>) -> UpdateFeaturesResponse {
    let response = UpdateFeaturesResponse::default().with_error_message(None);
    let code = context.cluster_code(Operation::Alter);
    if code != 0 {
        return response.with_error_code(code);
    }
    let node = context.engine().node_id();
    let known: Vec<_> = features::of(&context.service.membership).collect();
    if let Some(reason) = call.body.feature_updates.iter().find_map(|update| refusal(update, node, &known)) {
        let message = format!("The update failed for all features since the following feature had an error: {reason}");
        return response
            .with_error_code(ResponseError::InvalidUpdateVersion.code())
            .with_error_message(Some(StrBytes::from_string(message)));
    }
    if call.version() >= 2 {
        return response;
    }
    let results = call.body.feature_updates.into_iter();
    let results =
        results.map(|update| UpdatableFeatureResult::default().with_feature(update.feature).with_error_message(None));
    response.with_results(results.collect())
}

fn refusal(update: &FeatureUpdateKey, node: i32, known: &[&Feature]) -> Option<String> {
    let (name, level) = (&*update.feature, update.max_version_level);
    let Some(feature) = known.iter().find(|feature| feature.name == name) else {
        return Some(format!(
            "Invalid update version {level} for feature {name}. Local controller {node} does not support this feature."
        ));
    };
    if level < feature.min || level > feature.max {
        return Some(format!(
            "Invalid update version {level} for feature {name}. Local controller {node} only supports versions {}-{}",
            feature.min, feature.max
        ));
    }
    (level != feature.level).then(|| {
        format!(
            "Invalid update version {level} for feature {name}. Its level is {} and cannot be changed.",
            feature.level
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::cluster::Membership;

    #[test]
    fn only_the_level_in_force_is_accepted() {
        let update = |name, level| {
            let name = StrBytes::from_static_str(name);
            FeatureUpdateKey::default().with_feature(name).with_max_version_level(level)
        };
        let known: Vec<_> = features::of(&Membership::Alone).collect();
        assert_eq!(refusal(&update("metadata.version", 30), 1, &known), None);
        for (name, level) in [("metadata.version", 29), ("metadata.version", 31), ("kraft.version", 1), ("nope", 1)] {
            assert!(refusal(&update(name, level), 1, &known).is_some(), "{name} {level}");
        }
    }
}
