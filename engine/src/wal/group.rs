//! Commit groups before they are bytes: which batches go together, and when a group is sealed. Pure.
//!
//! A batch joins the open group; batches of one partition stand together in it as one run, which is of one leader epoch.
//! Behind the runs stands what happened to the ends of logs: a leader epoch began, or an end was cut off. The device paces the
//! groups: one is sealed as soon as nothing is being written, so a lone record goes at once and a busy shard gets large
//! groups by itself. A large group need not wait for its predecessor.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;

use crate::format::wal::{
    ENTRY_HEADER_BYTES, Era, GROUP_BYTES_MAX, GROUP_HEADER_BYTES, GroupEncoder, SegmentPointer, entry_bytes,
};
use crate::{
    api::{LogError, TopicPartition},
    batch::{self, BATCH_BYTES_MAX, BatchInfo},
    chunk::Memory,
    io::align_up,
    partition::PartitionCell,
    signal::Outcome,
};

/// How a group ends, for everybody who has a batch in it.
pub(crate) type GroupOutcome = Outcome<Result<(), LogError>>;

/// An open group takes no further batch at this size: larger ones gain nothing and delay the first.
pub(crate) const GROUP_BYTES_TARGET: usize = 1 << 20;

/// A group of at least this size is sealed while others are being written.
pub(crate) const PIPELINED_BYTES: usize = 256 << 10;

/// Groups being written at most.
pub(crate) const IN_FLIGHT_MAX: usize = 4;

const _: () = assert!(PIPELINED_BYTES <= GROUP_BYTES_TARGET && GROUP_BYTES_TARGET < GROUP_BYTES_MAX);

// The largest batch fits a group of its own.
const _: () = assert!(GROUP_HEADER_BYTES + BATCH_BYTES_MAX + (1 << 16) < GROUP_BYTES_MAX);

/// What is written all at once has that many bytes at most, with its entries.
pub(crate) const ATOMIC_BYTES_MAX: usize = 20 << 20;
const _: () = assert!(GROUP_HEADER_BYTES + ATOMIC_BYTES_MAX + (1 << 16) < GROUP_BYTES_MAX);

/// A batch with the place it was given.
pub(crate) struct PlacedBatch {
    pub(crate) bytes: Bytes,
    pub(crate) base_offset: i64,
    pub(crate) stamp: BatchStamp,
}

/// What becomes of a batch's header.
pub(crate) enum BatchStamp {
    /// It gets its offset and epoch here.
    Here {
        /// What the check said of it: the producer's header may name a wrong largest timestamp.
        checked: BatchInfo,
        append_time_ms: Option<i64>,
    },
    /// It stays as a leader has sent it: one batch, or some that follow each other.
    Leaders,
}

/// Something that happens to the end of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndEvent {
    /// A leader epoch begins.
    EpochStart { end_offset: i64 },
    /// It is cut off.
    Cut { from: i64, to: i64 },
}

/// That, for a partition.
pub(crate) struct PlacedEvent {
    pub(crate) id: TopicPartition,
    pub(crate) partition: Rc<PartitionCell>,
    pub(crate) era: Era,
    pub(crate) event: EndEvent,
}

/// Consecutive batches of one partition.
pub(crate) struct Run {
    pub(crate) id: TopicPartition,
    pub(crate) partition: Rc<PartitionCell>,
    pub(crate) era: Era,
    pub(crate) base_offset: i64,
    /// One past the last offset.
    pub(crate) end_offset: i64,
    pub(crate) batches: Vec<PlacedBatch>,
    /// Bytes of all batches.
    pub(crate) len: usize,
}

/// A group that is not written yet.
pub(crate) struct CommitGroup {
    number: u64,
    pub(crate) runs: Vec<Run>,
    /// What happens to ends of logs, behind all runs.
    pub(crate) events: Vec<PlacedEvent>,
    /// Bytes of header, entries and batches.
    pub(crate) bytes: usize,
    /// Whether one of its topics wants it flushed.
    pub(crate) flush: bool,
    pub(crate) outcome: Rc<GroupOutcome>,
}

