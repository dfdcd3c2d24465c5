//! What shards ask of the control thread, and how they hear the answer.
//!
//! A [`ControlPlane`] is cheap to copy and may be used from any thread. Every question is answered exactly once: done,
//! refused, or not possible within its time. An answer that says done comes after the node's own image shows it.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use millrace_engine::api::{ConfigChange, TopicId, TopicPartition};

use super::{
    change::{IsrProposal, Refusal},
    model::{Member, NodeId, Partition},
};

/// Questions that may wait for the control thread; one more is refused at once.
pub const QUESTIONS_MAX: usize = 4096;

/// Why a question has no answer of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// REQUEST_TIMED_OUT: not within the time, and why. What was asked may be done yet.
    #[error("{0}")]
    TimedOut(String),
    /// The node is stopping, or the control thread ended.
    #[error("the node is stopping")]
    Stopping,
    /// More questions wait than may.
    #[error("more than {QUESTIONS_MAX} changes wait for the control plane")]
    Busy,
}

/// Kafka's error for what an administrator asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct AdminError {
    /// Which.
    pub code: AdminCode,
    /// What Kafka says, or more.
    pub text: String,
}

/// Kafka's errors that the control plane answers with; the discriminants are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum AdminCode {
    /// UNKNOWN_TOPIC_OR_PARTITION
    UnknownTopicOrPartition = 3,
    /// REQUEST_TIMED_OUT
    RequestTimedOut = 7,
    /// BROKER_NOT_AVAILABLE
    BrokerNotAvailable = 8,
    /// INVALID_TOPIC_EXCEPTION
    InvalidTopic = 17,
    /// TOPIC_ALREADY_EXISTS
    TopicAlreadyExists = 36,
    /// INVALID_PARTITIONS
    InvalidPartitions = 37,
    /// INVALID_REPLICATION_FACTOR
    InvalidReplicationFactor = 38,
    /// INVALID_REPLICA_ASSIGNMENT
    InvalidReplicaAssignment = 39,
    /// INVALID_CONFIG
    InvalidConfig = 40,
    /// INVALID_REQUEST
    InvalidRequest = 42,
    /// PREFERRED_LEADER_NOT_AVAILABLE
    PreferredLeaderNotAvailable = 80,
    /// ELIGIBLE_LEADERS_NOT_AVAILABLE
    EligibleLeadersNotAvailable = 83,
    /// ELECTION_NOT_NEEDED
    ElectionNotNeeded = 84,
    /// NO_REASSIGNMENT_IN_PROGRESS
    NoReassignmentInProgress = 85,
    /// UNKNOWN_TOPIC_ID
    UnknownTopicId = 100,
    /// BROKER_ID_NOT_REGISTERED
    BrokerIdNotRegistered = 102,
}

impl AdminError {
    /// One with Kafka's text.
    pub fn new(code: AdminCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// A leader's proposal for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsrChange {
    /// Which partition.
    pub partition: TopicPartition,
    /// Revision of the state that the leader has seen last.
    pub revision: i64,
    /// What it proposes.
    pub proposal: IsrProposal,
}

/// What came of a leader's proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsrOutcome {
    /// It is written: this is the state now. Also if there was nothing to change.
    Changed(Partition),
    /// Nothing was written, nor will be: the leader may fall back to the ISR that it knows.
    Refused(Refusal),
    /// Nothing was written, nor will be: the state changed meanwhile, and this is it. `None`: the partition is gone.
    Stale(Option<Partition>),
    /// It may have been written, or be yet. The leader goes on with the larger of both ISRs until an image says which.
    Unknown,
}

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// Who gets its partitions.
    pub placement: NewPlacement,
    /// Settings that differ from the defaults.
    pub configs: BTreeMap<String, String>,
}

/// Who gets a new topic's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewPlacement {
    /// So many partitions with so many replicas, spread over the racks. -1 for either is the default of the cluster's
    /// settings, else of [`CreationDefaults`].
    Spread {
        /// Partitions.
        partitions: i32,
        /// Replicas of each.
        replication_factor: i16,
    },
    /// These replicas by partition, in the protocol's order; partitions have to be 0.. without a gap.
    Assigned(Vec<(i32, Vec<NodeId>)>),
}

/// num.partitions and default.replication.factor of the node that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreationDefaults {
    /// num.partitions
    pub partitions: i32,
    /// default.replication.factor
    pub replication_factor: i16,
}

