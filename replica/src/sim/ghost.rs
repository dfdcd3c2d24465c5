//! What no node knows: which records are committed for ever. Invariants are those of the specification behind KIP-966.

use std::collections::BTreeMap;

use millrace_engine::api::TopicPartition;

use super::{
    log::{ModelLog, Record},
    transactions::Known,
};

/// Something that must never happen, happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation(pub(crate) String);

/// Committed records by partition and offset.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    committed: BTreeMap<TopicPartition, Vec<Record>>,
    pub(super) transactions: Known,
}

impl Ghost {
    /// Read consistency: whoever raises a high watermark shows what everybody showed, and only leaders show more.
    pub(super) fn show(
        &mut self,
        partition: TopicPartition,
        log: &ModelLog,
        from: i64,
        is_leader: bool,
    ) -> Result<(), Violation> {
        let committed = self.committed.entry(partition).or_default();
        for offset in from.max(log.log_start)..log.high_watermark {
            let record = log.record(offset).expect("below the end");
            match committed.get(offset as usize) {
                Some(shown) if *shown == record => {}
                Some(shown) => {
                    return Err(Violation(format!(
                        "read consistency: offset {offset} was {shown:?} and is {record:?}"
                    )));
                }
                None if is_leader => {
                    assert_eq!(offset, committed.len() as i64, "logs have no holes");
                    committed.push(record);
                    self.transactions.note(partition, record)?;
                }
                None => {
                    return Err(Violation(format!("read consistency: a follower shows {offset} before its leader")));
                }
            }
        }
        Ok(())
    }

    /// Whether a log has everything that is committed up to what of it a crash would leave, as far as it goes back.
    pub(super) fn holds(&self, partition: TopicPartition, log: &ModelLog, safe: i64, from: i64) -> Result<(), String> {
        let Some(committed) = self.committed.get(&partition) else { return Ok(()) };
        if safe < committed.len() as i64 {
            return Err(format!("it has {safe} of {} committed records", committed.len()));
        }
        for offset in from.max(log.log_start)..committed.len() as i64 {
            let (has, shown) = (log.record(offset), committed[offset as usize]);
            if has != Some(shown) {
                return Err(format!("offset {offset} is {has:?} and was committed as {shown:?}"));
            }
        }
        Ok(())
    }
}

/// Log matching: two logs that have a record of the same epoch at an offset have the same records up to there.
pub(super) fn match_logs(one: &ModelLog, other: &ModelLog) -> Result<(), Violation> {
    let start = one.log_start.max(other.log_start);
    let end = one.end().min(other.end());
    let same = (start..end).rev().find(|offset| {
        let epoch = |log: &ModelLog| log.record(*offset).map(|record| record.epoch);
        epoch(one) == epoch(other)
    });
    let Some(last) = same else { return Ok(()) };
    match (start..=last).find(|offset| one.record(*offset) != other.record(*offset)) {
        Some(offset) => Err(Violation(format!(
            "log matching: same epoch at {last}, and at {offset} {:?} and {:?}",
            one.record(offset),
            other.record(offset)
        ))),
        None => Ok(()),
    }
}
