//! What a shard remembers of its partitions beside their bytes: segments, the active segment's index, the log start,
//! producers. Pure: records and the state that they lead to.
//!
//! The manifest is a journal. A record says what became durable in segment files, so a restart neither scans segments
//! nor lists folders: it applies the manifest, then replays what the shared log holds beyond it.

use std::{
    collections::{BTreeMap, HashSet},
    rc::Rc,
};

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I16, I32, I64, U16, U32},
};

use super::{
    Refused,
    epochs::LeaderEpochs,
    transactions::{AbortedEntry, COMMITS, CONFIRMED, MARKER, OPEN_MAX, OpenEntry, TRANSACTIONAL},
    unknown_kind,
};
use crate::{
    api::TopicPartition,
    batch::{self, BatchInfo, EndMarker, Outcome},
    format::{
        journal::{Payloads, RECORD_BYTES_MAX},
        segment::{IndexEntry, Segment, SegmentMeta},
    },
};

/// One batch of an idempotent producer, as duplicates are recognised by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ProducerBatch {
    /// Producer id.
    pub producer_id: I64,
    /// Producer epoch.
    pub producer_epoch: I16,
    /// Whether it is of a transaction, or ends one: [`TRANSACTIONAL`], [`MARKER`], [`COMMITS`].
    pub flags: U16,
    /// Sequence of the first record.
    pub base_sequence: I32,
    /// Offsets in the batch less one.
    pub last_offset_delta: I32,
    /// Of a marker's coordinator; zero of other batches.
    pub coordinator_epoch: I32,
    /// Offset of the first record.
    pub base_offset: I64,
    /// The batch's largest timestamp.
    pub timestamp_ms: I64,
}

/// What is remembered of a producer's batch, which is no marker.
pub(crate) fn producer_batch(info: &BatchInfo, base_offset: i64, timestamp_ms: i64) -> ProducerBatch {
    ProducerBatch {
        producer_id: info.producer_id.into(),
        producer_epoch: info.producer_epoch.into(),
        flags: if info.is_transactional() { TRANSACTIONAL } else { 0 }.into(),
        base_sequence: info.base_sequence.into(),
        last_offset_delta: info.last_offset_delta.into(),
        coordinator_epoch: 0.into(),
        base_offset: base_offset.into(),
        timestamp_ms: timestamp_ms.into(),
    }
}

/// What is remembered of a marker.
pub(crate) fn producer_marker(info: &BatchInfo, end: EndMarker, base_offset: i64, timestamp_ms: i64) -> ProducerBatch {
    let commits = if end.outcome == Outcome::Commit { COMMITS } else { 0 };
    ProducerBatch {
        flags: (TRANSACTIONAL | MARKER | commits).into(),
        coordinator_epoch: end.coordinator_epoch.into(),
        ..producer_batch(info, base_offset, timestamp_ms)
    }
}

/// What is remembered of a batch as it lies in the log, of which the bytes are needed if it is a control batch; none if no
/// producer that is remembered wrote it, or it ends no transaction although it is a control batch.
pub(crate) fn logged_producer_batch(info: &BatchInfo, batch: &[u8]) -> Option<ProducerBatch> {
    if info.producer_id < 0 {
        return None;
    }
    if !info.is_control() {
        return Some(producer_batch(info, info.base_offset, info.max_timestamp));
    }
    let end = batch::end_marker(batch).ok().flatten()?;
    Some(producer_marker(info, end, info.base_offset, info.max_timestamp))
}

/// The last group of a run that counts, by the run ends of a manifest: a run without one has not ended, unless a newer one
/// has.
pub fn run_limit(run_ends: &BTreeMap<u64, u64>, run: u64) -> u64 {
    let newest_ended = run_ends.keys().next_back().copied();
    let end = run_ends.get(&run).copied().or((newest_ended >= Some(run)).then_some(0));
    end.unwrap_or(u64::MAX)
}

