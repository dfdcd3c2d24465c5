//! All groups of one partition of `__consumer_offsets`: decides, but does nothing itself.
//!
//! Requests come as `handle_*`, in the calling order of [`Machine`](crate::coordinator::runtime::Machine).
//!
//! Always holds: a reply that tells of a record leaves only when the record is durable; what other members see follows
//! the order of the log.

mod admin;
mod consumer;
mod expire;
mod load;
mod machine;
mod offsets;
mod share;
mod transactions;

pub(crate) use admin::GroupFilter;
pub(crate) use machine::Lookup;
pub(crate) use offsets::commit_error;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
        LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
    },
};

use super::{
    caller::Caller,
    classic::{ClassicGroup, Join, State, error_join, error_sync, member_response},
    consumer::{ConsumerGroup, TopicsView},
    effects::{Effects, Scope, Then},
    error::GroupError,
    offsets::Offsets,
    settings::{GroupConfigs, Settings},
    share::ShareGroup,
    timers::Timers,
    topics::{NoTopics, TopicLookup},
    transaction_guards::TransactionGuards,
};
use crate::coordinator::runtime::Ticket;

/// A group, by the protocol that it follows now.
#[derive(Debug)]
pub(crate) enum Group {
    /// JoinGroup and SyncGroup, or only committed offsets.
    Classic(Box<ClassicGroup>),
    /// ConsumerGroupHeartbeat.
    Consumer(Box<ConsumerGroup>),
    /// ShareGroupHeartbeat.
    Share(Box<ShareGroup>),
}

/// A group and its offsets, which outlive changes of its type.
#[derive(Debug)]
struct Entry {
    group: Group,
    offsets: Offsets,
}

/// See the module.
pub(crate) struct Coordinator {
    settings: Rc<Settings>,
    configs: Rc<dyn GroupConfigs>,
    topics: Rc<dyn TopicLookup>,
    /// Rises with every change of the topics.
    topics_version: u64,
    entries: HashMap<Rc<str>, Entry>,
    /// Groups with offsets that a producer's transaction is about to commit, by the producer's id. No set is empty.
    transactions: BTreeMap<i64, BTreeSet<Rc<str>>>,
    guards: TransactionGuards,
    timers: Timers,
    effects: Effects,
    chores: machine::Chores,
}

/// Gives the parts of a coordinator that a group may use.
macro_rules! scope {
    ($coordinator:ident, $now_ms:expr) => {
        &mut Scope {
            now_ms: $now_ms,
            settings: &$coordinator.settings,
            configs: &*$coordinator.configs,
            timers: &mut $coordinator.timers,
            effects: &mut $coordinator.effects,
        }
    };
}
use scope;

/// Gives the topics as groups see them.
macro_rules! view {
    ($coordinator:ident) => {
        TopicsView { lookup: &*$coordinator.topics, version: $coordinator.topics_version }
    };
}
use view;

impl Coordinator {
    /// A coordinator that knows of no group, and of no group's own settings.
    #[cfg(test)]
    pub(crate) fn new(settings: Rc<Settings>) -> Self {
        let configs = Rc::clone(&settings);
        Self::with_configs(settings, configs)
    }

    /// A coordinator that knows of no group.
    pub(crate) fn with_configs(settings: Rc<Settings>, configs: Rc<dyn GroupConfigs>) -> Self {
        Self {
            settings,
            configs,
            topics: Rc::new(NoTopics),
            topics_version: 0,
            entries: HashMap::new(),
            transactions: BTreeMap::new(),
            guards: TransactionGuards::default(),
            timers: Timers::default(),
            effects: Effects::default(),
            chores: machine::Chores::default(),
        }
    }

    /// Handles a JoinGroup.
    pub(crate) fn handle_join(
        &mut self,
        now_ms: i64,
        caller: &Caller,
        request: &JoinGroupRequest,
        ticket: Ticket<JoinGroupResponse>,
    ) {
        let session = self.settings.min_session_timeout_ms..=self.settings.max_session_timeout_ms;
        let known = self.entries.contains_key(request.group_id.as_str());
        let names = request.protocols.iter().map(|protocol| protocol.name.as_str());
        let ids = [request.member_id.as_str(), request.group_instance_id.as_deref().unwrap_or_default()];
        let texts = names.chain(ids).chain([request.protocol_type.as_str(), caller.client_id.as_str()]);
        let refused = if request.group_id.is_empty() || is_too_long(&request.group_id) {
            Some(ResponseError::InvalidGroupId)
        } else if texts.into_iter().any(is_too_long) {
            Some(ResponseError::InvalidRequest)
        } else if !session.contains(&request.session_timeout_ms) {
            Some(ResponseError::InvalidSessionTimeout)
        } else if !known && !request.member_id.is_empty() {
            Some(ResponseError::UnknownMemberId)
        } else {
            None
        };
        if let Some(error) = refused {
            let reply = error_join(&request.member_id, error);
            return self.effects.reply(ticket, reply);
        }
        let id: Rc<str> = Rc::from(request.group_id.as_str());
        let join = Join { caller, request };
        if matches!(self.entries.get(&id), Some(Entry { group: Group::Consumer(group), .. }) if !group.is_empty()) {
            return self.join_consumer_group(now_ms, &id, &join, ticket);
        }
        let entry = self.entries.entry(Rc::clone(&id)).or_insert_with(|| Entry {
            group: Group::Classic(Box::new(ClassicGroup::new(Rc::clone(&id), now_ms))),
            offsets: Offsets::default(),
        });
        if matches!(entry.group, Group::Share(_)) {
            let reply = error_join(&request.member_id, ResponseError::InconsistentGroupProtocol);
            return self.effects.reply(ticket, reply);
        }
        let scope = scope!(self, now_ms);
        let mut records = Vec::new();
        let mut is_new = !known;
        if let Group::Consumer(group) = &entry.group {
            // a consumer group without members is as good as none
            if !request.member_id.is_empty() {
                let reply = error_join(&request.member_id, ResponseError::UnknownMemberId);
                return scope.effects.reply(ticket, reply);
            }
            records = group.tombstones();
            is_new = true;
            entry.group = Group::Classic(Box::new(ClassicGroup::new(id, now_ms)));
        }
        let Group::Classic(group) = &mut entry.group else {
            return;
        };
        group.handle_join(scope, &join, ticket);
        if is_new {
            records.push(group.empty_record());
            scope.effects.write(records, Then::Keep);
        }
    }