/// A topic that was created, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedTopic {
    /// Its id; nil if it was only checked.
    pub id: TopicId,
    /// Its partitions.
    pub partitions: i32,
    /// Their replicas.
    pub replication_factor: i16,
    /// Its settings.
    pub configs: BTreeMap<String, String>,
}

/// More partitions for a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MorePartitions {
    /// The topic.
    pub topic: String,
    /// Partitions in all.
    pub count: i32,
    /// Replicas of the new ones, if they are not to be spread.
    pub assignments: Option<Vec<Vec<NodeId>>>,
}

/// Whether something is done or only checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Done.
    Apply,
    /// Only checked.
    Validate,
}

/// How a topic's settings change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigEdit {
    /// One by one (IncrementalAlterConfigs).
    Incremental(Vec<ConfigChange>),
    /// All that it has (AlterConfigs).
    Replace(BTreeMap<String, String>),
}

/// A partition that is to have other replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Its replicas, the preferred leader first; `None` takes a reassignment back.
    pub replicas: Option<Vec<NodeId>>,
    /// Whether they may be more or fewer than the partition has, or will have (KIP-860).
    pub factor: FactorChange,
}

/// Whether a reassignment may change the number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactorChange {
    /// It may.
    Allowed,
    /// It is refused then.
    Refused,
}

/// How leaders are elected when somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElectionKind {
    /// The first replica.
    Preferred,
    /// Any that lives, for partitions that nobody leads.
    Unclean,
}

/// Producer ids that were never given out before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerIds {
    /// The first.
    pub first: i64,
    /// How many.
    pub count: i32,
}

/// Chooses changes of dynamic settings, shown all that are in force on this node as the engine keeps them. Asked again if
/// they changed meanwhile.
pub type DecideSettings = Box<dyn FnMut(&BTreeMap<String, String>) -> Result<Vec<ConfigChange>, AdminError> + Send>;

/// A topic of a node that had none but its own, for the cluster that it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoiningTopic {
    /// Its id: stays.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: i32,
    /// Its settings.
    pub configs: BTreeMap<String, String>,
    /// The epoch in which its partitions are led from now on: above all that their logs know.
    pub leader_epoch: i32,
}

/// What a node without a cluster brings along when it becomes the first of one.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct JoiningCatalog {
    /// Its topics.
    pub topics: Vec<JoiningTopic>,
    /// Its dynamic settings, as the engine keeps them.
    pub settings: BTreeMap<String, String>,
    /// The first producer id that it never gave out.
    pub next_producer_id: i64,
}

type AdminResult<T> = Result<T, AdminError>;

/// What came of a change, and the revision of an image from which on it is seen. 0 if nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible<T> {
    /// The revision.
    pub revision: i64,
    /// What came of it.
    pub outcome: T,
}

/// A question of one kind each, with where its answer goes.
#[non_exhaustive]
pub enum Question {
    /// Proposals of leaders on this node: an outcome for each, in order.
    AlterIsr(Vec<IsrChange>, Reply<Vec<IsrOutcome>>),
    /// Topics to create.
    CreateTopics(Vec<NewTopic>, CreationDefaults, Mode, Reply<Visible<Vec<AdminResult<CreatedTopic>>>>),
    /// Topics to delete.
    DeleteTopics(Vec<TopicId>, Reply<Visible<Vec<AdminResult<()>>>>),
    /// Partitions to add.
    CreatePartitions(Vec<MorePartitions>, Mode, Reply<Visible<Vec<AdminResult<()>>>>),
    /// A topic's settings.
    AlterTopic(String, ConfigEdit, Mode, Reply<Visible<AdminResult<()>>>),
    /// Dynamic settings of this node (names without a slash) and of all (names with one).
    AlterSettings(DecideSettings, Mode, Reply<Visible<AdminResult<()>>>),
    /// Dynamic settings of another node, named without a slash.
    AlterSettingsOf(NodeId, DecideSettings, Mode, Reply<Visible<AdminResult<()>>>),
    /// Other replicas.
    Reassign(Vec<Reassignment>, Reply<Visible<Vec<AdminResult<()>>>>),
    /// Other leaders, of these partitions.
    ElectLeaders(ElectionKind, Vec<TopicPartition>, Reply<Visible<Vec<AdminResult<()>>>>),
    /// A node that will not come back.
    Unregister(NodeId, Reply<Visible<AdminResult<()>>>),
    /// Producer ids.
    ProducerIds(Reply<ProducerIds>),
    /// This node wants to leave: done once it leads nothing.
    Drain(Reply<()>),
    /// This node leaves: its key is taken away, its lease revoked.
    Leave(Reply<()>),
    /// Another node's process refuses connections: its life is over, as far as this one can tell.
    Unreachable(Member),
    /// What a node without a cluster had, for the one that it founds.
    Join(JoiningCatalog, Reply<Visible<AdminResult<()>>>),
}

