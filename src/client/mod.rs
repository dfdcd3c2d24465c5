//! A small blocking Kafka client: what the commands need, against any Kafka broker.
//!
//! One thread, one request at a time per connection. [`Connection`] speaks to one broker, [`Cluster`] finds the right
//! one and tries again where Kafka's error code says that this helps; the other files hold one family of requests
//! each. Plaintext only: no TLS, no SASL.

mod admin;
mod cluster;
mod connection;
mod error;
mod fetch;
mod groups;
mod offsets;
mod partitioner;
mod produce;

pub(crate) use admin::{Resource, ResourceKind, TopicSpec};
pub(crate) use cluster::{Cluster, ClusterOptions, Topic};
pub(crate) use connection::Connection;
pub(crate) use error::ClientError;
pub(crate) use fetch::{FetchFrom, Fetched};
pub(crate) use groups::{GroupDescription, Offsets};
pub(crate) use offsets::OffsetQuestion;
pub(crate) use partitioner::of_key;
pub(crate) use produce::ProducerId;
