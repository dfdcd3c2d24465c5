//! Writing several batches all at once: a coordinator's records and the markers of the transactions that they decide on.
//!
//! All parts lie in one commit group, which has one checksum and so counts whole or not at all; consumers see all of it in
//! one turn. The group is flushed, whatever the topics ask: what decides on transactions is not to be lost where what it
//! decides on is not. Everything is checked before the first part has its place, so a part that cannot be written leaves nothing of
//! the others.
//!
//! All of that is said of this node. Of partitions with replicas a part is answered once every replica in sync has it, and each
//! partition goes its own way there: a follower may have one part and not the other, and two of the partitions may be led by
//! different nodes next, with logs of different length. So a decision and what follows from it may share a group only where
//! no other node has any of the partitions.

use std::{collections::HashSet, rc::Rc};

use bytes::Bytes;

use super::{Store, append::Wait};
use crate::{
    api::{Acks, LogError, ProducePartition, Produced},
    batch::{self, AppendOrigin, BatchError, BatchInfo, EndMarker},
    format::wal::entry_bytes,
    io::Io,
    partition::{PartitionCell, Terms},
    transactions::{AtomicAppended, AtomicPart, AtomicRefused, Marker},
    wal::group::ATOMIC_BYTES_MAX,
};

/// A part that may be written.
struct Checked {
    cell: Rc<PartitionCell>,
    bytes: Bytes,
    info: BatchInfo,
    /// What a marker says.
    end: Option<EndMarker>,
}

/// A part that has its place, and what its answer waits for.
pub(crate) type PartTaken = (Produced, Wait);

/// Resolves when all parts of a group are as safe as they have to be.
pub(crate) async fn all_ended(taken: Result<Vec<PartTaken>, AtomicRefused>) -> AtomicAppended {
    let taken = taken?;
    let mut produced = Vec::with_capacity(taken.len());
    for (part, (place, wait)) in taken.into_iter().enumerate() {
        wait.wait().await.map_err(|error| AtomicRefused { part, error })?;
        produced.push(place);
    }
    Ok(produced)
}

/// Resolves when each part is as safe as it has to be, or is known not to become so. One answer each.
pub(crate) async fn each_ended(taken: Vec<Result<PartTaken, LogError>>) -> Vec<Result<Produced, LogError>> {
    let mut answers = Vec::with_capacity(taken.len());
    for taken in taken {
        answers.push(match taken {
            Ok((produced, wait)) => wait.wait().await.map(|()| produced),
            Err(error) => Err(error),
        });
    }
    answers
}

impl<I: Io> Store<I> {
    /// Takes all parts or none.
    pub(crate) fn append_atomically(&self, parts: Vec<AtomicPart>) -> Result<Vec<PartTaken>, AtomicRefused> {
        let mut markers = HashSet::new();
        let mut bytes = 0;
        let mut checked = Vec::with_capacity(parts.len());
        for (part, wanted) in parts.into_iter().enumerate() {
            let refused = |error| AtomicRefused { part, error };
            if let AtomicPart::Marker(marker) = &wanted
                && !markers.insert((marker.partition, marker.producer_id))
            {
                return Err(refused(LogError::InvalidTxnState("two markers for one producer in one partition")));
            }
            let part = self.check_part(wanted).map_err(refused)?;
            bytes += entry_bytes(Some(part.bytes.len()));
            if bytes > ATOMIC_BYTES_MAX {
                return Err(refused(BatchError::TooLarge { size: bytes, max: ATOMIC_BYTES_MAX }.into()));
            }
            checked.push(part);
        }
        Ok(self.push_checked(checked, bytes))
    }

    /// Takes the markers that may be written, all of them in one group.
    pub(crate) fn append_markers(&self, markers: Vec<Marker>) -> Vec<Result<PartTaken, LogError>> {
        let mut answers = Vec::with_capacity(markers.len());
        let mut left = markers.into_iter().peekable();
        while left.peek().is_some() {
            // Whatever their number, a group holds them; a second of the same producer has to see the first.
            let mut seen = HashSet::new();
            let (mut checked, mut places, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some(marker) = left.next_if(|marker| {
                bytes + entry_bytes(Some(batch::MARKER_BYTES)) <= ATOMIC_BYTES_MAX
                    && seen.insert((marker.partition, marker.producer_id))
            }) {
                let at = answers.len();
                match self.check_part(AtomicPart::Marker(marker)) {
                    Ok(part) => {
                        bytes += entry_bytes(Some(part.bytes.len()));
                        checked.push(part);
                        places.push(at);
                        answers.push(Err(LogError::ShuttingDown));
                    }
                    Err(error) => answers.push(Err(error)),
                }
            }
            for (at, taken) in places.into_iter().zip(self.push_checked(checked, bytes)) {
                answers[at] = Ok(taken);
            }
        }
        answers
    }

    fn check_part(&self, part: AtomicPart) -> Result<Checked, LogError> {
        match part {
            AtomicPart::Marker(marker) => self.check_marker(&marker),
            AtomicPart::Batch { partition, batch } => {
                let part = ProducePartition { partition, batch };
                let terms = Terms::plain(AppendOrigin::Coordinator, Acks::All);
                let (cell, info) = self.check_batch(&part, terms)?;
                if self.recompressor.holds(partition) {
                    return Err(LogError::ConcurrentTransactions("a batch before it is still being recompressed"));
                }
                self.known(&cell, &info, terms)?;
                Ok(Checked { cell, bytes: part.batch, info, end: None })
            }
        }
    }

    fn check_marker(&self, marker: &Marker) -> Result<Checked, LogError> {
        self.check_not_failed()?;
        self.check_transactions_in_use()?;
        let cell = self.partition(marker.partition)?;
        if marker.producer_id < 0 || marker.producer_epoch < 0 {
            return Err(LogError::InvalidTxnState("a marker of no producer"));
        }
        // who leads no more may take what has ended since for open
        self.check_lease(&cell.borrow())?;
        cell.borrow().check_marker(marker)?;
        if self.full.get() {
            return Err(LogError::StorageFull);
        }
        let end = EndMarker { outcome: marker.outcome, coordinator_epoch: marker.coordinator_epoch };
        let bytes = batch::marker(marker.producer_id, marker.producer_epoch, end, self.io.now_ms());
        let info = BatchInfo::parse(&bytes)?;
        Ok(Checked { cell, bytes: bytes.into(), info, end: Some(end) })
    }

    /// Gives parts their places in one group, which has room for all. Each waits for the replicas of its own partition.
    fn push_checked(&self, checked: Vec<Checked>, bytes: usize) -> Vec<PartTaken> {
        if checked.is_empty() {
            return Vec::new();
        }
        self.groups.borrow_mut().make_room(bytes, checked.iter().map(|part| &part.cell));
        let mut taken = Vec::with_capacity(checked.len());
        for Checked { cell, bytes, info, end } in checked {
            let now_ms = self.io.now_ms();
            let placed = match end {
                Some(end) => cell.borrow_mut().place_marker(&info, end, now_ms),
                None => cell.borrow_mut().place(&info, AppendOrigin::Coordinator, now_ms),
            };
            let confirmation = cell.borrow_mut().expect(Acks::All, placed.end_offset);
            let (produced, group) = self.push_to_open(&cell, bytes, &info, placed);
            taken.push((produced, Wait::of(group, confirmation)));
            if end.is_some() {
                self.held.outdate(cell.borrow().id(), info.producer_id);
            }
        }
        self.pump.notify();
        taken
    }
}
