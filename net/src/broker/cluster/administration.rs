//! Changes to the cluster: topics and their partitions, settings, replicas, leaders.
//!
//! The only place where handlers ask for one. A change is durable, and known to this node, when its call returns.

use std::{collections::BTreeMap, rc::Weak};

use futures_util::future::LocalBoxFuture;
use kafka_protocol::{ResponseError, messages::BrokerId};
use millrace_engine::api::{ConfigChange, NewTopic, TopicId, TopicPartition};
use millrace_replica::cluster::plane::{CreationDefaults, FactorChange, Mode};

use super::{ClusterView, Membership, control::control_error};
use crate::{
    broker::{settings::replication, shard::BrokerShard},
    coordinator::runtime::ClusterControl,
    errors::{ApiError, log_error},
};

/// How the partitions of a topic come to their replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Wherever there is room for them.
    Automatic {
        /// Number of partitions.
        partitions: i32,
        /// Replicas of each; none: as many as is the default.
        replication_factor: Option<i16>,
    },
    /// These are the replicas, by index of the partition.
    Assigned(Vec<Vec<BrokerId>>),
}

impl Layout {
    /// Number of partitions.
    pub(crate) fn partitions(&self) -> i32 {
        match self {
            Layout::Automatic { partitions, .. } => *partitions,
            Layout::Assigned(replicas) => i32::try_from(replicas.len()).unwrap_or(i32::MAX),
        }
    }
}

/// A topic that shall be.
#[derive(Debug, Clone)]
pub(crate) struct TopicPlan {
    /// Its name.
    pub(crate) name: String,
    /// Its partitions.
    pub(crate) layout: Layout,
    /// Settings that differ from the defaults.
    pub(crate) configs: BTreeMap<String, String>,
}

impl TopicPlan {
    /// A topic that the cluster keeps its own state in: on several brokers as soon as there are several.
    pub(crate) fn internal(topic: NewTopic, view: &ClusterView<'_>) -> TopicPlan {
        let possible = i16::try_from(view.replicas_max()).unwrap_or(i16::MAX);
        let wanted = replication::internal_factor(&view.config.broker_settings, &topic.name);
        let factor = wanted.min(possible);
        let layout = Layout::Automatic { partitions: topic.partitions, replication_factor: Some(factor) };
        let min_isr = replication::internal_min_isr(&view.config.broker_settings, &topic.name);
        let min_isr = min_isr.map(|count| ("min.insync.replicas".to_owned(), count.to_string()));
        TopicPlan { name: topic.name, layout, configs: topic.configs.into_iter().chain(min_isr).collect() }
    }
}

/// A topic that is, or would be.
#[derive(Debug, Clone)]
pub(crate) struct CreatedTopic {
    /// Its id.
    pub(crate) id: TopicId,
    /// Number of partitions.
    pub(crate) partitions: i32,
    /// Replicas of each.
    pub(crate) replication_factor: i16,
    /// Settings that differ from the defaults.
    pub(crate) overrides: BTreeMap<String, String>,
}

/// Which replica shall lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Election {
    /// The first of all, if it is in sync.
    Preferred,
    /// Any that lives, if there is no other way: records may be lost.
    Unclean,
}

/// Whose dynamic settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This node's, and those that all nodes have in common.
    Here,
    /// Another node's.
    Node(i32),
}

/// See the module. Replicas and partitions of requests are checked before: what is left to refuse is what only who keeps
/// the cluster's state knows.
pub(crate) struct Administration<'a> {
    view: ClusterView<'a>,
    membership: &'a Membership,
}

