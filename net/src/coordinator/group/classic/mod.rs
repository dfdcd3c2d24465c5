//! A group of the classic protocol: JoinGroup, SyncGroup, Heartbeat, LeaveGroup.
//!
//! Owned by one [`Coordinator`](super::coordinator::Coordinator). Always holds:
//! - `leader` is a member, and every static instance id maps to a member, whenever there are members;
//! - `awaiting_join_count` is the number of members with a waiting JoinGroup;
//! - a member has a waiting SyncGroup only in state CompletingRebalance;
//! - all members share at least one protocol.
//!
//! Behaviour is Kafka 4.3's (`ClassicGroup`, `GroupMetadataManager`), but for one thing: a waiting request that is
//! superseded or whose member is removed is always answered, because replies of a connection leave in order here.

mod heartbeat;
mod join;
mod member;
mod members;
mod rebalance;
mod replies;
mod static_member;
mod subscription;
mod sync;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use kafka_protocol::error::ResponseError;

pub(crate) use heartbeat::member_response;
pub(crate) use join::Join;
pub(crate) use member::{Member, Protocol, protocols};
pub(crate) use replies::{error_join, error_sync};
pub(crate) use static_member::StaticReplacement;
pub(crate) use subscription::{ConsumerSubscription, consumer_assignment, consumer_subscription};

use super::{
    effects::{Scope, Then},
    error::GroupError,
    record::{GroupMetadata, GroupMetadataMember, Record},
    timers::TimerKind,
};

/// Kafka's embedded protocol type of consumers.
pub(crate) const CONSUMER_PROTOCOL_TYPE: &str = "consumer";

/// State of a classic group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No members.
    Empty,
    /// Waits for members to join.
    PreparingRebalance,
    /// Waits for the leader's assignment.
    CompletingRebalance,
    /// Everybody has its assignment.
    Stable,
}

impl State {
    /// Kafka's name of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::PreparingRebalance => "PreparingRebalance",
            State::CompletingRebalance => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }
}

/// What goes on when a classic group's record is durable.
#[derive(Debug)]
pub(crate) enum ClassicThen {
    /// The leader's assignment of a generation.
    Assigned { generation: i32, assignments: BTreeMap<Rc<str>, bytes::Bytes> },
    /// A static member came back under a new member id.
    StaticReplaced(StaticReplacement),
}

/// The first rebalance of an empty group waits for more members: in steps, as long as new ones come.
#[derive(Debug, Clone, Copy)]
struct InitialDelay {
    /// The step under way, ms.
    step_ms: i32,
    /// What is left of the rebalance timeout after it, ms.
    left_ms: i32,
    /// Whether somebody joined during this step.
    joined: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ClassicGroup {
    id: Rc<str>,
    state: State,
    /// The state before PreparingRebalance.
    previous: State,
    /// When the state was entered; not known for groups of old records.
    state_since_ms: Option<i64>,
    protocol_type: Option<Rc<str>>,
    protocol: Option<Rc<str>>,
    generation: i32,
    leader: Option<Rc<str>>,
    members: BTreeMap<Rc<str>, Member>,
    /// Member id by instance id.
    static_members: BTreeMap<Rc<str>, Rc<str>>,
    /// Member ids given out (KIP-394) that have not joined with them yet.
    pending_join: BTreeSet<Rc<str>>,
    /// Members that have not sent SyncGroup in this generation yet.
    pending_sync: BTreeSet<Rc<str>>,
    /// How many members follow a protocol.
    supported: BTreeMap<Rc<str>, usize>,
    awaiting_join_count: usize,
    initial_delay: Option<InitialDelay>,
    /// Topics that the members subscribe to; `None` when that is not known.
    topics: Option<BTreeSet<Rc<str>>>,
}

impl ClassicGroup {
    /// A group without members.
    pub(crate) fn new(id: Rc<str>, now_ms: i64) -> Self {
        Self {
            id,
            state: State::Empty,
            previous: State::Empty,
            state_since_ms: Some(now_ms),
            protocol_type: None,
            protocol: None,
            generation: 0,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending_join: BTreeSet::new(),
            pending_sync: BTreeSet::new(),
            supported: BTreeMap::new(),
            awaiting_join_count: 0,
            initial_delay: None,
            topics: None,
        }
    }

