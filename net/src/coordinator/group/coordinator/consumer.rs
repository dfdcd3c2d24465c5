//! Consumer groups (KIP-848), and groups that become or cease to be such.
//!
//! Their state runs ahead of the log: what a heartbeat changes is seen by the next one at once, but its reply waits for
//! the records. Should these fail, all is rebuilt from the log.

use std::rc::Rc;

use kafka_protocol::{
    error::ResponseError,
    messages::{
        ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, JoinGroupResponse, LeaveGroupRequest,
        LeaveGroupResponse, consumer_group_describe_response::DescribedGroup,
    },
};

use super::{Coordinator, Entry, Group, Scope, State, scope, view};
use crate::coordinator::group::{
    caller::Caller,
    classic::{Join, error_join},
    consumer::{self, ConsumerGroup, JOIN_EPOCH, LEAVE_EPOCH, Left, STATIC_LEAVE_EPOCH, TopicsView},
    effects::Then,
    error::Refusal,
    offsets::Offsets,
    record::Record,
    strings::{optional_wire, wire},
    timers::TimerKind,
};
use crate::coordinator::runtime::{Answer, Ticket};

impl Coordinator {
    /// Handles a ConsumerGroupHeartbeat.
    pub(crate) fn handle_consumer_heartbeat(
        &mut self,
        now_ms: i64,
        caller: &Caller,
        request: &ConsumerGroupHeartbeatRequest,
        ticket: Ticket<ConsumerGroupHeartbeatResponse>,
    ) {
        let mut records = Vec::new();
        let leaves = matches!(request.member_epoch, LEAVE_EPOCH | STATIC_LEAVE_EPOCH);
        let valid = validate_texts(caller, request);
        let valid = valid.and_then(|()| consumer::validate(&self.settings, caller.version, request));
        let result = valid.and_then(|()| {
            if leaves {
                self.leave_by_heartbeat(now_ms, request, &mut records)
            } else {
                self.heartbeat(now_ms, caller, request, &mut records)
            }
        });
        let reply = result.unwrap_or_else(|refusal| {
            records.clear();
            refused(&refusal)
        });
        self.finish(records, ticket, reply);
    }

    /// Writes what a group did and releases the reply once it is durable.
    pub(super) fn finish<A: Answer>(&mut self, records: Vec<Record>, ticket: Ticket<A>, reply: A) {
        if records.is_empty() {
            self.effects.reply_when_settled(ticket, reply);
        } else {
            self.effects.write_then_reply(records, Then::Rebuild, ticket, reply);
        }
    }

    fn heartbeat(
        &mut self,
        now_ms: i64,
        caller: &Caller,
        request: &ConsumerGroupHeartbeatRequest,
        records: &mut Vec<Record>,
    ) -> Result<ConsumerGroupHeartbeatResponse, Refusal> {
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        let id = request.group_id.as_str();
        let joins = request.member_epoch == JOIN_EPOCH;
        let entry = match self.entries.get_mut(id) {
            Some(Entry { group: Group::Consumer(group), .. }) => {
                return group.handle_heartbeat(scope, topics, caller, request, records);
            }
            entry if !joins => return Err(ConsumerGroup::not_found(id, entry.is_some())),
            entry => entry,
        };
        let mut group = match &entry {
            None => ConsumerGroup::new(Rc::from(id)),
            Some(entry) => upgrade(scope, topics, entry, request, records)?,
        };
        let reply = group.handle_heartbeat(scope, topics, caller, request, records)?;
        match entry {
            Some(entry) => {
                if let Group::Classic(classic) = &mut entry.group {
                    classic.close(scope, ResponseError::RebalanceInProgress);
                }
                // the classic group's clocks were stopped just now
                group.on_loaded(scope);
                entry.group = Group::Consumer(Box::new(group));
            }
            None => {
                let group = Group::Consumer(Box::new(group));
                self.entries.insert(Rc::from(id), Entry { group, offsets: Offsets::default() });
            }
        }
        Ok(reply)
    }

    fn leave_by_heartbeat(
        &mut self,
        now_ms: i64,
        request: &ConsumerGroupHeartbeatRequest,
        records: &mut Vec<Record>,
    ) -> Result<ConsumerGroupHeartbeatResponse, Refusal> {
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        let id = request.group_id.as_str();
        let Some(entry) = self.entries.get_mut(id) else {
            return Err(Refusal::new(ResponseError::GroupIdNotFound, format!("Group {id} not found.")));
        };
        let Group::Consumer(group) = &mut entry.group else {
            return Err(ConsumerGroup::not_found(id, true));
        };
        let (reply, left) = group.handle_leave(scope, topics, request, records)?;
        entry.replace_if(left);
        Ok(reply)
    }

