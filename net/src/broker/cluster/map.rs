//! Where other nodes are, for brokers that ask each other: by the listener that is for them (`inter.broker.listener.name`).

use std::rc::Rc;

use millrace_engine::api::TopicPartition;

use super::Cluster;
use crate::client::{ClusterMap, Led, NodeAddress};

/// What the newest image of a shard says.
pub(crate) struct SeenNodes {
    pub(crate) cluster: Rc<Cluster>,
    /// This node.
    pub(crate) here: i32,
    /// Name of the listener for other brokers.
    pub(crate) listener: String,
}

impl ClusterMap for SeenNodes {
    fn here(&self) -> i32 {
        self.here
    }

    fn led(&self, partition: TopicPartition) -> Option<Led> {
        let image = self.cluster.image();
        let state = &image.partition(partition)?.value;
        state.leader.map(|leader| Led { node: leader.node, epoch: state.leader_epoch })
    }

    fn address(&self, node: i32) -> Option<NodeAddress> {
        let image = self.cluster.image();
        let state = image.nodes.get(&node)?;
        let endpoint = state.endpoints.iter().find(|endpoint| endpoint.listener == self.listener)?;
        Some(NodeAddress { life: state.epoch, host: endpoint.host.clone(), port: endpoint.port })
    }
}
