//! What retention lets go: whole segments, from the log's start on. Pure.

use crate::{config::TopicConfig, format::segment::Segment};

/// Where a log should start by retention.ms and retention.bytes; `None` if nothing is to go. Kafka's rules: a segment is
/// as old as its newest record, and goes by size if what stays has retention.bytes still; the active one may go too, by
/// size only if nothing shall stay. `tail_bytes` are in memory, behind the segments and part of the active one;
/// `appended_ms` is when the last segment got its last batch: its age, if no record of it has a timestamp.
pub(crate) fn expired(
    segments: &[Segment],
    tail_bytes: u64,
    appended_ms: i64,
    config: &TopicConfig,
    now_ms: i64,
) -> Option<i64> {
    if !config.cleanup_policy.delete {
        return None;
    }
    let mut total = segments.iter().map(|segment| segment.size).sum::<u64>() + tail_bytes;
    let keep_bytes = u64::try_from(config.retention_bytes).unwrap_or(u64::MAX);
    let mut start = None;
    for (at, segment) in segments.iter().enumerate() {
        let ended_ms = segments.get(at + 1).map_or(appended_ms, |next| next.created_ms);
        let newest_ms = if segment.max_timestamp >= 0 { segment.max_timestamp } else { ended_ms };
        let is_old = config.retention_ms >= 0 && now_ms.saturating_sub(newest_ms) > config.retention_ms;
        let behind = if segment.sealed { total - segment.size } else { 0 };
        if !is_old && behind < keep_bytes {
            break;
        }
        total -= segment.size;
        start = Some(segment.end_offset);
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    const NOW_MS: i64 = 1_000 * HOUR_MS;

    /// Ten offsets each, 100 bytes each, begun an hour after each other; the last one is active.
    fn log(max_timestamps: &[i64]) -> Vec<Segment> {
        let segment = |(at, max_timestamp): (i64, &i64)| Segment {
            end_offset: at * 10 + 10,
            size: 100,
            max_timestamp: *max_timestamp,
            sealed: at + 1 < max_timestamps.len() as i64,
            ..Segment::begin(at * 10, at * HOUR_MS)
        };
        (0..).zip(max_timestamps).map(segment).collect()
    }

    fn config(retention_ms: i64, retention_bytes: i64) -> TopicConfig {
        TopicConfig { retention_ms, retention_bytes, ..TopicConfig::default() }
    }

    fn by_time(log: &[Segment], appended_ms: i64, retention_ms: i64) -> Option<i64> {
        expired(log, 0, appended_ms, &config(retention_ms, -1), NOW_MS)
    }

    fn by_bytes(log: &[Segment], tail_bytes: u64, retention_bytes: i64) -> Option<i64> {
        expired(log, tail_bytes, NOW_MS, &config(-1, retention_bytes), NOW_MS)
    }

    #[test]
    fn age_is_the_newest_records() {
        let log = log(&[NOW_MS - 30, NOW_MS - 20, NOW_MS - 25, NOW_MS + 5]);
        assert_eq!(by_time(&log, NOW_MS, 29), Some(10));
        assert_eq!(by_time(&log, NOW_MS, 30), None, "not older than that");
        assert_eq!(by_time(&log, NOW_MS, 10), Some(30), "one of the future stays");
        assert_eq!(by_time(&log, NOW_MS, 0), Some(30));
        assert_eq!(by_time(&log, NOW_MS, -1), None);
        assert_eq!(by_time(&log[..3], NOW_MS, 10), Some(30), "the active segment goes too");
        assert_eq!(by_time(&log[..3], NOW_MS, 22), Some(10), "one behind a segment that stays does not go");
    }

    #[test]
    fn without_timestamps_age_counts_from_the_last_append() {
        let log = log(&[-1, -1, -1]);
        let since_begun_ms = NOW_MS - HOUR_MS; // the second segment
        assert_eq!(by_time(&log, NOW_MS - 5, since_begun_ms - 1), Some(10), "was appended to until the second began");
        assert_eq!(by_time(&log, NOW_MS - 5, since_begun_ms), None);
        assert_eq!(by_time(&log, NOW_MS - 5, 5), Some(20), "the last one is still written to");
        assert_eq!(by_time(&log, NOW_MS - 5, 4), Some(30));
    }

    #[test]
    fn bytes_beyond_the_limit_go_in_whole_segments() {
        let log = log(&[NOW_MS, NOW_MS, NOW_MS]);
        assert_eq!(by_bytes(&log, 0, 201), None);
        assert_eq!(by_bytes(&log, 0, 200), Some(10));
        assert_eq!(by_bytes(&log, 50, 250), Some(10), "the tail counts");
        assert_eq!(by_bytes(&log, 0, 1), Some(20), "the active segment stays");
        assert_eq!(by_bytes(&log, 50, 1), Some(20), "the tail belongs to it");
        assert_eq!(by_bytes(&log, 0, 0), Some(30), "unless nothing shall stay");
        assert_eq!(by_bytes(&log, 50, 0), Some(30));
        assert_eq!(by_bytes(&log, 0, -1), None);
    }

    #[test]
    fn a_compacted_log_keeps_everything() {
        let mut config = config(0, 0);
        (config.cleanup_policy.delete, config.cleanup_policy.compact) = (false, true);
        assert_eq!(expired(&log(&[0, 0]), 0, 0, &config, NOW_MS), None);
    }
}
