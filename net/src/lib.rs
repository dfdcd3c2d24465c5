//! A Kafka broker around the engine; [`serve`] runs it on every shard.
//!
//! - `wire`: frames, memory, connections: knows no topic and no group.
//! - `coordinator`: state machines kept in internal topics, run by one runtime: groups, state of share groups.
//! - `broker`: the service behind the wire: the table of APIs, one handler each, settings, metrics.
//!
//! A connection lives on the shard that accepted it; what it asks of partitions that live elsewhere goes through the
//! engine. What decides is plain synchronous code; the glommio shell around it is thin. [`client`] is the protocol from
//! the other side.

mod broker;
pub mod client;
mod coordinator;
mod errors;
mod feature_levels;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod kafka_uuid;
mod kept_settings;
mod log_limiter;
#[cfg(test)]
mod test_node;
mod wire;

pub use broker::{
    cluster::{Cluster, Membership},
    config::{Advertise, ConfigError, ListenerConfig, NetConfig, request_bytes_max},
    serve::{ServeError, serve},
    served::{ApiListing, api_table},
    settings::replication::{SESSION_MS_MAX, check_replication_settings, internal_factors, is_replication_setting},
};
pub use coordinator::{
    group::check_group_settings,
    transaction::{check_transaction_settings, describe_transaction},
};
pub use feature_levels::TRANSACTION_VERSION_MAX;
