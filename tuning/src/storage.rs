//! The data folder: whether it can be written, by this process alone, without the page cache, durably, and has room.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{
    Finding, Needs,
    limits::size,
    sys::{self, Block, Volume},
};

/// Looks at the data folder. Nothing stays behind: a folder that is not there is judged by its nearest parent.
pub fn check(needs: &Needs) -> Vec<Finding> {
    let place = match nearest_existing(&needs.data_dir) {
        Ok(place) => place,
        Err(finding) => return vec![finding],
    };
    let mut findings = vec![check_direct_io(&place, &needs.data_dir)];
    if findings[0].severity == crate::Severity::Error {
        return findings;
    }
    if let Ok(volume) = sys::volume(&place) {
        findings.push(judge_kind(volume.kind));
        findings.push(judge_space(volume, held(&needs.data_dir), needs));
    }
    findings
}

/// The data folder, or the parent in which it will be made.
fn nearest_existing(data_dir: &Path) -> Result<PathBuf, Finding> {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let mut place = absolute.as_path();
    loop {
        match fs::metadata(place) {
            Ok(metadata) if metadata.is_dir() => return Ok(place.to_owned()),
            Ok(_) => {
                return Err(Finding::error(
                    "data folder",
                    format!("{} is not a folder", place.display()),
                    "everything is kept in files below it",
                    "choose another --data",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => match place.parent() {
                Some(parent) => place = parent,
                None => return Err(unusable(data_dir, &error)),
            },
            Err(error) => return Err(unusable(data_dir, &error)),
        }
    }
}

fn unusable(data_dir: &Path, error: &io::Error) -> Finding {
    Finding::error(
        "data folder",
        format!("{} cannot be used: {error}", data_dir.display()),
        "everything is kept in files below it",
        "choose another --data, or give this user the right to write there",
    )
}

/// Removes its file when it goes.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        // A probe that cannot be removed is empty and does no harm.
        let _left_behind = fs::remove_file(&self.0);
    }
}

/// Writes one block of a new file with O_DIRECT.
fn check_direct_io(place: &Path, data_dir: &Path) -> Finding {
    const CHECK: &str = "direct I/O";
    let probe = Probe(place.join(format!(".millrace-probe-{}", std::process::id())));
    // Without O_DIRECT first, so that a folder that cannot be written is told from one without direct I/O.
    if let Err(error) = File::create(&probe.0) {
        return match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => not_writable(place, &error),
            _ => unusable(data_dir, &error),
        };
    }
    let open = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&probe.0);
    match open.and_then(|file| sys::write_block(&file, &Block([0; 4096]))) {
        Ok(()) => Finding::good(CHECK, format!("{} takes it", place.display())),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Finding::warning(
            CHECK,
            format!("{} is full", place.display()),
            "produce is refused until there is room again; reads and deletes work",
            "free some space on the disk",
        ),
        Err(error) => Finding::error(
            CHECK,
            format!("the file system of {} refuses it ({error})", place.display()),
            "millrace writes past the page cache, so that an acknowledged record is on the disk",
            "put --data on ext4, XFS or btrfs on a disk of this machine",
        ),
    }
}

fn not_writable(place: &Path, error: &io::Error) -> Finding {
    let owner = fs::metadata(place).map(|m| format!(", which belongs to user id {}", m.uid())).unwrap_or_default();
    Finding::error(
        "data folder",
        format!("cannot write to {}{owner}: {error}", place.display()),
        "everything is kept in files below it",
        format!("chown it to this user, or choose another --data than {}", place.display()),
    )
}

