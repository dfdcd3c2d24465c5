//! What the wire is started with: addresses, limits and the settings that clients may ask for.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::group::Settings;

/// How clients are told to reach the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advertise {
    /// One broker; requests for partitions of another shard hop inside the node.
    Node,
    /// Each shard is a broker of its own on a port of its own, so that clients connect to the owner of a partition.
    Shard {
        /// Port of each shard; empty: the first listen port + 1 + shard.
        ports: Vec<u16>,
    },
}

/// What [`crate::serve`] is started with. The same on every shard.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Addresses to listen on, shared by all shards (SO_REUSEPORT). At least one.
    pub listen: Vec<SocketAddr>,
    /// Where metrics are served over HTTP. Clients may push theirs only if they are served.
    pub metrics: Option<SocketAddr>,
    /// Host name that clients are told.
    pub advertised_host: String,
    /// Port that clients are told.
    pub advertised_port: u16,
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
    /// How long requests in flight may take once the node is stopping.
    pub stop_timeout: Duration,
    /// Incremental fetch sessions of one shard at most (`max.incremental.fetch.session.cache.slots`).
    pub fetch_sessions_max: usize,
    /// Bytes of one fetch's answer at most (`fetch.max.bytes`).
    pub fetch_max_bytes: usize,
    /// Settings of the configuration file by Kafka's broker setting name, as DescribeConfigs shows them.
    pub broker_settings: BTreeMap<String, String>,
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 9092))],
            metrics: None,
            advertised_host: "localhost".to_string(),
            advertised_port: 9092,
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
            stop_timeout: Duration::from_secs(5),
            fetch_sessions_max: 1000,
            fetch_max_bytes: 55 * 1024 * 1024,
            broker_settings: BTreeMap::new(),
        }
    }
}

/// A [`NetConfig`] makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl NetConfig {
    /// The settings of the group coordinator, out of the broker's.
    pub(crate) fn group_settings(&self) -> Result<Settings, ConfigError> {
        Settings::parse(&self.broker_settings).map_err(ConfigError)
    }

    /// Checks the relations among the settings for a node of `shards` shards.
    pub fn check(&self, shards: usize) -> Result<(), ConfigError> {
        let refuse = |reason: String| Err(ConfigError(reason));
        if self.listen.is_empty() {
            return refuse("no address to listen on".to_string());
        }
        if self.advertised_host.is_empty() || self.advertised_host.len() > HOST_BYTES_MAX {
            return refuse(format!("the advertised host must have 1 to {HOST_BYTES_MAX} bytes"));
        }
        if self.num_partitions < 1 {
            return refuse(format!("num.partitions is {}: at least 1 is needed", self.num_partitions));
        }
        if self.max_frame_bytes < 1024 || self.max_frame_bytes > i32::MAX as usize {
            return refuse(format!("socket.request.max.bytes is {}: 1024 to 2147483647", self.max_frame_bytes));
        }
        if self.receive_memory_bytes < crate::connection::READ_BYTES_MAX {
            return refuse(format!(
                "receive memory of {} bytes per shard: at least {} are needed",
                self.receive_memory_bytes,
                crate::connection::READ_BYTES_MAX
            ));
        }
        if self.max_in_flight_requests == 0 || self.max_connections == 0 || self.max_connections_per_ip == 0 {
            return refuse("a limit of requests or connections must be at least 1".to_string());
        }
        if let Advertise::Shard { ports } = &self.advertise {
            if !ports.is_empty() && ports.len() != shards {
                return refuse(format!("{} ports are listed for {shards} shards", ports.len()));
            }
            if ports.is_empty() && usize::from(self.listen[0].port()) + shards > usize::from(u16::MAX) {
                return refuse(format!("no {shards} ports follow port {}", self.listen[0].port()));
            }
        }
        Ok(())
    }

    /// The port of a shard's own listener, if shards are advertised. `None` also when no such port exists, which
    /// [`NetConfig::check`] rules out.
    pub(crate) fn shard_port(&self, shard: usize) -> Option<u16> {
        let Advertise::Shard { ports } = &self.advertise else {
            return None;
        };
        if ports.is_empty() {
            let shard = u16::try_from(shard).ok()?;
            self.listen.first()?.port().checked_add(1)?.checked_add(shard)
        } else {
            ports.get(shard).copied()
        }
    }
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

    #[test]
    fn shard_ports_follow_the_first_listen_port() {
        let config = NetConfig { advertise: Advertise::Shard { ports: vec![] }, ..NetConfig::default() };
        assert_eq!(config.shard_port(0), Some(9093));
        assert_eq!(config.shard_port(3), Some(9096));
        assert_eq!(NetConfig::default().shard_port(0), None);
    }

    #[test]
    fn listed_ports_must_match_the_number_of_shards() {
        let config = NetConfig { advertise: Advertise::Shard { ports: vec![1, 2] }, ..NetConfig::default() };
        assert!(config.check(3).is_err());
        assert_eq!(config.check(2), Ok(()));
        assert_eq!(config.shard_port(1), Some(2));
    }
}
