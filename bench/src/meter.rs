//! CPU time and memory of the server (from /proc) and of this tool.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::sys;

/// CPU time and memory of a process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// CPU time since its start, user and system, all threads.
    pub cpu: Duration,
    /// Resident bytes now.
    pub rss_bytes: u64,
    /// Most resident bytes since the start or since [`reset_peak`].
    pub peak_rss_bytes: u64,
}

/// Reads a process' usage.
pub fn usage(pid: u32) -> anyhow::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    Ok(Usage {
        cpu: parse_cpu(&stat, sys::clock_ticks())?,
        rss_bytes: parse_kib(&status, "VmRSS:").context("no VmRSS")? * 1024,
        peak_rss_bytes: parse_kib(&status, "VmHWM:").context("no VmHWM")? * 1024,
    })
}

/// Lets a process' peak memory start anew; needs the right to write its /proc files, and is left out without.
pub fn reset_peak(pid: u32) {
    // a run as another user than the server's measures the peak since the server's start instead
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

fn parse_cpu(stat: &str, ticks_per_second: u64) -> anyhow::Result<Duration> {
    // the second field is a name in parentheses that may hold anything; utime and stime are fields 14 and 15
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    ensure!(fields.len() > 12, "short stat");
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_nanos(ticks * 1_000_000_000 / ticks_per_second))
}

fn parse_kib(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_parentheses_do_not_confuse() {
        let stat = "77 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0";
        assert_eq!(parse_cpu(stat, 100).expect("parses"), Duration::from_secs(3));
    }

    #[test]
    fn own_process_can_be_read() {
        let usage = usage(std::process::id()).expect("our own /proc");
        assert!(usage.rss_bytes > 0 && usage.peak_rss_bytes >= usage.rss_bytes / 2);
    }
}
