//! Kafka's protocol from the client's side.

mod admin;
mod broker;
mod cluster;
mod connection;
mod error;
mod error_code;
mod exchange;
mod fetch;
pub mod frame;
mod groups;
mod in_flight;
mod offsets;
mod partitioner;
mod produce;
pub mod requests;
mod socket;
mod versions;

pub use admin::{ConfigEntry, Resource, ResourceKind, TopicSpec};
pub use broker::Broker;
pub use cluster::{Cluster, ClusterOptions, Partition, Topic};
pub use connection::{ConnectOptions, Connection};
pub use error::ClientError;
pub use error_code::error_code_name;
pub use exchange::{Exchange, ExchangeLimits, NotSent};
pub use fetch::{FetchFrom, Fetched};
pub use frame::ProtocolError;
pub use groups::{GroupDescription, GroupListing, Member, Offsets};
pub use in_flight::InFlight;
pub use offsets::OffsetQuestion;
pub use partitioner::of_key;
pub use produce::ProducerId;
pub use socket::Socket;
pub use versions::{Negotiation, Versions};
