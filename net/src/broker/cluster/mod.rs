//! The cluster as clients are told it is: nodes and their addresses, the controller, and the state of each partition.
//!
//! The only place where handlers learn of these, and change them. A node that belongs to no cluster is all there is
//! ([`alone`]); one of several says what its image says ([`clustered`]). A view is of one moment: what one answer says
//! fits together.

mod administration;
mod alone;
mod clustered;
mod control;
mod leaders;
mod map;
mod membership;
mod partition;

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use futures_util::future::select;
use kafka_protocol::{ResponseError, messages::BrokerId, protocol::StrBytes};
use millrace_engine::{
    api::{LogError, TopicPartition},
    engine::Engine,
};
use millrace_replica::cluster::{image::Image, model::NodeId};

use self::clustered::Seen;
pub use self::membership::{Cluster, Membership};
pub(crate) use self::{
    administration::{Administration, CoordinatorControl, CreatedTopic, Election, Layout, TopicPlan, Whose},
    leaders::NamedLeaders,
    map::SeenNodes,
    partition::{Moving, PartitionView},
};
use crate::{
    broker::{
        config::{ListenerConfig, NetConfig},
        settings::replication,
    },
    errors::log_error,
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

/// A listener of a voter: name, host, port.
pub(crate) type VoterListener = (String, String, u16);

/// Who decides about leaders, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quorum {
    /// The controller, -1 for none.
    pub(crate) leader: BrokerId,
    /// The controller epoch.
    pub(crate) epoch: i32,
    /// Up to where this node has seen changes of the cluster.
    pub(crate) seen: i64,
    /// Those that may be controller, with all their listeners.
    pub(crate) voters: Vec<(BrokerId, Vec<VoterListener>)>,
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
#[derive(Clone)]
pub(crate) struct ClusterView<'a> {
    engine: &'a Engine,
    config: &'a NetConfig,
    listener: &'a ListenerConfig,
    /// Of a node that belongs to a cluster.
    image: Option<Rc<Image>>,
    /// Nodes that are likely to be gone, of such a node as well.
    doubted: Option<Rc<BTreeSet<NodeId>>>,
    cluster: Option<&'a Cluster>,
}

