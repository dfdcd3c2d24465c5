//! Metrics of clients (KIP-714).

pub(crate) mod get_telemetry_subscriptions;
pub(crate) mod push_telemetry;
