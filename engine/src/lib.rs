//! The log engine: record batches, marks, the shared write-ahead log, segments, indexes, cache, recovery, retention.

pub mod abandon;
pub mod alone;
#[cfg(feature = "measuring")]
pub mod apart;
pub mod api;
pub mod batch;
mod boot;
mod chunk;
mod compact;
pub mod config;
pub mod doubt;
pub mod engine;
mod fetch;
pub mod format;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod io;
mod lock;
mod mail;
mod metadata;
pub mod node;
mod partition;
pub mod replica;
mod replica_api;
pub mod signal;
#[cfg(feature = "sim")]
pub mod simulated;
pub mod stall;
mod start;
pub mod stats;
mod store;
pub mod timing;
mod topics;
mod transactional;
pub mod transactions;
mod vigil;
pub mod vitals;
pub mod wal;
