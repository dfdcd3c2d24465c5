//! Packs the writes of one turn into batches.

use bytes::Bytes;
use millrace_engine::{
    batch::{BatchBuilder, Codec},
    transactions::Marker,
};

use super::{
    effects::{Write, WriteId},
    machine::LogRecord,
};

/// A batch is closed when it has that many bytes: well below the default of `max.message.bytes`, so that only what one
/// write says at once can be too large.
const BATCH_BYTES: usize = 512 << 10;
/// Or when that many markers go with it: together they stay far below what one commit group may hold.
const BATCH_MARKERS: usize = 10_000;
/// The sequence of what coordinators write in a producer's name.
const NO_SEQUENCE: i32 = -1;

/// A batch and what is in it.
pub(super) struct Packed {
    pub(super) batch: Bytes,
    /// What goes into the log together with it.
    pub(super) markers: Vec<Marker>,
    /// Its writes, each with the place of its first record.
    pub(super) writes: Vec<(WriteId, i64)>,
}

/// A batch that is being filled.
struct Open {
    builder: BatchBuilder,
    markers: Vec<Marker>,
    writes: Vec<(WriteId, i64)>,
}

impl Open {
    fn new() -> Self {
        Self { builder: BatchBuilder::new(Codec::None, 0), markers: Vec::new(), writes: Vec::new() }
    }

    fn push<R: LogRecord>(&mut self, write: &Write<R>, now_ms: i64) {
        self.writes.push((write.id, i64::from(self.builder.record_count())));
        self.markers.extend_from_slice(&write.markers);
        for record in &write.records {
            let offset = i64::from(self.builder.record_count());
            self.builder.push_pair(offset, now_ms, Some(&record.key()), record.value().as_deref());
        }
    }

    fn is_full(&self) -> bool {
        self.builder.size() >= BATCH_BYTES || self.markers.len() >= BATCH_MARKERS
    }

    fn close(&mut self, batches: &mut Vec<Packed>) {
        let Self { builder, markers, writes } = std::mem::replace(self, Self::new());
        if !builder.is_empty() {
            batches.push(Packed { batch: builder.finish().into(), markers, writes });
        }
    }
}

/// Packs writes; one is never split. Those in a producer's transaction are a batch each.
pub(super) fn pack<R: LogRecord>(writes: Vec<Write<R>>, now_ms: i64) -> Vec<Packed> {
    let mut batches = Vec::new();
    let mut open = Open::new();
    for write in writes {
        if let Some((producer_id, producer_epoch)) = write.producer {
            open.close(&mut batches);
            open.builder =
                BatchBuilder::new(Codec::None, 0).producer(producer_id, producer_epoch, NO_SEQUENCE).transactional();
            open.push(&write, now_ms);
            open.close(&mut batches);
            continue;
        }
        open.push(&write, now_ms);
        if open.is_full() {
            open.close(&mut batches);
        }
    }
    open.close(&mut batches);
    batches
}
