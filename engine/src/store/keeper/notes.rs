//! Notes: what the manifest is told of partitions, after which the shared log is not needed for that, and writing the
//! manifest anew.

use std::{io, rc::Rc};

use super::Doing;
use crate::{
    format::{
        journal::{Journal, Payloads},
        manifest::{self, Record},
    },
    io::Io,
    partition::{PartitionCell, keeping::Unnoted},
    store::Store,
};

/// What the manifest is being told of a partition.
struct Taken {
    cell: Rc<PartitionCell>,
    unnoted: Unnoted,
}

impl<I: Io> Store<I> {
    /// Tells the manifest what it does not know of these partitions; then the shared log is not needed for that.
    pub(in crate::store) async fn note_partitions(
        &self,
        cells: impl Iterator<Item = &Rc<PartitionCell>>,
    ) -> io::Result<()> {
        let mut payloads = Payloads::default();
        let mut taken = Vec::new();
        for cell in cells {
            let mut partition = cell.borrow_mut();
            let Some((unnoted, advance, transactions)) = partition.take_unnoted() else {
                continue;
            };
            if let Some(epochs) = partition.take_unnoted_epochs() {
                payloads.push(&manifest::encode(partition.id(), &Record::Epochs(epochs)));
            }
            for part in manifest::split(advance) {
                payloads.push(&manifest::encode(partition.id(), &Record::Advance(part)));
            }
            for part in transactions.into_iter().flat_map(manifest::split_transactions) {
                payloads.push(&manifest::encode(partition.id(), &Record::Transactions(part)));
            }
            taken.push(Taken { cell: cell.clone(), unnoted });
        }
        let noted = self.note(payloads).await;
        self.settle_taken(taken, noted.is_ok());
        noted
    }

    /// The shared log is not needed for what the manifest knows now. If it does not, it must be told another time.
    fn settle_taken(&self, taken: Vec<Taken>, noted: bool) {
        for Taken { cell, unnoted } in taken {
            let mut partition = cell.borrow_mut();
            if noted || partition.is_deleted() {
                unnoted.pins.into_iter().for_each(|(file, extents)| self.unpin(file, partition.id(), extents));
            } else {
                partition.put_back(unnoted);
            }
        }
    }

    /// Appends to the manifest, durably.
    pub(crate) async fn note(&self, payloads: Payloads) -> io::Result<()> {
        let mut journal = self.keeper.journal.take().expect("only the keeper uses the manifest");
        let mut result = Ok(());
        for payload in payloads.finish() {
            result = journal.append(&payload).await;
            if result.is_err() {
                break;
            }
            self.watch.segment_step();
        }
        self.keeper.journal.replace(Some(journal));
        result
    }

    /// Rewrites the manifest to what the partitions say now, if most of it is history. Then nothing is left to note;
    /// new epochs may be noted a second time.
    pub(super) async fn rewrite_manifest(&self) -> io::Result<()> {
        let wanted = self.keeper.journal.borrow().as_ref().is_some_and(Journal::wants_rewrite);
        if !wanted {
            return Ok(());
        }
        let cells: Vec<_> = self.partitions.borrow().values().cloned().collect();
        let take = |cell: Rc<PartitionCell>| {
            let unnoted = cell.borrow_mut().take_unnoted_for_rewrite()?;
            Some(Taken { cell, unnoted })
        };
        let taken = cells.into_iter().filter_map(take).collect();
        let payloads = self.manifest_payloads();
        self.keeper.does(Doing::Rewriting(payloads.iter().map(Vec::len).sum()));
        let mut journal = self.keeper.journal.take().expect("only the keeper uses the manifest");
        let result = journal.rewrite(&payloads).await;
        self.keeper.journal.replace(Some(journal));
        self.settle_taken(taken, result.is_ok());
        self.pump.notify();
        result
    }

    /// The manifest of the partitions as they are.
    fn manifest_payloads(&self) -> Vec<Vec<u8>> {
        let states = self.partitions.borrow();
        let states = states.iter().map(|(id, cell)| (*id, cell.borrow().state()));
        manifest::encode_all(&self.keeper.run_ends, states)
    }
}
