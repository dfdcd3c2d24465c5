//! Whether the shared log stands: the pump waits for memory or for a file, and nothing is under way that will give it
//! one. That cannot be while the books are right, so it is looked at when the keeper has found nothing to do, and said.
//!
//! It does not end the process: what was acknowledged is in no danger, readers and other shards go on, and whoever
//! watches over the process sees a shard that answers no produce. Nor is more tried: the keeper was offered everybody who
//! holds the oldest file or the oldest live group, and there is nobody else whose tail would help.
//!
//! Who waits in a store, for what, and who is bound to wake it:
//!
//! | who waits | for | who wakes it, and why that one will run |
//! |---|---|---|
//! | pump | a group | `append` |
//! | pump | a place among the groups in flight | `settle`, at the end of each write and flush; `fail` leaves it nothing to wait for |
//! | pump, starved | memory | the keeper once extents are in segments, `settle` once fat runs are, and `remove_partition`. The pump woke the keeper, which takes who holds the oldest file and the oldest live group; whom it must pass over has a group in flight, or waits for a flush |
//! | pump, starved | a file | the maker when it has wiped or made one, the keeper when it has removed one; the pump woke both |
//! | maker | a spent file | `unpin`, by which every release goes |
//! | maker | a file to be wanted | the pump when it takes one or finds none |
//! | maker, cramped | space | `check_space`: upkeep each second until the shard ends, and the end of each round; a full disk can only be asked |
//! | keeper | work | who brings it: `grown`, `trim`, `materialise`, `post`, `removed`; the pump at each new file and when starved; the maker with a file to be removed |
//! | keeper, trim or tail passed over | a fat run | `fat_done` of the last one in flight; `fail` if it will never come, and then trims are refused |
//! | keeper, trim or tail passed over | safety: its topic wants a flush since it was written | `flush_written`: upkeep each second, as there is something that no flush has covered |
//! | keeper, disk full | time | its own timer |
//! | trim, job, pass | the keeper | the keeper: done, or refused when it has failed or ended; a pass ends when nothing can be done for it |
//! | removal of a partition | the compactor that is busy with it | `compact`, after each partition; it gives up at its next pause |
//! | compactor | jobs, passes; time | the keeper, which outlives it; its own timer |
//! | fat run | the one before it | `write_fat`, whether that succeeded or not |
//! | producer | its group | `apply`, in the order of groups, or `fail` |
//! | batch of a transaction | its coordinator | the gate's answer, or a timer; a marker makes it ask again. `close` refuses it |
//! | who leads or follows what comes back | its old records to be removed | `end_clearing`, whatever came of it |
//! | fetch | memory | who drops a permit wakes all who wait; nobody holds one and waits for another, and a connection that does not take its answer while others wait is closed |
//! | fetch | records | `Partition::wake`, and its own deadline |
//! | letters, replies | their shard | `Mail::send` at the end of the turn; the watchdog's thread wakes every shard many times a second, whatever was lost |
//! | `close` | groups in flight, compactor, keeper, maker | those, as above; all of them run until it has waited for them |

use std::rc::Rc;

use super::Store;
use crate::{io::Io, partition::PartitionCell};

/// Holders that the operator is told of.
const NAMED_MAX: usize = 4;

impl<I: Io> Store<I> {
    /// Whether the pump waits and nobody is bound to wake it. Asked when the keeper has nothing to do.
    fn stands(&self) -> bool {
        let awaits_flush = |cell: &Rc<PartitionCell>| {
            let marks = *cell.borrow().marks();
            marks.kept() < marks.written()
        };
        self.starved.get()
            && self.failed.borrow().is_none()
            && self.flight.borrow().is_empty()
            && !self.next_would_go()
            && !self.wal.borrow().oldest_holders().any(awaits_flush)
            && !self.cache.borrow().oldest_live().any(awaits_flush)
    }

    /// Says so if the log stands, once until it goes on.
    pub(super) fn note_standing(&self) {
        let stands = self.stands();
        if stands == self.standing.replace(stands) || !stands {
            return;
        }
        let wal = self.wal.borrow();
        let holders = wal.oldest_holders().take(NAMED_MAX).map(|cell| {
            let partition = cell.borrow();
            format!(
                "{}-{} ({:?}, in segments up to {} of {}, {} bytes in memory only)",
                partition.id().topic,
                partition.id().partition,
                partition.appending(),
                partition.marks().materialised(),
                partition.marks().kept(),
                partition.tail().live_bytes()
            )
        });
        let holders = holders.collect::<Vec<_>>().join(", ");
        tracing::error!(
            shard = self.options.shard,
            live_bytes = self.live_bytes.get(),
            cached_bytes = self.cache.borrow().bytes(),
            "the write-ahead log stands and nothing is under way that would free it, which is a fault of millrace: \
             {} partitions hold its oldest file: {holders}; a restart frees it and loses nothing",
            wal.oldest_holders().count()
        );
    }
}
