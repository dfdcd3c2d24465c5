//! The one configuration of a node: made once from the command line, the configuration file and defaults, with units in
//! types, relations checked together, immutable from then on. Pure but for reading the file.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use millrace_engine::{config as topic_config, node::SHARDS_MAX};
use millrace_net::TRANSACTION_VERSION_MAX;

use self::listener::Said;

pub(crate) use self::{
    address::HostPort,
    cluster::{ClusterConfig, EtcdConfig, ManagedEtcd, Mirror, WithoutFollower},
    etcd::EtcdMember,
    listener::{Listener, places, shard_port, take_in},
    memory::{CONNECTION_BYTES_BESIDE, MemoryPlan},
    options::{Advertise, ServeOptions},
    settings::Setting,
    units::{ByteSize, Span},
};

mod address;
mod cluster;
mod etcd;
pub(crate) mod file;
mod listener;
mod memory;
mod options;
mod settings;
mod units;

/// What a node runs with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) node_id: i32,
    /// At least one.
    pub(crate) shards: usize,
    pub(crate) pin: bool,
    pub(crate) memory: MemoryPlan,
    /// Of each shard.
    pub(crate) wal_bytes: ByteSize,
    pub(crate) reserve_bytes: ByteSize,
    /// At least one.
    pub(crate) listeners: Vec<Listener>,
    pub(crate) advertise: Advertise,
    /// Where metrics are served, if they are.
    pub(crate) metrics: Option<HostPort>,
    pub(crate) max_connections: u32,
    /// At most `max_connections`.
    pub(crate) max_connections_per_ip: u32,
    /// Never more than the receive buffers of one shard have for one request.
    pub(crate) max_frame_bytes: ByteSize,
    pub(crate) connections_max_idle: Duration,
    /// After that a stop ends, whatever is left to do. The systemd unit's TimeoutStopSec is twice the default.
    pub(crate) stop_timeout: Duration,
    pub(crate) num_partitions: i32,
    pub(crate) auto_create_topics: bool,
    /// By topic setting name; parsed once to be sure that it can be.
    pub(crate) topic_defaults: BTreeMap<String, String>,
    /// By Kafka's name; checked by the wire's own parser.
    pub(crate) group_settings: BTreeMap<String, String>,
    /// By Kafka's name; checked likewise.
    pub(crate) transaction_settings: BTreeMap<String, String>,
    /// Level of `transaction.version`, 0 to 2.
    pub(crate) transaction_version: i16,
    pub(crate) retention_check: Duration,
    /// `None`: the node is alone.
    pub(crate) cluster: Option<ClusterConfig>,
    pub(crate) producer_id_expiration: Duration,
}

/// What a configuration may take from the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// CPUs that this process may use.
    pub(crate) cpus: usize,
}

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problems(pub(crate) Vec<String>);

/// Smallest request limit: a request of Kafka's default `max.message.bytes` must fit.
const FRAME_BYTES_MIN: u64 = 2 << 20;
const FRAME_BYTES_DEFAULT: u64 = 100 << 20;
/// Largest length that the wire can declare.
const FRAME_BYTES_MAX: u64 = i32::MAX as u64;
const WAL_BYTES_MIN: u64 = 32 << 20;
const WAL_BYTES_DEFAULT: u64 = 256 << 20;
const PARTITIONS_MAX: i32 = 100_000;
const CONNECTIONS_DEFAULT: u32 = 10_000;
const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

