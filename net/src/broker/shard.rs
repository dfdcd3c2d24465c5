//! The wire of one shard: what its connections share, its accept loops, its timer, its clean stop.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
use glommio::timer::sleep;
use millrace_engine::{engine::Engine, stats::Counter};
use socket2::Socket;
use uuid::Uuid;

use crate::{
    broker::{
        affinity::Affinity,
        config::{Advertise, ConfigError, NetConfig},
        fetch_session::FetchSessions,
        metrics::{self, RequestStalls},
        session::Session,
        settings::broker_config,
        table::TABLE,
        telemetry::Telemetry,
    },
    coordinator::{group::Groups, share::Shares},
    wire::{
        connection::{self, Connection, Moving, Origin, Peer},
        counters::Counters,
        limits::{ConnectionLimits, LogLimiter, Refusal},
        listener::{Accepted, Families, Listener, ListenerIndex},
        memory::ReceiveMemory,
        poller::Poller,
        pressure,
        stream::Stream,
    },
};

/// Why the wire of a shard ended before the node was asked to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The shard's epoll descriptor failed.
    #[error("the poller failed: {0}")]
    Poller(io::Error),
}

/// One second: the unit of all coarse times of connections.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// What the connections of one shard share.
pub(crate) struct Shard {
    pub(crate) engine: Engine,
    pub(crate) config: NetConfig,
    pub(crate) counters: Counters,
    /// Bytes of records in answers to fetches.
    pub(crate) fetched_bytes: Counter,
    pub(crate) stalls: RefCell<RequestStalls>,
    /// Memory for requests.
    pub(crate) memory: ReceiveMemory,
    /// What a read of a new request is read into, before it is copied out. Never borrowed across an await.
    pub(crate) read_buffer: RefCell<BytesMut>,
    pub(crate) fetch_sessions: RefCell<FetchSessions>,
    poller: Rc<Poller>,
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
    next_connection_id: Cell<u64>,
    /// No connection shall be read any more.
    stopping: Cell<bool>,
    /// Ticks since the start.
    tick: Cell<u64>,
    /// Requests that run to their end whatever becomes of their connection.
    finishing: Cell<usize>,
    refusals: RefCell<LogLimiter>,
    /// A client may send what cannot be understood again and again.
    pub(crate) malformed: RefCell<LogLimiter>,
    /// Counts connections of the whole node; used on shard 0 only.
    limits: RefCell<ConnectionLimits>,
}

/// Serves Kafka's protocol on this shard until the node is asked to stop, then lets requests in flight finish.
pub async fn serve(engine: Engine, config: NetConfig) -> Result<(), ServeError> {
    config.check(engine.shards())?;
    let settings = config.group_settings()?;
    let poller = Poller::new().map_err(ServeError::Poller)?;
    let listeners = listen(&engine, &config, &poller)?;
    let metrics_listener = listen_for_metrics(&engine, &config, &poller)?;
    let shard = Rc::new(Shard {
        counters: Counters::new(TABLE.len()),
        fetched_bytes: Counter::default(),
        stalls: RefCell::new(RequestStalls::new()),
        memory: ReceiveMemory::new(config.receive_memory_bytes, config.max_frame_bytes),
        read_buffer: RefCell::new(BytesMut::with_capacity(connection::READ_BYTES_MAX)),
        fetch_sessions: RefCell::new(fetch_sessions(&engine, &config)),
        poller: poller.clone(),
        connections: RefCell::default(),
        next_connection_id: Cell::new(0),
        stopping: Cell::new(false),
        tick: Cell::new(0),
        finishing: Cell::new(0),
        refusals: RefCell::default(),
        malformed: RefCell::default(),
        limits: RefCell::default(),
        engine: engine.clone(),
        config,
    });
    if shard.config.metrics.is_some() && engine.shard() == 0 {
        Telemetry::attach(&engine);
    }
    engine.attach(shard.clone());
    let shares = glommio::spawn_local(Shares::attach(&engine, Rc::new(settings.share.clone())).run());
    let groups = glommio::spawn_local(Groups::attach(&engine, Rc::new(settings)).run());
    let timer = glommio::spawn_local(run_timer(shard.clone()));
    let pressure = glommio::spawn_local(pressure::run(shard.clone()));
    let metrics = metrics_listener.map(|listener| metrics::serve(shard.clone(), listener));
    let acceptors: Vec<_> = listeners
        .iter()
        .map(|(index, listener)| glommio::spawn_local(accept_connections(shard.clone(), *index, listener.clone())))
        .chain(metrics.map(glommio::spawn_local))
        .collect();
    let poller = std::pin::pin!(poller.run());
    let stopping = std::pin::pin!(engine.stopping());
    let outcome = match futures_util::future::select(stopping, poller).await {
        futures_util::future::Either::Left(((), poller)) => {
            for (_, listener) in &listeners {
                listener.stop();
            }
            // who waits for others of its group is sent away first, so that no connection waits for that
            let stop = std::pin::pin!(async {
                groups.await;
                shares.await;
                shard.stop().await;
            });
            futures_util::future::select(stop, poller).await;
            Ok(())
        }
        futures_util::future::Either::Right((error, _)) => {
            groups.cancel().await;
            shares.cancel().await;
            Err(ServeError::Poller(error))
        }
    };
    for acceptor in acceptors {
        acceptor.cancel().await;
    }
    timer.cancel().await;
    pressure.cancel().await;
    outcome
}

