//! Listening sockets of one shard: bound with SO_REUSEPORT, accepted from without blocking.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::poller::{Poller, Registration};

/// Which of the ways in that were configured a connection came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerIndex(pub usize);

/// One listening socket of this shard.
pub struct Listener {
    // Dropped first: the descriptor must still be open then.
    registration: Registration,
    socket: Socket,
    address: SocketAddr,
}

/// Whom a socket on `[::]` takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv6 only.
    Own,
    /// IPv4 too.
    Both,
}

/// What accepting came to.
pub enum Accepted {
    /// A connection: non-blocking, close-on-exec, without Nagle's algorithm.
    Connection(Socket, SocketAddr),
    /// The peer was gone again, or the like: go on.
    Skipped(io::Error),
    /// Descriptors or memory are short: go on after a pause.
    Exhausted(io::Error),
    /// No more connections are wanted.
    Ended,
}

impl Listener {
    /// Binds and listens. Several shards may listen on one address: the kernel spreads connections over them.
    pub fn bind(address: SocketAddr, families: Families, poller: &Rc<Poller>) -> io::Result<Listener> {
        const BACKLOG: i32 = 1024;
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if let IpAddr::V6(ip) = address.ip() {
            socket.set_only_v6(families == Families::Own || !ip.is_unspecified())?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Listener { registration: poller.register(&socket)?, socket, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends [`Listener::accept`], now and later.
    pub fn stop(&self) {
        self.registration.close();
    }

    /// Waits for a connection.
    pub async fn accept(&self) -> Accepted {
        loop {
            if self.registration.readable().await.is_err() {
                return Accepted::Ended;
            }
            match self.socket.accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) {
                Ok((socket, peer)) => return prepare(socket, peer.as_socket()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.registration.clear_readable(),
                Err(error) => return classify(error),
            }
        }
    }
}

fn prepare(socket: Socket, peer: Option<SocketAddr>) -> Accepted {
    let Some(peer) = peer else {
        return Accepted::Skipped(io::Error::other("a peer without an internet address"));
    };
    match socket.set_tcp_nodelay(true).and_then(|()| socket.set_keepalive(true)) {
        Ok(()) => Accepted::Connection(socket, peer),
        Err(error) => Accepted::Skipped(error),
    }
}

fn classify(error: io::Error) -> Accepted {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Accepted::Exhausted(error),
        _ => Accepted::Skipped(error),
    }
}
