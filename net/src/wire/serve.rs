//! The wire of one shard: what its connections share, their accept loops, their ticks, their clean stop.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
use glommio::timer::sleep;
use socket2::Socket;

use super::{
    connection::{self, Connection, READ_BYTES_MAX},
    counters::Counters,
    limits::{ConnectionLimits, LogLimiter},
    listener::{Accepted, Listener, ListenerIndex},
    memory::ReceiveMemory,
    peer::{Moving, Origin, Peer},
    poller::Poller,
    service::Service,
    stream::Stream,
};

/// One second: the unit of all coarse times of connections.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Limits of the wire of one shard.
#[derive(Debug, Clone)]
pub(crate) struct WireConfig {
    /// Bytes of one request at most.
    pub(crate) frame_bytes_max: usize,
    /// Requests of one connection that may be read before the first of them is answered.
    pub(crate) in_flight_requests_max: usize,
    /// Bytes of those requests; one request may always be in flight.
    pub(crate) in_flight_bytes_max: usize,
    /// Memory for requests, received or being received, in bytes.
    pub(crate) receive_memory_bytes: usize,
    /// A connection without traffic for that long is closed.
    pub(crate) idle_timeout: Duration,
    /// How long requests in flight may take once no more are read.
    pub(crate) stop_timeout: Duration,
}

/// What the connections of one shard share.
pub(crate) struct Wire<S: Service> {
    pub(crate) config: WireConfig,
    pub(crate) counters: Counters,
    /// Memory for requests.
    pub(crate) memory: ReceiveMemory,
    /// What a read of a new request is read into, before it is copied out. Never borrowed across an await.
    pub(crate) read_buffer: RefCell<BytesMut>,
    /// A client may send what cannot be understood again and again.
    pub(crate) malformed: RefCell<LogLimiter>,
    /// Counts connections of the whole node; used on shard 0 only.
    pub(crate) limits: RefCell<ConnectionLimits>,
    /// What waits for sockets.
    pub(crate) poller: Rc<Poller>,
    connections: RefCell<HashMap<u64, Rc<Connection<S>>>>,
    next_connection_id: Cell<u64>,
    /// No connection shall be read any more.
    stopping: Cell<bool>,
    /// Ticks since the start.
    tick: Cell<u64>,
    /// Requests that run to their end whatever becomes of their connection.
    finishing: Cell<usize>,
    refusals: RefCell<LogLimiter>,
}

/// Serves whoever comes through a listener, until that ends.
pub(crate) async fn accept_connections<S: Service>(service: Rc<S>, index: ListenerIndex, listener: Rc<Listener>) {
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        match listener.accept().await {
            Accepted::Connection(socket, peer) => {
                glommio::spawn_local(serve_connection(service.clone(), socket, peer, index)).detach();
            }
            Accepted::Skipped(error) => {
                tracing::debug!(address = %listener.address(), %error, "a connection was not accepted");
            }
            Accepted::Exhausted(error) => {
                if let Some(suppressed) = service.wire().refusals.borrow_mut().on_event(service.wire().tick()) {
                    tracing::warn!(address = %listener.address(), %error, suppressed, "cannot accept connections");
                }
                sleep(PAUSE).await;
            }
            Accepted::Ended => return,
        }
        glommio::yield_if_needed().await;
    }
}

async fn serve_connection<S: Service>(service: Rc<S>, socket: Socket, peer: SocketAddr, listener: ListenerIndex) {
    if let Err(refusal) = service.admit(peer.ip()).await {
        service.wire().counters.connections_refused.add(1);
        if let Some(suppressed) = service.wire().refusals.borrow_mut().on_event(service.wire().tick()) {
            tracing::warn!(%peer, reason = %refusal, suppressed, "connection refused");
        }
        return;
    }
    service.wire().counters.connections_accepted.add(1);
    let origin = Origin { address: peer, listener, connection: (service.shard(), service.wire().take_connection_id()) };
    serve_admitted(service, socket, Peer::new(origin)).await;
}