impl<'a> Administration<'a> {
    /// Of the cluster that is seen.
    pub(crate) fn new(view: ClusterView<'a>, membership: &'a Membership) -> Administration<'a> {
        Administration { view, membership }
    }

    /// Creates a topic, or only says what it would be.
    pub(crate) async fn create_topic(&self, plan: TopicPlan, validate_only: bool) -> Result<CreatedTopic, ApiError> {
        if let Membership::Clustered(cluster) = self.membership {
            let defaults = CreationDefaults {
                partitions: self.view.config.num_partitions,
                replication_factor: replication::default_factor(&self.view.config.broker_settings),
            };
            return cluster.create_topic(plan, defaults, mode(validate_only)).await;
        }
        let partitions = plan.layout.partitions();
        let new = NewTopic { name: plan.name, partitions, configs: plan.configs };
        let created = self.view.engine.create_topic(new, validate_only).await?;
        Ok(CreatedTopic {
            id: created.id,
            partitions: created.partitions,
            replication_factor: 1,
            overrides: created.overrides.clone(),
        })
    }

    /// Deletes a topic.
    pub(crate) async fn delete_topic(&self, topic: TopicId) -> Result<(), ApiError> {
        match self.membership {
            Membership::Alone => Ok(self.view.engine.delete_topic(topic).await?),
            Membership::Clustered(cluster) => cluster.delete_topic(topic).await,
        }
    }

    /// Gives a topic more partitions, so that it has `count`; `assigned` are the replicas of the new ones, if that is
    /// somebody's choice.
    pub(crate) async fn create_partitions(
        &self,
        topic: TopicId,
        count: i32,
        assigned: Option<Vec<Vec<BrokerId>>>,
        validate_only: bool,
    ) -> Result<(), ApiError> {
        match self.membership {
            Membership::Alone => Ok(self.view.engine.create_partitions(topic, count, validate_only).await?),
            Membership::Clustered(cluster) => {
                cluster.create_partitions(topic, count, assigned, mode(validate_only)).await
            }
        }
    }

    /// Changes a topic's settings.
    pub(crate) async fn alter_topic(
        &self,
        topic: TopicId,
        changes: Vec<ConfigChange>,
        validate_only: bool,
    ) -> Result<(), ApiError> {
        match self.membership {
            Membership::Alone => Ok(self.view.engine.alter_topic(topic, changes, validate_only).await?),
            Membership::Clustered(cluster) => cluster.alter_topic(topic, changes, mode(validate_only)).await,
        }
    }

    /// Changes dynamic settings of brokers, as `decide` chooses, which is shown those in force: no other change comes
    /// between its look and what it decides. It may be asked more than once.
    pub(crate) async fn change_settings(
        &self,
        whose: Whose,
        validate_only: bool,
        decide: impl FnMut(&BTreeMap<String, String>) -> Result<Vec<ConfigChange>, ApiError> + Send + 'static,
    ) -> Result<(), ApiError> {
        match self.membership {
            Membership::Alone => self.view.engine.change_broker_settings(validate_only, decide).await,
            Membership::Clustered(cluster) => cluster.change_settings(whose, mode(validate_only), decide).await,
        }
    }

    /// Begins to move partitions to other replicas; no replicas end a move that is under way. One answer each, in order.
    pub(crate) async fn reassign(
        &self,
        wanted: Vec<(TopicPartition, Option<Vec<BrokerId>>)>,
        factor: FactorChange,
    ) -> Vec<Result<(), ApiError>> {
        match self.membership {
            Membership::Alone => wanted.into_iter().map(|(partition, to)| self.stay(partition, to)).collect(),
            Membership::Clustered(cluster) => cluster.reassign(wanted, factor).await,
        }
    }

    /// The only place of a partition is where it is.
    fn stay(&self, partition: TopicPartition, replicas: Option<Vec<BrokerId>>) -> Result<(), ApiError> {
        let replicas = replicas.ok_or(ApiError::from(ResponseError::NoReassignmentInProgress))?;
        let leader = self.view.partition(partition).leader_id();
        if replicas != [leader] {
            let reason = format!("The partition lives on broker {} and cannot be moved.", leader.0);
            return Err(ApiError::new(ResponseError::InvalidReplicaAssignment, reason));
        }
        Ok(())
    }

    /// Has leaders elected. One answer each, in order.
    pub(crate) async fn elect(&self, election: Election, partitions: Vec<TopicPartition>) -> Vec<Result<(), ApiError>> {
        if let Membership::Clustered(cluster) = self.membership {
            return cluster.elect(election, partitions).await;
        }
        let reason = "Leader election not needed for topic partition.";
        partitions.iter().map(|_| Err(ApiError::new(ResponseError::ElectionNotNeeded, reason))).collect()
    }

    /// Forgets a broker that will not come back.
    pub(crate) async fn unregister(&self, broker: BrokerId) -> Result<(), ApiError> {
        match self.membership {
            Membership::Alone => {
                let reason = "The node belongs to no cluster.";
                Err(ApiError::new(ResponseError::InvalidRequest, reason))
            }
            Membership::Clustered(cluster) => cluster.unregister(broker.0).await,
        }
    }

    /// A producer id that was never given out before.
    pub(crate) async fn next_producer_id(&self) -> Result<i64, ApiError> {
        match self.membership {
            Membership::Alone => self.view.engine.next_producer_id().await.map_err(|error| log_error(&error).into()),
            Membership::Clustered(cluster) => cluster.next_producer_id().await.map_err(control_error),
        }
    }
}

fn mode(validate_only: bool) -> Mode {
    if validate_only { Mode::Validate } else { Mode::Apply }
}

/// What coordinators of a node in a cluster ask of its control plane.
pub(crate) struct CoordinatorControl {
    /// Of the shard that asks.
    pub(crate) shard: Weak<BrokerShard>,
}

impl ClusterControl for CoordinatorControl {
    fn make_topic(&self, topic: NewTopic) -> LocalBoxFuture<'_, Result<(), ResponseError>> {
        Box::pin(async move {
            let shard = self.shard.upgrade().ok_or(ResponseError::CoordinatorNotAvailable)?;
            let listener = &shard.config.listeners[0];
            let view = ClusterView::new((&shard.engine, &shard.config), &shard.membership, listener);
            let (name, plan) = (topic.name.clone(), TopicPlan::internal(topic, &view));
            let created = Administration::new(view, &shard.membership).create_topic(plan, false).await;
            match created {
                Ok(_) => Ok(()),
                // another node or shard was faster
                Err(error) if error.error == ResponseError::TopicAlreadyExists => Ok(()),
                Err(error) => {
                    let message = error.message.unwrap_or_default();
                    tracing::error!(topic = name, error = %error.error, %message, "the topic cannot be created");
                    Err(ResponseError::CoordinatorNotAvailable)
                }
            }
        })
    }

    fn next_producer_id(&self) -> LocalBoxFuture<'_, Result<i64, ResponseError>> {
        Box::pin(async move {
            let shard = self.shard.upgrade().ok_or(ResponseError::CoordinatorNotAvailable)?;
            let view = ClusterView::new((&shard.engine, &shard.config), &shard.membership, &shard.config.listeners[0]);
            let id = Administration::new(view, &shard.membership).next_producer_id().await;
            // clients try that again
            id.map_err(|_| ResponseError::CoordinatorNotAvailable)
        })
    }
}
