//! One shard's part of the broker: what its handlers share. How it is served is [`super::serve`].

use std::cell::RefCell;

use millrace_engine::{engine::Engine, stats::Counter};

use crate::{
    broker::{cluster::Membership, config::NetConfig, fetch_session::FetchSessions, metrics::RequestStalls},
    wire::shared::Wire,
};

/// One shard's part of the broker.
pub(crate) struct BrokerShard {
    pub(crate) engine: Engine,
    pub(crate) config: NetConfig,
    /// Whether the node belongs to a cluster.
    pub(crate) membership: Membership,
    /// What its connections share.
    pub(crate) wire: Wire,
    /// Bytes of records in answers to fetches.
    pub(crate) fetched_bytes: Counter,
    /// Requests that stand still.
    pub(crate) request_stalls: RefCell<RequestStalls>,
    pub(crate) fetch_sessions: RefCell<FetchSessions>,
}
