//! Log compaction: of the sealed segments of a compacted partition, the newest value of every key is kept. Pure: what
//! is due and which segments go together ([`plan`]), where the newest record of a key is ([`OffsetMap`]), what stays of
//! a batch ([`Look`]). The store's compactor does the reading and writing.
//!
//! This is the one place where the bytes of a batch are not kept as they came: a batch that loses some of its records,
//! or gets a delete horizon, is built anew, in its own codec and with its offsets, producer and sequence. A batch all
//! of whose records stay is copied byte for byte.
//!
//! The rules are those of Kafka 4.4's `Cleaner` and `LogCleanerManager`, and KIP-534 for tombstones. Offsets and order
//! stay; records without a key go; the active segment, and sealed ones with a record younger than
//! `min.compaction.lag.ms`, are not touched. The last batch of a round and every producer's last batch stay even when
//! nothing is left in them: the first so that readers get past the gap, the others for the sequence in them.
//! Of transactions, only what is decided is looked at; records of aborted ones go at once and markers later
//! ([`transactions`]).
//!
//! What always holds between two replacements of segments: below the clean point no key has two values, every tombstone
//! whose older values may still be in the log is there, and a reader from any offset sees the newest value of every key
//! whose record lies at or behind that offset.

mod filter;
mod offset_map;
mod plan;
#[cfg(test)]
mod tests;
mod transactions;

pub(crate) use filter::{Filter, Look, Mapped, Mapping, Verdict};
pub(crate) use offset_map::OffsetMap;
pub(crate) use plan::{Due, due, groups};
pub(crate) use transactions::{AbortedThere, Part, Seen};
