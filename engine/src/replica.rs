//! One partition as it is replicated: what the shard that owns it does as its leader or as a follower of another node.
//!
//! Who leads in which epoch, who is in sync and how far consumers may see is decided elsewhere; here it is carried out on the
//! log, and what must be durable first is. Batches go out by a [`LogTap`] as groups are sealed, and by [`Replica::read`]
//! to who is behind; they come in by [`Replica::append_as_follower`], as they are.

use std::rc::Rc;

use bytes::Bytes;

use crate::{
    api::{LogError, TopicPartition},
    config::Durability,
    engine::Engine,
    io::direct::DirectIo,
    store::Store,
};

pub use crate::{replica_api::*, store::FollowerAppend};

/// A partition of this shard. Clones share it. Not `Send`.
#[derive(Clone)]
pub struct Replica {
    store: Rc<Store<DirectIo>>,
    id: TopicPartition,
}

impl Engine {
    /// A partition of this shard, to be replicated.
    ///
    /// # Errors
    /// [`LogError::UnknownPartition`] if it is not on this shard, or of a topic that no cluster has ([`Engine::put_topic`]).
    pub fn replica(&self, partition: TopicPartition) -> Result<Replica, LogError> {
        if !self.0.placements.borrow().contains_key(&partition.topic) {
            return Err(LogError::UnknownPartition);
        }
        self.0.store.position(partition)?;
        Ok(Replica { store: self.0.store.clone(), id: partition })
    }

    /// From here on nothing is taken or read as leader of partitions with replicas while that does not hold: it is answered
    /// with [`LogError::NotLeader`]. Roles and what is under way stay as they are.
    pub fn attach_lease(&self, lease: Rc<dyn LeaderLease>) {
        self.0.store.attach_lease(lease);
    }

    /// Lets somebody hear of the groups of this shard from here on, in the place of who did before.
    pub fn attach_tap(&self, tap: Rc<dyn LogTap>) {
        self.0.store.attach_tap(tap);
    }
}

impl Replica {
    /// Names it.
    pub fn id(&self) -> TopicPartition {
        self.id
    }

    /// How far its log is.
    pub fn position(&self) -> Result<ReplicaPosition, LogError> {
        self.store.position(self.id)
    }

    /// About how many bytes of batches are at or behind an offset.
    pub fn bytes_from(&self, offset: i64) -> Result<u64, LogError> {
        self.store.bytes_from(self.id, offset)
    }

    /// What its topic asks of a log before it counts as kept.
    pub fn durability(&self) -> Result<Durability, LogError> {
        self.store.durability(self.id)
    }

    /// Where a leader epoch ends here, whatever the role.
    pub fn end_of_epoch(&self, epoch: i32) -> Result<EpochEnd, LogError> {
        self.store.end_of_epoch(self.id, epoch)
    }

    /// Leads it from here on, in that epoch. Where the epoch begins is durable when this returns, also if nothing is ever
    /// written in it; nothing is appended before. Leading on in the same epoch changes who is waited for and no more.
    ///
    /// # Errors
    /// [`LogError::FencedLeaderEpoch`] if a newer epoch is known, or came meanwhile.
    pub async fn lead(&self, epoch: i32, leadership: Leadership) -> Result<ReplicaPosition, LogError> {
        self.store.lead(self.id, epoch, leadership).await
    }

    /// It has other replicas, or others of them are in sync, and is led on in that epoch. `min.insync.replicas` has another
    /// meaning then: of fewer replicas than that, all.
    ///
    /// # Errors
    /// [`LogError::NotLeader`] if it is not led in that epoch; nothing is changed.
    pub fn set_replicas(&self, epoch: i32, leadership: Leadership) -> Result<(), LogError> {
        self.store.set_replicas(self.id, epoch, leadership)
    }

    /// So many replicas are in sync, this one included.
    pub fn set_in_sync(&self, count: u32) -> Result<(), LogError> {
        self.store.set_in_sync(self.id, count)
    }

    /// Follows another node from here on, in that epoch. Who waits for a batch to be confirmed hears that it is not led
    /// here any more. Returns when nothing of the partition is on its way to the log.
    ///
    /// # Errors
    /// [`LogError::FencedLeaderEpoch`] if a newer epoch is known, or came meanwhile.
    pub async fn follow(&self, epoch: i32) -> Result<ReplicaPosition, LogError> {
        self.store.follow(self.id, epoch).await
    }

    /// Cuts off the end of a log that is followed, durably; epochs that begin at or behind the cut are forgotten, also if no
    /// batch is. The new end is the nearest at or below `end` that the log can be cut at: between two batches, and not
    /// inside a segment that compaction has rewritten.
    pub async fn truncate_to(&self, end: i64, cut: CutBytes) -> Result<ReplicaPosition, LogError> {
        self.store.truncate(self.id, end, cut).await
    }

    /// Takes everything off a log that is followed: it is empty then, and starts at `log_start`.
    pub async fn begin_anew(&self, log_start: i64) -> Result<ReplicaPosition, LogError> {
        self.store.begin_anew(self.id, log_start).await
    }

    /// Moves the log start up to that of the leader, as far as consumers can see the log here. Answers the log start,
    /// durable.
    pub async fn trim_to(&self, log_start: i64) -> Result<i64, LogError> {
        self.store.trim_as_follower(self.id, log_start).await
    }

    /// Appends what a leader of that epoch sent: whole batches back to back, with the offsets and epochs that it gave them.
    /// `base_offset` is where the leader says that the follower's log ends.
    ///
    /// # Errors
    /// Nothing was appended then: of another epoch, not at the end, damaged, or the log takes nothing.
    pub fn append_as_follower(&self, epoch: i32, base_offset: i64, batches: Bytes) -> Result<FollowerAppend, LogError> {
        self.store.append_as_follower(self.id, epoch, base_offset, &batches)
    }

    /// The high watermark is that at least; answers how far consumers may see here, which is not beyond what is kept.
    pub fn advance_high_watermark(&self, high_watermark: i64) -> Result<i64, LogError> {
        self.store.advance_high_watermark(self.id, high_watermark)
    }

    /// Reads for a follower: whole batches from the one that holds an offset on, of `max_bytes` or a little less, but one
    /// at least if there is one. As far as groups were sealed, also what consumers do not see yet. The memory is of the
    /// shard's budget for reads, until the records are dropped.
    pub async fn read(&self, from: i64, max_bytes: usize) -> Result<CaughtUp, LogError> {
        self.store.read_for_follower(self.id, from, max_bytes).await
    }
}
