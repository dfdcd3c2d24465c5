//! Catalog and manifests: journals of checksummed pages.

use std::fmt::{Display, Write};

use millrace_engine::format::{
    catalog::{self, Catalog},
    epochs::LeaderEpochs,
    journal,
    manifest::{self, Advance, Cut, Manifest, PartitionState},
    placement::{PlacedRun, Placement},
    segment::SegmentMeta,
    transactions::AbortedEntry,
};

use super::{known::Known, report::Report};
use crate::failure::Outcome;

/// How a page begins.
const PAGE_MAGIC: &[u8] = b"MRP1";

/// Prints a catalog.
pub(super) fn dump_catalog(bytes: &[u8], report: &mut Report) -> Outcome {
    let mut catalog = Catalog::default();
    let records = records(bytes, report)?;
    if records.is_empty() {
        report.damage("not one whole page: a catalog begins with the node's record")?;
    }
    for record in records {
        match catalog::decode(record) {
            Ok(Some(record)) => {
                report.detail(describe_catalog(&record))?;
                catalog.apply(record);
            }
            Ok(None) => report.detail("a hint that this version does not know")?,
            Err(refused) => report.damage(refused)?,
        }
    }
    let Catalog { cluster_id, node_id, run, generation, shards, next_producer_id, .. } = &catalog;
    report.line(format!(
        "catalog of node {node_id} in cluster {cluster_id}: start {run}, layout {generation} over \
        {shards} shards, next producer id {next_producer_id}"
    ))?;
    report.line(format!("format {}{}", catalog.format, listed(", features ", &catalog.features)))?;
    for (id, topic) in &catalog.topics {
        let mut line = format!("topic {} {id}, {} partitions", topic.name, topic.partitions);
        let runs = catalog.placements.get(id).map(Placement::runs).unwrap_or_default();
        for run in runs.iter().filter(|_| catalog.placed_elsewhere(*id)) {
            write!(line, ", {}", describe_run(run)).expect("a String takes everything");
        }
        for (key, value) in &topic.overrides {
            write!(line, ", {key}={value}").expect("a String takes everything");
        }
        report.line(line)?;
    }
    for (key, value) in &catalog.settings {
        report.line(format!("setting {key}={value}"))?;
    }
    Ok(())
}

fn describe_catalog(record: &catalog::Record) -> String {
    match record {
        catalog::Record::Node { format, cluster_id, node_id } => {
            format!("node {node_id} of cluster {cluster_id}, format {format}")
        }
        catalog::Record::Run(run) => format!("start {run}"),
        catalog::Record::Layout { generation, shards } => format!("layout {generation} over {shards} shards"),
        catalog::Record::Topic(id, topic) => {
            format!("topic {} {id}, {} partitions, {:?}", topic.name, topic.partitions, topic.overrides)
        }
        catalog::Record::Deleted(id) => format!("topic {id} deleted"),
        catalog::Record::ProducerIds(next) => format!("producer ids below {next} may be taken"),
        catalog::Record::Setting(key, Some(value)) => format!("setting {key}={value}"),
        catalog::Record::Setting(key, None) => format!("setting {key} back to its default"),
        catalog::Record::Feature(name) => format!("feature {name} is in use"),
        catalog::Record::Placement { topic, first, runs } => {
            let runs: Vec<_> = runs.iter().map(describe_run).collect();
            format!("topic {topic} from partition {first} on: {}", runs.join(", "))
        }
    }
}

/// Which transactions were aborted: whose, and from their first offsets to their markers.
pub(super) fn describe_aborted(aborted: &[AbortedEntry]) -> String {
    let of = |entry: &AbortedEntry| {
        format!("of producer {} {}..{}", entry.producer_id, entry.first_offset, entry.last_offset.get() + 1)
    };
    listed("; aborted: ", aborted.iter().map(of))
}

fn describe_run(run: &PlacedRun) -> String {
    let nodes = listed("", &run.replicas);
    format!("{} partitions on nodes {nodes} in leader epoch {}", run.partitions, run.leader_epoch)
}

/// All of them behind a word; nothing for none.
fn listed<T: Display>(word: &str, all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    if all.is_empty() { String::new() } else { format!("{word}{}", all.join(" ")) }
}

