//! Waiting until all replicas whose nodes live have let go of the beginning of a partition, as DeleteRecords does in Kafka.

use std::{cell::RefCell, rc::Rc, time::Duration};

use futures_util::future::select;
use glommio::timer::sleep;
use millrace_engine::{api::TopicPartition, signal::Outcome};

use super::Shell;

/// Why it is not known that nobody has the records any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StillKept {
    /// This node does not lead the partition any more.
    NotLeader,
    /// The time is up. The low watermark: -1 if a replica's is not known.
    InTime(i64),
}

/// Who waits: all look again whenever somebody's log start may have moved.
#[derive(Default)]
pub(super) struct Deletions(RefCell<Rc<Outcome<()>>>);

impl Deletions {
    /// Something moved.
    pub(super) fn look_again(&self) {
        self.0.take().set(());
    }

    fn next(&self) -> Rc<Outcome<()>> {
        self.0.borrow().clone()
    }
}

impl Shell {
    /// Waits until no replica whose node lives has what is before an offset, which this one has let go of. The low watermark.
    ///
    /// # Errors
    /// If that is not known in time.
    pub async fn let_go_by_all(
        &self,
        partition: TopicPartition,
        before: i64,
        patience: Duration,
    ) -> Result<i64, StillKept> {
        let until = self.now().saturating_add(patience);
        loop {
            let moved = self.deletions.next();
            let low_watermark = self.core.borrow().low_watermark(partition, &self.logs).ok_or(StillKept::NotLeader)?;
            let left = until.saturating_sub(self.now());
            if low_watermark >= before {
                return Ok(low_watermark);
            }
            if left.is_zero() || self.is_ending() {
                return Err(StillKept::InTime(low_watermark));
            }
            let (moved, late) = (std::pin::pin!(moved.wait()), std::pin::pin!(sleep(left)));
            select(moved, late).await;
        }
    }
}
