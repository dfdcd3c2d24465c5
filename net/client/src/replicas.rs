//! Nodes and replicas: who is there, other replicas for partitions, other leaders, nodes that will not come back.

use kafka_protocol::{
    messages::{
        AlterPartitionReassignmentsRequest, BrokerId, ElectLeadersRequest, ListPartitionReassignmentsRequest,
        UnregisterBrokerRequest,
        alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
        elect_leaders_request::TopicPartitions,
    },
    protocol::StrBytes,
};

use crate::{
    cluster::Cluster,
    error::{ClientError, partition_named},
    requests::topic_name,
};

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: i32,
    /// Where this client was told to connect.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// Where it stands, if it says so.
    pub rack: Option<String>,
}

/// A cluster as one of its nodes tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Its id.
    pub cluster_id: Option<String>,
    /// Nodes that live, by id.
    pub nodes: Vec<Node>,
    /// Whoever is said to decide, if anybody.
    pub controller: Option<i32>,
}

/// Replicas that a partition is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Ids of nodes, the preferred leader first; `None` takes back what is under way.
    pub replicas: Option<Vec<i32>>,
}

/// A leader is elected from all replicas that live, whether or not they are in sync.
const UNCLEAN: i8 = 1;
const PREFERRED: i8 = 0;

/// ELECTION_NOT_NEEDED
const ELECTION_NOT_NEEDED: i16 = 84;

/// Who shall lead after an election that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Election {
    /// The first replica, if it is in sync.
    Preferred,
    /// Any replica that lives, where nobody leads: acknowledged records may be lost.
    Unclean,
}

impl Cluster {
    /// Who is there.
    pub fn members(&mut self) -> Result<Members, ClientError> {
        self.retry(|cluster| {
            let response = cluster.fetch_metadata(Some(&[]), false)?;
            let mut nodes: Vec<_> = response
                .brokers
                .iter()
                .map(|broker| Node {
                    id: broker.node_id.0,
                    host: broker.host.to_string(),
                    port: u16::try_from(broker.port).unwrap_or(0),
                    rack: broker.rack.as_ref().map(ToString::to_string),
                })
                .collect();
            nodes.sort_by_key(|node| node.id);
            let controller = Some(response.controller_id.0).filter(|id| *id >= 0);
            Ok(Members { cluster_id: response.cluster_id.map(|id| id.to_string()), nodes, controller })
        })
    }

    /// Gives partitions other replicas; answers when that has begun. The first refusal is the error, and others may have
    /// begun all the same.
    pub fn reassign(&mut self, reassignments: &[Reassignment]) -> Result<(), ClientError> {
        self.retry(|cluster| {
            let timeout_ms = cluster.timeout_ms();
            let topics = reassignments.iter().map(|wanted| {
                let replicas = wanted.replicas.as_ref().map(|ids| ids.iter().copied().map(BrokerId).collect());
                let partition =
                    ReassignablePartition::default().with_partition_index(wanted.partition).with_replicas(replicas);
                ReassignableTopic::default().with_name(topic_name(&wanted.topic)).with_partitions(vec![partition])
            });
            let topics = topics.collect();
            let response = cluster.controller(|_| {
                AlterPartitionReassignmentsRequest::default().with_topics(topics).with_timeout_ms(timeout_ms)
            })?;
            ClientError::check("reassignment", response.error_code, response.error_message.as_deref())?;
            for topic in &response.responses {
                for partition in &topic.partitions {
                    let what = partition_named(&topic.name, partition.partition_index);
                    ClientError::check(what, partition.error_code, partition.error_message.as_deref())?;
                }
            }
            Ok(())
        })
    }

    /// Partitions whose replicas are being changed, by topic and index.
    pub fn reassigning(&mut self) -> Result<Vec<(String, i32)>, ClientError> {
        self.retry(|cluster| {
            let timeout_ms = cluster.timeout_ms();
            let response = cluster.controller(|_| {
                ListPartitionReassignmentsRequest::default().with_topics(None).with_timeout_ms(timeout_ms)
            })?;
            ClientError::check("reassignments", response.error_code, response.error_message.as_deref())?;
            let topics = response.topics.iter();
            Ok(topics.flat_map(|t| t.partitions.iter().map(|p| (t.name.to_string(), p.partition_index))).collect())
        })
    }

    /// Has leaders elected for these partitions of a topic. That none is needed is no error.
    pub fn elect(&mut self, election: Election, topic: &str, partitions: &[i32]) -> Result<(), ClientError> {
        self.retry(|cluster| {
            let timeout_ms = cluster.timeout_ms();
            let wanted = TopicPartitions::default().with_topic(topic_name(topic)).with_partitions(partitions.to_vec());
            let kind = match election {
                Election::Preferred => PREFERRED,
                Election::Unclean => UNCLEAN,
            };
            let response = cluster.controller(|version| {
                let request = ElectLeadersRequest::default()
                    .with_topic_partitions(Some(vec![wanted]))
                    .with_timeout_ms(timeout_ms);
                if version == 0 { request } else { request.with_election_type(kind) }
            })?;
            ClientError::check("election", response.error_code, None)?;
            for result in response.replica_election_results.iter().flat_map(|topic| &topic.partition_result) {
                if result.error_code != ELECTION_NOT_NEEDED {
                    let what = partition_named(topic, result.partition_id);
                    ClientError::check(what, result.error_code, result.error_message.as_deref())?;
                }
            }
            Ok(())
        })
    }

    /// Takes a node out of the cluster that will not come back.
    pub fn unregister(&mut self, node: i32) -> Result<(), ClientError> {
        self.retry(|cluster| {
            let response = cluster.controller(|_| UnregisterBrokerRequest::default().with_broker_id(BrokerId(node)))?;
            let message = response.error_message.as_ref().map(StrBytes::as_str);
            ClientError::check(format!("node {node}"), response.error_code, message)
        })
    }
}
