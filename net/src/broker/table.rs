//! An entry of the table of APIs. The table itself, which names every handler, is [`super::served`].

use kafka_protocol::messages::ApiKey;

pub(crate) use crate::wire::api::OnDisconnect;
use crate::{broker::shard::BrokerShard, wire};

/// One API that is served.
pub(crate) type Api = wire::api::Api<BrokerShard>;

/// Whether an API is there. Without a page to show them on, metrics of clients are not taken; without a cluster nobody
/// can be taken out of it.
pub(crate) fn is_served(api: &Api, shard: &BrokerShard) -> bool {
    use ApiKey::*;
    match api.key {
        GetTelemetrySubscriptions | PushTelemetry => shard.config.metrics.is_some(),
        UnregisterBroker => shard.membership.is_clustered(),
        _ => true,
    }
}
