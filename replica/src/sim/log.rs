//! One replica's log as the channel sees an engine: records with epochs, what of them is sealed, written and flushed, the list of
//! epochs, and what a crash leaves.

use std::collections::BTreeSet;

use bytes::Bytes;
use millrace_engine::config::Durability;

use crate::channel::event::{LogPosition, ReadFailure, ReadRun};

/// A record: which epoch gave it its offset, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) epoch: i32,
    pub(super) id: u64,
    pub(super) kind: Kind,
}

/// What a record is to transactions, each of which has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Data of one.
    Of(u64),
    /// Its end, and whether it committed.
    Marker(u64, bool),
    /// In the log of coordinators: it begins.
    Begun(u64),
    /// A partition is in it.
    Added(u64, i32),
    /// It commits, or aborts.
    Decided(u64, bool),
    /// All markers are where they belong.
    Complete(u64),
}

impl Kind {
    fn to_numbers(self) -> [u64; 3] {
        match self {
            Self::Plain => [0, 0, 0],
            Self::Of(txn) => [1, txn, 0],
            Self::Marker(txn, is_commit) => [2, txn, is_commit.into()],
            Self::Begun(txn) => [3, txn, 0],
            Self::Added(txn, partition) => [4, txn, u64::from(partition.unsigned_abs())],
            Self::Decided(txn, is_commit) => [5, txn, is_commit.into()],
            Self::Complete(txn) => [6, txn, 0],
        }
    }

    fn from_numbers([kind, txn, more]: [u64; 3]) -> Self {
        match kind {
            0 => Self::Plain,
            1 => Self::Of(txn),
            2 => Self::Marker(txn, more == 1),
            3 => Self::Begun(txn),
            4 => Self::Added(txn, i32::try_from(more).expect("a partition")),
            5 => Self::Decided(txn, more == 1),
            _ => Self::Complete(txn),
        }
    }
}

const RECORD_BYTES: usize = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EpochEntry {
    epoch: i32,
    start: i64,
    /// Durable by itself, without a record.
    is_noted: bool,
}

/// What the engine does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acting {
    Nothing,
    Leads(i32),
    Follows(i32),
}

#[derive(Clone, Debug)]
pub(super) struct ModelLog {
    pub(super) durability: Durability,
    pub(super) acting: Acting,
    pub(super) log_start: i64,
    records: Vec<Record>,
    epochs: Vec<EpochEntry>,
    pub(super) sealed: i64,
    pub(super) written: i64,
    pub(super) durable: i64,
    pub(super) high_watermark: i64,
    /// A lower bound of it that a crash leaves.
    kept_high_watermark: i64,
    /// Cuts so far: what was on its way to the disk before one says nothing after it.
    pub(super) cuts: u64,
    /// Transactions whose markers were trimmed: a trim forgets no producer.
    ended: BTreeSet<u64>,
}

impl ModelLog {
    /// One that begins at that time: what is still written of one that was there before is not taken for its own.
    pub(super) fn new(durability: Durability, now_ms: u64) -> Self {
        Self {
            durability,
            acting: Acting::Nothing,
            log_start: 0,
            records: Vec::new(),
            epochs: Vec::new(),
            sealed: 0,
            written: 0,
            durable: 0,
            high_watermark: 0,
            kept_high_watermark: 0,
            cuts: now_ms << 20,
            ended: BTreeSet::new(),
        }
    }

    pub(super) fn end(&self) -> i64 {
        self.log_start + self.records.len() as i64
    }

    pub(super) fn record(&self, offset: i64) -> Option<Record> {
        let at = usize::try_from(offset - self.log_start).ok()?;
        self.records.get(at).copied()
    }

    /// Whether a transaction has data here that no marker ended, and whether it has a marker.
    pub(super) fn has(&self, txn: u64) -> (bool, bool) {
        let has = |wanted: &dyn Fn(Kind) -> bool| self.records.iter().any(|record| wanted(record.kind));
        let has_ended = self.ended.contains(&txn) || has(&|kind| matches!(kind, Kind::Marker(of, _) if of == txn));
        (!has_ended && has(&|kind| kind == Kind::Of(txn)), has_ended)
    }

    pub(super) fn position(&self) -> LogPosition {
        let last = self.epochs.last();
        LogPosition {
            log_start: self.log_start,
            high_watermark: self.high_watermark,
            written: self.written,
            durable: self.durable,
            end: self.end(),
            last_epoch: last.map_or(-1, |entry| entry.epoch),
            epoch_start: last.map_or(self.log_start, |entry| entry.start),
            durability: self.durability,
        }
    }

    /// Up to where a crash of the process leaves it, or one of the machine if that is what its topic asks for.
    pub(super) fn safe(&self) -> i64 {
        self.position().confirmed()
    }

    pub(super) fn end_of_epoch(&self, epoch: i32) -> Option<(i32, i64)> {
        let first = self.epochs.first()?;
        if epoch < first.epoch {
            return Some((epoch, first.start));
        }
        let at = self.epochs.iter().rposition(|entry| entry.epoch <= epoch)?;
        let end = self.epochs.get(at + 1).map_or(self.end(), |next| next.start);
        Some((self.epochs[at].epoch, end))
    }

