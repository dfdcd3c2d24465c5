//! The broker's metrics: the page that Prometheus reads.
//!
//! Counters live on their shard and cost it an addition each. Whoever asks for the page gets it from shard 0, which asks
//! every shard by letter. What is on the page stands in one table, [`table::TABLE`].

mod http;
mod process;
mod reading;
mod server;
mod stalls;
mod table;
mod text;

pub(crate) use server::serve;
pub(crate) use stalls::RequestStalls;
pub(crate) use text::{Kind, Page, render_labels};
