//! Segment files: batches back to back, and a footer once sealed.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use millrace_engine::{
    batch::{BATCH_HEADER_BYTES, BatchInfo, records, verify_crc},
    format::segment::{Footer, Segment, decode_footer, footer_bytes, footer_bytes_max},
};

use super::{
    batch,
    journal::describe_aborted,
    known::Known,
    report::Report,
    standing::{self, Pointed, Standing},
    unreadable,
};
use crate::failure::Outcome;

/// Footers begin at a block's border.
const BLOCK: u64 = 4096;

/// Prints a segment. What the manifest says of it must be whole, and so must what durable groups of the shared log point
/// to. Of a file that is nobody's, nothing has to be. Of one that nothing is known of, everything up to the footer, or up
/// to the first byte that is no batch.
pub(super) fn dump(path: &Path, known: &Known, report: &mut Report) -> Outcome {
    let standing = standing::of(known, path);
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let bytes = file.metadata().map_err(|error| unreadable(path, &error))?.len();
    let mut walk = Walk::new(path, file, bytes);
    let (whose, tally) = match standing {
        Standing::Owned(id, segment) => {
            walk.topic = known.topic(id);
            (known.name(id), all_batches(&mut walk, Some(segment.size), report)?)
        }
        Standing::Unknown => ("segment".to_owned(), all_batches(&mut walk, None, report)?),
        Standing::Pointed(id, pointed) => {
            walk.topic = known.topic(id);
            (known.name(id), whole_batches(&mut walk, Some(pointed.base_offset), report)?)
        }
        Standing::LeftBehind(id, _) => (known.name(id), whole_batches(&mut walk, None, report)?),
    };
    report.line(format!(
        "{whose}: {} batches, {} records, offsets {}..{}, {} of {bytes} bytes",
        tally.batches, tally.records, tally.base_offset, tally.end_offset, tally.bytes
    ))?;
    match standing {
        Standing::Owned(_, segment) => check_promise(segment, &tally, &mut walk, report),
        Standing::Pointed(_, pointed) if tally.batches == 0 && older_file_goes_on(path, pointed.base_offset)? => {
            report.line(format!("left behind: {UNDONE}"))
        }
        Standing::Pointed(_, pointed) => check_pointed(pointed, &tally, report),
        Standing::LeftBehind(_, why) => report.line(format!("left behind: {why}")),
        Standing::Unknown => check_end(&tally, &mut walk, report),
    }
}

/// Every batch, up to that byte or to the first that is none. What is wrong with them is damage.
fn all_batches(walk: &mut Walk<'_>, size: Option<u64>, report: &mut Report) -> Outcome<Tally> {
    let mut tally = Tally::default();
    while size.is_none_or(|size| walk.at < size)
        && let Some(info) = walk.next()?
    {
        if tally.batches > 0 && info.base_offset < tally.end_offset {
            let (end, base) = (tally.end_offset, info.base_offset);
            report.damage(format!("offsets go back from {end} to {base} at byte {}", walk.at))?;
        }
        let place = format!("byte {}", walk.at - info.size as u64);
        batch::dump(&info, &walk.buffer, (walk.topic, &place), report)?;
        tally.add(&info);
    }
    tally.bytes = walk.at;
    Ok(tally)
}

/// Batches up to the first that is not whole. From an offset on without a gap, as a start reads on where no manifest
/// leads, or with rising offsets.
fn whole_batches(walk: &mut Walk<'_>, from: Option<i64>, report: &mut Report) -> Outcome<Tally> {
    let mut tally = Tally::default();
    while let Some(info) = walk.next()? {
        let follows = match from {
            Some(from) => info.base_offset == from.max(tally.end_offset),
            None => info.base_offset >= tally.end_offset,
        };
        if !follows || !verify_crc(&walk.buffer) || records(&walk.buffer).is_err() {
            break;
        }
        batch::dump(&info, &walk.buffer, (walk.topic, ""), report)?;
        tally.add(&info);
        tally.bytes = walk.at;
    }
    Ok(tally)
}

