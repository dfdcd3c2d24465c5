//! Load, verification and measurements for brokers that speak Kafka's protocol.
//!
//! Speaks to brokers over the wire only, so that Apache Kafka and millrace are measured and tested by the same code; the
//! `engine` benchmark alone drives the engine in process.

pub mod batch;
pub mod cli;
pub mod client;
pub mod clock;
pub mod device;
pub mod engine;
pub mod groups;
pub mod ledger;
pub mod load;
pub mod meter;
pub mod payload;
pub mod produce;
pub mod reader;
pub mod replicas;
pub mod report;
pub mod restart;
pub mod server;
pub mod sizes;
pub mod smoke;
pub mod sys;
pub mod tail;
pub mod target;
pub mod transactions;
