//! The broker: the table of APIs with one handler each, settings, metrics, and what clients are told of the cluster.

pub(crate) mod affinity;
pub(crate) mod assignment;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod features;
pub(crate) mod fetch_session;
pub(crate) mod handlers;
pub(crate) mod metrics;
pub(crate) mod serve;
pub(crate) mod served;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod shard;
pub(crate) mod table;
pub(crate) mod telemetry;
