//! Kafka's wire: listeners, connections, frames, the API table and one file per API.
//!
//! [`serve`] runs on every shard. A connection lives on the shard that accepted it; what it asks of partitions that
//! live elsewhere goes through the engine. Logic that decides (frames, memory budget, reply queue, fetch sessions,
//! connection limits) is plain synchronous code; the glommio shell around it is thin.

mod broker;
pub mod client;
mod coordinator;
mod errors;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod kafka_uuid;
mod kept_settings;
mod log_limiter;
#[cfg(test)]
mod test_node;
mod wire;

pub use broker::{
    config::{Advertise, ConfigError, ListenerConfig, NetConfig, request_bytes_max},
    serve::{ServeError, serve},
    served::{ApiListing, api_table},
};
pub use coordinator::group::check_group_settings;