/// Prints a manifest.
pub(super) fn dump_manifest(bytes: &[u8], known: &Known, report: &mut Report) -> Outcome {
    let mut manifest = Manifest::default();
    let mut count = 0u64;
    let records = records(bytes, report)?;
    // A shard without partitions has an empty manifest, and the first page to be added may be torn.
    if records.is_empty() && bytes.iter().any(|byte| *byte != 0) && !bytes.starts_with(PAGE_MAGIC) {
        report.damage("this is no manifest")?;
    }
    for record in records {
        match manifest::decode(record) {
            Ok(Some((partition, record))) => {
                count += 1;
                report.detail(describe_manifest(&known.name(partition), &record))?;
                manifest.apply(partition, record);
            }
            Ok(None) => report.detail("a hint that this version does not know")?,
            Err(refused) => report.damage(refused)?,
        }
    }
    let segments: usize = manifest.partitions.values().map(|state| state.segments.len()).sum();
    report.line(format!("manifest: {count} records, {} partitions, {segments} segments", manifest.partitions.len()))?;
    let mut partitions: Vec<_> = manifest.partitions.iter().map(|(id, state)| (known.name(*id), state)).collect();
    partitions.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, state) in partitions {
        let (start, end) = (state.log_start_offset, state.end_offset());
        let bytes: u64 = state.segments.iter().map(|segment| segment.size).sum();
        let (segments, producers) = (state.segments.len(), state.producers.len());
        report.line(format!(
            "{name}: offsets {start}..{end} in {segments} segments of {bytes} bytes, \
            {producers} batches of idempotent producers"
        ))?;
        let PartitionState { high_watermark, cuts, epochs, .. } = state;
        let epochs = describe_epochs(epochs);
        report.detail(format!("{name}: high watermark {high_watermark}, {cuts} cuts, leader epochs{epochs}"))?;
        if state.segments.windows(2).any(|pair| pair[0].end_offset > pair[1].base_offset) {
            report.damage(format!("{name}: segments overlap"))?;
        }
    }
    Ok(())
}

fn describe_manifest(name: &str, record: &manifest::Record) -> String {
    match record {
        manifest::Record::Reset { log_start_offset, clean_offset } => {
            format!("{name}: reset, log start {log_start_offset}, clean up to {clean_offset}")
        }
        manifest::Record::Advance(advance) => {
            let Advance { high_watermark, cuts, segments, index, producers } = advance;
            let news = describe_segments(segments, index.len(), producers.len());
            format!("{name}: advance, high watermark {high_watermark}, {cuts} cuts{news}")
        }
        manifest::Record::Cut(Cut { end_offset, cuts, segments, index, producers }) => {
            let news = describe_segments(segments, index.len(), producers.len());
            format!("{name}: cut to {end_offset}, {cuts} cuts{news}")
        }
        manifest::Record::Transactions(manifest::Transactions { aborted, open }) => {
            let open = open.iter().map(|open| format!("of producer {} from {}", open.producer_id, open.first_offset));
            let (aborted, open) = (describe_aborted(aborted), listed("; open: ", open));
            format!("{name}: transactions{aborted}{open}")
        }
        manifest::Record::Epochs(epochs) => format!("{name}: leader epochs{}", describe_epochs(epochs)),
        manifest::Record::Trim { log_start_offset, first_segment } => {
            format!("{name}: trim, log start {log_start_offset}, first segment {first_segment}")
        }
        manifest::Record::Replace(replace) => {
            let (gone, added, clean) = (replace.removed.len(), replace.added.len(), replace.clean_offset);
            format!("{name}: compacted, {added} segments in place of {gone}, clean up to {clean}")
        }
        manifest::Record::RunEnd { run, sequence } => format!("run {run} of the shared log ends with group {sequence}"),
    }
}

fn describe_segments(segments: &[SegmentMeta], index: usize, producers: usize) -> String {
    let mut line = String::new();
    for meta in segments {
        let state = if meta.sealed == 0 { "active" } else { "sealed" };
        let (base, end, size) = (meta.base_offset, meta.end_offset, meta.size);
        write!(line, ", segment {base}..{end} of {size} bytes {state}").expect("a String takes everything");
    }
    line + &format!(", {index} index entries, {producers} producer batches")
}

/// Each with the offset at which it began.
fn describe_epochs(epochs: &LeaderEpochs) -> String {
    let all = epochs.starts().iter().map(|start| format!("{} from {}", start.epoch, start.start_offset));
    listed(" ", all)
}

/// All records of a journal's whole pages; damage is reported.
fn records<'a>(bytes: &'a [u8], report: &mut Report) -> Outcome<Vec<&'a [u8]>> {
    let pages = match journal::pages(bytes) {
        Ok(pages) => pages,
        Err(damage) => {
            report.damage(&damage)?;
            // What lies before the damage can still be shown.
            journal::pages(&bytes[..damage.position]).unwrap_or_default()
        }
    };
    let mut records = Vec::new();
    for page in pages {
        match journal::records(page) {
            Some(found) => records.extend(found),
            None => report.damage("a whole page that does not hold records")?,
        }
    }
    Ok(records)
}
