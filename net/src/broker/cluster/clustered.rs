//! A node among others: what an image says, as clients of one listener see it.

use std::collections::BTreeSet;

use kafka_protocol::{ResponseError, messages::BrokerId, protocol::StrBytes};
use millrace_engine::api::TopicPartition;
use millrace_replica::cluster::{
    image::Image,
    model::{Member, NodeId, NodeState, PartitionState},
};

use super::{Broker, CurrentLeader, Moving, PartitionView, Quorum, Reading};

/// An image as seen through a listener of a node.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) image: &'a Image,
    /// Name of the listener.
    pub(super) listener: &'a str,
    /// The node that looks.
    pub(super) node: NodeId,
    /// Nodes whose processes are likely to be gone, which no image shows yet.
    pub(super) doubted: &'a BTreeSet<NodeId>,
}

impl Seen<'_> {
    /// Nodes that clients of the listener can reach, by rising id.
    pub(super) fn brokers(self) -> Vec<Broker> {
        self.image.nodes.values().filter_map(|node| self.broker_of(node)).collect()
    }

    /// A node that they can reach.
    pub(super) fn broker(self, id: BrokerId) -> Option<Broker> {
        self.broker_of(self.image.nodes.get(&id.0)?)
    }

    fn broker_of(self, node: &NodeState) -> Option<Broker> {
        let endpoint = node.endpoints.iter().find(|endpoint| endpoint.listener == self.listener)?;
        Some(Broker {
            id: BrokerId(node.id),
            host: StrBytes::from_string(endpoint.host.clone()),
            port: endpoint.port.into(),
            rack: node.rack.clone().map(StrBytes::from_string),
        })
    }

    /// The controller; -1 for none.
    pub(super) fn controller(self) -> BrokerId {
        BrokerId(self.image.controller.map_or(-1, |controller| controller.node))
    }

    /// Who decides: any node may be the controller.
    pub(super) fn quorum(self) -> Quorum {
        let listeners = |node: &NodeState| {
            let endpoints = node.endpoints.iter();
            endpoints.map(|at| (at.listener.clone(), at.host.clone(), at.port)).collect()
        };
        Quorum {
            leader: self.controller(),
            epoch: self.image.controller.map_or(-1, |controller| i32::try_from(controller.epoch).unwrap_or(i32::MAX)),
            seen: self.image.revision,
            voters: self.image.nodes.values().map(|node| (BrokerId(node.id), listeners(node))).collect(),
        }
    }

    /// The move that a partition is in.
    pub(super) fn moving(self, partition: TopicPartition) -> Option<Moving> {
        let state = &self.image.partition(partition)?.value;
        let brokers = |nodes: &[NodeId]| nodes.iter().copied().map(BrokerId).collect();
        state.is_reassigning().then(|| Moving {
            replicas: brokers(&state.replicas),
            adding: brokers(&state.adding),
            removing: brokers(&state.removing),
        })
    }

    /// The state of a partition. One that the image does not know yet has no leader.
    pub(super) fn partition(self, partition: TopicPartition) -> PartitionView {
        let Some(state) = self.image.partition(partition).map(|partition| &partition.value) else {
            return PartitionView::unknown();
        };
        let is_offline = |node: &&NodeId| self.broker(BrokerId(**node)).is_none();
        PartitionView {
            leader: self.leader(state),
            leader_epoch: state.leader_epoch,
            replicas: state.replicas.iter().copied().map(BrokerId).collect(),
            isr: members(&state.isr),
            eligible: members(&state.elr),
            last_known_eligible: state.last_known_leader.iter().map(|member| BrokerId(member.node)).collect(),
            offline: state.replicas.iter().filter(is_offline).copied().map(BrokerId).collect(),
        }
    }

    /// A node whose process is likely to be gone leads nothing: a client that hears so asks again soon, while one that is sent
    /// back there waits for whatever its clocks say (librdkafka: for a second).
    fn leader(self, state: &PartitionState) -> Result<BrokerId, ResponseError> {
        let leader = state.leader.ok_or(ResponseError::LeaderNotAvailable)?;
        if self.doubted.contains(&leader.node) {
            return Err(ResponseError::LeaderNotAvailable);
        }
        let node = self.image.nodes.get(&leader.node).ok_or(ResponseError::LeaderNotAvailable)?;
        self.broker_of(node).map(|broker| broker.id).ok_or(ResponseError::ListenerNotFound)
    }

    /// Who leads a partition, as the image says; nobody, if that one's process is likely to be gone.
    pub(super) fn current_leader(self, partition: TopicPartition) -> Option<CurrentLeader> {
        let state = &self.image.partition(partition)?.value;
        let leader = state.leader.map(|leader| leader.node).filter(|node| !self.doubted.contains(node));
        let id = BrokerId(leader.unwrap_or(-1));
        Some(CurrentLeader { id, epoch: state.leader_epoch, broker: self.broker(id) })
    }

    /// From whom a consumer in that rack should read a partition; `rack` is empty if that does not matter. Of the replicas
    /// in sync, which have all that consumers may see, one that stands there.
    pub(super) fn reading(self, partition: TopicPartition, rack: &str) -> Reading {
        let Some(state) = self.image.partition(partition).map(|partition| &partition.value) else {
            // the engine knows better what has just come or gone
            return Reading::Leader;
        };
        if state.leader.is_none_or(|leader| leader.node != self.node) {
            return match state.replicas.contains(&self.node) {
                true => Reading::Replica,
                false => Reading::Nowhere,
            };
        }
        if rack.is_empty() || self.stands_in(self.node, rack) {
            return Reading::Leader;
        }
        let near: Vec<NodeId> =
            state.isr.iter().map(|member| member.node).filter(|node| self.stands_in(*node, rack)).collect();
        // partitions take turns
        let turn = usize::try_from(partition.partition).unwrap_or(0) % near.len().max(1);
        near.get(turn).map_or(Reading::Leader, |node| Reading::Nearer(BrokerId(*node)))
    }

    /// Whether a node is in a rack, and clients can reach it.
    fn stands_in(self, node: NodeId, rack: &str) -> bool {
        self.broker(BrokerId(node)).is_some_and(|broker| broker.rack.as_deref() == Some(rack))
    }

    /// Whether this node has a replica of a partition.
    pub(super) fn is_replica_here(self, partition: TopicPartition) -> bool {
        self.image.partition(partition).is_some_and(|state| state.value.replicas.contains(&self.node))
    }
}

fn members(members: &[Member]) -> Vec<BrokerId> {
    members.iter().map(|member| BrokerId(member.node)).collect()
}