impl Config {
    /// Completes and checks what the user said.
    pub(crate) fn resolve(options: ServeOptions, machine: Machine) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let shards = options.shards.unwrap_or(machine.cpus);
        let default_memory = memory::NODE_BYTES_DEFAULT.max(shards as u64 * memory::SHARD_BYTES_DEFAULT);
        let memory = MemoryPlan::divide(options.memory.unwrap_or(ByteSize(default_memory)));
        let wal_bytes = options.wal_bytes.unwrap_or(ByteSize(WAL_BYTES_DEFAULT));
        let max_connections = options.max_connections.unwrap_or(CONNECTIONS_DEFAULT);
        // No less than the smallest legal one, so that too little memory is told once and not twice.
        let frame_room = memory.frame_bytes_max(shards);
        let default_frame = ByteSize(FRAME_BYTES_DEFAULT.min(frame_room.0).max(FRAME_BYTES_MIN));
        let said = Said {
            listen: options.listen.clone(),
            tables: options.listener.clone(),
            advertised: options.advertised_listener.clone().unwrap_or_default(),
        };
        let listeners = listener::resolve(said, &mut problems);
        let cluster = cluster::resolve(&options, &listeners, &mut problems);
        let mut topic_defaults = topic_defaults(&options.topic_default, &mut problems);
        if let Some(mirror) = cluster.as_ref().and_then(|cluster| cluster.etcd.mirror.as_ref()) {
            let wanted = mirror.min_in_sync();
            if topic_defaults.insert("min.insync.replicas".to_owned(), wanted.to_owned()).is_some_and(|is| is != wanted)
            {
                problems.push(format!(
                    "--topic-default min.insync.replicas: leave it out, mirror.without.follower makes it {wanted}"
                ));
            }
        }
        let config = Self {
            cluster,
            data_dir: options.data.unwrap_or_else(|| PathBuf::from("./millrace-data")),
            node_id: options.node_id.unwrap_or(1),
            shards,
            pin: options.pin.unwrap_or(false),
            memory,
            wal_bytes,
            reserve_bytes: options.reserve_bytes.unwrap_or(ByteSize(wal_bytes.0.saturating_mul(shards as u64))),
            listeners,
            advertise: options.advertise.unwrap_or(Advertise::Node),
            metrics: options.metrics,
            max_connections,
            max_connections_per_ip: options.max_connections_per_ip.unwrap_or(max_connections),
            max_frame_bytes: options.max_frame_bytes.unwrap_or(default_frame),
            stop_timeout: options.stop_timeout.map_or(STOP_TIMEOUT_DEFAULT, |s| s.0),
            connections_max_idle: options.connections_max_idle.map_or(Duration::from_secs(600), |s| s.0),
            num_partitions: options.num_partitions.unwrap_or(1),
            auto_create_topics: options.auto_create_topics.unwrap_or(true),
            topic_defaults,
            group_settings: group_settings(&options.group_setting, &mut problems),
            transaction_settings: transaction_settings(&options.transaction_setting, &mut problems),
            transaction_version: transaction_version(options.transaction_version, &mut problems),
            retention_check: options.retention_check.map_or(Duration::from_secs(300), |s| s.0),
            producer_id_expiration: options.producer_id_expiration.map_or(Duration::from_secs(86_400), |s| s.0),
        };
        config.check_machine(machine, &mut problems);
        config.check_sizes(&mut problems);
        config.check_network(&mut problems);
        match problems.is_empty() {
            true => Ok(config),
            false => Err(Problems(problems)),
        }
    }

    fn check_machine(&self, machine: Machine, problems: &mut Vec<String>) {
        if self.shards == 0 || self.shards > SHARDS_MAX {
            problems.push(format!("--shards {}: from 1 to {SHARDS_MAX}", self.shards));
        }
        if self.pin && self.shards > machine.cpus {
            let (shards, cpus) = (self.shards, machine.cpus);
            problems.push(format!("--pin needs a CPU for each of {shards} shards, but this process may use {cpus}"));
        }
        if self.node_id < 0 {
            problems.push(format!("--node-id {}: must not be negative", self.node_id));
        }
    }

    fn check_sizes(&self, problems: &mut Vec<String>) {
        let shards = self.shards.max(1) as u64;
        let least = shards * memory::SHARD_BYTES_MIN;
        if self.memory.total.0 < least {
            let (total, least) = (self.memory.total, ByteSize(least));
            problems.push(format!("--memory {total} is too little for {shards} shards: at least {least}"));
        }
        if self.wal_bytes.0 < WAL_BYTES_MIN {
            problems.push(format!("--wal-bytes {}: at least {}", self.wal_bytes, ByteSize(WAL_BYTES_MIN)));
        }
        self.check_frame(shards, problems);
        if self.num_partitions < 1 || self.num_partitions > PARTITIONS_MAX {
            problems.push(format!("--num-partitions {}: from 1 to {PARTITIONS_MAX}", self.num_partitions));
        }
        if self.retention_check.is_zero() || self.producer_id_expiration.is_zero() {
            problems.push("--retention-check and --producer-id-expiration must be more than nothing".to_owned());
        }
    }

    fn check_frame(&self, shards: u64, problems: &mut Vec<String>) {
        let room = self.memory.frame_bytes_max(self.shards);
        let (frame, least) = (self.max_frame_bytes, ByteSize(FRAME_BYTES_MIN));
        if frame.0 < FRAME_BYTES_MIN || frame.0 > FRAME_BYTES_MAX {
            problems.push(format!("--max-frame-bytes {frame}: from {least} to {}", ByteSize(FRAME_BYTES_MAX)));
            return;
        }
        if frame > room && self.memory.total.0 >= shards * memory::SHARD_BYTES_MIN {
            problems.push(format!(
                "--max-frame-bytes {frame} does not fit the receive buffers of a shard ({room} for one request, of --memory {}): \
                 lower it or raise --memory",
                self.memory.total
            ));
        }
        if let Ok(parsed) = topic_config::TopicConfig::parse(&self.topic_defaults, &BTreeMap::new())
            && parsed.batch_bytes_max() as u64 >= frame.0
        {
            let max = parsed.max_message_bytes;
            problems.push(format!("max.message.bytes={max} does not fit --max-frame-bytes {frame}"));
        }
    }

    fn check_network(&self, problems: &mut Vec<String>) {
        listener::check_places(&self.listeners, self.advertise, self.shards, problems);
        let places = self.listeners.iter().flat_map(|listener| places(listener, self.advertise, self.shards));
        let is_taken = |address: &&HostPort| address.port != 0 && places.clone().any(|place| place == **address);
        if let Some(address) = self.metrics.as_ref().filter(is_taken) {
            problems.push(format!("--metrics {address}: clients of the broker are to connect there (--listen)"));
        }
        if let Some(address) = self.cluster.as_ref().map(|cluster| &cluster.peer_listen)
            && (is_taken(&address) || self.metrics.as_ref() == Some(address))
        {
            problems.push(format!("--peer-listen {address}: clients of the broker are to connect there"));
        }
        if self.max_connections == 0 || self.max_connections_per_ip == 0 {
            problems.push("--max-connections and --max-connections-per-ip must be at least 1".to_owned());
        } else if self.max_connections_per_ip > self.max_connections {
            let (ip, all) = (self.max_connections_per_ip, self.max_connections);
            problems.push(format!("--max-connections-per-ip {ip} is more than --max-connections {all}"));
        }
        if self.stop_timeout.is_zero() {
            problems.push("--stop-timeout must be more than nothing: a second signal stops at once".to_owned());
        }
        if self.connections_max_idle.is_zero() {
            problems.push("--connections-max-idle must be more than nothing".to_owned());
        }
    }
}

