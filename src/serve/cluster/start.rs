//! What is done for a cluster before the node runs: its former life is read, an etcd of its own started, and what the
//! control thread registers put together.

use std::{io, net::SocketAddr, path::PathBuf};

use millrace_replica::cluster::{
    core::NodeIdentity,
    model::{Continued, Endpoint, Kept},
};
use millrace_tuning::network;

use super::{
    cut_off,
    etcd::{self, Supervisor},
    etcd_options::EtcdOptions,
    life::{Life, Since, machine_id},
    mirror::{self, Mirroring},
    replication_settings,
};
use crate::{
    config::{ClusterConfig, Config, HostPort, ManagedEtcd},
    failure::{Failure, Outcome},
    output::reason,
    serve::listen::{Listening, PeerPlace},
};

/// Name of an etcd's program, looked up in the PATH.
const ETCD: &str = "etcd";
/// Its folder in the data directory.
const ETCD_FOLDER: &str = "etcd";

/// All that a node needs to become one of a cluster.
#[derive(Debug)]
pub(in crate::serve) struct Prepared {
    pub(super) cluster: ClusterConfig,
    pub(super) data_dir: PathBuf,
    /// What is registered.
    pub(super) node: NodeIdentity,
    pub(super) life: Life,
    /// Where other nodes connect.
    pub(super) listen: Vec<SocketAddr>,
    /// Of two nodes without an etcd.
    pub(super) mirroring: Option<Mirroring>,
}

/// Prepares a node for the cluster that its configuration names, if it does. The supervisor has to live as long as the node.
pub(in crate::serve) fn prepare(
    config: &Config,
    listening: &Listening,
) -> Outcome<Option<(Prepared, Option<Supervisor>)>> {
    let Some(cluster) = config.cluster.clone() else { return refuse_members_alone(config).map(|()| None) };
    let Some(peer) = &listening.peer else { return Ok(None) };
    let life = Life::open(&config.data_dir, &cluster.name).map_err(|error| Failure::failed(reason(&error)))?;
    let supervisor = supervise_for(config, &life)?;
    let node = identity(config, &cluster, listening, (peer, &life))?;
    let listen = peer.addresses.clone();
    let mirror = cluster.etcd.mirror.as_ref();
    let named = (&*cluster.name, replication_settings::lease(&cluster.settings));
    let mirroring = mirror.map(|mirror| mirror::begin(&config.data_dir, named, mirror)).transpose()?;
    cut_off::bound(&config.data_dir);
    Ok(Some((Prepared { cluster, data_dir: config.data_dir.clone(), node, life, listen, mirroring }, supervisor)))
}

/// What is registered of a node.
pub(super) fn identity(
    config: &Config,
    cluster: &ClusterConfig,
    listening: &Listening,
    (peer, life): (&PeerPlace, &Life),
) -> Outcome<NodeIdentity> {
    let former = life.former().map_err(Failure::failed)?;
    Ok(NodeIdentity {
        id: config.node_id,
        directory: life.directory,
        machine: machine_id(&config.data_dir).map_err(Failure::failed)?,
        rack: cluster.rack.clone(),
        endpoints: listening.listeners.iter().map(endpoint).collect(),
        peer: peer.advertised.to_string(),
        shards: u32::try_from(config.shards).unwrap_or(u32::MAX),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        continues: former.map(|(epoch, since)| Continued {
            epoch,
            kept: match since {
                Since::ProcessEnded => Kept::Written,
                Since::MachineRestarted => Kept::Flushed,
            },
        }),
    })
}

/// A data directory of a cluster's node has replicas that others know of: alone it would give their offsets out again.
fn refuse_members_alone(config: &Config) -> Outcome {
    match super::cluster_of(&config.data_dir).map_err(Failure::failed)? {
        Some(name) => Err(Failure::failed(format!(
            "{} belongs to a node of cluster '{name}': start it with --cluster {name} and its --etcd",
            config.data_dir.display()
        ))),
        None => Ok(()),
    }
}

fn endpoint(place: &super::super::listen::Place) -> Endpoint {
    let HostPort { host, port } = place.advertised.clone();
    Endpoint { listener: place.name.clone(), host, port }
}

/// Runs the etcd that is this node's to run, if there is one, for a command.
pub(super) fn supervise_for(config: &Config, life: &Life) -> Outcome<Option<Supervisor>> {
    let Some(cluster) = &config.cluster else { return Ok(None) };
    cluster.etcd.managed.as_ref().map(|managed| supervise(config, cluster, managed, life)).transpose()
}

fn supervise(config: &Config, cluster: &ClusterConfig, managed: &ManagedEtcd, life: &Life) -> Outcome<Supervisor> {
    let own = managed.members.iter().find(|member| member.node_id == config.node_id);
    let own = own.cloned().expect("the configuration was checked");
    let bind = |address: HostPort| -> io::Result<SocketAddr> {
        let found = network::own_addresses(&address.host, address.port)?;
        found.first().copied().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    };
    let resolve = || -> io::Result<_> { Ok((bind(own.client())?, bind(own.peer())?)) };
    let listen = resolve().map_err(|error| {
        Failure::failed(format!("--etcd-members: {} is no address of this machine: {error}", own.host))
    })?;
    let options = EtcdOptions {
        program: ETCD.into(),
        data: config.data_dir.join(ETCD_FOLDER),
        token: cluster.name.clone(),
        own,
        managed: managed.clone(),
        listen,
        was_there: life.epoch > 0,
    };
    let program = options.program.clone();
    Supervisor::start(options).map_err(|error| Failure::failed(etcd::explain(&program, &error)))
}
