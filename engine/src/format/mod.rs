//! Every layout on disk but Kafka's record batches, as `FORMAT.md` draws them: the shared log's groups ([`wal`]), pages
//! of journals ([`journal`]) with the records of the manifest ([`manifest`]) and of the catalog ([`catalog`]), and
//! segments' names, indexes and footers ([`segment`]). Pure, but for the journal's file.

#![warn(clippy::cast_possible_truncation)]

pub mod catalog;
#[cfg(test)]
mod golden;
pub(crate) mod group_reader;
pub mod journal;
pub mod manifest;
pub mod segment;
pub mod wal;