    /// A group as its record tells.
    pub(crate) fn from_record(id: Rc<str>, value: &GroupMetadata) -> Self {
        let mut group = Self::new(id, 0);
        group.state = if value.members.is_empty() { State::Empty } else { State::Stable };
        group.state_since_ms = (value.state_timestamp_ms != -1).then_some(value.state_timestamp_ms);
        group.protocol_type = (!value.protocol_type.is_empty()).then(|| Rc::clone(&value.protocol_type));
        group.protocol = value.protocol.clone();
        group.generation = value.generation;
        for member in &value.members {
            let name = value.protocol.clone().unwrap_or_else(|| Rc::from(""));
            let rebalance_timeout_ms = match member.rebalance_timeout_ms {
                -1 => member.session_timeout_ms,
                timeout => timeout,
            };
            group.insert(Member {
                id: Rc::clone(&member.member_id),
                instance_id: member.instance_id.clone(),
                client_id: Rc::clone(&member.client_id),
                client_host: Rc::clone(&member.client_host),
                rebalance_timeout_ms,
                session_timeout_ms: member.session_timeout_ms,
                protocols: vec![Protocol { name, metadata: member.subscription.clone() }],
                assignment: member.assignment.clone(),
                awaiting_join: None,
                awaiting_sync: None,
                is_new: false,
            });
        }
        if let Some(leader) = value.leader.clone().filter(|leader| group.members.contains_key(leader)) {
            group.leader = Some(leader);
        }
        group.topics = group.subscribed_topics();
        group
    }

    /// A group that takes over the members of a consumer group, stable at that group's epoch (KIP-848).
    pub(crate) fn from_consumer_group(id: Rc<str>, generation: i32, members: Vec<Member>, now_ms: i64) -> Self {
        let mut group = Self::new(id, now_ms);
        group.generation = generation;
        group.protocol_type = Some(Rc::from(CONSUMER_PROTOCOL_TYPE));
        group.state = State::Stable;
        members.into_iter().for_each(|member| group.insert(member));
        group.protocol = group.select_protocol();
        group.topics = group.subscribed_topics();
        group
    }

