//! The attendant thread: tells the user and systemd when requests are answered, and then watches that all shards turn and
//! none is stalled.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use millrace_engine::vitals::ShardVitals;

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
    /// What the shards said of themselves last.
    pub(super) vitals: Box<dyn FnMut() -> Vec<ShardVitals> + Send>,
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
    let mut told = None;
    while goes_on(patience / 4) {
        let ailing = ailing(&duties.pulse.late(patience / 2), &(duties.vitals)());
        match &ailing {
            None => duties.notifier.alive(),
            Some(what) if told != ailing => tracing::error!("systemd's watchdog is not fed: {what}"),
            Some(_) => {}
        }
        told = ailing;
    }
}

/// What keeps systemd's watchdog from being fed: shards that have not turned, or that are stalled.
fn ailing(late: &[usize], vitals: &[ShardVitals]) -> Option<String> {
    let stalled: Vec<usize> = (0..vitals.len()).filter(|shard| vitals[*shard].is_stalled).collect();
    match (late, &stalled[..]) {
        ([], []) => None,
        ([], stalled) => Some(format!("shards {stalled:?} are stalled")),
        (late, []) => Some(format!("shards {late:?} do not turn")),
        (late, stalled) => Some(format!("shards {late:?} do not turn, shards {stalled:?} are stalled")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_while_every_shard_turns_and_none_is_stalled() {
        let vitals = |is_stalled| ShardVitals { is_stalled, left_bytes: 0, left_partitions: None };
        assert_eq!(ailing(&[], &[vitals(false), vitals(false)]), None);
        assert_eq!(ailing(&[], &[]), None);
        assert_eq!(ailing(&[], &[vitals(false), vitals(true)]).unwrap(), "shards [1] are stalled");
        assert_eq!(ailing(&[0], &[vitals(false)]).unwrap(), "shards [0] do not turn");
        assert!(ailing(&[0], &[vitals(true)]).unwrap().contains("do not turn, shards [0] are stalled"));
    }
}