fn fetch_sessions(engine: &Engine, config: &NetConfig) -> FetchSessions {
    let (seed, _) = Uuid::new_v4().as_u64_pair();
    FetchSessions::new(config.fetch_sessions_max, engine.shard(), engine.shards(), seed as u32)
}

fn listen(
    engine: &Engine,
    config: &NetConfig,
    poller: &Rc<Poller>,
) -> Result<Vec<(ListenerIndex, Rc<Listener>)>, ServeError> {
    let places = places(config, engine.shard());
    let bind = |&(index, address): &(ListenerIndex, SocketAddr)| {
        // Both families on [::], as Java servers do, unless IPv4 has a listener of its own.
        let shared = places.iter().any(|(_, other)| other.is_ipv4() && is_same_wildcard(*other, address));
        let families = if shared { Families::Own } else { Families::Both };
        match Listener::bind(address, families, poller) {
            Ok(listener) => Ok((index, Rc::new(listener))),
            Err(source) => Err(ServeError::Listen { address, source }),
        }
    };
    places.iter().map(bind).collect()
}

/// Every address that a shard listens on: those that all shards share, and its own if shards are advertised.
fn places(config: &NetConfig, shard: usize) -> Vec<(ListenerIndex, SocketAddr)> {
    let mut places = Vec::new();
    for (at, listener) in config.listeners.iter().enumerate() {
        let own_port = listener.shard_port(shard).filter(|_| config.advertise == Advertise::Shard);
        let own = own_port.into_iter().flat_map(|port| listener.addresses.iter().map(move |a| (a.ip(), port).into()));
        places.extend(listener.addresses.iter().copied().chain(own).map(|address| (ListenerIndex(at), address)));
    }
    places
}

/// Whether both are every address of the machine on the same port.
fn is_same_wildcard(one: SocketAddr, other: SocketAddr) -> bool {
    one.ip().is_unspecified() && other.ip().is_unspecified() && one.port() == other.port()
}

/// One page shows the whole node: shard 0 serves it.
fn listen_for_metrics(
    engine: &Engine,
    config: &NetConfig,
    poller: &Rc<Poller>,
) -> Result<Option<Listener>, ServeError> {
    let address = config.metrics.filter(|_| engine.shard() == 0);
    let bind = |address| {
        Listener::bind(address, Families::Both, poller).map_err(|source| ServeError::Listen { address, source })
    };
    address.map(bind).transpose()
}

async fn accept_connections(shard: Rc<Shard>, index: ListenerIndex, listener: Rc<Listener>) {
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        match listener.accept().await {
            Accepted::Connection(socket, peer) => {
                glommio::spawn_local(serve_connection(shard.clone(), socket, peer, index)).detach();
            }
            Accepted::Skipped(error) => {
                tracing::debug!(address = %listener.address(), %error, "a connection was not accepted");
            }
            Accepted::Exhausted(error) => {
                if let Some(suppressed) = shard.refusals.borrow_mut().on_event(shard.tick()) {
                    tracing::warn!(address = %listener.address(), %error, suppressed, "cannot accept connections");
                }
                sleep(PAUSE).await;
            }
            Accepted::Ended => return,
        }
        glommio::yield_if_needed().await;
    }
}

async fn serve_connection(shard: Rc<Shard>, socket: Socket, peer: SocketAddr, listener: ListenerIndex) {
    if let Err(refusal) = shard.admit(peer.ip()).await {
        shard.counters.connections_refused.add(1);
        if let Some(suppressed) = shard.refusals.borrow_mut().on_event(shard.tick()) {
            tracing::warn!(%peer, reason = %refusal, suppressed, "connection refused");
        }
        return;
    }
    shard.counters.connections_accepted.add(1);
    let origin = Origin { address: peer, listener, connection: (shard.engine.shard(), shard.take_connection_id()) };
    serve_admitted(shard, socket, Peer::new(origin)).await;
}

