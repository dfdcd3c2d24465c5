//! What a broker serves, and how a client finds out. Pure.

use std::collections::HashMap;

use bytes::Bytes;
use kafka_protocol::{
    messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse},
    protocol::{Request, StrBytes, VersionRange},
};

use crate::{
    error_code::UNSUPPORTED_VERSION,
    frame::{ProtocolError, api_name, decode_answer},
};

/// The APIs that a broker serves, and their versions.
#[derive(Debug, Clone, Default)]
pub struct Versions {
    by_key: HashMap<i16, VersionRange>,
}

impl Versions {
    fn new(response: &ApiVersionsResponse) -> Self {
        let range = |min, max| VersionRange { min, max };
        Self { by_key: response.api_keys.iter().map(|k| (k.api_key, range(k.min_version, k.max_version))).collect() }
    }

    /// All of them, by key.
    pub fn listed(&self) -> Vec<(i16, VersionRange)> {
        let mut apis: Vec<_> = self.by_key.iter().map(|(key, range)| (*key, *range)).collect();
        apis.sort_by_key(|(key, _)| *key);
        apis
    }

    /// The highest version of a request that both sides know.
    pub fn common<R: Request>(&self) -> Option<i16> {
        self.common_up_to::<R>(version_limit(R::KEY))
    }

    /// The same, for who knows only versions up to `limit`.
    pub fn common_up_to<R: Request>(&self, limit: i16) -> Option<i16> {
        let known = VersionRange { min: R::VERSIONS.min, max: R::VERSIONS.max.min(limit) };
        let both = self.by_key.get(&R::KEY)?.intersect(&known);
        (!both.is_empty()).then_some(both.max)
    }
}

/// Newest version of an API that this client knows how to fill in: from the next one on, these requests have topics by
/// id only, or (DeleteTopics) in another field.
fn version_limit(api_key: i16) -> i16 {
    match ApiKey::try_from(api_key) {
        Ok(ApiKey::Produce | ApiKey::Fetch) => 12,
        Ok(ApiKey::DeleteTopics) => 5,
        Ok(ApiKey::OffsetCommit | ApiKey::OffsetFetch) => 9,
        _ => i16::MAX,
    }
}

/// The first requests of a connection: asks for versions in a form that brokers of every age understand.
///
/// Send [`Negotiation::request`] in [`Negotiation::version`], give the answer to [`Negotiation::handle_answer`], and
/// begin again while it has no outcome: at most twice.
#[derive(Debug)]
pub struct Negotiation {
    version: i16,
}

impl Negotiation {
    /// Asks in the newest form first.
    pub fn new() -> Self {
        Self { version: 3 }
    }

    /// The version to ask in.
    pub fn version(&self) -> i16 {
        self.version
    }

    /// What to ask.
    pub fn request(&self) -> ApiVersionsRequest {
        match self.version {
            0 => ApiVersionsRequest::default(),
            _ => ApiVersionsRequest::default()
                .with_client_software_name(StrBytes::from_static_str("millrace"))
                .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION"))),
        }
    }

    /// The version that an answer to the request is in.
    pub fn answer_version(&self, answer: &[u8]) -> i16 {
        // A broker that does not know this version says so in the oldest one, error code first.
        let code = answer.get(4..6).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
        if code == Some(UNSUPPORTED_VERSION) { 0 } else { self.version }
    }

    /// Takes the answer, from the correlation id on. `Ok(Err(..))` is a refusal by an error code, `None` that it has to
    /// be asked again.
    pub fn handle_answer(&mut self, answer: Bytes) -> Result<Option<Result<Versions, i16>>, ProtocolError> {
        if self.answer_version(&answer) != self.version {
            self.version = 0;
            return Ok(None);
        }
        check_count(&answer, self.version)?;
        let response = decode_answer::<ApiVersionsRequest>(answer, self.version)?;
        Ok(Some(match response.error_code {
            0 => Ok(Versions::new(&response)),
            code => Err(code),
        }))
    }
}

