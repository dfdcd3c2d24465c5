//! A share group's members and what each is to read (KIP-932).
//!
//! As a consumer group it has a group epoch and a target assignment that follows it; but partitions are shared, so that a
//! member has its new assignment at once. Only share partitions that have state are assigned: a heartbeat whose group
//! subscribes to others says so, and the shell makes the state and reports it.
//!
//! All durable state changes through [`ShareGroup::apply`], whether a record was just made or is read from the log.

mod admin;
mod assignor;
mod heartbeat;
pub(super) mod record;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, rc::Rc};

pub(crate) use admin::{Altered, DeletedOffsets};
pub(crate) use heartbeat::validate;
pub(crate) use record::ShareRecord;
use record::{Current, GroupEpoch, MemberInfo, Partitions, Topic};
use uuid::Uuid;

use crate::coordinator::group::{
    assignment::Assignment,
    effects::Scope,
    record::{ConsumerTargetMetadata, Record},
    timers::TimerKind,
};

/// Kafka's name of the protocol type and of the group type.
pub(crate) const PROTOCOL_TYPE: &str = "share";

/// A member.
#[derive(Debug, Clone, Default)]
struct Member {
    info: MemberInfo,
    current: Current,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ShareGroup {
    id: Rc<str>,
    epoch: i32,
    metadata_hash: i64,
    assignment_epoch: i32,
    /// When the target assignment was made, ms since the epoch; 0 when that is not known.
    assignment_timestamp_ms: i64,
    members: BTreeMap<Rc<str>, Member>,
    target: BTreeMap<Rc<str>, Rc<Assignment>>,
    partitions: Partitions,
    /// Until when the making of state is waited for, by topic; it is begun anew after that, and after a start.
    initializing_until_ms: BTreeMap<Uuid, i64>,
    /// Version of the topics that the metadata hash was last compared with; `None` after loading.
    seen_topics: Option<u64>,
}

/// Share partitions whose state is to be made or deleted, with the start offset where one is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StateWork {
    /// The epoch of the new state.
    pub(crate) state_epoch: i32,
    /// Topic, partition, start offset or -1.
    pub(crate) partitions: Vec<(Uuid, i32, i64)>,
}

impl ShareGroup {
    /// A group without members.
    pub(crate) fn new(id: Rc<str>) -> Self {
        Self {
            id,
            epoch: 0,
            metadata_hash: 0,
            assignment_epoch: 0,
            assignment_timestamp_ms: 0,
            members: BTreeMap::new(),
            target: BTreeMap::new(),
            partitions: Partitions::default(),
            initializing_until_ms: BTreeMap::new(),
            seen_topics: None,
        }
    }

    /// Changes the state as a record says. Tombstones of what is not there are passed over.
    pub(crate) fn apply(&mut self, record: &ShareRecord) {
        match record {
            ShareRecord::Epoch(Some(value)) => {
                (self.epoch, self.metadata_hash) = (value.epoch, value.metadata_hash);
            }
            ShareRecord::Epoch(None) => {}
            ShareRecord::Member(id, Some(info)) => {
                self.members.entry(Rc::clone(id)).or_default().info = (**info).clone();
            }
            ShareRecord::Member(id, None) => {
                self.members.remove(id);
            }
            ShareRecord::TargetMetadata(value) => {
                (self.assignment_epoch, self.assignment_timestamp_ms) =
                    value.map_or((-1, 0), |value| (value.epoch, value.timestamp_ms));
            }
            ShareRecord::Target(id, Some(target)) => {
                self.target.insert(Rc::clone(id), Rc::clone(target));
            }
            ShareRecord::Target(id, None) => {
                self.target.remove(id);
            }
            ShareRecord::Current(id, Some(current)) => {
                self.members.entry(Rc::clone(id)).or_default().current = current.clone();
            }
            ShareRecord::Current(id, None) => {
                if let Some(member) = self.members.get_mut(id) {
                    member.current = Current { epoch: -1, previous_epoch: -1, ..Current::default() };
                }
            }
            ShareRecord::Partitions(value) => self.partitions = value.clone().unwrap_or_default(),
        }
    }

