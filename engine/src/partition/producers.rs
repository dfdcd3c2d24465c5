//! The producers of one partition: which batch is new, which is a repetition, which must not be taken, and whose
//! transaction is open.
//!
//! Pure; owned by the partition. Per producer the last five batches are remembered: a client has five requests in
//! flight at most, so an older one cannot come again (KIP-98, KIP-360). Rules are those of Kafka 4.4's
//! `ProducerAppendInfo`; in particular a producer that nothing is known of, because it was idle for too long or its
//! records are gone, may go on with any sequence, so UNKNOWN_PRODUCER_ID is never the answer. But not one whose partitions
//! are added by producing (KAFKA-18202): that begins with sequence 0. And a commit by version 2 ends no older transaction than its
//! own.
//!
//! What always holds: a producer remembers up to five batches, all of its newest epoch, in the order of their offsets; none
//! if all that is known of that epoch is a marker, or batches that a coordinator wrote for it, which have no sequence.

use std::collections::HashMap;

use super::open::{Open, OpenTransactions};
use crate::{
    api::{ActiveProducer, LogError},
    batch::{BatchInfo, Outcome, increment_sequence},
    format::{
        manifest::ProducerBatch,
        transactions::{COMMITS, CONFIRMED, MARKER, OpenEntry, TRANSACTIONAL},
    },
    transactions::Marker,
};

/// Batches remembered per producer: `max.in.flight.requests.per.connection` may be that much for an idempotent one.
const BATCHES_MAX: usize = 5;

/// The epoch that only fences: no producer is given it.
const LAST_EPOCH: i16 = i16::MAX;

const UNKNOWN_BEFORE: &str = "one before it is open here that its coordinator does not know";

/// See the module. Without producers it has no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    by_id: HashMap<i64, Producer>,
    open: OpenTransactions,
}

/// What is known of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// Number of `batches` in use.
    count: u8,
    /// Wall clock of its last append, as far as that is known.
    last_append_ms: i64,
    /// The last end of a transaction of it.
    marker: Option<Box<LastMarker>>,
    /// Oldest first.
    batches: [Remembered; BATCHES_MAX],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Remembered {
    base_sequence: i32,
    last_offset_delta: i32,
    base_offset: i64,
    timestamp_ms: i64,
    is_transactional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LastMarker {
    epoch: i16,
    coordinator_epoch: i32,
    offset: i64,
    timestamp_ms: i64,
    flags: u16,
}

/// What a batch's sequence says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sequence {
    /// Append it.
    New,
    /// It is in the log already: answer as it was answered then.
    Duplicate {
        /// Its offset.
        base_offset: i64,
        /// Its largest timestamp; of a LogAppendTime topic, the time of the append.
        timestamp_ms: i64,
    },
}

/// How the batches of a producer begin of which nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    /// With any sequence: it may have been forgotten.
    Anywhere,
    /// With sequence 0: transaction version 2.
    AtZero,
}

/// Where a batch that would be new stands to the transactions of its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// It may be appended: it is of no transaction, or of one that is let in.
    Fits,
    /// It is of a transaction that is not let in.
    Outside,
}

/// A transaction that a marker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) first_offset: i64,
    pub(crate) outcome: Outcome,
}

/// What compaction keeps of a producer, even if nothing is left in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastOfProducer {
    /// The last offset of its last batch, if one is remembered.
    pub(crate) last_offset: Option<i64>,
    /// Its newest epoch: without a batch, a marker of that one stays.
    pub(crate) epoch: i16,
}

