//! Lookups by time inside one batch.

use std::ops::ControlFlow;

use super::{BatchError, BatchInfo, records::walk};

/// Offset and timestamp of the first record of at least `offset_min` (the log may start inside a batch) whose timestamp is
/// at least `timestamp_ms`, exact inside compressed batches too. In a LogAppendTime batch every record has the time of
/// the append.
pub fn find_timestamp(batch: &[u8], timestamp_ms: i64, offset_min: i64) -> Result<Option<(i64, i64)>, BatchError> {
    let info = BatchInfo::parse(batch)?;
    if info.max_timestamp < timestamp_ms || info.last_offset() < offset_min {
        return Ok(None);
    }
    let mut found = None;
    walk(&info, batch, |record| {
        let offset = info.base_offset + i64::from(record.offset_delta);
        if record.timestamp < timestamp_ms || offset < offset_min {
            return ControlFlow::Continue(());
        }
        found = Some((offset, record.timestamp));
        ControlFlow::Break(())
    })?;
    Ok(found)
}
