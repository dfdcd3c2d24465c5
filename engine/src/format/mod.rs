//! Every layout on disk but Kafka's record batches, as `FORMAT.md` draws them: the shared log's groups ([`wal`]), pages
//! of journals ([`journal`]) with the records of the manifest ([`manifest`]) and of the catalog ([`catalog`]), and
//! segments' names, indexes and footers ([`segment`]). Pure, but for the journal's file.

#![warn(clippy::cast_possible_truncation)]

pub mod catalog;
pub mod epochs;
#[cfg(test)]
mod golden;
pub(crate) mod group_reader;
pub mod journal;
pub mod manifest;
pub mod placement;
pub mod segment;
pub mod transactions;
pub mod wal;

/// Why bytes that a good checksum covers are not taken: see the rule for unknown ones at the begin of `FORMAT.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It must be understood.
    #[error("a record of an unknown kind, {0}")]
    UnknownKind(u8),
    /// A byte without a meaning has one.
    #[error("a record with bytes set that this version knows no meaning of")]
    Reserved,
    /// Nobody writes that.
    #[error("a record of nonsense")]
    Nonsense,
}

/// What is to be done about a record of a kind that is not known here: `Ok` if it is a hint, and is skipped.
fn unknown_kind<T>(kind: u8) -> Result<Option<T>, Refused> {
    const HINTS_FROM: u8 = 128;
    if kind < HINTS_FROM { Err(Refused::UnknownKind(kind)) } else { Ok(None) }
}