    /// Gives a member its assignment.
    pub(crate) fn set_assignment(&mut self, member_id: &str, assignment: bytes::Bytes) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.assignment = assignment;
        }
    }

    /// Starts the clocks of a group that was just loaded or converted, and makes it smaller if it is too large now.
    pub(crate) fn on_loaded(&mut self, scope: &mut Scope<'_>) {
        let members: Vec<_> = self.members.keys().cloned().collect();
        members.iter().for_each(|member| self.restart_session(scope, member));
        if self.members.len() > scope.settings.classic_size_max {
            self.prepare_rebalance(scope);
        }
    }

    /// Its record with the current assignments.
    pub(crate) fn record(&self) -> Record {
        let assignment = |member: &Member| member.assignment.clone();
        self.record_with(assignment)
    }

    fn record_with(&self, assignment: impl Fn(&Member) -> bytes::Bytes) -> Record {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let member = |member: &Member| GroupMetadataMember {
            member_id: Rc::clone(&member.id),
            instance_id: member.instance_id.clone(),
            client_id: Rc::clone(&member.client_id),
            client_host: Rc::clone(&member.client_host),
            rebalance_timeout_ms: member.rebalance_timeout_ms,
            session_timeout_ms: member.session_timeout_ms,
            subscription: member.metadata(protocol),
            assignment: assignment(member),
        };
        let value = GroupMetadata {
            protocol_type: self.protocol_type.clone().unwrap_or_else(|| Rc::from("")),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            state_timestamp_ms: self.state_since_ms.unwrap_or(-1),
            members: self.members.values().map(member).collect(),
        };
        Record::GroupMetadata { group: Rc::clone(&self.id), value: Some(value) }
    }

    /// The record of a group that has never had a generation.
    pub(crate) fn empty_record(&self) -> Record {
        let value = GroupMetadata {
            protocol_type: Rc::from(""),
            generation: 0,
            protocol: None,
            leader: None,
            state_timestamp_ms: self.state_since_ms.unwrap_or(-1),
            members: Vec::new(),
        };
        Record::GroupMetadata { group: Rc::clone(&self.id), value: Some(value) }
    }

    /// Goes on after a write.
    pub(crate) fn on_persisted(&mut self, scope: &mut Scope<'_>, then: ClassicThen, result: Result<(), GroupError>) {
        match then {
            ClassicThen::Assigned { generation, assignments } => {
                self.on_assignment_persisted(scope, generation, &assignments, result);
            }
            ClassicThen::StaticReplaced(replacement) => self.on_static_persisted(scope, replacement, result),
        }
    }

    /// Group id.
    pub(crate) fn id(&self) -> &Rc<str> {
        &self.id
    }

    /// State.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// When the state was entered, ms since the epoch, if that is known.
    pub(crate) fn state_since_ms(&self) -> Option<i64> {
        self.state_since_ms
    }

    /// Generation.
    pub(crate) fn generation(&self) -> i32 {
        self.generation
    }

    /// Protocol type, once there was a member.
    pub(crate) fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    /// Protocol of this generation.
    pub(crate) fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// Members by member id.
    pub(crate) fn members(&self) -> &BTreeMap<Rc<str>, Member> {
        &self.members
    }

    /// Whether its members are consumers that use Kafka's embedded protocol.
    pub(crate) fn uses_consumer_protocol(&self) -> bool {
        self.protocol_type() == Some(CONSUMER_PROTOCOL_TYPE)
    }

    /// Whether there is no member and nobody was given a member id to come back with.
    pub(crate) fn is_without_members(&self) -> bool {
        self.members.is_empty() && self.pending_join.is_empty()
    }

    /// Whether members are subscribed to a topic; a consumer group of unknown subscriptions counts as subscribed to all.
    pub(crate) fn is_subscribed_to(&self, topic: &str) -> bool {
        match &self.topics {
            Some(topics) => topics.contains(topic),
            None => self.uses_consumer_protocol(),
        }
    }

    /// Whether the subscribed topics are known.
    pub(crate) fn knows_topics(&self) -> bool {
        self.topics.is_some()
    }

    fn transition_to(&mut self, state: State, now_ms: i64) {
        self.previous = std::mem::replace(&mut self.state, state);
        self.state_since_ms = Some(now_ms);
    }

    /// Checks who a request claims to come from.
    fn validate_member(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), GroupError> {
        if let Some(instance_id) = instance_id {
            match self.static_members.get(instance_id) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(owner) if **owner != *member_id => {
                    return Err(ResponseError::FencedInstanceId);
                }
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) { Ok(()) } else { Err(ResponseError::UnknownMemberId) }
    }

    /// Checks who commits offsets, and keeps its session alive.
    pub(crate) fn handle_offset_commit(
        &mut self,
        scope: &mut Scope<'_>,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        if generation < 0 && self.state == State::Empty {
            return Ok(());
        }
        if generation < 0 && member_id.is_empty() && instance_id.is_none() {
            return Err(ResponseError::UnknownMemberId);
        }
        self.validate_member(member_id, instance_id)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        if self.state == State::CompletingRebalance {
            return Err(ResponseError::RebalanceInProgress);
        }
        self.restart_session(scope, member_id);
        Ok(())
    }

    /// Checks who commits offsets with a transaction. Who does not say which member it is, is taken at any time; its
    /// session is not kept alive by that (KIP-447).
    pub(crate) fn validate_txn_offset_commit(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        let is_anonymous = generation < 0 && member_id.is_empty() && instance_id.is_none();
        if is_anonymous || (generation < 0 && self.state == State::Empty) {
            return Ok(());
        }
        self.validate_member(member_id, instance_id)?;
        if generation == self.generation { Ok(()) } else { Err(ResponseError::IllegalGeneration) }
    }

    /// Answers everything that waits and takes the group's timers away: it is about to go.
    pub(crate) fn close(&mut self, scope: &mut Scope<'_>, error: GroupError) {
        let members: Vec<_> = self.members.keys().cloned().collect();
        for member in &members {
            self.reply_join(scope, member, error_join(member, error));
            self.reply_sync(scope, member, error_sync(error));
            scope.timers.cancel(&self.id, TimerKind::Session(Rc::clone(member)));
        }
        for member in &self.pending_join {
            scope.timers.cancel(&self.id, TimerKind::Session(Rc::clone(member)));
        }
        scope.timers.cancel(&self.id, TimerKind::GroupJoin);
        scope.timers.cancel(&self.id, TimerKind::GroupSync);
    }

    /// Checks what the module promises.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let awaiting = self.members.values().filter(|member| member.awaiting_join.is_some()).count();
        assert_eq!(awaiting, self.awaiting_join_count, "waiting JoinGroups are counted");
        assert_eq!(self.members.is_empty(), self.leader.is_none(), "members have a leader");
        assert!(self.leader.iter().all(|leader| self.members.contains_key(leader)), "the leader is a member");
        for (instance_id, member) in &self.static_members {
            assert_eq!(self.members[member].instance_id.as_ref(), Some(instance_id), "static members are members");
        }
        assert!(self.members.is_empty() || self.select_protocol().is_some(), "there is a common protocol");
        let syncing = self.members.values().any(|member| member.awaiting_sync.is_some());
        assert!(!syncing || self.state == State::CompletingRebalance, "{:?} answers SyncGroup", self.state);
        assert_eq!(self.state == State::Empty, self.members.is_empty() && self.state != State::PreparingRebalance);
        assert!(self.pending_join.iter().all(|member| !self.members.contains_key(member)));
        assert!(self.pending_sync.iter().all(|member| self.members.contains_key(member)));
    }
}

/// Writes a group's record, then goes on.
fn write_then(scope: &mut Scope<'_>, group: &Rc<str>, record: Record, then: ClassicThen) {
    scope.effects.write(vec![record], Then::Classic(Rc::clone(group), then));
}

#[cfg(test)]
mod tests;
