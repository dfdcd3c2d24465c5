//! The gateway's messages, as far as they are used. What is false, 0 or empty is left out of answers.

use std::str::FromStr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::cluster::store::{self, StoreError};

/// Bytes as the gateway writes them.
pub(super) fn bytes(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// 64-bit numbers are text, to be safe from JavaScript; small ones are numbers in some versions.
fn number<'de, D: Deserializer<'de>, N: FromStr + TryFrom<i64>>(from: D) -> Result<N, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(i64),
    }
    match Either::deserialize(from)? {
        Either::Text(text) => text.parse().map_err(|_| Error::custom(format!("'{text}' is no number"))),
        Either::Number(number) => N::try_from(number).map_err(|_| Error::custom(format!("{number} is out of range"))),
    }
}

#[derive(Serialize)]
pub(super) struct Empty {}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub(super) revision: i64,
}

impl Header {
    /// The revision; every answer to what this is asked of has one.
    pub(super) fn known_revision(&self) -> Result<i64, StoreError> {
        match self.revision {
            0 => Err(StoreError::Nonsense("an answer without a revision".to_owned())),
            revision => Ok(revision),
        }
    }
}

/// An answer of which only the header counts.
#[derive(Deserialize, Debug)]
pub(super) struct Keyed<H> {
    #[expect(dead_code, reason = "read to see that it is an answer")]
    pub(super) header: H,
}

/// What comes in pieces, even if it is one.
#[derive(Deserialize, Debug)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<Failure>,
}

impl<T> Streamed<T> {
    pub(super) fn into_result(self) -> Result<T, StoreError> {
        match (self.result, self.error) {
            (Some(result), _) => Ok(result),
            (None, Some(error)) => Err(error.into_error()),
            (None, None) => Err(StoreError::Nonsense("neither a result nor an error".to_owned())),
        }
    }
}

/// An error, as the gateway says it: of a call, and in a stream.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct Failure {
    code: i32,
    grpc_code: i32,
    message: String,
    error: String,
}

/// gRPC's codes that mean something here.
mod grpc {
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const INTERNAL: i32 = 13;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
    /// Cancelled and unknown: said while a server stops.
    pub(super) const VAGUE: [i32; 2] = [1, 2];
}

impl Failure {
    fn code(&self) -> i32 {
        if self.code == 0 { self.grpc_code } else { self.code }
    }

    pub(super) fn text(&self) -> &str {
        if self.message.is_empty() { &self.error } else { &self.message }
    }

    /// The token that was sent is no good, or none was sent.
    pub(super) fn wants_token(&self) -> bool {
        self.code() == grpc::UNAUTHENTICATED || self.text().contains("invalid auth token")
    }

    pub(super) fn into_error(self) -> StoreError {
        let text = self.text().to_owned();
        match self.code() {
            grpc::OUT_OF_RANGE if text.contains("compacted") => StoreError::Compacted(0),
            grpc::RESOURCE_EXHAUSTED if text.contains("space exceeded") => StoreError::Full(text),
            grpc::NOT_FOUND if text.contains("lease not found") => StoreError::LeaseOver,
            grpc::DEADLINE_EXCEEDED | grpc::UNAVAILABLE | grpc::INTERNAL => StoreError::Away(text),
            vague if grpc::VAGUE.contains(&vague) => StoreError::Away(text),
            _ => StoreError::Refused(text),
        }
    }
}

#[derive(Serialize)]
pub(super) struct AuthenticateRequest<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[derive(Deserialize)]
pub(super) struct AuthenticateResponse {
    pub(super) token: String,
}

#[derive(Serialize)]
pub(super) struct TxnRequest {
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<RequestOp>,
}

#[derive(Serialize)]
pub(super) struct Compare {
    pub(super) key: String,
    /// `None`: `EQUAL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<&'static str>,
    pub(super) target: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) create_revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mod_revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum RequestOp {
    Put { request_put: PutRequest },
    Delete { request_delete_range: DeleteRangeRequest },
}

#[derive(Serialize)]
pub(super) struct PutRequest {
    pub(super) key: String,
    pub(super) value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lease: Option<String>,
}