const UNDONE: &str = "begun by a roll that a crash undid; what follows is in the file before it";

/// Whether the file before one that begins with an offset holds whole batches from there on: a start that finds them
/// does not look for them elsewhere.
fn older_file_goes_on(path: &Path, base: i64) -> Outcome<bool> {
    let Some(older) = standing::previous_file(path, base) else { return Ok(false) };
    let file = File::open(&older).map_err(|error| unreadable(&older, &error))?;
    let bytes = file.metadata().map_err(|error| unreadable(&older, &error))?.len();
    let (mut walk, mut end) = (Walk::new(&older, file, bytes), 0);
    while let Some(info) = walk.next()?.filter(|info| info.base_offset >= end) {
        if !verify_crc(&walk.buffer) {
            break;
        }
        end = info.last_offset() + 1;
    }
    Ok(end > base)
}

/// Compares with what the shared log says of records in a file that the manifest does not know.
fn check_pointed(pointed: Pointed, tally: &Tally, report: &mut Report) -> Outcome {
    let Pointed { base_offset, end_offset, durable_end_offset } = pointed;
    let end = tally.end_offset.max(base_offset);
    if end < durable_end_offset {
        return report.damage(format!(
            "whole batches end at offset {end}, but the write-ahead log says that offsets up to {durable_end_offset} \
             were durable here"
        ));
    }
    match end < end_offset {
        true => report.line(format!("torn at offset {end}: the write-ahead log's end, which nobody was promised")),
        false => report.line(format!("not in the manifest yet: the next start takes over offsets up to {end_offset}")),
    }
}

/// What was read.
#[derive(Debug, Default)]
struct Tally {
    batches: u64,
    records: i64,
    base_offset: i64,
    end_offset: i64,
    /// Of these batches.
    bytes: u64,
}

impl Tally {
    fn add(&mut self, info: &BatchInfo) {
        if self.batches == 0 {
            self.base_offset = info.base_offset;
        }
        self.batches += 1;
        self.records += i64::from(info.record_count);
        self.end_offset = info.last_offset() + 1;
    }
}

/// Compares with the manifest.
fn check_promise(segment: &Segment, tally: &Tally, walk: &mut Walk<'_>, report: &mut Report) -> Outcome {
    let (size, end) = (segment.size, segment.end_offset);
    if walk.at != size {
        let at = walk.at;
        report.damage(format!("batches end at byte {at}, but the manifest says that {size} bytes are durable"))?;
    } else if tally.batches > 0 && tally.end_offset > end {
        report.damage(format!("batches end at offset {}, but the manifest says {end}", tally.end_offset))?;
    }
    if !segment.sealed {
        return report.line("active, as the manifest says");
    }
    match walk.footer(segment.footer_position())? {
        Some(footer) if footer.meta == segment.meta() => report.line(describe_footer(&footer)),
        Some(_) => report.damage("the footer says something else than the manifest"),
        None => report.damage("sealed, as the manifest says, but the footer is damaged"),
    }
}

/// Without a manifest, the end of the batches must be the end of the file, a footer, or zeroes.
fn check_end(tally: &Tally, walk: &mut Walk<'_>, report: &mut Report) -> Outcome {
    if walk.at == walk.bytes {
        return Ok(());
    }
    if let Some(footer) = walk.footer(walk.at.next_multiple_of(BLOCK))? {
        report.line(describe_footer(&footer))?;
        let meta = footer.meta;
        let agrees = meta.size.get() == walk.at && meta.end_offset.get() >= tally.end_offset;
        return match agrees {
            true => Ok(()),
            false => report.damage("the footer says something else than the batches"),
        };
    }
    match walk.only_zeroes()? {
        true => report.line("not sealed; only zeroes follow"),
        false => report.damage(format!("what follows at byte {} is neither a batch nor a footer", walk.at)),
    }
}

fn describe_footer(footer: &Footer) -> String {
    format!("sealed, {} index entries{}", footer.index.len(), describe_aborted(&footer.aborted))
}

