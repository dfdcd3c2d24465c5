//! The lock of a data directory: one process has it at a time, and keeps it beyond its death for as long as the kernel is
//! still carrying out what it had asked of the disk.
//!
//! io_uring waits for nobody: a process that was killed is gone while its writes are on their way, for seconds if the disk
//! stands still. Whoever began in its place meanwhile would find logs without them, write its own where they go, and lose
//! those to the late ones. So the rings have the locked file too (IORING_REGISTER_FILES): a ring is let go of when the last
//! of its requests has ended, and the lock with it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    io::{
        BLOCK,
        direct::{DirectIo, create_dir_durably},
        rings,
    },
    start::{LockHolder, StartError},
};

/// How long a node waits for writes of a process that is gone. Whoever supervises it starts it again then.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a command does, which people wait for: rings of a process that has just ended need a moment.
const PATIENCE_OFFLINE: Duration = Duration::from_secs(2);
/// After that long it is said what is waited for.
const TOLD_AFTER: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// What is in the file once its process wants the lock no more.
const ENDED: &str = "ended";

/// A data directory is this process's for as long as this lives.
#[derive(Debug)]
pub(crate) struct DataLock {
    file: File,
    path: PathBuf,
    /// All that was asked of the disk has ended. Shared, as shards' threads hold the lock too: set once, by the thread that
    /// started them, when they are gone.
    is_at_rest: AtomicBool,
}

/// Who has the lock of a data directory now, if anybody has it. Of one that is not to be seen it is told only if it keeps the
/// lock for longer than the end of any process takes.
pub fn lock_holder(data_dir: &Path) -> Option<LockHolder> {
    let began = Instant::now();
    loop {
        let mut file = File::open(data_dir.join("lock")).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {}
            // closing the file gives the lock back
            Ok(()) | Err(TryLockError::Error(_)) => return None,
        }
        match holder(&mut file) {
            LockHolder::Unseen if began.elapsed() < PATIENCE_OFFLINE => thread::sleep(PAUSE),
            holder => return Some(holder),
        }
    }
}

impl DataLock {
    /// Creates the data directory and locks it for a node. Unless one runs on it, waits until it is free, for a minute at
    /// most, and not if `is_stopping` says so.
    pub(crate) fn take(data_dir: &Path, is_stopping: impl Fn() -> bool) -> Result<Self, StartError> {
        Self::take_within(data_dir, PATIENCE, is_stopping)
    }

    /// The same for a command.
    pub(crate) fn take_offline(data_dir: &Path) -> Result<Self, StartError> {
        Self::take_within(data_dir, PATIENCE_OFFLINE, || false)
    }

