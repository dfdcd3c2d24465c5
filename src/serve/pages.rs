//! Pages of memory.

use std::io;

/// Asks the kernel for pages of the usual size only. The allocator would ask for huge ones: with buffers that come and go,
/// a few bytes in use keep two MiB resident each, a third of what a busy broker has, and nothing is faster for it.
#[expect(unsafe_code, reason = "std has no prctl")]
pub(super) fn refuse_huge() {
    // SAFETY: the call takes no pointers.
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } != 0 {
        tracing::debug!("huge pages stay on: {}", io::Error::last_os_error());
    }
}
