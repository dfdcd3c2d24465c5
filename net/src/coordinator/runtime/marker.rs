//! The end of a transaction as a machine hears of it.

use millrace_engine::transactions::{Marker, Outcome};

/// A marker as it stands in a partition's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplayedMarker {
    /// Where it stands.
    pub(crate) offset: i64,
    /// Whose transaction.
    pub(crate) producer_id: i64,
    /// Epoch that the producer has from then on.
    pub(crate) producer_epoch: i16,
    /// How it ends.
    pub(crate) outcome: Outcome,
}

impl ReplayedMarker {
    /// A marker that was appended at an offset.
    pub(super) fn of(marker: &Marker, offset: i64) -> Self {
        let Marker { producer_id, producer_epoch, outcome, .. } = *marker;
        Self { offset, producer_id, producer_epoch, outcome }
    }
}
