//! Kafka's protocol from the client's side: for commands, the load tool, tests, and requests between brokers.
//!
//! Deciding and acting are apart. The pure half knows no socket, no clock and no runtime:
//!
//! | | |
//! |---|---|
//! | [`frame`] | requests to bytes, bytes to answers; lengths are checked before anything is read for them |
//! | [`InFlight`] | what was sent and not answered; answers come in the order of requests |
//! | [`Versions`], [`Negotiation`] | what a broker serves, and how to find out from brokers of any age |
//! | [`Exchange`] | all of that as one connection, within bounds, for shells that must not block |
//! | [`requests`] | requests that several clients send alike |
//!
//! The blocking half is for whoever has a thread to wait on:
//!
//! | | |
//! |---|---|
//! | [`Socket`] | connects, and passes bytes: encryption and authentication will be here and nowhere else |
//! | [`Connection`] | requests in versions that the caller names, one by one or pipelined; errors as they are |
//! | [`Broker`] | one connection and what its broker serves: each request in the newest version of both |
//! | [`Cluster`] | all brokers of a cluster: who leads what, whom to ask, when to ask again; one method per question |
//!
//! The load generator drives a [`Socket`] with a loop of its own, and shards have sockets of their own
//! (`millrace_net::client`): both take everything else from the pure half.
//!
//! A crate of its own, so that the load tool does not link the broker, and so that the broker's tests ask it by code that
//! is not its own. Commands are in one binary with the broker; of them only `millrace api` names it. This crate knows
//! neither shards nor partitions on disk.

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
mod isolation;
mod lag;
mod offsets;
mod partitioner;
mod produce;
mod replicas;
pub mod requests;
mod socket;
mod transactions;
mod versions;

pub use admin::{ConfigEntry, Resource, ResourceKind, TopicSpec};
pub use broker::Broker;
pub use cluster::{Cluster, ClusterOptions, Partition, Topic};
pub use connection::{ConnectOptions, Connection};
pub use error::ClientError;
pub use error_code::{UNKNOWN_TOPIC_OR_PARTITION, error_code_name};
pub use exchange::{Exchange, ExchangeLimits, NotSent};
pub use fetch::{FetchFrom, Fetched};
pub use frame::ProtocolError;
pub use groups::{GroupDescription, GroupListing, Member, Offsets};
pub use in_flight::InFlight;
pub use isolation::IsolationLevel;
pub use lag::{ETCD_TROUBLE_TAG, FOLLOWER_LAGS_TAG, FollowerLag, NodeWord};
pub use offsets::OffsetQuestion;
pub use partitioner::partition_of_key;
pub use produce::ProducerId;
pub use replicas::{Election, Members, Node, Reassignment};
pub use socket::Socket;
pub use transactions::{ActiveProducer, TransactionDescription, TransactionListing};
pub use versions::{Negotiation, Versions};
