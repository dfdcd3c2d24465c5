//! A node that is its whole cluster: one broker, or one broker per shard.

use kafka_protocol::{messages::BrokerId, protocol::StrBytes};
use millrace_engine::{
    api::{LEADER_EPOCH, TopicPartition},
    engine::Engine,
};

use super::{Broker, Quorum};
use crate::broker::config::{Advertise, ListenerConfig, NetConfig};

/// A partition has one replica, however many brokers are advertised.
pub(super) const REPLICAS_MAX: usize = 1;

/// All brokers, by rising id, at the addresses that are for those who come through a listener.
pub(super) fn brokers(engine: &Engine, config: &NetConfig, listener: &ListenerConfig) -> Vec<Broker> {
    let host = StrBytes::from_string(listener.advertised_host.clone());
    let at = |id, port: u16| Broker { id, host: host.clone(), port: port.into(), rack: None };
    match config.advertise {
        Advertise::Node => vec![at(BrokerId(engine.node_id()), listener.advertised_port)],
        Advertise::Shard => (0..engine.shards())
            .map(|shard| {
                let port = listener.advertised_shard_port(shard);
                at(shard_broker(engine, shard), port.unwrap_or(listener.advertised_port))
            })
            .collect(),
    }
}

/// The broker that leads a partition.
pub(super) fn leader(engine: &Engine, config: &NetConfig, partition: TopicPartition) -> BrokerId {
    match config.advertise {
        Advertise::Node => BrokerId(engine.node_id()),
        Advertise::Shard => shard_broker(engine, engine.owner(partition)),
    }
}

/// Whether clients believe that the broker which they asked has a replica of a partition: of several brokers, each has
/// those of its own shard.
pub(super) fn is_replica_here(engine: &Engine, config: &NetConfig, partition: TopicPartition) -> bool {
    match config.advertise {
        Advertise::Node => true,
        Advertise::Shard => engine.owner(partition) == engine.shard(),
    }
}

/// The broker that clients are told is the controller.
pub(super) fn controller(engine: &Engine) -> BrokerId {
    BrokerId(engine.node_id())
}

/// Who decides: the node, which has always seen all that it changed.
pub(super) fn quorum(engine: &Engine, config: &NetConfig) -> Quorum {
    let leader = controller(engine);
    let listeners = config.listeners.iter();
    let listeners = listeners.map(|at| (at.name.clone(), at.advertised_host.clone(), at.advertised_port)).collect();
    Quorum { leader, epoch: LEADER_EPOCH, seen: 0, voters: vec![(leader, listeners)] }
}

/// The ids of all brokers.
pub(super) fn broker_ids(engine: &Engine, config: &NetConfig) -> Vec<BrokerId> {
    match config.advertise {
        Advertise::Node => vec![BrokerId(engine.node_id())],
        Advertise::Shard => (0..engine.shards()).map(|shard| shard_broker(engine, shard)).collect(),
    }
}

/// The broker as which a shard is advertised.
fn shard_broker(engine: &Engine, shard: usize) -> BrokerId {
    let shard = i32::try_from(shard).expect("a node has few shards");
    BrokerId(engine.node_id() + shard)
}
