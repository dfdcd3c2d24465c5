//! How the wire of one shard is served: its accept loops, its ticks, its clean stop.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use glommio::timer::sleep;
use socket2::Socket;

use super::{
    connection::{self, Connection},
    listener::{Accepted, Listener, ListenerIndex},
    peer::{Moving, Origin, Peer},
    service::Service,
    shared::Wire,
    stream::Stream,
};

/// A service and the connections that are open to it on this shard.
pub(crate) struct Serving<S: Service> {
    service: Rc<S>,
    connections: RefCell<HashMap<u64, Rc<Connection<S>>>>,
    /// No connection shall be read any more.
    stopping: Cell<bool>,
}

/// Serves whoever comes through a listener, until that ends.
pub(crate) async fn accept_connections<S: Service>(
    serving: Rc<Serving<S>>,
    index: ListenerIndex,
    listener: Rc<Listener>,
) {
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        match listener.accept().await {
            Accepted::Connection(socket, peer) => {
                glommio::spawn_local(serve_connection(serving.clone(), socket, peer, index)).detach();
            }
            Accepted::Skipped(error) => {
                tracing::debug!(address = %listener.address(), %error, "a connection was not accepted");
            }
            Accepted::Exhausted(error) => {
                if let Some(suppressed) = serving.wire().refusals.borrow_mut().on_event(serving.wire().tick()) {
                    tracing::warn!(address = %listener.address(), %error, suppressed, "cannot accept connections");
                }
                sleep(PAUSE).await;
            }
            Accepted::Ended => return,
        }
        glommio::yield_if_needed().await;
    }
}

async fn serve_connection<S: Service>(
    serving: Rc<Serving<S>>,
    socket: Socket,
    peer: SocketAddr,
    listener: ListenerIndex,
) {
    if let Err(refusal) = serving.service.admit(peer.ip()).await {
        serving.wire().counters.connections_refused.add(1);
        if let Some(suppressed) = serving.wire().refusals.borrow_mut().on_event(serving.wire().tick()) {
            tracing::warn!(%peer, reason = %refusal, suppressed, "connection refused");
        }
        return;
    }
    serving.wire().counters.connections_accepted.add(1);
    let origin =
        Origin { address: peer, listener, connection: (serving.service.shard(), serving.wire().take_connection_id()) };
    serve_admitted(serving, socket, Peer::new(origin)).await;
}

/// Serves a connection that is counted, to its end or until it goes on on another shard.
async fn serve_admitted<S: Service>(serving: Rc<Serving<S>>, socket: Socket, peer: Peer<S::Session>) {
    let address = peer.origin.address;
    let moving = match Stream::new(socket, &serving.wire().poller) {
        Ok(stream) => {
            let id = serving.wire().take_connection_id();
            let connection = Connection::new(serving.service.clone(), stream, peer, id);
            serving.connections.borrow_mut().insert(id, connection.clone());
            if serving.stopping.get() {
                connection.end_reading();
            }
            let moving = connection::run(&connection).await;
            serving.connections.borrow_mut().remove(&id);
            moving
        }
        Err(error) => {
            tracing::warn!(peer = %address, %error, "connection cannot be polled");
            None
        }
    };
    match moving {
        Some((shard, moving)) => {
            serving.wire().counters.connections_moved.add(1);
            serving.service.send(shard, moving).await;
        }
        None => serving.service.on_uncounted(address.ip()).await,
    }
}

/// Goes on with a connection of another shard.
pub(crate) fn take_over<S: Service>(serving: Rc<Serving<S>>, moving: Moving<S::Session>) {
    let Moving { socket, peer } = moving;
    serving.service.unpack(&mut peer.session.borrow_mut());
    glommio::spawn_local(serve_admitted(serving, socket, peer)).detach();
}

impl<S: Service> Serving<S> {
    /// Nobody is connected yet.
    pub(crate) fn new(service: Rc<S>) -> Rc<Serving<S>> {
        Rc::new(Serving { service, connections: RefCell::default(), stopping: Cell::new(false) })
    }

    /// What the connections share.
    pub(crate) fn wire(&self) -> &Wire {
        self.service.wire()
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.connections.borrow().len()
    }

    /// All open connections.
    pub(crate) fn open_connections(&self) -> Vec<Rc<Connection<S>>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// A second has gone by: closes connections that are idle, stalled or overdue.
    pub(crate) async fn on_tick(&self) {
        const CHECKS_MAX: usize = 1024;
        self.wire().tick.update(|tick| tick + 1);
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
        let rounds = self.wire().config.stop_timeout.as_millis() / PAUSE.as_millis();
        for _ in 0..rounds {
            if self.connections.borrow().is_empty() && self.wire().finishing.get() == 0 {
                return;
            }
            sleep(PAUSE).await;
        }
        let left = self.open_connections();
        tracing::warn!(
            connections = left.len(),
            requests = self.wire().finishing.get(),
            "closed before all was answered"
        );
        for connection in left {
            connection.close();
        }
    }
}
