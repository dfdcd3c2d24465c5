//! What the wire is started with.

use millrace_engine::engine::Engine;

use super::listen::Listening;
use crate::config::Config;

/// Serves on one shard until the node stops.
pub(super) async fn serve(engine: Engine, _config: Config, _addresses: Vec<std::net::SocketAddr>) {
    engine.stopping().await;
}

/// For the wire's configuration.
pub(super) fn addresses(listening: &Listening) -> Vec<std::net::SocketAddr> {
    listening.addresses.clone()
}
