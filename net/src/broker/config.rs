//! What the wire is started with: addresses, limits and the settings that clients may ask for.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::{
    coordinator::{Settings, group, transaction},
    feature_levels::{FeatureLevels, TRANSACTION_VERSION_MAX},
    wire::{listener::ListenerIndex, memory, pressure, shared::WireConfig},
};

/// What clients are told are brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advertise {
    /// One broker; requests for partitions of another shard hop inside the node.
    Node,
    /// Each shard is a broker of its own, on ports of its own, so that clients connect to the owner of a partition.
    Shard,
}

/// A way into the node: where it listens, and the address that clients are told who came that way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Its name; no two listeners have the same.
    pub name: String,
    /// Addresses to listen on, shared by all shards (SO_REUSEPORT). At least one.
    pub addresses: Vec<SocketAddr>,
    /// Host name that clients are told.
    pub advertised_host: String,
    /// Port that clients are told, of the node.
    pub advertised_port: u16,
    /// Where shards that are advertised listen, and what clients are told of that, by shard. Empty: they listen on the
    /// ports that follow the first address's, and clients are told those that follow the advertised one.
    pub shard_ports: Vec<u16>,
}

/// What [`crate::serve`] is started with. The same on every shard.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The ways in. At least one.
    pub listeners: Vec<ListenerConfig>,
    /// Where metrics are served over HTTP. Clients may push theirs only if they are served.
    pub metrics: Option<SocketAddr>,
    /// One broker, or one broker per shard.
    pub advertise: Advertise,
    /// Create a topic when metadata of an unknown one is asked for (`auto.create.topics.enable`).
    pub auto_create_topics: bool,
    /// Partitions of a topic that says no number (`num.partitions`).
    pub num_partitions: i32,
    /// Connections of the whole node at most (`max.connections`); `usize::MAX`: no limit.
    pub max_connections: usize,
    /// Connections of one address at most (`max.connections.per.ip`); `usize::MAX`: no limit.
    pub max_connections_per_ip: usize,
    /// Bytes of one request at most (`socket.request.max.bytes`).
    pub max_frame_bytes: usize,
    /// Requests of one connection that may be read before the first of them is answered.
    pub max_in_flight_requests: usize,
    /// Bytes of those requests; one request may always be in flight.
    pub max_in_flight_bytes: usize,
    /// Memory for requests of one shard, received or being received, in bytes.
    pub receive_memory_bytes: usize,
    /// A connection without traffic for that long is closed (`connections.max.idle.ms`).
    pub idle_timeout: Duration,
    /// How long a client may do nothing for the memory that its requests hold while others wait for it; then its
    /// connection is closed. No setting of a node: tests whose clients may get no turn for long set another.
    #[doc(hidden)]
    pub silence_max: Duration,
    /// How long requests in flight may take once the node is stopping.
    pub stop_timeout: Duration,
    /// Incremental fetch sessions of one shard at most (`max.incremental.fetch.session.cache.slots`).
    pub fetch_sessions_max: usize,
    /// Bytes of one fetch's answer at most (`fetch.max.bytes`).
    pub fetch_max_bytes: usize,
    /// Level of the feature `transaction.version` as long as UpdateFeatures has not changed it: 0 to 2.
    pub transaction_version: i16,
    /// Settings of the configuration file by Kafka's broker setting name, as DescribeConfigs shows them.
    pub broker_settings: BTreeMap<String, String>,
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            listeners: vec![ListenerConfig::plain(SocketAddr::from(([0, 0, 0, 0], 9092)), "localhost", 9092)],
            metrics: None,
            advertise: Advertise::Node,
            auto_create_topics: true,
            num_partitions: 1,
            max_connections: usize::MAX,
            max_connections_per_ip: usize::MAX,
            max_frame_bytes: 100 * 1024 * 1024,
            max_in_flight_requests: 256,
            max_in_flight_bytes: 32 * 1024 * 1024,
            receive_memory_bytes: 256 * 1024 * 1024,
            idle_timeout: Duration::from_secs(600),
            silence_max: pressure::SILENCE_MAX,
            stop_timeout: Duration::from_secs(5),
            fetch_sessions_max: 1000,
            fetch_max_bytes: 55 * 1024 * 1024,
            transaction_version: TRANSACTION_VERSION_MAX,
            broker_settings: BTreeMap::new(),
        }
    }
}

/// A [`NetConfig`] makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// With the reason.
    pub(crate) fn new(reason: String) -> ConfigError {
        ConfigError(reason)
    }
}

impl NetConfig {
    /// The limits of the wire.
    pub(crate) fn wire(&self) -> WireConfig {
        WireConfig {
            frame_bytes_max: self.max_frame_bytes,
            in_flight_requests_max: self.max_in_flight_requests,
            in_flight_bytes_max: self.max_in_flight_bytes,
            receive_memory_bytes: self.receive_memory_bytes,
            idle_timeout: self.idle_timeout,
            silence_max: self.silence_max,
            stop_timeout: self.stop_timeout,
        }
    }

