//! The attendant thread: tells the user and systemd when requests are answered, and then watches that all shards turn.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use super::{notify::Notifier, pulse::Pulse};

/// Pause between attempts to reach the node that is starting.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// How it is stopped: by dropping this.
#[derive(Debug)]
pub(super) struct Attendant {
    _stop: mpsc::Sender<()>,
}

/// What it needs to know.
pub(super) struct Duties {
    /// Whether the node answers.
    pub(super) answers: Box<dyn FnMut() -> bool + Send>,
    /// Called once when it does.
    pub(super) on_ready: Box<dyn FnOnce() + Send>,
    pub(super) pulse: Pulse,
    /// systemd's patience, if it watches.
    pub(super) watchdog: Option<Duration>,
    pub(super) notifier: Arc<Notifier>,
}

/// Starts the thread.
pub(super) fn start(duties: Duties) -> io::Result<Attendant> {
    let (stop, stopped) = mpsc::channel();
    thread::Builder::new().name("attendant".to_owned()).spawn(move || attend(duties, &stopped))?;
    Ok(Attendant { _stop: stop })
}

fn attend(mut duties: Duties, stopped: &mpsc::Receiver<()>) {
    // A dropped sender ends the wait at once.
    let goes_on = |pause| matches!(stopped.recv_timeout(pause), Err(mpsc::RecvTimeoutError::Timeout));
    while !(duties.answers)() {
        if !goes_on(PROBE_INTERVAL) {
            return;
        }
    }
    (duties.on_ready)();
    let Some(patience) = duties.watchdog else { return };
    while goes_on(patience / 4) {
        let late = duties.pulse.late(patience / 2);
        match late.is_empty() {
            true => duties.notifier.alive(),
            false => tracing::error!("shards {late:?} have not turned for {:?}", patience / 2),
        }
    }
}
