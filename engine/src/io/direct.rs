//! The disk, clock and tasks of one glommio executor. The only file of the engine that names glommio's files.
//!
//! Lives and dies with its executor; everything here is `!Send`.

use std::{
    cell::Cell,
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use glommio::{
    Latency, Shares, TaskQueueHandle,
    io::{DmaBuffer, DmaFile, OpenOptions, ReadResult},
};

use super::{BLOCK, Buffer, File, IO_BYTES_MAX, Io, Open, Share};
use crate::chunk::Memory;

/// Shares of background work, where serving has glommio's default of 1,000.
const BACKGROUND_SHARES: usize = 150;

/// Disk, clock and tasks of the executor it was made on.
#[derive(Clone)]
pub(crate) struct DirectIo {
    background: TaskQueueHandle,
    started: Instant,
    /// Calls on threads of the executor's pool.
    calls: Rc<Cell<usize>>,
}

impl DirectIo {
    /// Call once per executor, before any other file of the data directory is opened. `probe` is an existing non-empty file
    /// on that directory's device: glommio 0.9 decides from the first file it opens read-write whether the device supports
    /// polled I/O, and decides wrongly when that file is empty; a read-only open of a non-empty file decides rightly.
    pub(crate) async fn new(probe: &Path) -> io::Result<Self> {
        let file = DmaFile::open(probe).await.map_err(io::Error::from)?;
        let _first_read_settles_the_verdict = file.read_at_aligned(0, BLOCK).await.map_err(io::Error::from)?;
        file.close().await.map_err(io::Error::from)?;
        let background = glommio::executor().create_task_queue(
            Shares::Static(BACKGROUND_SHARES),
            Latency::NotImportant,
            "background",
        );
        Ok(Self { background, started: Instant::now(), calls: Rc::default() })
    }

    /// Runs a blocking call on a thread of the executor's pool. It is finished even if nobody waits for it any more.
    async fn blocking<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> T {
        let calls = self.calls.clone();
        calls.set(calls.get() + 1);
        let running = glommio::spawn_local(async move {
            let result = glommio::executor().spawn_blocking(call).await;
            calls.set(calls.get() - 1);
            result
        });
        running.detach().await.expect("a call ends before its executor")
    }

    /// Waits until no call is on a thread of the pool. To be waited for last before the executor ends: a thread that has
    /// nobody to answer any more panics.
    pub(crate) async fn rest(&self) {
        while self.calls.get() > 0 {
            self.sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Memory for DmaBuffer {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Buffer for DmaBuffer {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.as_bytes_mut()
    }
}

impl Memory for ReadResult {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Several reads side by side, for a range longer than one I/O.
struct Joined(Vec<u8>);

impl Memory for Joined {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A file opened with O_DIRECT.
pub(crate) struct DirectFile(DmaFile);

impl File for DirectFile {
    type Buffer = DmaBuffer;

    async fn write(&self, buffer: Rc<DmaBuffer>, position: u64) -> io::Result<()> {
        let wanted = buffer.len();
        let written = self.0.write_rc_at(buffer, position).await.map_err(io::Error::from)?;
        if written != wanted {
            // A short direct write means that the file system ran out of space half-way.
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("{written} of {wanted} bytes written at {position}"),
            ));
        }
        Ok(())
    }

    async fn read(&self, position: u64, len: usize) -> io::Result<Rc<dyn Memory>> {
        if len <= IO_BYTES_MAX {
            let read = self.0.read_at_aligned(position, len).await.map_err(io::Error::from)?;
            return Ok(Rc::new(read));
        }
        let mut joined = Vec::with_capacity(len);
        while joined.len() < len {
            let part = IO_BYTES_MAX.min(len - joined.len());
            let read = self.0.read_at_aligned(position + joined.len() as u64, part).await.map_err(io::Error::from)?;
            joined.extend_from_slice(&read);
            if read.len() < part {
                break;
            }
        }
        Ok(Rc::new(Joined(joined)))
    }

    async fn size(&self) -> io::Result<u64> {
        self.0.file_size().await.map_err(io::Error::from)
    }

    async fn flush(&self) -> io::Result<()> {
        self.0.fdatasync().await.map_err(io::Error::from)
    }

    async fn take_space(&self, bytes: u64) -> io::Result<()> {
        self.0.pre_allocate(bytes, true).await.map_err(io::Error::from)
    }

    async fn close(self) -> io::Result<()> {
        self.0.close().await.map_err(io::Error::from)
    }
}

impl Io for DirectIo {
    type File = DirectFile;
    type Buffer = DmaBuffer;

    fn buffer(&self, len: usize) -> DmaBuffer {
        assert!(len.is_multiple_of(BLOCK) && len > 0, "buffers are whole blocks");
        glommio::allocate_dma_buffer(len)
    }

    async fn open(&self, path: &Path, how: Open) -> io::Result<DirectFile> {
        let mut options = OpenOptions::new();
        match how {
            Open::Read => options.read(true),
            Open::Existing => options.read(true).write(true),
            Open::Write => options.read(true).write(true).create(true),
            Open::WriteDurable => options.write(true).custom_flags(libc::O_DSYNC),
        };
        Ok(DirectFile(options.dma_open(path).await.map_err(io::Error::from)?))
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.blocking(move || {
            std::fs::rename(&from, &to)?;
            sync_dir(to.parent().expect("a file has a folder"))
        })
        .await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move || create_dir_durably(&path)).await
    }

    async fn create_dirs(&self, paths: Vec<PathBuf>) -> io::Result<()> {
        self.blocking(move || create_dirs_durably(paths.iter().map(PathBuf::as_path))).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move || sync_dir(&path)).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let path = path.to_owned();
        self.blocking(move || match std::fs::read_dir(&path) {
            Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(other) => Err(other),
        })
        .await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move || match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(other) => Err(other),
        })
        .await
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        free_bytes(path)
    }

    fn spawn(&self, share: Share, task: impl Future<Output = ()> + 'static) {
        match share {
            Share::Serving => glommio::spawn_local(task).detach(),
            Share::Background => glommio::spawn_local_into(task, self.background)
                .expect("the background queue lives as long as the executor")
                .detach(),
        };
    }

    async fn sleep(&self, time: Duration) {
        glommio::timer::sleep(time).await;
    }

    async fn yield_now(&self) {
        glommio::yield_if_needed().await;
    }

    async fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let work = move || {
            yield_to_shards();
            work()
        };
        self.blocking(work).await
    }

    fn now_ms(&self) -> i64 {
        now_ms()
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn buffered(&self, path: &Path) -> io::Result<Option<std::fs::File>> {
        std::fs::File::open(path).map(Some)
    }
}

