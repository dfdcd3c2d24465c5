//! The system calls that std does not offer. Thin: each function makes one call and gives its error back.
#![expect(unsafe_code, reason = "system calls without a safe interface in std")]

use std::{ffi::CString, io, mem::MaybeUninit, os::fd::AsRawFd, os::unix::ffi::OsStrExt, path::Path};

/// Soft and hard limit of a resource; `u64::MAX` is without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Which resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Memory that may be locked or registered with the kernel, in bytes.
    LockedMemory,
    /// Open descriptors.
    Descriptors,
}

impl Resource {
    fn id(self) -> libc::__rlimit_resource_t {
        match self {
            Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
            Resource::Descriptors => libc::RLIMIT_NOFILE,
        }
    }
}

/// Reads a limit of this process.
pub(crate) fn limit(resource: Resource) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    match unsafe { libc::getrlimit(resource.id(), &mut limit) } {
        0 => Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets a limit of this process.
pub(crate) fn set_limit(resource: Resource, to: Limit) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: to.soft, rlim_max: to.hard };
    // SAFETY: `limit` is valid and only read.
    match unsafe { libc::setrlimit(resource.id(), &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a ring of `entries` and closes it again.
pub(crate) fn try_io_uring(entries: u32) -> io::Result<()> {
    // struct io_uring_params is 120 bytes; all zero asks for nothing special.
    let mut params = [0u64; 15];
    // SAFETY: `params` has the size that the kernel reads and writes.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, params.as_mut_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor was just made and is owned by nobody else.
    unsafe { libc::close(fd) };
    Ok(())
}

/// Kind and size of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The magic number that statfs gives.
    pub(crate) kind: u64,
    pub(crate) total_bytes: u64,
    /// Bytes that this user may still write.
    pub(crate) free_bytes: u64,
}

/// Looks at the file system that holds a path.
pub(crate) fn volume(path: &Path) -> io::Result<Volume> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends in a zero byte and `stat` is a valid place for the result.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and so filled it in.
    let stat = unsafe { stat.assume_init() };
    let block = u64::try_from(stat.f_bsize).unwrap_or(0);
    Ok(Volume {
        kind: u64::try_from(stat.f_type).unwrap_or(0),
        total_bytes: block * stat.f_blocks,
        free_bytes: block * stat.f_bavail,
    })
}

/// One block for direct I/O.
#[repr(C, align(4096))]
pub(crate) struct Block(pub(crate) [u8; 4096]);

/// Writes a block to the start of a file. The file is open for direct I/O.
pub(crate) fn write_block(file: &std::fs::File, block: &Block) -> io::Result<()> {
    // SAFETY: the pointer and length describe `block`, which outlives the call.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), block.0.as_ptr().cast(), block.0.len(), 0) };
    match written {
        4096 => Ok(()),
        n if n < 0 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
