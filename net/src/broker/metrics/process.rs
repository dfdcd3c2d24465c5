//! What the kernel says of this process. Reads of /proc, which come from memory and wait for nothing.

use std::{fs, time::Duration};

/// See the module. All zero where /proc cannot be read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProcessReading {
    pub(crate) resident_bytes: u64,
    pub(crate) cpu: Duration,
}

/// Bytes of a page on x86-64, the only machine there is a build for.
const PAGE_BYTES: u64 = 4096;
/// Ticks per second in /proc, whatever the kernel counts in itself.
const TICKS: u64 = 100;

/// Looks.
pub(crate) fn read() -> ProcessReading {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    ProcessReading { resident_bytes: resident_bytes(&text("/proc/self/statm")), cpu: cpu(&text("/proc/self/stat")) }
}

fn resident_bytes(statm: &str) -> u64 {
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE_BYTES
}

/// User and system time: the 12th and 13th field behind the name, which stands in parentheses and may hold anything.
fn cpu(stat: &str) -> Duration {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        assert_eq!(resident_bytes("1000 25 3 4 0 6 0\n"), 25 * 4096);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 99 1000 25";
        assert_eq!(cpu(stat), Duration::from_secs(3));
        assert_eq!((resident_bytes(""), cpu("")), (0, Duration::ZERO));
        assert!(read().resident_bytes > 0);
    }
}