    /// The settings of the group coordinator, out of the broker's.
    pub(crate) fn group_settings(&self) -> Result<group::Settings, ConfigError> {
        group::Settings::parse(&self.broker_settings).map_err(ConfigError)
    }

    /// The settings of all coordinators, out of the broker's.
    pub(crate) fn coordinator_settings(&self) -> Result<Settings, ConfigError> {
        let groups = self.group_settings()?;
        let transactions = transaction::Settings::parse(&self.broker_settings).map_err(ConfigError)?;
        Ok(Settings { groups, transactions, levels: self.levels() })
    }

    /// Levels of features that nobody has changed.
    pub(crate) fn levels(&self) -> FeatureLevels {
        FeatureLevels { transaction_version: self.transaction_version }
    }

    /// Checks the relations among the settings for a node of `shards` shards.
    pub fn check(&self, shards: usize) -> Result<(), ConfigError> {
        let refuse = |reason: String| Err(ConfigError(reason));
        if self.listeners.is_empty() {
            return refuse("no address to listen on".to_string());
        }
        for (at, listener) in self.listeners.iter().enumerate() {
            listener.check(self.advertise, shards)?;
            if self.listeners[..at].iter().any(|other| other.name == listener.name) {
                return refuse(format!("two listeners have the name {}", listener.name));
            }
        }
        if let Some(name) = self.broker_settings.get(INTER_BROKER_LISTENER)
            && self.listeners.iter().all(|listener| listener.name != *name)
        {
            return refuse(format!("{INTER_BROKER_LISTENER} is {name}: no listener has that name"));
        }
        if !(0..=TRANSACTION_VERSION_MAX).contains(&self.transaction_version) {
            let level = self.transaction_version;
            return refuse(format!("transaction.version is {level}: 0 to {TRANSACTION_VERSION_MAX}"));
        }
        if self.num_partitions < 1 {
            return refuse(format!("num.partitions is {}: at least 1 is needed", self.num_partitions));
        }
        if self.max_frame_bytes < 1024 || self.max_frame_bytes > i32::MAX as usize {
            return refuse(format!("socket.request.max.bytes is {}: 1024 to 2147483647", self.max_frame_bytes));
        }
        let (memory, memory_min) = (self.receive_memory_bytes, memory::LIMIT_BYTES_MIN);
        if memory < memory_min {
            return refuse(format!("receive memory of {memory} bytes per shard: at least {memory_min} are needed"));
        }
        let (frame, frame_max) = (self.max_frame_bytes, request_bytes_max(memory));
        if frame > frame_max {
            return refuse(format!(
                "requests of {frame} bytes do not fit receive memory of {memory} bytes: at most {frame_max}"
            ));
        }
        if self.max_in_flight_requests == 0 || self.max_connections == 0 || self.max_connections_per_ip == 0 {
            return refuse("a limit of requests or connections must be at least 1".to_string());
        }
        Ok(())
    }

    /// The listener through which other brokers of a cluster ask this one, and this one asks them: the first unless
    /// `inter.broker.listener.name` says another.
    pub(crate) fn inter_broker_listener(&self) -> &ListenerConfig {
        let named = self.broker_settings.get(INTER_BROKER_LISTENER);
        let named = named.and_then(|name| self.listeners.iter().find(|listener| listener.name == *name));
        named.unwrap_or(&self.listeners[0])
    }

    /// The listener of that index, which came from this configuration.
    pub(crate) fn listener(&self, index: ListenerIndex) -> &ListenerConfig {
        &self.listeners[index.0]
    }
}

impl ListenerConfig {
    /// A listener on one address, by the name that Kafka gives to one that is not named.
    pub fn plain(address: SocketAddr, advertised_host: &str, advertised_port: u16) -> ListenerConfig {
        ListenerConfig {
            name: PLAINTEXT.to_owned(),
            addresses: vec![address],
            advertised_host: advertised_host.to_owned(),
            advertised_port,
            shard_ports: Vec::new(),
        }
    }

    fn check(&self, advertise: Advertise, shards: usize) -> Result<(), ConfigError> {
        let name = &self.name;
        let refuse = |reason: String| Err(ConfigError(format!("listener {name}: {reason}")));
        let Some(first) = self.addresses.first() else {
            return refuse("no address to listen on".to_string());
        };
        if self.advertised_host.is_empty() || self.advertised_host.len() > HOST_BYTES_MAX {
            return refuse(format!("the advertised host must have 1 to {HOST_BYTES_MAX} bytes"));
        }
        if advertise == Advertise::Node {
            return Ok(());
        }
        if !self.shard_ports.is_empty() {
            let listed = self.shard_ports.len();
            return match listed == shards {
                true => Ok(()),
                false => refuse(format!("{listed} ports are listed for {shards} shards")),
            };
        }
        match [first.port(), self.advertised_port].into_iter().find(|port| following(*port, shards - 1).is_none()) {
            Some(port) => refuse(format!("no {shards} ports follow port {port}")),
            None => Ok(()),
        }
    }