    /// Handles a SyncGroup.
    pub(crate) fn handle_sync(&mut self, now_ms: i64, request: &SyncGroupRequest, ticket: Ticket<SyncGroupResponse>) {
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        match self.entries.get_mut(request.group_id.as_str()).map(|entry| &mut entry.group) {
            Some(Group::Classic(group)) => group.handle_sync(scope, request, ticket),
            Some(Group::Consumer(group)) => {
                let reply = group.handle_classic_sync(scope, topics, request).unwrap_or_else(error_sync);
                scope.effects.reply_when_settled(ticket, reply);
            }
            Some(Group::Share(_)) | None => {
                let error = unknown_group(&request.group_id, ResponseError::UnknownMemberId);
                scope.effects.reply(ticket, error_sync(error));
            }
        }
    }

    /// Handles a Heartbeat.
    pub(crate) fn handle_heartbeat(
        &mut self,
        now_ms: i64,
        request: &HeartbeatRequest,
        ticket: Ticket<HeartbeatResponse>,
    ) {
        let scope = scope!(self, now_ms);
        let result = match self.entries.get_mut(request.group_id.as_str()).map(|entry| &mut entry.group) {
            Some(Group::Classic(group)) => group.handle_heartbeat(scope, request),
            Some(Group::Consumer(group)) => group.handle_classic_heartbeat(scope, request),
            Some(Group::Share(_)) | None => Err(unknown_group(&request.group_id, ResponseError::UnknownMemberId)),
        };
        let code = result.err().map_or(0, |error| error.code());
        let reply = HeartbeatResponse::default().with_error_code(code);
        self.effects.reply(ticket, reply);
    }

    /// Handles a LeaveGroup; versions before 3 are to be given as a list of one member.
    pub(crate) fn handle_leave(
        &mut self,
        now_ms: i64,
        request: &LeaveGroupRequest,
        ticket: Ticket<LeaveGroupResponse>,
    ) {
        let scope = scope!(self, now_ms);
        let reply = match self.entries.get_mut(request.group_id.as_str()).map(|entry| &mut entry.group) {
            Some(Group::Classic(group)) => group.handle_leave(scope, request),
            Some(Group::Consumer(_)) => return self.leave_consumer_group(now_ms, request, ticket),
            None if request.group_id.is_empty() => {
                LeaveGroupResponse::default().with_error_code(ResponseError::InvalidGroupId.code())
            }
            Some(Group::Share(_)) | None => {
                let unknown = |member| member_response(member, Some(ResponseError::UnknownMemberId));
                LeaveGroupResponse::default().with_members(request.members.iter().map(unknown).collect())
            }
        };
        self.effects.reply(ticket, reply);
    }

    /// Takes over what topics there are now.
    pub(crate) fn see_topics(&mut self, topics: Rc<dyn TopicLookup>) {
        self.topics = topics;
        self.topics_version += 1;
    }

    /// Whether there is anything to take.
    #[cfg(test)]
    pub(crate) fn has_work(&self) -> bool {
        self.effects.has_work()
    }

    /// Checks what the groups promise.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for entry in self.entries.values() {
            match &entry.group {
                Group::Classic(group) => group.check(),
                Group::Consumer(group) => group.check(),
                Group::Share(_) => {}
            }
        }
        self.check_transactions();
    }
}

/// Longest text that is kept, in bytes: records hold texts of up to 32,767 bytes, and a member id is made of another text
/// and a UUID. Compact texts of requests can be longer.
const TEXT_BYTES_MAX: usize = 32_000;

fn is_too_long(text: &str) -> bool {
    text.len() > TEXT_BYTES_MAX
}

fn unknown_group(id: &str, error: GroupError) -> GroupError {
    if id.is_empty() { ResponseError::InvalidGroupId } else { error }
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator").field("groups", &self.entries.len()).finish_non_exhaustive()
    }
}
