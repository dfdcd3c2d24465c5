//! The only changes ever made to a producer's bytes: its place in the log, and the broker's time if the topic asks.

use zerocopy::FromBytes;

use super::header::{BatchInfo, Header, LOG_APPEND_TIME, checksum};

/// Gives a checked batch its place. Base offset and leader epoch lie outside the checksum. With `append_time_ms` the
/// batch becomes one of LogAppendTime, and gets a new checksum if that changed it.
///
/// # Panics
/// If `batch` is shorter than a header: it was checked before.
pub fn assign(batch: &mut [u8], base_offset: i64, leader_epoch: i32, append_time_ms: Option<i64>) {
    let header = header_mut(batch);
    header.base_offset = base_offset.into();
    header.leader_epoch = leader_epoch.into();
    if let Some(append_time_ms) = append_time_ms {
        let attributes = header.attributes.get() | LOG_APPEND_TIME;
        set_time(batch, attributes, append_time_ms);
    }
}

/// Makes the header say the attributes and the largest timestamp that [`check`](super::check()) found, as Kafka's broker
/// does; producers have got them wrong. Lookups by time trust the header. Returns whether it was wrong.
///
/// # Panics
/// If `batch` is shorter than a header: it was checked before.
pub fn correct_header(batch: &mut [u8], checked: &BatchInfo) -> bool {
    set_time(batch, checked.attributes, checked.max_timestamp)
}

fn set_time(batch: &mut [u8], attributes: i16, max_timestamp: i64) -> bool {
    let header = header_mut(batch);
    if header.attributes.get() == attributes && header.max_timestamp.get() == max_timestamp {
        return false;
    }
    header.attributes = attributes.into();
    header.max_timestamp = max_timestamp.into();
    let crc = checksum(batch);
    header_mut(batch).crc = crc.into();
    true
}

fn header_mut(batch: &mut [u8]) -> &mut Header {
    Header::mut_from_prefix(batch).expect("a checked batch holds a header").0
}
