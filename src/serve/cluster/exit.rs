//! How a node of a cluster leaves: it hands over what it leads, for as long as there is patience, and only then stops.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_replica::cluster::plane::{ControlPlane, Question, Reply};

/// Longest time that handing over may take, whatever --stop-timeout says.
pub(super) const DRAIN_PATIENCE_MAX: Duration = Duration::from_secs(30);
/// How long a node that follows one of two waits for the other to hear that it goes: it leads nothing, and the other may be gone.
pub(super) const FAREWELL_PATIENCE: Duration = Duration::from_millis(500);

/// The way from the thread that hears signals to the control thread, once there is one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::serve) struct Exit(Arc<Mutex<Option<(ControlPlane, Duration)>>>);

impl Exit {
    /// There is something to hand over from here on, which may take so long at most.
    pub(super) fn open(&self, plane: ControlPlane, patience_max: Duration) {
        self.0.lock().expect("no panic while locked").replace((plane, patience_max));
    }

    /// Has leadership handed over, and calls `then` when that is done or took too long; at once where there is no cluster.
    /// The rest of a stop has what is left of its time.
    pub(in crate::serve) fn drain(&self, stop_timeout: Duration, then: impl FnOnce() + Send + 'static) {
        let plane = self.0.lock().expect("no panic while locked").take();
        let Some((plane, patience_max)) = plane else { return then() };
        let patience = (stop_timeout * 2 / 3).min(patience_max);
        let reply = Reply::new(move |drained| {
            match drained {
                Ok(()) => tracing::info!("this node leads nothing any more"),
                Err(error) => tracing::warn!("not everything that this node led was handed over: {error}"),
            }
            then();
        });
        plane.put(Question::Drain(reply), patience);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use super::*;

    /// A node that followed one of two waited for 20 s when the other was gone and it was told to stop.
    #[test]
    fn who_leads_nothing_does_not_wait_for_who_may_be_gone() {
        let patience_of = |patience_max: Duration| {
            let (asked, questions) = mpsc::channel();
            let plane = ControlPlane::new(move |question| {
                let _ = asked.send(question);
                Ok(())
            });
            let exit = Exit::default();
            let before = Instant::now();
            exit.open(plane, patience_max);
            exit.drain(Duration::from_secs(30), || ());
            let deadline = questions.recv().expect("it was asked").deadline;
            deadline.saturating_duration_since(before)
        };
        assert!(patience_of(FAREWELL_PATIENCE) < Duration::from_secs(10));
        assert!(patience_of(DRAIN_PATIENCE_MAX) >= Duration::from_secs(20));
    }
}
