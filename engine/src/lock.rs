//! The lock of a data directory: one process has it at a time, and keeps it beyond its death for as long as the kernel is
//! still carrying out what it had asked of the disk.
//!
//! io_uring waits for nobody: a process that was killed is gone while its writes are on their way, for seconds if the disk
//! stands still. Whoever began in its place meanwhile would find logs without them, write its own where they go, and lose
//! those to the late ones. So the rings have the locked file too (IORING_REGISTER_FILES): a ring is let go of when the last
//! of its requests has ended, and the lock with it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    io::{
        BLOCK,
        direct::{DirectIo, create_dir_durably},
        rings,
    },
    start::StartError,
};

/// How long writes of a process that is gone are waited for. Whoever supervises this one starts it again then.
const PATIENCE: Duration = Duration::from_secs(60);
/// After that long it is said what is waited for.
const TOLD_AFTER: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// Said of one that is not to be seen.
const GONE: &str = ": one in another container, or one that was killed and has writes that do not reach the disk";

/// What is in the file once its process wants the lock no more.
const ENDED: &str = "ended";

/// A data directory is this process's for as long as this lives.
#[derive(Debug)]
pub(crate) struct DataLock {
    file: File,
    path: PathBuf,
}

/// What is said of who has the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    /// A process that runs.
    Runs(u32),
    /// One that is gone, or has let go of it, if not all of what it wrote has ended.
    Gone(Option<u32>),
    /// Nobody can tell.
    Unknown,
}

impl DataLock {
    /// Creates the data directory and locks it.
    pub(crate) fn take(data_dir: &Path) -> Result<Self, StartError> {
        create_dir_durably(data_dir)
            .map_err(|error| StartError::io(format!("creating the data directory {}", data_dir.display()), error))?;
        let path = data_dir.join("lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|error| StartError::io(format!("opening {}", path.display()), error))?;
        wait_for(&mut file, data_dir)?;
        let mut lock = Self { file, path };
        match lock.write(&own_text()) {
            // A node must start on a full disk; a lock file of a former run is as good.
            Err(full) if full.kind() == io::ErrorKind::StorageFull => Ok(lock),
            Err(error) => Err(StartError::io(format!("writing {}", lock.path.display()), error)),
            Ok(()) => Ok(lock),
        }
    }

    /// Where the file is. It is never empty, see `DirectIo::new`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The disk, for the executor that this is called on, before any other file of the directory is opened.
    pub(crate) async fn disk(&self) -> Result<DirectIo, StartError> {
        DirectIo::new(&self.path).await.map_err(|error| StartError::io(self.path.display(), error))
    }

    /// The directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path.parent().expect("it lies in the directory").to_owned()
    }

    /// Makes something that has rings: as long as any of their requests has not ended, the lock is kept.
    pub(crate) fn keep_with_rings_of<T>(&self, make: impl FnOnce() -> T) -> T {
        let (made, kept) = rings::keep_open(&self.file, make);
        // It runs without that too, only not safely if it is killed while the disk stands still.
        if let Err(error) = kept {
            tracing::warn!(%error, "the data directory is locked for this process only, not for its last writes");
        }
        made
    }

    /// Lets go of it at once: all that was asked of the disk has ended.
    pub(crate) fn release(&self) {
        // if that fails, the rings do it in a moment
        drop(self.file.unlock());
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let mut block = text.to_owned();
        block.extend(std::iter::repeat_n('\n', BLOCK - text.len()));
        self.file.rewind()?;
        self.file.write_all(block.as_bytes())?;
        self.file.sync_all()
    }
}

impl Drop for DataLock {
    fn drop(&mut self) {
        // Without it, who comes next in this very process would take it for one that runs.
        drop(self.write(ENDED));
    }
}

