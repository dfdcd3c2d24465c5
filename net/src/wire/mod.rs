//! The wire below any meaning: frames, the memory that they may take, connections, and how an API's
//! request and answer look.

pub(crate) mod api;
pub(crate) mod connection;
pub(crate) mod counters;
pub(crate) mod frame;
pub(crate) mod hot;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod peer;
pub(crate) mod pressure;
pub(crate) mod serve;
pub(crate) mod service;
pub(crate) mod shared;
pub(crate) mod text;

pub(crate) use millrace_sockets::{listener, poller, stream};