    /// Where a shard that is advertised listens beside the addresses that all share. `None` also when no such port
    /// exists, which [`NetConfig::check`] rules out.
    pub(crate) fn shard_port(&self, shard: usize) -> Option<u16> {
        match self.shard_ports.is_empty() {
            true => following(self.addresses.first()?.port(), shard),
            false => self.shard_ports.get(shard).copied(),
        }
    }

    /// The port that clients are told of such a shard.
    pub(crate) fn advertised_shard_port(&self, shard: usize) -> Option<u16> {
        match self.shard_ports.is_empty() {
            true => following(self.advertised_port, shard),
            false => self.shard_ports.get(shard).copied(),
        }
    }
}

/// The protocol of every listener, and the name of one that was given none.
pub(crate) const PLAINTEXT: &str = "PLAINTEXT";

/// Kafka's name of the setting that says by which listener brokers ask each other.
pub(crate) const INTER_BROKER_LISTENER: &str = "inter.broker.listener.name";

/// The port of a shard, when shards have those that follow the node's.
fn following(port: u16, shard: usize) -> Option<u16> {
    port.checked_add(1)?.checked_add(u16::try_from(shard).ok()?)
}

/// The largest request that fits receive memory of so many bytes: the rest is kept for smaller ones.
pub const fn request_bytes_max(receive_memory_bytes: usize) -> usize {
    memory::frame_bytes_max(receive_memory_bytes)
}

/// Longest host name that DNS knows, in bytes.
const HOST_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_legal() {
        assert_eq!(NetConfig::default().check(4), Ok(()));
    }

    fn listener(port: u16, advertised_port: u16) -> ListenerConfig {
        ListenerConfig::plain(SocketAddr::from(([0, 0, 0, 0], port)), "here", advertised_port)
    }

    #[test]
    fn shards_have_the_ports_that_follow_those_of_the_node() {
        let listener = listener(9092, 19092);
        assert_eq!((listener.shard_port(0), listener.advertised_shard_port(0)), (Some(9093), Some(19093)));
        assert_eq!((listener.shard_port(3), listener.advertised_shard_port(3)), (Some(9096), Some(19096)));
    }

    #[test]
    fn listed_ports_must_match_the_number_of_shards() {
        let listener = ListenerConfig { shard_ports: vec![1, 2], ..listener(9092, 9092) };
        assert_eq!((listener.shard_port(1), listener.advertised_shard_port(1)), (Some(2), Some(2)));
        let config = NetConfig { listeners: vec![listener], advertise: Advertise::Shard, ..NetConfig::default() };
        assert!(config.check(3).is_err());
        assert_eq!(config.check(2), Ok(()));
    }

    #[test]
    fn listeners_that_cannot_be_told_apart_or_have_no_ports_are_refused() {
        let refused = |listeners: Vec<ListenerConfig>| {
            let config = NetConfig { listeners, advertise: Advertise::Shard, ..NetConfig::default() };
            config.check(4).map_err(|error| error.to_string())
        };
        let other = ListenerConfig { name: "OTHER".to_string(), ..listener(9192, 9092) };
        assert_eq!(refused(vec![listener(9092, 9092), other.clone()]), Ok(()));
        for (listeners, reason) in [
            (vec![], "no address"),
            (vec![listener(9092, 9092), listener(9192, 9192)], "two listeners have the name PLAINTEXT"),
            (vec![ListenerConfig { addresses: vec![], ..other.clone() }], "OTHER: no address"),
            (vec![ListenerConfig { advertised_host: "h".repeat(256), ..other }], "255 bytes"),
            (vec![listener(65_532, 9092)], "no 4 ports follow port 65532"),
            (vec![listener(9092, 65_532)], "no 4 ports follow port 65532"),
        ] {
            let said = refused(listeners).unwrap_err();
            assert!(said.contains(reason), "{reason}: {said}");
        }
    }

    #[test]
    fn brokers_ask_each_other_through_the_listener_that_is_named_or_the_first() {
        let other = ListenerConfig { name: "OTHER".to_string(), ..listener(9192, 9192) };
        let mut config = NetConfig { listeners: vec![listener(9092, 9092), other], ..NetConfig::default() };
        assert_eq!(config.inter_broker_listener().name, "PLAINTEXT");
        config.broker_settings.insert(INTER_BROKER_LISTENER.to_owned(), "OTHER".to_owned());
        assert_eq!((config.inter_broker_listener().name.as_str(), config.check(1)), ("OTHER", Ok(())));
        config.broker_settings.insert(INTER_BROKER_LISTENER.to_owned(), "NONE".to_owned());
        assert!(config.check(1).is_err_and(|error| error.to_string().contains("no listener has that name")));
    }
}
