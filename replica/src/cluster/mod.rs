//! The control plane: members, partitions and who leads them, kept in etcd and decided by compares.
//!
//! Nothing here but `etcd` does I/O. Leases, watches and clocks only start transactions; their compares decide.

mod admin;
pub mod adoption;
mod buckets;
pub mod change;
#[cfg(test)]
mod conformance;
pub mod control;
pub mod core;
pub mod etcd;
pub mod image;
pub mod kept;
pub mod keys;
pub mod memory;
pub mod model;
pub mod plane;
pub mod restored;
pub mod store;
