//! How much a fetch would find, without reading: what `min_bytes` is compared with. Exact in the tail and where a
//! segment begins or a reader has just been; in between, of the segment that the fetch begins in, up to an interval of
//! the index too much. Only if that one is sealed and nobody has read it, its index is not in memory: then its batches
//! count as if they were all alike.

use crate::{
    format::segment::Segment,
    partition::{Partition, run::batch_head, tail::Extent},
};

/// Segments that one read of a partition goes through at most, each a file to open. Who is further behind than that
/// waits for nothing: more would not come into the answer.
pub(crate) const SEGMENTS_READ_MAX: usize = 16;

impl Partition {
    /// Bytes from an offset to the high watermark, `max_bytes` at most. `known` says where in a segment the batch with
    /// the offset begins, if that is known better than from the segment itself.
    pub(crate) fn available(
        &self,
        offset: i64,
        max_bytes: usize,
        known: impl FnOnce(&Segment) -> Option<u64>,
    ) -> usize {
        let high_watermark = self.marks.high_watermark();
        if offset >= high_watermark {
            return 0;
        }
        let before = self.tail.holding(offset).next().and_then(|extent| extent.bytes_before(offset));
        let (in_segments, from, before) = match before {
            Some(before) => (0, offset, before),
            None => {
                let Some(in_segments) = self.in_segments(offset, known) else { return max_bytes };
                (in_segments, self.marks.materialised(), 0)
            }
        };
        let mut bytes = in_segments;
        for extent in self.tail.holding(from).take_while(|extent| extent.end_offset <= high_watermark) {
            if bytes >= max_bytes + before {
                break;
            }
            bytes += extent.len as usize;
        }
        bytes.saturating_sub(before).min(max_bytes)
    }

    /// Bytes from an offset to the end of the segments; `None`: they are too many segments for one read.
    fn in_segments(&self, offset: i64, known: impl FnOnce(&Segment) -> Option<u64>) -> Option<usize> {
        let segments = self.segments.from(offset);
        let Some(first) = segments.first() else { return Some(0) };
        if segments.len() > SEGMENTS_READ_MAX {
            return None;
        }
        let position = if offset <= first.base_offset { 0 } else { known(first).unwrap_or(first.position_of(offset)) };
        let bytes = segments.iter().map(|segment| segment.size).sum::<u64>().saturating_sub(position);
        Some(usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

impl Extent {
    /// Bytes of the batches that end before an offset, `None` if it does not hold the offset or has to be read for that.
    fn bytes_before(&self, offset: i64) -> Option<usize> {
        if offset <= self.base_offset {
            return (offset == self.base_offset).then_some(0);
        }
        let memory = self.backing.memory()?;
        let bytes = &memory.bytes()[self.range()];
        let mut before = 0;
        while let Some((_, end_offset, size)) = batch_head(&bytes[before..])
            && end_offset <= offset
        {
            before += size;
        }
        Some(before)
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

    #[test]
    fn what_is_cached_counts_to_the_byte_and_up_to_the_high_watermark() {
        let (mut partition, size) = partition();
        let found: Vec<_> = (0..7).map(|offset| partition.available(offset, MAX, |_| None)).collect();
        assert_eq!(found, [5, 4, 3, 2, 1, 0, 0].map(|batches| batches * size));
        assert_eq!(partition.available(0, size + 1, |_| None), size + 1);
        assert_eq!(partition.available(1, 4 * size - 1, |_| None), 4 * size - 1);
        partition.on_durable(6);
        assert_eq!(partition.available(4, MAX, |_| None), 2 * size);
    }

    #[test]
    fn what_is_in_segments_only_counts_from_the_index() {
        let (mut partition, size) = partition();
        partition.tail.extents().next().expect("cached").backing.evict();
        let found = |partition: &Partition| (0..6).map(|at| partition.available(at, MAX, |_| None)).collect::<Vec<_>>();
        assert_eq!(found(&partition), [5, 5, 3, 2, 1, 0].map(|batches| batches * size), "64 KiB of index too much");
        partition.prune_tail();
        assert_eq!(found(&partition), [5, 5, 3, 2, 1, 0].map(|batches| batches * size));
        assert_eq!(partition.available(1, MAX, |_| Some(size as u64)), 4 * size, "unless it is known better");
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
        assert_eq!(partition.available(-16, MAX, |_| None), MAX);
        assert_eq!(partition.available(-15, MAX, |_| None), (15 * 3 + 5) * size);
    }
}
