//! Which transactions are open at an offset below what segments hold, when a log is cut off there: those that are open at
//! its end and began before, and those whose markers the cut takes. Of the latter nobody keeps where they began, so it is
//! looked for in segments. Changes no file.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::Path,
};

use super::{footer, headers::each_header};
use crate::{
    batch::{self, BatchInfo},
    format::{
        manifest::PartitionState,
        segment::Segment,
        transactions::{AbortedEntry, OpenEntry},
    },
    io::{File, Io, Open},
};

/// The transactions that are open below an offset, by their first offsets.
pub(super) async fn open_at<I: Io>(
    io: &I,
    dir: &Path,
    state: &PartitionState,
    end_offset: i64,
) -> io::Result<Vec<OpenEntry>> {
    let mut open: Vec<OpenEntry> =
        state.open.iter().filter(|open| open.first_offset.get() < end_offset).copied().collect();
    let mut wanted = ended_behind(io, dir, state, end_offset).await?;
    wanted.retain(|id| open.iter().all(|open| open.producer_id.get() != *id));
    let mut found: HashMap<i64, OpenEntry> = HashMap::new();
    for segment in state.segments.iter().rev().filter(|segment| segment.base_offset < end_offset) {
        if wanted.is_empty() {
            break;
        }
        let mut stretches: HashMap<i64, Stretch> = HashMap::new();
        let take = |info: &BatchInfo, batch: &[u8]| {
            if info.is_transactional() && wanted.contains(&info.producer_id) {
                stretches.entry(info.producer_id).or_default().take(info, batch);
            }
        };
        each_header(io, &dir.join(segment.name().file_name()), segment, end_offset, take).await?;
        for (id, stretch) in stretches {
            found.extend(stretch.first.map(|first| (id, first)));
            if stretch.has_marker {
                wanted.remove(&id); // what is before it is of other transactions
            }
        }
    }
    open.extend(found.into_values());
    open.sort_unstable_by_key(|open| open.first_offset.get());
    Ok(open)
}

/// A producer's batches of one segment.
#[derive(Default)]
struct Stretch {
    has_marker: bool,
    /// The first one behind its last marker.
    first: Option<OpenEntry>,
}

impl Stretch {
    fn take(&mut self, info: &BatchInfo, batch: &[u8]) {
        if !info.is_control() {
            self.first.get_or_insert(OpenEntry {
                producer_id: info.producer_id.into(),
                producer_epoch: info.producer_epoch.into(),
                flags: 0.into(),
                coordinator_epoch: (-1).into(),
                first_offset: info.base_offset.into(),
                started_ms: info.max_timestamp.into(),
            });
        } else if ends_one(batch) {
            (self.has_marker, self.first) = (true, None);
        }
    }
}

/// Producers whose first marker at or behind an offset may end what began before it.
async fn ended_behind<I: Io>(io: &I, dir: &Path, state: &PartitionState, end_offset: i64) -> io::Result<HashSet<i64>> {
    let mut ended = HashSet::new();
    let mut seen = HashSet::new();
    for segment in state.segments.iter().filter(|segment| segment.end_offset > end_offset) {
        let take = |info: &BatchInfo, batch: &[u8]| {
            if info.base_offset < end_offset || !info.is_transactional() {
                return;
            }
            if info.is_control() && ends_one(batch) && seen.insert(info.producer_id) {
                ended.insert(info.producer_id);
            } else if info.base_sequence == 0 {
                seen.insert(info.producer_id); // an epoch begins, and with it a transaction
            }
        };
        each_header(io, &dir.join(segment.name().file_name()), segment, i64::MAX, take).await?;
    }
    Ok(ended)
}

fn ends_one(batch: &[u8]) -> bool {
    batch::end_marker(batch).is_ok_and(|end| end.is_some())
}

/// The aborted transactions whose markers are in what a cut leaves of a segment.
pub(super) async fn aborted_below<I: Io>(
    io: &I,
    path: &Path,
    segment: &Segment,
    end_offset: i64,
) -> io::Result<Vec<AbortedEntry>> {
    let entries = match &segment.aborted {
        Some(entries) if !segment.sealed => entries.to_vec(),
        _ if !segment.has_aborted => Vec::new(),
        _ => {
            let file = io.open(path, Open::Read).await?;
            let footer = footer::read(&file, segment).await?;
            file.close().await?;
            footer.ok_or(io::ErrorKind::InvalidData)?.aborted
        }
    };
    Ok(entries.into_iter().filter(|entry| entry.last_offset.get() < end_offset).collect())
}