impl Producers {
    /// Decides on a batch about to be appended. One without a producer id is always new.
    pub(crate) fn check(&self, info: &BatchInfo, membership: Membership, begins: Begins) -> Result<Sequence, LogError> {
        if !info.has_producer_id() {
            return Ok(Sequence::New);
        }
        let known = self.by_id.get(&info.producer_id);
        if let Some(known) = known.filter(|known| info.producer_epoch <= known.epoch) {
            if info.producer_epoch < known.epoch {
                return Err(LogError::InvalidProducerEpoch);
            }
            if let Some(same) = known.find(info, begins) {
                let Remembered { base_offset, timestamp_ms, .. } = *same;
                return Ok(Sequence::Duplicate { base_offset, timestamp_ms });
            }
        }
        if membership == Membership::Outside {
            return Err(LogError::InvalidTxnState("no transaction of the producer is open in the partition"));
        }
        if !info.is_transactional() && self.open.of(info.producer_id).is_some() {
            return Err(LogError::InvalidTxnState(
                "the producer has a transaction open, which the batch is not part of",
            ));
        }
        // an end is everywhere before the next transaction begins: what is open still is of one that nobody knows, whose record
        // was lost after its batch had come here, and the next one's end must not be taken for its own
        let is_of_next = known.is_some_and(|known| info.producer_epoch > known.epoch);
        if info.is_transactional() && is_of_next && self.open.of(info.producer_id).is_some() {
            return Err(LogError::ConcurrentTransactions(UNKNOWN_BEFORE));
        }
        if info.base_sequence < 0 {
            return Ok(Sequence::New); // a coordinator writes it, in its own order
        }
        match known {
            None if begins == Begins::AtZero && info.base_sequence != 0 => Err(out_of_order(info, -1)),
            None => Ok(Sequence::New),
            Some(known) => known.check_sequence(info, begins).map(|()| Sequence::New),
        }
    }

    /// Decides on a marker about to be appended.
    pub(crate) fn check_marker(&self, marker: &Marker) -> Result<(), LogError> {
        let Some(known) = self.by_id.get(&marker.producer_id) else { return Ok(()) };
        let goes_up = marker.producer_epoch > known.epoch;
        let repeats = marker.producer_epoch == known.epoch
            && (marker.transaction_version < 2
                || marker.producer_epoch == LAST_EPOCH
                || self.open.of(marker.producer_id).is_none());
        if !goes_up && !repeats {
            return Err(LogError::InvalidProducerEpoch);
        }
        match known.coordinator_epoch() {
            known if marker.coordinator_epoch < known => {
                Err(LogError::TransactionCoordinatorFenced { epoch: marker.coordinator_epoch, known })
            }
            _ if self.is_commit_of_another(marker, known) => Err(LogError::ConcurrentTransactions(UNKNOWN_BEFORE)),
            _ => Ok(()),
        }
    }

    /// Whether a commit would end a transaction before its own, which is open still: it is nobody's, as in [`Self::check`], and
    /// must not count. An abort may end both: nothing of its own is here. In Kafka, where no batch is before the record that
    /// lets its partition in, there is none such, and any newer marker ends what is open. A commit by version 0 of the very next
    /// epoch is taken for one of version 2 whose record was written when records did not say so: who goes back to an old client
    /// right after such a loss, and commits without having written here, commits what was lost.
    fn is_commit_of_another(&self, marker: &Marker, known: &Producer) -> bool {
        let is_of_next = known.epoch.checked_add(1) == Some(marker.producer_epoch);
        // below version 2 a commit has the transaction's epoch; a record of then does not say by which version it ends
        let is_own = is_of_next || (marker.transaction_version < 2 && marker.producer_epoch == known.epoch);
        marker.outcome == Outcome::Commit && !is_own && self.open.of(marker.producer_id).is_some()
    }

    /// Whether a marker is the last one of its producer.
    pub(crate) fn has_marker(&self, marker: &Marker) -> bool {
        let Some(known) = self.by_id.get(&marker.producer_id) else { return false };
        let is_same = |last: &LastMarker| {
            let outcome = if last.flags & COMMITS != 0 { Outcome::Commit } else { Outcome::Abort };
            last.epoch == marker.producer_epoch && outcome == marker.outcome
        };
        known.marker.as_deref().is_some_and(is_same)
    }

    /// Takes note of a batch that is in the log, in the order of offsets. `append_ms` is the wall clock of its append,
    /// or where that is not known any more, its timestamp. Answers the transaction that it ended.
    pub(crate) fn note(&mut self, batch: ProducerBatch, append_ms: i64) -> Option<Ended> {
        let (producer_id, flags) = (batch.producer_id.get(), batch.flags.get());
        self.note_batch(batch, append_ms);
        if flags & MARKER != 0 {
            let outcome = if flags & COMMITS != 0 { Outcome::Commit } else { Outcome::Abort };
            return self.open.end(producer_id).map(|first_offset| Ended { first_offset, outcome });
        }
        if flags & TRANSACTIONAL != 0 {
            let base_offset = batch.base_offset.get();
            let open = Open { producer_id, started_ms: append_ms, last_batch_at: base_offset, confirmed: false };
            self.open.begin(base_offset, open);
        }
        None
    }

