//! How a frame comes in that has memory, and what a connection holds that others may wait for.

use std::time::{Duration, Instant};

use super::{Connection, InFlight};
use crate::wire::{
    memory::{Class, Reservation},
    service::Service,
};

/// Bytes in which a peer must go on: less than that is no progress, so that nobody holds the memory of a whole frame by a
/// byte now and then.
const STEP_BYTES: usize = 4096;

/// A frame that is being received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Assembly {
    class: Class,
    frame_bytes: usize,
    /// When it was granted its memory.
    since: Instant,
    /// When it last went on by a step.
    progress: Instant,
    /// Bytes since then.
    bytes: usize,
}

impl Assembly {
    fn new(reservation: &Reservation, now: Instant) -> Assembly {
        let (class, frame_bytes) = (reservation.class(), reservation.bytes());
        Assembly { class, frame_bytes, since: now, progress: now, bytes: 0 }
    }

    /// Bytes of it were received.
    pub(super) fn on_received(self, bytes: usize, now: Instant) -> Assembly {
        match self.bytes + bytes {
            bytes if bytes < STEP_BYTES => Assembly { bytes, ..self },
            _ => Assembly { progress: now, bytes: 0, ..self },
        }
    }
}

/// Memory that a connection holds for as long as its peer likes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holding {
    /// `None`: of several requests.
    pub(crate) class: Option<Class>,
    pub(crate) bytes: usize,
    /// How long the peer has done nothing for it.
    pub(crate) silent: Duration,
    /// How long it has been held.
    pub(crate) held: Duration,
    /// What the peer does not do.
    pub(crate) reason: &'static str,
}

impl<S: Service> Connection<S> {
    /// The frame that is being received now, if it has memory.
    pub(super) fn on_assembly(&self, admitted: Option<&Reservation>) {
        let go_on = |reservation| self.assembly.get().unwrap_or_else(|| Assembly::new(reservation, Instant::now()));
        self.assembly.set(admitted.map(go_on));
    }

    /// What this connection holds for as long as its peer likes.
    pub(crate) fn holding(&self, now: Instant) -> Option<Holding> {
        if self.stream.is_closed() {
            return None;
        }
        if let Some(assembly) = self.assembly.get() {
            return Some(Holding {
                class: Some(assembly.class),
                bytes: assembly.frame_bytes,
                silent: now.duration_since(assembly.progress),
                held: now.duration_since(assembly.since),
                reason: "it stopped within a request whose memory others wait for",
            });
        }
        let InFlight { bytes, .. } = self.in_flight.get();
        let times = self.times.get();
        let ago = |tick: u64| Duration::from_secs((self.wire().tick() - tick).saturating_sub(1));
        Some(Holding {
            class: None,
            bytes,
            silent: ago(times.sending?),
            held: ago(times.unsent?),
            reason: "it does not read the answers before requests whose memory others wait for",
        })
    }

    /// Whether the peer has sent what was not read yet: then it is not the peer who stalls.
    pub(crate) fn has_unread(&self) -> bool {
        self.assembly.get().is_some() && self.stream.has_unread()
    }

    /// Closes the connection for what it holds.
    pub(crate) fn give_up(&self, holding: &Holding, suppressed: Option<u64>) {
        let Holding { bytes, silent, held, reason, .. } = *holding;
        if let Some(suppressed) = suppressed {
            let peer = self.peer.origin.address;
            tracing::info!(%peer, reason, bytes, ?silent, ?held, suppressed, "connection closed");
        }
        self.close();
    }
}
