//! After a crash: the shared log says that a partition's end was cut off, below what its segments hold, and the manifest
//! does not know. Finds out what is left; changes no file. What lies behind the cut is written over by what comes next.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::Path,
};

use super::{OpenError, headers::each_header, partition_dir, reopen};
use crate::{
    batch::BatchInfo,
    format::{
        manifest::{self, Cut, Manifest, PartitionState, ProducerBatch, Record, Transactions},
        segment::Segment,
    },
    io::Io,
    wal::replay::SegmentCut,
};

/// Cuts a partition's segments.
pub(super) async fn cut<I: Io>(
    io: &I,
    data_dir: &Path,
    manifest: &mut Manifest,
    wanted: &SegmentCut,
) -> Result<(), OpenError> {
    let id = wanted.partition;
    let state = manifest.partitions.entry(id).or_default();
    let looked = look(io, &partition_dir(data_dir, id), state, wanted).await?;
    for record in looked.records() {
        manifest.apply(id, record);
    }
    Ok(())
}

/// Where the last batch of a segment ends that ends at or below an offset; none if there is no such batch.
pub(super) async fn end_below<I: Io>(io: &I, path: &Path, segment: &Segment, offset: i64) -> io::Result<Option<i64>> {
    let mut end = None;
    let take = |info: &BatchInfo, _: &[u8]| {
        let behind = info.last_offset() + 1;
        end = if behind <= offset { Some(behind) } else { end };
    };
    each_header(io, path, segment, offset, take).await?;
    Ok(end)
}

/// What the manifest has to be told: of the cut, and then of what is open and aborted in what it leaves.
#[derive(Clone)]
pub(super) struct Looked {
    pub(super) cut: Cut,
    pub(super) transactions: Transactions,
}

impl Looked {
    /// The same as records, to be applied in this order.
    pub(super) fn records(&self) -> Vec<Record> {
        let transactions = Some(self.transactions.clone()).filter(|known| *known != Transactions::default());
        let parts = transactions.into_iter().flat_map(manifest::split_transactions).map(Record::Transactions);
        std::iter::once(Record::Cut(self.cut.clone())).chain(parts).collect()
    }
}

/// Finds out what a cut leaves.
pub(super) async fn look<I: Io>(
    io: &I,
    dir: &Path,
    state: &PartitionState,
    wanted: &SegmentCut,
) -> Result<Looked, OpenError> {
    let end_offset = wanted.end_offset;
    let mut cut = Cut { end_offset, cuts: wanted.number, ..Cut::default() };
    let mut transactions = Transactions::default();
    if !(state.log_start_offset..=state.end_offset()).contains(&end_offset) {
        return Ok(Looked { cut, transactions });
    }
    transactions.open = reopen::open_at(io, dir, state, end_offset).await.map_err(OpenError::io(dir))?;
    let mut missing = bereft(&state.producers, end_offset);
    for segment in state.segments.iter().rev().filter(|segment| segment.base_offset < end_offset) {
        let is_cut = segment.end_offset > end_offset;
        if !is_cut && missing.is_empty() {
            break;
        }
        let path = dir.join(segment.name().file_name());
        let mut left = Segment::begin(segment.base_offset, segment.created_ms);
        let mut own = Vec::new();
        let keep = |info: &BatchInfo, batch: &[u8]| {
            if info.base_offset >= left.end_offset && info.last_offset() < end_offset {
                left.push_behind_gap(info);
            }
            own.extend(
                manifest::logged_producer_batch(info, batch)
                    .filter(|batch| missing.contains_key(&batch.producer_id.get())),
            );
        };
        each_header(io, &path, segment, end_offset, keep).await.map_err(OpenError::io(&path))?;
        if is_cut {
            check_cut(segment, &left, end_offset).map_err(|reason| OpenError::damaged(&path, reason))?;
            let aborted = reopen::aborted_below(io, &path, segment, end_offset).await;
            transactions.aborted = aborted.map_err(OpenError::io(&path))?;
            transactions.aborted.iter().for_each(|entry| left.push_aborted(*entry));
            cut.index = left.index.as_deref().cloned().unwrap_or_default();
            cut.segments.push(left.meta());
        }
        missing.retain(|id, newest_kept| {
            let is_known_from_here = newest_kept.is_some_and(|kept| kept >= segment.base_offset);
            !is_known_from_here && own.iter().all(|batch| batch.producer_id.get() != *id)
        });
        cut.producers.splice(..0, own);
    }
    Ok(Looked { cut, transactions })
}

/// Producers that lose batches, each with the base offset of the newest that is known of those it keeps. What a round left out
/// of the manifest, as a newer epoch had superseded it, may lie between the two: without it, a batch that was sent twice would
/// not be recognised.
fn bereft(producers: &[ProducerBatch], end_offset: i64) -> HashMap<i64, Option<i64>> {
    let is_lost = |batch: &&ProducerBatch| batch.base_offset.get() >= end_offset;
    let newest_kept = |id: i64| {
        let kept = producers.iter().filter(|batch| batch.producer_id.get() == id && !is_lost(batch));
        kept.map(|batch| batch.base_offset.get()).max()
    };
    let lost: HashSet<i64> = producers.iter().filter(is_lost).map(|batch| batch.producer_id.get()).collect();
    lost.into_iter().map(|id| (id, newest_kept(id))).collect()
}

/// Whether what is left of a segment, active again, is what the cut leaves of it.
fn check_cut(segment: &Segment, left: &Segment, end_offset: i64) -> Result<(), String> {
    if segment.generation > 0 {
        return Err(format!("it was compacted, and cannot be cut at offset {end_offset}"));
    }
    match left.end_offset == end_offset {
        true => Ok(()),
        false => Err(format!("it is to be cut at offset {end_offset}, but a batch ends at {}", left.end_offset)),
    }
}
