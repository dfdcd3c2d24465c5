//! ListGroups, DescribeGroups and DeleteGroups.

use std::{collections::BTreeSet, rc::Rc};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        delete_groups_response::DeletableGroupResult,
        describe_groups_response::{DescribedGroup, DescribedGroupMember},
        list_groups_response::ListedGroup,
    },
};

use super::{Coordinator, Entry, Group};
use crate::coordinator::group::{
    classic::{CONSUMER_PROTOCOL_TYPE, ClassicGroup, State},
    effects::Then,
    error::GroupError,
    record::Record,
    strings::{optional_wire, wire},
};
use crate::coordinator::{group::share::PROTOCOL_TYPE as SHARE_TYPE, runtime::Ticket};

/// First version of DescribeGroups in which an unknown group is an error.
const GROUP_ID_NOT_FOUND_VERSION: i16 = 6;

/// Which groups ListGroups wants; an empty filter lets everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GroupFilter {
    /// States in lower case.
    pub(crate) states: BTreeSet<String>,
    /// Types in lower case.
    pub(crate) types: BTreeSet<String>,
}

impl Coordinator {
    /// The groups that pass a filter.
    pub(crate) fn list(&self, filter: &GroupFilter) -> Vec<ListedGroup> {
        let passes = |listed: &ListedGroup| {
            (filter.states.is_empty() || filter.states.contains(&listed.group_state.to_lowercase()))
                && (filter.types.is_empty() || filter.types.contains(&listed.group_type.to_lowercase()))
        };
        self.entries.iter().map(|(id, entry)| entry.listed(id)).filter(passes).collect()
    }

    /// Describes a classic group; `version` is that of DescribeGroups.
    pub(crate) fn describe(&self, id: &str, version: i16) -> DescribedGroup {
        match self.entries.get(id).map(|entry| &entry.group) {
            Some(Group::Classic(group)) => describe_classic(group),
            found => {
                let described = DescribedGroup::default().with_group_id(wire(id).into()).with_group_state(wire("Dead"));
                if version < GROUP_ID_NOT_FOUND_VERSION {
                    return described;
                }
                let message = match found {
                    None => format!("Group {id} not found."),
                    Some(_) => format!("Group {id} is not a classic group."),
                };
                described
                    .with_error_code(ResponseError::GroupIdNotFound.code())
                    .with_error_message(optional_wire(Some(&message)))
            }
        }
    }

    /// Deletes groups without members, with their offsets.
    pub(crate) fn handle_delete_groups(&mut self, ids: &[String], ticket: Ticket<Vec<DeletableGroupResult>>) {
        let mut records = Vec::new();
        let mut results = Vec::with_capacity(ids.len());
        for id in ids {
            let deletable = match self.entries.get_key_value(id.as_str()) {
                None => Err(ResponseError::GroupIdNotFound),
                Some((id, entry)) => entry.validate_delete().map(|()| entry.tombstones(id, &mut records)),
            };
            let code = deletable.err().map_or(0, |error| error.code());
            results.push(DeletableGroupResult::default().with_group_id(wire(id).into()).with_error_code(code));
        }
        if records.is_empty() {
            return self.effects.reply(ticket, results);
        }
        self.effects.write_then_reply(records.clone(), Then::Apply(records), ticket, results);
    }
}

impl Entry {
    fn listed(&self, id: &str) -> ListedGroup {
        let (protocol_type, state, kind) = match &self.group {
            Group::Classic(group) => (group.protocol_type().unwrap_or_default(), group.state().name(), "classic"),
            Group::Consumer(group) => (CONSUMER_PROTOCOL_TYPE, group.state().name(), "consumer"),
            Group::Share(group) => (SHARE_TYPE, group.state_name(), SHARE_TYPE),
        };
        ListedGroup::default()
            .with_group_id(wire(id).into())
            .with_protocol_type(wire(protocol_type))
            .with_group_state(wire(state))
            .with_group_type(wire(kind))
    }

    fn validate_delete(&self) -> Result<(), GroupError> {
        match &self.group {
            Group::Classic(group) if group.state() == State::Empty => Ok(()),
            Group::Consumer(group) if group.is_empty() => Ok(()),
            Group::Share(group) if group.is_empty() => Ok(()),
            Group::Classic(_) | Group::Consumer(_) | Group::Share(_) => Err(ResponseError::NonEmptyGroup),
        }
    }

    /// The tombstones of the group and all its offsets.
    fn tombstones(&self, id: &Rc<str>, records: &mut Vec<Record>) {
        for (topic, partition) in self.offsets.partitions() {
            let (group, topic) = (Rc::clone(id), Rc::clone(topic));
            records.push(Record::OffsetCommit { group, topic, partition, value: None });
        }
        self.group_tombstones(id, records);
    }

    /// The tombstones of the group without those of its offsets.
    pub(super) fn group_tombstones(&self, id: &Rc<str>, records: &mut Vec<Record>) {
        match &self.group {
            Group::Classic(_) => {
                records.push(Record::GroupMetadata { group: Rc::clone(id), value: None });
            }
            Group::Consumer(group) => records.extend(group.tombstones()),
            Group::Share(group) => records.extend(group.tombstones()),
        }
    }
}

fn describe_classic(group: &ClassicGroup) -> DescribedGroup {
    // before everybody has synced, what members want and get is of different generations
    let protocol = group.protocol().filter(|_| group.state() == State::Stable);
    let member = |member: &crate::coordinator::group::classic::Member| {
        DescribedGroupMember::default()
            .with_member_id(wire(&member.id))
            .with_group_instance_id(optional_wire(member.instance_id.as_deref()))
            .with_client_id(wire(&member.client_id))
            .with_client_host(wire(&member.client_host))
            .with_member_metadata(protocol.map(|protocol| member.metadata(protocol)).unwrap_or_default())
            .with_member_assignment(member.assignment.clone())
    };
    DescribedGroup::default()
        .with_group_id(wire(group.id()).into())
        .with_group_state(wire(group.state().name()))
        .with_protocol_type(wire(group.protocol_type().unwrap_or_default()))
        .with_protocol_data(wire(protocol.unwrap_or_default()))
        .with_members(group.members().values().map(member).collect())
}
