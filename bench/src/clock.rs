//! Monotonic time in nanoseconds since the tool started, the same on every thread; and the time that records carry.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, as records carry them: by it brokers let go of what is old.
pub fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// A clock; copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base: Instant,
}

impl Clock {
    /// A clock that starts at 0 now.
    pub fn start() -> Clock {
        Clock { base: Instant::now() }
    }

    /// Now.
    pub fn now_ns(self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    /// Sleeps until then.
    pub fn sleep_until(self, at_ns: u64) {
        loop {
            let left = at_ns.saturating_sub(self.now_ns());
            if left == 0 {
                return;
            }
            std::thread::sleep(Duration::from_nanos(left));
        }
    }
}
