//! Whether a partition is due for compaction, what of it may be rewritten, and which segments become one.

use std::ops::Range;

use crate::{config::TopicConfig, format::segment::Segment};

/// What is to be compacted of a partition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Due {
    /// So many segments, from the first on, may be rewritten.
    pub(crate) segments: usize,
    /// Below this nothing is new.
    pub(crate) first_dirty: i64,
    /// One past the last offset of those segments.
    pub(crate) end_offset: i64,
    /// Dirty bytes among all bytes that may be rewritten: the higher, the sooner.
    pub(crate) ratio: f64,
}

/// Decides on a partition by its sealed segments. Kafka's rules: whole segments only; none with a record younger than
/// `min.compaction.lag.ms`, nor any behind such a one; due when the dirty share of the bytes is above
/// `min.cleanable.dirty.ratio`, or when the first record of a dirty segment is older than `max.compaction.lag.ms`.
pub(crate) fn due(
    sealed: &[Segment],
    log_start: i64,
    clean_offset: i64,
    config: &TopicConfig,
    now_ms: i64,
) -> Option<Due> {
    let first_dirty = clean_offset.max(log_start);
    let is_dirty = |segment: &&Segment| segment.end_offset > first_dirty;
    let young_from = now_ms.saturating_sub(config.min_compaction_lag_ms);
    let is_young =
        |segment: &Segment| config.min_compaction_lag_ms > 0 && is_dirty(&segment) && newest_ms(segment) > young_from;
    let segments = sealed.iter().position(is_young).unwrap_or(sealed.len());
    let cleanable = &sealed[..segments];
    let bytes = |segments: &mut dyn Iterator<Item = &Segment>| segments.map(|s| s.size as f64).sum::<f64>();
    let dirty = bytes(&mut cleanable.iter().filter(is_dirty));
    let clean = bytes(&mut cleanable.iter().filter(|segment| segment.base_offset < first_dirty));
    let end_offset = cleanable.last().filter(is_dirty)?.end_offset;
    let ratio = dirty / (dirty + clean);
    let overdue_before = now_ms.saturating_sub(config.max_compaction_lag_ms);
    let overdue = cleanable.iter().filter(is_dirty).any(|segment| oldest_ms(segment) < overdue_before);
    (overdue || ratio > config.min_cleanable_dirty_ratio).then_some(Due { segments, first_dirty, end_offset, ratio })
}

/// Age counts from the records' timestamps, as in Kafka; where they have none, from when the segment was begun.
fn newest_ms(segment: &Segment) -> i64 {
    if segment.max_timestamp >= 0 { segment.max_timestamp } else { segment.created_ms }
}

fn oldest_ms(segment: &Segment) -> i64 {
    if segment.first_timestamp > 0 { segment.first_timestamp } else { segment.created_ms }
}

/// Segments that become one at most: their names fit one record of the manifest.
const GROUP_SEGMENTS_MAX: usize = 10_000;