    /// Notes an epoch durably, with all before it.
    pub(super) fn note(&mut self, epoch: i32) {
        if self.epochs.last().is_some_and(|last| last.epoch >= epoch) {
            return;
        }
        self.epochs.push(EpochEntry { epoch, start: self.end(), is_noted: true });
    }

    pub(super) fn append(&mut self, record: Record) -> i64 {
        let offset = self.end();
        if self.epochs.last().is_none_or(|last| last.epoch < record.epoch) {
            self.epochs.push(EpochEntry { epoch: record.epoch, start: offset, is_noted: false });
        }
        self.records.push(record);
        offset
    }

    /// Appends what a leader sent; none if it does not begin at the end, unless that is not looked at.
    pub(super) fn append_run(&mut self, base: i64, end: i64, bytes: &Bytes, is_strict: bool) -> Option<()> {
        if (is_strict && base != self.end()) || bytes.len() != RECORD_BYTES * usize::try_from(end - base).ok()? {
            return None;
        }
        for record in bytes.chunks_exact(RECORD_BYTES) {
            let offset = i64::from_le_bytes(record[..8].try_into().unwrap());
            assert!(!is_strict || offset == self.end(), "a leader sends the records that it says");
            let epoch = i32::from_le_bytes(record[8..12].try_into().unwrap());
            let id = u64::from_le_bytes(record[12..20].try_into().unwrap());
            let txn = u64::from_le_bytes(record[20..28].try_into().unwrap());
            let kind = Kind::from_numbers([record[28].into(), txn, record[29].into()]);
            self.append(Record { epoch, id, kind });
        }
        Some(())
    }

    pub(super) fn bytes(&self, from: i64, end: i64) -> Bytes {
        let mut bytes = Vec::new();
        for offset in from..end {
            let record = self.record(offset).expect("within the log");
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&record.epoch.to_le_bytes());
            bytes.extend_from_slice(&record.id.to_le_bytes());
            let [kind, txn, more] = record.kind.to_numbers();
            bytes.extend_from_slice(&txn.to_le_bytes());
            bytes.extend([kind, more].map(|number| u8::try_from(number).expect("a small number")));
        }
        bytes.into()
    }

    pub(super) fn read(&self, from: i64, records_max: i64) -> Result<ReadRun, ReadFailure> {
        if from < self.log_start {
            return Err(ReadFailure::Trimmed);
        }
        let end = (from + records_max).min(self.sealed).max(from);
        Ok(ReadRun { end, bytes: self.bytes(from, end) })
    }

    /// Cuts the end, durably.
    pub(super) fn cut(&mut self, end: i64) {
        let end = end.clamp(self.log_start, self.end());
        self.records.truncate(usize::try_from(end - self.log_start).unwrap());
        self.epochs.retain(|entry| entry.start < end);
        self.settle(end);
        self.high_watermark = self.high_watermark.min(end);
        self.kept_high_watermark = self.kept_high_watermark.min(end);
    }

    fn settle(&mut self, end: i64) {
        (self.sealed, self.written, self.durable) = (end, end, end);
        self.cuts += 1;
    }

    pub(super) fn begin_anew(&mut self, log_start: i64) {
        self.records.clear();
        self.epochs.clear();
        self.ended.clear();
        self.log_start = log_start;
        (self.high_watermark, self.kept_high_watermark) = (log_start, log_start);
        self.settle(log_start);
    }

    /// All that was appended is written.
    pub(super) fn write_all(&mut self) {
        (self.sealed, self.written) = (self.end(), self.end());
    }

    pub(super) fn flush_all(&mut self) {
        self.write_all();
        self.durable = self.end();
    }

    pub(super) fn trim(&mut self, log_start: i64) {
        let log_start = log_start.min(self.high_watermark).min(self.safe());
        if log_start <= self.log_start {
            return;
        }
        let trimmed = self.records.drain(..usize::try_from(log_start - self.log_start).unwrap());
        self.ended.extend(trimmed.filter_map(|record| match record.kind {
            Kind::Marker(txn, _) => Some(txn),
            _ => None,
        }));
        self.log_start = log_start;
        let first = self.epochs.iter().rposition(|entry| entry.start <= log_start);
        if let Some(first) = first {
            self.epochs.drain(..first);
            self.epochs[0].start = self.epochs[0].start.max(log_start);
        }
    }

    pub(super) fn keep_high_watermark(&mut self) {
        self.kept_high_watermark = self.high_watermark;
    }

    /// What a crash leaves: what was written if only the process ended, what was flushed if the machine did.
    pub(super) fn crash(&mut self, left: i64) {
        self.records.truncate(usize::try_from(left.max(self.log_start) - self.log_start).unwrap());
        self.epochs.retain(|entry| entry.start < left || (entry.is_noted && entry.start <= left));
        self.settle(self.end());
        self.high_watermark = self.kept_high_watermark.min(self.end()).max(self.log_start);
        self.acting = Acting::Nothing;
    }
}
