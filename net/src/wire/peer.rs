//! The other end of a connection: where it is, and what the service knows of it.

use std::{cell::RefCell, net::SocketAddr};

use socket2::Socket;

use super::listener::ListenerIndex;

/// Where a connection came from. Stays what it is wherever the connection lives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    /// The peer's address.
    pub(crate) address: SocketAddr,
    /// The listener that it came through.
    pub(crate) listener: ListenerIndex,
    /// The shard that accepted it and its number there.
    pub(crate) connection: (usize, u64),
}

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer<T> {
    pub(crate) origin: Origin,
    /// What the service knows of it by now. Never borrowed across an await.
    pub(crate) session: RefCell<T>,
}

impl<T: Default> Peer<T> {
    /// The other end of a connection that was just accepted.
    pub(crate) fn new(origin: Origin) -> Peer<T> {
        Peer { origin, session: RefCell::default() }
    }

    /// Takes all of it out, for the same connection on another shard or for its end.
    pub(crate) fn take(&self) -> Peer<T> {
        Peer { origin: self.origin, session: RefCell::new(self.session.take()) }
    }
}

/// A connection on its way to another shard.
pub(crate) struct Moving<T> {
    pub(crate) socket: Socket,
    pub(crate) peer: Peer<T>,
}
