//! The io_uring instances of this process, as the kernel has them: glommio keeps theirs to itself.
#![expect(unsafe_code, reason = "neither std nor glommio registers files with a ring")]

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

/// IORING_REGISTER_FILES of io_uring_register(2).
const REGISTER_FILES: libc::c_uint = 2;

/// Kernels before this one may wait for all requests of a ring to end before they register a file with it, and some never
/// do.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Makes something that has rings, and has these keep a file open: until the last of their requests has ended, even if the
/// process is gone before. On kernels before 6.1 they do not. What another thread makes meanwhile may keep the file too, and
/// then none of its own: a process has one such file, but for tests.
pub(crate) fn keep_open<T>(file: &File, make: impl FnOnce() -> T) -> (T, io::Result<()>) {
    if !can_keep_open() {
        return (make(), Ok(()));
    }
    let before = rings();
    let made = make();
    (made, before.and_then(|before| register_others(&before, file)))
}

/// Whether the kernel is new enough.
pub(crate) fn can_keep_open() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel(&release).is_some_and(|kernel| kernel >= KERNEL_MIN)
}

fn register_others(before: &[RawFd], file: &File) -> io::Result<()> {
    let registered: Vec<_> =
        rings()?.into_iter().filter(|ring| !before.contains(ring)).map(|ring| register(ring, file)).collect();
    match registered.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "no ring is to be seen in /proc/self/fd")),
        false => registered.into_iter().collect(),
    }
}

fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn rings() -> io::Result<Vec<RawFd>> {
    let mut rings = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // others close theirs meanwhile
        let is_ring = fs::read_link(entry.path()).is_ok_and(|target| target == Path::new("anon_inode:[io_uring]"));
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        rings.extend(number.filter(|_| is_ring));
    }
    Ok(rings)
}

fn register(ring: RawFd, file: &File) -> io::Result<()> {
    let files = [file.as_raw_fd()];
    // SAFETY: the one descriptor outlives the call, which the kernel copies; whatever `ring` is by now, one that is no ring
    // is refused.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, REGISTER_FILES, files.as_ptr(), 1) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // it has one already; it was closed by another thread
        Some(libc::EBUSY | libc::EBADF | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_first_two_numbers() {
        for (release, known) in [
            ("6.1.0-28-amd64\n", Some((6, 1))),
            ("5.10.0-28-cloud-amd64", Some((5, 10))),
            ("6.18.44-fc", Some((6, 18))),
            ("7", None),
            ("", None),
        ] {
            assert_eq!(kernel(release), known, "{release:?}");
        }
        assert!((5, 19) < KERNEL_MIN && (6, 1) >= KERNEL_MIN && (10, 0) > KERNEL_MIN);
    }
}
