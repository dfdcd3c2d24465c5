//! ApiVersions: what is served, straight from the table.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ApiVersionsRequest, ApiVersionsResponse,
        api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey},
    },
    protocol::StrBytes,
};

use crate::broker::features::{self, Feature};
use crate::feature_levels::finalized_epoch;
use crate::{
    broker::{
        context::{Authorization, Context},
        shard::BrokerShard,
        table::{Api, OnDisconnect, is_served},
    },
    wire::api::{
        Call, Reply, RequestHeader, call, encode,
        shape::{STRING, Shape},
    },
    wire::service::Service,
};

const SHAPE: Shape = &[STRING.since(3), STRING.since(3)];

/// ApiVersions.
pub(crate) static API: Api = Api {
    key: ApiKey::ApiVersions,
    version_min: 0,
    version_max: 4,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Open("Clients ask for it before they say who they are."),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ApiVersionsRequest>) -> ApiVersionsResponse {
    let version = call.version();
    if version >= 3 {
        let (name, software_version) = (call.body.client_software_name, call.body.client_software_version);
        if !is_legal(&name) || !is_legal(&software_version) {
            return ApiVersionsResponse::default().with_error_code(ResponseError::InvalidRequest.code());
        }
        tracing::debug!(peer = %context.peer.origin.address, software = %name, version = %software_version, "client");
        context.session_mut().software = Some((kept(&name), kept(&software_version)));
    }
    let response = ApiVersionsResponse::default().with_api_keys(listed_versions(&context.service));
    if version < 3 {
        return response;
    }
    let features = features::in_force(&context);
    response
        .with_supported_features(features.iter().map(|feature| supported(feature, version)).collect())
        .with_finalized_features_epoch(finalized_epoch(context.engine()))
        .with_finalized_features(features.iter().filter(|feature| feature.level > 0).map(finalized).collect())
}

/// A name of software for as long as its connection lives: a copy, as the name shares memory with its whole request.
fn kept(ascii: &str) -> StrBytes {
    const KEPT_BYTES_MAX: usize = 256;
    StrBytes::from_string(ascii[..ascii.len().min(KEPT_BYTES_MAX)].to_owned())
}

/// Names and versions of software are letters, digits, dots and dashes (KIP-511).
fn is_legal(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    match text.as_bytes() {
        [first, .., last] => {
            first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() && text.bytes().all(is_inner)
        }
        [only] => only.is_ascii_alphanumeric(),
        [] => false,
    }
}

fn listed_versions(shard: &BrokerShard) -> Vec<ApiVersion> {
    BrokerShard::table().iter().filter(|api| is_served(api, shard)).map(|api| listed(api)).collect()
}

fn listed(api: &Api) -> ApiVersion {
    ApiVersion::default()
        .with_api_key(api.key as i16)
        .with_min_version(api.advertised_min)
        .with_max_version(api.version_max)
}

/// Versions before 4 cannot carry a feature whose lowest level is 0 (KIP-1022).
fn supported(feature: &Feature, version: i16) -> SupportedFeatureKey {
    let min = if version < 4 { feature.min.max(1) } else { feature.min };
    SupportedFeatureKey::default()
        .with_name(StrBytes::from_static_str(feature.name))
        .with_min_version(min)
        .with_max_version(feature.max)
}

fn finalized(feature: &Feature) -> FinalizedFeatureKey {
    FinalizedFeatureKey::default()
        .with_name(StrBytes::from_static_str(feature.name))
        .with_min_version_level(feature.level)
        .with_max_version_level(feature.level)
}

/// The answer to a version of ApiVersions that is not served: in version 0, with the range of ApiVersions itself.
pub(crate) fn unsupported(correlation_id: i32) -> Reply {
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(vec![listed(&API)]);
    let header = RequestHeader { version: 0, correlation_id, client_id: None };
    encode(&header, 0, &response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_names_are_checked() {
        for legal in ["a", "apache-kafka-java", "4.3.1", "x.y-z9"] {
            assert!(is_legal(legal), "{legal}");
        }
        for illegal in ["", "-a", "a.", "a b", "é"] {
            assert!(!is_legal(illegal), "{illegal}");
        }
    }

    #[test]
    fn produce_is_advertised_from_zero() {
        let produce = listed(BrokerShard::table()[0]);
        assert_eq!((produce.api_key, produce.min_version, produce.max_version), (0, 0, 13));
    }
}
