//! After a crash: what happened to segments and the manifest does not know. Of fat runs, reads on from where the manifest
//! ends and takes over what is whole; says which run did not arrive. What was cut off is `cut`'s.

use std::io;

use super::{OpenError, cut, partition_dir};
use crate::{
    api::TopicPartition,
    batch::{BatchInfo, verify_crc},
    format::{
        manifest::{Manifest, PartitionState, ProducerBatch, logged_producer_batch},
        segment::{self, Segment},
        wal::GROUP_BYTES_MAX,
    },
    io::{File, IO_BYTES_MAX, Io, Open, align_down, align_up},
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
        read_on(&file, active, end, &mut state.producers, &mut arrived).await?;
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
    io.sync_dir(&partition_dir(data_dir, id)).await?;
    Ok(arrived.checksum == pointer.place.checksum.get())
}

/// Sums up the batches that were written with a run.
struct Arrived {
    from_offset: i64,
    checksum: u32,
}

/// Takes batches over that are whole and follow each other, up to an offset.
async fn read_on<F: File>(
    file: &F,
    segment: &mut Segment,
    end_offset: i64,
    producers: &mut Vec<ProducerBatch>,
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
            segment.push(&info);
            if info.base_offset >= arrived.from_offset {
                arrived.checksum = crc32c::crc32c_append(arrived.checksum, batch);
            }
            producers.extend(logged_producer_batch(&info));
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

fn next_whole(bytes: &[u8], offset: i64) -> Option<(BatchInfo, &[u8])> {
    let info = BatchInfo::parse(bytes).ok()?;
    let batch = bytes.get(..info.size)?;
    (info.base_offset == offset && verify_crc(batch)).then_some((info, batch))
}

/// Seals the segment if its footer is in place and agrees with what was read.
async fn take_footer<F: File>(file: &F, segment: &mut Segment) -> io::Result<bool> {
    let position = align_up(segment.size);
    let bytes = file.read(position, segment::footer_bytes_max(segment.size)).await?;
    let Some((meta, _)) = segment::decode_footer(bytes.bytes()) else {
        return Ok(false);
    };
    let found = Segment::from_meta(&meta);
    if (found.base_offset, found.end_offset, found.size) != (segment.base_offset, segment.end_offset, segment.size) {
        return Ok(false);
    }
    *segment = Segment { index: None, ..found };
    Ok(true)
}
