//! Changes to a cluster of several nodes: asked of the control plane, and seen on this node before they are answered.

use std::{collections::BTreeMap, time::Duration};

use kafka_protocol::{ResponseError, messages::BrokerId};
use millrace_engine::api::{ConfigChange, TopicId, TopicPartition};
use millrace_replica::cluster::{
    image::Image,
    model::NodeId,
    plane::{
        AdminCode, AdminError, Answer, ConfigEdit, ControlError, CreationDefaults, DecideSettings, ElectionKind,
        FactorChange, Mode, MorePartitions, NewPlacement, NewTopic, Question, Reassignment, Visible,
    },
};

use super::{Cluster, CreatedTopic, Election, Layout, TopicPlan, Whose};
use crate::errors::{ApiError, UNKNOWN_PARTITION};

/// How long the control plane may take for a change: clients wait for 30 seconds.
pub(super) const CONTROL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an answer waits for this node to show what was changed.
const SEEN_TIMEOUT: Duration = Duration::from_secs(5);

impl Cluster {
    /// Creates a topic, or only says what it would be.
    pub(super) async fn create_topic(
        &self,
        plan: TopicPlan,
        defaults: CreationDefaults,
        mode: Mode,
    ) -> Result<CreatedTopic, ApiError> {
        let TopicPlan { name, layout, configs } = plan;
        let new = NewTopic { name, placement: placement(layout), configs };
        let created = self.first(self.control.create_topics(vec![new], defaults, mode, CONTROL_TIMEOUT)).await?;
        Ok(CreatedTopic {
            id: created.id,
            partitions: created.partitions,
            replication_factor: created.replication_factor,
            overrides: created.configs,
        })
    }

    /// Deletes a topic.
    pub(super) async fn delete_topic(&self, topic: TopicId) -> Result<(), ApiError> {
        self.first(self.control.delete_topics(vec![topic], CONTROL_TIMEOUT)).await
    }

    /// Gives a topic more partitions.
    pub(super) async fn create_partitions(
        &self,
        topic: TopicId,
        count: i32,
        assigned: Option<Vec<Vec<BrokerId>>>,
        mode: Mode,
    ) -> Result<(), ApiError> {
        let assignments = assigned.map(|all| all.into_iter().map(nodes).collect());
        let more = MorePartitions { topic: name_of(&self.image(), topic)?, count, assignments };
        self.first(self.control.create_partitions(vec![more], mode, CONTROL_TIMEOUT)).await
    }

    /// Changes a topic's settings.
    pub(super) async fn alter_topic(
        &self,
        topic: TopicId,
        changes: Vec<ConfigChange>,
        mode: Mode,
    ) -> Result<(), ApiError> {
        let name = name_of(&self.image(), topic)?;
        let edit = ConfigEdit::Incremental(changes);
        self.seen(self.control.alter_topic(name, edit, mode, CONTROL_TIMEOUT)).await?.map_err(api_error)
    }

    /// Changes dynamic settings.
    pub(super) async fn change_settings(
        &self,
        whose: Whose,
        mode: Mode,
        mut decide: impl FnMut(&BTreeMap<String, String>) -> Result<Vec<ConfigChange>, ApiError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let decide: DecideSettings = Box::new(move |settings| decide(settings).map_err(admin_error));
        let answer = match whose {
            Whose::Here => self.control.alter_settings(decide, mode, CONTROL_TIMEOUT),
            Whose::Node(node) => {
                self.control.ask(CONTROL_TIMEOUT, |reply| Question::AlterSettingsOf(node, decide, mode, reply))
            }
        };
        self.seen(answer).await?.map_err(api_error)
    }

