//! One shard's part of the broker: what its handlers share. How it is served is [`super::serve`].

use std::cell::{Cell, RefCell};

use millrace_engine::{engine::Engine, stats::Counter};

use crate::{
    broker::{config::NetConfig, fetch_session::FetchSessions},
    wire::shared::Wire,
};

/// One shard's part of the broker.
pub(crate) struct BrokerShard {
    pub(crate) engine: Engine,
    pub(crate) config: NetConfig,
    /// What its connections share.
    pub(crate) wire: Wire,
    /// Bytes of records in answers to fetches.
    pub(crate) fetched_bytes: Counter,
    /// Times that requests stood still, and whether they do.
    pub(crate) request_stalls: Cell<(u64, bool)>,
    pub(crate) fetch_sessions: RefCell<FetchSessions>,
}
