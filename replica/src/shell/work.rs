//! What the core wants of the engine, done; and the engine's logs as the core looks at them.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use millrace_engine::{
    api::{Chunk, LogError, Records, TopicPartition},
    engine::Engine,
    replica::{CutBytes, LeaderLease, Leadership, LogTap, Replica, SealedGroup},
};

use super::Shell;
use crate::channel::{
    event::{Done, LogPosition, Logs, ReadFailure, ReadRun, SealedRun},
    intent::EngineWork,
};

/// The engine's logs of this shard.
pub(super) struct EngineLogs(pub(super) Engine);

impl Logs for EngineLogs {
    fn position(&self, partition: TopicPartition) -> Option<LogPosition> {
        let replica = self.0.replica(partition).ok()?;
        let (position, durability) = (replica.position().ok()?, replica.durability().ok()?);
        Some(LogPosition {
            log_start: position.log_start,
            high_watermark: position.high_watermark,
            written: position.written,
            durable: position.durable,
            end: position.end,
            last_epoch: position.last_epoch,
            epoch_start: position.epoch_start,
            durability,
        })
    }

    fn end_of_epoch(&self, partition: TopicPartition, epoch: i32) -> Option<(i32, i64)> {
        let end = self.0.replica(partition).ok()?.end_of_epoch(epoch).ok()?;
        (end.epoch >= 0).then_some((end.epoch, end.end_offset))
    }
}

/// Tells the core of groups and marks.
pub(super) struct Tap(pub(super) Rc<Shell>);

impl LogTap for Tap {
    fn sealed(&self, group: &SealedGroup) {
        let run = |run: &millrace_engine::replica::SealedRun| SealedRun {
            partition: run.partition,
            epoch: run.leader_epoch,
            base: run.base_offset,
            end: run.end_offset,
            bytes: bytes_of(&run.batches),
        };
        let runs: Vec<_> = group.runs.iter().map(run).collect();
        self.0.tell(|core, now, logs| core.handle_sealed(now, runs, logs));
    }

    fn progressed(&self, partition: TopicPartition, _written: i64, _durable: i64) {
        self.0.tell(|core, now, logs| core.handle_progressed(now, &[partition], logs));
    }
}

/// Lets the engine lead for as long as the node's life is trusted to last.
pub(super) struct Lease(pub(super) Rc<Shell>);

impl LeaderLease for Lease {
    fn holds(&self) -> bool {
        self.0.is_trusted()
    }
}

/// A group's memory belongs to its shard, and frames may outlive the group: one copy, whatever the number of followers.
fn bytes_of(chunk: &Chunk) -> Bytes {
    match chunk {
        Chunk::Bytes(bytes) => bytes.clone(),
        other => Bytes::copy_from_slice(other.as_slice().expect("sealed and read runs are in memory")),
    }
}

fn joined(records: &Records) -> Bytes {
    match &records.chunks[..] {
        [only] => bytes_of(only),
        chunks => {
            let mut all = BytesMut::with_capacity(records.len());
            chunks.iter().filter_map(Chunk::as_slice).for_each(|slice| all.extend_from_slice(slice));
            all.freeze()
        }
    }
}

impl Shell {
    /// Does one piece of work, or begins it.
    pub(super) fn work(self: &Rc<Self>, partition: TopicPartition, work: EngineWork) {
        let replica = match self.engine.replica(partition) {
            Ok(replica) => replica,
            Err(error) => return self.refuse(partition, &work, &error),
        };
        match work {
            EngineWork::Append { attachment, epoch, base, end: _, batches } => {
                if let Err(error) = replica.append_as_follower(epoch, base, batches) {
                    match error {
                        // told once, by whoever looks after the disk; each partition comes here each second
                        LogError::StorageFull => tracing::debug!(?partition, "no room for a leader's batches"),
                        _ => tracing::warn!(?partition, %error, "a leader's batches are not appended"),
                    }
                    self.report(partition, Done::AppendFailed { attachment });
                }
            }
            EngineWork::AdvanceHighWatermark { high_watermark } => {
                if let Err(error) = replica.advance_high_watermark(high_watermark) {
                    tracing::debug!(?partition, %error, "the high watermark stays");
                }
            }
            EngineWork::SetInSync { count } => {
                if let Err(error) = replica.set_in_sync(u32::try_from(count).unwrap_or(u32::MAX)) {
                    tracing::debug!(?partition, %error, "the number of replicas in sync stays");
                }
            }
            EngineWork::Trim { log_start } => {
                self.tasks.spawn(async move {
                    if let Err(error) = replica.trim_to(log_start).await {
                        tracing::warn!(?partition, %error, "the log keeps what its leader let go of");
                    }
                });
            }
            EngineWork::Read { .. } => self.read(replica, work),
            EngineWork::Lead { .. }
            | EngineWork::Follow { .. }
            | EngineWork::Truncate { .. }
            | EngineWork::BeginAnew { .. } => self.change(replica, work),
        }
    }

