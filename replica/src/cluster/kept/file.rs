//! The file of a store that a node keeps itself: lines of JSON, each behind its checksum. The first is the whole store at one
//! revision; the others are the changes of one revision each, flushed before anybody hears of them.
//!
//! A last line that is not whole was never told of, and is cut off. Anything else that is not as it was written is damage.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::cluster::store::{Change, KeyValue};

/// Changes behind the first line, from which on the file is written anew.
const LINES_MAX: u32 = 10_000;

/// A whole store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Which store it is.
    pub identity: u64,
    /// Its revision.
    pub revision: i64,
    /// Its keys, in their order.
    pub entries: Vec<KeyValue>,
}

#[derive(Serialize, Deserialize)]
enum Line {
    Whole(Contents),
    Changes(i64, Vec<Change>),
}

/// The file, open at its end.
#[derive(Debug)]
pub struct StoreFile {
    path: PathBuf,
    file: File,
    lines: u32,
}

impl Contents {
    /// Takes changes of a later revision over.
    pub fn apply(&mut self, revision: i64, changes: &[Change]) {
        for change in changes {
            let at = self.entries.binary_search_by(|entry| entry.key.as_str().cmp(change.key()));
            match (change, at) {
                (Change::Put(entry), Ok(at)) => self.entries[at] = entry.clone(),
                (Change::Put(entry), Err(at)) => self.entries.insert(at, entry.clone()),
                (Change::Gone { .. }, Ok(at)) => drop(self.entries.remove(at)),
                (Change::Gone { .. }, Err(_)) => {}
            }
        }
        self.revision = revision;
    }
}

impl StoreFile {
    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or is not what was written.
    pub fn read(path: &Path) -> io::Result<Option<Contents>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = |at: usize| {
            let text = format!("{}, line {}: not what was written", path.display(), at + 1);
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        let mut contents = None;
        for (at, line) in lines.iter().enumerate() {
            match (decode(line), &mut contents) {
                (Some(Line::Whole(whole)), contents @ None) => *contents = Some(whole),
                (Some(Line::Changes(revision, changes)), Some(contents)) => contents.apply(revision, &changes),
                (None, Some(_)) if at + 1 == lines.len() => break,
                _ => return Err(damaged(at)),
            }
        }
        contents.map(Some).ok_or_else(|| damaged(0))
    }

    /// Writes a file anew, in the place of the one that is there.
    ///
    /// # Errors
    /// If it cannot be written; the one that was there stays.
    pub fn create(path: &Path, contents: &Contents) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&encode(&Line::Whole(contents.clone())))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(Self { path: path.to_owned(), file, lines: 0 })
    }

    /// Adds the changes of a revision; `whole` is asked for the store with them when the file has become long. Durable when it
    /// returns.
    ///
    /// # Errors
    /// If it cannot be written. Nobody knows then what is in the file; nothing may be added any more.
    pub fn append(&mut self, revision: i64, changes: &[Change], whole: impl FnOnce() -> Contents) -> io::Result<()> {
        self.lines += 1;
        if self.lines > LINES_MAX {
            *self = Self::create(&self.path, &whole())?;
            return Ok(());
        }
        self.file.write_all(&encode(&Line::Changes(revision, changes.to_vec())))?;
        self.file.sync_data()
    }

    /// Notes, by the file's time, that the store was heard of now.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn touch(&self) -> io::Result<()> {
        self.file.set_modified(SystemTime::now())
    }
}

fn encode(line: &Line) -> Vec<u8> {
    let text = serde_json::to_string(line).expect("plain data");
    format!("{:08x} {text}\n", crc32c::crc32c(text.as_bytes())).into_bytes()
}

fn decode(line: &[u8]) -> Option<Line> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (sum, text) = line.split_once(' ')?;
    let is_whole = u32::from_str_radix(sum, 16).ok()? == crc32c::crc32c(text.as_bytes());
    is_whole.then(|| serde_json::from_str(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, modified: i64) -> KeyValue {
        KeyValue { key: key.to_owned(), value: vec![1, 255], created: 2, modified, version: 1, lease: 0 }
    }

    #[test]
    fn what_was_added_is_read_back_up_to_a_line_that_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mirror/store");
        assert_eq!(StoreFile::read(&path).unwrap(), None);
        let mut contents = Contents { identity: u64::MAX, revision: 4, entries: vec![entry("a", 3), entry("c", 4)] };
        let mut file = StoreFile::create(&path, &contents).unwrap();
        let changes = [Change::Put(entry("b", 5)), Change::Gone { key: "a".to_owned(), revision: 5 }];
        file.append(5, &changes, || unreachable!("it is short")).unwrap();
        contents.apply(5, &changes);
        assert_eq!(contents.entries.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(StoreFile::read(&path).unwrap(), Some(contents.clone()));
        let whole = fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for end in first..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(StoreFile::read(&path).unwrap().unwrap().revision, 4, "cut at {end}");
        }
        for end in 0..first {
            fs::write(&path, &whole[..end]).unwrap();
            assert!(StoreFile::read(&path).is_err(), "cut at {end}");
        }
        let mut damaged = whole.clone();
        damaged[20] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(StoreFile::read(&path).unwrap_err().to_string().contains("line 1"));
    }
}
