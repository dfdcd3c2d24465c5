//! The cluster as clients are told it is: nodes and their addresses, the controller, and the state of each partition.
//!
//! The only place where handlers learn of these. A node that belongs to no cluster is all there is ([`alone`]).
//! A view is of one moment: what one answer says fits together.

mod administration;
mod alone;
mod partition;

use kafka_protocol::{messages::BrokerId, protocol::StrBytes};
use millrace_engine::{api::TopicPartition, engine::Engine};

pub(crate) use self::{
    administration::{Administration, CreatedTopic, Election, Layout, TopicPlan},
    partition::PartitionView,
};
use crate::{
    broker::config::{ListenerConfig, NetConfig},
    kafka_uuid::kafka_uuid,
};

/// A broker that clients are told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broker {
    /// Its id.
    pub(crate) id: BrokerId,
    /// Where clients of the listener that was asked through find it.
    pub(crate) host: StrBytes,
    /// The port there.
    pub(crate) port: i32,
    /// Where it stands (`broker.rack`).
    pub(crate) rack: Option<StrBytes>,
}

/// From whom a consumer should read a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// From here: this node leads it.
    Leader,
    /// From here, as far as this replica is.
    Replica,
    /// This node leads it, but that replica is nearer to the consumer (KIP-392).
    Nearer(BrokerId),
    /// Not from here.
    Nowhere,
}

/// Who leads a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CurrentLeader {
    /// The leader, -1 for none.
    pub(crate) id: BrokerId,
    /// The epoch in which it leads.
    pub(crate) epoch: i32,
    /// The leader's address, if clients can reach it.
    pub(crate) broker: Option<Broker>,
}

/// What is said of operations when nobody asked.
pub(crate) const NO_OPERATIONS: i32 = i32::MIN;

/// The client id with which Kafka's own administration may write to internal topics.
pub(crate) const ADMIN_CLIENT_ID: &str = "__admin_client";

/// Whether a topic is one of those that Kafka keeps its own state in: clients hide it by default.
pub(crate) fn is_internal(topic: &str) -> bool {
    matches!(topic, "__consumer_offsets" | "__transaction_state" | "__share_group_state")
}

/// See the module.
pub(crate) struct ClusterView<'a> {
    engine: &'a Engine,
    config: &'a NetConfig,
    listener: &'a ListenerConfig,
}

impl<'a> ClusterView<'a> {
    /// The cluster of now, with the addresses that are for those who come through a listener.
    pub(crate) fn new(engine: &'a Engine, config: &'a NetConfig, listener: &'a ListenerConfig) -> ClusterView<'a> {
        ClusterView { engine, config, listener }
    }

    /// The cluster's id as Kafka writes it.
    pub(crate) fn id(&self) -> StrBytes {
        StrBytes::from_string(kafka_uuid(self.engine.cluster_id()))
    }

    /// All brokers that serve now, by rising id.
    pub(crate) fn brokers(&self) -> Vec<Broker> {
        alone::brokers(self.engine, self.config, self.listener)
    }

    /// The ids of all brokers that serve now.
    pub(crate) fn broker_ids(&self) -> Vec<BrokerId> {
        alone::broker_ids(self.engine, self.config)
    }

    /// A broker that serves now.
    pub(crate) fn broker(&self, id: BrokerId) -> Option<Broker> {
        self.brokers().into_iter().find(|broker| broker.id == id)
    }

    /// The broker that clients are told is the controller.
    pub(crate) fn controller(&self) -> BrokerId {
        alone::controller(self.engine)
    }

    /// The state of a partition.
    pub(crate) fn partition(&self, partition: TopicPartition) -> PartitionView {
        PartitionView::single(alone::leader(self.engine, self.config, partition))
    }

    /// How many replicas a partition can have.
    pub(crate) fn replicas_max(&self) -> usize {
        alone::REPLICAS_MAX
    }

    /// From whom a consumer that stands in that rack should read a partition.
    pub(crate) fn reading(&self, _partition: TopicPartition, _rack: &str) -> Reading {
        Reading::Leader
    }

    /// Whether the cluster knows a partition, wherever it is.
    pub(crate) fn is_known(&self, _partition: TopicPartition) -> bool {
        false
    }

    /// Whether leaders change, so that it matters in which epoch a record was written.
    pub(crate) fn has_epochs(&self) -> bool {
        false
    }

    /// Who leads a partition, for a client that believes in somebody else (KIP-951). `None`: there is nobody else.
    pub(crate) fn current_leader(&self, _partition: TopicPartition) -> Option<CurrentLeader> {
        None
    }

    /// Whether clients believe that the broker which they asked has a replica of a partition.
    pub(crate) fn is_replica_here(&self, partition: TopicPartition) -> bool {
        alone::is_replica_here(self.engine, self.config, partition)
    }
}