/// What the manifest knows of one partition.
#[derive(Clone, Debug, Default)]
pub struct PartitionState {
    /// First offset that may be read.
    pub log_start_offset: i64,
    /// Compaction has cleaned everything below.
    pub clean_offset: i64,
    /// Segments by base offset; the last one may be active.
    pub segments: Vec<Segment>,
    /// Batches of idempotent producers, oldest first.
    pub producers: Vec<ProducerBatch>,
    /// Everything below was on stable storage and shown to consumers.
    pub high_watermark: i64,
    /// How often its end was cut off, as far as segments tell.
    pub cuts: u32,
    /// All leader epochs that are known, also of what no segment holds yet.
    pub epochs: LeaderEpochs,
    /// Transactions that are open at the end of what segments hold, by first offset.
    pub open: Vec<OpenEntry>,
}

impl PartitionState {
    /// Segments hold everything below this.
    pub fn end_offset(&self) -> i64 {
        self.segments.last().map_or(self.log_start_offset, |s| s.end_offset)
    }
}

/// A change of one partition's state.
#[derive(Clone, Debug, Default)]
pub struct Advance {
    /// See [`PartitionState::high_watermark`].
    pub high_watermark: i64,
    /// See [`PartitionState::cuts`].
    pub cuts: u32,
    /// New or changed segments, in order; known ones are replaced by base offset.
    pub segments: Vec<SegmentMeta>,
    /// New entries of the last segment's index.
    pub index: Vec<IndexEntry>,
    /// New batches of idempotent producers.
    pub producers: Vec<ProducerBatch>,
}

/// Compaction put a segment in the place of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replace {
    /// Base offsets of the segments that are gone.
    pub removed: Vec<I64>,
    /// The segments that are there instead: sealed ones.
    pub added: Vec<SegmentMeta>,
    /// Everything below is clean.
    pub clean_offset: i64,
}

/// The end of the log was cut off where segments held it.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// Where it ends now. If that is outside of the log, there is nothing left, and the log starts there.
    pub end_offset: i64,
    /// How often that has happened, with this time.
    pub cuts: u32,
    /// The segment that is the last one now, active: none if it was one that begins there.
    pub segments: Vec<SegmentMeta>,
    /// All entries of its index.
    pub index: Vec<IndexEntry>,
    /// Batches before the cut of producers whose batches behind it are gone.
    pub producers: Vec<ProducerBatch>,
}

/// Where transactions stand at the end of what segments hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transactions {
    /// Aborted ones whose markers are in the active segment, behind those that are known.
    pub aborted: Vec<AbortedEntry>,
    /// Those that are open.
    pub open: Vec<OpenEntry>,
}

