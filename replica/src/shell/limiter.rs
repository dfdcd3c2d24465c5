//! How fast a bulk copy may go: bytes per second, with no more saved up than a moment's worth. Pure.

use std::time::Duration;

/// Saved up at most.
const BURST: Duration = Duration::from_millis(100);

/// A budget that fills with time.
#[derive(Debug)]
pub(super) struct Limiter {
    bytes_per_second: u64,
    /// When all that was taken is paid for.
    paid_at: Duration,
}

impl Limiter {
    /// At least one byte per second.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_at: Duration::ZERO }
    }

    /// Takes bytes; how long whoever took them has to wait before the next ones.
    pub(super) fn take(&mut self, bytes: usize, now: Duration) -> Duration {
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        let price = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.paid_at = self.paid_at.max(now.saturating_sub(BURST)).saturating_add(price);
        self.paid_at.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lets_so_many_bytes_through_and_idle_time_is_not_saved_up() {
        let ms = Duration::from_millis;
        let mut limiter = Limiter::new(1_000_000);
        assert_eq!(limiter.take(100_000, ms(1_000)), Duration::ZERO);
        assert_eq!(limiter.take(500_000, ms(1_000)), ms(500));
        assert_eq!(limiter.take(500_000, ms(1_000)), ms(1_000));
        assert_eq!(limiter.take(0, ms(2_000)), Duration::ZERO);
        assert_eq!(limiter.take(1_000_000, ms(60_000)), ms(900));
    }
}
