//! What a state machine must be for the runtime to keep it in a partition of an internal topic.

use std::{fmt, rc::Rc};

use kafka_protocol::error::ResponseError;
use millrace_engine::engine::Topics;

use super::{
    effects::{Write, WriteId},
    marker::ReplayedMarker,
    ticket::Reply,
};

/// Something that can be written to the log.
pub(crate) trait LogRecord {
    /// Its key's bytes.
    fn key(&self) -> Vec<u8>;
    /// Its value's bytes; `None` for a tombstone.
    fn value(&self) -> Option<Vec<u8>>;
}

/// A record as it is read back from the log.
pub(crate) struct Replayed<'a> {
    /// Where it stands in the log.
    pub(crate) offset: i64,
    /// Id and epoch of the producer in whose transaction it is: it counts when that has ended well.
    pub(crate) producer: Option<(i64, i16)>,
    /// Its key's bytes.
    pub(crate) key: &'a [u8],
    /// Its value's bytes; `None` for a tombstone.
    pub(crate) value: Option<&'a [u8]>,
}

/// What a machine says when it hears what became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Verdict {
    /// It goes on.
    Stands,
    /// It ran ahead of records that are not in the log: it must be closed and its state loaded anew.
    Rebuild,
}

/// A state machine: decides, but does nothing itself.
///
/// Calling order: `replay` for every record of the partition from its start that counts, then `handle_topics` and `on_loaded`, then
/// anything else. After each call the runtime takes replies, errands and writes, appends the records of each write in
/// the order in which they were taken, and reports each in that order with `on_persisted`. At the end comes `close`,
/// after which only replies are taken. A former life of the partition, or another leader epoch, is another machine.
///
/// Must hold: an answer that tells of a record leaves only when the record is durable, and every ticket is answered.
pub(crate) trait Machine: 'static {
    /// What it writes.
    type Record: LogRecord;
    /// What it wants done that takes more than it knows; its outcome comes back as a call.
    type Errand;
    /// Why a record makes no sense to it.
    type Unreadable: fmt::Display;

    /// Whether a record says all there is of its key: then only the newest of each is replayed, in any order.
    const NEWEST_COUNTS: bool = false;

    /// Takes a record of the log over. One that is not understood is left out.
    fn replay(&mut self, record: &Replayed<'_>) -> Result<(), Self::Unreadable>;
    /// Takes the end of a producer's transaction over: of the log that is loaded, and later of every one that is durable,
    /// in the order of the log. By itself nothing is kept in transactions.
    fn replay_marker(&mut self, _marker: &ReplayedMarker) {}
    /// A marker that ends a transaction of a producer is about to be appended, behind all that was taken from the machine
    /// so far.
    fn begin_marker(&mut self, _producer_id: i64) {}
    /// The whole partition was read: clocks start now.
    fn on_loaded(&mut self, now_ms: i64);
    /// Tells what topics there are now.
    fn handle_topics(&mut self, topics: &Rc<Topics>);
    /// Some time has gone by: what is done now and then.
    fn handle_tick(&mut self, now_ms: i64);
    /// Handles all deadlines that are over.
    fn handle_timeouts(&mut self, now_ms: i64);
    /// When to call [`Machine::handle_timeouts`]; may be too early, never too late.
    fn next_deadline_ms(&self) -> Option<i64>;
    /// A write is durable, its first record at that offset, or it failed.
    fn on_persisted(&mut self, now_ms: i64, id: WriteId, result: Result<i64, ResponseError>) -> Verdict;
    /// Answers everything that waits with an error: the machine is about to be dropped.
    fn close(&mut self, now_ms: i64, error: ResponseError);
    /// Replies to send now.
    fn take_replies(&mut self) -> Vec<Reply>;
    /// Whether there are records to write.
    fn has_writes(&self) -> bool;
    /// Records to write now.
    fn take_writes(&mut self) -> Vec<Write<Self::Record>>;
    /// Errands to run now.
    fn take_errands(&mut self) -> Vec<Self::Errand>;
}
