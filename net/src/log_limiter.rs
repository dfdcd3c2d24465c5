//! How often what happens again and again is logged.

/// Lets one event per tick through to the log and counts the others. A tick is a span of time that the caller counts.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    last_tick: Option<u64>,
    suppressed: u64,
}

impl LogLimiter {
    /// An event at `tick`: `Some` if it shall be logged, with the number of events since the last that was.
    pub(crate) fn on_event(&mut self, tick: u64) -> Option<u64> {
        if self.last_tick == Some(tick) {
            self.suppressed += 1;
            return None;
        }
        self.last_tick = Some(tick);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_per_tick_is_logged() {
        let mut limiter = LogLimiter::default();
        assert_eq!(limiter.on_event(5), Some(0));
        assert_eq!(limiter.on_event(5), None);
        assert_eq!(limiter.on_event(5), None);
        assert_eq!(limiter.on_event(6), Some(2));
    }
}