/// A question and until when it waits.
pub struct Asked {
    /// What.
    pub question: Question,
    /// When it is answered with [`ControlError::TimedOut`].
    pub deadline: Instant,
}

/// Where shards put their questions.
#[derive(Clone)]
pub struct ControlPlane {
    put: Arc<Put>,
}

type Put = dyn Fn(Asked) -> Result<(), (Asked, ControlError)> + Send + Sync;

impl fmt::Debug for ControlPlane {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ControlPlane")
    }
}

impl ControlPlane {
    /// One whose questions go there. What cannot be taken comes back, with the reason.
    pub fn new(put: impl Fn(Asked) -> Result<(), (Asked, ControlError)> + Send + Sync + 'static) -> Self {
        Self { put: Arc::new(put) }
    }

    /// Asks, and hears the answer by awaiting it, on any executor.
    pub fn ask<T: Send + 'static>(&self, timeout: Duration, question: impl FnOnce(Reply<T>) -> Question) -> Answer<T> {
        let (reply, answer) = reply();
        self.put(question(reply), timeout);
        answer
    }

    /// Asks what has its own way to the answer. One that cannot be put is answered at once.
    pub fn put(&self, question: Question, timeout: Duration) {
        let asked = Asked { question, deadline: Instant::now() + timeout };
        if let Err((asked, error)) = (self.put)(asked) {
            asked.question.fail(error);
        }
    }

    /// Proposals of leaders on this node.
    pub fn alter_isr(&self, changes: Vec<IsrChange>, timeout: Duration) -> Answer<Vec<IsrOutcome>> {
        self.ask(timeout, |reply| Question::AlterIsr(changes, reply))
    }

    /// CreateTopics: an outcome for each, in order.
    pub fn create_topics(
        &self,
        topics: Vec<NewTopic>,
        defaults: CreationDefaults,
        mode: Mode,
        timeout: Duration,
    ) -> Answer<Visible<Vec<AdminResult<CreatedTopic>>>> {
        self.ask(timeout, |reply| Question::CreateTopics(topics, defaults, mode, reply))
    }

    /// DeleteTopics: an outcome for each, in order.
    pub fn delete_topics(&self, topics: Vec<TopicId>, timeout: Duration) -> Answer<Visible<Vec<AdminResult<()>>>> {
        self.ask(timeout, |reply| Question::DeleteTopics(topics, reply))
    }

    /// CreatePartitions: an outcome for each, in order.
    pub fn create_partitions(
        &self,
        topics: Vec<MorePartitions>,
        mode: Mode,
        timeout: Duration,
    ) -> Answer<Visible<Vec<AdminResult<()>>>> {
        self.ask(timeout, |reply| Question::CreatePartitions(topics, mode, reply))
    }

    /// AlterConfigs and IncrementalAlterConfigs of a topic.
    pub fn alter_topic(
        &self,
        topic: String,
        edit: ConfigEdit,
        mode: Mode,
        timeout: Duration,
    ) -> Answer<Visible<AdminResult<()>>> {
        self.ask(timeout, |reply| Question::AlterTopic(topic, edit, mode, reply))
    }

    /// Dynamic settings of this node and of all.
    pub fn alter_settings(
        &self,
        decide: DecideSettings,
        mode: Mode,
        timeout: Duration,
    ) -> Answer<Visible<AdminResult<()>>> {
        self.ask(timeout, |reply| Question::AlterSettings(decide, mode, reply))
    }

    /// Dynamic settings of another node.
    pub fn alter_settings_of(
        &self,
        node: NodeId,
        decide: DecideSettings,
        mode: Mode,
        timeout: Duration,
    ) -> Answer<Visible<AdminResult<()>>> {
        self.ask(timeout, |reply| Question::AlterSettingsOf(node, decide, mode, reply))
    }

    /// AlterPartitionReassignments: an outcome for each, in order.
    pub fn reassign(&self, partitions: Vec<Reassignment>, timeout: Duration) -> Answer<Visible<Vec<AdminResult<()>>>> {
        self.ask(timeout, |reply| Question::Reassign(partitions, reply))
    }

    /// ElectLeaders: an outcome for each, in order.
    pub fn elect_leaders(
        &self,
        kind: ElectionKind,
        partitions: Vec<TopicPartition>,
        timeout: Duration,
    ) -> Answer<Visible<Vec<AdminResult<()>>>> {
        self.ask(timeout, |reply| Question::ElectLeaders(kind, partitions, reply))
    }

    /// UnregisterBroker.
    pub fn unregister(&self, node: NodeId, timeout: Duration) -> Answer<Visible<AdminResult<()>>> {
        self.ask(timeout, |reply| Question::Unregister(node, reply))
    }

    /// A block of producer ids.
    pub fn producer_ids(&self, timeout: Duration) -> Answer<ProducerIds> {
        self.ask(timeout, Question::ProducerIds)
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::AlterIsr(..) => "AlterIsr",
            Self::CreateTopics(..) => "CreateTopics",
            Self::DeleteTopics(..) => "DeleteTopics",
            Self::CreatePartitions(..) => "CreatePartitions",
            Self::AlterTopic(..) => "AlterTopic",
            Self::AlterSettings(..) => "AlterSettings",
            Self::AlterSettingsOf(..) => "AlterSettingsOf",
            Self::Reassign(..) => "Reassign",
            Self::ElectLeaders(..) => "ElectLeaders",
            Self::Unregister(..) => "Unregister",
            Self::ProducerIds(..) => "ProducerIds",
            Self::Drain(..) => "Drain",
            Self::Leave(..) => "Leave",
            Self::Unreachable(..) => "Unreachable",
            Self::Join(..) => "Join",
        })
    }
}

