//! Kafka's wire: listeners, connections, frames, the API table and one file per API.
//!
//! [`serve`] runs on every shard. A connection lives on the shard that accepted it; what it asks of partitions that
//! live elsewhere goes through the engine. Logic that decides (frames, memory budget, reply queue, fetch sessions,
//! connection limits) is plain synchronous code; the glommio shell around it is thin.

mod api;
mod assignment;
mod broker_config;
mod cluster;
mod config;
mod config_resource;
mod connection;
mod errors;
mod features;
mod fetch_session;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod group;
mod group_config;
mod handlers;
mod hot;
mod kept_settings;
mod limits;
mod listener;
mod memory;
mod metrics;
mod poller;
mod pressure;
mod settings;
mod shard;
mod share;
mod stream;
mod telemetry;
mod text;

pub use api::{ApiListing, api_table};
pub use config::{Advertise, ConfigError, ListenerConfig, NetConfig, request_bytes_max};
pub use errors::error_code_name;
pub use group::check_group_settings;
pub use shard::{ServeError, serve};
