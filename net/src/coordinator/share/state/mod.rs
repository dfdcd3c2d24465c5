//! The durable state of share groups: where each share partition begins and what became of the records from there on.
//!
//! It is kept in `__share_group_state` in Kafka's own record formats. The shard that owns a partition of that topic keeps
//! the state of the share partitions that belong there; share partitions elsewhere write and read through it.

mod batches;
mod coordinator;
mod message;
mod parts;
mod record;
mod store;

pub(crate) use batches::{DeliveryState, StateBatch, merge};
pub(crate) use coordinator::{Prune, StateCoordinator};
pub(crate) use message::{Part, Refused, StateRequest, StateResponse};
#[cfg(test)]
pub(crate) use parts::ReadState;
pub(crate) use parts::{Delete, Initialize, RawBatch, Read, ReadSummary, WriteState};
pub(crate) use record::{ShareKey, Snapshot, StateRecord, Update};
pub(crate) use store::{Epochs, Store, StoreError, Summary, UNDECIDED};
