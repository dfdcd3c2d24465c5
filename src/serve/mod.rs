//! `millrace serve`: checks the machine, starts the node, tells the world, and stops it cleanly.
//!
//! The main thread prepares and then blocks in the engine's `run`; a thread of its own waits for signals, another one
//! watches that every shard turns and reports to systemd.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use kafka_protocol::protocol::StrBytes;
use millrace_client::{Broker, ConnectOptions};
use millrace_engine::{
    config::{self as topic_config, Effect},
    engine::Engine,
    node::{self, LockHolder, NodeOptions, StartError, Stopper, lock_holder},
};
use millrace_tuning::{
    Needs, Severity,
    claim::{self, Claims},
    examine, limits,
};

use self::{
    attend::{Attendant, Duties},
    cluster::{Exit, Shards},
    listen::Listening,
    notify::Notifier,
    pulse::Pulse,
    stop::Deadline,
    wire::{Ending, Halt},
};
use crate::{
    config::{self, Config, HostPort, Listener, Machine, ServeOptions, places},
    failure::{Failure, Outcome},
    output::say,
};

mod attend;
mod banner;
pub(crate) mod cluster;
pub(crate) mod explain;
mod listen;
mod logging;
mod notify;
mod pages;
mod pulse;
mod signals;
mod stop;
mod wire;

/// Where a node's configuration comes from: options over a file over defaults.
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// TOML file with any of these options, by the same names; the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: ServeOptions,
}

/// Runs a broker
///
/// Without options: data in ./millrace-data, listening on 127.0.0.1:9092, one shard per CPU. SIGTERM or SIGINT stop it
/// cleanly, within --stop-timeout; a second one stops it at once. None of that loses what was acknowledged.
///
/// Exit status: 0 after a clean stop; 1 when it could not start or go on; 2 for options that make no sense; 3 when the stop
/// took longer than --stop-timeout; 128 and the number of the second signal.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeCommand {
    #[command(flatten)]
    config: ConfigArgs,
}

const EXAMPLES: &str = "\
Examples:
  millrace serve
  millrace serve --data /srv/millrace --listen 0.0.0.0:9092 --advertised-listener broker.example:9092
  millrace serve --listen INSIDE://0.0.0.0:9092,OUTSIDE://0.0.0.0:9094 \
    --advertised-listener INSIDE://broker:9092,OUTSIDE://localhost:9094
  millrace serve --memory 4GiB --pin --topic-default retention.ms=86400000
  millrace serve --config /etc/millrace.toml