#[derive(Serialize)]
pub(super) struct DeleteRangeRequest {
    pub(super) key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct TxnResponse {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
}

#[derive(Serialize)]
pub(super) struct RangeRequest {
    pub(super) key: String,
    pub(super) range_end: String,
    pub(super) limit: String,
    pub(super) revision: String,
}

#[derive(Deserialize)]
pub(super) struct RangeResponse {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct KeyValue {
    key: String,
    value: String,
    #[serde(deserialize_with = "number")]
    create_revision: i64,
    #[serde(deserialize_with = "number")]
    mod_revision: i64,
    #[serde(deserialize_with = "number")]
    version: i64,
    #[serde(deserialize_with = "number")]
    lease: i64,
}

impl KeyValue {
    pub(super) fn revision(&self) -> i64 {
        self.mod_revision
    }

    /// The key without the prefix that all have.
    pub(super) fn name(&self, prefix: &str) -> Result<String, StoreError> {
        let nonsense = |what: &str| StoreError::Nonsense(format!("a key {what}: {}", self.key));
        let key = STANDARD.decode(&self.key).map_err(|_| nonsense("that is not base64"))?;
        let key = String::from_utf8(key).map_err(|_| nonsense("that is not text"))?;
        key.strip_prefix(prefix).map(str::to_owned).ok_or_else(|| nonsense("that was not asked for"))
    }

    pub(super) fn into_entry(self, prefix: &str) -> Result<store::KeyValue, StoreError> {
        let key = self.name(prefix)?;
        let value = STANDARD.decode(&self.value);
        Ok(store::KeyValue {
            value: value.map_err(|_| StoreError::Nonsense(format!("the value of {key} is not base64")))?,
            key,
            created: self.create_revision,
            modified: self.mod_revision,
            version: self.version,
            lease: self.lease,
        })
    }
}

#[derive(Serialize)]
pub(super) struct WatchRequest {
    pub(super) create_request: WatchCreateRequest,
}

#[derive(Serialize)]
pub(super) struct WatchCreateRequest {
    pub(super) key: String,
    pub(super) range_end: String,
    pub(super) start_revision: String,
}

#[derive(Deserialize, Debug)]
pub(super) struct WatchResponse {
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(default, deserialize_with = "number")]
    pub(super) compact_revision: i64,
    #[serde(default)]
    pub(super) cancel_reason: String,
    #[serde(default)]
    pub(super) events: Vec<WatchEvent>,
}

#[derive(Deserialize, Debug)]
pub(super) struct WatchEvent {
    /// `DELETE`, or left out.
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    pub(super) kv: KeyValue,
}

#[derive(Serialize)]
pub(super) struct GrantRequest {
    #[serde(rename = "TTL")]
    pub(super) ttl: String,
}

#[derive(Deserialize)]
pub(super) struct GrantResponse {
    #[serde(default, rename = "ID", deserialize_with = "number")]
    pub(super) id: i64,
}

#[derive(Serialize)]
pub(super) struct LeaseRequest {
    #[serde(rename = "ID")]
    pub(super) id: String,
}

#[derive(Deserialize, Debug)]
pub(super) struct KeepAliveResponse {
    pub(super) header: Header,
    #[serde(default, rename = "TTL", deserialize_with = "number")]
    pub(super) ttl: i64,
}

#[derive(Serialize)]
pub(super) struct CompactionRequest {
    pub(super) revision: String,
}

#[derive(Deserialize)]
pub(super) struct StatusResponse {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default, rename = "dbSize", deserialize_with = "number")]
    pub(super) db_size: i64,
    /// Alarms, as text.
    #[serde(default)]
    pub(super) errors: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct MemberListRequest {
    pub(super) linearizable: bool,
}

#[derive(Deserialize)]
pub(super) struct MemberListResponse {
    #[serde(default)]
    pub(super) members: Vec<ListedMember>,
}

#[derive(Deserialize)]
pub(super) struct ListedMember {
    #[serde(rename = "ID", deserialize_with = "number")]
    pub(super) id: u64,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default, rename = "peerURLs")]
    pub(super) peer_urls: Vec<String>,
    #[serde(default, rename = "clientURLs")]
    pub(super) client_urls: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct MemberRemoveRequest {
    #[serde(rename = "ID")]
    pub(super) id: String,
}

#[derive(Serialize)]
pub(super) struct MemberAddRequest<'a> {
    #[serde(rename = "peerURLs")]
    pub(super) peer_urls: [&'a str; 1],
}
