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
        let at = self.tail.partition_point(|extent| extent.end_offset <= offset);
        let before = self.tail.get(at).and_then(|extent| extent.bytes_before(offset));
        let (in_segments, at, before) = match before {
            Some(before) => (0, at, before),
            None => {
                let Some(in_segments) = self.in_segments(offset, known) else { return max_bytes };
                (in_segments, self.tail.partition_point(|extent| extent.end_offset <= self.marks.materialised()), 0)
            }
        };
        let mut bytes = in_segments;
        for extent in self.tail.range(at..).take_while(|extent| extent.end_offset <= high_watermark) {
            if bytes >= max_bytes + before {
                break;
            }
            bytes += extent.len as usize;
        }
        bytes.saturating_sub(before).min(max_bytes)
    }

    /// Bytes from an offset to the end of the segments; `None`: they are too many segments for one read.
    fn in_segments(&self, offset: i64, known: impl FnOnce(&Segment) -> Option<u64>) -> Option<usize> {
        let at = self.segments.partition_point(|segment| segment.end_offset <= offset);
        let segments = &self.segments[at..];
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
    use std::{collections::BTreeMap, rc::Rc};

    use super::*;
    use crate::{
        api::TopicPartition,
        batch::{BatchBuilder, Codec, Record},
        config::TopicConfig,
        partition::materialise::plan,
    };

    const MAX: usize = 1 << 30;

    /// A batch of one record; its size and itself.
    fn batch(offset: i64, bytes: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Codec::None, offset);
        let value = Some(vec![0; bytes].into());
        builder.push(&Record { offset, timestamp: 1, key: None, value, headers: vec![] });
        builder.finish()
    }

    /// Three batches of 40 KB in an active segment, then three in two groups, of which one is visible.
    fn partition() -> (Partition, usize) {
        let config = TopicConfig::parse(&BTreeMap::new(), &BTreeMap::new()).expect("defaults are legal");
        let id = TopicPartition { topic: uuid::Uuid::nil(), partition: 0 };
        let mut partition = Partition::new(id, Rc::new(config));
        let size = batch(0, 40_000).len();
        for offsets in [vec![0, 1, 2], vec![3, 4], vec![5]] {
            partition.assign(offsets.last().map_or(0, |last| last + 1));
            let batches: Vec<_> = offsets.into_iter().map(|offset| batch(offset, 40_000)).collect();
            partition.push_extent(Extent::of(&batches));
        }
        partition.on_durable(5);
        let plan = plan(None, partition.materialisable(1), &partition.config, 0);
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
        partition.tail.front().expect("cached").backing.evict();
        let found = |partition: &Partition| (0..6).map(|at| partition.available(at, MAX, |_| None)).collect::<Vec<_>>();
        assert_eq!(found(&partition), [5, 5, 3, 2, 1, 0].map(|batches| batches * size), "64 KiB of index too much");
        partition.prune_tail();
        assert_eq!(found(&partition), [5, 5, 3, 2, 1, 0].map(|batches| batches * size));
        assert_eq!(partition.available(1, MAX, |_| Some(size as u64)), 4 * size, "unless it is known better");
        (partition.segments[0].sealed, partition.segments[0].index) = (true, None);
        assert_eq!(found(&partition), [5, 4, 3, 2, 1, 0].map(|batches| batches * size));
    }

    #[test]
    fn who_is_many_segments_behind_finds_the_most_there_can_be() {
        let (mut partition, size) = partition();
        partition.tail.front().expect("cached").backing.evict();
        let last = partition.segments.remove(0);
        for at in 0..SEGMENTS_READ_MAX as i64 {
            partition.segments.push(Segment {
                base_offset: at - 16,
                end_offset: at - 15,
                sealed: true,
                ..last.clone()
            });
        }
        partition.segments.push(last);
        assert_eq!(partition.available(-16, MAX, |_| None), MAX);
        assert_eq!(partition.available(-15, MAX, |_| None), (15 * 3 + 5) * size);
    }
}