    /// A JoinGroup to a consumer group that has members.
    pub(super) fn join_consumer_group(
        &mut self,
        now_ms: i64,
        id: &Rc<str>,
        join: &Join<'_>,
        ticket: Ticket<JoinGroupResponse>,
    ) {
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let Group::Consumer(group) = &mut entry.group else {
            return;
        };
        let mut records = Vec::new();
        let reply = match group.handle_classic_join(scope, topics, join, &mut records) {
            Ok((reply, left)) => {
                entry.replace_if(left);
                reply
            }
            Err(error) => error_join(&join.request.member_id, error),
        };
        self.finish(records, ticket, reply);
    }

    /// A LeaveGroup to a consumer group.
    pub(super) fn leave_consumer_group(
        &mut self,
        now_ms: i64,
        request: &LeaveGroupRequest,
        ticket: Ticket<LeaveGroupResponse>,
    ) {
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        let Some(entry) = self.entries.get_mut(request.group_id.as_str()) else {
            return;
        };
        let Group::Consumer(group) = &mut entry.group else {
            return;
        };
        let mut records = Vec::new();
        let (reply, left) = group.handle_classic_leave(scope, topics, request, &mut records);
        entry.replace_if(left);
        self.finish(records, ticket, reply);
    }

    /// A member of a consumer group was too slow.
    pub(super) fn consumer_timeout(&mut self, now_ms: i64, id: &Rc<str>, kind: TimerKind) {
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let Group::Consumer(group) = &mut entry.group else {
            return;
        };
        let mut records = Vec::new();
        let left = match kind {
            TimerKind::Rebalance(member) => group.handle_rebalance_timeout(scope, topics, &member, &mut records),
            TimerKind::Session(member) | TimerKind::MemberJoin(member) | TimerKind::MemberSync(member) => {
                group.handle_member_timeout(scope, topics, &member, &mut records)
            }
            // left over from when it was a classic group
            TimerKind::GroupJoin | TimerKind::GroupSync => return,
        };
        entry.replace_if(left);
        if !records.is_empty() {
            self.effects.write(records, Then::Rebuild);
        }
    }

    /// The topics of a group's regular expressions, looked up in the topics of `version`; sorted.
    pub(crate) fn handle_regexes(
        &mut self,
        now_ms: i64,
        group: &str,
        version: u64,
        resolved: Vec<(Rc<str>, Vec<Rc<str>>)>,
    ) {
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        let Some(Entry { group: Group::Consumer(group), .. }) = self.entries.get_mut(group) else {
            return;
        };
        let mut records = Vec::new();
        group.handle_regexes(scope, topics, version, resolved, &mut records);
        if !records.is_empty() {
            self.effects.write(records, Then::Rebuild);
        }
    }

    /// Describes a consumer group.
    pub(crate) fn describe_consumer(&self, id: &str) -> DescribedGroup {
        let message = match self.entries.get(id).map(|entry| &entry.group) {
            Some(Group::Consumer(group)) => {
                return group.describe(view!(self), &self.settings.consumer_assignors);
            }
            Some(Group::Classic(_) | Group::Share(_)) => {
                format!("Group {id} is not a consumer group.")
            }
            None => format!("Group {id} not found."),
        };
        DescribedGroup::default()
            .with_group_id(wire(id).into())
            .with_error_code(ResponseError::GroupIdNotFound.code())
            .with_error_message(optional_wire(Some(&message)))
    }
}

impl Entry {
    fn replace_if(&mut self, left: Left) {
        if let Left::Downgraded(group) = left {
            self.group = Group::Classic(group);
        }
    }
}

/// The consumer group that takes the place of a classic one when a member joins.
fn upgrade(
    scope: &Scope<'_>,
    topics: TopicsView<'_>,
    entry: &Entry,
    request: &ConsumerGroupHeartbeatRequest,
    records: &mut Vec<Record>,
) -> Result<ConsumerGroup, Refusal> {
    let id = request.group_id.as_str();
    let Group::Classic(group) = &entry.group else {
        return Err(ConsumerGroup::not_found(id, true));
    };
    if group.state() == State::Empty {
        records.push(Record::GroupMetadata { group: Rc::clone(group.id()), value: None });
        return Ok(ConsumerGroup::new(Rc::clone(group.id())));
    }
    ConsumerGroup::validate_upgrade(scope.settings, group)?;
    ConsumerGroup::upgrade(group, topics, records)
}

fn validate_texts(caller: &Caller, request: &ConsumerGroupHeartbeatRequest) -> Result<(), Refusal> {
    let optional = [&request.instance_id, &request.subscribed_topic_regex].into_iter().flatten();
    let texts = optional.map(|text| text.as_str()).chain([&*request.group_id, &*request.member_id, &*caller.client_id]);
    if texts.into_iter().any(super::is_too_long) {
        return Err(Refusal::new(ResponseError::InvalidRequest, "a text is too long to be kept"));
    }
    Ok(())
}

fn refused(refusal: &Refusal) -> ConsumerGroupHeartbeatResponse {
    let message = Some(refusal.message.as_str()).filter(|message| !message.is_empty());
    ConsumerGroupHeartbeatResponse::default()
        .with_error_code(refusal.error.code())
        .with_error_message(optional_wire(message))
}
