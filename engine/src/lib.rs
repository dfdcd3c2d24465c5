//! The log engine: record batches, marks, the shared write-ahead log, segments, indexes, cache, recovery, retention.

pub mod abandon;
#[cfg(feature = "measuring")]
pub mod apart;
pub mod api;
mod available;
pub mod batch;
mod boot;
pub mod catalog;
mod chunk;
mod compact;
pub mod config;
pub mod doubt;
pub mod engine;
mod fetch;
#[cfg(test)]
mod format_golden;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod io;
pub mod journal;
mod mail;
pub mod manifest;
mod materialise;
pub mod node;
mod partition;
mod producer;
mod retention;
pub mod segment;
mod signal;
pub mod stall;
pub mod stats;
mod store;
pub mod timing;
mod topics;
mod vigil;
pub mod vitals;
mod waiters;
pub mod wal;