/// File systems that lose what was flushed to them, or promise less than a local disk. Numbers are those of statfs(2).
fn judge_kind(kind: u64) -> Finding {
    const CHECK: &str = "file system";
    let in_memory = |name: &str| {
        Finding::warning(
            CHECK,
            format!("{name} keeps its files in memory"),
            "everything is gone after a reboot, whatever was acknowledged",
            "put --data on ext4 or XFS on a disk, unless this is a test",
        )
    };
    let remote = |name: &str| {
        Finding::warning(
            CHECK,
            format!("{name} is a network or user-space file system"),
            "latency and what a flush promises depend on the other side",
            "put --data on ext4 or XFS on a disk of this machine",
        )
    };
    match kind {
        0x0102_1994 => in_memory("tmpfs"),
        0x8584_58f6 => in_memory("ramfs"),
        0x6969 => remote("NFS"),
        0xff53_4d42 | 0xfe53_4d42 => remote("SMB"),
        0x6573_5546 => remote("FUSE"),
        0x0102_1997 => remote("9p"),
        0x794c_7630 => Finding::warning(
            CHECK,
            "overlayfs: the writable layer of a container",
            "it goes with the container, and files are slower than on a volume",
            "mount a volume for --data",
        ),
        0x9123_683e => Finding::warning(
            CHECK,
            "btrfs copies blocks on every overwrite",
            "a flush of the write-ahead log costs several times what it costs on ext4 or XFS",
            "put --data on ext4 or XFS, or chattr +C the empty folder before the first start",
        ),
        0xef53 => Finding::good(CHECK, "ext4"),
        0x5846_5342 => Finding::good(CHECK, "XFS"),
        other => Finding::good(CHECK, format!("of kind {other:#x}, not known to be bad")),
    }
}

/// What a former run left.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// There was none: nothing can be read here.
    is_new: bool,
    /// Of its write-ahead logs.
    wal_bytes: u64,
}

fn held(data_dir: &Path) -> Held {
    Held { is_new: !data_dir.join("catalog").exists(), wal_bytes: held_bytes(data_dir) }
}

/// Bytes that the write-ahead logs of a former run take already.
fn held_bytes(data_dir: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![data_dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() && is_wal_folder(&path) => folders.push(path),
                Ok(metadata) if path.extension().is_some_and(|e| e == "wal") => bytes += metadata.len(),
                _ => {}
            }
        }
    }
    bytes
}

fn is_wal_folder(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("wal-"))
}

