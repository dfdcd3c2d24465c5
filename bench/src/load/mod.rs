//! The load generator: many producers on few threads, pipelined, open or closed loop.
//!
//! Open loop: [`schedule`] fixes when each batch should leave; latency is counted from then, however late it leaves, so a
//! broker that stalls pays for every batch that had to wait. Batches still unsent or unanswered when the drain time is
//! over are counted, never dropped silently.

pub(crate) mod crew;
mod link;
pub(crate) mod pipe;
mod run;
pub mod schedule;

pub use run::{Load, Outcome, Progress, Window, WindowEdge, generate};