impl<'a> ClusterView<'a> {
    /// The cluster of now, with the addresses that are for those who come through a listener.
    pub(crate) fn new(
        (engine, config): (&'a Engine, &'a NetConfig),
        membership: &'a Membership,
        listener: &'a ListenerConfig,
    ) -> ClusterView<'a> {
        let cluster = match membership {
            Membership::Alone => None,
            Membership::Clustered(cluster) => Some(&**cluster),
        };
        let (image, doubted) = (cluster.map(Cluster::image), cluster.map(Cluster::doubted));
        ClusterView { engine, config, listener, image, doubted, cluster }
    }

    fn seen(&self) -> Option<Seen<'_>> {
        let (image, doubted) = (self.image.as_deref()?, self.doubted.as_deref()?);
        Some(Seen { image, listener: &self.listener.name, node: self.engine.node_id(), doubted })
    }

    /// Waits until there is something newer to see than this view, but not for longer than that. Whether there is.
    pub(crate) async fn is_outdated_within(&self, most: Duration) -> bool {
        let Some(cluster) = self.cluster else { return false };
        let is_outdated = || {
            let image = self.image.as_ref().is_some_and(|image| Rc::ptr_eq(image, &cluster.image()));
            let doubted = self.doubted.as_ref().is_some_and(|doubted| Rc::ptr_eq(doubted, &cluster.doubted()));
            !image || !doubted
        };
        if !is_outdated() {
            select(std::pin::pin!(cluster.news()), std::pin::pin!(glommio::timer::sleep(most))).await;
        }
        is_outdated()
    }

    /// The cluster's id as Kafka writes it.
    pub(crate) fn id(&self) -> StrBytes {
        let told = self.image.as_ref().and_then(|image| image.cluster_id);
        StrBytes::from_string(kafka_uuid(told.unwrap_or_else(|| self.engine.cluster_id())))
    }

    /// All brokers that serve now, by rising id.
    pub(crate) fn brokers(&self) -> Vec<Broker> {
        self.seen().map_or_else(|| alone::brokers(self.engine, self.config, self.listener), Seen::brokers)
    }

    /// The ids of all brokers that serve now.
    pub(crate) fn broker_ids(&self) -> Vec<BrokerId> {
        match &self.image {
            None => alone::broker_ids(self.engine, self.config),
            Some(image) => image.nodes.keys().copied().map(BrokerId).collect(),
        }
    }

    /// Whether the settings of a broker are this node's.
    pub(crate) fn is_here(&self, id: BrokerId) -> bool {
        match &self.image {
            None => self.broker_ids().contains(&id),
            Some(_) => id.0 == self.engine.node_id(),
        }
    }

    /// Whether another node is registered under an id.
    pub(crate) fn has(&self, id: BrokerId) -> bool {
        self.image.as_ref().is_some_and(|image| image.nodes.contains_key(&id.0) || image.known.contains_key(&id.0))
    }

    /// Brokers that are registered and do not serve now, with where they stand: their addresses are not known any more.
    pub(crate) fn fenced_brokers(&self) -> Vec<(BrokerId, Option<StrBytes>)> {
        let Some(image) = &self.image else { return Vec::new() };
        let away = image.known.iter().filter(|(id, _)| !image.nodes.contains_key(id));
        away.map(|(id, node)| (BrokerId(*id), node.rack.clone().map(StrBytes::from_string))).collect()
    }

    /// A broker that serves now.
    pub(crate) fn broker(&self, id: BrokerId) -> Option<Broker> {
        match self.seen() {
            None => self.brokers().into_iter().find(|broker| broker.id == id),
            Some(seen) => seen.broker(id),
        }
    }

    /// The broker that clients are told is the controller; -1 for none.
    pub(crate) fn controller(&self) -> BrokerId {
        self.seen().map_or_else(|| alone::controller(self.engine), Seen::controller)
    }

    /// Who decides about leaders.
    pub(crate) fn quorum(&self) -> Quorum {
        self.seen().map_or_else(|| alone::quorum(self.engine, self.config), Seen::quorum)
    }

    /// The state of a partition.
    pub(crate) fn partition(&self, partition: TopicPartition) -> PartitionView {
        match self.seen() {
            None => {
                let leader = alone::leader(self.engine, self.config, partition);
                PartitionView::single(leader, self.engine.placed_epoch(partition))
            }
            Some(seen) => seen.partition(partition),
        }
    }

    /// The move to other replicas that a partition is in.
    pub(crate) fn moving(&self, partition: TopicPartition) -> Option<Moving> {
        self.seen()?.moving(partition)
    }

    /// How many replicas a partition can have.
    pub(crate) fn replicas_max(&self) -> usize {
        self.image.as_ref().map_or(alone::REPLICAS_MAX, |image| image.nodes.len())
    }

    /// From whom a consumer that stands in that rack should read a partition.
    pub(crate) fn reading(&self, partition: TopicPartition, rack: &str) -> Reading {
        let Some(seen) = self.seen() else { return Reading::Leader };
        let is_asked = !rack.is_empty() && replication::selects_by_rack(&self.config.broker_settings);
        seen.reading(partition, if is_asked { rack } else { "" })
    }

    /// The code of an error of the log: a partition that is not here, but that the cluster has, has its leader elsewhere.
    pub(crate) fn log_error(&self, partition: TopicPartition, error: &LogError) -> ResponseError {
        let is_known = || self.image.as_ref().is_some_and(|image| image.partition(partition).is_some());
        match error {
            LogError::UnknownPartition if is_known() => ResponseError::NotLeaderOrFollower,
            error => log_error(error),
        }
    }

    /// Whether the node is one of several: leaders change, and it matters in which epoch a record was written.
    pub(crate) fn has_epochs(&self) -> bool {
        self.image.is_some()
    }

    /// Who leads a partition, for a client that believes in somebody else (KIP-951). `None`: there is nobody else.
    pub(crate) fn current_leader(&self, partition: TopicPartition) -> Option<CurrentLeader> {
        self.seen()?.current_leader(partition)
    }

    /// Whether clients believe that the broker which they asked has a replica of a partition.
    pub(crate) fn is_replica_here(&self, partition: TopicPartition) -> bool {
        match self.seen() {
            None => alone::is_replica_here(self.engine, self.config, partition),
            Some(seen) => seen.is_replica_here(partition),
        }
    }
}