    /// Makes a record: changes the state by it and keeps it to be written.
    fn put(&mut self, records: &mut Vec<Record>, record: ShareRecord) {
        self.apply(&record);
        records.push(Record::Share { group: Rc::clone(&self.id), record });
    }

    /// Starts the clocks of a group that was just loaded.
    pub(crate) fn on_loaded(&self, scope: &mut Scope<'_>) {
        let timeout_ms = scope.settings.share.get("group.share.session.timeout.ms");
        for member in self.members.keys() {
            self.restart_session(scope, member, timeout_ms);
        }
    }

    fn restart_session(&self, scope: &mut Scope<'_>, member: &Rc<str>, timeout_ms: i64) {
        let deadline = scope.now_ms.saturating_add(timeout_ms);
        scope.timers.schedule(&self.id, TimerKind::Session(Rc::clone(member)), deadline);
    }

    /// Takes all timers away: the group is about to go.
    pub(crate) fn close(&self, scope: &mut Scope<'_>) {
        for member in self.members.keys() {
            scope.timers.cancel(&self.id, TimerKind::Session(Rc::clone(member)));
        }
    }

    /// Whether it has no members.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Kafka's name of its state.
    pub(crate) fn state_name(&self) -> &'static str {
        if self.is_empty() { "Empty" } else { "Stable" }
    }

    /// Throws a member out: the group epoch rises.
    fn fence(
        &mut self,
        scope: &mut Scope<'_>,
        topics: crate::coordinator::group::TopicsView<'_>,
        id: &Rc<str>,
        records: &mut Vec<Record>,
    ) {
        scope.timers.cancel(&self.id, TimerKind::Session(Rc::clone(id)));
        self.put(records, ShareRecord::Current(Rc::clone(id), None));
        self.put(records, ShareRecord::Target(Rc::clone(id), None));
        self.put(records, ShareRecord::Member(Rc::clone(id), None));
        let value = GroupEpoch { epoch: self.epoch + 1, metadata_hash: self.hash_of(topics) };
        self.put(records, ShareRecord::Epoch(Some(value)));
        if self.members.is_empty() {
            // nobody is spared a rebalance by making the next one to join wait for the assignment interval
            let value = ConsumerTargetMetadata { epoch: self.epoch, timestamp_ms: 0 };
            self.put(records, ShareRecord::TargetMetadata(Some(value)));
        }
    }

    /// A member was not heard of for too long.
    pub(crate) fn handle_session_timeout(
        &mut self,
        scope: &mut Scope<'_>,
        topics: crate::coordinator::group::TopicsView<'_>,
        id: &Rc<str>,
        records: &mut Vec<Record>,
    ) {
        if self.members.contains_key(id) {
            self.fence(scope, topics, id, records);
        }
    }

    /// Hash over the subscribed topics.
    fn hash_of(&self, topics: crate::coordinator::group::TopicsView<'_>) -> i64 {
        crate::coordinator::group::metadata_hash(self.subscribed().into_iter(), topics)
    }

    fn subscribed(&self) -> std::collections::BTreeSet<&Rc<str>> {
        self.members.values().flat_map(|member| &member.info.topic_names).collect()
    }

    /// Whether any member subscribes to a topic.
    pub(crate) fn is_subscribed_to(&self, topic: &str) -> bool {
        self.members.values().any(|member| member.info.topic_names.iter().any(|name| **name == *topic))
    }

    /// The tombstones of the group.
    pub(crate) fn tombstones(&self) -> Vec<Record> {
        let members = self.members.keys();
        let of_member = |id: &Rc<str>| {
            [
                ShareRecord::Current(Rc::clone(id), None),
                ShareRecord::Target(Rc::clone(id), None),
                ShareRecord::Member(Rc::clone(id), None),
            ]
        };
        let mut records: Vec<_> = members.flat_map(of_member).collect();
        records.extend([ShareRecord::TargetMetadata(None), ShareRecord::Partitions(None), ShareRecord::Epoch(None)]);
        records.into_iter().map(|record| Record::Share { group: Rc::clone(&self.id), record }).collect()
    }
}
