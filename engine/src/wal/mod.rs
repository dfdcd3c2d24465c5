//! The shared write-ahead log of a shard as bytes: its groups ([`mod@format`]) and what a restart finds ([`scan`]).
//! The store seals, writes and flushes them.

pub mod format;
pub(crate) mod group;
pub(crate) mod reader;
pub(crate) mod replay;
pub mod scan;
#[cfg(test)]
mod scan_tests;
