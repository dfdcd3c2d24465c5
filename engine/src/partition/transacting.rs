//! Transactions in a partition: who may write for one, what a marker does, up to where the log is stable, and which
//! transactions were aborted.
//!
//! What always holds: the last stable offset lies at a batch's begin, at the log start or at the high watermark, never
//! above that, and never goes back but with the log's end.

use std::rc::Rc;

use super::{
    Partition, Placed,
    producers::{Begins, Ended, Membership, Sequence},
    transactions::{Admitted, Confirming},
};
use crate::{
    api::{Acks, LogError},
    batch::{AppendOrigin, BatchInfo, EndMarker, Outcome, TimestampType},
    format::{
        manifest::{ProducerBatch, producer_marker},
        segment::SegmentName,
        transactions::{AbortedEntry, MARKER, OPEN_MAX},
    },
    transactions::{self, Decided, Marker},
};

const TOO_MANY_OPEN: &str = "too many are open in this partition";

/// Whether a transactional batch of a client may be looked at now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is decided on here.
    Decided,
    /// Its transaction's coordinator has to be asked first.
    Unknown,
}

impl Partition {
    /// The transactions that are open, as callers hear of them.
    pub(crate) fn open_transactions(&self) -> impl Iterator<Item = transactions::OpenTransaction> {
        let partition = self.id;
        self.producers.open_entries().into_iter().map(move |open| transactions::OpenTransaction {
            partition,
            producer_id: open.producer_id.get(),
            producer_epoch: open.producer_epoch.get(),
            coordinator_epoch: open.coordinator_epoch.get(),
            first_offset: open.first_offset.get(),
            last_batch_at: self.producers.open().of(open.producer_id.get()).map_or(-1, |(_, open)| open.last_batch_at),
            started_ms: open.started_ms.get(),
            confirmed: open.flags.get() != 0,
        })
    }

    /// Whether a client's transactional batch can be decided on without its coordinator. Only a transaction that is known to
    /// be on stable storage there goes on without being asked for: else nobody might ever end it. Where nobody leads it is
    /// refused whatever anybody says.
    pub(crate) fn standing(&self, info: &BatchInfo, begins: Begins) -> Standing {
        if self.replication.check_leading().is_err() {
            return Standing::Decided;
        }
        let (id, epoch) = (info.producer_id, info.producer_epoch);
        if self.producers.is_fenced(id, epoch) {
            return Standing::Decided;
        }
        if self.transactions.admitted(id).is_some_and(|admitted| admitted.producer_epoch == epoch) {
            return Standing::Decided;
        }
        match self.producers.open_in(id, epoch) {
            Some(open) if open.confirmed => Standing::Decided,
            Some(_) => Standing::Unknown,
            None => match self.producers.check(info, Membership::Fits, begins) {
                Ok(Sequence::Duplicate { .. }) => Standing::Decided,
                Ok(Sequence::New) | Err(_) => Standing::Unknown,
            },
        }
    }

    /// Whether a new batch may open a transaction, if it does: what is open must fit a record of the manifest.
    pub(super) fn check_opens(&self, info: &BatchInfo) -> Result<(), LogError> {
        if info.is_transactional() && self.is_full_of_open(info.producer_id) {
            return Err(LogError::ConcurrentTransactions(TOO_MANY_OPEN));
        }
        Ok(())
    }

    fn is_full_of_open(&self, producer_id: i64) -> bool {
        self.producers.open().len() >= OPEN_MAX && self.producers.open().of(producer_id).is_none()
    }

    /// Whether a new batch would be taken if its transaction were let in.
    pub(crate) fn would_take(&self, info: &BatchInfo, begins: Begins) -> Result<(), LogError> {
        self.producers.check(info, Membership::Fits, begins).map(drop)
    }

    /// Where a batch stands to the transactions that are let in. Coordinators know by themselves.
    pub(super) fn membership(&self, info: &BatchInfo, origin: AppendOrigin) -> Membership {
        if origin != AppendOrigin::Client || !info.is_transactional() {
            return Membership::Fits;
        }
        let (id, epoch) = (info.producer_id, info.producer_epoch);
        let is_admitted = || self.transactions.admitted(id).is_some_and(|admitted| admitted.producer_epoch == epoch);
        match is_admitted() || self.producers.open_in(id, epoch).is_some() {
            true => Membership::Fits,
            false => Membership::Outside,
        }
    }

