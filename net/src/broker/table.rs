//! An entry of the table of APIs. The table itself, which names every handler, is [`super::served`].

use kafka_protocol::messages::ApiKey;

pub(crate) use crate::wire::api::OnDisconnect;
use crate::{
    broker::{config::NetConfig, shard::BrokerShard},
    wire,
};

/// One API that is served.
pub(crate) type Api = wire::api::Api<BrokerShard>;

/// Whether an API is there. Without a page to show them on, metrics of clients are not taken.
pub(crate) fn is_served(api: &Api, config: &NetConfig) -> bool {
    config.metrics.is_some() || !matches!(api.key, ApiKey::GetTelemetrySubscriptions | ApiKey::PushTelemetry)
}
