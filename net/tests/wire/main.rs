//! A whole node, asked over its sockets by a plain blocking client.

mod client;
mod compression;
mod connections;
mod fetches;
mod groups;
mod limits;
mod listeners;
mod metrics;
mod moves;
mod node;
mod odd;
mod other_brokers;
mod remote_brokers;
mod requests;
mod settings;
mod shards;
mod shares;
mod telemetry;
mod transactions;
mod txn_offsets;