    /// The same without a look at what is open.
    fn note_batch(&mut self, batch: ProducerBatch, append_ms: i64) {
        let epoch = batch.producer_epoch.get();
        let producer = self.by_id.entry(batch.producer_id.get()).or_insert(Producer {
            epoch,
            count: 0,
            last_append_ms: append_ms,
            marker: None,
            batches: Default::default(),
        });
        if producer.epoch != epoch {
            (producer.epoch, producer.count, producer.batches) = (epoch, 0, Default::default());
        }
        producer.last_append_ms = producer.last_append_ms.max(append_ms);
        let flags = batch.flags.get();
        if flags & MARKER != 0 {
            producer.marker = Some(Box::new(LastMarker {
                epoch,
                coordinator_epoch: batch.coordinator_epoch.get(),
                offset: batch.base_offset.get(),
                timestamp_ms: batch.timestamp_ms.get(),
                flags,
            }));
        } else if batch.base_sequence.get() >= 0 {
            if let Some(aborted_below) = producer.aborted_below().filter(|_| batch.base_sequence.get() == 0) {
                producer.forget_below(aborted_below); // it begins anew
            }
            producer.push(Remembered {
                base_sequence: batch.base_sequence.get(),
                last_offset_delta: batch.last_offset_delta.get(),
                base_offset: batch.base_offset.get(),
                timestamp_ms: batch.timestamp_ms.get(),
                is_transactional: flags & TRANSACTIONAL != 0,
            });
        }
    }

    /// What is remembered, as it was stored: batches in the order of offsets, and the transactions that are open.
    pub(crate) fn restore(batches: &[ProducerBatch], open: &[OpenEntry]) -> Self {
        let mut restored = Self::default();
        batches.iter().for_each(|batch| restored.note_batch(*batch, batch.timestamp_ms.get()));
        open.iter().for_each(|open| restored.restore_open(open));
        restored
    }

    fn restore_open(&mut self, open: &OpenEntry) {
        let (producer_id, epoch) = (open.producer_id.get(), open.producer_epoch.get());
        let producer = self.by_id.entry(producer_id).or_insert(Producer {
            epoch,
            count: 0,
            last_append_ms: open.started_ms.get(),
            marker: None,
            batches: Default::default(),
        });
        if producer.epoch < epoch {
            (producer.epoch, producer.count, producer.batches) = (epoch, 0, Default::default());
        }
        let confirmed = open.flags.get() & CONFIRMED != 0;
        let first_offset = open.first_offset.get();
        let started_ms = open.started_ms.get();
        // later ones may be in segments
        self.open.begin(first_offset, Open { producer_id, started_ms, last_batch_at: first_offset, confirmed });
    }

    /// Takes note of all that was noted elsewhere of what comes next in the log.
    pub(crate) fn absorb(&mut self, later: &Producers) {
        for batch in later.batches() {
            let producer = &later.by_id[&batch.producer_id.get()];
            self.note_batch(batch, producer.last_append_ms);
            if batch.flags.get() & MARKER != 0 {
                self.open.end(batch.producer_id.get());
            }
        }
        for (first_offset, open) in later.open.iter() {
            let epoch = later.by_id[&open.producer_id].epoch;
            let producer = self.by_id.entry(open.producer_id).or_insert_with(|| Producer {
                epoch,
                count: 0,
                last_append_ms: open.started_ms,
                marker: None,
                batches: Default::default(),
            });
            if producer.epoch != epoch {
                (producer.epoch, producer.count, producer.batches) = (epoch, 0, Default::default());
            }
            self.open.begin(first_offset, *open);
        }
    }

    /// Forgets producers that appended nothing since `older_than_ms`, unless they have a transaction open; returns how many.
    pub(crate) fn expire(&mut self, older_than_ms: i64) -> usize {
        let before = self.by_id.len();
        let open = &self.open;
        self.by_id.retain(|id, producer| producer.last_append_ms >= older_than_ms || open.of(*id).is_some());
        let expired = before - self.by_id.len();
        if self.by_id.is_empty() {
            self.by_id = HashMap::new();
        } else if expired > self.by_id.len() {
            self.by_id.shrink_to_fit();
        }
        expired
    }

