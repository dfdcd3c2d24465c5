//! What an etcd is run with that is a node's child, and how its members are called. Plain data.

use std::{net::SocketAddr, path::PathBuf};

use crate::config::{EtcdMember, HostPort, ManagedEtcd};

/// What a child is started with.
#[derive(Clone, Debug)]
pub(super) struct EtcdOptions {
    pub(super) program: PathBuf,
    /// Its own folder.
    pub(super) data: PathBuf,
    /// The cluster's name: etcds of different ones refuse each other.
    pub(super) token: String,
    pub(super) own: EtcdMember,
    pub(super) managed: ManagedEtcd,
    /// Where it listens for clients and for other members.
    pub(super) listen: (SocketAddr, SocketAddr),
    /// The node was in the cluster before: its etcd had data.
    pub(super) was_there: bool,
}

/// What other members call it.
pub(super) fn member_name(member: &EtcdMember) -> String {
    format!("node-{}", member.node_id)
}

/// An address as etcd writes it.
pub(super) fn url(address: &HostPort) -> String {
    format!("http://{address}")
}
