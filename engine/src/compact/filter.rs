//! One batch at a time: which of its keys go into the map, which of its records stay, and what it becomes.
//!
//! A batch may be large when decompressed, and a shard must not be kept busy for long. So all of it works in steps of
//! bounded work, paid from the caller's `budget`, between which the caller does what it likes: [`Mapping`] enters keys;
//! [`Look`] decides record by record and ends in a [`Verdict`]; only where some records go and others stay, [`Rebuild`]
//! reads the batch again and builds a new one.

use std::collections::HashMap;

use super::{OffsetMap, Part};
use crate::{
    batch::{BatchBuilder, BatchError, BatchInfo, Codec, RecordReader, RecordRef},
    partition::producers::LastOfProducer,
};

/// What a record costs beside its bytes, in bytes: its key is hashed and looked up in memory that is not cached.
const RECORD_COST: usize = 128;

/// How much more work a byte of a record is to read and to write than one that is not compressed: roughly, from the
/// codecs' usual speeds.
fn reading_factor(info: &BatchInfo) -> usize {
    match info.codec() {
        Ok(Codec::Gzip) => 4,
        Ok(Codec::Zstd) => 2,
        _ => 1,
    }
}

fn writing_factor(info: &BatchInfo) -> usize {
    match info.codec() {
        Ok(Codec::Gzip) => 24,
        Ok(Codec::Zstd) => 6,
        Ok(Codec::Snappy | Codec::Lz4) => 3,
        _ => 1,
    }
}

/// Enters the keys of a batch.
pub(crate) struct Mapping<'a> {
    info: BatchInfo,
    reader: RecordReader<'a>,
}

/// How far a [`Mapping`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// There is more to do.
    More,
    /// All keys are entered.
    All,
    /// There is no room for the key of the record with this offset.
    Full(i64),
}

impl<'a> Mapping<'a> {
    /// Starts on a batch whose checksum is good.
    pub(crate) fn new(batch: &'a [u8], info: &BatchInfo) -> Result<Self, BatchError> {
        Ok(Self { info: *info, reader: RecordReader::new(batch)? })
    }

    /// Enters keys of records from `first_dirty` on until the budget is used up.
    pub(crate) fn step(
        &mut self,
        map: &mut OffsetMap,
        first_dirty: i64,
        budget: &mut usize,
    ) -> Result<Mapped, BatchError> {
        if self.info.is_control() {
            return Ok(Mapped::All);
        }
        let factor = reading_factor(&self.info);
        while *budget > 0 {
            let Some(record) = self.reader.next_record()? else {
                return Ok(Mapped::All);
            };
            *budget = budget.saturating_sub(record.size * factor + RECORD_COST);
            if record.offset >= first_dirty
                && let Some(key) = record.key
                && !map.put(key, record.offset)
            {
                return Ok(Mapped::Full(record.offset));
            }
        }
        Ok(Mapped::More)
    }
}

/// What a round keeps.
pub(crate) struct Filter {
    /// Newest offsets of the keys of the dirty part, up to `mapped_end`.
    pub(crate) map: OffsetMap,
    /// Records from this offset on are not decided on in this round: they stay.
    pub(crate) mapped_end: i64,
    /// One past the last offset of what may be rewritten: the batch that ends here stays, even empty.
    pub(crate) round_end: i64,
    /// Of every producer that is remembered: its last batch stays, even empty, or if none is known, the markers of its epoch.
    pub(crate) last_of_producers: HashMap<i64, LastOfProducer>,
    /// When the round began.
    pub(crate) now_ms: i64,
    /// `delete.retention.ms`
    pub(crate) delete_retention_ms: i64,
}

impl Filter {
    fn keeps(&self, info: &BatchInfo, record: &RecordRef<'_>) -> bool {
        if record.offset >= self.mapped_end {
            return true;
        }
        let Some(key) = record.key else { return false };
        let is_newest = self.map.get(key).is_none_or(|newest| record.offset >= newest);
        let is_due = info.delete_horizon_ms().is_some_and(|horizon_ms| horizon_ms <= self.now_ms);
        is_newest && (record.value.is_some() || !is_due)
    }

    /// Whether a batch stays when no record in it does.
    fn keeps_empty(&self, info: &BatchInfo) -> bool {
        let last = info.last_offset();
        let is_producers_last = |known: &LastOfProducer| match known.last_offset {
            Some(offset) => offset == last,
            None => info.is_control() && info.producer_epoch == known.epoch,
        };
        let producer = self.last_of_producers.get(&info.producer_id).filter(|_| info.has_producer_id());
        last + 1 == self.round_end || producer.is_some_and(is_producers_last)
    }
}

