//! The log engine: record batches, marks, the shared write-ahead log, segments, indexes, cache, recovery, retention.

pub mod api;
pub mod batch;
mod chunk;
pub mod config;
pub mod engine;
pub mod node;
