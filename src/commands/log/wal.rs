//! Files of a shared write-ahead log: a chain of commit groups.

use std::collections::BTreeSet;

use millrace_engine::{
    batch::batches,
    wal::{
        format::{Entry, Group, Place, Stamp},
        scan,
    },
};

use super::{batch, known::Known, report::Report};
use crate::{failure::Outcome, time};

/// Prints a file of the shared log.
pub(super) fn dump(bytes: &[u8], known: &Known, report: &mut Report) -> Outcome {
    let chain = scan::chain(bytes);
    let limit = |stamp: Stamp| known.run_limit(stamp.shard, stamp.run);
    let limit = chain.behind.first().map_or(0, |(_, group)| limit(group.stamp));
    let lost = chain.lost(limit, 0, |entry| known.needs(entry.partition, entry.end_offset));
    let mut partitions = BTreeSet::new();
    for (position, group) in &chain.groups {
        report.detail(describe(*position, group))?;
        for entry in &group.entries {
            partitions.insert(entry.partition);
            dump_entry(bytes, *position, entry, known, report)?;
        }
    }
    match (chain.groups.first(), chain.groups.last()) {
        (Some((_, first)), Some((position, last))) => {
            let end = position + last.padded() as u64;
            report.line(format!(
                "write-ahead log of shard {}: groups {} to {} of run {}, {} partitions, {end} of {} bytes",
                first.stamp.shard,
                first.stamp.sequence,
                last.stamp.sequence,
                first.stamp.run,
                partitions.len(),
                bytes.len()
            ))?;
        }
        _ if lost.is_some() => report.line("write-ahead log without its first group")?,
        _ => report.line(format!("write-ahead log: empty, {} bytes ready to be written", bytes.len()))?,
    }
    if let Some((run, sequence)) = lost {
        report.damage(format!("group {sequence} of run {run} was durable and cannot be read any more"))?;
    }
    if let Some((sequence, position)) = chain.damaged {
        report.damage(format!("group {sequence} at byte {position} was durable and cannot be read any more"))?;
    }
    Ok(())
}

fn describe(position: u64, group: &Group) -> String {
    let stamp = &group.stamp;
    format!(
        "group {} at byte {position}: run {}, {} entries, {} bytes, sealed {}, durable up to group {}",
        stamp.sequence,
        stamp.run,
        group.entries.len(),
        group.length,
        time::format(group.sealed_at_ms),
        stamp.durable_sequence
    )
}

fn dump_entry(bytes: &[u8], group: u64, entry: &Entry, known: &Known, report: &mut Report) -> Outcome {
    let name = known.name(entry.partition);
    let Entry { base_offset, end_offset, length, .. } = entry;
    let at = match entry.place {
        Place::Group(at) => at as usize,
        Place::Segment(pointer) => {
            // Those bytes are checked with their segment.
            let (segment, position) = (pointer.segment, pointer.position);
            return report.detail(format!(
                "{name} {base_offset}..{end_offset}: {length} bytes in segment {segment} at byte {position}"
            ));
        }
    };
    report.detail(format!("{name} {base_offset}..{end_offset}: {length} bytes"))?;
    // The group was decoded, so its entries lie inside the file.
    let start = usize::try_from(group).unwrap_or(usize::MAX).saturating_add(at);
    let run = bytes.get(start..start + *length as usize).unwrap_or_default();
    let place = format!("group at byte {group}, {name}");
    let mut next = *base_offset;
    let mut seen = 0;
    for found in batches(run) {
        match found {
            Ok((info, bytes)) => {
                if info.base_offset != next {
                    report.damage(format!("{place}: offset {next} expected, {} found", info.base_offset))?;
                }
                next = info.last_offset() + 1;
                seen += info.size;
                batch::dump(&info, bytes, &place, report)?;
            }
            Err(error) => report.damage(format!("{place}: {error}"))?,
        }
    }
    if seen != run.len() || next != *end_offset {
        report.damage(format!(
            "{place}: batches end at offset {next} and byte {seen}, not at {end_offset} and {length}"
        ))?;
    }
    Ok(())
}