    /// A producer may write for its transaction, for as long as it is led here; what it writes is acknowledged once
    /// `confirming` says so too. One that is
    /// open already is known to be on stable storage if there is nothing to wait for.
    pub(crate) fn admit(
        &mut self,
        producer_id: i64,
        producer_epoch: i16,
        confirming: Option<Confirming>,
    ) -> Result<(), LogError> {
        self.replication.check_leading()?;
        if self.producers.is_fenced(producer_id, producer_epoch) {
            return Err(LogError::InvalidProducerEpoch);
        }
        if self.is_full_of_open(producer_id) {
            return Err(LogError::ConcurrentTransactions(TOO_MANY_OPEN));
        }
        if confirming.is_none() && self.producers.open_in(producer_id, producer_epoch).is_some() {
            self.producers.confirm(producer_id);
        }
        self.transactions.admit(producer_id, Admitted { producer_epoch, confirming })
    }

    /// A transaction's coordinator has it on stable storage, or has failed to: then it is asked again. Nothing if the
    /// producer was let in anew meanwhile.
    pub(crate) fn settle_admission(
        &mut self,
        producer_id: i64,
        confirming: &Confirming,
        result: &Result<(), LogError>,
    ) {
        let Some(admitted) = self.transactions.admitted(producer_id) else { return };
        if !admitted.confirming.as_ref().is_some_and(|awaited| Rc::ptr_eq(awaited, confirming)) {
            return;
        }
        let producer_epoch = admitted.producer_epoch;
        if result.is_ok() && self.producers.open_in(producer_id, producer_epoch).is_some() {
            self.producers.confirm(producer_id);
        }
        self.transactions.settle(producer_id, result);
    }

    /// What the batches of a producer wait for beside the log.
    pub(super) fn confirming(&self, info: &BatchInfo) -> Option<Confirming> {
        if !info.is_transactional() {
            return None;
        }
        let admitted = self.transactions.admitted(info.producer_id)?;
        admitted.confirming.clone().filter(|_| admitted.producer_epoch == info.producer_epoch)
    }

    /// A batch of a transaction has its place. That of a coordinator asks nobody, and counts as confirmed: its own coordinator
    /// sees to it that it is acknowledged after the record that lets it in ([`Self::check_nobodys`] if that is lost).
    pub(super) fn joined_transaction(&mut self, info: &BatchInfo, origin: AppendOrigin) {
        let is_confirmed = match self.transactions.admitted(info.producer_id) {
            Some(admitted) if admitted.producer_epoch == info.producer_epoch => admitted.confirming.is_none(),
            _ => origin != AppendOrigin::Client,
        };
        if is_confirmed {
            self.producers.confirm(info.producer_id);
        }
    }

    /// Whether a marker may be appended.
    pub(crate) fn check_marker(&self, marker: &Marker) -> Result<(), LogError> {
        if self.deleted {
            return Err(LogError::UnknownPartition);
        }
        self.replication.check_produce(Acks::All, self.config.min_insync_replicas)?;
        self.producers.check_marker(marker)?;
        match marker.decided {
            Decided::ByCoordinator => Ok(()),
            Decided::ByNobody { first_offset, last_batch_at, was_confirmed } => {
                self.check_nobodys(marker, (first_offset, last_batch_at), was_confirmed)
            }
        }
    }

    /// Between the look at what is open and the marker a client may have sent a batch again, and its coordinator may have let it
    /// in: what is acknowledged then must not be aborted. Of what a group's coordinator writes, which is never a repetition,
    /// there is another batch then.
    fn check_nobodys(&self, marker: &Marker, seen: (i64, i64), was_confirmed: bool) -> Result<(), LogError> {
        let (id, epoch) = (marker.producer_id, marker.producer_epoch);
        let is_let_in = self.transactions.admitted(id).is_some_and(|admitted| admitted.producer_epoch == epoch);
        match self.producers.open().of(id) {
            Some((first_offset, open))
                if (first_offset, open.last_batch_at) == seen && (was_confirmed || !(open.confirmed || is_let_in)) =>
            {
                Ok(())
            }
            Some(_) => Err(LogError::InvalidTxnState("it is somebody's by now")),
            None => Err(LogError::InvalidTxnState("it has ended by now")),
        }
    }

