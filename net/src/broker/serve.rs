//! How a shard's part of the broker is served: its listeners, its timer, its clean stop.

use std::{cell::RefCell, collections::BTreeMap, io, net::SocketAddr, rc::Rc, time::Duration};

use futures_util::{
    FutureExt,
    future::{LocalBoxFuture, Shared},
};
use glommio::{Task, timer::sleep};
use millrace_engine::{api::TopicError, engine::Engine, stats::Counter};
use uuid::Uuid;

use crate::{
    broker::{
        cluster::{Administration, Cluster, ClusterView, CoordinatorControl, Membership, SeenNodes, Whose},
        config::{Advertise, ConfigError, NetConfig},
        fetch_session::FetchSessions,
        metrics::{self, RequestStalls},
        shard::BrokerShard,
        telemetry::Telemetry,
    },
    client::OtherBrokers,
    coordinator::{Coordinators, Settings, runtime::AttachedControl},
    feature_levels::{finalize_transaction_version, finalized_transaction_version},
    wire::{
        listener::{Families, Listener, ListenerIndex},
        poller::Poller,
        pressure,
        serve::{self, Serving},
        service::Service,
        shared::{TICK, Wire},
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
    /// The catalog cannot say that there may be transactions.
    #[error("the catalog cannot be written: {0}")]
    Catalog(TopicError),
    /// The shard's epoll descriptor failed.
    #[error("the poller failed: {0}")]
    Poller(io::Error),
}

/// Serves Kafka's protocol on this shard until the node is asked to stop, then lets requests in flight finish.
pub async fn serve(engine: Engine, config: NetConfig, membership: Membership) -> Result<(), ServeError> {
    config.check(engine.shards())?;
    if let Some(reason) = membership.objection(&config) {
        return Err(ConfigError::new(reason).into());
    }
    let settings = config.coordinator_settings()?;
    if membership.is_clustered() && engine.shard() == 0 {
        // leaders and followers take what other nodes' coordinators have let in
        engine.use_transactions().await.map_err(ServeError::Catalog)?;
    }
    let poller = Poller::new().map_err(ServeError::Poller)?;
    let listeners = listen(&engine, &config, &poller)?;
    let metrics_listener = listen_for_metrics(&engine, &config, &poller)?;
    let shard = Rc::new(BrokerShard {
        wire: Wire::new(config.wire(), BrokerShard::table().len(), poller.clone()),
        fetched_bytes: Counter::default(),
        request_stalls: RefCell::new(RequestStalls::new()),
        fetch_sessions: RefCell::new(fetch_sessions(&engine, &config)),
        engine: engine.clone(),
        config,
        membership,
    });
    if shard.config.metrics.is_some() && engine.shard() == 0 {
        Telemetry::attach(&engine);
    }
    let serving = Serving::new(shard.clone());
    engine.attach(shard.clone());
    engine.attach(serving.clone());
    let others = attach_other_brokers(&shard)?;
    if let Membership::Clustered(cluster) = &shard.membership
        && engine.shard() == 0
    {
        glommio::spawn_local(settle_until_stopped(shard.clone(), cluster.clone())).detach();
    }
    let coordinators = start_coordinators(&shard, settings);
    let follower = glommio::spawn_local(follow_leadership(shard.clone(), coordinators.clone()));
    let timer = glommio::spawn_local(run_timer(shard.clone(), serving.clone(), others));
    let pressure = glommio::spawn_local(pressure::run(serving.clone()));
    let metrics = metrics_listener.map(|listener| metrics::serve(shard.clone(), listener));
    let acceptors: Vec<_> =
        accept(&engine, &serving, &listeners).into_iter().chain(metrics.map(glommio::spawn_local)).collect();
    let poller = std::pin::pin!(poller.run());
    let stopping = std::pin::pin!(engine.stopping());
    let outcome = match futures_util::future::select(stopping, poller).await {
        futures_util::future::Either::Left(((), poller)) => {
            for (_, listener) in &listeners {
                listener.stop();
            }
            // who waits for others of its group is sent away first, so that no connection waits for that
            let stop = std::pin::pin!(async {
                coordinators.stop_groups().await;
                serving.stop().await;
                coordinators.stop().await;
            });
            futures_util::future::select(stop, poller).await;
            Ok(())
        }
        futures_util::future::Either::Right((error, _)) => {
            coordinators.cancel().await;
            Err(ServeError::Poller(error))
        }
    };
    for acceptor in acceptors {
        acceptor.cancel().await;
    }
    timer.cancel().await;
    follower.cancel().await;
    pressure.cancel().await;
    outcome
}

async fn settle_until_stopped(shard: Rc<BrokerShard>, cluster: Rc<Cluster>) {
    let engine = shard.engine.clone();
    let (settled, stopping) = (std::pin::pin!(settle_levels(shard, cluster)), std::pin::pin!(engine.stopping()));
    futures_util::future::select(settled, stopping).await;
}

/// The first node of a cluster says at which level its transactions are; all others follow that, whatever they were started
/// with, until somebody changes it.
async fn settle_levels(shard: Rc<BrokerShard>, cluster: Rc<Cluster>) {
    /// Pause before it is tried again.
    const PAUSE: Duration = Duration::from_secs(1);
    let level = shard.config.transaction_version;
    let is_settled = || finalized_transaction_version(&cluster.image().settings_of(shard.engine.node_id())).is_some();
    while !is_settled() {
        let view = ClusterView::new((&shard.engine, &shard.config), &shard.membership, &shard.config.listeners[0]);
        let decide = move |kept: &BTreeMap<String, String>| match finalized_transaction_version(kept) {
            Some(_) => Ok(Vec::new()),
            None => Ok(finalize_transaction_version(kept, level)),
        };
        let settled = Administration::new(view, &shard.membership).change_settings(Whose::Here, false, decide).await;
        let Err(error) = settled else { return };
        tracing::warn!(error = %error.error, "the level of transaction.version is not settled yet");
        sleep(PAUSE).await;
    }
}

/// In a cluster, the way to other brokers.
fn attach_other_brokers(shard: &BrokerShard) -> Result<Option<Rc<OtherBrokers>>, ServeError> {
    let Membership::Clustered(cluster) = &shard.membership else { return Ok(None) };
    let listener = shard.config.inter_broker_listener().name.clone();
    let map = SeenNodes { cluster: Rc::clone(cluster), here: shard.engine.node_id(), listener };
    let others = Rc::new(OtherBrokers::new(Box::new(map)).map_err(ServeError::Poller)?);
    shard.engine.attach(Rc::clone(&others));
    Ok(Some(others))
}

/// Starts the coordinators; in a cluster with the way to have their topics made there.
fn start_coordinators(shard: &Rc<BrokerShard>, settings: Settings) -> Rc<Coordinators> {
    if shard.membership.is_clustered() {
        let control = CoordinatorControl { shard: Rc::downgrade(shard) };
        shard.engine.attach(Rc::new(AttachedControl(Box::new(control))));
    }
    Coordinators::start(&shard.engine, settings)
}

/// Coordinators come and go with the leadership of their partitions.
async fn follow_leadership(shard: Rc<BrokerShard>, coordinators: Rc<Coordinators>) {
    let Membership::Clustered(cluster) = &shard.membership else { return };
    loop {
        cluster.leadership_noticed().await;
        coordinators.on_leadership();
    }
}

/// Accepts connections on every listener, once all coordinators have had time to load.
fn accept(
    engine: &Engine,
    serving: &Rc<Serving<BrokerShard>>,
    listeners: &[(ListenerIndex, Rc<Listener>)],
) -> Vec<Task<()>> {
    let started = started(engine);
    let accepting = listeners.iter().map(|(index, listener)| {
        let (started, serving, index, listener) = (started.clone(), serving.clone(), *index, listener.clone());
        glommio::spawn_local(async move {
            started.await;
            serve::accept_connections(serving, index, listener).await;
        })
    });
    accepting.collect()
}

/// All shards are asked once, however many listeners wait for the answer.
fn started(engine: &Engine) -> Shared<LocalBoxFuture<'static, ()>> {
    let engine = engine.clone();
    async move { Coordinators::started(&engine).await }.boxed_local().shared()
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

async fn run_timer(shard: Rc<BrokerShard>, serving: Rc<Serving<BrokerShard>>, others: Option<Rc<OtherBrokers>>) {
    loop {
        sleep(TICK).await;
        look_for_stalls(&shard);
        serving.on_tick().await;
        if let Some(others) = &others {
            others.sweep();
        }
        shard.fetch_sessions.borrow_mut().on_tick();
        if let Some(telemetry) = shard.engine.attached::<Telemetry>() {
            telemetry.on_tick();
        }
    }
}

/// Says once when requests begin to stand still, and once when that is over.
fn look_for_stalls(shard: &BrokerShard) {
    let mut stalls = shard.request_stalls.borrow_mut();
    let said = stalls.look(shard.wire.counters.uptime(), &shard.wire.counters, shard.engine.is_full());
    let (_, are_stalled) = stalls.reading();
    shard.engine.note_stalled_requests(are_stalled);
    let shard = shard.engine.shard();
    match said {
        Some(said) if are_stalled => tracing::error!(shard, "{said}"),
        Some(said) => tracing::warn!(shard, "{said}"),
        None => {}
    }
}