/// Checks names one by one, then the values together.
fn topic_defaults(settings: &[Setting], problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut defaults = BTreeMap::new();
    for setting in settings {
        match unknown_topic_setting(&setting.key) {
            Some(problem) => problems.push(format!("--topic-default {problem}")),
            None => {
                defaults.insert(setting.key.clone(), setting.value.clone());
            }
        }
    }
    if !defaults.is_empty()
        && let Err(problem) = topic_config::TopicConfig::parse(&defaults, &BTreeMap::new())
    {
        problems.push(format!("--topic-default {problem}"));
    }
    defaults
}

fn group_settings(settings: &[Setting], problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let given: BTreeMap<_, _> = settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect();
    if let Err(problem) = millrace_net::check_group_settings(&given) {
        problems.push(format!("--group-setting {problem}"));
    }
    given
}

fn transaction_settings(settings: &[Setting], problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let given: BTreeMap<_, _> = settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect();
    if let Err(problem) = millrace_net::check_transaction_settings(&given) {
        problems.push(format!("--transaction-setting {problem}"));
    }
    given
}

/// The newest, unless another was asked for.
fn transaction_version(level: Option<i16>, problems: &mut Vec<String>) -> i16 {
    let level = level.unwrap_or(TRANSACTION_VERSION_MAX);
    if !(0..=TRANSACTION_VERSION_MAX).contains(&level) {
        problems.push(format!("--transaction-version {level}: 0 to {TRANSACTION_VERSION_MAX}"));
    }
    level
}

/// A setting that is accepted, but not listed: it allows segments that are too small for anything but tests.
const FOR_TESTS: &str = "internal.segment.bytes";