/// One record.
#[derive(Clone, Debug)]
pub enum Record {
    /// Forget what was known of the partition: what follows is all there is.
    Reset {
        /// Its log start.
        log_start_offset: i64,
        /// Everything below is clean.
        clean_offset: i64,
    },
    /// The log grew.
    Advance(Advance),
    /// The log lost its head: segments below `first_segment` are gone.
    Trim {
        /// The new log start.
        log_start_offset: i64,
        /// Base offset of the first segment that stays.
        first_segment: i64,
    },
    /// Segments were compacted.
    Replace(Replace),
    /// Where recovery found the end of a former run's part of the shared log. Groups behind it were never
    /// acknowledged and must not come back when the groups before them are gone.
    RunEnd {
        /// The run.
        run: u64,
        /// Its last group; 0 for none.
        sequence: u64,
    },
    /// These are the leader epochs now.
    Epochs(LeaderEpochs),
    /// The log lost its end.
    Cut(Cut),
    /// Transactions began or ended.
    Transactions(Transactions),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RecordHeader {
    topic: [u8; 16],
    partition: I32,
    kind: u8,
    reserved: [u8; 3],
    /// Reset, Trim: log start. RunEnd: the run. Advance: high watermark. Cut: the end. Others: zero.
    log_start_offset: I64,
    /// Trim: first segment. Reset, Replace: the clean offset. RunEnd: the sequence. Advance, Cut: number of cuts.
    first_segment: I64,
    /// Advance, Replace, Cut: number of segments.
    segments: U32,
    /// Advance, Cut: number of index entries. Replace: number of base offsets of removed segments. Epochs: how many.
    /// Transactions: number of aborted ones.
    index: U32,
    /// Advance, Cut: number of producers' batches. Transactions: number of open ones.
    producers: U32,
}

/// Encodes a record of a partition.
pub fn encode(partition: TopicPartition, record: &Record) -> Vec<u8> {
    let mut header = RecordHeader {
        topic: *partition.topic.as_bytes(),
        partition: partition.partition.into(),
        kind: 0,
        reserved: [0; 3],
        log_start_offset: 0.into(),
        first_segment: 0.into(),
        segments: 0.into(),
        index: 0.into(),
        producers: 0.into(),
    };
    let count = |n: usize| U32::new(u32::try_from(n).expect("records are bounded by their page"));
    let mut parts: [&[u8]; 3] = [&[]; 3];
    match record {
        Record::Reset { log_start_offset, clean_offset } => {
            (header.log_start_offset, header.first_segment) = ((*log_start_offset).into(), (*clean_offset).into());
        }
        Record::Advance(Advance { high_watermark: first, cuts, segments, index, producers })
        | Record::Cut(Cut { end_offset: first, cuts, segments, index, producers }) => {
            header.kind = if matches!(record, Record::Cut(_)) { 6 } else { 1 };
            (header.log_start_offset, header.first_segment) = ((*first).into(), i64::from(*cuts).into());
            header.segments = count(segments.len());
            header.index = count(index.len());
            header.producers = count(producers.len());
            parts = [segments.as_bytes(), index.as_bytes(), producers.as_bytes()];
        }
        Record::Epochs(epochs) => {
            header.kind = 5;
            header.index = count(epochs.starts().len());
            parts[0] = epochs.starts().as_bytes();
        }
        Record::Transactions(Transactions { aborted, open }) => {
            header.kind = 7;
            header.index = count(aborted.len());
            header.producers = count(open.len());
            parts = [aborted.as_bytes(), open.as_bytes(), &[]];
        }
        Record::Trim { log_start_offset, first_segment } => {
            header.kind = 2;
            (header.log_start_offset, header.first_segment) = ((*log_start_offset).into(), (*first_segment).into());
        }
        Record::RunEnd { run, sequence } => {
            header.kind = 3;
            header.log_start_offset = run.cast_signed().into();
            header.first_segment = sequence.cast_signed().into();
        }
        Record::Replace(Replace { removed, added, clean_offset }) => {
            header.kind = 4;
            header.first_segment = (*clean_offset).into();
            header.segments = count(added.len());
            header.index = count(removed.len());
            parts = [added.as_bytes(), removed.as_bytes(), &[]];
        }
    }
    [&[header.as_bytes()], &parts[..]].concat().concat()
}

/// Decodes a record; `None` is one that may be skipped.
///
/// # Errors
/// For bytes that this version does not understand, or that nobody writes.
pub fn decode(bytes: &[u8]) -> Result<Option<(TopicPartition, Record)>, Refused> {
    let (header, rest) = RecordHeader::read_from_prefix(bytes).map_err(|_| Refused::Nonsense)?;
    if header.kind > 7 {
        return unknown_kind(header.kind);
    }
    let partition = TopicPartition { topic: Uuid::from_bytes(header.topic), partition: header.partition.get() };
    let record = decode_known(&header, rest).ok_or(Refused::Nonsense)?;
    // Fields that a kind has no use for are zero, and nothing is left over.
    if encode(partition, &record) != bytes || !is_plain(&record) {
        return Err(Refused::Reserved);
    }
    Ok(Some((partition, record)))
}

fn decode_known(header: &RecordHeader, rest: &[u8]) -> Option<Record> {
    let (first, second) = (header.log_start_offset.get(), header.first_segment.get());
    Some(match header.kind {
        0 => Record::Reset { log_start_offset: first, clean_offset: second },
        1 | 6 => {
            let (segments, rest) = take(rest, header.segments)?;
            let (index, rest) = take(rest, header.index)?;
            let (producers, _) = take(rest, header.producers)?;
            let cuts = u32::try_from(second).ok()?;
            match header.kind {
                1 => Record::Advance(Advance { high_watermark: first, cuts, segments, index, producers }),
                _ => Record::Cut(Cut { end_offset: first, cuts, segments, index, producers }),
            }
        }
        2 => Record::Trim { log_start_offset: first, first_segment: second },
        3 => Record::RunEnd { run: first.cast_unsigned(), sequence: second.cast_unsigned() },
        4 => {
            let (added, rest) = take(rest, header.segments)?;
            let (removed, _) = take(rest, header.index)?;
            Record::Replace(Replace { removed, added, clean_offset: second })
        }
        5 => Record::Epochs(LeaderEpochs::of(take(rest, header.index)?.0)?),
        7 => {
            let (aborted, rest) = take(rest, header.index)?;
            let (open, _) = take(rest, header.producers)?;
            Record::Transactions(Transactions { aborted, open })
        }
        _ => return None,
    })
}

/// Whether the items of a record have no bytes set that this version knows no meaning of.
fn is_plain(record: &Record) -> bool {
    let (segments, producers): (&[SegmentMeta], &[ProducerBatch]) = match record {
        Record::Advance(Advance { segments, producers, .. }) | Record::Cut(Cut { segments, producers, .. }) => {
            (segments, producers)
        }
        Record::Replace(Replace { added, .. }) => (added, &[]),
        Record::Epochs(epochs) => return epochs.starts().iter().all(|start| start.reserved.get() == 0),
        Record::Transactions(Transactions { open, .. }) => {
            return open.iter().all(|open| open.flags.get() <= CONFIRMED);
        }
        Record::Reset { .. } | Record::Trim { .. } | Record::RunEnd { .. } => (&[], &[]),
    };
    segments.iter().all(SegmentMeta::is_plain) && producers.iter().all(has_known_flags)
}

/// Whether a producer's batch says no more of transactions than is known here: one without a flag says nothing of them.
fn has_known_flags(batch: &ProducerBatch) -> bool {
    let coordinator_epoch = batch.coordinator_epoch.get();
    match batch.flags.get() {
        0 | TRANSACTIONAL => coordinator_epoch == 0,
        flags => flags & !COMMITS == TRANSACTIONAL | MARKER,
    }
}

fn take<T>(bytes: &[u8], count: U32) -> Option<(Vec<T>, &[u8])>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned + Clone + 'static,
{
    let (items, rest) = <[T]>::ref_from_prefix_with_elems(bytes, count.get() as usize).ok()?;
    Some((items.to_vec(), rest))
}

/// Packs the records that rebuild a partition's state. Long ones are spread over several records.
pub(crate) fn encode_state(partition: TopicPartition, state: &PartitionState, out: &mut Payloads) {
    let (log_start_offset, clean_offset) = (state.log_start_offset, state.clean_offset);
    out.push(&encode(partition, &Record::Reset { log_start_offset, clean_offset }));
    let same = Advance { high_watermark: state.high_watermark, cuts: state.cuts, ..Advance::default() };
    let mut advance = |advance: Advance| out.push(&encode(partition, &Record::Advance(advance)));
    if (state.high_watermark, state.cuts) != (0, 0) {
        advance(same.clone());
    }
    for segments in state.segments.chunks(items_max::<SegmentMeta>()) {
        advance(Advance { segments: segments.iter().map(Segment::meta).collect(), ..same.clone() });
    }
    let active = state.segments.last().filter(|s| !s.sealed).and_then(|s| s.index.clone()).unwrap_or_default();
    for index in active.chunks(items_max::<IndexEntry>()) {
        advance(Advance { index: index.to_vec(), ..same.clone() });
    }
    for producers in state.producers.chunks(items_max::<ProducerBatch>()) {
        advance(Advance { producers: producers.to_vec(), ..same.clone() });
    }
    if !state.epochs.is_empty() {
        out.push(&encode(partition, &Record::Epochs(state.epochs.clone())));
    }
    let active = state.segments.last().filter(|segment| !segment.sealed);
    let aborted = active.and_then(|active| active.aborted.clone()).unwrap_or_default();
    let transactions = Transactions { aborted: aborted.to_vec(), open: state.open.clone() };
    if transactions != Transactions::default() {
        for part in split_transactions(transactions) {
            out.push(&encode(partition, &Record::Transactions(part)));
        }
    }
}

/// Packs a whole manifest.
pub(crate) fn encode_all(
    run_ends: &BTreeMap<u64, u64>,
    states: impl Iterator<Item = (TopicPartition, PartitionState)>,
) -> Vec<Vec<u8>> {
    let mut payloads = Payloads::default();
    for (run, sequence) in run_ends {
        payloads.push(&encode(NO_PARTITION, &Record::RunEnd { run: *run, sequence: *sequence }));
    }
    for (id, state) in states {
        encode_state(id, &state, &mut payloads);
    }
    payloads.finish()
}

/// Packs what a manifest does not know yet: how partitions grew, and behind that, in a page of their own, run ends. These
/// count all together: a run without one that is not newer than one that has one counts for nothing.
pub(crate) fn encode_since(
    known: &Manifest,
    run_ends: &BTreeMap<u64, u64>,
    states: impl Iterator<Item = (TopicPartition, PartitionState)>,
) -> Vec<Vec<u8>> {
    let nothing = PartitionState::default();
    let mut grown = Payloads::default();
    for (id, state) in states {
        let before = known.partitions.get(&id).unwrap_or(&nothing);
        if before.epochs != state.epochs {
            grown.push(&encode(id, &Record::Epochs(state.epochs.clone())));
        }
        let advance = growth(before, &state);
        for part in advance.into_iter().flat_map(split) {
            grown.push(&encode(id, &Record::Advance(part)));
        }
        for part in transactions_since(before, &state).into_iter().flat_map(split_transactions) {
            grown.push(&encode(id, &Record::Transactions(part)));
        }
    }
    let mut payloads = grown.finish();
    let ends = encode_all(run_ends, std::iter::empty());
    assert!(ends.len() <= 1, "a run has a file of the shared log, and of these there are few");
    payloads.extend(ends);
    payloads
}

/// What was appended to a partition's segments between two states, none of them cut.
fn growth(before: &PartitionState, now: &PartitionState) -> Option<Advance> {
    let known_meta = |at: usize| before.segments.get(at).map(Segment::meta);
    let metas = now.segments.iter().map(Segment::meta).enumerate().skip(before.segments.len().saturating_sub(1));
    let segments = metas.filter(|(at, meta)| known_meta(*at).as_ref() != Some(meta)).map(|(_, meta)| meta).collect();
    let active = now.segments.last().filter(|segment| !segment.sealed);
    let index = active.and_then(|segment| segment.index.clone()).unwrap_or_default();
    let known = before.segments.last().filter(|known| active.is_some_and(|now| now.base_offset == known.base_offset));
    let position = known.and_then(|known| known.index.as_ref()?.last()).map(|entry| entry.position.get());
    let batch = before.producers.last().map(|batch| batch.base_offset.get());
    let advance = Advance {
        high_watermark: now.high_watermark,
        cuts: now.cuts,
        segments,
        index: index.iter().filter(|entry| Some(entry.position.get()) > position).copied().collect(),
        producers: now.producers.iter().filter(|new| Some(new.base_offset.get()) > batch).copied().collect(),
    };
    let is_something = !(advance.segments.is_empty() && advance.index.is_empty() && advance.producers.is_empty());
    is_something.then_some(advance)
}

/// How transactions stand now, if that is not what was known.
fn transactions_since(before: &PartitionState, now: &PartitionState) -> Option<Transactions> {
    let aborted = |state: &PartitionState| {
        let active = state.segments.last().filter(|segment| !segment.sealed)?;
        Some((active.base_offset, active.aborted.clone().unwrap_or_default()))
    };
    let (was, is) = (aborted(before), aborted(now));
    let known = match (&was, &is) {
        (Some((base_before, known)), Some((base, _))) if base == base_before => known.len(),
        _ => 0,
    };
    let new = is.map(|(_, aborted)| aborted[known..].to_vec()).unwrap_or_default();
    let changed = !new.is_empty() || before.open != now.open;
    changed.then(|| Transactions { aborted: new, open: now.open.clone() })
}

/// Splits what is said of transactions, so that each part fits a record. Each has all that are open.
pub(crate) fn split_transactions(transactions: Transactions) -> Vec<Transactions> {
    const ABORTED_MAX: usize = 12_000;
    const BYTES_MAX: usize = (ABORTED_MAX + OPEN_MAX) * size_of::<AbortedEntry>();
    const _: () = assert!(BYTES_MAX + size_of::<RecordHeader>() <= RECORD_BYTES_MAX);
    const _: () = assert!(size_of::<AbortedEntry>() == 32 && size_of::<OpenEntry>() == 32);
    let Transactions { aborted, open } = transactions;
    if aborted.is_empty() {
        return vec![Transactions { aborted, open }];
    }
    aborted.chunks(ABORTED_MAX).map(|aborted| Transactions { aborted: aborted.to_vec(), open: open.clone() }).collect()
}

/// Items of one kind that fit a record.
const fn items_max<T>() -> usize {
    (RECORD_BYTES_MAX - size_of::<RecordHeader>()) / size_of::<T>()
}

/// Splits an advance whose producers are many, so that each part fits a record. The first part holds the segments.
pub(crate) fn split(mut advance: Advance) -> Vec<Advance> {
    const PRODUCERS_MAX: usize = 16_000;
    const _: () = assert!(PRODUCERS_MAX * size_of::<ProducerBatch>() < RECORD_BYTES_MAX / 4 * 3);
    let mut parts = Vec::new();
    let rest = advance.producers.split_off(advance.producers.len().min(PRODUCERS_MAX));
    let same = Advance { high_watermark: advance.high_watermark, cuts: advance.cuts, ..Advance::default() };
    parts.push(advance);
    parts.extend(rest.chunks(PRODUCERS_MAX).map(|p| Advance { producers: p.to_vec(), ..same.clone() }));
    parts
}

/// The state of all partitions of a manifest.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// By partition.
    pub partitions: BTreeMap<TopicPartition, PartitionState>,
    /// The last group of former runs of this shard, by run.
    pub run_ends: BTreeMap<u64, u64>,
}