/// Waits until the lock is free and takes it, unless a process that runs has it.
fn wait_for(file: &mut File, data_dir: &Path) -> Result<(), StartError> {
    let began = Instant::now();
    let mut is_told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(StartError::io(format!("locking {}", data_dir.display()), error));
            }
        }
        let holder = holder(file);
        let is_over = began.elapsed() > PATIENCE;
        let said = match holder {
            Holder::Runs(pid) => Some(format!(" (pid {pid})")),
            Holder::Gone(_) if is_over => Some(GONE.to_owned()),
            Holder::Unknown if is_over => Some(String::new()),
            Holder::Gone(_) | Holder::Unknown => None,
        };
        if let Some(holder) = said {
            return Err(StartError::Locked { path: data_dir.to_owned(), holder });
        }
        if !is_told && began.elapsed() > TOLD_AFTER {
            is_told = true;
            tracing::warn!(
                ?holder,
                "a process that is gone has writes on their way to the disk: waiting for their end"
            );
        }
        thread::sleep(PAUSE);
    }
}

/// A process is known by its number and when it was started: numbers come again, and in a container all are 1.
fn own_text() -> String {
    let pid = std::process::id();
    let started = started(pid).map(|ticks| format!("started {ticks}\n")).unwrap_or_default();
    format!("pid {pid}\n{started}")
}

fn holder(file: &mut File) -> Holder {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(_) => said_by(&text, started),
        Err(_) => Holder::Unknown,
    }
}

fn said_by(text: &str, started: impl Fn(u32) -> Option<u64>) -> Holder {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if first == ENDED {
        return Holder::Gone(None);
    }
    let Some(pid) = first.strip_prefix("pid ").and_then(|pid| pid.parse().ok()) else { return Holder::Unknown };
    // who wrote no time was an earlier version
    let known = lines.next().and_then(|line| line.strip_prefix("started ")).and_then(|ticks| ticks.parse().ok());
    match started(pid) {
        Some(ticks) if known.is_none_or(|known: u64| known == ticks) => Holder::Runs(pid),
        _ => Holder::Gone(Some(pid)),
    }
}

/// When a process was started, in ticks since the boot (proc(5), field 22 of stat). None if it does not run, or only
/// waits for its parent to hear of its end.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the second field is the program's name in parentheses, with whatever is in it
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::executor;

    #[test]
    fn a_process_is_known_by_when_it_was_started() {
        let runs = |pid| (pid == 7).then_some(500);
        for (text, holder) in [
            ("pid 7\nstarted 500\n\n\n", Holder::Runs(7)),
            ("pid 7\n\n\n", Holder::Runs(7)),
            ("pid 7\nstarted 400\n", Holder::Gone(Some(7))),
            ("pid 8\nstarted 500\n", Holder::Gone(Some(8))),
            ("ended\n\n", Holder::Gone(None)),
            ("", Holder::Unknown),
            ("pid seven\n", Holder::Unknown),
        ] {
            assert_eq!(said_by(text, runs), holder, "{text:?}");
        }
        assert_eq!(said_by(&own_text(), started), Holder::Runs(std::process::id()));
    }

    #[test]
    fn one_that_runs_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("there is a folder for it");
        let lock = DataLock::take(dir.path()).expect("nobody has it");
        let refused = DataLock::take(dir.path()).expect_err("it is taken");
        assert!(refused.to_string().contains(&format!("(pid {})", std::process::id())), "{refused}");
        lock.release();
        drop(DataLock::take(dir.path()).expect("nobody has it any more"));
    }

    /// A node that was started while writes of a killed one were on their way lost its own to them.
    #[test]
    fn rings_keep_the_lock_of_one_that_is_gone() {
        let dir = tempfile::tempdir().expect("there is a folder for it");
        let path = dir.path().to_owned();
        let lock = DataLock::take(&path).expect("nobody has it");
        let executor = executor(&lock, "test", None).expect("there is io_uring");
        drop(lock);
        let file = File::open(path.join("lock")).expect("it is there");
        assert!(matches!(file.try_lock(), Err(TryLockError::WouldBlock)), "the executor has its rings");
        drop(executor);
        drop(DataLock::take(&path).expect("the kernel lets go of rings in a while"));
    }
}