/// Says what is wrong with a topic setting's name, if anything.
fn unknown_topic_setting(name: &str) -> Option<String> {
    let keys = topic_config::keys();
    if keys.iter().any(|key| key.name == name) || name == FOR_TESTS {
        return None;
    }
    if let Some(key) = keys.iter().find(|key| key.synonyms.iter().any(|synonym| synonym.name == name)) {
        return Some(format!("{name}: write it by its topic name, {}", key.name));
    }
    let closest = keys.iter().min_by_key(|key| file::distance(key.name, name));
    Some(match closest.filter(|key| file::distance(key.name, name) <= 3) {
        Some(key) => format!("{name}: no such topic setting; did you mean {}?", key.name),
        None => format!("{name}: no such topic setting"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { cpus: 2 };

    fn problems(options: ServeOptions) -> Vec<String> {
        Config::resolve(options, MACHINE).err().map(|p| p.0).unwrap_or_default()
    }

    #[test]
    fn nothing_said_gives_a_node_that_can_run() {
        let config = Config::resolve(ServeOptions::default(), MACHINE).unwrap();
        assert_eq!(config.shards, 2);
        assert_eq!(config.data_dir, PathBuf::from("./millrace-data"));
        assert_eq!(config.listeners[0].addresses[0].to_string(), "127.0.0.1:9092");
        assert_eq!(config.memory.total, ByteSize::mib(512));
        assert_eq!(config.reserve_bytes, ByteSize::mib(512));
        assert!(config.max_frame_bytes.0 * config.shards as u64 <= config.memory.receive.0);
    }

    #[test]
    fn a_stop_ends_well_within_the_patience_of_the_systemd_unit() {
        let unit = include_str!("../../tuning/millrace.service");
        let seconds = |name: &str| {
            let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            Duration::from_secs(value.unwrap().parse().unwrap())
        };
        let config = Config::resolve(ServeOptions::default(), MACHINE).unwrap();
        assert!(2 * config.stop_timeout <= seconds("TimeoutStopSec"));
        let options = ServeOptions { stop_timeout: Some(Span(Duration::ZERO)), ..Default::default() };
        assert!(problems(options)[0].contains("--stop-timeout"));
    }

    #[test]
    fn a_machine_of_many_cpus_gets_memory_for_all_of_them() {
        let config = Config::resolve(ServeOptions::default(), Machine { cpus: 64 }).unwrap();
        assert_eq!(config.memory.total, ByteSize::mib(64 * 64));
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = ServeOptions {
            node_id: Some(4),
            shards: Some(1),
            topic_default: vec!["a=1".parse().unwrap(), "b=2".parse().unwrap()],
            ..Default::default()
        };
        let line = ServeOptions { node_id: Some(5), topic_default: vec!["b=3".parse().unwrap()], ..Default::default() };
        let both = line.over(file);
        assert_eq!((both.node_id, both.shards), (Some(5), Some(1)));
        let settings: Vec<String> = both.topic_default.iter().map(Setting::to_string).collect();
        assert_eq!(settings, ["a=1", "b=3"]);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let options = ServeOptions {
            shards: Some(3),
            pin: Some(true),
            node_id: Some(-1),
            num_partitions: Some(0),
            max_connections: Some(5),
            max_connections_per_ip: Some(6),
            ..Default::default()
        };
        assert_eq!(problems(options).len(), 4);
    }

    #[test]
    fn relations_between_options_are_checked() {
        let listen = |text: &str| Some(text.split(',').map(|part| part.parse().unwrap()).collect());
        let cases: [(ServeOptions, &str); 8] = [
            (ServeOptions { metrics: "127.0.0.1:9092".parse().ok(), ..Default::default() }, "--metrics 127.0.0.1:9092"),
            (ServeOptions { memory: Some(ByteSize::mib(40)), ..Default::default() }, "too little for 2 shards"),
            (ServeOptions { max_frame_bytes: Some(ByteSize::mib(90)), ..Default::default() }, "raise --memory"),
            (ServeOptions { max_frame_bytes: Some(ByteSize(5)), ..Default::default() }, "--max-frame-bytes 5B"),
            (ServeOptions { wal_bytes: Some(ByteSize::mib(1)), ..Default::default() }, "--wal-bytes 1MiB"),
            (ServeOptions { listen: Some(vec![]), ..Default::default() }, "at least one"),
            (ServeOptions { listen: listen("127.0.0.1:1,127.0.0.1:1"), ..Default::default() }, "twice"),
            (
                ServeOptions { advertised_listener: listen("0.0.0.0:9092"), ..Default::default() },
                "clients cannot connect",
            ),
        ];
        for (options, reason) in cases {
            let found = problems(options);
            assert!(found.len() == 1 && found[0].contains(reason), "{reason}: {found:?}");
        }
    }

    #[test]
    fn a_topic_default_that_cannot_be_is_refused_with_the_reason() {
        for (setting, reason) in [
            ("retention.mss=1", "did you mean retention.ms?"),
            ("log.retention.hours=1", "write it by its topic name, retention.ms"),
            ("colour=red", "no such topic setting"),
            ("retention.ms=soon", "retention.ms"),
            ("max.message.bytes=16000000", "does not fit"),
        ] {
            let options = ServeOptions {
                topic_default: vec![setting.parse().unwrap()],
                max_frame_bytes: Some(ByteSize::mib(8)),
                ..Default::default()
            };
            let found = problems(options);
            assert!(found.len() == 1 && found[0].contains(reason), "{setting}: {found:?}");
        }
    }
}