The same as a file:
  data = \"/srv/millrace\"
  listen = [\"0.0.0.0:9092\"]
  advertised-listener = \"broker.example:9092\"
  memory = \"4GiB\"
  [topic-default]
  \"retention.ms\" = 86400000";

impl ConfigArgs {
    /// Reads the file, if any, and makes the configuration.
    pub(crate) fn resolve(self) -> Outcome<Config> {
        self.resolve_with_log_level().map(|(config, _)| config)
    }

    /// Also tells the log filter: from the command line, RUST_LOG, the file, in that order.
    fn resolve_with_log_level(self) -> Outcome<(Config, String)> {
        let said = self.options.log_level.clone();
        let file = match &self.config {
            Some(path) => config::file::load(path).map_err(Failure::usage)?,
            None => ServeOptions::default(),
        };
        let from_file = file.log_level.clone();
        let from_environment = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
        let level = said.or(from_environment).or(from_file).unwrap_or_else(|| "info".to_owned());
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let config = Config::resolve(self.options.over(file), Machine { cpus })
            .map_err(|problems| Failure::usage(problems.0.join("\nerror: ")))?;
        Ok((config, level))
    }
}

impl Config {
    /// What the checks of the machine are asked for.
    pub(crate) fn needs(&self) -> Needs {
        let places = self.listeners.iter().flat_map(|listener| places(listener, self.advertise, self.shards));
        let pair = |address: HostPort| (address.host, address.port);
        let peer = self.cluster.iter().map(|cluster| cluster.peer_listen.clone());
        let listen = places.chain(self.metrics.clone()).chain(peer).map(pair).collect();
        let told = |listener: &Listener| {
            let first = &listener.addresses[0];
            listener.advertised.clone().unwrap_or_else(|| listen::advertised(first, first.port))
        };
        let advertised = self.listeners.iter().map(|listener| pair(told(listener))).collect();
        Needs {
            data_dir: self.data_dir.clone(),
            listen,
            advertised,
            shards: self.shards,
            io_memory_bytes: node::IO_MEMORY_BYTES as u64,
            max_connections: u64::from(self.max_connections),
            memory_bytes: self.memory.total.0,
            wal_bytes: self.wal_bytes.0.saturating_mul(self.shards as u64),
            wal_first_bytes: node::wal_first_bytes(self.wal_bytes.0).saturating_mul(self.shards as u64),
            reserve_bytes: self.reserve_bytes.0,
        }
    }

    fn node_options(&self) -> NodeOptions {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        NodeOptions {
            data_dir: self.data_dir.clone(),
            node_id: self.node_id,
            shards: self.shards,
            pin: self.pin,
            memory_bytes: self.memory.engine.as_usize(),
            reserve_bytes: self.reserve_bytes.0,
            wal_bytes: self.wal_bytes.0,
            topic_defaults: self.topic_defaults.clone(),
            producer_id_expiration_ms: ms(self.producer_id_expiration),
            retention_check_ms: ms(self.retention_check),
        }
    }
}

impl ServeCommand {
    /// Runs the broker; returns when it has stopped.
    pub(crate) fn run(self) -> Outcome {
        let (config, filter) = self.config.resolve_with_log_level()?;
        logging::start(&filter)?;
        signals::block().map_err(Failure::failed)?;
        // Before anything that may wait for a disk: a stop is bounded from here on.
        let stopper = Stopper::default();
        let notifier = Arc::new(Notifier::from_environment());
        let ending = Ending::default();
        let deadline =
            Deadline::start(stopper.clone(), ending.clone(), config.stop_timeout).map_err(Failure::failed)?;
        let exit = Exit::default();
        let stop = (stopper.clone(), deadline.clone(), exit.clone());
        watch_signals(stop, config.stop_timeout, notifier.clone()).map_err(Failure::failed)?;
        pages::refuse_huge();
        limits::raise();
        let listening = listen::resolve(&config);
        // First of all: looking at the machine binds each address for a moment, which other nodes must not meet.
        let _claims = listening.as_ref().ok().map(|listening| claim(listening, &config)).transpose()?;
        refuse_unfit_machine(&config)?;
        refuse_folder_in_use(&config)?;
        let listening = listening.map_err(|error| Failure::failed(format!("cannot listen: {error}")))?;
        let (prepared, _etcd) = cluster::prepare(&config, &listening)?.unzip();
        let halt = Halt { ending: ending.clone(), deadline: deadline.clone(), stopper: stopper.clone() };
        let shards = prepared.map(|prepared| Shards::new(prepared, exit, halt));
        say(banner::starting(&config).trim_end());
        warn_of_idle_settings(&config);
        let watchdog = notify::watchdog_interval();
        let pulse = Pulse::new(config.shards);
        let net_config = wire::net_config(&config, &listening);
        let watched = (pulse.clone(), stopper.clone());
        let _attendant = attend(&config, &listening, watched, watchdog, notifier).map_err(Failure::failed)?;

        let node_options = config.node_options();
        let ended = ending.clone();
        let serve = move |engine: Engine| {
            let (pulse, net_config, shards) = (pulse.clone(), net_config.clone(), shards.clone());
            let (ending, deadline) = (ending.clone(), deadline.clone());
            async move {
                let shard = engine.shard();
                let work = wire::serve(engine, net_config, shards, ending, deadline);
                match watchdog {
                    Some(patience) => pulse.beat_during(shard, patience / 8, work).await,
                    None => work.await,
                }
            }
        };
        abort_on_panic();
        node::run(node_options, stopper, serve).map_err(|error| Failure::failed(explain::start_error(&error)))?;
        if let Some(reason) = ended.take() {
            return Err(Failure::failed(reason));
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Settings that somebody took the trouble to write, but that do nothing here.
fn warn_of_idle_settings(config: &Config) {
    for key in topic_config::keys().iter().filter(|key| config.topic_defaults.contains_key(key.name)) {
        if let Effect::None { reason } = key.effect {
            tracing::warn!("--topic-default {} has no effect: {reason}", key.name);
        }
    }
}

/// Takes the addresses for this node alone, for as long as it runs.
fn claim(listening: &Listening, config: &Config) -> Outcome<Claims> {
    claim::claim(&listening.all(config)).map_err(|finding| {
        say(&finding);
        Failure::Reported
    })
}

/// How long the node may take to answer the first request that is made to see whether it answers.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells of everything that is not as it should be; fails if a node could not run.
fn refuse_unfit_machine(config: &Config) -> Outcome {
    let mut unfit = false;
    for finding in examine(&config.needs()).iter().filter(|finding| finding.severity > Severity::Good) {
        say(finding);
        unfit |= finding.severity == Severity::Error;
    }
    match unfit {
        true => Err(Failure::Reported),
        false => Ok(()),
    }
}

/// Before anything is done in this node's name: an etcd started, a life begun. Whether it is free is found out later.
fn refuse_folder_in_use(config: &Config) -> Outcome {
    match lock_holder(&config.data_dir) {
        Some(holder @ LockHolder::Runs(_)) => {
            let error = StartError::Locked { path: config.data_dir.clone(), holder };
            Err(Failure::failed(explain::start_error(&error)))
        }
        Some(LockHolder::Unseen) | None => Ok(()),
    }
}

fn watch_signals(
    (stopper, deadline, exit): (Stopper, Deadline, Exit),
    patience: Duration,
    notifier: Arc<Notifier>,
) -> io::Result<()> {
    signals::watch(move |signal| {
        deadline.begin();
        exit.drain(patience, move || stopper.stop());
        stop::briefly(move || {
            notifier.stopping();
            tracing::info!("{}: stopping; what was acknowledged is safe, a second signal stops at once", signal.name());
        });
    })
}

fn attend(
    config: &Config,
    listening: &Listening,
    (pulse, stopper): (Pulse, Stopper),
    watchdog: Option<Duration>,
    notifier: Arc<Notifier>,
) -> io::Result<Attendant> {
    let listens = listening.listeners[0].addresses[0];
    let address = reachable(listens);
    let options = ConnectOptions { client_id: StrBytes::from_static_str("millrace"), timeout: PROBE_TIMEOUT };
    let answers = Box::new(move || Broker::open(&address.ip().to_string(), address.port(), &options).is_ok());
    let ready = banner::ready(config, listening);
    let ready_notifier = notifier.clone();
    let on_ready = Box::new(move || {
        say(ready.trim_end());
        ready_notifier.ready(&format!("serving on {listens}"));
    });
    let vitals = Box::new(move || stopper.vitals());
    attend::start(Duties { answers, on_ready, pulse, vitals, watchdog, notifier })
}

/// An address to connect to for one to listen on.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.is_ipv4() {
            true => Ipv4Addr::LOCALHOST.into(),
            false => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// A thread that panicked would leave its connections hanging: the process says what happened and ends, also where it was
/// not built to abort.
fn abort_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort();
    }));
}