impl Question {
    /// Answers that there is no answer.
    pub fn fail(self, error: ControlError) {
        match self {
            Self::AlterIsr(_, reply) => reply.give(Err(error)),
            Self::CreateTopics(_, _, _, reply) => reply.give(Err(error)),
            Self::DeleteTopics(_, reply) => reply.give(Err(error)),
            Self::CreatePartitions(_, _, reply) => reply.give(Err(error)),
            Self::AlterTopic(_, _, _, reply) => reply.give(Err(error)),
            Self::AlterSettings(_, _, reply) => reply.give(Err(error)),
            Self::AlterSettingsOf(_, _, _, reply) => reply.give(Err(error)),
            Self::Reassign(_, reply) => reply.give(Err(error)),
            Self::ElectLeaders(_, _, reply) => reply.give(Err(error)),
            Self::Unregister(_, reply) => reply.give(Err(error)),
            Self::ProducerIds(reply) => reply.give(Err(error)),
            Self::Drain(reply) => reply.give(Err(error)),
            Self::Leave(reply) => reply.give(Err(error)),
            Self::Unreachable(_) => {}
            Self::Join(_, reply) => reply.give(Err(error)),
        }
    }
}

/// Where one answer goes. Dropped unused, it says that the node is stopping.
pub struct Reply<T>(Option<Take<T>>);

type Take<T> = Box<dyn FnOnce(Result<T, ControlError>) + Send>;

impl<T> Reply<T> {
    /// One that calls that, on the control thread: it must be quick.
    pub fn new(take: impl FnOnce(Result<T, ControlError>) + Send + 'static) -> Self {
        Self(Some(Box::new(take)))
    }

    /// Gives the answer.
    pub fn give(mut self, answer: Result<T, ControlError>) {
        if let Some(take) = self.0.take() {
            take(answer);
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Reply")
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(Err(ControlError::Stopping));
        }
    }
}

struct Cell<T> {
    answer: Option<Result<T, ControlError>>,
    waker: Option<Waker>,
}

/// An answer that is awaited. Dropped, the question is worked on all the same.
pub struct Answer<T>(Arc<Mutex<Cell<T>>>);

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Answer")
    }
}

/// Where an answer goes, and what awaits it.
pub fn reply<T: Send + 'static>() -> (Reply<T>, Answer<T>) {
    let cell = Arc::new(Mutex::new(Cell { answer: None, waker: None }));
    let answer = Answer(cell.clone());
    let reply = Reply::new(move |result| {
        let mut cell = cell.lock().expect("no panic while locked");
        cell.answer = Some(result);
        if let Some(waker) = cell.waker.take() {
            waker.wake();
        }
    });
    (reply, answer)
}

impl<T> Future for Answer<T> {
    type Output = Result<T, ControlError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut cell = self.0.lock().expect("no panic while locked");
        match cell.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                cell.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