/// The partition that records of the shard itself are written under.
pub const NO_PARTITION: TopicPartition = TopicPartition { topic: Uuid::nil(), partition: 0 };

impl Manifest {
    /// Applies a record.
    pub fn apply(&mut self, partition: TopicPartition, record: Record) {
        match record {
            Record::Reset { log_start_offset, clean_offset } => {
                let state = PartitionState { log_start_offset, clean_offset, ..Default::default() };
                self.partitions.insert(partition, state);
            }
            Record::Advance(advance) => apply_advance(self.partitions.entry(partition).or_default(), advance),
            Record::Trim { log_start_offset, first_segment } => {
                let state = self.partitions.entry(partition).or_default();
                state.log_start_offset = log_start_offset;
                state.segments.retain(|s| s.base_offset >= first_segment);
                state.epochs.trim(log_start_offset);
            }
            Record::Replace(replace) => {
                let state = self.partitions.entry(partition).or_default();
                let added = replace.added.iter().map(Segment::from_meta);
                state.segments = replaced(&state.segments, &replace.removed, added);
                state.clean_offset = replace.clean_offset;
            }
            Record::RunEnd { run, sequence } => {
                self.run_ends.insert(run, sequence);
            }
            Record::Epochs(epochs) => self.partitions.entry(partition).or_default().epochs = epochs,
            Record::Cut(cut) => apply_cut(self.partitions.entry(partition).or_default(), cut),
            Record::Transactions(transactions) => {
                apply_transactions(self.partitions.entry(partition).or_default(), transactions);
            }
        }
    }
}

