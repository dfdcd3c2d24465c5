//! Limits of this process: memory registered with the kernel, open descriptors.

use std::fs;

use crate::{
    Finding, Needs,
    sys::{self, Limit, Resource},
};

/// glommio refuses to start an executor below this memlock limit, whatever the user's privileges.
const MEMLOCK_MIN: u64 = 512 << 10;

/// glommio registers a shard's I/O memory in each of its three rings. It lies in pages of the usual size, as a node takes
/// no others: in huge ones the kernel would charge each ring for these as a whole.
const RINGS: u64 = 3;

/// Descriptors that a shard has open besides connections and files of the log.
const SHARD_DESCRIPTORS: u64 = 32;

/// Descriptors for segments that are read and written at a time, catalogs, logs.
const FILE_DESCRIPTORS: u64 = 512;

/// Raises the soft limits of descriptors and locked memory to the hard ones, as any process may, and the hard limit
/// of locked memory where this process is allowed to. Call once, before threads and checks.
pub fn raise() {
    for resource in [Resource::Descriptors, Resource::LockedMemory] {
        if let Ok(limit) = sys::limit(resource)
            && limit.soft < limit.hard
        {
            // What cannot be raised is reported by the check that follows.
            let _unchanged = sys::set_limit(resource, Limit { soft: limit.hard, ..limit });
        }
    }
    if let Ok(limit) = sys::limit(Resource::LockedMemory)
        && limit.hard != u64::MAX
    {
        let _unchanged = sys::set_limit(Resource::LockedMemory, Limit { soft: u64::MAX, hard: u64::MAX });
    }
}

/// Connections for which there are descriptors beside those of the log, with so many shards.
pub fn connections_max(shards: usize) -> u64 {
    let allowed = sys::limit(Resource::Descriptors).map_or(u64::MAX, |limit| limit.soft);
    allowed.saturating_sub(own_descriptors(shards))
}

fn own_descriptors(shards: usize) -> u64 {
    FILE_DESCRIPTORS + SHARD_DESCRIPTORS * shards as u64
}

/// Looks at the limits as they are now.
pub fn check(needs: &Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(limit) = sys::limit(Resource::LockedMemory) {
        findings.push(judge_memlock(limit, may_lock_memory(), needs));
    }
    if let Ok(limit) = sys::limit(Resource::Descriptors) {
        findings.push(judge_descriptors(limit, needs));
    }
    findings
}

/// Whether locked memory of this process is charged to nobody (CAP_IPC_LOCK).
fn may_lock_memory() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| has_ipc_lock(&status))
}

fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u64 = 14;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask >> CAP_IPC_LOCK & 1 == 1
}

const FIX_MEMLOCK: &str = "LimitMEMLOCK=infinity (systemd unit), 'USER - memlock unlimited' in \
    /etc/security/limits.conf and a new login, or --ulimit memlock=-1 (docker)";

fn judge_memlock(limit: Limit, privileged: bool, needs: &Needs) -> Finding {
    const CHECK: &str = "memlock";
    let wanted = RINGS * needs.io_memory_bytes * needs.shards as u64;
    if limit.soft < MEMLOCK_MIN {
        return Finding::error(
            CHECK,
            format!("{} of locked memory allowed", size(limit.soft)),
            "the runtime starts no shard below 512 KiB",
            FIX_MEMLOCK,
        );
    }
    if privileged || limit.soft >= wanted {
        return Finding::good(CHECK, format!("{} of I/O memory can be registered", size(wanted)));
    }
    Finding::warning(
        CHECK,
        format!("{} of locked memory allowed, {} wanted", size(limit.soft), size(wanted)),
        "I/O buffers are not registered with the kernel: each read and write pins its pages anew and costs more CPU",
        FIX_MEMLOCK,
    )
}

fn judge_descriptors(limit: Limit, needs: &Needs) -> Finding {
    const CHECK: &str = "nofile";
    let own = own_descriptors(needs.shards);
    let wanted = own + needs.max_connections;
    // The soft limit is raised at the start, so that only the hard one counts.
    let allowed = limit.hard;
    let fix = format!("LimitNOFILE={wanted} or more (systemd unit), or a lower --max-connections");
    if allowed < own {
        let why = "the log's own files alone need more";
        return Finding::error(CHECK, format!("{allowed} open files allowed, {own} needed at least"), why, fix);
    }
    if allowed < wanted {
        let what = format!("{allowed} open files allowed, {wanted} wanted for {} connections", needs.max_connections);
        let why = format!("the node takes no more than {} connections", allowed - own);
        return Finding::warning(CHECK, what, why, fix);
    }
    Finding::good(CHECK, format!("{allowed} open files"))
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        u64::MAX => "any amount".to_owned(),
        b if b >= 10 << 30 => format!("{} GiB", b >> 30),
        b if b >= 10 << 20 => format!("{} MiB", b >> 20),
        b => format!("{} KiB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;

    fn needs() -> Needs {
        Needs {
            data_dir: "/nowhere".into(),
            listen: Vec::new(),
            advertised: Vec::new(),
            shards: 2,
            io_memory_bytes: 10 << 20,
            max_connections: 1000,
            memory_bytes: 0,
            wal_bytes: 0,
            wal_first_bytes: 0,
            reserve_bytes: 0,
        }
    }

    fn limit(soft: u64, hard: u64) -> Limit {
        Limit { soft, hard }
    }

    #[test]
    fn memlock_must_cover_three_rings_of_each_shard() {
        for (soft, privileged, severity) in [
            (64 << 10, true, Severity::Error),
            (64 << 10, false, Severity::Error),
            (8 << 20, false, Severity::Warning),
            (8 << 20, true, Severity::Good),
            ((60 << 20) - 1, false, Severity::Warning),
            (60 << 20, false, Severity::Good),
            (u64::MAX, false, Severity::Good),
        ] {
            let finding = judge_memlock(limit(soft, soft), privileged, &needs());
            assert_eq!(finding.severity, severity, "{soft}: {finding}");
        }
    }

    #[test]
    fn descriptors_must_cover_the_connections() {
        for (hard, severity) in [(100, Severity::Error), (1024, Severity::Warning), (20_000, Severity::Good)] {
            assert_eq!(judge_descriptors(limit(64, hard), &needs()).severity, severity, "{hard}");
        }
    }

    #[test]
    fn the_capability_to_lock_memory_is_read_from_the_mask() {
        assert!(has_ipc_lock("CapPrm:\t0\nCapEff:\t0000000000004000\n"));
        assert!(has_ipc_lock("CapEff:\t000001ffffffffff\n"));
        assert!(!has_ipc_lock("CapEff:\t0000000000000000\n"));
        assert!(!has_ipc_lock(""));
    }

    #[test]
    fn raising_leaves_the_soft_limit_at_the_hard_one() {
        raise();
        let descriptors = sys::limit(Resource::Descriptors).unwrap();
        assert_eq!(descriptors.soft, descriptors.hard);
    }
}
