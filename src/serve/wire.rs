//! The wire's part of a node: what it is started with, and why it ended if it was not asked to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use millrace_engine::{engine::Engine, node::Stopper};
use millrace_net::{Advertise, ListenerConfig, Membership, NetConfig};

use super::{
    cluster::Shards,
    listen::{Listening, Place},
    stop::Deadline,
};
use crate::config::{self, Config};

/// The first shard's reason to give up, if one did; shards and the main thread share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending(Arc<Mutex<Option<String>>>);

impl Ending {
    fn put(&self, reason: String) {
        self.0.lock().expect("no panic while locked").get_or_insert(reason);
    }

    /// Takes it.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().expect("no panic while locked").take()
    }
}

/// Ends a node that cannot go on, from any thread. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Halt {
    pub(super) ending: Ending,
    pub(super) deadline: Deadline,
    pub(super) stopper: Stopper,
}

impl Halt {
    /// The first reason is what the node ends with.
    pub(super) fn halt(&self, reason: String) {
        self.ending.put(reason);
        self.deadline.begin();
        self.stopper.stop();
    }
}

/// Serves on one shard until the node stops, as a member of a cluster if it is to be one. A shard that cannot serve takes the
/// node with it.
pub(super) async fn serve(
    engine: Engine,
    config: NetConfig,
    shards: Option<Shards>,
    ending: Ending,
    deadline: Deadline,
) {
    if let Err(reason) = serve_as_member(engine, config, shards).await {
        ending.put(reason);
        deadline.begin();
    }
}

async fn serve_as_member(engine: Engine, config: NetConfig, shards: Option<Shards>) -> Result<(), String> {
    let Some(shards) = shards else {
        engine.lead_alone().await.map_err(|error| format!("this node cannot be alone: {error}"))?;
        return millrace_net::serve(engine, config, Membership::Alone).await.map_err(|error| error.to_string());
    };
    let Some(member) = shards.join(&engine).await else { return Ok(()) };
    let served = millrace_net::serve(engine, config, member.membership.clone()).await;
    member.leave().await;
    served.map_err(|error| error.to_string())
}

/// The wire's configuration.
pub(super) fn net_config(config: &Config, listening: &Listening) -> NetConfig {
    // No more than there are descriptors for: a connection that is refused hears so, one that cannot be accepted waits.
    let possible = millrace_tuning::limits::connections_max(config.shards);
    let limited = |count: u32| usize::try_from(u64::from(count).min(possible)).unwrap_or(usize::MAX);
    NetConfig {
        listeners: listening.listeners.iter().map(listener_config).collect(),
        metrics: listening.metrics,
        advertise: match config.advertise {
            config::Advertise::Node => Advertise::Node,
            config::Advertise::Shard => Advertise::Shard,
        },
        auto_create_topics: config.auto_create_topics,
        num_partitions: config.num_partitions,
        max_connections: limited(config.max_connections),
        max_connections_per_ip: limited(config.max_connections_per_ip),
        max_frame_bytes: config.max_frame_bytes.as_usize(),
        receive_memory_bytes: config.memory.receive.as_usize() / config.shards,
        idle_timeout: config.connections_max_idle,
        transaction_version: config.transaction_version,
        broker_settings: broker_settings(config),
        ..NetConfig::default()
    }
}

fn listener_config(place: &Place) -> ListenerConfig {
    ListenerConfig {
        name: place.name.clone(),
        addresses: place.addresses.clone(),
        advertised_host: place.advertised.host.clone(),
        advertised_port: place.advertised.port,
        shard_ports: place.chosen_ports.clone(),
    }
}

/// What Kafka's tools ask for by the names of a broker's configuration file.
fn broker_settings(config: &Config) -> BTreeMap<String, String> {
    let settings = [
        ("node.id", config.node_id.to_string()),
        ("log.dirs", config.data_dir.display().to_string()),
        ("num.partitions", config.num_partitions.to_string()),
        ("auto.create.topics.enable", config.auto_create_topics.to_string()),
        ("max.connections", config.max_connections.to_string()),
        ("max.connections.per.ip", config.max_connections_per_ip.to_string()),
        ("connections.max.idle.ms", config.connections_max_idle.as_millis().to_string()),
        ("socket.request.max.bytes", config.max_frame_bytes.0.to_string()),
        ("log.retention.check.interval.ms", config.retention_check.as_millis().to_string()),
        ("producer.id.expiration.ms", config.producer_id_expiration.as_millis().to_string()),
    ];
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value));
    let of_cluster = config.cluster.iter().flat_map(|cluster| cluster.settings.clone());
    let of_coordinators = config.group_settings.clone().into_iter().chain(config.transaction_settings.clone());
    settings.chain(of_coordinators).chain(of_cluster).collect()
}