    /// All batches that are remembered, in the order of offsets: with the open transactions they lead to the same state.
    pub(crate) fn batches(&self) -> Vec<ProducerBatch> {
        let of = |(&id, producer): (&i64, &'_ Producer)| {
            let epoch = producer.epoch;
            let marker = producer.marker.as_ref().map(|marker| marker.to_stored(id));
            let batches = producer.remembered().iter().map(|batch| batch.to_stored(id, epoch));
            batches.chain(marker).collect::<Vec<_>>()
        };
        let mut batches: Vec<ProducerBatch> = self.by_id.iter().flat_map(of).collect();
        batches.sort_unstable_by_key(|batch| batch.base_offset.get());
        batches
    }

    /// The transactions that are open, as they are stored.
    pub(crate) fn open_entries(&self) -> Vec<OpenEntry> {
        let of = |(first_offset, open): (i64, &Open)| {
            let producer = self.by_id.get(&open.producer_id);
            OpenEntry {
                producer_id: open.producer_id.into(),
                producer_epoch: producer.map_or(-1, |producer| producer.epoch).into(),
                flags: if open.confirmed { CONFIRMED } else { 0 }.into(),
                coordinator_epoch: producer.map_or(-1, Producer::coordinator_epoch).into(),
                first_offset: first_offset.into(),
                started_ms: open.started_ms.into(),
            }
        };
        self.open.iter().map(of).collect()
    }

    /// The transactions that are open.
    pub(crate) fn open(&self) -> &OpenTransactions {
        &self.open
    }

    /// Whether a producer has a transaction open in an epoch.
    pub(crate) fn open_in(&self, producer_id: i64, producer_epoch: i16) -> Option<&Open> {
        let (_, open) = self.open.of(producer_id)?;
        self.by_id.get(&producer_id).is_some_and(|producer| producer.epoch == producer_epoch).then_some(open)
    }

    /// A producer's coordinator has its open transaction on stable storage.
    pub(crate) fn confirm(&mut self, producer_id: i64) {
        self.open.confirm(producer_id);
    }

    /// Whether coordinators have the open transactions on stable storage is not known any more.
    pub(crate) fn doubt_all(&mut self) {
        self.open.doubt_all();
    }

    /// Whether an epoch is older than one that was seen.
    pub(crate) fn is_fenced(&self, producer_id: i64, producer_epoch: i16) -> bool {
        self.by_id.get(&producer_id).is_some_and(|known| producer_epoch < known.epoch)
    }

    /// Every producer, by id.
    pub(crate) fn active(&self) -> Vec<ActiveProducer> {
        let of = |(&producer_id, producer): (&i64, &Producer)| ActiveProducer {
            producer_id,
            producer_epoch: producer.epoch,
            last_sequence: producer.last().map_or(-1, Remembered::last_sequence),
            last_timestamp_ms: producer.last_timestamp_ms(),
            coordinator_epoch: producer.coordinator_epoch(),
            current_transaction_first_offset: self.open.of(producer_id).map_or(-1, |(first_offset, _)| first_offset),
        };
        let mut active: Vec<ActiveProducer> = self.by_id.iter().map(of).collect();
        active.sort_unstable_by_key(|producer| producer.producer_id);
        active
    }

    /// What compaction keeps of every producer.
    pub(crate) fn last_of_each(&self) -> HashMap<i64, LastOfProducer> {
        let of = |(&id, producer): (&i64, &Producer)| {
            let last_offset = producer.last().map(|last| last.base_offset + i64::from(last.last_offset_delta));
            (id, LastOfProducer { last_offset, epoch: producer.epoch })
        };
        self.by_id.iter().map(of).collect()
    }

    /// Whether no producer is known.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cold]
fn out_of_order(info: &BatchInfo, last_sequence: i32) -> LogError {
    LogError::OutOfOrderSequence(format!(
        "producer {} sent sequence {} after {last_sequence}",
        info.producer_id, info.base_sequence
    ))
}

impl Producer {
    fn remembered(&self) -> &[Remembered] {
        &self.batches[..usize::from(self.count)]
    }

    fn last(&self) -> Option<&Remembered> {
        self.remembered().last()
    }

