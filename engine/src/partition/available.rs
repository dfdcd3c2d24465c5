//! How much a fetch would find, without reading: what `min_bytes` is compared with. Exact in the tail and where a
//! segment begins or a reader has just been; in between, of the segments that the fetch begins and ends in, up to an
//! interval of the index too much. Only if one is sealed and nobody has read it, its index is not in memory: then its
//! batches count as if they were all alike.

use super::Partition;
use crate::format::segment::{INDEX_INTERVAL_BYTES, Segment};

/// Segments that one read of a partition goes through at most, each a file to open. Who is further behind than that
/// waits for nothing: more would not come into the answer.
pub(crate) const SEGMENTS_READ_MAX: usize = 16;

impl Partition {
    /// Bytes from an offset to an end, `max_bytes` at most. `known` says where in a segment the batch with the offset
    /// begins, if that is known better than from the segment itself. None exactly if there is nothing to be read: who is
    /// told of bytes that an end hides would ask for them again and again.
    pub(crate) fn available(
        &self,
        offset: i64,
        end: i64,
        max_bytes: usize,
        known: impl FnOnce(&Segment) -> Option<u64>,
    ) -> usize {
        if offset >= end {
            return 0;
        }
        if let Some(bytes) = self.tail.bytes_between(offset, end, max_bytes) {
            return bytes.min(max_bytes);
        }
        let Some(in_segments) = self.in_segments(offset, end, known) else { return max_bytes };
        let left = max_bytes.saturating_sub(in_segments);
        let in_tail = self.tail.bytes_between(self.marks.materialised(), end, left).unwrap_or(0);
        in_segments.saturating_add(in_tail).min(max_bytes)
    }

    /// Bytes from an offset to an end, as far as they are in segments; `None`: those are too many for one read.
    fn in_segments(&self, offset: i64, end: i64, known: impl FnOnce(&Segment) -> Option<u64>) -> Option<usize> {
        let segments = self.segments.from(offset);
        let segments = &segments[..segments.partition_point(|segment| segment.base_offset < end)];
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Some(0) };
        if segments.len() > SEGMENTS_READ_MAX {
            return None;
        }
        let position = if offset <= first.base_offset { 0 } else { known(first).unwrap_or(first.position_of(offset)) };
        let hidden = if last.end_offset <= end { 0 } else { last.size - position_behind(last, end) };
        let bytes = segments.iter().map(|segment| segment.size).sum::<u64>().saturating_sub(position + hidden);
        let bytes = if hidden > 0 { bytes.max(1) } else { bytes }; // both ends are estimates
        Some(usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

/// Where in a segment the batches below an end end at the latest: there is something before that, whatever is known of what
/// lies before the end.
pub(crate) fn position_behind(segment: &Segment, end: i64) -> u64 {
    match &segment.index {
        Some(index) => {
            let behind = index.partition_point(|entry| entry.offset.get() < end);
            index.get(behind).map_or(segment.size, |entry| entry.position.get())
        }
        None => segment.size.min(segment.position_of(end) + INDEX_INTERVAL_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::{segments::Segments, tests};

    const MAX: usize = 1 << 30;

    /// Three batches of 40 KB in an active segment, then three in two groups, of which one is visible.
    fn partition() -> (Partition, usize) {
        let mut partition = tests::partition(&[]);
        let batch = |offset| tests::batch(offset, 1, 40_000);
        let size = batch(0).len();
        for offsets in [0..3, 3..5, 5..6] {
            tests::push(&mut partition, &offsets.map(batch).collect::<Vec<_>>());
        }
        partition.on_durable(5);
        let plan = partition.plan_round(1, 0).expect("something is visible");
        partition.appended(&plan, 0);
        (partition, size)
    }

    /// What there is up to the high watermark.
    fn available(
        partition: &Partition,
        offset: i64,
        max_bytes: usize,
        known: impl FnOnce(&Segment) -> Option<u64>,
    ) -> usize {
        partition.available(offset, partition.marks().high_watermark(), max_bytes, known)
    }

    #[test]
    fn what_is_cached_counts_to_the_byte_and_up_to_the_high_watermark() {
        let (mut partition, size) = partition();
        let found: Vec<_> = (0..7).map(|offset| available(&partition, offset, MAX, |_| None)).collect();
        assert_eq!(found, [5, 4, 3, 2, 1, 0, 0].map(|batches| batches * size));
        assert_eq!(available(&partition, 0, size + 1, |_| None), size + 1);
        assert_eq!(available(&partition, 1, 4 * size - 1, |_| None), 4 * size - 1);
        partition.on_durable(6);
        assert_eq!(available(&partition, 4, MAX, |_| None), 2 * size);
    }

    #[test]
    fn what_is_in_segments_only_counts_from_the_index() {
        let (mut partition, size) = partition();
        partition.tail.extents().next().expect("cached").backing.evict();
        let found =
            |partition: &Partition| (0..6).map(|at| available(partition, at, MAX, |_| None)).collect::<Vec<_>>();
        assert_eq!(found(&partition), [5, 5, 3, 2, 1, 0].map(|batches| batches * size), "64 KiB of index too much");
        partition.prune_tail();
        assert_eq!(found(&partition), [5, 5, 3, 2, 1, 0].map(|batches| batches * size));
        assert_eq!(available(&partition, 1, MAX, |_| Some(size as u64)), 4 * size, "unless it is known better");
        let sealed = Segment { sealed: true, index: None, ..partition.segments.all()[0].clone() };
        partition.segments.put(sealed);
        assert_eq!(found(&partition), [5, 4, 3, 2, 1, 0].map(|batches| batches * size));
    }

    #[test]
    fn who_is_many_segments_behind_finds_the_most_there_can_be() {
        let (mut partition, size) = partition();
        partition.tail.extents().next().expect("cached").backing.evict();
        let last = partition.segments.all()[0].clone();
        let sealed = (0..SEGMENTS_READ_MAX as i64).map(|at| Segment {
            base_offset: at - 16,
            end_offset: at - 15,
            sealed: true,
            ..last.clone()
        });
        partition.segments = Segments::new(sealed.chain([last.clone()]).collect());
        assert_eq!(available(&partition, -16, MAX, |_| None), MAX);
        assert_eq!(available(&partition, -15, MAX, |_| None), (15 * 3 + 5) * size);
    }
}
