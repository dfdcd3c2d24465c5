//! What a handler may use: its request's session, and the broker behind it.

mod operation;

use millrace_engine::engine::Engine;

pub(crate) use self::operation::{Authorization, Operation, ResourceType};
use crate::{
    broker::{
        config::{ListenerConfig, NetConfig},
        shard::BrokerShard,
    },
    wire,
};

/// See the module.
pub(crate) type Context = wire::api::Context<BrokerShard>;

impl Context {
    /// This shard's engine.
    pub(crate) fn engine(&self) -> &Engine {
        &self.service.engine
    }

    /// What the broker was started with.
    pub(crate) fn config(&self) -> &NetConfig {
        &self.service.config
    }

    /// The listener that the client came through: what it is told of addresses is that listener's.
    pub(crate) fn listener(&self) -> &ListenerConfig {
        self.config().listener(self.peer.origin.listener)
    }
}
