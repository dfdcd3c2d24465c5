//! Load, verification and measurements for brokers that speak Kafka's protocol.
//!
//! Speaks to brokers over the wire only, so that Apache Kafka and millrace are measured and tested by the same code; the
//! `engine` benchmark alone drives the engine in process.

pub mod batch;
pub mod client;
pub mod ledger;
pub mod payload;
