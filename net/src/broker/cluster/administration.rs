//! Changes to the cluster: topics and their partitions, settings, replicas, leaders.
//!
//! The only place where handlers ask for one. A change is durable, and known to this node, when its call returns.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::{ResponseError, messages::BrokerId};
use millrace_engine::{
    api::{ConfigChange, NewTopic, TopicId, TopicPartition},
    engine::{Engine, Topic},
};

use super::ClusterView;
use crate::errors::{ApiError, log_error, topic_error};

/// Replicas of an internal topic's partitions, when there are as many brokers.
const INTERNAL_REPLICAS: usize = 3;

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
        let replicas = view.broker_ids().len().min(view.replicas_max()).min(INTERNAL_REPLICAS);
        let replication_factor = i16::try_from(replicas).ok();
        let layout = Layout::Automatic { partitions: topic.partitions, replication_factor };
        TopicPlan { name: topic.name, layout, configs: topic.configs }
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

/// See the module. Replicas and partitions of requests are checked before: what is left to refuse is what only who keeps
/// the cluster's state knows.
pub(crate) struct Administration<'a> {
    view: ClusterView<'a>,
    engine: &'a Engine,
}

impl<'a> Administration<'a> {
    /// Of the cluster that is seen.
    pub(crate) fn new(view: ClusterView<'a>) -> Administration<'a> {
        Administration { engine: view.engine, view }
    }

    /// Creates a topic, or only says what it would be.
    pub(crate) async fn create_topic(&self, plan: TopicPlan, validate_only: bool) -> Result<CreatedTopic, ApiError> {
        let partitions = plan.layout.partitions();
        let new = NewTopic { name: plan.name, partitions, configs: plan.configs };
        let created = self.engine.create_topic(new, validate_only).await.map_err(|error| topic_error(&error))?;
        Ok(describe(&created))
    }

    /// Deletes a topic.
    pub(crate) async fn delete_topic(&self, topic: TopicId) -> Result<(), ApiError> {
        self.engine.delete_topic(topic).await.map_err(|error| topic_error(&error))
    }

    /// Gives a topic more partitions, so that it has `count`; `assigned` are the replicas of the new ones, if that is
    /// somebody's choice.
    pub(crate) async fn create_partitions(
        &self,
        topic: TopicId,
        count: i32,
        _assigned: Option<Vec<Vec<BrokerId>>>,
        validate_only: bool,
    ) -> Result<(), ApiError> {
        self.engine.create_partitions(topic, count, validate_only).await.map_err(|error| topic_error(&error))
    }

    /// Changes a topic's settings.
    pub(crate) async fn alter_topic(
        &self,
        topic: TopicId,
        changes: Vec<ConfigChange>,
        validate_only: bool,
    ) -> Result<(), ApiError> {
        self.engine.alter_topic(topic, changes, validate_only).await.map_err(|error| topic_error(&error))
    }

    /// Changes dynamic settings of brokers, as `decide` chooses, which is shown those in force: no other change comes
    /// between its look and what it decides.
    pub(crate) async fn change_settings(
        &self,
        validate_only: bool,
        decide: impl FnOnce(&BTreeMap<String, String>) -> Result<Vec<ConfigChange>, ApiError> + Send + 'static,
    ) -> Result<(), ApiError> {
        self.engine.change_broker_settings(validate_only, decide).await
    }

    /// Begins to move partitions to other replicas; no replicas end a move that is under way. One answer each, in order.
    pub(crate) async fn reassign(
        &self,
        wanted: Vec<(TopicPartition, Option<Vec<BrokerId>>)>,
    ) -> Vec<Result<(), ApiError>> {
        wanted.into_iter().map(|(partition, replicas)| self.stay(partition, replicas)).collect()
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
    pub(crate) async fn elect(
        &self,
        _election: Election,
        partitions: Vec<TopicPartition>,
    ) -> Vec<Result<(), ApiError>> {
        let reason = "Leader election not needed for topic partition.";
        partitions.iter().map(|_| Err(ApiError::new(ResponseError::ElectionNotNeeded, reason))).collect()
    }

    /// A producer id that was never given out before.
    pub(crate) async fn next_producer_id(&self) -> Result<i64, ApiError> {
        self.engine.next_producer_id().await.map_err(|error| log_error(&error).into())
    }
}

fn describe(topic: &Rc<Topic>) -> CreatedTopic {
    CreatedTopic {
        id: topic.id,
        partitions: topic.partitions,
        replication_factor: 1,
        overrides: topic.overrides.clone(),
    }
}
