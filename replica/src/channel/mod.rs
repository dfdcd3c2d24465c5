//! The replication channel: how a partition's leader and its followers on other nodes keep one log.
//!
//! Pure: no socket, no clock, no disk. [`shard::ShardChannel`] is the whole of it for one shard; the bytes between two shards are in
//! [`frame`] and drawn in CHANNEL.md. Nothing here trusts a lease or a clock: what counts is epochs, lives of nodes, and
//! what a follower confirmed in the present epoch.

#[cfg(test)]
mod conversations;
mod copies;
pub mod doubts;
pub mod event;
mod follower;
pub mod frame;
pub(crate) mod guard;
pub mod intent;
mod leader;
mod pace;
mod progress;
pub mod quota;
pub mod shard;
pub mod stream;
mod turns;