/// Serves a connection that is counted, to its end or until it goes on on another shard.
async fn serve_admitted(shard: Rc<Shard>, socket: Socket, peer: Peer) {
    let address = peer.origin.address;
    let moving = match Stream::new(socket, &shard.poller) {
        Ok(stream) => {
            let id = shard.take_connection_id();
            let connection = Connection::new(shard.clone(), stream, peer, id);
            shard.connections.borrow_mut().insert(id, connection.clone());
            if shard.stopping.get() {
                connection.end_reading();
            }
            let moving = connection::run(&connection).await;
            shard.connections.borrow_mut().remove(&id);
            moving
        }
        Err(error) => {
            tracing::warn!(peer = %address, %error, "connection cannot be polled");
            None
        }
    };
    match moving {
        Some(moving) => shard.hand_over(moving).await,
        None => shard.on_closed(address.ip()).await,
    }
}

async fn run_timer(shard: Rc<Shard>) {
    loop {
        sleep(TICK).await;
        shard.tick.set(shard.tick.get() + 1);
        shard.look_for_stalls();
        shard.check_connections().await;
        shard.fetch_sessions.borrow_mut().on_tick();
        if let Some(telemetry) = shard.engine.attached::<Telemetry>() {
            telemetry.on_tick();
        }
    }
}

impl Shard {
    /// All open connections.
    pub(crate) fn open_connections(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// How many there are.
    pub(crate) fn connections(&self) -> usize {
        self.connections.borrow().len()
    }

    /// What waits for sockets.
    pub(crate) fn poller(&self) -> &Rc<Poller> {
        &self.poller
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

    /// Says once when requests begin to stand still, and once when that is over.
    fn look_for_stalls(&self) {
        let mut stalls = self.stalls.borrow_mut();
        let said = stalls.look(self.counters.uptime(), &self.counters, self.engine.is_full());
        let (_, are_stalled) = stalls.reading();
        self.engine.note_stalled_requests(are_stalled);
        let shard = self.engine.shard();
        match said {
            Some(said) if are_stalled => tracing::error!(shard, "{said}"),
            Some(said) => tracing::warn!(shard, "{said}"),
            None => {}
        }
    }

    /// Closes connections that are idle, stalled or overdue.
    async fn check_connections(&self) {
        const CHECKS_MAX: usize = 1024;
        let connections = self.open_connections();
        for some in connections.chunks(CHECKS_MAX) {
            for connection in some {
                connection.on_tick();
            }
            glommio::yield_if_needed().await;
        }
    }

    /// Reads no more, waits for requests in flight, then closes everything.
    async fn stop(&self) {
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

    /// Asks shard 0, which counts the connections of the whole node, for leave to serve one more.
    async fn admit(&self, ip: IpAddr) -> Result<(), Refusal> {
        let admit = move |engine: Engine| async move {
            let shard = wire_of(&engine).await;
            let (connections_max, per_ip_max) =
                broker_config::connection_limits(&shard.config, &engine.broker_settings());
            shard.limits.borrow_mut().admit(ip, connections_max, per_ip_max)
        };
        self.engine.on_shard(0, admit).await
    }

    /// Sends a connection to another shard. It stays counted.
    async fn hand_over(&self, moving: Moving) {
        self.counters.connections_moved.add(1);
        let take_over = {
            let Moving { socket, peer, .. } = moving;
            move |engine: Engine| async move { wire_of(&engine).await.take_over(socket, peer) }
        };
        self.engine.on_shard(moving.shard, take_over).await;
    }

    /// Goes on with a connection of another shard.
    fn take_over(self: Rc<Self>, socket: Socket, peer: Peer) {
        self.unpack(&mut peer.session.borrow_mut());
        glommio::spawn_local(serve_admitted(self, socket, peer)).detach();
    }

    /// Gives a session that leaves what this shard has of it.
    pub(crate) fn pack(&self, session: &mut Session) {
        session.carried = self.fetch_sessions.borrow_mut().take(session.fetch_session);
    }

    /// Takes that from a session that has come.
    fn unpack(&self, session: &mut Session) {
        if let Some(carried) = session.carried.take() {
            self.fetch_sessions.borrow_mut().adopt(session.fetch_session, carried);
        }
        // which shard it is for begins anew here
        session.affinity = Affinity::default();
    }

    fn take_connection_id(&self) -> u64 {
        self.next_connection_id.update(|id| id + 1);
        self.next_connection_id.get()
    }

    async fn on_closed(&self, ip: IpAddr) {
        let count_out = move |engine: Engine| async move {
            wire_of(&engine).await.limits.borrow_mut().on_closed(ip);
        };
        self.engine.on_shard(0, count_out).await;
    }
}

/// The wire of a shard, which may still be starting.
async fn wire_of(engine: &Engine) -> Rc<Shard> {
    const PAUSE: Duration = Duration::from_millis(5);
    loop {
        if let Some(shard) = engine.attached::<Shard>() {
            return shard;
        }
        sleep(PAUSE).await;
    }
}