/// What becomes of a batch.
#[derive(Debug)]
pub(crate) enum Verdict<'a> {
    /// It stays as it is.
    Copy,
    /// It goes.
    Drop,
    /// This takes its place.
    Empty(Vec<u8>),
    /// It is built anew from some of its records, or with a delete horizon.
    Rebuild(Box<Rebuild<'a>>),
}

/// Decides on the records of a batch.
pub(crate) struct Look<'a> {
    batch: &'a [u8],
    info: BatchInfo,
    reader: RecordReader<'a>,
    /// Of each record.
    keep: Vec<bool>,
    kept: usize,
    /// Whether something is kept that counts as clean from now on, and goes later: a tombstone, or a marker of nothing.
    goes_later: bool,
    part: Part,
}

impl<'a> Look<'a> {
    /// Starts on a batch whose checksum is good, and whose part in transactions is known.
    pub(crate) fn new(batch: &'a [u8], info: &BatchInfo, part: Part) -> Result<Self, BatchError> {
        let reader = RecordReader::new(batch)?;
        Ok(Self { batch, info: *info, reader, keep: Vec::new(), kept: 0, goes_later: false, part })
    }

    /// Looks at records until the budget is used up; whether that was all.
    pub(crate) fn step(&mut self, filter: &Filter, budget: &mut usize) -> Result<bool, BatchError> {
        let factor = reading_factor(&self.info);
        while *budget > 0 {
            let Some(record) = self.reader.next_record()? else {
                return Ok(true);
            };
            *budget = budget.saturating_sub(record.size * factor + RECORD_COST);
            let is_due = || self.info.delete_horizon_ms().is_some_and(|horizon_ms| horizon_ms <= filter.now_ms);
            let (keeps, goes_later) = match self.part {
                Part::Aborted => (false, false),
                Part::Ends(_) => (true, false),
                Part::EndsNothing => (!is_due(), true),
                Part::Counts => {
                    let keeps = filter.keeps(&self.info, &record);
                    (keeps, record.value.is_none() && record.offset < filter.mapped_end)
                }
            };
            self.goes_later |= keeps && goes_later;
            self.kept += usize::from(keeps);
            self.keep.push(keeps);
        }
        Ok(false)
    }

    /// What becomes of the batch, once all of it was looked at.
    pub(crate) fn verdict(self, filter: &Filter) -> Result<Verdict<'a>, BatchError> {
        if self.kept == 0 {
            return match filter.keeps_empty(&self.info) {
                false => Ok(Verdict::Drop),
                true if self.keep.is_empty() => Ok(Verdict::Copy),
                true => emptied(&self.info).map(Verdict::Empty),
            };
        }
        let horizon_ms = (self.goes_later && self.info.delete_horizon_ms().is_none())
            .then(|| filter.now_ms.saturating_add(filter.delete_retention_ms));
        if self.kept == self.keep.len() && horizon_ms.is_none() {
            return Ok(Verdict::Copy);
        }
        let mut builder = BatchBuilder::like(&self.info)?;
        if let Some(horizon_ms) = horizon_ms {
            builder = builder.delete_horizon(horizon_ms);
        }
        let reader = RecordReader::new(self.batch)?;
        Ok(Verdict::Rebuild(Box::new(Rebuild { info: self.info, reader, keep: self.keep, at: 0, builder })))
    }
}

/// A batch that keeps its place, producer and times, but no record and so no delete horizon.
fn emptied(info: &BatchInfo) -> Result<Vec<u8>, BatchError> {
    Ok(BatchBuilder::like(&info.without_delete_horizon())?.finish())
}

/// A batch that is being built from some of the records of another.
pub(crate) struct Rebuild<'a> {
    info: BatchInfo,
    reader: RecordReader<'a>,
    keep: Vec<bool>,
    at: usize,
    builder: BatchBuilder,
}

impl Rebuild<'_> {
    /// Takes over records until the budget is used up; whether that was all.
    pub(crate) fn step(&mut self, budget: &mut usize) -> Result<bool, BatchError> {
        while *budget > 0 {
            let Some(record) = self.reader.next_record()? else {
                return Ok(true);
            };
            let mut factor = reading_factor(&self.info);
            if self.keep[self.at] {
                factor += writing_factor(&self.info);
                self.builder.push_ref(&record);
            }
            *budget = budget.saturating_sub(record.size * factor + RECORD_COST);
            self.at += 1;
        }
        Ok(false)
    }

    /// The new batch.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.builder.finish()
    }
}

impl std::fmt::Debug for Rebuild<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rebuild({:?})", self.builder)
    }
}