/// Segments with others in the place of some.
pub(crate) fn replaced(segments: &[Segment], removed: &[I64], added: impl Iterator<Item = Segment>) -> Vec<Segment> {
    let removed: HashSet<i64> = removed.iter().map(|base_offset| base_offset.get()).collect();
    let stay = segments.iter().filter(|segment| !removed.contains(&segment.base_offset)).cloned();
    let mut segments: Vec<Segment> = stay.chain(added).collect();
    segments.sort_by_key(|segment| segment.base_offset);
    segments
}

fn apply_advance(state: &mut PartitionState, advance: Advance) {
    for meta in &advance.segments {
        let mut segment = Segment::from_meta(meta);
        match state.segments.iter_mut().rfind(|s| s.base_offset == segment.base_offset) {
            Some(known) => {
                (segment.index, segment.aborted) = (known.index.take(), known.aborted.take());
                *known = segment;
            }
            None => state.segments.push(segment),
        }
    }
    if let Some(active) = state.segments.last_mut().filter(|s| !s.sealed) {
        // A note that was cut short by a full disk is made again: what is known already is left out.
        let index = Rc::make_mut(active.index.get_or_insert_default());
        let known = index.last().map(|last| last.position.get());
        index.extend(advance.index.iter().filter(|entry| Some(entry.position.get()) > known));
    }
    for sealed in state.segments.iter_mut().filter(|s| s.sealed) {
        (sealed.index, sealed.aborted) = (None, None); // they are in the footer
    }
    let known = state.producers.last().map(|last| last.base_offset.get());
    state.producers.extend(advance.producers.iter().filter(|batch| Some(batch.base_offset.get()) > known));
    // A cut above what segments held is told of here only: what was seen before it may be gone.
    let before = if advance.cuts > state.cuts { 0 } else { state.high_watermark };
    state.high_watermark = before.max(advance.high_watermark);
    state.cuts = state.cuts.max(advance.cuts);
}

