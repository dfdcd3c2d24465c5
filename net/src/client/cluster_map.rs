//! What a shard must know of its cluster to ask other brokers: who leads a partition, and where a node is.

use millrace_engine::api::TopicPartition;

/// Who leads a partition, as the newest image of the cluster says. It may be ahead of what the nodes themselves know, or
/// behind: who is asked in vain says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This node.
    Here,
    /// Another node.
    Node(i32),
    /// Nobody, or the partition is not known.
    Nobody,
}

/// Who leads a partition, and in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    /// The node.
    pub node: i32,
    /// The leader epoch.
    pub epoch: i32,
}

/// Where a life of a node takes requests of other brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The life: a node that began anew has another one.
    pub life: i64,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// See the module. Answers are those of the newest image.
pub trait ClusterMap {
    /// This node's id.
    fn here(&self) -> i32;
    /// Who leads a partition; `None` for nobody.
    fn led(&self, partition: TopicPartition) -> Option<Led>;
    /// Where a node takes requests of other brokers; `None`: it does not live, or has no listener for them.
    fn address(&self, node: i32) -> Option<NodeAddress>;
}
