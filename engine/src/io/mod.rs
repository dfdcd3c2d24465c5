//! What the shells of the engine need from an operating system, and nothing more: direct files, timers, tasks.
//!
//! Two implementations: `direct` on glommio, and `sim`, a deterministic fake disk that loses, tears and reorders
//! whatever was not flushed. The shells are generic over `Io`, so that what is tested against crashes is the code
//! that runs in production.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use crate::chunk::Memory;

pub(crate) mod direct;
pub(crate) mod residency;
pub(crate) mod rings;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod sim;
pub(crate) mod window;

/// Every position and length of a direct read or write is a multiple of this; a power of two. 4096 satisfies every
/// block device in use (STATX_DIOALIGN reports 512 or 4096).
pub(crate) const BLOCK: usize = 4096;

/// Largest single read or write. Larger ones are split: some kernels hang on direct reads above the device's
/// max_sectors, and a shard should not wait long for one of many.
pub(crate) const IO_BYTES_MAX: usize = 1 << 20;

/// Rounds up to whole blocks.
pub(crate) const fn align_up(bytes: u64) -> u64 {
    (bytes + BLOCK as u64 - 1) & !(BLOCK as u64 - 1)
}

/// Rounds down to whole blocks.
pub(crate) const fn align_down(bytes: u64) -> u64 {
    bytes & !(BLOCK as u64 - 1)
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// Existing, for reading.
    Read,
    /// Existing, for reading and writing.
    Existing,
    /// For reading and writing, created when missing.
    Write,
    /// Existing, for writing; a completed write is on stable storage (O_DSYNC).
    WriteDurable,
}

/// Which share of the shard's time a task gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// Requests and the shared log.
    Serving,
    /// Materialisation, retention, zero-filling: may wait, may not starve.
    Background,
}

/// Disk, clock and tasks of one shard.
pub(crate) trait Io: Clone + 'static {
    /// An open file.
    type File: File<Buffer = Self::Buffer> + 'static;
    /// Aligned memory that a file can write from.
    type Buffer: Buffer;

    /// Zeroed or dirty aligned memory of `len` bytes, a multiple of [`BLOCK`].
    fn buffer(&self, len: usize) -> Self::Buffer;
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> impl Future<Output = io::Result<Self::File>>;
    /// Renames a file over another and makes that durable.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;
    /// Creates a directory and its parents, durably. Existing ones are fine.
    fn create_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>>;
    /// The same for many: a folder that several are made in is made durable once.
    fn create_dirs(&self, paths: Vec<PathBuf>) -> impl Future<Output = io::Result<()>>;
    /// Makes a directory's entries durable.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>>;
    /// Names in a directory, in no order; none when it is missing.
    fn list(&self, path: &Path) -> impl Future<Output = io::Result<Vec<String>>>;
    /// Removes a file, or a directory with all below it. A missing one is fine.
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>>;
    /// Free bytes of the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Runs a task to its end, whatever becomes of its starter.
    fn spawn(&self, share: Share, task: impl Future<Output = ()> + 'static);
    /// Waits.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()>;
    /// Lets other tasks run.
    fn yield_now(&self) -> impl Future<Output = ()>;
    /// Runs work that would keep the shard from serving for long on a thread beside it, which yields to the shards.
    fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T>;
    /// Wall clock, in ms since the epoch.
    fn now_ms(&self) -> i64;
    /// Time since some moment, which no clock change moves: for measuring.
    fn elapsed(&self) -> Duration;
    /// A second, buffered descriptor of a file for sendfile, where that exists.
    fn buffered(&self, path: &Path) -> io::Result<Option<std::fs::File>>;
}

/// Aligned memory.
pub(crate) trait Buffer: Memory + 'static {
    /// The bytes, to fill in.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// An open file. Positions and lengths are multiples of [`BLOCK`].
pub(crate) trait File {
    /// What it writes from.
    type Buffer;

    /// Writes all of a buffer. In flight it may be shared with readers.
    fn write(&self, buffer: Rc<Self::Buffer>, position: u64) -> impl Future<Output = io::Result<()>>;
    /// Reads; shorter than asked only at the end of the file.
    fn read(&self, position: u64, len: usize) -> impl Future<Output = io::Result<Rc<dyn Memory>>>;
    /// Bytes of the file.
    fn size(&self) -> impl Future<Output = io::Result<u64>>;
    /// Makes everything written before durable, with the metadata needed to read it back (fdatasync).
    fn flush(&self) -> impl Future<Output = io::Result<()>>;
    /// Takes space of the file system for the first `bytes` of the file, so that writes there find it when the disk is
    /// full. Its length stays.
    fn take_space(&self, bytes: u64) -> impl Future<Output = io::Result<()>>;
    /// Closes; errors are reported.
    fn close(self) -> impl Future<Output = io::Result<()>>;
}