impl CommitGroup {
    /// Groups are numbered in the order in which they are written.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    fn new(number: u64) -> Self {
        Self {
            number,
            runs: Vec::new(),
            events: Vec::new(),
            bytes: GROUP_HEADER_BYTES,
            flush: false,
            outcome: Rc::default(),
        }
    }

    /// Bytes in the log, with padding.
    pub(crate) fn padded(&self) -> usize {
        usize::try_from(align_up(self.bytes as u64)).expect("groups are bounded")
    }

    /// Writes the entries into the group's buffer: a pointer for each run that goes to its segment (`fat`, one per run),
    /// the batches for all others. Says where each run's bytes begin.
    pub(crate) fn encode(&self, fat: &[Option<SegmentPointer>], encoder: &mut GroupEncoder<'_>) -> Vec<u32> {
        let mut places = Vec::with_capacity(self.runs.len());
        for (run, fat) in self.runs.iter().zip(fat) {
            let offsets = (run.base_offset, run.end_offset);
            if let Some(pointer) = fat {
                encoder.pointer(run.id, offsets, run.era, run.len, *pointer);
                places.push(0);
                continue;
            }
            let (place, room) = encoder.inline(run.id, offsets, run.era, run.len);
            places.push(place);
            run.fill(room);
        }
        for PlacedEvent { id, era, event, .. } in &self.events {
            match *event {
                EndEvent::EpochStart { end_offset } => encoder.epoch_start(*id, end_offset, *era),
                EndEvent::Cut { from, to } => encoder.cut(*id, (from, to), *era),
            }
        }
        places
    }

    /// Bytes of the encoded group, with padding.
    pub(crate) fn encoded_bytes(&self, fat: &[Option<SegmentPointer>]) -> usize {
        let entries = self.runs.iter().zip(fat);
        let bytes = entries.map(|(run, fat)| entry_bytes(fat.is_none().then_some(run.len))).sum::<usize>();
        let bytes = bytes + self.events.len() * ENTRY_HEADER_BYTES;
        usize::try_from(align_up((GROUP_HEADER_BYTES + bytes) as u64)).expect("groups are bounded")
    }
}

impl Run {
    /// The batches where they stay, with their offsets. What a leader has sent in one piece stays where it came to.
    pub(crate) fn memory(&self) -> Rc<dyn Memory> {
        if let [PlacedBatch { bytes, stamp: BatchStamp::Leaders, .. }] = &self.batches[..] {
            return Rc::new(bytes.clone());
        }
        let mut memory = vec![0; self.len];
        self.fill(&mut memory);
        Rc::new(memory)
    }

    /// Copies the batches to where they stay and gives them their offsets.
    pub(crate) fn fill(&self, mut room: &mut [u8]) {
        for placed in &self.batches {
            let (own, rest) = room.split_at_mut(placed.bytes.len());
            own.copy_from_slice(&placed.bytes);
            if let BatchStamp::Here { checked, append_time_ms } = &placed.stamp {
                batch::correct_header(own, checked);
                batch::assign(own, placed.base_offset, self.era.leader_epoch, *append_time_ms);
            }
            room = rest;
        }
    }
}

/// The groups that wait to be written; the last one is open.
pub(crate) struct Groups {
    waiting: VecDeque<CommitGroup>,
    next_number: u64,
}