    /// Begins to move partitions, or ends that. One answer each, in order.
    pub(super) async fn reassign(
        &self,
        wanted: Vec<(TopicPartition, Option<Vec<BrokerId>>)>,
        factor: FactorChange,
    ) -> Vec<Result<(), ApiError>> {
        let image = self.image();
        let named: Vec<Result<Reassignment, ApiError>> = wanted
            .into_iter()
            .map(|(id, replicas)| {
                let topic = name_of(&image, id.topic)?;
                Ok(Reassignment { topic, partition: id.partition, replicas: replicas.map(nodes), factor })
            })
            .collect();
        let known: Vec<_> = named.iter().flatten().cloned().collect();
        let count = known.len();
        let mut answers = self.each(self.control.reassign(known, CONTROL_TIMEOUT), count).await.into_iter();
        named.into_iter().map(|named| named.and_then(|_| answers.next().unwrap_or_else(no_answer))).collect()
    }

    /// Has leaders elected. One answer each, in order.
    pub(super) async fn elect(&self, election: Election, partitions: Vec<TopicPartition>) -> Vec<Result<(), ApiError>> {
        let kind = match election {
            Election::Preferred => ElectionKind::Preferred,
            Election::Unclean => ElectionKind::Unclean,
        };
        let count = partitions.len();
        self.each(self.control.elect_leaders(kind, partitions, CONTROL_TIMEOUT), count).await
    }

    /// Forgets a node that will not come back.
    pub(super) async fn unregister(&self, node: NodeId) -> Result<(), ApiError> {
        self.seen(self.control.unregister(node, CONTROL_TIMEOUT)).await?.map_err(api_error)
    }

    /// Waits for an answer, and until this node shows what it tells of.
    async fn seen<T>(&self, answer: Answer<Visible<T>>) -> Result<T, ApiError> {
        let Visible { revision, outcome } = answer.await.map_err(control_error)?;
        self.until(SEEN_TIMEOUT, |image| image.revision >= revision).await;
        Ok(outcome)
    }

    /// The answer to a question about one thing.
    async fn first<T>(&self, answer: Answer<Visible<Vec<Result<T, AdminError>>>>) -> Result<T, ApiError> {
        self.seen(answer).await?.pop().map_or_else(no_answer, |answer| answer.map_err(api_error))
    }

    /// The answers to a question about so many.
    async fn each(
        &self,
        answer: Answer<Visible<Vec<Result<(), AdminError>>>>,
        count: usize,
    ) -> Vec<Result<(), ApiError>> {
        match self.seen(answer).await {
            Ok(answers) => answers.into_iter().map(|answer| answer.map_err(api_error)).collect(),
            Err(error) => vec![Err(error); count],
        }
    }
}

fn placement(layout: Layout) -> NewPlacement {
    match layout {
        Layout::Automatic { partitions, replication_factor } => {
            NewPlacement::Spread { partitions, replication_factor: replication_factor.unwrap_or(-1) }
        }
        Layout::Assigned(replicas) => NewPlacement::Assigned((0..).zip(replicas.into_iter().map(nodes)).collect()),
    }
}

fn nodes(brokers: Vec<BrokerId>) -> Vec<NodeId> {
    brokers.into_iter().map(|broker| broker.0).collect()
}

fn name_of(image: &Image, topic: TopicId) -> Result<String, ApiError> {
    let unknown = || ApiError::new(ResponseError::UnknownTopicOrPartition, UNKNOWN_PARTITION);
    image.topics.get(&topic).map(|topic| topic.name.clone()).ok_or_else(unknown)
}

fn no_answer<T>() -> Result<T, ApiError> {
    Err(ResponseError::UnknownServerError.into())
}

/// Why the control plane said nothing.
pub(super) fn control_error(error: ControlError) -> ApiError {
    match error {
        ControlError::TimedOut(_) | ControlError::Stopping | ControlError::Busy => {
            ApiError::new(ResponseError::RequestTimedOut, error.to_string())
        }
    }
}

fn api_error(error: AdminError) -> ApiError {
    let known = ResponseError::try_from_code(error.code as i16).unwrap_or(ResponseError::UnknownServerError);
    ApiError::new(known, error.text)
}

/// Who decides about settings refuses with one of two codes.
fn admin_error(error: ApiError) -> AdminError {
    let code = match error.error {
        ResponseError::InvalidConfig => AdminCode::InvalidConfig,
        _ => AdminCode::InvalidRequest,
    };
    AdminError::new(code, error.message.map(|message| message.to_string()).unwrap_or_default())
}