/// Serves a connection that is counted, to its end or until it goes on on another shard.
async fn serve_admitted<S: Service>(service: Rc<S>, socket: Socket, peer: Peer<S::Session>) {
    let address = peer.origin.address;
    let moving = match Stream::new(socket, &service.wire().poller) {
        Ok(stream) => {
            let id = service.wire().take_connection_id();
            let connection = Connection::new(service.clone(), stream, peer, id);
            service.wire().connections.borrow_mut().insert(id, connection.clone());
            if service.wire().stopping.get() {
                connection.end_reading();
            }
            let moving = connection::run(&connection).await;
            service.wire().connections.borrow_mut().remove(&id);
            moving
        }
        Err(error) => {
            tracing::warn!(peer = %address, %error, "connection cannot be polled");
            None
        }
    };
    match moving {
        Some((shard, moving)) => {
            service.wire().counters.connections_moved.add(1);
            service.send(shard, moving).await;
        }
        None => service.on_uncounted(address.ip()).await,
    }
}

/// Goes on with a connection of another shard.
pub(crate) fn take_over<S: Service>(service: Rc<S>, moving: Moving<S::Session>) {
    let Moving { socket, peer } = moving;
    service.unpack(&mut peer.session.borrow_mut());
    glommio::spawn_local(serve_admitted(service, socket, peer)).detach();
}

impl<S: Service> Wire<S> {
    /// A wire without connections.
    pub(crate) fn new(config: WireConfig, poller: Rc<Poller>) -> Wire<S> {
        Wire {
            counters: Counters::new(S::table().len()),
            memory: ReceiveMemory::new(config.receive_memory_bytes, config.frame_bytes_max),
            read_buffer: RefCell::new(BytesMut::with_capacity(READ_BYTES_MAX)),
            malformed: RefCell::default(),
            limits: RefCell::default(),
            poller,
            connections: RefCell::default(),
            next_connection_id: Cell::new(0),
            stopping: Cell::new(false),
            tick: Cell::new(0),
            finishing: Cell::new(0),
            refusals: RefCell::default(),
            config,
        }
    }

    /// All open connections.
    pub(crate) fn open_connections(&self) -> Vec<Rc<Connection<S>>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// How many there are.
    pub(crate) fn connections(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Ticks since the start.
    pub(crate) fn tick(&self) -> u64 {
        self.tick.get()
    }

    /// A request began that must run to its end.
    pub(crate) fn on_finishing(&self) {
        self.finishing.set(self.finishing.get() + 1);
    }

    /// Such a request has ended.
    pub(crate) fn on_finished(&self) {
        self.finishing.set(self.finishing.get() - 1);
    }

    /// A second has gone by: closes connections that are idle, stalled or overdue.
    pub(crate) async fn on_tick(&self) {
        const CHECKS_MAX: usize = 1024;
        self.tick.set(self.tick.get() + 1);
        let connections = self.open_connections();
        for some in connections.chunks(CHECKS_MAX) {
            for connection in some {
                connection.on_tick();
            }
            glommio::yield_if_needed().await;
        }
    }

    /// Reads no more, waits for requests in flight, then closes everything.
    pub(crate) async fn stop(&self) {
        const PAUSE: Duration = Duration::from_millis(5);
        self.stopping.set(true);
        let connections = self.open_connections();
        for connection in connections {
            connection.end_reading();
        }
        let rounds = self.config.stop_timeout.as_millis() / PAUSE.as_millis();
        for _ in 0..rounds {
            if self.connections.borrow().is_empty() && self.finishing.get() == 0 {
                return;
            }
            sleep(PAUSE).await;
        }
        let left = self.open_connections();
        tracing::warn!(connections = left.len(), requests = self.finishing.get(), "closed before all was answered");
        for connection in left {
            connection.close();
        }
    }

    fn take_connection_id(&self) -> u64 {
        self.next_connection_id.update(|id| id + 1);
        self.next_connection_id.get()
    }
}
