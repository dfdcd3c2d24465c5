//! A member of a consumer group.

use std::rc::Rc;

use bytes::Bytes;
use uuid::Uuid;

use crate::coordinator::group::record::{AssignedPartitions, ClassicMetadata, ConsumerCurrent, ConsumerMember};

/// The epoch of a member that has not joined yet.
pub(crate) const JOIN_EPOCH: i32 = 0;
/// The epoch with which a member leaves.
pub(crate) const LEAVE_EPOCH: i32 = -1;
/// The epoch with which a static member leaves for a while.
pub(crate) const STATIC_LEAVE_EPOCH: i32 = -2;

/// How far a member is on its way to its target assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberState {
    /// It owns its target assignment of its epoch.
    Stable,
    /// It must give partitions back before it can go on to the next epoch.
    UnrevokedPartitions,
    /// It waits for partitions that others have not given back yet.
    UnreleasedPartitions,
    /// A state of a later version of Kafka.
    Unknown,
}

impl MemberState {
    fn from_code(code: i8) -> Self {
        match code {
            0 => MemberState::Stable,
            1 => MemberState::UnrevokedPartitions,
            2 => MemberState::UnreleasedPartitions,
            _ => MemberState::Unknown,
        }
    }

    fn code(self) -> i8 {
        match self {
            MemberState::Stable => 0,
            MemberState::UnrevokedPartitions => 1,
            MemberState::UnreleasedPartitions => 2,
            MemberState::Unknown => 127,
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Member id.
    pub(crate) id: Rc<str>,
    /// What it says of itself.
    pub(crate) info: Rc<ConsumerMember>,
    /// Its epoch.
    pub(crate) epoch: i32,
    /// The epoch before.
    pub(crate) previous_epoch: i32,
    /// How far it is.
    pub(crate) state: MemberState,
    /// Partitions that are its own, with the epoch in which each was given to it.
    pub(crate) assigned: AssignedPartitions,
    /// Partitions that it must give back.
    pub(crate) pending_revocation: AssignedPartitions,
}

impl Member {
    /// A member that is about to join.
    pub(crate) fn new(id: Rc<str>) -> Self {
        let info = ConsumerMember {
            instance_id: None,
            rack_id: None,
            client_id: Rc::from(""),
            client_host: Rc::from(""),
            topic_names: Vec::new(),
            topic_regex: None,
            rebalance_timeout_ms: -1,
            server_assignor: None,
            classic: None,
        };
        Self {
            id,
            info: Rc::new(info),
            epoch: JOIN_EPOCH,
            previous_epoch: JOIN_EPOCH,
            state: MemberState::Stable,
            assigned: AssignedPartitions::new(),
            pending_revocation: AssignedPartitions::new(),
        }
    }

    /// Takes over where a record says it stands.
    pub(crate) fn set_current(&mut self, value: &ConsumerCurrent) {
        self.epoch = value.epoch;
        self.previous_epoch = value.previous_epoch;
        self.state = MemberState::from_code(value.state);
        self.assigned = value.assigned.clone();
        self.pending_revocation = value.pending_revocation.clone();
    }

    /// The record of where it stands.
    pub(crate) fn current(&self) -> ConsumerCurrent {
        ConsumerCurrent {
            epoch: self.epoch,
            previous_epoch: self.previous_epoch,
            state: self.state.code(),
            assigned: self.assigned.clone(),
            pending_revocation: self.pending_revocation.clone(),
        }
    }

    /// Its regular expression, if it subscribes by one.
    pub(crate) fn regex(&self) -> Option<&Rc<str>> {
        self.info.topic_regex.as_ref().filter(|regex| !regex.is_empty())
    }

    /// What the classic protocol says of it, while it uses that.
    pub(crate) fn classic(&self) -> Option<&ClassicMetadata> {
        self.info.classic.as_ref()
    }

    /// The classic protocol that it prefers, with its metadata.
    pub(crate) fn classic_protocol(&self) -> Option<(&Rc<str>, &Bytes)> {
        self.classic()?.protocols.first().map(|(name, metadata)| (name, metadata))
    }

    /// Whether it has nothing left to do for a target assignment.
    pub(crate) fn is_reconciled_to(&self, assignment_epoch: i32) -> bool {
        self.state == MemberState::Stable && self.epoch == assignment_epoch
    }

    /// The epoch in which a partition was given to it, also when it must give it back now.
    pub(crate) fn assignment_epoch(&self, topic: Uuid, partition: i32) -> Option<i32> {
        let epoch = |owned: &AssignedPartitions| owned.get(&topic)?.get(&partition).copied();
        epoch(&self.assigned).or_else(|| epoch(&self.pending_revocation))
    }
}