    /// The partition is not here any more.
    fn refuse(self: &Rc<Self>, partition: TopicPartition, work: &EngineWork, error: &LogError) {
        tracing::debug!(?partition, %error, "no work for a partition that is not here");
        let done = match *work {
            EngineWork::Append { attachment, .. } => Done::AppendFailed { attachment },
            EngineWork::Read { link, attachment, from, .. } => {
                Done::Read { link, attachment, from, result: Err(ReadFailure::Failed) }
            }
            EngineWork::Trim { .. } | EngineWork::SetInSync { .. } | EngineWork::AdvanceHighWatermark { .. } => return,
            _ => Done::ChangeFailed,
        };
        self.report(partition, done);
    }

    /// A transition of a partition: durable before it is reported.
    fn change(self: &Rc<Self>, replica: Replica, work: EngineWork) {
        let shell = self.clone();
        let partition = replica.id();
        let leadership = self.leadership(partition);
        self.tasks.spawn(async move {
            let outcome = match work {
                EngineWork::Lead { epoch } => replica.lead(epoch, leadership).await,
                EngineWork::Follow { epoch } => replica.follow(epoch).await,
                EngineWork::Truncate { end } => replica.truncate_to(end, CutBytes::Keep).await,
                EngineWork::BeginAnew { log_start } => replica.begin_anew(log_start).await,
                _ => unreachable!("only transitions come here"),
            };
            if let Err(error) = &outcome {
                tracing::warn!(?partition, %error, ?work, "a partition's change failed");
            }
            if let EngineWork::Lead { epoch } = work {
                shell.count_replicas(partition, epoch); // a newer image may have come meanwhile
            }
            shell.report(partition, if outcome.is_ok() { Done::Changed } else { Done::ChangeFailed });
            (shell.hooks.on_leadership)();
        });
    }

    /// Has the engine reckon with as many replicas of a partition as the image says, if it leads it in that epoch: a reassignment
    /// changes their number while a leader's epoch goes on.
    pub(super) fn count_replicas(&self, partition: TopicPartition, epoch: i32) {
        let leadership = self.leadership(partition);
        let counted = self.engine.replica(partition).and_then(|replica| replica.set_replicas(epoch, leadership));
        if let Err(error) = counted {
            tracing::debug!(?partition, %error, "the number of replicas stays");
        }
    }

    /// Of what the image says now; what changes later is told by `SetInSync`.
    fn leadership(&self, partition: TopicPartition) -> Leadership {
        let image = self.image.borrow();
        let state = image.as_ref().and_then(|image| image.partition(partition)).map(|state| &state.value);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).max(1);
        Leadership::Replicated {
            replicas: state.map_or(1, |state| count(state.replicas.len())),
            in_sync: state.map_or(1, |state| count(state.isr.len())),
        }
    }

    /// A read for a follower that lags: in the background's share. How much is read when is the core's to say.
    fn read(self: &Rc<Self>, replica: Replica, work: EngineWork) {
        let EngineWork::Read { link, attachment, from, bytes_max } = work else { return };
        let shell = self.clone();
        self.tasks.spawn_into(self.background, async move {
            tracing::debug!(partition = ?replica.id(), from, "reading for a follower that lags");
            let result = match replica.read(from, bytes_max).await {
                Ok(found) => Ok(ReadRun { end: found.end_offset, bytes: joined(&found.records) }),
                Err(LogError::OffsetOutOfRange { .. }) => Err(ReadFailure::Trimmed),
                Err(error) => {
                    tracing::warn!(partition = ?replica.id(), %error, "a follower cannot be read for");
                    Err(ReadFailure::Failed)
                }
            };
            let bytes = result.as_ref().map_or(0, |run| run.bytes.len());
            tracing::debug!(partition = ?replica.id(), from, bytes, "read for a follower that lags");
            shell.report(replica.id(), Done::Read { link, attachment, from, result });
        });
    }

    fn report(self: &Rc<Self>, partition: TopicPartition, done: Done) {
        self.tell(|core, now, logs| core.on_done(now, partition, done, logs));
    }
}