fn judge_space(volume: Volume, held: Held, needs: &Needs) -> Finding {
    const CHECK: &str = "disk space";
    const FIX: &str = "lower --wal-bytes and --reserve-bytes, or put --data on a larger disk";
    let (free, reserve) = (volume.free_bytes, needs.reserve_bytes);
    if needs.wal_bytes.saturating_add(reserve) > volume.total_bytes {
        let (logs, total) = (size(needs.wal_bytes), size(volume.total_bytes));
        return Finding::error(
            CHECK,
            format!("{logs} for write-ahead logs and {} in reserve, but the disk has {total} in all", size(reserve)),
            "the node would refuse every record sooner or later, whatever is deleted",
            FIX,
        );
    }
    let first = needs.wal_first_bytes.saturating_add(reserve);
    if held.is_new && free < first {
        return Finding::error(
            CHECK,
            format!("{} free, but {} needed before the first record is taken", size(free), size(first)),
            "the node would refuse every record, and there is nothing to read yet",
            FIX,
        );
    }
    let wal = needs.wal_bytes.saturating_sub(held.wal_bytes);
    let wanted = wal.saturating_add(reserve);
    if free < wanted {
        return Finding::warning(
            CHECK,
            format!(
                "{} free; {} for write-ahead logs and {} in reserve are wanted",
                size(free),
                size(wal),
                size(needs.reserve_bytes)
            ),
            "produce is refused while free space is below the reserve; reads and deletes go on",
            "free some space, shorten retention, or lower --wal-bytes and --reserve-bytes",
        );
    }
    Finding::good(CHECK, format!("{} free of {}", size(free), size(volume.total_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;

    fn needs(data_dir: PathBuf) -> Needs {
        Needs {
            data_dir,
            listen: Vec::new(),
            advertised: Vec::new(),
            shards: 1,
            io_memory_bytes: 0,
            max_connections: 0,
            memory_bytes: 0,
            wal_bytes: 100 << 20,
            wal_first_bytes: 20 << 20,
            reserve_bytes: 50 << 20,
        }
    }

    #[test]
    fn a_folder_on_a_disk_passes_and_nothing_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        let findings = check(&needs(dir.path().join("not/there/yet")));
        assert!(findings.iter().all(|f| f.severity < Severity::Error), "{findings:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn logs_of_a_former_run_count_as_held() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("wal-1")).unwrap();
        fs::write(dir.path().join("wal-1/00000001.wal"), [0; 100]).unwrap();
        fs::write(dir.path().join("wal-1/00000002.making"), [0; 100]).unwrap();
        assert_eq!(held_bytes(dir.path()), 100);
        assert_eq!(held_bytes(&dir.path().join("missing")), 0);
    }

    #[test]
    fn a_file_is_no_data_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        for path in ["file", "file/below"] {
            let findings = check(&needs(dir.path().join(path)));
            assert_eq!(findings.len(), 1);
            assert_eq!((findings[0].severity, findings[0].check), (Severity::Error, "data folder"));
        }
    }

    #[test]
    fn a_file_system_without_direct_io_is_refused() {
        // procfs takes neither files nor direct I/O; sysfs neither. Both must be errors and not panics.
        for place in ["/proc", "/sys"] {
            let findings = check(&needs(place.into()));
            assert_eq!(findings[0].severity, Severity::Error, "{findings:?}");
        }
    }

    #[test]
    fn memory_and_network_file_systems_are_warned_of() {
        for (kind, severity) in [
            (0x0102_1994, Severity::Warning),
            (0x6969, Severity::Warning),
            (0x794c_7630, Severity::Warning),
            (0xef53, Severity::Good),
            (0x5846_5342, Severity::Good),
            (12, Severity::Good),
        ] {
            assert_eq!(judge_kind(kind).severity, severity);
        }
    }

    #[test]
    fn space_counts_what_the_log_holds_already() {
        let volume = |mib: u64| Volume { kind: 0, total_bytes: 1 << 40, free_bytes: mib << 20 };
        let held = |mib: u64| Held { is_new: false, wal_bytes: mib << 20 };
        let needs = needs("/nowhere".into());
        assert_eq!(judge_space(volume(150), held(0), &needs).severity, Severity::Good);
        assert_eq!(judge_space(volume(149), held(0), &needs).severity, Severity::Warning);
        assert_eq!(judge_space(volume(50), held(100), &needs).severity, Severity::Good);
    }

    #[test]
    fn a_log_that_no_disk_has_room_for_is_refused_with_the_figures() {
        let volume = |total: u64, free: u64| Volume { kind: 0, total_bytes: total << 20, free_bytes: free << 20 };
        let held = |is_new| Held { is_new, wal_bytes: 0 };
        let needs = needs("/nowhere".into());
        let beyond = judge_space(volume(149, 149), held(false), &needs);
        assert_eq!(beyond.severity, Severity::Error);
        assert_eq!(beyond.what, "100 MiB for write-ahead logs and 50 MiB in reserve, but the disk has 149 MiB in all");
        let needs_all = Needs { wal_bytes: u64::MAX, ..needs.clone() };
        assert_eq!(judge_space(volume(149, 149), held(true), &needs_all).severity, Severity::Error);
        // a full disk is a mode of a node that holds something, and no state to begin in
        let full = judge_space(volume(150, 69), held(true), &needs);
        assert_eq!(full.severity, Severity::Error);
        assert_eq!(full.what, "69 MiB free, but 70 MiB needed before the first record is taken");
        assert_eq!(judge_space(volume(150, 70), held(true), &needs).severity, Severity::Warning);
        assert_eq!(judge_space(volume(150, 0), held(false), &needs).severity, Severity::Warning);
    }
}
