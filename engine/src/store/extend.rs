//! After a crash: what happened to segments and the manifest does not know. Of fat runs, reads on from where the manifest
//! ends and takes over what is whole; says which run did not arrive. What was cut off is `cut`'s.

use std::io;

use super::{OpenError, cut, footer, partition_dir};
use crate::{
    api::TopicPartition,
    batch::{BatchInfo, Outcome, verify_crc},
    format::{
        manifest::{Manifest, PartitionState, logged_producer_batch},
        segment::Segment,
        transactions::AbortedEntry,
        wal::GROUP_BYTES_MAX,
    },
    io::{File, IO_BYTES_MAX, Io, Open, align_down, align_up},
    partition::producers::{Ended, Producers},
    wal::replay::{Pointer, Step},
};

/// Takes the steps in order. `Some`: this run is not whole, so its group is torn; the manifest is of no use then.
pub(super) async fn extend<I: Io>(
    io: &I,
    data_dir: &std::path::Path,
    manifest: &mut Manifest,
    steps: &[Step],
) -> Result<Option<(u64, u64)>, OpenError> {
    for step in steps {
        let pointer = match step {
            Step::Extend(pointer) => pointer,
            Step::Cut(wanted) => {
                cut::cut(io, data_dir, manifest, wanted).await?;
                continue;
            }
        };
        let dir = partition_dir(data_dir, pointer.partition);
        let state = manifest.partitions.entry(pointer.partition).or_default();
        let whole = extend_to(io, data_dir, pointer.partition, state, pointer).await;
        match whole {
            Ok(true) => {}
            Ok(false) => return Ok(Some((pointer.run, pointer.sequence))),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                return Ok(Some((pointer.run, pointer.sequence)));
            }
            Err(error) => return Err(OpenError::io(&dir)(error)),
        }
    }
    Ok(None)
}

/// Reads on to the end of one fat run; `false` when something before it is not whole.
async fn extend_to<I: Io>(
    io: &I,
    data_dir: &std::path::Path,
    id: TopicPartition,
    state: &mut PartitionState,
    pointer: &Pointer,
) -> io::Result<bool> {
    let mut arrived = Arrived { from_offset: pointer.place.from_offset.get(), checksum: 0 };
    let mut known = Producers::restore(&state.producers, &state.open);
    while state.end_offset() < pointer.end_offset {
        let end_offset = state.end_offset();
        if state.segments.last().is_none_or(|last| last.sealed) {
            state.segments.push(Segment::begin(end_offset, io.now_ms()));
        }
        let active = state.segments.last_mut().expect("just made sure");
        let path = partition_dir(data_dir, id).join(active.name().file_name());
        let file = io.open(&path, Open::Existing).await?;
        let last = active.base_offset == pointer.place.segment.get();
        let end = if last { pointer.end_offset } else { i64::MAX };
        let mut took = |info: &BatchInfo, batch: &[u8], segment: &mut Segment| {
            if let Some(logged) = logged_producer_batch(info, batch) {
                state.producers.push(logged);
                let ended = known.note(logged, logged.timestamp_ms.get());
                note_aborted(segment, &known, logged.producer_id.get(), ended);
            }
        };
        read_on(&file, active, end, &mut took, &mut arrived).await?;
        if active.end_offset >= pointer.end_offset {
            file.flush().await?; // its topic may not have asked for that
            file.close().await?;
            break;
        }
        if last || !take_footer(&file, active).await? {
            return Ok(false);
        }
        file.flush().await?;
        file.close().await?;
    }
    state.open = known.open_entries();
    io.sync_dir(&partition_dir(data_dir, id)).await?;
    Ok(arrived.checksum == pointer.place.checksum.get())
}

/// Sums up the batches that were written with a run.
struct Arrived {
    from_offset: i64,
    checksum: u32,
}

/// Takes batches over that are whole and in order, up to an offset: a follower may have been given some with gaps.
async fn read_on<F: File>(
    file: &F,
    segment: &mut Segment,
    end_offset: i64,
    took: &mut impl FnMut(&BatchInfo, &[u8], &mut Segment),
    arrived: &mut Arrived,
) -> io::Result<()> {
    let mut window = IO_BYTES_MAX;
    while segment.end_offset < end_offset {
        let base = align_down(segment.size);
        let memory = file.read(base, window).await?;
        let skip = usize::try_from(segment.size - base).expect("less than a block");
        let mut rest = memory.bytes().get(skip..).unwrap_or_default();
        let before = segment.size;
        while let Some((info, batch)) = next_whole(rest, segment.end_offset).filter(|_| segment.end_offset < end_offset)
        {
            segment.push_behind_gap(&info);
            if info.base_offset >= arrived.from_offset {
                arrived.checksum = crc32c::crc32c_append(arrived.checksum, batch);
            }
            took(&info, batch, segment);
            rest = &rest[batch.len()..];
        }
        if segment.size > before {
            window = IO_BYTES_MAX;
            continue;
        }
        // A batch may be larger than one read.
        let wanted = BatchInfo::parse_header(rest).map_or(0, |info| skip + info.size);
        let is_cut_off = (memory.bytes().len() + 1..=GROUP_BYTES_MAX).contains(&wanted);
        if !is_cut_off || memory.bytes().len() < window {
            break;
        }
        window = usize::try_from(align_up(wanted as u64)).expect("just bounded");
    }
    Ok(())
}

/// Takes note of a transaction that ended with the batch at a segment's end.
fn note_aborted(segment: &mut Segment, known: &Producers, producer_id: i64, ended: Option<Ended>) {
    let Some(Ended { first_offset, outcome: Outcome::Abort }) = ended else { return };
    let last_stable_offset = known.open().first_offset().unwrap_or(segment.end_offset);
    segment.push_aborted(AbortedEntry {
        producer_id: producer_id.into(),
        first_offset: first_offset.into(),
        last_offset: (segment.end_offset - 1).into(),
        last_stable_offset: last_stable_offset.into(),
    });
}

fn next_whole(bytes: &[u8], offset: i64) -> Option<(BatchInfo, &[u8])> {
    let info = BatchInfo::parse(bytes).ok()?;
    let batch = bytes.get(..info.size)?;
    (info.base_offset >= offset && verify_crc(batch)).then_some((info, batch))
}

/// Seals the segment if its footer is in place and agrees with what was read.
async fn take_footer<F: File>(file: &F, segment: &mut Segment) -> io::Result<bool> {
    let Some(footer) = footer::read(file, segment).await? else {
        return Ok(false);
    };
    let found = Segment::from_meta(&footer.meta);
    if (found.base_offset, found.end_offset, found.size) != (segment.base_offset, segment.end_offset, segment.size) {
        return Ok(false);
    }
    *segment = Segment { index: None, aborted: None, ..found };
    Ok(true)
}
