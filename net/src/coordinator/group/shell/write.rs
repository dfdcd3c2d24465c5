//! Writes what the coordinators of a shard want written: all of one turn together, one batch or a few per partition.

use std::rc::Rc;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{Acks, ProducePartition, TopicPartition},
    batch::{self, AppendOrigin, BatchBuilder, Codec},
};

use super::{Groups, Stage};
use crate::coordinator::{
    group::{
        coordinator::Coordinator,
        effects::Write,
        error::{GroupError, write_error},
    },
    runtime::{Reply, WriteId, promise::next_turn},
};

/// A batch is closed when it has that many bytes: well below the default of `max.message.bytes`, so that only what one
/// write says at once can be too large.
const BATCH_BYTES: usize = 512 << 10;

/// A batch under way.
pub(super) struct InFlight {
    batch: u64,
    writes: Vec<WriteId>,
    result: Option<Result<(), GroupError>>,
}

/// Packs writes into batches; a write is never split.
fn pack(writes: Vec<Write>, now_ms: i64) -> Vec<(Vec<WriteId>, Bytes)> {
    let mut batches = Vec::new();
    let (mut builder, mut ids) = (BatchBuilder::new(Codec::None, 0), Vec::new());
    for write in writes {
        for record in &write.records {
            builder.push(&batch::Record {
                offset: i64::from(builder.record_count()),
                timestamp: now_ms,
                key: Some(record.key().into()),
                value: record.value().map(Bytes::from),
                headers: Vec::new(),
            });
        }
        ids.push(write.id);
        if builder.size() >= BATCH_BYTES {
            let full = std::mem::replace(&mut builder, BatchBuilder::new(Codec::None, 0));
            batches.push((std::mem::take(&mut ids), full.finish().into()));
        }
    }
    if !builder.is_empty() {
        batches.push((ids, builder.finish().into()));
    }
    batches
}

impl Groups {
    /// Writes at the end of this turn.
    pub(super) fn schedule_flush(self: &Rc<Self>) {
        if !self.is_flush_due.replace(true) {
            let groups = Rc::clone(self);
            glommio::spawn_local(async move {
                // what others that are runnable now want written goes with it
                next_turn().await;
                groups.flush();
            })
            .detach();
        }
    }

    fn flush(self: &Rc<Self>) {
        self.is_flush_due.set(false);
        let dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        let now_ms = self.clock.now_ms();
        let (mut parts, mut keys) = (Vec::new(), Vec::new());
        let mut slots = self.slots.borrow_mut();
        for index in dirty {
            let Some(slot) = slots.get_mut(&index) else {
                continue;
            };
            let Stage::Ready(coordinator) = &mut slot.stage else {
                continue;
            };
            for (writes, batch) in pack(coordinator.take_writes(), now_ms) {
                slot.in_flight.push_back(InFlight { batch: slot.next_batch, writes, result: None });
                keys.push((slot.partition, slot.next_batch));
                slot.next_batch += 1;
                parts.push(ProducePartition { partition: slot.partition, batch });
            }
        }
        drop(slots);
        if parts.is_empty() {
            return;
        }
        let written = self.engine.produce(AppendOrigin::Coordinator, Acks::All, parts);
        let groups = Rc::clone(self);
        glommio::spawn_local(async move {
            for ((partition, batch), answer) in keys.into_iter().zip(written.await) {
                let result = answer.map(|_| ()).map_err(|error| {
                    tracing::warn!(partition = partition.partition, %error, "records of groups could not be written");
                    write_error(&error)
                });
                groups.on_written(partition, batch, result);
            }
        })
        .detach();
    }

    /// A batch is durable, or failed. The coordinator hears of batches in the order of the log.
    fn on_written(self: &Rc<Self>, partition: TopicPartition, batch: u64, result: Result<(), GroupError>) {
        let index = partition.partition;
        let mut slots = self.slots.borrow_mut();
        let current = slots.get_mut(&index).filter(|slot| slot.partition == partition);
        let Some(slot) = current else { return };
        if let Some(in_flight) = slot.in_flight.iter_mut().find(|in_flight| in_flight.batch == batch) {
            in_flight.result = Some(result);
        }
        let now_ms = self.clock.now_ms();
        let mut rebuild = false;
        while let Some(result) = slot.in_flight.front().and_then(|oldest| oldest.result) {
            let Some(done) = slot.in_flight.pop_front() else {
                break;
            };
            if let Stage::Ready(coordinator) = &mut slot.stage {
                rebuild |= report(coordinator, now_ms, &done.writes, result);
            }
        }
        if rebuild && let Stage::Ready(mut coordinator) = std::mem::replace(&mut slot.stage, Stage::Stale) {
            coordinator.close(now_ms, ResponseError::NotCoordinator);
            coordinator.take_replies().into_iter().for_each(Reply::send);
        }
        let reload = matches!(slot.stage, Stage::Stale) && slot.in_flight.is_empty();
        drop(slots);
        if reload {
            self.begin_load(partition);
        } else {
            self.drain(index);
        }
    }
}

fn report(coordinator: &mut Coordinator, now_ms: i64, writes: &[WriteId], result: Result<(), GroupError>) -> bool {
    let rebuilds: Vec<_> = writes.iter().map(|write| coordinator.on_persisted(now_ms, *write, result)).collect();
    rebuilds.contains(&true)
}
