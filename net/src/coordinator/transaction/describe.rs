//! Records of `__transaction_state` as one line each, for people.

use millrace_engine::batch::Record;

use super::{record::TransactionRecord, shell::TRANSACTION_TOPIC};

/// What a record of the coordinators of transactions says; `None`: it is of another topic, or makes no sense.
pub fn describe_transaction(topic: &str, record: &Record) -> Option<String> {
    if topic != TRANSACTION_TOPIC {
        return None;
    }
    let record = TransactionRecord::decode(record.key.as_deref()?, record.value.as_deref()).ok()?;
    let Some(metadata) = record.metadata else { return Some(format!("transactional id {:?} forgotten", record.id)) };
    let mut line = format!(
        "transactional id {:?} {}, producer {} epoch {}, timeout {} ms",
        record.id,
        metadata.state.name(),
        metadata.producer_id,
        metadata.epoch,
        metadata.timeout_ms
    );
    if metadata.next_producer_id >= 0 {
        line.push_str(&format!(", next producer {}", metadata.next_producer_id));
    }
    let partitions: Vec<_> = metadata.partitions.iter().map(|(topic, index)| format!("{topic}/{index}")).collect();
    if !partitions.is_empty() {
        line.push_str(&format!(", partitions {}", partitions.join(" ")));
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{
        runtime::LogRecord,
        transaction::{State, metadata::Metadata},
    };

    #[test]
    fn records_are_told_in_words() {
        let mut metadata = Metadata::new(7, 60_000, 0);
        metadata.epoch = 3;
        metadata.state = State::Ongoing;
        metadata.partitions = [("t".into(), 1), ("u".into(), 0)].into();
        let record = |metadata| {
            let record = TransactionRecord { id: "id".into(), metadata, version: 1 };
            let (key, value) = (Some(record.key().into()), record.value().map(Into::into));
            Record { offset: 0, timestamp: 0, key, value, headers: Vec::new() }
        };
        let told = describe_transaction(TRANSACTION_TOPIC, &record(Some(metadata)));
        let expected = "transactional id \"id\" Ongoing, producer 7 epoch 3, timeout 60000 ms, partitions t/1 u/0";
        assert_eq!(told.as_deref(), Some(expected));
        let told = describe_transaction(TRANSACTION_TOPIC, &record(None));
        assert_eq!(told.as_deref(), Some("transactional id \"id\" forgotten"));
        assert_eq!(describe_transaction("t", &record(None)), None);
    }
}
