//! How a node of a cluster leaves: it hands over what it leads, for as long as there is patience, and only then stops.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_replica::cluster::plane::{ControlPlane, Question, Reply};

/// Longest time that handing over may take, whatever --stop-timeout says.
const DRAIN_PATIENCE_MAX: Duration = Duration::from_secs(30);

/// The way from the thread that hears signals to the control thread, once there is one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::serve) struct Exit(Arc<Mutex<Option<ControlPlane>>>);

impl Exit {
    /// There is something to hand over from here on.
    pub(super) fn open(&self, plane: ControlPlane) {
        self.0.lock().expect("no panic while locked").replace(plane);
    }

    /// Has leadership handed over, and calls `then` when that is done or took too long; at once where there is no cluster.
    /// The rest of a stop has what is left of its time.
    pub(in crate::serve) fn drain(&self, stop_timeout: Duration, then: impl FnOnce() + Send + 'static) {
        let plane = self.0.lock().expect("no panic while locked").take();
        let Some(plane) = plane else { return then() };
        let patience = (stop_timeout * 2 / 3).min(DRAIN_PATIENCE_MAX);
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
