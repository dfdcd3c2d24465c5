//! What became of a call that did not get its answer, and what etcd's errors mean.

use std::fmt;

use http::HeaderMap;

use crate::cluster::store::StoreError;

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// etcd said no.
    Said(Status),
    /// The request did not leave.
    Unsent(String),
    /// What came of the request is not known.
    Lost(String),
}

impl CallError {
    /// What came of the request is not known, for that reason.
    pub(super) fn lost(reason: impl fmt::Display) -> Self {
        Self::Lost(reason.to_string())
    }

    /// The request did not leave, for that reason.
    pub(super) fn unsent(reason: impl fmt::Display) -> Self {
        Self::Unsent(reason.to_string())
    }

    /// With the name of whom was asked.
    pub(super) fn of(self, endpoint: &str) -> Self {
        match self {
            Self::Said(status) => Self::Said(status),
            Self::Unsent(text) => Self::Unsent(format!("{endpoint}: {text}")),
            Self::Lost(text) => Self::Lost(format!("{endpoint}: {text}")),
        }
    }

    /// The same of a call that comes before what is asked for, which did not leave then.
    pub(super) fn of_preparation(self) -> Self {
        match self {
            Self::Said(status) if status.is_away() => Self::Unsent(status.text),
            Self::Lost(text) => Self::Unsent(text),
            other => other,
        }
    }

    pub(super) fn into_error(self) -> StoreError {
        match self {
            Self::Said(status) => status.into_error(),
            Self::Unsent(text) | Self::Lost(text) => StoreError::Away(text),
        }
    }
}

/// How a call ended, as its server says: one of gRPC's codes, and a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Status {
    code: u32,
    text: String,
}

/// gRPC's codes that mean something here.
mod grpc {
    pub(super) const OK: u32 = 0;
    pub(super) const DEADLINE_EXCEEDED: u32 = 4;
    pub(super) const NOT_FOUND: u32 = 5;
    pub(super) const RESOURCE_EXHAUSTED: u32 = 8;
    pub(super) const OUT_OF_RANGE: u32 = 11;
    pub(super) const INTERNAL: u32 = 13;
    pub(super) const UNAVAILABLE: u32 = 14;
    pub(super) const UNAUTHENTICATED: u32 = 16;
    /// Cancelled and unknown: said while a server stops.
    pub(super) const VAGUE: [u32; 2] = [1, 2];
}

/// What etcd says of a token that is no good: it does not know it, its users changed since, or there is none. Its own client
/// asks for another one then (`shouldRefreshToken` in its client/v3/retry_interceptor.go).
const TOKEN_TEXTS: [&str; 3] = ["invalid auth token", "revision in header is old", "user name is empty"];

impl Status {
    /// Reads one from the headers that end a call; `None` if they do not say.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        let text = headers.get("grpc-message").map_or(&b""[..], |text| text.as_bytes());
        Some(Self { code, text: unescape(text) })
    }

    /// That the call did not fail, or how it did.
    pub(super) fn into_result(self) -> Result<(), CallError> {
        match self.code {
            grpc::OK => Ok(()),
            _ => Err(CallError::Said(self)),
        }
    }

    /// The token that was sent is no good, or none was sent.
    pub(super) fn wants_token(&self) -> bool {
        self.code == grpc::UNAUTHENTICATED || TOKEN_TEXTS.iter().any(|text| self.text.contains(text))
    }

    /// It answers, but reaches no majority, cannot write, or stops: others may do better.
    fn is_away(&self) -> bool {
        matches!(self.code, grpc::DEADLINE_EXCEEDED | grpc::UNAVAILABLE | grpc::INTERNAL)
            || grpc::VAGUE.contains(&self.code)
    }

    pub(super) fn into_error(self) -> StoreError {
        let is_away = self.is_away();
        let Self { code, text } = self;
        match code {
            grpc::OUT_OF_RANGE if text.contains("compacted") => StoreError::Compacted(0),
            grpc::RESOURCE_EXHAUSTED if text.contains("space exceeded") => StoreError::Full(text),
            grpc::NOT_FOUND if text.contains("lease not found") => StoreError::LeaseOver,
            _ if is_away => StoreError::Away(text),
            _ => StoreError::Refused(text),
        }
    }
}

/// A text of headers, in which gRPC writes bytes that may not be there as `%` and two hexadecimal digits.
fn unescape(text: &[u8]) -> String {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut bytes, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: &'static str, text: &'static str) -> Status {
        let headers = [("grpc-status", code), ("grpc-message", text)];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Status::read(&HeaderMap::from_iter(headers)).unwrap()
    }

    #[test]
    fn texts_are_unescaped() {
        for (escaped, text) in [("a b", "a b"), ("50%25 of %C3%A4", "50% of ä"), ("100%", "100%"), ("%zz%4", "%zz%4")]
        {
            assert_eq!(status("9", escaped).text, text);
        }
    }

    #[test]
    fn codes_mean_what_the_store_knows() {
        type Is = fn(&StoreError) -> bool;
        let away: Is = |error| matches!(error, StoreError::Away(_));
        let refused: Is = |error| matches!(error, StoreError::Refused(_));
        let cases: [(&str, &str, Is); 9] = [
            ("8", "etcdserver: mvcc: database space exceeded", |error| matches!(error, StoreError::Full(_))),
            ("8", "grpc: received message larger than max", refused),
            ("11", "etcdserver: mvcc: required revision has been compacted", |error| {
                *error == StoreError::Compacted(0)
            }),
            ("11", "etcdserver: mvcc: required revision is a future revision", refused),
            ("5", "etcdserver: requested lease not found", |error| *error == StoreError::LeaseOver),
            ("14", "etcdserver: no leader", away),
            ("14", "etcdserver: request timed out", away),
            ("2", "", away),
            ("7", "etcdserver: permission denied", refused),
        ];
        for (code, text, is_right) in cases {
            let error = status(code, text).into_error();
            assert!(is_right(&error), "{code} {text}: {error:?}");
        }
    }

    /// Or a transaction is called of unknown outcome, and the next member is not asked.
    #[test]
    fn what_was_only_prepared_did_not_leave() {
        let said = |code, text| CallError::Said(status(code, text)).of_preparation();
        assert!(matches!(said("14", "etcdserver: no leader"), CallError::Unsent(_)));
        assert!(matches!(CallError::lost("no answer in time").of_preparation(), CallError::Unsent(_)));
        assert!(matches!(said("3", "etcdserver: authentication failed"), CallError::Said(_)));
    }

    #[test]
    fn tokens_are_renewed_for_what_a_new_one_mends() {
        assert!(status("16", "etcdserver: invalid auth token").wants_token());
        assert!(status("3", "auth: revision in header is old").wants_token());
        assert!(status("3", "etcdserver: user name is empty").wants_token());
        assert!(!status("3", "etcdserver: authentication failed, invalid user ID or password").wants_token());
    }
}