impl Groups {
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new(), next_number: 1 }
    }

    /// Adds a batch whose offsets are assigned. `flush`: its topic wants it on stable storage.
    pub(crate) fn push(
        &mut self,
        cell: &Rc<PartitionCell>,
        placed: PlacedBatch,
        end_offset: i64,
        flush: bool,
    ) -> Rc<GroupOutcome> {
        self.make_room(entry_bytes(Some(placed.bytes.len())), std::iter::once(cell));
        self.push_to_open(cell, placed, end_offset, flush)
    }

    /// Sees to it that the open group takes so many bytes more, [`ATOMIC_BYTES_MAX`] at most: all that is pushed to it next,
    /// of that size and those partitions, counts or is lost together.
    pub(crate) fn make_room<'a>(&mut self, bytes: usize, cells: impl Iterator<Item = &'a Rc<PartitionCell>> + Clone) {
        assert!(bytes <= ATOMIC_BYTES_MAX || bytes <= entry_bytes(Some(BATCH_BYTES_MAX)), "a group holds it");
        // A run is of one era; what comes before it goes before it, by whichever way.
        let is_of_this_era = |group: &CommitGroup, cell: &PartitionCell| {
            let partition = cell.borrow();
            let run = partition.run_in(group.number).and_then(|at| group.runs.get(at));
            run.is_none_or(|run| run.era == partition.era())
        };
        self.open(|group| {
            let has_room = group.runs.is_empty() || group.bytes + bytes <= GROUP_BYTES_TARGET;
            has_room && cells.clone().all(|cell| is_of_this_era(group, cell))
        });
    }

    /// Adds a batch to the open group, for which there is room.
    pub(crate) fn push_to_open(
        &mut self,
        cell: &Rc<PartitionCell>,
        placed: PlacedBatch,
        end_offset: i64,
        flush: bool,
    ) -> Rc<GroupOutcome> {
        let len = placed.bytes.len();
        let wanted = entry_bytes(Some(len));
        let group = self.waiting.back_mut().expect("room was made there");
        group.flush |= flush;
        let mut partition = cell.borrow_mut();
        match partition.join_group(group.number, group.runs.len(), &group.outcome) {
            Some(at) => {
                let run = &mut group.runs[at];
                assert_eq!(run.end_offset, placed.base_offset, "a run is consecutive");
                run.end_offset = end_offset;
                run.len += len;
                run.batches.push(placed);
                group.bytes += len;
            }
            None => {
                group.runs.push(Run {
                    id: partition.id(),
                    partition: cell.clone(),
                    era: partition.era(),
                    base_offset: placed.base_offset,
                    end_offset,
                    batches: vec![placed],
                    len,
                });
                group.bytes += wanted;
            }
        }
        group.outcome.clone()
    }

    /// The open group, or another one if that does not fit.
    fn open(&mut self, fits: impl FnOnce(&CommitGroup) -> bool) -> &mut CommitGroup {
        if !self.waiting.back().is_some_and(fits) {
            self.waiting.push_back(CommitGroup::new(self.next_number));
            self.next_number += 1;
        }
        self.waiting.back_mut().expect("just made")
    }

    /// Adds something that happens to the end of a log, behind all its batches that were added before. Durable once its
    /// group has ended well.
    pub(crate) fn push_event(&mut self, cell: &Rc<PartitionCell>, era: Era, event: EndEvent) -> Rc<GroupOutcome> {
        let group = self.open(|group| group.bytes + ENTRY_HEADER_BYTES <= GROUP_BYTES_TARGET);
        group.flush = true;
        group.bytes += ENTRY_HEADER_BYTES;
        let (id, partition) = (cell.borrow().id(), cell.clone());
        group.events.push(PlacedEvent { id, partition, era, event });
        group.outcome.clone()
    }

    /// The next group to write, if it may go while `in_flight` others are being written.
    pub(crate) fn next(&mut self, in_flight: usize) -> Option<CommitGroup> {
        self.may_go(in_flight).then(|| self.waiting.pop_front().expect("what may go is there"))
    }

    /// Whether there is a group to write that may go while `in_flight` others are being written.
    pub(crate) fn may_go(&self, in_flight: usize) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        let large = first.bytes >= PIPELINED_BYTES || self.waiting.len() > 1;
        in_flight == 0 || (large && in_flight < IN_FLIGHT_MAX)
    }

    /// Size of the next group in the log, whether or not it may go.
    pub(crate) fn next_padded(&self) -> Option<usize> {
        self.waiting.front().map(CommitGroup::padded)
    }

    /// Number of the oldest group that waits.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.waiting.front().map(CommitGroup::number)
    }

    /// How many groups wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        (self.waiting.len(), self.waiting.iter().map(|group| group.bytes as u64).sum())
    }

    /// Takes everything that waits, to refuse it.
    pub(crate) fn take_all(&mut self) -> VecDeque<CommitGroup> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
