//! UpdateFeatures: another level of `transaction.version`. Levels of all other features are fixed by what the node serves:
//! asking for the one in force changes nothing, anything else is refused.

use std::collections::BTreeMap;

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
        cluster::Whose,
        context::{Authorization, Context, Operation, ResourceType},
        features::{self, Feature},
        table::{Api, OnDisconnect},
    },
    errors::ApiError,
    feature_levels::{TRANSACTION_VERSION, finalize_transaction_version},
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
    let features = features::in_force(&context);
    if let Some(reason) = call.body.feature_updates.iter().find_map(|update| refusal(&features, update, node)) {
        let message = format!("The update failed for all features since the following feature had an error: {reason}");
        return response
            .with_error_code(ResponseError::InvalidUpdateVersion.code())
            .with_error_message(Some(StrBytes::from_string(message)));
    }
    if let Err(error) = change(&context, &features, &call.body).await {
        return response.with_error_code(error.code()).with_error_message(error.message);
    }
    if call.version() >= 2 {
        return response;
    }
    let results = call.body.feature_updates.into_iter();
    let results =
        results.map(|update| UpdatableFeatureResult::default().with_feature(update.feature).with_error_message(None));
    response.with_results(results.collect())
}

/// Makes the one change that there can be durable.
async fn change(context: &Context, features: &[Feature], request: &UpdateFeaturesRequest) -> Result<(), ApiError> {
    let wanted = request.feature_updates.iter().find(|update| &*update.feature == TRANSACTION_VERSION);
    let Some(level) = wanted.map(|update| update.max_version_level) else { return Ok(()) };
    let is_in_force = features.iter().any(|feature| feature.name == TRANSACTION_VERSION && feature.level == level);
    if is_in_force {
        return Ok(());
    }
    let decide = move |kept: &BTreeMap<String, String>| Ok(finalize_transaction_version(kept, level));
    context.administration().change_settings(Whose::Here, request.validate_only, decide).await
}

/// Kinds of updates that may lower a level (KIP-584): safe and unsafe downgrades.
const DOWNGRADES: [i8; 2] = [2, 3];

fn refusal(features: &[Feature], update: &FeatureUpdateKey, node: i32) -> Option<String> {
    let (name, level) = (&*update.feature, update.max_version_level);
    let Some(feature) = features.iter().find(|feature| feature.name == name) else {
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
    if level == feature.level {
        return None;
    }
    if name != TRANSACTION_VERSION {
        return Some(format!(
            "Invalid update version {level} for feature {name}. Its level is {} and cannot be changed.",
            feature.level
        ));
    }
    let may_lower = update.allow_downgrade || DOWNGRADES.contains(&update.upgrade_type);
    (level < feature.level && !may_lower).then(|| {
        format!(
            "Invalid update version {level} for feature {name}. Can't downgrade the version of this feature without \
             setting the upgrade type to either safe or unsafe downgrade."
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(name: &'static str, level: i16) -> FeatureUpdateKey {
        let name = StrBytes::from_static_str(name);
        FeatureUpdateKey::default().with_feature(name).with_max_version_level(level).with_upgrade_type(1)
    }

    const FEATURES: [Feature; 3] = [
        Feature { name: "metadata.version", min: 7, max: 30, level: 30 },
        Feature { name: "kraft.version", min: 0, max: 1, level: 0 },
        Feature { name: TRANSACTION_VERSION, min: 0, max: 2, level: 1 },
    ];

    #[test]
    fn of_fixed_features_only_the_level_in_force_is_accepted() {
        assert_eq!(refusal(&FEATURES, &update("metadata.version", 30), 1), None);
        for (name, level) in [("metadata.version", 29), ("metadata.version", 31), ("kraft.version", 1), ("nope", 1)] {
            assert!(refusal(&FEATURES, &update(name, level), 1).is_some(), "{name} {level}");
        }
    }

    #[test]
    fn the_level_of_transactions_goes_up_and_down_when_that_is_said() {
        let refused = |update: &FeatureUpdateKey| refusal(&FEATURES, update, 1).is_some();
        assert!(!refused(&update(TRANSACTION_VERSION, 2)) && !refused(&update(TRANSACTION_VERSION, 1)));
        assert!(refused(&update(TRANSACTION_VERSION, 3)) && refused(&update(TRANSACTION_VERSION, 0)));
        for lowered in [2, 3] {
            assert!(!refused(&update(TRANSACTION_VERSION, 0).with_upgrade_type(lowered)));
        }
    }
}
