//! Share groups (KIP-932). Like consumer groups they run ahead of the log: a reply waits for the records, and should these
//! fail, all is rebuilt.

use std::rc::Rc;

use kafka_protocol::{
    error::ResponseError,
    messages::{
        AlterShareGroupOffsetsRequest, DeleteShareGroupOffsetsRequest, ShareGroupHeartbeatRequest,
        ShareGroupHeartbeatResponse, share_group_describe_response::DescribedGroup,
    },
};
use uuid::Uuid;

use super::{Coordinator, Entry, Group, Scope, TopicsView, scope, view};
use crate::coordinator::{
    group::{
        caller::Caller,
        effects::Then,
        error::Refusal,
        offsets::Offsets,
        record::Record,
        share::{self, Altered, DeletedOffsets, ShareGroup, ShareRecord, StateWork},
        strings::{optional_wire, wire},
        timers::TimerKind,
    },
    runtime::Ticket,
    share::GroupSettings,
};

/// Epoch of a member that joins.
const JOIN_EPOCH: i32 = 0;
/// Epoch of a member that leaves.
const LEAVE_EPOCH: i32 = -1;

/// The answer to a heartbeat, and state that is to be made before it is sent.
pub(crate) type Beaten = (ShareGroupHeartbeatResponse, Option<StateWork>);

impl Coordinator {
    /// Handles a ShareGroupHeartbeat; `settings` are the group's.
    pub(crate) fn handle_share_heartbeat(
        &mut self,
        now_ms: i64,
        caller: &Caller,
        settings: &GroupSettings,
        request: &ShareGroupHeartbeatRequest,
        ticket: Ticket<Result<Beaten, Refusal>>,
    ) {
        let mut records = Vec::new();
        let result = share::validate(request).and_then(|()| {
            let (scope, topics) = (scope!(self, now_ms), view!(self));
            let id = request.group_id.as_str();
            let group = match self.entries.get_mut(id) {
                Some(Entry { group: Group::Share(group), .. }) => group,
                Some(_) => return Err(not_a_share_group(id)),
                None if request.member_epoch == JOIN_EPOCH => {
                    let mut group = Box::new(ShareGroup::new(Rc::from(id)));
                    let reply = group.handle_heartbeat(scope, topics, caller, settings, request, &mut records)?;
                    let entry = Entry { group: Group::Share(group), offsets: Offsets::default() };
                    self.entries.insert(Rc::from(id), entry);
                    return Ok(reply);
                }
                None => return Err(not_found(id)),
            };
            if request.member_epoch == LEAVE_EPOCH {
                return Ok((group.handle_leave(scope, topics, request, &mut records)?, None));
            }
            group.handle_heartbeat(scope, topics, caller, settings, request, &mut records)
        });
        self.finish(records, ticket, result);
    }

    /// Lets a share group that is there do something.
    fn with_share<T: 'static>(
        &mut self,
        id: &str,
        ticket: Ticket<Result<T, Refusal>>,
        work: impl FnOnce(&mut ShareGroup, TopicsView<'_>, &mut Vec<Record>) -> Result<T, Refusal>,
    ) {
        let mut records = Vec::new();
        let topics = view!(self);
        let result = match self.entries.get_mut(id).map(|entry| &mut entry.group) {
            Some(Group::Share(group)) => work(group, topics, &mut records),
            Some(_) => Err(not_a_share_group(id)),
            None => Err(not_found(id)),
        };
        self.finish(records, ticket, result);
    }

    /// State that a heartbeat or an administrator asked for was made, or could not be.
    pub(crate) fn handle_share_state_made(
        &mut self,
        id: &str,
        partitions: &[(Uuid, i32, i64)],
        is_made: bool,
        ticket: Ticket<Result<(), Refusal>>,
    ) {
        self.with_share(id, ticket, |group, topics, records| {
            group.on_state_made(topics, partitions, is_made, records);
            Ok(())
        });
    }

    /// State of topics that an administrator wanted deleted is gone.
    pub(crate) fn handle_share_state_deleted(&mut self, id: &str, gone: &[Uuid], ticket: Ticket<Result<(), Refusal>>) {
        self.with_share(id, ticket, |group, _, records| {
            group.on_state_deleted(gone, records);
            Ok(())
        });
    }