/// Puts neighbours together that fit one segment of `segment_bytes`; each group becomes one segment.
pub(crate) fn groups(segments: &[Segment], segment_bytes: u64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (at, segment) in segments.iter().enumerate() {
        bytes += segment.size;
        match groups.last_mut() {
            Some(open) if bytes <= segment_bytes && open.len() < GROUP_SEGMENTS_MAX => open.end = at + 1,
            _ => {
                bytes = segment.size;
                groups.push(at..at + 1);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_000_000;

    fn segment(base_offset: i64, end_offset: i64, size: u64, timestamp: i64) -> Segment {
        Segment {
            end_offset,
            size,
            first_timestamp: timestamp,
            max_timestamp: timestamp,
            sealed: true,
            ..Segment::begin(base_offset, NOW_MS)
        }
    }

    fn config() -> TopicConfig {
        let mut config = TopicConfig::default();
        config.cleanup_policy.compact = true;
        config
    }

    #[test]
    fn the_dirty_share_decides() {
        let log = [segment(0, 10, 60, 1), segment(10, 20, 40, 2), segment(20, 30, 20, 3)];
        let half = config();
        assert_eq!(due(&log, 0, 0, &half, NOW_MS).map(|due| (due.segments, due.ratio)), Some((3, 1.0)));
        let some = due(&log[..2], 0, 0, &half, NOW_MS);
        assert_eq!(some, Some(Due { segments: 2, first_dirty: 0, end_offset: 20, ratio: 1.0 }));
        let mut config = half.clone();
        config.min_cleanable_dirty_ratio = 0.4;
        assert_eq!(due(&log[..2], 0, 10, &config, NOW_MS), None, "0.4 is not above 0.4");
        config.min_cleanable_dirty_ratio = 0.39;
        let some = due(&log[..2], 0, 10, &config, NOW_MS);
        assert_eq!(some.map(|due| (due.segments, due.first_dirty, due.end_offset)), Some((2, 10, 20)));
        assert_eq!(due(&log, 0, 30, &config, NOW_MS), None, "nothing is dirty");
        config.min_cleanable_dirty_ratio = 0.0;
        assert_eq!(due(&log, 0, 30, &config, NOW_MS), None);
        assert_eq!(due(&[], 0, 0, &config, NOW_MS), None);
    }

    #[test]
    fn a_log_that_lost_its_clean_part_is_dirty_from_its_start() {
        let mut config = config();
        config.min_cleanable_dirty_ratio = 0.4;
        let log = [segment(40, 50, 60, 1)];
        let due = due(&log, 43, 10, &config, NOW_MS);
        assert_eq!(due.map(|due| (due.first_dirty, due.ratio)), Some((43, 0.5)), "it is clean and dirty, as in Kafka");
    }

    #[test]
    fn young_segments_and_those_behind_them_are_left_alone() {
        let mut config = config();
        config.min_compaction_lag_ms = 100;
        let log = [segment(0, 10, 50, 1), segment(10, 20, 50, NOW_MS - 99), segment(20, 30, 50, 1)];
        assert_eq!(due(&log, 0, 0, &config, NOW_MS).map(|due| (due.segments, due.end_offset)), Some((1, 10)));
        assert_eq!(due(&log, 0, 0, &config, NOW_MS + 1).map(|due| due.segments), Some(3));
        assert_eq!(due(&log, 0, 10, &config, NOW_MS), None);
        assert_eq!(due(&log, 0, 20, &config, NOW_MS), None, "one third is not above one half");
        config.min_cleanable_dirty_ratio = 0.3;
        assert_eq!(due(&log, 0, 20, &config, NOW_MS).map(|due| due.segments), Some(3), "clean ones may be young");
        let undated = [segment(0, 10, 50, -1)];
        assert_eq!(due(&undated, 0, 0, &config, NOW_MS + 99), None, "it was begun at {NOW_MS}");
        assert!(due(&undated, 0, 0, &config, NOW_MS + 100).is_some());
    }

    #[test]
    fn a_record_is_compacted_when_it_is_too_old() {
        let mut config = config();
        config.max_compaction_lag_ms = 500;
        let log = [segment(0, 10, 99, 1), segment(10, 20, 1, NOW_MS - 500)];
        assert_eq!(due(&log, 0, 10, &config, NOW_MS), None);
        assert_eq!(due(&log, 0, 10, &config, NOW_MS + 1).map(|due| due.segments), Some(2));
        let undated = [segment(0, 10, 99, 1), segment(10, 20, 1, -1)];
        assert_eq!(due(&undated, 0, 10, &config, NOW_MS + 500), None);
        assert!(due(&undated, 0, 10, &config, NOW_MS + 501).is_some());
    }

    #[test]
    fn small_neighbours_are_merged() {
        let log: Vec<Segment> = [40, 50, 20, 200, 10, 90, 1].iter().map(|size| segment(0, 1, *size, 1)).collect();
        assert_eq!(groups(&log, 100), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(groups(&log, 1), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6, 6..7]);
        assert!(groups(&[], 100).is_empty());
    }
}
