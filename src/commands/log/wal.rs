//! Files of a shared write-ahead log: a chain of commit groups.

use std::{collections::BTreeSet, fs::File, io, os::unix::fs::FileExt, path::Path};

use millrace_engine::{
    batch::batches,
    format::wal::{Content, Entry, Era, Group, Stamp},
    wal::scan::{Chain, Depth, Judge, Scan},
};

use super::{batch, known::Known, report::Report, unreadable};
use crate::{failure::Outcome, time};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// All entries are shown; what counts is as the manifest has it.
struct Shown<'a>(&'a Known);

impl Judge for Shown<'_> {
    fn limit(&self, stamp: Stamp) -> u64 {
        self.0.run_limit(stamp.shard, stamp.run)
    }

    fn needs(&self, _entry: &Entry) -> bool {
        true
    }
}

/// Prints a file of the shared log.
pub(super) fn dump(path: &Path, known: &Known, report: &mut Report) -> Outcome {
    let (chain, file) = scan(path, known).map_err(|error| unreadable(path, &error))?;
    let bytes = file.metadata().map_err(|error| unreadable(path, &error))?.len();
    let mut partitions = BTreeSet::new();
    for (position, group) in chain.begun.iter().flat_map(|span| &span.kept) {
        report.detail(describe(*position, group))?;
        let mut memory = vec![0; group.length];
        file.read_exact_at(&mut memory, *position).map_err(|error| unreadable(path, &error))?;
        for entry in &group.entries {
            partitions.insert(entry.partition);
            dump_entry(&memory, *position, entry, known, report)?;
        }
    }
    let lost = lost(&chain, known);
    match &chain.begun {
        Some(span) => report.line(format!(
            "write-ahead log of shard {}: groups {} to {} of run {}, {} partitions, {} of {bytes} bytes",
            span.first.shard,
            span.first.sequence,
            span.last,
            span.first.run,
            partitions.len(),
            span.end
        ))?,
        None if lost.is_some() => report.line("write-ahead log without its first group")?,
        None => report.line(format!("write-ahead log: empty, {bytes} bytes ready to be written"))?,
    }
    if let Some((run, sequence)) = lost {
        report.damage(format!("group {sequence} of run {run} was durable and cannot be read any more"))?;
    }
    if let Some((sequence, position)) = chain.unknown {
        report.damage(format!("group {sequence} at byte {position} is whole, but of a format that is not known"))?;
    }
    if let Some((sequence, position)) = chain.damaged {
        report.damage(format!("group {sequence} at byte {position} was durable and cannot be read any more"))?;
    }
    Ok(())
}

/// Scans a file of the shared log, which stays open; all entries are kept.
pub(super) fn scan(path: &Path, known: &Known) -> io::Result<(Chain, File)> {
    let file = File::open(path)?;
    let mut scan = Scan::new(file.metadata()?.len(), Depth::Chain, Shown(known));
    let mut memory = vec![0; READ_BYTES];
    while let Some(position) = scan.wants() {
        let read = file.read_at(&mut memory, position)?;
        scan.feed(position, &memory[..read]);
    }
    Ok((scan.finish(), file))
}

/// Run and sequence of a durable group that a file without its first group no longer has.
pub(super) fn lost(chain: &Chain, known: &Known) -> Option<(u64, u64)> {
    let behind = chain.behind.first()?;
    let limit = known.run_limit(behind.first.shard, behind.first.run);
    behind.lost(limit, 0, |entry| known.needs(entry.partition, entry.end_offset))
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

fn dump_entry(bytes: &[u8], position: u64, entry: &Entry, known: &Known, report: &mut Report) -> Outcome {
    let name = known.name(entry.partition);
    let Entry { base_offset, end_offset, length, .. } = entry;
    let Era { leader_epoch, cuts } = entry.era;
    let at = match entry.content {
        Content::Group(at) => at as usize,
        Content::Segment(pointer) => {
            // Those bytes are checked with their segment.
            let (segment, position) = (pointer.segment, pointer.position);
            return report.detail(format!(
                "{name} {base_offset}..{end_offset}: {length} bytes in segment {segment} at byte {position}, leader epoch \
                 {leader_epoch}"
            ));
        }
        Content::Cut => {
            return report.detail(format!(
                "{name} cut from {end_offset} to {base_offset}: cut {cuts}, leader epoch {leader_epoch}"
            ));
        }
        Content::EpochStart => {
            return report.detail(format!("{name} {end_offset}: leader epoch {leader_epoch} began"));
        }
    };
    report.detail(format!("{name} {base_offset}..{end_offset}: {length} bytes, leader epoch {leader_epoch}"))?;
    let run = bytes.get(at..at + *length as usize).unwrap_or_default();
    let place = format!("group at byte {position}, {name}");
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
                batch::dump(&info, bytes, (known.topic(entry.partition), &place), report)?;
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
