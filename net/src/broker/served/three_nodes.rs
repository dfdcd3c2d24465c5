//! Conversations with one node of three: what it says of the cluster, what it asks of the control plane, and how it sends
//! clients to other nodes.

mod changes;
mod data;
mod fixture;
mod share;
mod share_state;
mod state;
mod transactions;
