//! Sockets of a shard: non-blocking system calls, and waits by one epoll descriptor per shard that glommio awaits.
//!
//! Clients come through them (`net`), and so do other nodes of the cluster (`replica`). Each socket belongs to one shard;
//! [`stream::Stream::leave`] gives it up for another.

pub mod listener;
pub mod poller;
pub mod stream;