    /// What a batch may repeat or follow. A transaction that was nobody's was aborted in its own epoch, with batches that were
    /// never acknowledged: its producer sends them again, and they are new then. Where each transaction has an epoch of its
    /// own, so are all that lie before such a marker.
    fn in_force(&self, begins: Begins) -> &[Remembered] {
        let aborted_below = self.aborted_below().filter(|_| begins == Begins::AtZero).unwrap_or(0);
        let all = self.remembered();
        &all[all.partition_point(|batch| batch.base_offset < aborted_below)..]
    }

    /// Where its last transaction was aborted, if that left it its epoch.
    fn aborted_below(&self) -> Option<i64> {
        let is_abort = |marker: &&LastMarker| marker.epoch == self.epoch && marker.flags & COMMITS == 0;
        self.marker.as_deref().filter(is_abort).map(|marker| marker.offset)
    }

    fn find(&self, info: &BatchInfo, begins: Begins) -> Option<&Remembered> {
        let same = |batch: &&Remembered| {
            batch.base_sequence == info.base_sequence && batch.last_offset_delta == info.last_offset_delta
        };
        self.in_force(begins).iter().find(same)
    }

    /// Whether the sequence of a batch that is of this epoch, or of a newer one, is the next.
    fn check_sequence(&self, info: &BatchInfo, begins: Begins) -> Result<(), LogError> {
        if info.producer_epoch > self.epoch {
            return match info.base_sequence {
                0 => Ok(()),
                other => Err(LogError::OutOfOrderSequence(format!(
                    "producer {} begins epoch {} with sequence {other}, not 0 (its epoch was {})",
                    info.producer_id, info.producer_epoch, self.epoch
                ))),
            };
        }
        let follows = |last: Option<&Remembered>| {
            info.base_sequence == last.map_or(0, |last| increment_sequence(last.last_sequence(), 1))
        };
        let in_force = self.in_force(begins);
        // the level may have gone up since: behind an abort of its own, a producer goes on where it was
        if follows(in_force.last()) || (in_force.is_empty() && follows(self.last())) {
            return Ok(());
        }
        Err(out_of_order(info, in_force.last().map_or(-1, Remembered::last_sequence)))
    }

    fn coordinator_epoch(&self) -> i32 {
        self.marker.as_ref().map_or(-1, |marker| marker.coordinator_epoch)
    }

    /// Of its last batch or marker, whichever came later.
    fn last_timestamp_ms(&self) -> i64 {
        let marker = self.marker.as_ref().map(|marker| (marker.offset, marker.timestamp_ms));
        let batch = self.last().map(|batch| (batch.base_offset, batch.timestamp_ms));
        marker.max(batch).map_or(-1, |(_, timestamp_ms)| timestamp_ms)
    }

    fn forget_below(&mut self, offset: i64) {
        let gone = self.remembered().partition_point(|batch| batch.base_offset < offset);
        self.batches.rotate_left(gone);
        self.count -= u8::try_from(gone).expect("a few batches");
    }

    fn push(&mut self, batch: Remembered) {
        if usize::from(self.count) == BATCHES_MAX {
            self.batches.rotate_left(1);
            self.count -= 1;
        }
        self.batches[usize::from(self.count)] = batch;
        self.count += 1;
    }
}

impl Remembered {
    fn last_sequence(&self) -> i32 {
        increment_sequence(self.base_sequence, self.last_offset_delta)
    }

    fn to_stored(self, producer_id: i64, producer_epoch: i16) -> ProducerBatch {
        ProducerBatch {
            producer_id: producer_id.into(),
            producer_epoch: producer_epoch.into(),
            flags: if self.is_transactional { TRANSACTIONAL } else { 0 }.into(),
            base_sequence: self.base_sequence.into(),
            last_offset_delta: self.last_offset_delta.into(),
            coordinator_epoch: 0.into(),
            base_offset: self.base_offset.into(),
            timestamp_ms: self.timestamp_ms.into(),
        }
    }
}

impl LastMarker {
    fn to_stored(self, producer_id: i64) -> ProducerBatch {
        ProducerBatch {
            producer_id: producer_id.into(),
            producer_epoch: self.epoch.into(),
            flags: self.flags.into(),
            base_sequence: (-1).into(),
            last_offset_delta: 0.into(),
            coordinator_epoch: self.coordinator_epoch.into(),
            base_offset: self.offset.into(),
            timestamp_ms: self.timestamp_ms.into(),
        }
    }
}

#[cfg(test)]
mod tests;
