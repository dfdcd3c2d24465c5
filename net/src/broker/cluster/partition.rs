//! What clients are told of one partition.

use kafka_protocol::{ResponseError, messages::BrokerId};
use millrace_engine::api::LEADER_EPOCH;

/// The state of a partition as answers carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionView {
    /// Who leads it, at an address that the asking client can use; otherwise the error that says why nobody does.
    pub(crate) leader: Result<BrokerId, ResponseError>,
    /// The epoch in which it is led, or was last.
    pub(crate) leader_epoch: i32,
    /// All replicas, the preferred leader first.
    pub(crate) replicas: Vec<BrokerId>,
    /// Those of them that are in sync.
    pub(crate) isr: Vec<BrokerId>,
    /// Those that may be elected though they are not in sync (KIP-966).
    pub(crate) eligible: Vec<BrokerId>,
    /// Those that were eligible when the last leader was lost.
    pub(crate) last_known_eligible: Vec<BrokerId>,
    /// Those that clients cannot reach.
    pub(crate) offline: Vec<BrokerId>,
}

impl PartitionView {
    /// A partition with one replica, which leads it for ever.
    pub(super) fn single(leader: BrokerId, leader_epoch: i32) -> PartitionView {
        PartitionView {
            leader: Ok(leader),
            leader_epoch,
            replicas: vec![leader],
            isr: vec![leader],
            eligible: Vec::new(),
            last_known_eligible: Vec::new(),
            offline: Vec::new(),
        }
    }

    /// A partition that nothing is known of yet.
    pub(super) fn unknown() -> PartitionView {
        PartitionView {
            leader: Err(ResponseError::LeaderNotAvailable),
            leader_epoch: LEADER_EPOCH,
            replicas: Vec::new(),
            isr: Vec::new(),
            eligible: Vec::new(),
            last_known_eligible: Vec::new(),
            offline: Vec::new(),
        }
    }

    /// The leader as answers name it: -1 for none.
    pub(crate) fn leader_id(&self) -> BrokerId {
        self.leader.unwrap_or(BrokerId(-1))
    }

    /// The code of the error beside it; 0: there is a leader.
    pub(crate) fn error_code(&self) -> i16 {
        self.leader.err().map_or(0, |error| error.code())
    }
}

/// A move of a partition to other replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moving {
    /// All replicas of now, those that come and those that go among them.
    pub(crate) replicas: Vec<BrokerId>,
    /// Those that come.
    pub(crate) adding: Vec<BrokerId>,
    /// Those that go.
    pub(crate) removing: Vec<BrokerId>,
}
