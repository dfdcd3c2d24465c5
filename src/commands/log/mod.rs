//! `millrace log`: what is in the files of a data folder, whether it is whole, and going on when it is not. Needs no broker.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use self::{known::Known, report::Report};
use crate::{
    failure::{Failure, Outcome},
    output::{reason, say},
};

mod abandon;
mod batch;
mod journal;
mod known;
mod report;
mod segment;
mod standing;
mod wal;

/// Looks into the files of a data folder
#[derive(Args, Debug)]
pub(crate) struct LogCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Dump(Dump),
    Abandon(abandon::Abandon),
}

/// Shows what files hold and checks every checksum
///
/// PATH is a data folder, a folder in it, or a file: a write-ahead log (*.wal), a segment (*.log), a manifest, or the
/// catalog. Nothing is changed. Exit code 1 when something is damaged. A torn end of a write-ahead log is no damage, and
/// neither is anything in a file that a crash left and no segment has: nothing in them was acknowledged. What looks damaged while a broker runs may be half written: the exit code is 0 then.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
struct Dump {
    /// Folder or file
    path: PathBuf,
    /// A line for each group, batch and journal record too
    #[arg(long)]
    batches: bool,
    /// A line for each record too
    #[arg(long)]
    records: bool,
}

const EXAMPLES: &str = "\
Examples:
  millrace log dump millrace-data
  millrace log dump millrace-data/wal-0 --batches
  millrace log dump millrace-data/topics/50a29d5d-31be-4db2-bd1c-e2f0bc8ba4da/0 --records";

/// What a file is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Catalog,
    Manifest,
    Wal,
    Segment,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("wal") => Some(Self::Wal),
            Some("log") => Some(Self::Segment),
            None if name == "catalog" => Some(Self::Catalog),
            None if name.starts_with("manifest-") => Some(Self::Manifest),
            _ => None,
        }
    }
}

impl LogCommand {
    pub(crate) fn run(self) -> Outcome {
        match self.action {
            Action::Dump(dump) => dump.run(),
            Action::Abandon(abandon) => abandon.run(),
        }
    }
}

impl Dump {
    fn run(self) -> Outcome {
        let metadata = fs::metadata(&self.path).map_err(|error| unreadable(&self.path, &error))?;
        let files = match metadata.is_dir() {
            true => files_below(&self.path)?,
            false => vec![self.path.clone()],
        };
        if files.is_empty() {
            return Err(Failure::failed(format!("{} holds no files of a log", self.path.display())));
        }
        let known = Known::around(&self.path);
        if let Some(holder) = known.held_by() {
            say(format_args!("this folder is in use by {holder}: what is just being written may look damaged"));
        }
        let mut report = Report::new(self.batches || self.records, self.records);
        for path in &files {
            dump_file(path, &known, &mut report)?;
        }
        if metadata.is_dir() {
            known.check_files_exist(&self.path, &mut report)?;
        }
        report.finish(known.held_by().is_some())
    }
}

fn dump_file(path: &Path, known: &Known, report: &mut Report) -> Outcome {
    report.begin(path)?;
    match Kind::of(path) {
        Some(Kind::Catalog) => journal::dump_catalog(&read(path)?, report),
        Some(Kind::Manifest) => journal::dump_manifest(&read(path)?, known, report),
        Some(Kind::Wal) => wal::dump(path, known, report),
        Some(Kind::Segment) => segment::dump(path, known, report),
        None => Err(Failure::usage(format!(
            "{} is none of *.wal, *.log, manifest-*, catalog: nothing is known of such files",
            path.display()
        ))),
    }
}

/// Files of known kinds: catalog, manifests, write-ahead logs, segments, each kind in the order of names. What was given
/// up and moved aside is for who asks for it by name.
fn files_below(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))? {
            let entry = entry.map_err(|error| unreadable(&folder, &error))?;
            let kind = entry.file_type().map_err(|error| unreadable(&entry.path(), &error))?;
            let is_aside = entry.file_name().to_string_lossy().starts_with("abandoned-");
            if kind.is_dir() && !is_aside {
                folders.push(entry.path());
            } else if let Some(kind) = Kind::of(&entry.path()).filter(|_| kind.is_file()) {
                files.push((kind as u8, entry.path()));
            }
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot read {}: {}", path.display(), reason(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_names() {
        for (name, kind) in [
            ("a/wal-0/00000001.wal", Some(Kind::Wal)),
            ("a/topics/x/0/00000000000000000000.log", Some(Kind::Segment)),
            ("a/manifest-1-0", Some(Kind::Manifest)),
            ("a/catalog", Some(Kind::Catalog)),
            ("a/lock", None),
            ("a/00000001.making", None),
        ] {
            assert_eq!(Kind::of(Path::new(name)), kind, "{name}");
        }
    }
}
