//! Memory and CPUs: whether the machine, or the cgroup that this process runs in, has what the node is told to use.

use std::{fs, path::Path};

use crate::{Finding, Needs, limits::size};

/// Memory of the process besides its budget: code, stacks, catalogs, allocator.
const BASE_BYTES: u64 = 96 << 20;

/// Looks at memory and CPUs.
pub fn check(needs: &Needs) -> Vec<Finding> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limit = cgroup_memory_limit();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut findings = Vec::new();
    if let (Some(total), Some(available)) = (bytes_of("MemTotal:", &meminfo), bytes_of("MemAvailable:", &meminfo)) {
        findings.push(judge_memory(Memory { total, available, limit }, needs));
    }
    findings.push(judge_cpus(cpus, needs));
    findings
}

/// What there is of memory, in bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// Of the machine.
    total: u64,
    /// Not in use.
    available: u64,
    /// What the cgroup allows.
    limit: Option<u64>,
}

/// A line of `/proc/meminfo` in bytes.
fn bytes_of(name: &str, meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The lowest memory limit of this process's cgroup and its parents, in bytes.
fn cgroup_memory_limit() -> Option<u64> {
    let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
    let folders = memory_cgroups(&membership);
    let limits = folders.iter().flat_map(|(root, path, file)| {
        let leaf = Path::new(root).join(path.trim_start_matches('/'));
        let chain: Vec<_> = leaf.ancestors().take_while(|p| p.starts_with(root)).map(|p| p.join(file)).collect();
        chain.into_iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
    });
    limits.min()
}

/// Mount point, path and limit file of the memory cgroups in `/proc/self/cgroup`: version 2, and version 1 of old.
fn memory_cgroups(membership: &str) -> Vec<(&'static str, String, &'static str)> {
    let mut found = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            found.push(("/sys/fs/cgroup", path.to_owned(), "memory.max"));
        } else if controllers.split(',').any(|name| name == "memory") {
            found.push(("/sys/fs/cgroup/memory", path.to_owned(), "memory.limit_in_bytes"));
        }
    }
    found
}

fn judge_memory(Memory { total, available, limit }: Memory, needs: &Needs) -> Finding {
    const CHECK: &str = "memory";
    let (most, whose) = match limit {
        Some(limit) if limit < total => (limit, "the cgroup allows"),
        _ => (total, "the machine has"),
    };
    if needs.memory_bytes > most {
        return Finding::error(
            CHECK,
            format!("{} for records, but {whose} {} in all", size(needs.memory_bytes), size(most)),
            "a budget that is not there would end the process while it serves",
            format!("--memory below {}, or more memory", size(most)),
        );
    }
    let wanted = needs.memory_bytes.saturating_add(BASE_BYTES);
    let (room, whose) = match limit {
        Some(limit) if limit < available => (limit, "allowed by the cgroup"),
        _ => (available, "available"),
    };
    if wanted > room {
        return Finding::warning(
            CHECK,
            format!("about {} wanted, {} {whose}", size(wanted), size(room)),
            "the kernel may kill the process when its budget fills up",
            "lower --memory, or give the machine or container more",
        );
    }
    Finding::good(CHECK, format!("about {} of {} {whose}", size(wanted), size(room)))
}

fn judge_cpus(cpus: usize, needs: &Needs) -> Finding {
    const CHECK: &str = "cpus";
    if needs.shards > cpus {
        return Finding::warning(
            CHECK,
            format!("{} shards on {cpus} usable CPUs", needs.shards),
            "shards that take turns on a CPU wait for each other, and every wait shows as latency",
            format!("--shards {cpus}"),
        );
    }
    Finding::good(CHECK, format!("{} shards on {cpus} usable CPUs", needs.shards))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;

    fn needs(memory_bytes: u64, shards: usize) -> Needs {
        Needs {
            data_dir: "/nowhere".into(),
            listen: Vec::new(),
            advertised: Vec::new(),
            shards,
            io_memory_bytes: 0,
            max_connections: 0,
            memory_bytes,
            wal_bytes: 0,
            wal_first_bytes: 0,
            reserve_bytes: 0,
        }
    }

    #[test]
    fn available_memory_is_read_from_meminfo() {
        assert_eq!(bytes_of("MemAvailable:", "MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(bytes_of("MemTotal:", "MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(9 << 10));
        assert_eq!(bytes_of("MemAvailable:", "MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn both_versions_of_cgroups_are_found() {
        let found = memory_cgroups("5:cpu,cpuacct:/a\n4:memory:/b\n0::/c/d\n");
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/memory", "/b".to_owned(), "memory.limit_in_bytes"),
                ("/sys/fs/cgroup", "/c/d".to_owned(), "memory.max"),
            ]
        );
    }

    #[test]
    fn a_budget_beyond_what_is_free_is_warned_of_and_one_beyond_the_machine_refused() {
        let gib = 1 << 30;
        let judged =
            |available, limit, wanted| judge_memory(Memory { total: 16 * gib, available, limit }, &needs(wanted, 1));
        assert_eq!(judged(8 * gib, None, gib).severity, Severity::Good);
        assert_eq!(judged(gib, None, gib).severity, Severity::Warning);
        assert_eq!(judged(gib, None, 16 * gib).severity, Severity::Warning);
        let beyond = judged(8 * gib, None, 17 * gib);
        assert_eq!(beyond.severity, Severity::Error);
        assert_eq!(beyond.what, "17 GiB for records, but the machine has 16 GiB in all");
        assert_eq!(judged(8 * gib, None, u64::MAX).severity, Severity::Error);
        let tight = judged(8 * gib, Some(gib), gib);
        assert_eq!(tight.severity, Severity::Warning);
        assert!(tight.what.contains("cgroup"));
        let in_container = judged(8 * gib, Some(gib), 2 * gib);
        assert_eq!(in_container.severity, Severity::Error);
        assert!(in_container.what.contains("the cgroup allows 1024 MiB"), "{in_container}");
    }

    #[test]
    fn more_shards_than_cpus_are_warned_of() {
        assert_eq!(judge_cpus(2, &needs(0, 2)).severity, Severity::Good);
        assert_eq!(judge_cpus(2, &needs(0, 3)).severity, Severity::Warning);
    }
}
