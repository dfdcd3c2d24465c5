//! The cluster as clients are told it is: one broker, or one broker per shard.

use kafka_protocol::{messages::BrokerId, protocol::StrBytes};
use millrace_engine::{api::TopicPartition, engine::Engine};

use crate::{
    broker::config::{Advertise, ListenerConfig, NetConfig},
    kafka_uuid::kafka_uuid,
};

/// A broker that clients are told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) id: BrokerId,
    pub(crate) host: StrBytes,
    pub(crate) port: i32,
}

/// All brokers, by rising id, at the addresses that are for those who come through a listener.
pub(crate) fn brokers(engine: &Engine, config: &NetConfig, listener: &ListenerConfig) -> Vec<Broker> {
    let host = StrBytes::from_string(listener.advertised_host.clone());
    let at = |id, port: u16| Broker { id, host: host.clone(), port: port.into() };
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
pub(crate) fn leader(engine: &Engine, config: &NetConfig, partition: TopicPartition) -> BrokerId {
    match config.advertise {
        Advertise::Node => BrokerId(engine.node_id()),
        Advertise::Shard => shard_broker(engine, engine.owner(partition)),
    }
}

/// Whether clients believe that the broker which they asked has a replica of a partition: of several brokers, each has
/// those of its own shard.
pub(crate) fn is_replica_here(engine: &Engine, config: &NetConfig, partition: TopicPartition) -> bool {
    match config.advertise {
        Advertise::Node => true,
        Advertise::Shard => engine.owner(partition) == engine.shard(),
    }
}

/// The broker that clients are told is the controller.
pub(crate) fn controller(engine: &Engine) -> BrokerId {
    BrokerId(engine.node_id())
}

/// What is said of operations when nobody asked.
pub(crate) const NO_OPERATIONS: i32 = i32::MIN;

/// The client id with which Kafka's own administration may write to internal topics.
pub(crate) const ADMIN_CLIENT_ID: &str = "__admin_client";

/// Whether a topic is one of those that Kafka keeps its own state in: clients hide it by default.
pub(crate) fn is_internal(topic: &str) -> bool {
    matches!(topic, "__consumer_offsets" | "__transaction_state" | "__share_group_state")
}

/// The ids of all brokers.
pub(crate) fn broker_ids(engine: &Engine, config: &NetConfig) -> Vec<BrokerId> {
    match config.advertise {
        Advertise::Node => vec![BrokerId(engine.node_id())],
        Advertise::Shard => (0..engine.shards()).map(|shard| shard_broker(engine, shard)).collect(),
    }
}

/// The broker as which a shard is advertised.
pub(crate) fn shard_broker(engine: &Engine, shard: usize) -> BrokerId {
    let shard = i32::try_from(shard).expect("a node has few shards");
    BrokerId(engine.node_id() + shard)
}

/// The cluster's id as Kafka writes it.
pub(crate) fn cluster_id(engine: &Engine) -> StrBytes {
    StrBytes::from_string(kafka_uuid(engine.cluster_id()))
}