/// Reads a file batch by batch.
struct Walk<'a> {
    input: BufReader<File>,
    path: &'a Path,
    /// Whose batches these are, if that is known.
    topic: Option<&'a str>,
    /// Where the next batch begins.
    at: u64,
    /// Of the file.
    bytes: u64,
    /// The last batch.
    buffer: Vec<u8>,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path, file: File, bytes: u64) -> Self {
        Self { input: BufReader::with_capacity(1 << 20, file), path, topic: None, at: 0, bytes, buffer: Vec::new() }
    }

    /// The next whole batch, if there is one; its bytes are in `buffer`.
    fn next(&mut self) -> Outcome<Option<BatchInfo>> {
        let mut header = [0; BATCH_HEADER_BYTES];
        if self.bytes - self.at < header.len() as u64 {
            return Ok(None);
        }
        self.read(|input| input.read_exact(&mut header))?;
        let info = match BatchInfo::parse_header(&header) {
            Ok(info) if info.size as u64 <= self.bytes - self.at => info,
            _ => return Ok(None),
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&header);
        buffer.resize(info.size, 0);
        self.read(|input| input.read_exact(&mut buffer[BATCH_HEADER_BYTES..]))?;
        self.buffer = buffer;
        self.at += info.size as u64;
        Ok(Some(info))
    }

    /// The footer at that place.
    fn footer(&mut self, position: u64) -> Outcome<Option<Footer>> {
        let mut bytes = Vec::new();
        let most = footer_bytes_max(self.at);
        let mut read = |most: usize, bytes: &mut Vec<u8>| {
            bytes.clear();
            self.read(|input| {
                input.seek(SeekFrom::Start(position))?;
                input.take(most as u64).read_to_end(bytes)
            })
        };
        read(most, &mut bytes)?;
        if let Some(all) = footer_bytes(&bytes).filter(|all| *all > most) {
            read(all, &mut bytes)?;
        }
        Ok(decode_footer(&bytes))
    }

    /// Whether nothing but zeroes follows the last batch.
    fn only_zeroes(&mut self) -> Outcome<bool> {
        let at = self.at;
        self.read(|input| input.seek(SeekFrom::Start(at)))?;
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = self.read(|input| input.read(&mut chunk))?;
            if read == 0 {
                return Ok(true);
            }
            if chunk[..read].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
    }

    fn read<T>(&mut self, read: impl FnOnce(&mut BufReader<File>) -> io::Result<T>) -> Outcome<T> {
        read(&mut self.input).map_err(|error| unreadable(self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use millrace_engine::batch::{EndMarker, Outcome, marker};

    use super::*;

    /// Each is one record.
    fn batches(offsets: std::ops::Range<i64>) -> Vec<u8> {
        let at = |offset: i64| {
            let mut bytes = marker(1, 0, EndMarker { outcome: Outcome::Commit, coordinator_epoch: 0 }, 0);
            bytes[..8].copy_from_slice(&offset.to_be_bytes()); // no part of the checksum
            bytes
        };
        offsets.flat_map(at).collect()
    }

    /// A power cut in a start left an empty file, and the next start went on in the one before it, until it rolled: records of the
    /// file after that were durable, so the empty one was called damaged.
    #[test]
    fn a_file_that_a_crash_left_empty_is_told_from_one_that_lost_its_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = |base: i64| folder.path().join(format!("{base:020}.log"));
        fs::write(path(0), batches(0..5)).unwrap();
        fs::write(path(3), []).unwrap();
        fs::write(path(5), []).unwrap();
        fs::write(path(8), batches(8..9)).unwrap();
        let is_undone = |base| older_file_goes_on(&path(base), base).unwrap();
        assert!(is_undone(3));
        assert!(!is_undone(5), "the one before it has nothing, and those before that are older than a roll");
        assert!(!is_undone(0) && !is_undone(8));
        fs::remove_file(path(3)).unwrap();
        assert!(!is_undone(5), "the one before it ends where it begins");
    }
}
