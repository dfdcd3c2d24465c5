//! A node as one of a cluster: registered with etcd, its topics those of the cluster, its channel open to other nodes.
//!
//! In this order: the data is recovered; the control thread registers the node; the first image says what the cluster is,
//! and whether this data directory belongs to it; every shard starts its channel; shard 0 brings the engine's topics into
//! agreement with each image; clients are served. A stop goes the other way: leadership is handed over, requests end, the
//! channel ends, the registration is given up, an etcd of our own stops last.

mod adopt;
mod cut_off;
mod etcd;
mod etcd_options;
mod exit;
mod join;
mod leave;
mod life;
mod membership;
mod mirror;
mod promote;
mod rejoin;
mod replication_settings;
mod start;

pub(crate) use self::{
    adopt::{Adopting, adopt},
    join::join,
    leave::{Leaving, leave},
    life::{cluster_of, forget_lives},
    membership::etcd_options,
    promote::promote,
};
pub(super) use self::{exit::Exit, membership::Shards, start::prepare};