    fn take_within(data_dir: &Path, patience: Duration, is_stopping: impl Fn() -> bool) -> Result<Self, StartError> {
        create_dir_durably(data_dir)
            .map_err(|error| StartError::io(format!("creating the data directory {}", data_dir.display()), error))?;
        let path = data_dir.join("lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|error| StartError::io(format!("opening {}", path.display()), error))?;
        let began = Instant::now();
        wait_for(&mut file, data_dir, || began.elapsed() > patience || is_stopping())?;
        let lock = Self { file, path, is_at_rest: AtomicBool::new(false) };
        match lock.write(&own_text()).and_then(|()| lock.file.sync_all()) {
            // A node must start on a full disk. Others hear of the lock then, and not of who has it.
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

    /// All that was asked of the disk has ended: the lock need not wait for the rings, nor, where several nodes live in one
    /// process, for another one's that came to keep it.
    pub(crate) fn at_rest(&self) {
        self.is_at_rest.store(true, Ordering::Relaxed);
    }

    /// Not durable: after a restart of the machine nobody has the lock.
    fn write(&self, text: &str) -> io::Result<()> {
        let mut block = text.to_owned();
        block.extend(std::iter::repeat_n('\n', BLOCK - text.len()));
        self.file.write_all_at(block.as_bytes(), 0)
    }
}

impl Drop for DataLock {
    fn drop(&mut self) {
        // Without it, who comes next in this very process would take it for one that runs. Before the lock is free, as who
        // has it then writes here too.
        drop(self.write(ENDED));
        if self.is_at_rest.load(Ordering::Relaxed) {
            // if that fails, the rings do it in a moment
            drop(self.file.unlock());
        }
    }
}

/// Waits until the lock is free and takes it, unless a process that runs has it.
fn wait_for(file: &mut File, data_dir: &Path, is_over: impl Fn() -> bool) -> Result<(), StartError> {
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
        if matches!(holder, LockHolder::Runs(_)) || is_over() {
            return Err(StartError::Locked { path: data_dir.to_owned(), holder });
        }
        if !is_told && began.elapsed() > TOLD_AFTER {
            is_told = true;
            tracing::warn!("the data directory is in use by {holder}: waiting for its end");
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

fn holder(file: &mut File) -> LockHolder {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(_) => said_by(&text, started),
        Err(_) => LockHolder::Unseen,
    }
}

fn said_by(text: &str, started: impl Fn(u32) -> Option<u64>) -> LockHolder {
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.strip_prefix("pid ")).and_then(|pid| pid.parse().ok());
    let Some(pid) = pid else { return LockHolder::Unseen };
    // who wrote no time was an earlier version
    let known = lines.next().and_then(|line| line.strip_prefix("started ")).and_then(|ticks| ticks.parse().ok());
    match started(pid) {
        Some(ticks) if known.is_none_or(|known: u64| known == ticks) => LockHolder::Runs(pid),
        _ => LockHolder::Unseen,
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
            ("pid 7\nstarted 500\n\n\n", LockHolder::Runs(7)),
            ("pid 7\n\n\n", LockHolder::Runs(7)),
            ("pid 7\nstarted 400\n", LockHolder::Unseen),
            ("pid 8\nstarted 500\n", LockHolder::Unseen),
            ("ended\n\n", LockHolder::Unseen),
            ("", LockHolder::Unseen),
            ("pid seven\n", LockHolder::Unseen),
        ] {
            assert_eq!(said_by(text, runs), holder, "{text:?}");
        }
        assert_eq!(said_by(&own_text(), started), LockHolder::Runs(std::process::id()));
    }

    #[test]
    fn one_that_runs_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("there is a folder for it");
        let lock = DataLock::take_offline(dir.path()).expect("nobody has it");
        let refused = DataLock::take_offline(dir.path()).expect_err("it is taken");
        assert!(refused.to_string().ends_with(&format!("is in use by pid {}", std::process::id())), "{refused}");
        assert_eq!(lock_holder(dir.path()), Some(LockHolder::Runs(std::process::id())));
        lock.at_rest();
        drop(lock);
        assert_eq!(lock_holder(dir.path()), None);
        drop(DataLock::take_offline(dir.path()).expect("nobody has it any more"));
    }

    /// A node that was started while writes of a killed one were on their way lost its own to them.
    #[test]
    fn rings_keep_the_lock_of_one_that_is_gone() {
        if !rings::can_keep_open() {
            return println!("skipped: this kernel's rings keep no file");
        }
        let dir = tempfile::tempdir().expect("there is a folder for it");
        let lock = DataLock::take_offline(dir.path()).expect("nobody has it");
        let executor = executor(&lock, "test", None).expect("there is io_uring");
        drop(lock);
        assert_eq!(lock_holder(dir.path()), Some(LockHolder::Unseen), "the executor has its rings");
        let asked = Instant::now();
        let stopped = DataLock::take(dir.path(), || asked.elapsed() > Duration::from_millis(50));
        assert!(stopped.expect_err("it is not free").to_string().contains("not to be seen"));
        drop(executor);
        drop(DataLock::take(dir.path(), || false).expect("the kernel lets go of rings in a while"));
    }
}
