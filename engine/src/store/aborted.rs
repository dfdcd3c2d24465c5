//! The aborted transactions of segments that have ended: read from footers when somebody who reads what is committed
//! needs them, and kept within a budget.

use std::{cell::RefCell, collections::VecDeque, io, rc::Rc};

use super::{Store, footer};
use crate::{
    api::TopicPartition,
    format::{
        segment::{Segment, SegmentName},
        transactions::{AbortedEntry, overlapping},
    },
    io::Io,
    partition::PartitionCell,
};

/// Aborted transactions of ended segments in memory, per shard.
const CACHED_BYTES_MAX: usize = 16 << 20;

type Key = (TopicPartition, SegmentName);
type Entries = Rc<Vec<AbortedEntry>>;

/// Those that were read, the last ones used behind.
#[derive(Default)]
pub(super) struct AbortedCache {
    cached: RefCell<VecDeque<(Key, Entries)>>,
}

impl AbortedCache {
    fn get(&self, key: Key) -> Option<Entries> {
        let mut cached = self.cached.borrow_mut();
        let at = cached.iter().position(|(known, _)| *known == key)?;
        let found = cached.remove(at)?;
        let entries = found.1.clone();
        cached.push_back(found);
        Some(entries)
    }

    fn put(&self, key: Key, entries: &Entries) {
        let mut cached = self.cached.borrow_mut();
        cached.push_back((key, entries.clone()));
        let mut bytes = cached.iter().map(|(_, entries)| size_of_val(entries.as_slice())).sum::<usize>();
        while bytes > CACHED_BYTES_MAX
            && let Some((_, entries)) = cached.pop_front()
        {
            bytes -= size_of_val(entries.as_slice());
        }
    }

    /// Segments of a partition are gone, or will be written anew.
    pub(super) fn forget(&self, is_gone: impl Fn(&Key) -> bool) {
        self.cached.borrow_mut().retain(|(key, _)| !is_gone(key));
    }
}

impl<I: Io> Store<I> {
    /// The aborted transactions with records from one offset up to another, some perhaps twice. To be asked for once the
    /// records are known; these count only if their segment is still there afterwards, because compaction may have taken
    /// both away.
    pub(super) async fn aborted_between(
        &self,
        cell: &Rc<PartitionCell>,
        from: i64,
        end: i64,
    ) -> io::Result<Vec<AbortedEntry>> {
        let (id, cuts, segments, in_memory) = {
            let partition = cell.borrow();
            let may_overlap = |segment: &&Segment| segment.aborted_from.is_none_or(|first_offset| first_offset < end);
            let segments = partition.segments().with_aborted(from).filter(may_overlap).cloned().collect::<Vec<_>>();
            // In the same turn: what is in memory only now may be in a segment, and forgotten here, in the next.
            (partition.id(), partition.cuts(), segments, partition.aborted_in_memory(from, end))
        };
        let mut found = Vec::new();
        for segment in &segments {
            let entries = match &segment.aborted {
                Some(entries) if !segment.sealed => entries.clone(),
                _ => self.aborted_of(cell, (id, cuts), segment).await?,
            };
            let (overlapping, goes_on) = overlapping(&entries, from, end);
            found.extend(overlapping);
            if !goes_on {
                return Ok(found);
            }
        }
        found.extend(in_memory);
        Ok(found)
    }

    /// All of a segment that has ended. `cuts`: how often the partition's end had been cut off when it was that segment.
    async fn aborted_of(
        &self,
        cell: &Rc<PartitionCell>,
        (id, cuts): (TopicPartition, u32),
        segment: &Segment,
    ) -> io::Result<Entries> {
        let key = (id, segment.name());
        if let Some(entries) = self.segments.aborted.get(key) {
            return Ok(entries);
        }
        let open = self.segments.get(id, segment.name(), false).await?;
        let footer = footer::read(&open.file, segment).await?;
        let footer =
            footer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the segment's footer is damaged"))?;
        let entries = Rc::new(footer.aborted);
        if cell.borrow().cuts() != cuts {
            // A segment of that name has, or will have, others.
            return Ok(entries);
        }
        if let Some(lowest) = entries.iter().map(|entry| entry.first_offset.get()).min() {
            cell.borrow_mut().note_aborted_from(segment.name(), lowest);
        }
        self.segments.aborted.put(key, &entries);
        Ok(entries)
    }
}

/// What readers are told of aborted transactions: each once, by their markers.
pub(super) fn told(mut entries: Vec<AbortedEntry>) -> Vec<crate::transactions::AbortedTransaction> {
    entries.sort_by_key(|entry| entry.last_offset.get());
    entries.dedup_by_key(|entry| entry.last_offset.get());
    let of = |entry: &AbortedEntry| crate::transactions::AbortedTransaction {
        producer_id: entry.producer_id.get(),
        first_offset: entry.first_offset.get(),
    };
    entries.iter().map(of).collect()
}
