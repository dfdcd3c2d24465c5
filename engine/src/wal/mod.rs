//! The shared write-ahead log of a shard above its bytes, which are [`crate::format::wal`]'s: the group that is open, what
//! has happened to the ends of logs (`history.rs`), and what a restart finds ([`scan`]). The store seals, writes and flushes.

pub(crate) mod group;
pub(crate) mod history;
pub(crate) mod replay;
pub mod scan;
#[cfg(test)]
mod scan_tests;

/// Names a file of the shared log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WalFileId(pub(crate) u64);