/// The first answer is the one that may come from anything that is no broker: a count of APIs that the answer has no room
/// for is refused before the message library makes room for them.
fn check_count(answer: &[u8], version: i16) -> Result<(), ProtocolError> {
    /// Each has a key and two versions.
    const API_BYTES_MIN: usize = 6;
    let counted = answer.get(6..).unwrap_or_default();
    let count = match version {
        0..=2 => counted.first_chunk().map_or(0, |count| u32::from_be_bytes(*count)),
        // Anything that takes more than two bytes is more than there are keys.
        _ => match counted {
            [low, ..] if *low < 0x80 => u32::from(*low),
            [low, high, ..] if *high < 0x80 => u32::from(low & 0x7f) | u32::from(*high) << 7,
            [] | [_] => 0,
            _ => u32::MAX,
        },
    };
    let room = counted.len() / API_BYTES_MIN;
    match usize::try_from(count).is_ok_and(|count| count <= room + 1) {
        true => Ok(()),
        false => {
            let reason = format!("{count} APIs in {} bytes", answer.len());
            Err(ProtocolError::Decode { api: api_name(ApiVersionsRequest::KEY), version, reason })
        }
    }
}

impl Default for Negotiation {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::{
        messages::{
            FetchRequest, HeartbeatRequest, MetadataRequest, ProduceRequest, api_versions_response::ApiVersion,
        },
        protocol::{Encodable, Message},
    };

    use super::*;

    fn answer(version: i16, code: i16, apis: &[(ApiKey, i16, i16)]) -> Bytes {
        let api = |(key, min, max): &(ApiKey, i16, i16)| {
            ApiVersion::default().with_api_key(*key as i16).with_min_version(*min).with_max_version(*max)
        };
        let mut bytes = vec![0; 4];
        let response =
            ApiVersionsResponse::default().with_error_code(code).with_api_keys(apis.iter().map(api).collect());
        response.encode(&mut bytes, version).unwrap();
        bytes.into()
    }

    #[test]
    fn the_highest_common_version_is_used() {
        let apis = [(ApiKey::Metadata, 0, 99), (ApiKey::Fetch, 4, 18), (ApiKey::Produce, 50, 60)];
        let versions = Negotiation::new().handle_answer(answer(3, 0, &apis)).unwrap().unwrap().unwrap();
        assert_eq!(versions.common::<MetadataRequest>(), Some(MetadataRequest::VERSIONS.max));
        assert_eq!(versions.common::<FetchRequest>(), Some(12));
        assert_eq!(versions.common_up_to::<FetchRequest>(7), Some(7));
        assert_eq!(versions.common_up_to::<FetchRequest>(3), None);
        assert_eq!(versions.common::<ProduceRequest>(), None);
        assert_eq!(versions.common::<HeartbeatRequest>(), None);
        let keys: Vec<i16> = versions.listed().iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, [0, 1, 3]);
    }

    #[test]
    fn an_old_broker_is_asked_again_in_the_oldest_version_and_not_more_often() {
        let mut negotiation = Negotiation::new();
        assert_eq!(negotiation.version(), 3);
        let unsupported = || answer(0, UNSUPPORTED_VERSION, &[]);
        assert!(negotiation.handle_answer(unsupported()).unwrap().is_none());
        assert_eq!((negotiation.version(), negotiation.request()), (0, ApiVersionsRequest::default()));
        let refused = negotiation.handle_answer(unsupported()).unwrap().unwrap();
        assert_eq!(refused.unwrap_err(), UNSUPPORTED_VERSION);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(Negotiation::new().handle_answer(Bytes::from_static(&[0xff; 30])).is_err());
        assert!(Negotiation::new().handle_answer(Bytes::from_static(&[0; 4])).is_err());
        let oldest = Negotiation { version: 0 }.handle_answer(Bytes::from_static(b"\0\0\0\x01\0\0\x7f\xff\xff\xff"));
        assert!(oldest.is_err());
    }
}
