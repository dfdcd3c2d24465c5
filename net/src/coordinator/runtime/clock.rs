//! The time that coordinators go by.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Ms since the epoch that never jump: the time of the start, and what has gone by since.
pub(crate) struct Clock {
    started: Instant,
    started_ms: i64,
}

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_ms: i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX / 2) }
    }

    /// Now.
    pub(crate) fn now_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX / 4);
        self.started_ms.saturating_add(elapsed)
    }
}