    /// Handles an AlterShareGroupOffsets. A group that is not there is made.
    pub(crate) fn handle_share_alter(
        &mut self,
        now_ms: i64,
        request: &AlterShareGroupOffsetsRequest,
        ticket: Ticket<Result<Altered, Refusal>>,
    ) {
        let id: Rc<str> = Rc::from(request.group_id.as_str());
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        let entry = self.entries.entry(Rc::clone(&id)).or_insert_with(|| Entry {
            group: Group::Share(Box::new(ShareGroup::new(Rc::clone(&id)))),
            offsets: Offsets::default(),
        });
        let mut records = Vec::new();
        let result = match &mut entry.group {
            Group::Share(group) => group.handle_alter(scope, topics, request, &mut records).map_err(Refusal::from),
            Group::Classic(_) | Group::Consumer(_) => Err(not_a_share_group(&id)),
        };
        self.finish(records, ticket, result);
    }

    /// Handles a DeleteShareGroupOffsets.
    pub(crate) fn handle_share_delete_offsets(
        &mut self,
        request: &DeleteShareGroupOffsetsRequest,
        ticket: Ticket<Result<DeletedOffsets, Refusal>>,
    ) {
        self.with_share(&request.group_id, ticket, |group, topics, records| {
            Ok(group.handle_delete_offsets(topics, request, records)?)
        });
    }

    /// Begins to delete a group if it is a share group: answers the state that is to go before it can.
    pub(crate) fn handle_share_delete(&mut self, id: &str, ticket: Ticket<Result<Option<StateWork>, Refusal>>) {
        if !matches!(self.entries.get(id), Some(Entry { group: Group::Share(_), .. })) {
            return self.effects.reply(ticket, Ok(None));
        }
        self.with_share(id, ticket, |group, topics, records| Ok(Some(group.handle_delete(topics, records)?)));
    }

    /// A member was not heard of for too long.
    pub(super) fn share_timeout(&mut self, now_ms: i64, id: &Rc<str>, kind: &TimerKind) {
        let (scope, topics) = (scope!(self, now_ms), view!(self));
        let mut records = Vec::new();
        if let (Some(Entry { group: Group::Share(group), .. }), TimerKind::Session(member)) =
            (self.entries.get_mut(id), kind)
        {
            group.handle_session_timeout(scope, topics, member, &mut records);
        }
        if !records.is_empty() {
            self.effects.write(records, Then::Rebuild);
        }
    }

    /// Topics are gone, and the state of their share partitions with them.
    pub(super) fn forget_share_topics(&mut self, is_gone: &dyn Fn(Uuid) -> bool) {
        let mut records = Vec::new();
        for entry in self.entries.values_mut() {
            if let Group::Share(group) = &mut entry.group {
                group.handle_topics_gone(is_gone, &mut records);
            }
        }
        if !records.is_empty() {
            self.effects.write(records, Then::Rebuild);
        }
    }

    /// Takes over a record of a share group.
    pub(super) fn load_share(&mut self, id: &Rc<str>, record: &ShareRecord) {
        if !record.is_tombstone() {
            let group = &mut self.entry(id).group;
            if !matches!(group, Group::Share(_)) {
                *group = Group::Share(Box::new(ShareGroup::new(Rc::clone(id))));
            }
        }
        self.apply_share(id, record);
    }

    pub(super) fn apply_share(&mut self, id: &Rc<str>, record: &ShareRecord) {
        let Some(Entry { group: Group::Share(group), .. }) = self.entries.get_mut(id) else { return };
        group.apply(record);
        if matches!(record, ShareRecord::Epoch(None)) && group.is_empty() {
            self.remove_group(id);
        }
    }

    /// Describes a share group.
    pub(crate) fn describe_share(&self, id: &str) -> DescribedGroup {
        let refusal = match self.entries.get(id).map(|entry| &entry.group) {
            Some(Group::Share(group)) => return group.describe(view!(self)),
            Some(_) => not_a_share_group(id),
            None => Refusal::new(ResponseError::GroupIdNotFound, format!("Group {id} not found.")),
        };
        DescribedGroup::default()
            .with_group_id(wire(id).into())
            .with_error_code(refusal.error.code())
            .with_error_message(optional_wire(Some(&refusal.message)))
    }

    /// Which share partitions of a group have state.
    pub(crate) fn share_partitions(&self, id: &str) -> Vec<(Uuid, Vec<i32>)> {
        match self.entries.get(id).map(|entry| &entry.group) {
            Some(Group::Share(group)) => group.initialized(),
            _ => Vec::new(),
        }
    }
}

fn not_found(id: &str) -> Refusal {
    Refusal::new(ResponseError::GroupIdNotFound, format!("Share group {id} not found."))
}

fn not_a_share_group(id: &str) -> Refusal {
    Refusal::new(ResponseError::GroupIdNotFound, format!("Group {id} is not a share group."))
}
