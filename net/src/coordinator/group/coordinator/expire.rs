//! Offsets that nobody needs any more: of groups without members, and of topics that are gone.

use std::rc::Rc;

use super::{Coordinator, Entry, Group};
use crate::coordinator::group::{
    classic::State,
    effects::Then,
    record::{OffsetCommit, Record},
};

/// From when an offset's retention counts.
#[derive(Debug, Clone, Copy)]
enum RetentionBase {
    /// From its commit.
    Commit,
    /// From the moment when the group lost its last member.
    At(i64),
    /// It does not expire.
    Never,
}

impl Coordinator {
    /// Deletes offsets whose retention is over (KIP-211), and groups that are left without offsets and members.
    pub(crate) fn handle_retention(&mut self, now_ms: i64) {
        let mut records = Vec::new();
        for (id, entry) in &self.entries {
            entry.expire(id, now_ms, self.settings.offsets_retention_ms, &mut records);
        }
        self.write_tombstones(records);
    }

    /// Deletes the offsets of topics that are no more. A later topic of the same name is another topic. It goes by what
    /// is there, not by what was deleted since the last look: a topic may have come and gone between two looks.
    pub(crate) fn handle_topics_deleted(&mut self) {
        let topics = Rc::clone(&self.topics);
        let mut records = Vec::new();
        for (id, entry) in &self.entries {
            for (topic, partition) in entry.offsets.of_missing_topics(&*topics) {
                let (group, topic) = (Rc::clone(id), Rc::clone(topic));
                records.push(Record::OffsetCommit { group, topic, partition, value: None });
            }
        }
        self.write_tombstones(records);
        self.forget_share_topics(&|id| topics.by_id(id).is_none());
    }

    pub(super) fn write_tombstones(&mut self, records: Vec<Record>) {
        if !records.is_empty() {
            self.effects.write(records.clone(), Then::Apply(records));
        }
    }
}

impl Entry {
    fn retention_base(&self) -> RetentionBase {
        match &self.group {
            Group::Classic(group) => match (group.protocol_type(), group.state()) {
                (None, _) => RetentionBase::Commit,
                (Some(_), State::Empty) => group.state_since_ms().map_or(RetentionBase::Commit, RetentionBase::At),
                (Some(_), State::Stable) if group.uses_consumer_protocol() && group.knows_topics() => {
                    RetentionBase::Commit
                }
                (Some(_), _) => RetentionBase::Never,
            },
            Group::Consumer(_) | Group::Share(_) => RetentionBase::Commit,
        }
    }

    /// Whether it has no members, nor any that are about to be.
    pub(super) fn is_empty(&self) -> bool {
        match &self.group {
            Group::Classic(group) => group.state() == State::Empty && group.is_without_members(),
            Group::Consumer(group) => group.is_empty(),
            Group::Share(group) => group.is_empty(),
        }
    }

    fn expire(&self, id: &Rc<str>, now_ms: i64, retention_ms: i64, records: &mut Vec<Record>) {
        let base = self.retention_base();
        let expired = |value: &OffsetCommit| match base {
            _ if value.expire_timestamp_ms != -1 => now_ms >= value.expire_timestamp_ms,
            RetentionBase::Commit => now_ms.saturating_sub(value.commit_timestamp_ms) >= retention_ms,
            RetentionBase::At(since_ms) => now_ms.saturating_sub(since_ms) >= retention_ms,
            RetentionBase::Never => false,
        };
        // what a transaction is about to commit keeps its partition's offset, and the group (KAFKA-19163)
        let mut kept = self.offsets.has_pending();
        for (topic, partition, value) in self.offsets.iter() {
            let is_needed = matches!(base, RetentionBase::Never)
                || self.is_subscribed_to(topic)
                || self.offsets.is_pending(topic, partition);
            if is_needed || !expired(value) {
                kept = true;
                continue;
            }
            let (group, topic) = (Rc::clone(id), Rc::clone(topic));
            records.push(Record::OffsetCommit { group, topic, partition, value: None });
        }
        // a share group is kept until it is deleted: its offsets are elsewhere
        if !kept && self.is_empty() && !matches!(self.group, Group::Share(_)) {
            self.group_tombstones(id, records);
        }
    }
}
