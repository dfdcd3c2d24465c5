//! Record batches, wherever they lie.

use millrace_engine::batch::{BatchInfo, Record, records, verify_crc};

use super::report::Report;
use crate::{failure::Outcome, time};

/// Prints a whole batch; reports a wrong checksum or records that cannot be read. `place` is for messages.
pub(super) fn dump(info: &BatchInfo, bytes: &[u8], place: &str, report: &mut Report) -> Outcome {
    report.detail(describe(info))?;
    let (first, last) = (info.base_offset, info.last_offset());
    if !verify_crc(bytes) {
        return report.damage(format!("{place}: checksum of the batch of offsets {first} to {last} is wrong"));
    }
    if !report.wants_records() {
        return Ok(());
    }
    match records(bytes) {
        Ok(records) => records.iter().try_for_each(|record| report.record(describe_record(record))),
        Err(error) => report.damage(format!("{place}: batch of offsets {first} to {last}: {error}")),
    }
}

fn describe(info: &BatchInfo) -> String {
    let codec = info.codec().map_or("unknown codec", |codec| codec.name());
    let mut line = format!(
        "batch {}..{} {} bytes, {} records, {codec}, max time {}, epoch {}",
        info.base_offset,
        info.last_offset() + 1,
        info.size,
        info.record_count,
        time::format(info.max_timestamp),
        info.leader_epoch,
    );
    if info.has_producer_id() {
        let (id, epoch, sequence) = (info.producer_id, info.producer_epoch, info.base_sequence);
        line.push_str(&format!(", producer {id} epoch {epoch} sequence {sequence}"));
    }
    if info.is_transactional() {
        line.push_str(", transactional");
    }
    if info.is_control() {
        line.push_str(", control");
    }
    line
}

fn describe_record(record: &Record) -> String {
    let mut line = format!("{} {} key {}", record.offset, time::format(record.timestamp), text(record.key.as_deref()));
    for (name, value) in &record.headers {
        line.push_str(&format!(" header {}={}", text(Some(name)), text(value.as_deref())));
    }
    line.push_str(&format!(" value {}", text(record.value.as_deref())));
    line
}

/// Bytes in quotes, what is no text escaped.
fn text(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "null".to_owned(),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => format!("{text:?}"),
            Err(_) => format!("\"{}\"", bytes.escape_ascii()),
        },
    }
}
