//! What a user may say about a node, on the command line and in the configuration file: one struct for both, so that
//! they cannot drift apart. Everything is optional here; [`super::Config`] is what comes of it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::{
    address::HostPort,
    etcd::{EtcdMember, EtcdPlace},
    listener::{Endpoint, ListenerTable},
    settings::{self, Setting},
    units::{ByteSize, Span},
};

/// How clients are told where partitions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Advertise {
    /// One broker: any connection serves every partition
    Node,
    /// One broker per shard, each on a port of its own: clients connect straight to the core that owns a partition
    Shard,
}

/// Options of `millrace serve`. The names in a configuration file are the same, without the leading dashes.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct ServeOptions {
    /// Folder that holds everything; created when missing [default: ./millrace-data]
    #[arg(long, value_name = "DIR", help_heading = "Storage")]
    pub(crate) data: Option<PathBuf>,

    /// Size of each shard's write-ahead log: bounds what a restart replays [default: 256MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Storage")]
    pub(crate) wal_bytes: Option<ByteSize>,

    /// Free space of the disk below which produce is refused while reads and deletes go on
    /// [default: one write-ahead log per shard]
    #[arg(long, value_name = "SIZE", help_heading = "Storage")]
    pub(crate) reserve_bytes: Option<ByteSize>,

    /// Where to listen, by a listener's name if there are several networks, as in INSIDE://0.0.0.0:9092; may be given
    /// several times [default: 127.0.0.1:9092]
    #[arg(long, value_name = "[NAME://]HOST:PORT", help_heading = "Network", value_delimiter = ',')]
    #[serde(deserialize_with = "settings::some_or_more")]
    pub(crate) listen: Option<Vec<Endpoint>>,

    /// Address that clients of a listener are told to connect to; needed when it differs from --listen (0.0.0.0,
    /// containers, NAT); may be given several times
    #[arg(long, value_name = "[NAME://]HOST:PORT", help_heading = "Network", value_delimiter = ',')]
    #[serde(deserialize_with = "settings::some_or_more")]
    pub(crate) advertised_listener: Option<Vec<Endpoint>>,

    /// Listeners as tables of the file, in place of `listen`.
    #[arg(skip)]
    pub(crate) listener: Vec<ListenerTable>,

    /// What clients see as brokers: this node, or each of its shards [default: node]
    #[arg(long, value_name = "WHAT", help_heading = "Network")]
    pub(crate) advertise: Option<Advertise>,

    /// Serve metrics over HTTP at /metrics of this address, and take those that clients push (KIP-714) [default: off]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Diagnostics")]
    pub(crate) metrics: Option<HostPort>,

    /// Id of this node as clients see it [default: 1]
    #[arg(long, value_name = "ID", help_heading = "Network", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) node_id: Option<i32>,

    /// Name of the cluster that this node belongs to; without it the node is alone
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub(crate) cluster: Option<String>,

    /// Addresses of the cluster's etcd, with commas between; or managed: this node runs one of --etcd-members itself; or
    /// mirror: two nodes without an etcd, one of which leads until a person says otherwise
    #[arg(long, value_name = "URL|managed|mirror", help_heading = "Cluster", value_delimiter = ',')]
    #[serde(deserialize_with = "settings::some_or_more")]
    pub(crate) etcd: Option<Vec<EtcdPlace>>,

    /// With --etcd managed: the nodes that run an etcd, three or five of them, the same list on all of them; an etcd's
    /// port is 2379, other etcds use the one after it. With --etcd mirror: the two nodes, the one that begins as leader first
    #[arg(long, value_name = "ID=HOST[:PORT]", help_heading = "Cluster", value_delimiter = ',')]
    #[serde(deserialize_with = "settings::some_or_more")]
    pub(crate) etcd_members: Option<Vec<EtcdMember>>,

    /// Certificate authority of an etcd that is reached by https
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(crate) etcd_ca: Option<PathBuf>,

    /// Certificate by which this node proves to etcd who it is
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(crate) etcd_cert: Option<PathBuf>,

    /// Private key of --etcd-cert
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(crate) etcd_key: Option<PathBuf>,

    /// User of etcd
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub(crate) etcd_user: Option<String>,

    /// File with the password of --etcd-user
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(crate) etcd_password_file: Option<PathBuf>,

    /// Where other nodes of the cluster connect [default: host of the first listener, its port and 100]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    pub(crate) peer_listen: Option<HostPort>,

    /// Address that other nodes are told to connect to; needed when it differs from --peer-listen
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    pub(crate) peer_advertise: Option<HostPort>,

    /// Where this node stands, e.g. a rack or a zone: copies of a partition are spread over them
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub(crate) rack: Option<String>,

    /// Setting of replication by Kafka's name, as in default.replication.factor=3; may be given several times
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Cluster")]
    #[serde(deserialize_with = "settings::table")]
    pub(crate) replication_setting: Vec<Setting>,

    /// Connections of all clients together; further ones are closed at once [default: 10000]
    #[arg(long, value_name = "COUNT", help_heading = "Network")]
    pub(crate) max_connections: Option<u32>,

    /// Connections of one client address [default: as --max-connections]
    #[arg(long, value_name = "COUNT", help_heading = "Network")]
    pub(crate) max_connections_per_ip: Option<u32>,

    /// Largest request that is read; a larger one closes its connection [default: 100MiB or what --memory allows]
    #[arg(long, value_name = "SIZE", help_heading = "Network")]
    pub(crate) max_frame_bytes: Option<ByteSize>,

    /// A connection without a request for that long is closed [default: 10m]
    #[arg(long, value_name = "TIME", help_heading = "Network")]
    pub(crate) connections_max_idle: Option<Span>,

    /// How long a stop may take; what is in no segment by then stays in the write-ahead log for the next start to replay
    /// [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Resources")]
    pub(crate) stop_timeout: Option<Span>,

    /// Number of shards, each a thread with its own log [default: one per CPU that this process may use]
    #[arg(long, value_name = "COUNT", help_heading = "Resources")]
    pub(crate) shards: Option<usize>,

    /// Bind each shard to a CPU of its own: best on a machine that does nothing else [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Resources", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub(crate) pin: Option<bool>,

    /// Memory for records, divided between receive buffers, tail cache, commit groups and the read pool
    /// [default: 512MiB, or 64MiB per shard if that is more]
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) memory: Option<ByteSize>,

    /// Partitions of a topic that does not say how many [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Topics")]
    pub(crate) num_partitions: Option<i32>,

    /// Create a topic when a client first asks for it [default: true]
    #[arg(long, value_name = "BOOL", help_heading = "Topics", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub(crate) auto_create_topics: Option<bool>,

    /// Setting that every topic inherits, as in retention.ms=86400000; may be given several times
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Topics")]
    #[serde(deserialize_with = "settings::table")]
    pub(crate) topic_default: Vec<Setting>,

    /// Setting of the group coordinator by Kafka's name, as in group.initial.rebalance.delay.ms=0; may be given
    /// several times
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Groups")]
    #[serde(deserialize_with = "settings::table")]
    pub(crate) group_setting: Vec<Setting>,

    /// Setting of the transaction coordinator by Kafka's name, as in transaction.max.timeout.ms=60000; may be given
    /// several times
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Transactions")]
    #[serde(deserialize_with = "settings::table")]
    pub(crate) transaction_setting: Vec<Setting>,

    /// Level of the feature transaction.version until kafka-features sets another: 0, 1 or 2, by which clients choose the
    /// protocol of their transactions [default: 2]
    #[arg(long, value_name = "LEVEL", help_heading = "Transactions")]
    pub(crate) transaction_version: Option<i16>,

    /// Pause between rounds of retention [default: 5m]
    #[arg(long, value_name = "TIME", help_heading = "Topics")]
    pub(crate) retention_check: Option<Span>,

    /// How long an idle idempotent producer is remembered [default: 1d]
    #[arg(long, value_name = "TIME", help_heading = "Topics")]
    pub(crate) producer_id_expiration: Option<Span>,

    /// What to log: error, warn, info, debug, trace, or a filter as in info,millrace_net=debug
    /// [default: $RUST_LOG or info]
    #[arg(long, value_name = "FILTER", help_heading = "Diagnostics")]
    pub(crate) log_level: Option<String>,
}