    /// Whether a marker is the last one of its producer here, on stable storage or on its way there.
    pub(crate) fn has_marker(&self, marker: &Marker) -> bool {
        self.producers.has_marker(marker)
    }

    /// Gives a marker its place, at the end.
    pub(crate) fn place_marker(&mut self, info: &BatchInfo, end: EndMarker, now_ms: i64) -> Placed {
        let base_offset = self.marks.end();
        let append_time_ms = (self.config.timestamp_type == TimestampType::LogAppendTime).then_some(now_ms);
        let end_offset = self.take_place(info);
        self.note_batch(producer_marker(info, end, base_offset, now_ms), now_ms);
        Placed { produced: self.produced(base_offset, append_time_ms), end_offset, append_time_ms, confirming: None }
    }

    /// Takes note of a producer's batch that is in the log, in the order of offsets.
    pub(super) fn note_batch(&mut self, batch: ProducerBatch, append_ms: i64) {
        let ended = self.producers.note(batch, append_ms);
        if batch.flags.get() & MARKER == 0 {
            return;
        }
        self.transactions.withdraw(batch.producer_id.get());
        if let Some(Ended { first_offset, outcome }) = ended {
            let marker_offset = batch.base_offset.get();
            self.transactions.ended(first_offset, marker_offset);
            if outcome == Outcome::Abort {
                let last_stable_offset = self.producers.open().first_offset().unwrap_or(marker_offset + 1);
                self.transactions.aborted(AbortedEntry {
                    producer_id: batch.producer_id,
                    first_offset: first_offset.into(),
                    last_offset: marker_offset.into(),
                    last_stable_offset: last_stable_offset.into(),
                });
            }
        }
    }

    /// The marks have moved: so may the last stable offset. Markers count once they are on stable storage, whatever the
    /// topic asks: what was stable once must not become undecided.
    pub(super) fn follow_marks(&mut self) {
        let high_watermark = self.marks.high_watermark();
        self.transactions.safe_below(high_watermark.min(self.marks.durable()));
        let undecided = self.first_undecided().unwrap_or(high_watermark);
        let last_stable = undecided.max(self.marks.log_start()).min(high_watermark);
        let before = std::mem::replace(&mut self.last_stable, last_stable);
        assert!(last_stable >= before, "what is stable stays so: {last_stable} < {before}");
        if last_stable > before && !self.stable_waiters.is_empty() {
            match self.tail.bytes_between(before, last_stable, usize::MAX) {
                Some(bytes) => self.stable_waiters.grow(bytes),
                None => self.stable_waiters.wake(), // they find out from segments
            }
        }
    }

    /// Whether it is not known up to where the log is stable: a start found markers that consumers may not see yet.
    pub(crate) fn is_unsure_what_is_stable(&self) -> bool {
        self.transactions.is_unsure()
    }

    fn first_undecided(&self) -> Option<i64> {
        let (open, ended) = (self.producers.open().first_offset(), self.transactions.first_unsafe());
        open.into_iter().chain(ended).min()
    }

    /// Whether aborted transactions may have records behind an offset.
    pub(crate) fn may_have_aborted(&self, offset: i64) -> bool {
        !self.transactions.all_aborted().is_empty() || self.segments.with_aborted(offset).next().is_some()
    }

    /// The aborted transactions with records from one offset up to another, if what holds the first is in memory: those
    /// that matter are all in memory then.
    pub(crate) fn aborted_in_memory(&self, from: i64, end: i64) -> Vec<AbortedEntry> {
        self.transactions.all_aborted().between(from, end)
    }

    /// Lets go of aborted transactions that segments have and nobody reads from memory.
    pub(super) fn forget_aborted(&mut self) {
        if !self.transactions.all_aborted().is_empty() {
            let in_memory = self.tail.base_offset().unwrap_or(i64::MAX);
            self.transactions.forget_below(in_memory.min(self.marks.materialised()));
        }
    }

    /// The lowest first offset of a segment's aborted transactions is known now.
    pub(crate) fn note_aborted_from(&mut self, name: SegmentName, first_offset: i64) {
        self.segments.note_aborted_from(name, first_offset);
    }
}