/// Applies what is said of transactions.
pub(crate) fn apply_transactions(state: &mut PartitionState, transactions: Transactions) {
    state.open = transactions.open;
    if let Some(active) = state.segments.last_mut().filter(|segment| !segment.sealed)
        && !transactions.aborted.is_empty()
    {
        let aborted = Rc::make_mut(active.aborted.get_or_insert_default());
        let known = aborted.last().map(|last| last.last_offset.get());
        aborted.extend(transactions.aborted.iter().filter(|entry| Some(entry.last_offset.get()) > known));
    }
}

/// The end of the log was cut off.
pub(crate) fn apply_cut(state: &mut PartitionState, cut: Cut) {
    let end_offset = cut.end_offset;
    state.cuts = cut.cuts;
    if !(state.log_start_offset..=state.end_offset()).contains(&end_offset) {
        let (log_start_offset, clean_offset) = (end_offset, end_offset);
        let same = PartitionState {
            log_start_offset,
            clean_offset,
            high_watermark: end_offset,
            cuts: cut.cuts,
            ..PartitionState::default()
        };
        *state = same;
        return;
    }
    state.high_watermark = state.high_watermark.min(end_offset);
    state.clean_offset = state.clean_offset.min(end_offset);
    state.epochs.cut(end_offset);
    state.segments.retain(|segment| segment.base_offset < end_offset);
    if let Some(meta) = cut.segments.last() {
        let mut segment = Segment::from_meta(meta);
        segment.index = Some(Rc::new(cut.index));
        let known = state.segments.iter().find(|known| known.base_offset == segment.base_offset);
        segment.aborted = known.and_then(|known| known.aborted.clone());
        if let Some(aborted) = &mut segment.aborted {
            Rc::make_mut(aborted).retain(|entry| entry.last_offset.get() < end_offset);
        }
        state.segments.retain(|known| known.base_offset < segment.base_offset);
        state.segments.push(segment);
    }
    state.open.retain(|open| open.first_offset.get() < end_offset);
    state.producers.retain(|batch| batch.base_offset.get() < end_offset);
    state.producers.extend(&cut.producers);
    state.producers.sort_by_key(|batch| batch.base_offset.get());
    state.producers.dedup_by_key(|batch| batch.base_offset.get());
}
