//! Whether this kernel lets this process use io_uring.

use std::{fs, io};

use crate::{Finding, sys};

const CHECK: &str = "io_uring";

/// Oldest kernel that has every io_uring operation that the runtime (glommio) uses.
const OLDEST: (u32, u32) = (5, 8);

/// The first one on which rings keep the lock of the data folder: as `KERNEL_MIN` of `engine/src/io/rings.rs`.
const SAFE_TO_KILL: (u32, u32) = (6, 1);

/// From here on memory of rings is charged to the cgroup and no longer to RLIMIT_MEMLOCK.
const RING_MEMORY_UNLIMITED: (u32, u32) = (5, 12);

/// Looks at the kernel's release and makes a ring for a moment.
pub fn check() -> Vec<Finding> {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = vec![judge_release(&release)];
    let disabled = read("/proc/sys/kernel/io_uring_disabled").and_then(|text| text.parse().ok());
    let filtered = read("/proc/self/status").as_deref().is_some_and(has_seccomp_filter);
    findings.push(match sys::try_io_uring(8) {
        Ok(()) => Finding::good(CHECK, "available"),
        Err(error) => judge_refusal(&error, disabled, filtered, parse_release(&release)),
    });
    findings
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Major and minor number of a release like `6.1.0-18-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn judge_release(release: &str) -> Finding {
    match parse_release(release) {
        Some(version) if version < OLDEST => Finding::error(
            "kernel",
            format!("Linux {release} is too old"),
            "millrace does all its I/O through io_uring operations that came with Linux 5.8",
            "boot a kernel of 5.8 or later; 6.1 or later is recommended",
        ),
        Some(version) if version < SAFE_TO_KILL => Finding::warning(
            "kernel",
            format!("Linux {release}"),
            "writes of a node that was killed may still be on their way when the next one begins, and go over its own",
            "boot 6.1 or later: there the next one waits for them",
        ),
        _ => Finding::good("kernel", format!("Linux {release}")),
    }
}

/// Whether `/proc/self/status` says that a filter of system calls is in force.
fn has_seccomp_filter(status: &str) -> bool {
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}

const WHY: &str = "millrace does all its I/O through io_uring";
const FIX_SECCOMP: &str = "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile \
    (docker: --security-opt seccomp=unconfined or a profile of your own; systemd: name the three in SystemCallFilter=)";

fn judge_refusal(error: &io::Error, disabled: Option<u32>, filtered: bool, release: Option<(u32, u32)>) -> Finding {
    match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), Some(2)) => Finding::error(
            CHECK,
            "switched off for everybody (kernel.io_uring_disabled = 2)",
            WHY,
            "sysctl -w kernel.io_uring_disabled=0, and the same in /etc/sysctl.d/ to keep it",
        ),
        (Some(libc::EPERM), Some(1)) => Finding::error(
            CHECK,
            "switched off for this user (kernel.io_uring_disabled = 1)",
            WHY,
            "add the user to the group of kernel.io_uring_group, or sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(libc::EPERM | libc::EACCES), _) => Finding::error(
            CHECK,
            format!("refused ({error}): by a seccomp filter or a security module, as in most containers"),
            WHY,
            FIX_SECCOMP,
        ),
        (Some(libc::ENOSYS), _) if filtered => {
            Finding::error(CHECK, "hidden by a seccomp filter, as in most containers", WHY, FIX_SECCOMP)
        }
        (Some(libc::ENOSYS), _) => Finding::error(
            CHECK,
            "not in this kernel",
            WHY,
            "boot a kernel that is built with CONFIG_IO_URING (5.8 or later; gVisor has none)",
        ),
        (Some(libc::ENOMEM), _) if release.is_none_or(|version| version < RING_MEMORY_UNLIMITED) => Finding::error(
            CHECK,
            "too little locked memory for a ring",
            "before Linux 5.12 the rings themselves count as locked memory",
            "raise memlock: LimitMEMLOCK=infinity (systemd), ulimit -l unlimited, --ulimit memlock=-1 (docker)",
        ),
        _ => Finding::error(CHECK, format!("cannot make a ring: {error}"), WHY, "see the error of io_uring_setup(2)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, severity) in [
            ("6.1.0-18-amd64", Severity::Good),
            ("5.8.0", Severity::Warning),
            ("5.10.0-28-cloud", Severity::Warning),
            ("5.7.19", Severity::Error),
            ("4.19.0-26-amd64", Severity::Error),
            ("who knows", Severity::Good),
        ] {
            assert_eq!(judge_release(release).severity, severity, "{release}");
        }
    }

    #[test]
    fn each_refusal_names_its_reason() {
        let refusal = |errno, disabled, filtered| {
            judge_refusal(&io::Error::from_raw_os_error(errno), disabled, filtered, Some((5, 10)))
        };
        for (finding, what, fix) in [
            (refusal(libc::EPERM, Some(2), false), "everybody", "io_uring_disabled=0"),
            (refusal(libc::EPERM, Some(1), false), "this user", "io_uring_group"),
            (refusal(libc::EPERM, Some(0), true), "seccomp", "seccomp"),
            (refusal(libc::EPERM, None, true), "seccomp", "seccomp"),
            (refusal(libc::ENOSYS, None, true), "seccomp", "seccomp"),
            (refusal(libc::ENOSYS, None, false), "not in this kernel", "CONFIG_IO_URING"),
            (refusal(libc::ENOMEM, None, false), "locked memory", "memlock"),
            (refusal(libc::EMFILE, None, false), "cannot make a ring", "io_uring_setup"),
        ] {
            assert_eq!(finding.severity, Severity::Error);
            assert!(finding.what.contains(what) && finding.fix.contains(fix), "{finding}");
        }
    }

    #[test]
    fn a_seccomp_filter_is_seen() {
        assert!(has_seccomp_filter("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!has_seccomp_filter("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n"));
    }
}