impl ServeOptions {
    /// These options, completed by `file`'s. Topic defaults, group and transaction settings are joined key by key.
    pub(crate) fn over(self, file: Self) -> Self {
        let topic_default = join(self.topic_default, file.topic_default);
        let group_setting = join(self.group_setting, file.group_setting);
        let transaction_setting = join(self.transaction_setting, file.transaction_setting);
        let replication_setting = join(self.replication_setting, file.replication_setting);
        Self {
            data: self.data.or(file.data),
            wal_bytes: self.wal_bytes.or(file.wal_bytes),
            reserve_bytes: self.reserve_bytes.or(file.reserve_bytes),
            listener: if self.listen.is_some() { self.listener } else { file.listener },
            listen: self.listen.or(file.listen),
            advertised_listener: self.advertised_listener.or(file.advertised_listener),
            advertise: self.advertise.or(file.advertise),
            metrics: self.metrics.or(file.metrics),
            node_id: self.node_id.or(file.node_id),
            cluster: self.cluster.or(file.cluster),
            etcd: self.etcd.or(file.etcd),
            etcd_members: self.etcd_members.or(file.etcd_members),
            etcd_ca: self.etcd_ca.or(file.etcd_ca),
            etcd_cert: self.etcd_cert.or(file.etcd_cert),
            etcd_key: self.etcd_key.or(file.etcd_key),
            etcd_user: self.etcd_user.or(file.etcd_user),
            etcd_password_file: self.etcd_password_file.or(file.etcd_password_file),
            peer_listen: self.peer_listen.or(file.peer_listen),
            peer_advertise: self.peer_advertise.or(file.peer_advertise),
            rack: self.rack.or(file.rack),
            replication_setting,
            max_connections: self.max_connections.or(file.max_connections),
            max_connections_per_ip: self.max_connections_per_ip.or(file.max_connections_per_ip),
            max_frame_bytes: self.max_frame_bytes.or(file.max_frame_bytes),
            connections_max_idle: self.connections_max_idle.or(file.connections_max_idle),
            stop_timeout: self.stop_timeout.or(file.stop_timeout),
            shards: self.shards.or(file.shards),
            pin: self.pin.or(file.pin),
            memory: self.memory.or(file.memory),
            num_partitions: self.num_partitions.or(file.num_partitions),
            auto_create_topics: self.auto_create_topics.or(file.auto_create_topics),
            topic_default,
            group_setting,
            transaction_setting,
            transaction_version: self.transaction_version.or(file.transaction_version),
            retention_check: self.retention_check.or(file.retention_check),
            producer_id_expiration: self.producer_id_expiration.or(file.producer_id_expiration),
            log_level: self.log_level.or(file.log_level),
        }
    }
}

/// Settings of which those of `own` count more.
fn join(own: Vec<Setting>, mut below: Vec<Setting>) -> Vec<Setting> {
    below.retain(|setting| own.iter().all(|own| own.key != setting.key));
    below.extend(own);
    below
}
