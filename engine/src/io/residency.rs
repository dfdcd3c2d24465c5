//! Asks the kernel which pages of a file are in memory, and to bring some there. Neither call waits for the disk.

use std::{fs::File, ops::Range, os::fd::AsRawFd};

/// A probe every so many bytes: read-ahead brings in longer stretches than this.
const PROBE_BYTES: usize = 64 << 10;

/// Whether the pages of a range are in memory, as far as probes tell. preadv2(2) with RWF_NOWAIT answers EAGAIN where
/// it would have to wait.
pub(crate) fn is_resident(file: &File, range: Range<u64>) -> bool {
    let last = range.end.saturating_sub(1);
    range.clone().step_by(PROBE_BYTES).chain([last]).all(|position| probe(file, position))
}

#[expect(unsafe_code, reason = "std has no preadv2")]
fn probe(file: &File, position: u64) -> bool {
    let mut byte = [0u8; 1];
    let part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let Ok(position) = libc::off_t::try_from(position) else {
        return false;
    };
    // SAFETY: the one vector points to one writable byte that outlives the call.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, position, libc::RWF_NOWAIT) };
    read == 1
}

/// Starts reading a range into memory (posix_fadvise(2), POSIX_FADV_WILLNEED).
#[expect(unsafe_code, reason = "std has no posix_fadvise")]
pub(crate) fn read_ahead(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.end.saturating_sub(range.start)))
    else {
        return;
    };
    if len > 0 {
        // SAFETY: the call takes no pointers.
        let _advice_may_be_ignored =
            unsafe { libc::posix_fadvise(file.as_raw_fd(), start, len, libc::POSIX_FADV_WILLNEED) };
    }
}
