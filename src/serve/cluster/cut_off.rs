//! Files with records that were cut off a log whose leader had others: kept for people to look at, and not for ever.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// How long they are kept.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Bytes of all of them at most: beyond, the oldest go.
const BYTES_MAX: u64 = 1 << 30;

/// Removes those that are too old or too many. Looks when a node starts: that is when a former leader comes back.
pub(super) fn bound(data_dir: &Path) {
    let folder = data_dir.join("cut-off");
    match remove(&folder, SystemTime::now(), BYTES_MAX) {
        Ok(0) => {}
        Ok(count) => tracing::info!("removed {count} old copies of cut off records from {}", folder.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("old copies of cut off records stay in {}: {error}", folder.display()),
    }
}

fn remove(folder: &Path, now: SystemTime, bytes_max: u64) -> io::Result<usize> {
    let mut copies = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let at = entry.metadata()?.modified()?;
        copies.push((at, entry.path(), bytes_of(&entry.path())?));
    }
    // the newest first
    copies.sort_by_key(|copy| std::cmp::Reverse(copy.0));
    let (mut bytes, mut removed) = (0, 0);
    for (at, path, size) in copies {
        bytes += size;
        let age = now.duration_since(at).unwrap_or_default();
        if age > AGE_MAX || bytes > bytes_max {
            fs::remove_dir_all(path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn bytes_of(folder: &PathBuf) -> io::Result<u64> {
    let sizes = fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_copies_go_and_so_do_the_oldest_of_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let make = |name: &str, days: u64| {
            let copy = folder.path().join(name);
            fs::create_dir(&copy).unwrap();
            fs::write(copy.join("0.log"), [0; 100]).unwrap();
            let at = now - Duration::from_secs(days * 24 * 60 * 60);
            fs::File::open(&copy).unwrap().set_modified(at).unwrap();
        };
        for (name, days) in [("a", 31), ("b", 20), ("c", 10), ("d", 0)] {
            make(name, days);
        }
        assert_eq!(remove(folder.path(), now, 250).unwrap(), 2);
        let left = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["c", "d"]);
    }
}
