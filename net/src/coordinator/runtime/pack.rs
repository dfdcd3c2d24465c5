//! Packs the writes of one turn into batches.

use bytes::Bytes;
use millrace_engine::batch::{self, BatchBuilder, Codec};

use super::{
    effects::{Write, WriteId},
    machine::LogRecord,
};

/// A batch is closed when it has that many bytes: well below the default of `max.message.bytes`, so that only what one
/// write says at once can be too large.
const BATCH_BYTES: usize = 512 << 10;

/// A batch and what is in it.
pub(super) struct Packed {
    pub(super) batch: Bytes,
    /// Its writes, each with the place of its first record.
    pub(super) writes: Vec<(WriteId, i64)>,
}

/// Packs writes; one is never split.
pub(super) fn pack<R: LogRecord>(writes: Vec<Write<R>>, now_ms: i64) -> Vec<Packed> {
    let mut batches = Vec::new();
    let (mut builder, mut ids) = (BatchBuilder::new(Codec::None, 0), Vec::with_capacity(writes.len()));
    for write in writes {
        ids.push((write.id, i64::from(builder.record_count())));
        for record in &write.records {
            builder.push(&batch::Record {
                offset: i64::from(builder.record_count()),
                timestamp: now_ms,
                key: Some(record.key().into()),
                value: record.value().map(Bytes::from),
                headers: Vec::new(),
            });
        }
        if builder.size() >= BATCH_BYTES {
            let full = std::mem::replace(&mut builder, BatchBuilder::new(Codec::None, 0));
            batches.push(Packed { batch: full.finish().into(), writes: std::mem::take(&mut ids) });
        }
    }
    if !builder.is_empty() {
        batches.push(Packed { batch: builder.finish().into(), writes: ids });
    }
    batches
}
