//! A member of a classic group.

use std::rc::Rc;

use bytes::Bytes;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse, join_group_request::JoinGroupRequestProtocol};

use crate::coordinator::runtime::Ticket;

/// One protocol that a member can follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Protocol {
    /// Its name.
    pub(crate) name: Rc<str>,
    /// What the member says with it: for consumers its subscription.
    pub(crate) metadata: Bytes,
}

/// Copies the protocols of a request, so that the group does not keep the request's buffer.
pub(crate) fn protocols(requested: &[JoinGroupRequestProtocol]) -> Vec<Protocol> {
    let copy = |protocol: &JoinGroupRequestProtocol| Protocol {
        name: Rc::from(protocol.name.as_str()),
        metadata: Bytes::copy_from_slice(&protocol.metadata),
    };
    requested.iter().map(copy).collect()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Member {
    /// Member id.
    pub(crate) id: Rc<str>,
    /// Instance id of a static member (KIP-345).
    pub(crate) instance_id: Option<Rc<str>>,
    /// The client's name for itself.
    pub(crate) client_id: Rc<str>,
    /// The client's address, as Kafka shows it.
    pub(crate) client_host: Rc<str>,
    /// Rebalance timeout in ms.
    pub(crate) rebalance_timeout_ms: i32,
    /// Session timeout in ms.
    pub(crate) session_timeout_ms: i32,
    /// Protocols, most wanted first.
    pub(crate) protocols: Vec<Protocol>,
    /// Assignment of the current generation; empty until it is known.
    pub(crate) assignment: Bytes,
    /// Its JoinGroup that waits for the rebalance. Only the group changes this: it counts them.
    pub(super) awaiting_join: Option<Ticket<JoinGroupResponse>>,
    /// Its SyncGroup that waits for the assignment.
    pub(super) awaiting_sync: Option<Ticket<SyncGroupResponse>>,
    /// Joined for the first time and not yet answered: it cannot send heartbeats, so waiting does not keep it alive.
    pub(super) is_new: bool,
}

impl Member {
    /// A member that waits for nothing; `client` is its id and address, `timeouts_ms` those of rebalance and session.
    pub(crate) fn settled(
        id: Rc<str>,
        instance_id: Option<Rc<str>>,
        client: (Rc<str>, Rc<str>),
        timeouts_ms: (i32, i32),
        protocols: Vec<Protocol>,
    ) -> Self {
        Self {
            id,
            instance_id,
            client_id: client.0,
            client_host: client.1,
            rebalance_timeout_ms: timeouts_ms.0,
            session_timeout_ms: timeouts_ms.1,
            protocols,
            assignment: Bytes::new(),
            awaiting_join: None,
            awaiting_sync: None,
            is_new: false,
        }
    }

    /// Its metadata for a protocol; empty when it does not follow it.
    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|each| &*each.name == protocol);
        found.map(|each| each.metadata.clone()).unwrap_or_default()
    }

    /// Whether a request names the very same protocols in the same order.
    pub(super) fn matches(&self, requested: &[JoinGroupRequestProtocol]) -> bool {
        self.protocols.len() == requested.len()
            && self
                .protocols
                .iter()
                .zip(requested)
                .all(|(own, asked)| *own.name == *asked.name && own.metadata == asked.metadata)
    }

    /// Whether its waiting is as good as a heartbeat.
    pub(super) fn is_kept_alive_by_waiting(&self) -> bool {
        !self.is_new && (self.awaiting_join.is_some() || self.awaiting_sync.is_some())
    }
}