/// Wall clock, in ms since the epoch.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

/// Creates a directory and those above it, and makes every new entry durable.
pub(crate) fn create_dir_durably(path: &Path) -> io::Result<()> {
    create_dirs_durably(std::iter::once(path))
}

fn create_dirs_durably<'a>(paths: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    let mut changed = BTreeSet::new();
    for path in paths {
        let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
        std::fs::create_dir_all(path)?;
        changed.extend(missing.into_iter().filter_map(Path::parent).filter(|p| !p.as_os_str().is_empty()));
    }
    changed.into_iter().try_for_each(sync_dir)
}

/// Free bytes for unprivileged use of the file system that holds `path`.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    volume_bytes(path).map(|(_, free)| free)
}

/// How much a thread that works beside the shards yields to them: it gets a tenth of a CPU that a shard wants too.
const NICE: libc::c_int = 10;

/// Lowers the priority of the thread for good: it may do what else the pool's threads are for, which is not much.
#[expect(unsafe_code, reason = "std knows no priorities")]
fn yield_to_shards() {
    // SAFETY: plain numbers. On Linux, 0 is the calling thread.
    let _served_without_it_too = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// Size of the file system that holds `path`, and its free bytes for unprivileged use.
#[expect(unsafe_code, reason = "std has no statvfs")]
pub(crate) fn volume_bytes(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an all-zero statvfs is a valid value of that plain C struct.
    let mut out: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a NUL-terminated string and `out` is writable, both for the duration of the call.
    if unsafe { libc::statvfs(path.as_ptr(), &mut out) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((out.f_blocks * out.f_frsize, out.f_bavail * out.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use futures_util::FutureExt;
    use glommio::LocalExecutor;

    use super::*;

    #[test]
    fn folders_are_made_with_those_above_them_and_may_be_there() {
        let data = tempfile::tempdir().expect("there is a folder for it");
        let paths = ["topics/a/0", "topics/a/1", "topics/b/0"].map(|path| data.path().join(path));
        for _ in 0..2 {
            create_dirs_durably(paths.iter().map(PathBuf::as_path)).expect("there is space");
            assert!(paths.iter().all(|path| path.is_dir()));
        }
    }

    /// A file of a deleted topic that was being removed when the node stopped took the process down with it.
    #[test]
    fn a_call_that_nobody_waits_for_is_finished_before_the_executor_ends() {
        let probe = tempfile::NamedTempFile::new().expect("there is a folder for it");
        std::fs::write(probe.path(), [0; BLOCK]).expect("there is space");
        LocalExecutor::default().run(async {
            let io = DirectIo::new(probe.path()).await.expect("it can be read");
            let is_done = Arc::new(AtomicBool::new(false));
            let done = is_done.clone();
            let call = io.beside(move || {
                thread::sleep(Duration::from_millis(50));
                done.store(true, Ordering::Release);
            });
            assert!(call.now_or_never().is_none());
            io.rest().await;
            assert!(is_done.load(Ordering::Acquire));
        });
    }
}
