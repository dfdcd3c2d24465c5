//! Record batches, wherever they lie.

use millrace_engine::{
    batch::{BatchInfo, EndMarker, Record, end_marker, records, verify_crc},
    transactions,
};
use millrace_net::describe_transaction;

use super::report::Report;
use crate::{failure::Outcome, time};

/// Prints a whole batch; reports a wrong checksum or records that cannot be read. Its topic may be known; `place` is for
/// messages.
pub(super) fn dump(
    info: &BatchInfo,
    bytes: &[u8],
    (topic, place): (Option<&str>, &str),
    report: &mut Report,
) -> Outcome {
    report.detail(format!("{}{}", describe(info), describe_marker(info, bytes)))?;
    let (first, last) = (info.base_offset, info.last_offset());
    if !verify_crc(bytes) {
        return report.damage(format!("{place}: checksum of the batch of offsets {first} to {last} is wrong"));
    }
    if !report.wants_records() {
        return Ok(());
    }
    match records(bytes) {
        Ok(records) => records.iter().try_for_each(|record| report.record(describe_record(topic, record))),
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

/// How a control batch ends its producer's transaction.
fn describe_marker(info: &BatchInfo, bytes: &[u8]) -> String {
    let end = if info.is_control() { end_marker(bytes).ok().flatten() } else { None };
    let Some(EndMarker { outcome, coordinator_epoch }) = end else { return String::new() };
    let outcome = match outcome {
        transactions::Outcome::Commit => "commit",
        transactions::Outcome::Abort => "abort",
    };
    format!(": {outcome}, coordinator epoch {coordinator_epoch}")
}

fn describe_record(topic: Option<&str>, record: &Record) -> String {
    if let Some(told) = topic.and_then(|topic| describe_transaction(topic, record)) {
        return format!("{} {} {told}", record.offset, time::format(record.timestamp));
    }
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
