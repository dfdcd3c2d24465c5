//! What is known of one connection beyond its bytes: who is behind it, and what it has begun.
//!
//! Belongs to the connection and travels whole when that goes on on another shard, so that nothing that is added here can
//! be left behind. Borrowed for a moment at a time, never across an await.

use std::{borrow::Cow, fmt};

use kafka_protocol::protocol::StrBytes;

use crate::broker::{affinity::Affinity, fetch_session::FetchSession};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// On whose behalf its requests are.
    pub(crate) principal: Principal,
    /// Name and version of the client's software, once it has told them (KIP-511).
    pub(crate) software: Option<(StrBytes, StrBytes)>,
    /// Share sessions that were opened over it, by shard, group and member: they end with it.
    pub(crate) share_sessions: Vec<(usize, String, String)>,
    /// A client asked over it which metrics to push, or pushed some.
    pub(crate) pushes_telemetry: bool,
    /// The fetch session that was last used over it; 0 for none.
    pub(crate) fetch_session: i32,
    /// That fetch session itself while the connection moves; a shard has it otherwise.
    pub(crate) carried: Option<FetchSession>,
    /// Where its partitions are.
    pub(crate) affinity: Affinity,
}

/// Somebody who may be allowed to do things, by the type and name that ACLs have (KafkaPrincipal).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    /// `User`, as all that Kafka itself makes.
    pub(crate) kind: Cow<'static, str>,
    pub(crate) name: Cow<'static, str>,
}

impl Default for Principal {
    /// Nobody has said who it is.
    fn default() -> Principal {
        Principal { kind: Cow::Borrowed("User"), name: Cow::Borrowed("ANONYMOUS") }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_said_who_it_is_has_kafka_s_name_for_that() {
        assert_eq!(Session::default().principal.to_string(), "User:ANONYMOUS");
    }
}
